"""Draws what --probe-attention wrote: the spread of attention's probabilities (the paper's figure
1), and over training the sizes of what the softmax hands back."""

import numpy as np
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

import figures as F
import probes as P
from paper_figures import name_of, panels, place

STYLES = dict(zip(P.SHARES, ("-", ":")))


COLUMNS = 3


def mark_bound(one, name, arms):
    """The line, and how much of each arm lies left of it."""
    shares = [f"{probes.all_layers(name)[-1]:.0%}" for probes in arms.values()]
    lines = [f"below {P.SHARES[name]:g}", ", ".join(shares), "the paper:"]
    words = "\n".join([*lines, f"about {P.PAPER_SHARES[name]:.0%}"])
    one.axvline(P.SHARES[name], color=F.INK, linewidth=0.9, linestyle=STYLES[name])
    one.annotate(
        words,
        (P.SHARES[name], 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=9,
    )


def draw_shares(one, arms):
    """Below each bound, against layers."""
    layers = 1
    for attention, probes in arms.items():
        layers = max(layers, probes.layers)
        for name, bound in P.SHARES.items():
            one.plot(
                np.arange(probes.layers),
                probes.share[name][-1],
                color=F.colour(place(attention)),
                linestyle=STYLES[name],
                marker="o",
                markersize=4,
                label=f"{name_of(attention)}, below {bound:g}",
            )
    for name, share in P.PAPER_SHARES.items():
        one.axhline(share, color=F.FAINT, linewidth=1, linestyle=STYLES[name])
        one.annotate(
            f"the paper, below {P.SHARES[name]:g}: about {share:.0%}",
            (1, share),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=F.FAINT,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0},
        )
    one.set_ylim(-0.03, 1.03)
    one.set_xlim(-0.2, layers - 0.8)
    one.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    one.xaxis.set_major_locator(MaxNLocator(integer=True))
    one.set_xlabel("layer")
    one.set_ylabel("share of probabilities")
    if one.lines:
        one.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=9, frameon=False)


def draw_attention(groups):
    """groups: {family: {attention: Probes}}; their last probes."""
    figure, axes = panels("Attention probabilities, last probe", groups, 2)
    for (top, bottom), arms in zip(axes, groups.values()):
        for attention, probes in arms.items():
            edges, share = probes.histogram(-1)
            i = place(attention)
            top.stairs(
                share,
                edges,
                color=F.colour(i),
                linewidth=F.line_width(i),
                label=f"{name_of(attention)}, step {probes.step[-1]}",
            )
        for name in P.SHARES:
            mark_bound(top, name, arms)
        top.set_xscale("log")
        top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        top.set_xlabel("probability, in half decades; the first: all that are smaller")
        top.set_ylabel("share of probabilities, all layers")
        top.set_ylim(top=1.3 * top.get_ylim()[1])  # room for the words
        top.set_xlim(10.0**P.LOWEST, 1)
        top.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
        draw_shares(bottom, arms)
    return figure


def draw_quantity(one, arms, name):
    """Over training: each layer thin, their mean thick."""
    for attention, probes in arms.items():
        i = place(attention)
        values = np.where(probes.quantity[name] > 0, probes.quantity[name], np.nan)
        one.plot(probes.step, values, color=F.colour(i), linewidth=0.8, alpha=0.5)
        one.plot(
            probes.step,
            probes.quantity[name].mean(axis=1),
            color=F.colour(i),
            linewidth=F.line_width(i),
            marker="o" if len(probes.step) <= 20 else None,
            markersize=3.5,
            label=name_of(attention),
        )
    one.set_yscale("log")
    one.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    one.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    one.yaxis.set_minor_formatter(NullFormatter())
    one.set_xlabel("step")
    one.set_title(P.QUANTITIES[name], loc="left", fontsize=10.5)


def draw_gradients(groups):
    """groups: {family: {attention: Probes}}; a band of panels per family, one per quantity."""
    title = "What the softmax hands back"
    F.set_style(title)
    each = -(-len(P.QUANTITIES) // COLUMNS)  # rows of panels
    figure = F.plt.figure(figsize=(4.2 * COLUMNS, 3.0 * each * len(groups)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13.5, fontweight="bold")
    for band, (family, arms) in zip(figure.subfigures(len(groups), squeeze=False), groups.items()):
        axes = band[0].subplots(each, COLUMNS).flat
        band[0].suptitle(family, x=0.01, ha="left", fontsize=11.5)
        for one, name in zip(axes, P.QUANTITIES):
            F.set_axes(one)
            draw_quantity(one, arms, name)
        for unused in axes[len(P.QUANTITIES) :]:
            unused.axis("off")
        axes[-1].legend(
            *axes[0].get_legend_handles_labels(),
            loc="upper left",
            frameon=False,
            title="thick: mean over layers\nthin: each layer",
            alignment="left",
        )
    return figure
