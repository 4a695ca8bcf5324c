"""Draws the paper's figures: a panel per family of runs (paper.py), standard attention blue, LASER
orange. Knows no logs and computes no numbers of its own."""

import numpy as np
from compare import default_smoothing
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

import figures as F
import runs as R
import stats as S

COLOUR = {"standard": 0, "laser": 1}  # places in figures.COLOURS; others follow
NAMES = {"standard": "standard", "laser": "LASER"}
PANEL = (5.6, 3.8)  # inches
MAX_COLUMNS = 3


def place(attention):
    return COLOUR.get(attention, len(COLOUR))


def name_of(attention):
    return NAMES.get(attention, attention)


def panels(title, groups, rows_each=1):
    """A figure with rows_each panels per family, one above the other:
    (figure, [[axes of a family] per family])."""
    F.set_style(title)
    bands = -(-len(groups) // MAX_COLUMNS)
    columns = -(-len(groups) // bands)
    figure, axes = F.plt.subplots(
        bands * rows_each,
        columns,
        figsize=(PANEL[0] * columns, PANEL[1] * bands * rows_each),
        layout="constrained",
        squeeze=False,
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=13.5, fontweight="bold")
    places = [(i // columns * rows_each, i % columns) for i in range(bands * columns)]
    out = [[axes[row + k, column] for k in range(rows_each)] for row, column in places]
    for unused in out[len(groups) :]:
        for one in unused:
            one.remove()
    for family, name in zip(out, groups):
        for one in family:
            F.set_axes(one)
        family[0].set_title(name, loc="left", fontsize=11.5)
    return figure, out[: len(groups)]


def draw_curves(groups):
    """Training above, validation below; the first steps do not set the vertical range."""
    runs = [run for arms in groups.values() for run in arms.values()]
    factor = default_smoothing(runs)
    figure, axes = panels("Training loss, and validation loss below it", groups, 2)
    for (top, bottom), arms in zip(axes, groups.values()):
        scale, xlabel = F.token_unit(max(run.tokens[-1] for run in arms.values()))
        parts, val_parts = [], []
        for attention, run in arms.items():
            i, text = place(attention), name_of(attention)
            smooth = R.ema(run.loss, factor)
            F.draw_curve(top, i, run.tokens / scale, run.loss, smooth, factor, text, "train")
            parts.append(F.later(run.tokens, smooth))
            good = np.isfinite(run.val_loss)
            if not good.any():
                continue
            x, y = run.val_tokens[good], run.val_loss[good]
            bottom.plot(
                x / scale,
                y,
                color=F.colour(i),
                linewidth=F.line_width(i),
                marker="o" if len(x) <= 40 else None,
                markersize=3.5,
                label=text,
            )
            val_parts.append(F.later(x, y))
        for one, values in ((top, parts), (bottom, val_parts)):
            if values:
                one.set_ylim(*F.range_of(values, 0.06))
                F.finish(one, "upper right")
        top.set_ylabel("training loss (nats per token)")
        bottom.set_ylabel("validation loss (nats per token)")
        bottom.set_xlabel(xlabel)
    return figure


def draw_norms(groups):
    runs = [run for arms in groups.values() for run in arms.values()]
    factor = default_smoothing(runs)
    figure, axes = panels("Gradient norm before clipping", groups)
    for (one,), arms in zip(axes, groups.values()):
        one.set_yscale("log")
        one.set_xlabel("step")
        one.set_ylabel("global gradient norm")
        parts = []
        for attention, run in arms.items():
            norm = np.where(run.norm > 0, run.norm, np.nan)
            smooth = F.smoothed_norm(norm, factor)
            F.draw_curve(
                one, place(attention), run.step, norm, smooth, factor, name_of(attention), "norm"
            )
            good = norm[np.isfinite(norm)]
            if len(good):
                parts += [np.log(np.quantile(good, [0.002, 0.998]))]
        if parts:
            one.set_ylim(*np.exp(F.range_of(parts, 0.06)))
            F.finish(one, "upper right")
        one.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        one.yaxis.set_minor_formatter(NullFormatter())
    return figure


def draw_spikes(groups, found):
    """found: {path of a run: (stats.Spikes, how many of its steps)}"""
    figure, axes = panels("Training loss in the first part, every step; triangles: spikes", groups)
    for (one,), arms in zip(axes, groups.values()):
        parts = []
        for attention, run in arms.items():
            spikes, count = found[run.path]
            i, step, loss = place(attention), run.step[:count], run.loss[:count]
            text = f"{name_of(attention)}: {len(spikes.first)}"
            (line,) = one.plot(
                *F.thin(step, loss), color=F.colour(i), linewidth=0.9, alpha=0.85, label=text
            )
            line.set_zorder(3 - 0.1 * i)
            at = spikes.first[np.isfinite(loss[spikes.first])]
            one.plot(
                step[at],
                loss[at],
                linestyle="none",
                marker="v",
                markersize=6,
                color=F.colour(i),
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=5,
            )
            parts += [F.later(step, loss), loss[at]]
        if any(len(part) for part in parts):
            one.set_ylim(*F.range_of(parts, 0.06))
        one.set_xlabel("step")
        one.set_ylabel("training loss (nats per token)")
        F.finish(one, "upper right")
    return figure


def draw_saving(one, fits, loss):
    """The line at a loss, between the sizes at which the fits reach it."""
    sizes = [S.size_at(fits[a], loss) for a in ("laser", "standard")]
    one.plot(sizes, [loss, loss], color=F.INK, linewidth=1.2, marker="|", markersize=9)
    share = S.saving(fits["standard"], fits["laser"], loss).share
    one.annotate(
        f"{share:.1%} fewer parameters\nat loss {loss:.4g}",
        (sizes[0], loss),
        xytext=(-10, -6),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=9.5,
    )


def draw_scaling(points, fits, loss):
    """points: {attention: (millions of parameters, losses)}; loss: at which sizes are compared,
    None: not at all."""
    title = "Test loss against parameters"
    F.set_style(title)
    figure, one = F.plt.subplots(figsize=(7.6, 5.2), layout="constrained")
    one.set_title(title, loc="left", fontsize=13.5, fontweight="bold")
    F.set_axes(one)
    one.set_xscale("log")
    one.set_yscale("log")
    for attention, (n, losses) in points.items():
        i, fit = place(attention), fits.get(attention)
        text = name_of(attention) + (f": {fit.a:.3f} n^{fit.b:.4f}" if fit else "")
        F.draw_points(one, i, np.array(n), np.array(losses), attention, None if fit else text)
        if fit:
            x = np.geomspace(min(n) * 0.9, max(n) * 1.1, 50)
            one.plot(x, fit.a * x**fit.b, color=F.colour(i), linewidth=1.4, label=text)
    if loss is not None:
        draw_saving(one, fits, loss)
    one.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    one.yaxis.set_major_locator(MaxNLocator(6))  # no decade lies within
    for axis in (one.xaxis, one.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_locator(NullLocator())
    one.set_xlabel("parameters (millions)")
    one.set_ylabel("loss (nats per token)")
    if points:
        F.finish(one, "upper right")
    return figure
