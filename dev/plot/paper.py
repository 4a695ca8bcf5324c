"""The paper's tables and figures from the logs of runs.

    paper.py COMMAND [--out DIR] [options] RUN...

Each command prints a table, and with --out writes it and its picture there. Runs belong together
when the names of their directories differ in nothing but the attention: 301M-standard, 301M-laser.
`paper.py --help` lists the commands. Exit codes: 2 usage, 3 a log is missing or damaged, 4 the
output cannot be written."""

import argparse
import math
import os
import re
import sys
import textwrap

try:
    import numpy as np

    import probes as P
    import runs as R
    import stats as S
    from compare import report_differences, table_text
except ImportError as error:
    print(f"error: {error}: scripts/setup.sh installs it into build/venv", file=sys.stderr)
    sys.exit(2)

ATTENTIONS = ("standard", "laser")

# Test losses that the paper prints (Table 1, section 4.1, Table 11): standard, LASER. Its tokens
# are not ours, so its gain can be compared, its losses cannot.
PAPER = {
    "234M": (2.681, 2.673),
    "301M": (2.641, 2.595),
    "435M": (2.575, 2.555),
    "301M-lamb": (2.758, 2.741),
    "2.2B-fp32": (2.344, 2.326),
    "2.2B-bf16": (2.350, 2.333),
}
# Figure 4's models whose test losses are printed; parameters with biases and norms, in millions.
# The 1.1B model's losses are only drawn.
PAPER_SIZES = (234.28, 301.47, 435.75, 2213.7)
PAPER_LOSSES = {
    "standard": (2.681, 2.641, 2.575, 2.344),
    "laser": (2.673, 2.595, 2.555, 2.326),
}
PAPER_LOSS = 2.347  # at which the paper compares sizes


# ---- runs that belong together -----------------------------------------------------------------


def without(word, name):
    """name without a word between separators: ("laser", "301M-laser") -> "301M"."""
    return re.sub(rf"(^|[-_]){word}(?=$|[-_])", "", name).strip("-_")


def family(run):
    return without(re.escape(run.config.get("attention", "")), run.name) or "run"


def families(runs):
    """{family: {attention: run}}, in the order of the arguments; standard attention first."""
    found = {}
    for run in runs:
        arms = found.setdefault(family(run), {})
        attention = run.config.get("attention", "?")
        if attention in arms:
            R.fail(R.EXIT_USAGE, f"{arms[attention].path} and {run.path} are of one name")
        arms[attention] = run
    order = {a: i for i, a in enumerate(ATTENTIONS)}
    for name, arms in found.items():
        found[name] = dict(sorted(arms.items(), key=lambda arm: order.get(arm[0], len(order))))
    for arms in found.values():
        first, *others = arms.values()
        for other in others:
            report_differences([first.name, other.name], {1: R.differences(first, other)})
    return found


def progress(run):
    """What keeps a run from being compared with one that is done, or nothing."""
    steps, done = run.config.get("steps"), int(run.step[-1])
    if run.diverged:
        return f"diverged at step {done}"
    return f"step {done} of {steps}" if isinstance(steps, int) and done < steps else ""


def test_loss(run):
    """The final validation loss; None where there is none, or it is not finite."""
    good = run.val_loss[np.isfinite(run.val_loss)]
    return good[-1] if len(good) and not run.diverged else None


def train_loss(run):
    return None if run.diverged else R.numbers(run, run)["final_train"]


def show(form, value):
    return "-" if value is None else form.format(value)


def gain(standard, laser):
    """The relative improvement, in the paper's manner; None where a loss is missing."""
    return None if standard is None or laser is None else 1 - laser / standard


def notes(runs):
    return [f"{run.name}: {progress(run)}" for run in runs if progress(run)]


# ---- tables ------------------------------------------------------------------------------------


def is_paper(arms):
    """Whether the family of the paper's name is of its model: 301M-lamb of preset 301M."""
    return all(family(run).split("-")[0] == run.config.get("model") for run in arms.values())


