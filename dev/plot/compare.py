"""Compares training runs: prints a table, writes one HTML page and PNG files.

    compare.py [--out DIR] [--smooth X] RUN RUN...

A RUN is a run directory (or its log.jsonl); the first is the reference. Exit codes: 2 usage, 3 a
log is missing or damaged, 4 the output cannot be written."""

import argparse
import os
import sys

try:
    import runs as R
except ImportError as error:
    print(f"error: {error}: scripts/setup.sh installs it into build/venv", file=sys.stderr)
    sys.exit(2)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="compare.sh",
        description="Compares training runs: prints a table, writes "
        "one HTML page and PNG files. The first run is the reference.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory, or its log.jsonl")
    parser.add_argument(
        "--out", metavar="DIR", help="where to write (default: compare_A_B beside the first run)"
    )
    parser.add_argument(
        "--smooth",
        type=float,
        metavar="X",
        help="weight of the past in the moving average, 0 <= X < 1 "
        "(default: 1/20 to 1/100 of the steps)",
    )
    options = parser.parse_args()
    if len(options.runs) < 2:
        R.fail(
            R.EXIT_USAGE,
            f"one run only ({options.runs[0]}): give the reference and at least one more",
        )
    if options.smooth is not None and not 0 <= options.smooth < 1:
        R.fail(R.EXIT_USAGE, f"--smooth {options.smooth}: expected 0 <= X < 1")
    paths = [os.path.realpath(path) for path in options.runs]
    for path in paths:
        if paths.count(path) > 1:
            R.fail(R.EXIT_USAGE, f"{path} is given twice")
    return options


def make_names_unique(runs):
    """Runs of one name in several directories take their directory with them."""
    for run in runs:
        run.name = run.name or "run"
    for run in [r for r in runs if sum(r.name == other.name for other in runs) > 1]:
        parent = os.path.dirname(os.path.dirname(os.path.abspath(run.path)))
        run.name = os.path.join(os.path.basename(parent), run.name)


def count(value):
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.4g} {letter}"
    return f"{value:.4g}"


def duration(seconds):
    s = round(seconds)
    if s < 60:
        return f"{seconds:.1f} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def show(form):
    return lambda value: "-" if value is None else form(value)


def reach_tokens(value):
    tokens, share, _, _ = value
    return f"{count(tokens)} ({share:.0%})"


def reach_time(value):
    _, _, seconds, share = value
    return f"{duration(seconds)} ({share:.0%})"


# (label, key of runs.numbers, how to print it, whether the reference has none of it)
ROWS = [
    ("final validation loss", "final_val", "{:.4f}".format, False),
    ("  difference", "d_final_val", "{:+.4f}".format, True),
    ("best validation loss", "best_val", "{:.4f}".format, False),
    ("  difference", "d_best_val", "{:+.4f}".format, True),
    ("  reference's best reached after", "reaches", reach_tokens, True),
    ("  reference's best reached in", "reaches", reach_time, True),
    ("  own best reached by the reference after", "reached_by", reach_tokens, True),
    ("  own best reached by the reference in", "reached_by", reach_time, True),
    ("training loss, last 5 % of steps", "final_train", "{:.4f}".format, False),
    ("  paired difference, last 10 % of steps", "paired", "{:+.4f}".format, True),
    ("tokens/s, median", "tok_s", count, False),
    ("  difference", "speed", "{:+.1%}".format, True),
    ("ms a step, median", "step_ms", "{:.4g}".format, False),
    ("gradient norm, mean", "norm_mean", "{:.4g}".format, False),
    ("gradient norm, largest", "norm_max", "{:.4g}".format, False),
    ("skipped steps", "skipped", str, False),
    ("steps", "steps", str, False),
    ("tokens", "tokens", count, False),
    ("training time", "seconds", duration, False),
    ("parameters", "parameters", count, False),
]


def table(runs):
    values = [R.numbers(run, runs[0]) for run in runs]
    rows = []
    for text, key, form, relative in ROWS:
        cells = [show(form)(v.get(key)) for v in values]
        if relative:
            cells[0] = ""
        for i, v in enumerate(values):
            if (
                key in ("reaches", "reached_by")
                and i
                and v["best_val"] is not None
                and v[key] is None
            ):
                cells[i] = "not reached"
        rows.append((text, cells))
    return rows


def table_text(names, rows):
    """Columns of numbers under names, one row each of rows: [(label, [cell per name])]."""
    widths = [max(len(text) for text, _ in rows)]
    widths += [
        max([len(name)] + [len(cells[i]) for _, cells in rows]) for i, name in enumerate(names)
    ]
    lines = [
        f"{text:<{widths[0]}}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths[1:]))
        for text, cells in [("", names), *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def report_differences(names, found):
    for i, rows in found.items():
        if rows:
            R.warn(
                f"{names[i]} and {names[0]} differ in more than the attention: "
                + ", ".join(f"{key} {a} -> {b}" for key, a, b in rows)
            )


def default_smoothing(runs):
    """Over 1/20 of a short run, 1/100 of a long one."""
    steps = max(len(run.step) for run in runs)
    span = max(min(steps / 20, 50), steps / 100)
    return 1 - 1 / span if span > 2 else 0.5


def write_pictures(runs, factor, out):
    """PNG files, and the same figures as SVG for the page."""
    import figures as F

    svgs = []
    drawn = [
        ("loss", lambda: F.draw_loss(runs, factor)),
        ("loss_end", lambda: F.draw_loss(runs, factor, share=0.5)),
        ("grad_norm", lambda: F.draw_norm(runs, factor)),
    ]
    if all(len(R.paired(runs[0], run)[0]) for run in runs[1:]):
        drawn.insert(2, ("difference", lambda: F.draw_difference(runs, factor)))
    else:
        R.warn("the runs have no step in common: no picture of the difference")
    for name, draw in drawn:
        figure = draw()
        F.save_png(figure, os.path.join(out, name + ".png"))
        svgs.append(F.page_svg(figure, name.replace("_", " ")))
        F.plt.close(figure)
    return svgs


NOTES = [
    "Differences are run minus reference: below zero is better. The paired difference compares "
    + "the same step of both runs, so that the batches' own ups and downs cancel.",
    "Tokens and time to reach a loss are taken on the straight line between validations, and as a "
    + "share of what the other run took; time is the sum of the steps, without validation.",
]


def main():
    options = parse_arguments()
    runs = [R.load_run(path) for path in options.runs]
    make_names_unique(runs)
    names = [R.label(run) for run in runs]
    found = {i: R.differences(runs[0], run) for i, run in enumerate(runs) if i}
    rows = table(runs)
    print(table_text(names, rows))
    report_differences(names, found)
    out = options.out or os.path.join(
        os.path.dirname(os.path.dirname(os.path.abspath(runs[0].path))),
        "compare_" + "_".join(run.name.replace("/", "-") for run in runs),
    )
    factor = default_smoothing(runs) if options.smooth is None else options.smooth
    try:
        import page

        os.makedirs(out, exist_ok=True)
        svgs = write_pictures(runs, factor, out)
        with open(os.path.join(out, "index.html"), "w", encoding="utf-8") as f:
            f.write(page.page(names, rows, found, svgs, NOTES))
    except ImportError as error:
        R.fail(R.EXIT_USAGE, f"{error}: scripts/setup.sh installs it into build/venv")
    except OSError as error:
        R.fail(R.EXIT_IO, f"{error.filename or out}: {error.strerror}")
    shown = os.path.join(options.out or os.path.relpath(out), "index.html")
    print(f"\nwritten: {shown} and PNG files beside it")


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.exit(R.EXIT_IO)
