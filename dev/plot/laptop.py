#!/usr/bin/env python3
"""laptop.py: the paper's comparisons at the size of a laptop. Trains every arm with both
attentions, several seeds, on equal tokens, each with its own best learning rate, and tabulates the
differences.

    scripts/laptop.sh                     # makes the data, then calls this
    laptop.py --out DIR --data NAME=DIR ... [--jobs N] [--seeds 3] [--arms plain,diff]

The learning rate of an arm and attention is the best of a grid of factors of 2 with seed 1, by the
final validation loss; where the best lies at the grid's edge, the grid grows there. The seeds that
are reported (2, 3, ...) take no part in that choice. A pair is LASER and standard attention with
the same seed: the same initial weights, the same batches. Runs are kept in DIR and not trained
again; the same command goes on where it was stopped."""
import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))
import make_recall  # noqa: E402
import runs as R  # noqa: E402
import stats as S  # noqa: E402

ATTENTIONS = ("standard", "laser")
ARMS = {
    "plain": [],
    "temperature": ["--temperature", "1.5"],
    "per-dim": ["--per-dim-scale"],
    "qk-norm": ["--qk-norm"],
    "diff": ["--diff"],
    "lamb": ["--optimizer", "lamb"],
}
MODEL = ["--model", "tiny", "--save-every", "0", "--val-every", "1000000", "--val-tokens", "131072",
         "--threads", "1", "--quiet"]
RECALL = argparse.Namespace(seq_len=64, pairs=4, keys=32, values=32)  # as laptop.sh makes it
# flags, and the learning rates that the search begins with: AdamW's, LAMB's
DATA = {
    "text": (["--seq-len", "128", "--batch", "8", "--steps", "1000", "--warmup", "100"],
             (4e-3, 8e-3, 1.6e-2), (1e-2, 2e-2, 4e-2)),
    "recall": (["--vocab", str(RECALL.keys + RECALL.values), "--seq-len", "64", "--batch", "32",
                "--steps", "600", "--warmup", "50"],
               (2e-3, 4e-3, 8e-3), (1e-2, 2e-2, 4e-2)),
}
MOST_RATES = 7
EXIT_DIVERGED = 5


class Arm:
    """One arm with one attention on one data set: the rates tried, their losses, the seeds'."""

    def __init__(self, options, data, name, attention):
        self.options, self.data, self.name, self.attention = options, data, name, attention
        flags, adamw, lamb = DATA[data]
        self.flags = MODEL + flags + ARMS[name]
        if options.steps:
            self.flags += ["--steps", str(options.steps), "--warmup", "1"]
        self.rates = list(lamb if name == "lamb" else adamw)
        self.loss = {}  # (rate, seed) -> final validation loss, inf where it diverged

    def directory(self, rate, seed):
        run = f"{self.name}-{self.attention}-lr{rate:g}-seed{seed}"
        return self.options.out / self.data / run

    def best(self):
        return min(self.rates, key=lambda rate: self.loss[rate, 1])

    def needs(self):
        """[(rate, seed)] to train next: the grid, its growth, then the seeds."""
        grid = [(rate, 1) for rate in self.rates if (rate, 1) not in self.loss]
        if grid:
            return grid
        best = self.best()
        if len(self.rates) < MOST_RATES and best in (min(self.rates), max(self.rates)):
            self.rates.append(best / 2 if best == min(self.rates) else best * 2)
            return self.needs()
        seeds = range(2, 2 + self.options.seeds)
        return [(best, seed) for seed in seeds if (best, seed) not in self.loss]

    def train(self, rate, seed):
        """Trains one run, or goes on with it; returns the final validation loss."""
        out = self.directory(rate, seed)
        if not (out / "diverged").exists():
            shards = self.options.data[self.data]
            command = [f"./train_gpt_{self.attention}", *self.flags, "--lr", f"{rate:g}",
                       "--seed", str(seed), "--train", f"{shards}/*_train_*.bin",
                       "--val", f"{shards}/*_val_*.bin", "--out", str(out)]
            env = {"OMP_WAIT_POLICY": "passive", **os.environ}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode == EXIT_DIVERGED:
                (out / "diverged").touch()
            elif done.returncode:
                R.fail(done.returncode, f"{' '.join(command)}\n{done.stderr.strip()}")
        if (out / "diverged").exists():
            return math.inf
        return float(R.load_run(str(out)).val_loss[-1])

    def seed_losses(self):
        return [self.loss[self.best(), seed] for seed in range(2, 2 + self.options.seeds)]


