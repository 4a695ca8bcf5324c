"""Checks dev/plot/compare.py on small logs whose numbers are worked out by hand: table, page,
pictures, bad input.

Exit code 0: all as promised; 1: something is not; 77: a library is missing (named)."""

import json
import os
import re
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMPARE = os.path.join(TOP, "dev", "plot", "compare.py")
FAILURES = []


def check(condition, what):
    if not condition:
        FAILURES.append(what)
        print(f"FAILED: {what}")


def same(got, want, what):
    check(got == want, f"{what}: got {got!r}, want {want!r}")


def train(step, loss, norm, ms=1000.0, per_step=100):
    skipped = {"skipped": True} if loss is None else {}
    return {
        "kind": "train",
        "step": step,
        "tokens": step * per_step,
        "loss": loss,
        "grad_norm": norm,
        "lr": 1e-3,
        "step_ms": ms,
        "tok_s": per_step / ms * 1e3,
        **skipped,
    }


def val(step, loss, per_step=100):
    return {"kind": "val", "step": step, "tokens": step * per_step, "loss": loss}


def write_run(directory, name, lines, **config):
    path = os.path.join(directory, name)
    os.makedirs(path, exist_ok=True)
    run = {
        "kind": "run",
        "attention": name,
        "seed": 1,
        "lr": 1e-3,
        "out": path,
        "parameters": 1234567,
        **config,
    }
    with open(os.path.join(path, "log.jsonl"), "w", encoding="utf-8") as f:
        for line in [run, *lines]:
            f.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
    return path


def compare(*arguments):
    done = subprocess.run(
        [sys.executable, COMPARE, *arguments], check=False, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def table_of(text, runs=2):
    """{label: [cells]}; a label stands once, or is told apart by the one before it."""
    rows, parent = {}, ""
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        label = f"{parent}/{cells[0]}" if line.startswith("  ") else cells[0]
        parent = parent if line.startswith("  ") else cells[0]
        rows[label] = cells[1:]
    return rows


STANDARD = [
    train(1, 5.0, 1.0),
    train(2, 4.0, 2.0),
    val(2, 3.0),
    train(3, 3.0, 3.0),
    train(4, 2.0, 4.0),
    val(4, 2.5),
]
# Half as long a step; step 3 skipped; reaches 2.5 at (2.8 - 2.5) / (2.8 - 2.0) = 3/8 of the way
# from step 2 to 4.
LASER = [
    train(1, 5.0, 1.5, 500.0),
    train(2, 3.5, 2.5, 500.0),
    val(2, 2.8),
    train(3, None, None, 500.0),
    train(4, 1.0, 8.0, 500.0),
    val(4, 2.0),
]


def check_table(directory):
    a, b = write_run(directory, "standard", STANDARD), write_run(directory, "laser", LASER)
    code, text, errors = compare(a, b)
    same((code, errors), (0, ""), "standard against laser")
    rows = table_of(text)
    for label, want in {
        "final validation loss": ["2.5000", "2.0000"],
        "final validation loss/difference": ["-0.5000"],
        "best validation loss": ["2.5000", "2.0000"],
        "best validation loss/difference": ["-0.5000"],
        "best validation loss/reference's best reached after": ["275 (69%)"],
        "best validation loss/reference's best reached in": ["1.4 s (34%)"],
        "best validation loss/own best reached by the reference after": ["not reached"],
        "best validation loss/own best reached by the reference in": ["not reached"],
        "training loss, last 5 % of steps": ["2.0000", "1.0000"],
        "training loss, last 5 % of steps/paired difference, last 10 % of steps": ["-1.0000"],
        "tokens/s, median": ["100", "200"],
        "tokens/s, median/difference": ["+100.0%"],
        "ms a step, median": ["1000", "500"],
        "gradient norm, mean": ["2.5", "4"],
        "gradient norm, largest": ["4", "8"],
        "skipped steps": ["0", "1"],
        "steps": ["4", "4"],
        "training time": ["4.0 s", "2.0 s"],
        "parameters": ["1.235 M", "1.235 M"],
    }.items():
        same(rows.get(label), want, f"table, {label}")
    out = os.path.join(directory, "compare_standard_laser")
    check(os.path.isfile(os.path.join(out, "index.html")), "the page lies beside the first run")
    # the other way round: the former reference is now the one that never reaches 2.0
    rows = table_of(compare(b, a)[1])
    same(
        rows["best validation loss/reference's best reached after"], ["not reached"], "turned round"
    )
    same(
        rows["best validation loss/own best reached by the reference after"],
        ["275 (69%)"],
        "turned round",
    )
    return out


def check_output(out):
    import matplotlib.image
    import numpy as np

    for name in ("loss", "loss_end", "difference", "grad_norm"):
        pixels = matplotlib.image.imread(os.path.join(out, name + ".png"))[..., :3]
        check(
            pixels.shape[0] >= 600 and pixels.shape[1] >= 1000,
            f"{name}.png is large enough: {pixels.shape}",
        )
        for which, rgb in (("reference", (0x00, 0x72, 0xB2)), ("second run", (0xD5, 0x5E, 0x00))):
            drawn = (np.abs(pixels - np.array(rgb) / 255) < 0.02).all(axis=-1).sum()
            check(
                drawn > 50 or (name, which) == ("difference", "reference"),
                f"{name}.png shows the {which}: {drawn} pixels",
            )
    with open(os.path.join(out, "index.html"), encoding="utf-8") as f:
        page = f.read()
    check(
        not re.search(r"https?:|//[a-z]|<link|<img|src=|@import|url\((?!#)", page),
        "the page refers to nothing outside",
    )
    for ref in set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)):
        check(page.count(f'id="{ref}"') == 1, f"#{ref} stands in the page once")
    same(page.count("<svg"), 4, "pictures in the page")
    for part in (
        "275 (69%)",
        "not reached",
        "prefers-color-scheme: dark",
        "differ in nothing but the attention",
    ):
        check(part in page, f'the page says "{part}"')
    check(
        not re.search("#0072b2|#d55e00", page.split("</style>")[1], re.I),
        "curves take the page's colours",
    )