def pairs(options, runs):
    """A row per family: losses of both attentions, and what LASER gains."""
    names = ["test, standard", "test, LASER", "gain", "train, standard", "train, LASER", "gain"]
    groups = families(runs)
    known = {name: PAPER[name] for name, arms in groups.items() if name in PAPER and is_paper(arms)}
    rows = []
    for name, arms in groups.items():
        cells = []
        for loss in (test_loss, train_loss):
            losses = [loss(arms[a]) if a in arms else None for a in ATTENTIONS]
            cells += [show("{:.4f}", value) for value in losses]
            cells.append(show("{:.2%}", gain(*losses)))
        if known:
            cells.append(show("{:.2%}", gain(*known.get(name, (None, None)))))
        rows.append((name, cells))
    text = [table_text(names + ["the paper's, test"] * bool(known), rows), *notes(runs)]
    text.append("test: final validation loss; train: mean of the last 5 % of the steps")
    return "\n".join(text), None


def sweep(options, runs):
    """Learning rate against weight decay: the final validation loss, the best marked."""
    text = []
    for attention in sorted({run.config.get("attention", "?") for run in runs}):
        points = {}
        for run in runs:
            if run.config.get("attention") == attention:
                points[run.config.get("lr"), run.config.get("weight_decay")] = run
        losses = {at: test_loss(run) for at, run in points.items() if not progress(run)}
        losses = {at: loss for at, loss in losses.items() if loss is not None}
        best = min(losses, key=losses.get) if losses else None
        decays = sorted({decay for _, decay in points})
        rows = [
            (f"lr {lr:g}", [sweep_cell(points.get((lr, d)), (lr, d) == best) for d in decays])
            for lr in sorted({lr for lr, _ in points}, reverse=True)
        ]
        text += [attention, table_text([f"decay {decay:g}" for decay in decays], rows)]
        if best:
            edge = at_edge(best[0], [lr for lr, _ in points]) or at_edge(best[1], decays)
            words = "; on the edge of the grid, beyond which may be better" if edge else ""
            text.append(f"best: --lr {best[0]:g} --weight-decay {best[1]:g}{words}")
    return "\n".join(text), None


def at_edge(value, values):
    return min(values) < max(values) and value in (min(values), max(values))


def sweep_cell(run, best):
    if run is None:
        return "-"
    return progress(run) or show("{:.4f}", test_loss(run)) + (" *" if best else "")


def seeds(options, runs):
    """Arms of several seeds: mean, spread, and the paired t-test against the first arm."""
    arms = {}
    for run in runs:
        arms.setdefault(without(r"(seed|s)\d+", run.name) or "run", []).append(run)
    for name, members in arms.items():
        numbers = [run.config.get("seed") for run in members]
        if len(set(numbers)) < len(numbers):
            R.fail(R.EXIT_USAGE, f"{name}: seed {max(numbers, key=numbers.count)} is there twice")
    value = {run.path: test_loss(run) for run in runs}
    for run in runs:
        if value[run.path] is None:
            R.fail(R.EXIT_INPUT, f"{run.path}: no final validation loss to compare")
    (first, reference), *_ = arms.items()
    base = {run.config.get("seed"): run for run in reference}
    rows = []
    for name, members in arms.items():
        mean, sd = S.spread([value[run.path] for run in members])
        cells = [str(len(members)), f"{mean:.4f}", show("{:.4f}", sd)]
        both = [run for run in members if run.config.get("seed") in base]
        if name == first or not both:
            rows.append((name, cells + ["", "", "", ""]))
            continue
        gaps = [value[run.path] - value[base[run.config.get("seed")].path] for run in both]
        rows.append((name, cells + seeds_cells(S.paired_t(gaps))))
    names = ["seeds", "mean", "sd", f"- {first}", "95 %", "t (df)", "p"]
    text = [table_text(names, rows), *notes(runs)]
    text.append(
        "final validation loss; differences by seed d: t = mean(d) / (sd(d) / sqrt(n)), df = n - 1"
    )
    return "\n".join(text), None


