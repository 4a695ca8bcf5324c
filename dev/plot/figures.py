"""Draws the comparison with matplotlib: loss against tokens, the paired difference, the gradient
norm. The same code makes the PNG files and the SVG of the page; the page brings its own colours.
Knows no file formats of runs."""

import io
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import runs as R

# Okabe and Ito's colours, told apart by readers with any colour vision; the reference run is blue.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
INK, FAINT = "#1b1f24", "#6b7280"
# What stands for them in the page's SVG: style sheet variables, so that light and dark take their
# own.
PAGE_COLOURS = {
    **{c: f"var(--run{i})" for i, c in enumerate(COLOURS)},
    INK: "var(--ink)",
    FAINT: "var(--faint)",
}

MAX_POINTS = 900  # of a drawn curve: more than the picture has columns helps nobody
START_SHARE = (
    0.05  # the first steps, whose fall would squash the rest, do not set the range of an axis
)


def colour(i):
    return COLOURS[i % len(COLOURS)]


def line_width(i):
    """The reference is broader: it stays visible where another run lies on it."""
    return 3.2 if i == 0 else 1.7


def line_style(i):
    return "-" if i < len(COLOURS) else "--"


def token_unit(most):
    for scale, name in (
        (1e12, "trillions"),
        (1e9, "billions"),
        (1e6, "millions"),
        (1e3, "thousands"),
    ):
        if most >= 2 * scale:
            return scale, f"training tokens ({name})"
    return 1, "training tokens"