def check_differing_runs(directory):
    a = write_run(directory, "a", STANDARD)
    b = write_run(
        directory,
        "b",
        [train(1, 4, 1, per_step=200), train(2, 3, 1, per_step=200)],
        lr=2e-3,
        new="<x>",
    )
    code, _, errors = compare(a, b, "--out", os.path.join(directory, "other"))
    same(code, 0, "runs that differ are compared")
    for part in (
        "differ in more than the attention",
        "lr 0.001 -> 0.002",
        "new - -> <x>",
        "has no validation",
        "tokens a step (as logged) 100.0 -> 200.0",
    ):
        check(part in errors, f'warning "{part}" in {errors!r}')
    with open(os.path.join(directory, "other", "index.html"), encoding="utf-8") as f:
        page = f.read()
    check("&lt;x&gt;" in page and "<x>" not in page, "option values are escaped in the page")
    check("other batches" in page, "the page says that the batches differ")


def check_rewound(directory):
    """An attempt that died at step 4 and was trained again from step 2 on, with a torn last
    line."""
    lines = [
        train(1, 5, 1),
        train(2, 4, 1),
        val(2, 3.5),
        train(3, 9, 9),
        train(4, 9, 9),
        val(4, 0.5),
        train(5, 9, 9),
        train(3, 3, 1),
        train(4, 2, 1),
        val(4, 2.5),
    ]
    a, b = (
        write_run(directory, "rewound", lines),
        write_run(directory, "straight", lines[:3] + lines[7:]),
    )
    with open(os.path.join(a, "log.jsonl"), "a", encoding="utf-8") as f:
        f.write('{"kind":"train","st')
    code, text, errors = compare(b, a)
    same(code, 0, "a rewound log is read")
    check("is torn" in errors, f"the torn line is named: {errors!r}")
    for label, cells in table_of(text).items():
        if (
            "difference" not in label
            and "reached" not in label
            and len(cells) == 2
            and "straight" not in cells[0]
        ):
            same(cells[1], cells[0], f"rewound against straight, {label}")