def seeds_cells(d):
    if d.t is None:
        return [f"{d.mean:+.4f}", "-", "-", "-"]
    return [f"{d.mean:+.4f}", f"+-{d.half:.4f}", f"{d.t:.2f} ({d.df})", f"{d.p:.2g}"]


# ---- figures -----------------------------------------------------------------------------------


def curves(options, runs):
    """Figures 2 and 5: training and validation loss, a column per family."""
    import paper_figures as F

    return pairs(options, runs)[0], lambda: F.draw_curves(families(runs))


def norm_row(name, arms):
    cells = [f"{np.nanmean(arms[a].norm):.4g}" if a in arms else "-" for a in ATTENTIONS]
    if len(cells) != len(arms):
        return name, cells + ["-", "-"]
    standard, laser = (arms[a] for a in ATTENTIONS)
    _, i, j = np.intersect1d(standard.step, laser.step, return_indices=True)
    with np.errstate(all="ignore"):
        ratio = laser.norm[j] / standard.norm[i]
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if not len(ratio):
        return name, cells + ["-", "-"]
    return name, cells + [f"{np.exp(np.log(ratio).mean()):.3f}", f"{(ratio > 1).mean():.0%}"]


def norm(options, runs):
    """Figure 3: the gradient norm before clipping, against steps."""
    import paper_figures as F

    groups = families(runs)
    names = ["mean, standard", "mean, LASER", "LASER / standard", "steps with LASER higher"]
    text = table_text(names, [norm_row(name, arms) for name, arms in groups.items()])
    words = "LASER / standard: geometric mean over the steps that both have"
    return f"{text}\n{words}", lambda: F.draw_norms(groups)


def spike_numbers(options, run):
    """The spikes of the first part of a run, and how many steps that is."""
    last = options.until or math.ceil(0.1 * max(run.config.get("steps") or 0, run.step[-1]))
    count = int((run.step <= last).sum())
    return S.find_spikes(run.loss[:count], options.window, options.height, options.apart), count


def spikes(options, runs):
    """Figure 6: spikes of the training loss in the first part of the runs."""
    import paper_figures as F

    groups = families(runs)
    found = {run.path: spike_numbers(options, run) for run in runs}
    rows = []
    for name, arms in groups.items():
        cells = []
        for a in ATTENTIONS:
            s, count = found[arms[a].path] if a in arms else (None, 0)
            cells += ["-"] * 3 if s is None else [str(len(s.first)), str(s.steps), str(count)]
        rows.append((name, cells))
    names = [f"{what}, {a}" for a in ("standard", "LASER") for what in ("spikes", "above", "of")]
    words = S.SPIKES.format(
        window=options.window, near=S.NEAR, height=options.height, apart=options.apart
    )
    text = f"{table_text(names, rows)}\n{textwrap.fill(words, 100)}"
    return text, lambda: F.draw_spikes(groups, found)


def scaling_points(options, runs):
    """{attention: (parameters in millions, test losses)}"""
    if options.paper:
        return {a: (PAPER_SIZES, PAPER_LOSSES[a]) for a in ATTENTIONS}
    points = {}
    for arms in families(runs).values():
        for attention, run in arms.items():
            loss, n = test_loss(run), run.config.get("parameters")
            if loss is None or not n or progress(run):
                R.warn(f"{run.name} is left out: {progress(run) or 'no final validation loss'}")
                continue
            sizes, losses = points.setdefault(attention, ([], []))
            sizes.append(n / 1e6)
            losses.append(loss)
    return points


def fit_row(attention, fit):
    cells = [f"{fit.a:.3f} n^{fit.b:.4f}"]
    found = S.intervals(fit)
    if not found:
        return attention, cells + ["-", "-", "-"]
    (a0, a1), (b0, b1) = found
    return attention, cells + [f"{a0:.3f}..{a1:.3f}", f"{b0:.4f}..{b1:.4f}", f"{fit.residual:.2%}"]