def thin(x, y):
    """At most MAX_POINTS points; each bin keeps its smallest and largest value, so that no spike
    is lost."""
    good = np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) <= MAX_POINTS:
        return x, y
    keep = set()
    for part in np.array_split(np.arange(len(x)), MAX_POINTS // 2):
        keep |= {part[np.argmin(y[part])], part[np.argmax(y[part])]}
    keep = np.array(sorted(keep | {0, len(x) - 1}))
    return x[keep], y[keep]


def every(x, y):
    """At most MAX_POINTS points of a smooth curve."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).astype(int))
    return x[keep], y[keep]


def later(x, y, share=START_SHARE):
    """The finite values behind the first share of x; all where that leaves too few to judge."""
    good = np.isfinite(y)
    x, y = x[good], y[good]
    kept = y[x > share * x[-1]] if len(x) else y
    return kept if len(kept) >= 10 else y


def range_of(parts, padding, include=()):
    values = np.concatenate([np.asarray(p, dtype=float) for p in [*parts, list(include)]])
    low, high = values.min(), values.max()
    pad = padding * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def set_style(salt):
    """salt: makes the identifiers inside an SVG the same in every call."""
    plt.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": salt,
            "font.family": "sans-serif",
            "font.size": 10.5,
            "text.color": INK,
            "axes.edgecolor": FAINT,
            "axes.labelcolor": INK,
            "xtick.color": FAINT,
            "ytick.color": FAINT,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "axes.linewidth": 0.8,
        }
    )


def set_axes(axes):
    axes.grid(True, color=FAINT, alpha=0.22, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def start_figure(title, subtitle, ylabel, most_tokens):
    set_style(title)
    figure, axes = plt.subplots(figsize=(9.6, 5.2), layout="constrained")
    axes.set_title(title + "\n", loc="left", fontsize=13.5, fontweight="bold")
    axes.text(0, 1.022, subtitle, transform=axes.transAxes, fontsize=9.5, color=FAINT)
    scale, xlabel = token_unit(most_tokens)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_xlim(0, 1.01 * most_tokens / scale)
    set_axes(axes)
    return figure, axes, scale


def finish(axes, location):
    axes.legend(loc=location, fontsize=10, facecolor="white", edgecolor="none", framealpha=0.8)


def smoothing_words(factor):
    steps = 1 / (1 - factor)
    return (
        f"lines: moving average over about {steps:.0f} steps"
        if steps > 1.5
        else "lines: every step"
    )


def smoothed_norm(norm, factor):
    """Averaged as logarithms: a spike of one step stays one step."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.exp(R.ema(np.log(norm), factor))


def draw_curve(axes, i, x, y, smooth, factor, text, id_):
    """Raw behind, smoothed in front; the gid lets the page hide a run."""
    if factor > 0 and len(x) > 3:
        (raw,) = axes.plot(*thin(x, y), color=colour(i), alpha=0.2, linewidth=0.7, zorder=2)
        raw.set_gid(f"{id_}-raw")
    (line,) = axes.plot(
        *every(x, smooth),
        color=colour(i),
        linewidth=line_width(i),
        label=text,
        zorder=4,
        linestyle=line_style(i),
        marker="o" if len(x) == 1 else None,
    )
    line.set_gid(f"{id_}-line")


def draw_points(axes, i, x, y, id_, text=None):
    (points,) = axes.plot(
        x,
        y,
        linestyle="none",
        marker="os^Dvp"[i % 6],
        markersize=line_width(i) + (3 if len(x) <= 40 else 1.5),
        color=colour(i),
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=5,
        label=text,
    )
    points.set_gid(id_)


def draw_loss(all_runs, factor, share=START_SHARE):
    """share: of the run, that the vertical axis does not need to show; from a half on the picture
    starts there."""
    most = max(run.tokens[-1] for run in all_runs)
    has_val = any(np.isfinite(run.val_loss).any() for run in all_runs)
    words = (
        smoothing_words(factor)
        + (", raw behind" if factor > 0 else "")
        + ("; points: validation" if has_val else "")
    )
    figure, axes, scale = start_figure(
        "Loss" if share < 0.5 else "Loss, the later part", words, "loss (nats per token)", most
    )
    parts = []
    for i, run in enumerate(all_runs):
        smooth = R.ema(run.loss, factor)
        draw_curve(
            axes,
            i,
            run.tokens / scale,
            run.loss,
            smooth,
            factor,
            R.label(run),
            f"run{i}-loss-{share}",
        )
        parts += [
            later(run.tokens, smooth, share),
            np.quantile(later(run.tokens, run.loss, share), [0.02, 0.9]),
        ]
        good = np.isfinite(run.val_loss)
        if good.any():
            draw_points(
                axes, i, run.val_tokens[good] / scale, run.val_loss[good], f"run{i}-val-{share}"
            )
            parts.append(later(run.val_tokens, run.val_loss, share)[-5:])
    axes.set_ylim(*range_of(parts, 0.04))
    if share >= 0.5:
        axes.set_xlim(share * most / scale, (1 + 0.01 * (1 - share)) * most / scale)
    finish(axes, "upper right")
    return figure


def draw_difference(all_runs, factor):
    reference = all_runs[0]
    most = max(R.paired(reference, run)[1][-1] for run in all_runs[1:])
    words = (
        "same step, same batch"
        if all(R.same_batches(reference, r) for r in all_runs[1:])
        else "same step, other batches"
    )
    figure, axes, scale = start_figure(
        f"Difference of the losses to {R.label(reference)}",
        f"{words}; below zero is better than {R.label(reference)}; " + smoothing_words(factor),
        "difference of losses (nats per token)",
        most,
    )
    parts = []
    for i, run in enumerate(all_runs[1:], 1):
        _, tokens, gap = R.paired(reference, run)
        smooth = R.ema(gap, factor)
        draw_curve(
            axes,
            i,
            tokens / scale,
            gap,
            smooth,
            factor,
            f"{R.label(run)} \u2212 {R.label(reference)}, training",
            f"run{i}-gap",
        )
        parts.append(later(tokens, smooth))
        if np.isfinite(gap).sum() > 3:
            parts.append(np.quantile(later(tokens, gap), [0.1, 0.9]))
        _, val_tokens, val_gap = R.paired_validation(reference, run)
        if np.isfinite(val_gap).any():
            draw_points(
                axes, i, val_tokens / scale, val_gap, f"run{i}-valgap", "the same, validation"
            )
            parts.append(later(val_tokens, val_gap))
    zero = axes.axhline(0, color=INK, linewidth=1.0, zorder=3)
    zero.set_gid("zero")
    low, high = range_of(parts, 0.08, include=[0])
    entries = len(axes.get_legend_handles_labels()[0])
    axes.set_ylim(low, high + (high - low) * 0.06 * entries)  # room for the legend above the curves
    finish(axes, "upper right")
    return figure


def draw_norm(all_runs, factor):
    most = max(run.tokens[-1] for run in all_runs)
    figure, axes, scale = start_figure(
        "Gradient norm",
        "before clipping; " + smoothing_words(factor) + ", raw behind",
        "global gradient norm",
        most,
    )
    axes.set_yscale("log")
    parts = []
    for i, run in enumerate(all_runs):
        norm = np.where(run.norm > 0, run.norm, np.nan)
        smooth = smoothed_norm(norm, factor)
        draw_curve(axes, i, run.tokens / scale, norm, smooth, factor, R.label(run), f"run{i}-norm")
        good = norm[np.isfinite(norm)]
        if len(good):
            parts += [np.log(np.quantile(good, [0.002, 0.998])), np.log(later(run.tokens, smooth))]
    if parts:
        axes.set_ylim(*np.exp(range_of(parts, 0.06)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    finish(axes, "upper right")
    return figure


def save_png(figure, path):
    figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})


def page_svg(figure, text):
    """The figure as an <svg> element that takes its colours from the page and refers to nothing
    outside it."""
    out = io.StringIO()
    figure.savefig(
        out,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="[a-zA-Z0-9.]+_\d+"', "", svg
    )  # the same in every figure, and referred to by none
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1),
        count=1,
    )
    for value, variable in PAGE_COLOURS.items():
        svg = re.sub(value, variable, svg, flags=re.IGNORECASE)
    svg = re.sub(r"#ffffff", "var(--paper)", svg, flags=re.IGNORECASE)
    return svg.replace("<svg", f'<svg role="img" aria-label="{text}"', 1)