def check_smoothing():
    sys.path.insert(0, os.path.dirname(COMPARE))
    import numpy as np
    import runs as R

    same(R.ema([1.0, 3.0], 0.0).tolist(), [1.0, 3.0], "factor 0 smooths nothing")
    # value 1 keeps 1 - 1/(1 + 0.1) = 1/11 of the past: (1 * (1/11) + 3 * (10/11)) / (1/11 + 10/11)
    check(abs(R.ema([1.0, 3.0], 0.9)[1] - (1 + 3 * 10) / 11) < 1e-12, "the average starts short")
    constant = R.ema([2.5] * 500, 0.99)
    check(np.abs(constant - 2.5).max() < 1e-12, "a constant stays: no pull towards the start")
    gap = R.ema([1.0, float("nan"), 1.0], 0.9)
    check(np.isfinite(gap).all() and np.abs(gap - 1).max() < 1e-12, "a skipped step has no weight")


def check_bad_input(directory):
    good = write_run(directory, "good", STANDARD)
    table = [
        ("missing run", [os.path.join(directory, "absent")], 3, "absent/log.jsonl"),
        ("empty log", [write_run(directory, "none", [])], 3, "no training step"),
        (
            "torn in the middle",
            [write_run(directory, "torn", [train(1, 1, 1), '{"kind":', train(2, 1, 1)])],
            3,
            "line 3",
        ),
        ("a list", [write_run(directory, "list", ["[1]", train(1, 1, 1)])], 3, "line 2"),
        (
            "step is text",
            [write_run(directory, "text", [{**train(1, 1, 1), "step": "1"}])],
            3,
            '"step"',
        ),
        (
            "loss is text",
            [write_run(directory, "word", [{**train(1, 1, 1), "loss": "low"}])],
            3,
            '"loss"',
        ),
        ("never finite", [write_run(directory, "nan", [train(1, None, None)])], 3, "finite"),
        ("one run", [], 2, "one run only"),
        ("the same twice", [good], 2, "given twice"),
        ("bad smoothing", [write_run(directory, "c", STANDARD), "--smooth", "1"], 2, "--smooth"),
        ("unknown option", [good, "--nothing"], 2, "--nothing"),
        (
            "no place for it",
            [write_run(directory, "d", STANDARD), "--out", "/dev/null/x"],
            4,
            "/dev/null",
        ),
    ]
    headless = os.path.join(directory, "headless")
    os.makedirs(headless)
    with open(os.path.join(headless, "log.jsonl"), "w", encoding="utf-8") as f:
        f.write(json.dumps(train(1, 1, 1)) + "\n")
    table.append(("no run line", [headless], 3, '"run"'))
    for what, arguments, want, said in table:
        code, _, errors = compare(good, *arguments)
        same(code, want, f"{what}: exit code")
        check(said in errors and "Traceback" not in errors, f"{what}: {said!r} in {errors!r}")


def main():
    try:
        import matplotlib  # noqa: F401
        import numpy  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as directory:
        out = check_table(directory)
        if not FAILURES:
            check_output(out)
        check_differing_runs(os.path.join(directory, "2"))
        check_rewound(os.path.join(directory, "3"))
        check_smoothing()
        check_bad_input(os.path.join(directory, "4"))
    result = (
        f"{len(FAILURES)} failures"
        if FAILURES
        else "table, page, pictures and messages as promised"
    )
    print(f"check_compare: {result}")
    sys.exit(1 if FAILURES else 0)


if __name__ == "__main__":
    main()