def saving_words(fits, loss):
    s = S.saving(fits["standard"], fits["laser"], loss)
    words = (
        f"at loss {loss:.4g}: {S.size_at(fits['standard'], loss):.4g} M with standard attention, "
        f"{S.size_at(fits['laser'], loss):.4g} M with LASER: {s.share:.1%} fewer"
    )
    return words if s.low is None else f"{words} (95 %: {s.low:.1%} to {s.high:.1%})"


def gap_words(measured):
    """The relative difference of the losses, over the sizes that both have."""
    both = sorted(set(measured["standard"]) & set(measured["laser"]))
    if not both:
        return "no size has runs of both"
    d = S.paired_t([math.log(measured["laser"][n] / measured["standard"][n]) for n in both])
    words = f"LASER / standard at equal size: {math.expm1(d.mean):+.2%} over {d.n} sizes"
    if d.t is None:
        return words
    low, high = math.expm1(d.mean - d.half), math.expm1(d.mean + d.half)
    return f"{words} (95 %: {low:+.2%} to {high:+.2%}, paired t-test p = {d.p:.2g})"


def scaling(options, runs):
    """Figure 4: test loss = a n^b over parameters n in millions, and what LASER saves."""
    import paper_figures as F

    points = scaling_points(options, runs)
    sizes = sorted({n for ns, _ in points.values() for n in ns})
    measured = {a: dict(zip(*points[a])) for a in points}
    arms = [a for a in ATTENTIONS if a in points]
    rows = [(f"{n:.2f} M", [show("{:.4f}", measured[a].get(n)) for a in arms]) for n in sizes]
    text = [table_text(arms, rows)] if rows else []
    fits = {a: S.fit_power(*points[a]) for a in arms if len(set(points[a][0])) > 1}
    loss = None
    if fits:
        names = ["loss, n in millions", "a, 95 %", "b, 95 %", "residual"]
        text.append(table_text(names, [fit_row(a, fit) for a, fit in fits.items()]))
    else:
        text.append("no fit: it takes runs of at least two sizes")
    if len(measured) == 2:
        text.append(gap_words(measured))
    if len(fits) == 2:
        loss = options.loss or (PAPER_LOSS if options.paper else min(points["standard"][1]))
        text.append(saving_words(fits, loss))
    return "\n".join(text), lambda: F.draw_scaling(points, fits, loss)


# ---- what --probe-attention saw ----------------------------------------------------------------


def probed(runs):
    return {
        name: {attention: P.read(run) for attention, run in arms.items()}
        for name, arms in families(runs).items()
    }


def attention(options, runs):
    """Figure 1: how attention's probabilities are spread, at the last probe."""
    import probe_figures as F

    groups, text = probed(runs), []
    for name, arms in groups.items():
        rows = []
        for arm, probes in arms.items():
            label = f"{arm}, step {probes.step[-1]}, all layers"
            rows.append((label, [f"{probes.all_layers(s)[-1]:.2%}" for s in P.SHARES]))
            for i in range(probes.layers):
                cells = [f"{probes.share[s][-1, i]:.2%}" for s in P.SHARES]
                rows.append((f"  layer {i}", cells))
        text += [name, table_text([f"below {bound:g}" for bound in P.SHARES.values()], rows)]
    words = [f"{share:.0%} below {P.SHARES[s]:g}" for s, share in P.PAPER_SHARES.items()]
    text.append(f"the paper, 2.2B, 1024 tokens: about {' and '.join(words)}")
    for T in sorted({run.config.get("seq_len") for run in runs} - {None}):
        alike = P.uniform_share(T, P.SHARES["below_1e-3"])
        text.append(f"if {T} tokens attended to all before them alike: {alike:.2%} below 0.001")
    return "\n".join(text), lambda: F.draw_attention(groups)


