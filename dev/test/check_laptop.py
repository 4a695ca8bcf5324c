#!/usr/bin/env python3
"""check_laptop.py: the recall task is what make_recall.py says it is, and laptop.py trains every
arm, chooses rates by one seed and reports others, and goes on where it was stopped. Needs the
trainers at the top level. Exit code 0: all as promised."""

import json
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

TOP = pathlib.Path(__file__).resolve().parents[2]
SEQ, PAIRS, KEYS, VALUES = 64, 4, 32, 32
failures = []


def check(good, what):
    if not good:
        failures.append(what)
        print(f"FAILED: {what}")


def run(*words, code=0):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=TOP, capture_output=True, text=True, check=False
    )
    check(done.returncode == code, f"{words[0]}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


def make_recall(out, train, val):
    task = ["--seq-len", SEQ, "--pairs", PAIRS, "--keys", KEYS, "--values", VALUES]
    return run("dev/data/make_recall.py", "--out", out, *task, "--train", train, "--val", val)


def read_tokens(path):
    data = path.read_bytes()
    count = int(np.frombuffer(data[8:12], "<i4")[0])
    tokens = np.frombuffer(data[1024:], "<u2")
    check(len(tokens) == count, f"{path.name}: {len(tokens)} tokens, header says {count}")
    return tokens


def check_recall(directory):
    said = make_recall(directory, 3000, 200)
    rows = read_tokens(directory / "recall_train_000000.bin")[:-1].reshape(3000, SEQ)
    keys, values = rows[:, 0::2].astype(int), rows[:, 1::2].astype(int)
    check(keys.max() < KEYS and values.min() >= KEYS, "keys are below values")
    shown, asked = keys[:, :PAIRS], keys[:, PAIRS:]
    check(all(len(set(row)) == PAIRS for row in shown), "the keys of a sequence differ")
    place = (asked[:, :, None] == shown[:, None, :]).argmax(axis=2)
    check((np.take_along_axis(shown, place, 1) == asked).all(), "queries were shown")
    right = np.take_along_axis(values[:, :PAIRS], place, 1) == values[:, PAIRS:]
    check(right.all(), "the answer of a query is its key's value")
    # the entropy: of shuffled keys, values and queries, each as frequent as the other
    want = sum(math.log(KEYS - i) + math.log(VALUES) for i in range(PAIRS))
    want = (want + (SEQ // 2 - PAIRS) * math.log(PAIRS)) / SEQ
    check(f"entropy {want:.6f}" in said, f"the entropy is {want}: {said}")
    counts = np.bincount(place.ravel(), minlength=PAIRS) / place.size
    check(abs(counts - 1 / PAIRS).max() < 0.01, f"places asked for: {counts}")
    first = (directory / "recall_val_000000.bin").read_bytes()
    make_recall(directory, 3000, 200)
    check(first == (directory / "recall_val_000000.bin").read_bytes(), "the same bytes again")
    run("dev/data/make_recall.py", "--out", directory, "--pairs", 99, code=2)


def laptop(out, data, *more):
    options = ["--data", f"recall={data}", "--jobs", 2, "--steps", 4, "--seeds", 2]
    return run("dev/plot/laptop.py", "--out", out, *options, *more)


def check_laptop(directory, data):
    out = directory / "runs"
    said = laptop(out, data, "--arms", "plain")
    said = laptop(out, data, "--arms", "plain,lamb")
    losses = json.loads((out / "losses.json").read_text())
    arms = {tuple(name.split(" lr ")[0].split()[1:]) for name in losses}
    want = {(arm, a) for arm in ("plain", "lamb") for a in ("standard", "laser")}
    check(arms == want, f"arms {arms}")
    for arm, attention in want:
        mine = {n: x for n, x in losses.items() if f" {arm} {attention} lr " in n}
        tuned = {n.split(" lr ")[1].split()[0]: x for n, x in mine.items() if n.endswith("seed 1")}
        best = min(tuned, key=tuned.get)
        reported = [n for n in mine if not n.endswith("seed 1")]
        check(len(tuned) >= 3, f"{arm} {attention}: rates {tuned}")
        check(
            sorted(reported) == [f"recall {arm} {attention} lr {best} seed {s}" for s in (2, 3)],
            f"{arm} {attention}: best rate {best}, reported {reported}",
        )
        rates = sorted(map(float, tuned))
        inside = rates[0] < float(best) < rates[-1] or len(rates) == 7
        check(inside, f"{arm} {attention}: {best} lies at the edge of {rates}")
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    check(len(rows) == 2 + 2, f"rows of the table: {said}")
    logs = {p: p.stat().st_mtime_ns for p in out.glob("recall/*/log.jsonl")}
    check(len(logs) == len(losses), f"{len(logs)} runs, {len(losses)} losses")
    again = laptop(out, data, "--arms", "plain,lamb")
    same = {p: p.stat().st_mtime_ns for p in out.glob("recall/*/log.jsonl")} == logs
    check(same, "the second call trains again")
    check(again.split("\n\n")[-2] == said.split("\n\n")[-2], "the second call gives another table")


def main():
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        check_recall(directory / "recall")
        if not (TOP / "train_gpt_laser").exists() or not (TOP / "train_gpt_standard").exists():
            print("skipped: the trainers of both attentions are not at the top level")
            sys.exit(1 if failures else 77)
        check_laptop(directory, directory / "recall")
    print(f"check_laptop: {'as promised' if not failures else f'{len(failures)} failures'}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