def train_all(arms, jobs):
    """Arm after arm; the next one's runs fill the time in which one waits for its grid."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running, done = {}, 0
        while True:
            waiting = [(arm, rate, seed) for arm in arms for rate, seed in arm.needs()
                       if (arm, rate, seed) not in running.values()]
            for job in waiting[: jobs - len(running)]:
                arm, rate, seed = job
                running[pool.submit(arm.train, rate, seed)] = job
            if not running:
                return
            ended, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in ended:
                arm, rate, seed = running.pop(future)
                arm.loss[rate, seed] = future.result()
                done += 1
                print(f"{done}: {arm.data} {arm.name} {arm.attention} lr {rate:g} seed {seed}: "
                      f"loss {arm.loss[rate, seed]:.4f}", flush=True)


def answer_loss(loss):
    """Recall: the mean loss of an answer, all that a model can do better or worse."""
    answers = RECALL.seq_len // 2 - RECALL.pairs
    return (loss - make_recall.entropy(RECALL)) * RECALL.seq_len / answers


def row(data, standard, laser):
    losses = [arm.seed_losses() for arm in (standard, laser)]
    if data == "recall":
        losses = [[answer_loss(x) for x in values] for values in losses]
    cells = [standard.name]
    for arm, values in zip((standard, laser), losses):
        mean, sd = S.spread(values)
        cells += [f"{arm.best():g}", f"{mean:.4f}", "-" if sd is None else f"{sd:.4f}"]
    d = S.paired_t([b - a for a, b in zip(*losses)])
    cells.append(f"{d.mean:+.4f}")
    cells += ["-", "-"] if d.t is None else [f"+-{d.half:.4f}", f"{d.p:.2g}"]
    return cells


HEADS = ["arm", "lr", "standard", "sd", "lr", "LASER", "sd", "LASER - standard", "95 %", "p"]


def markdown(rows):
    lines = [HEADS, ["---"] * len(HEADS), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(options, arms):
    text = []
    for data in options.data:
        pairs = {}
        for arm in arms:
            if arm.data == data:
                pairs.setdefault(arm.name, []).append(arm)
        unit = ("loss of an answer, nats" if data == "recall" else
                "validation loss, nats a token")
        text.append(f"{data}: {unit}; {options.seeds} seeds; paired t-test over seeds")
        text.append(markdown([row(data, *pair) for pair in pairs.values()]))
    return "\n\n".join(text) + "\n"


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where runs are kept")
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DIR",
                        help=f"shards of {' or '.join(DATA)}; may be given for each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--seeds", type=int, default=3, help="reported seeds for each arm")
    parser.add_argument("--steps", type=int, help="of a run, to try the script (0: its own)")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {','.join(ARMS)}")
    options = parser.parse_args()
    options.data = dict(item.split("=", 1) for item in options.data if "=" in item)
    options.arms = options.arms.split(",")
    if not options.data or set(options.data) - set(DATA) or set(options.arms) - set(ARMS):
        parser.error(f"--data takes {', '.join(DATA)} and --arms {', '.join(ARMS)}")
    return options


def main():
    options = parse()
    arms = [Arm(options, data, name, attention) for name in options.arms
            for data in options.data for attention in ATTENTIONS]
    train_all(arms, options.jobs)
    text = tables(options, arms)
    losses = {f"{arm.data} {arm.name} {arm.attention} lr {rate:g} seed {seed}": loss
              for arm in arms for (rate, seed), loss in arm.loss.items()}
    (options.out / "results.md").write_text(text)
    (options.out / "losses.json").write_text(json.dumps(losses, indent=1) + "\n")
    print(f"\n{text}\n{options.out}/results.md, losses.json")


if __name__ == "__main__":
    main()