def gradient_rows(arms):
    """Of each quantity: means over probes and layers, and LASER against standard attention."""
    rows = []
    for name, words in P.QUANTITIES.items():
        cells = [f"{arms[a].quantity[name].mean():.4g}" if a in arms else "-" for a in ATTENTIONS]
        if len(cells) == len(arms):
            values = P.ratio(*(arms[a] for a in ATTENTIONS), name)
            good = values[np.isfinite(values)]
            higher = (good > 1).mean() if len(good) else None
            cells += [show("{:.3f}", P.geometric_mean(values)), show("{:.0%}", higher)]
        rows.append((words, cells + ["-"] * (4 - len(cells))))
    return rows


def layer_rows(arms):
    """LASER / standard in each layer."""
    if set(arms) != set(ATTENTIONS):
        return []
    ratios = [P.ratio(*(arms[a] for a in ATTENTIONS), name) for name in P.QUANTITIES]
    return [
        (f"layer {i}", [show("{:.3f}", P.geometric_mean(values[:, i])) for values in ratios])
        for i in range(ratios[0].shape[1])
    ]


def gradients(options, runs):
    """Over training: the softmax's Jacobian, the output's slope, gradients of W_q, W_k, W_v."""
    import probe_figures as F

    groups, text = probed(runs), []
    names = ["mean, standard", "mean, LASER", "LASER / standard", "LASER higher"]
    for name, arms in groups.items():
        text += [name, table_text(names, gradient_rows(arms))]
        rows = layer_rows(arms)
        if rows:
            text += ["LASER / standard", table_text(list(P.QUANTITIES), rows)]
    text.append("means: over probes and layers; LASER / standard: geometric mean over the probes")
    return "\n".join(text), lambda: F.draw_gradients(groups)


# ---- the program -------------------------------------------------------------------------------

COMMANDS = {
    "table": pairs,
    "sweep": sweep,
    "seeds": seeds,
    "curves": curves,
    "norm": norm,
    "scaling": scaling,
    "spikes": spikes,
    "attention": attention,
    "gradients": gradients,
}


def parse_arguments():
    parser = argparse.ArgumentParser(prog="paper.py", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        words = function.__doc__
        sub = commands.add_parser(name, help=words.split("\n")[0], description=words)
        sub.add_argument("runs", nargs="*", metavar="RUN", help="run directory, or its log.jsonl")
        sub.add_argument("--out", metavar="DIR", help=f"write {name}.txt and the picture there")
        if name == "scaling":
            sub.add_argument("--paper", action="store_true", help="the paper's own points")
            words = "at which sizes are compared (default: the lowest of standard attention)"
            sub.add_argument("--loss", type=float, help=words)
        if name == "spikes":
            sub.add_argument("--until", type=int, help="last step (default: a tenth of the run)")
            sub.add_argument("--window", type=int, default=S.WINDOW)
            sub.add_argument("--height", type=float, default=S.HEIGHT)
            sub.add_argument("--apart", type=int, default=S.APART)
    options = parser.parse_args()
    if not options.runs and not getattr(options, "paper", False):
        R.fail(R.EXIT_USAGE, f"{options.command}: no runs given")
    if options.command == "spikes" and (options.window < S.NEAR or options.height <= 0):
        R.fail(R.EXIT_USAGE, f"spikes: expected --window of at least {S.NEAR} and --height above 0")
    return options


def main():
    options = parse_arguments()
    runs = [R.load_run(path) for path in options.runs]
    text, draw = COMMANDS[options.command](options, runs)
    print(text)
    if not options.out:
        return
    try:
        os.makedirs(options.out, exist_ok=True)
        path = os.path.join(options.out, options.command)
        with open(path + ".txt", "w", encoding="utf-8") as f:
            f.write(text + "\n")
        if draw:
            import figures

            figure = draw()
            figures.save_png(figure, path + ".png")
            figures.plt.close(figure)
    except OSError as error:
        R.fail(R.EXIT_IO, f"{error.filename or options.out}: {error.strerror}")
    print(f"written: {path}.txt{' and .png' if draw else ''}")


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.exit(R.EXIT_IO)
