"""Loss curves of a GPU's trainers beside the CPU's: same data, same initial weights, same options,
so that nothing but rounding may differ; every step's loss must agree within a bound that follows
from the precision. Where no GPU is, the emulator's trainers take fewer steps of a smaller model.

    check_curves.py [--attn-core CORE] [TRAINER...]

TRAINER: trainers, the CPU's among them; without any, the newest of each kind in build/. Exit code
0: all agree, and a planted error did not; 1: they do not; 77: there is nothing to compare, with the
reason."""

import argparse
import glob
import math
import os
import shutil
import subprocess
import sys
import tempfile

from system_kit import log_lines, tokens_like_text, write_shard

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VOCAB = 256


class Case:
    """A run, and how far two of them may lie apart. Relative differences of the loss:

    fp32: one pass differs by its rounding, FIRST. From there it grows as two CPU runs grow apart
    that differ in nothing but the order of a sum (--batch 8 and 1: 4e-9 until step 30, 1e-6 at 40,
    1e-4 from step 100 on, where it stays), at most by a factor of e in 8 steps. LATE is some
    times the noise that they reach: all of our sums differ, not one. Adam turns the sign of a
    gradient into a step of the learning rate, so that no bound like steps x rounding holds.
    bf16: weights and activations are rounded at 2^-9. A mean over the tokens of a step hides most
    of that in the first loss, but a gradient is off by about a percent in every component, and so
    is an update: two percent of a loss while it falls steeply, half a percent on average over the
    second half, where the differences have both signs.
    growth: steps in which fp32's differences grow by a factor of e at most. With all modifiers two
    CPU runs as above are 2e-7 apart at step 10, 5e-6 at 24, 1e-4 at 80: queries and keys begin
    small, and so does the difference of two maps; norms enlarge what they were rounded by.
    planted: the learning rate times this must break the bound of the precision."""

    def __init__(self, options, shard_tokens, planted, growth=8):
        self.options, self.shard_tokens = options, shard_tokens
        self.planted, self.growth = planted, growth

    def bound(self, precision, step):
        return min(LATE[precision], FIRST[precision] * math.exp(step / self.growth))

    def modified(self, options):
        return Case(dict(self.options, **options), self.shard_tokens, self.planted, growth=4)


# 1024 tokens a step
GPU_CASE = Case(
    dict(model="tiny", seq_len=128, batch=8, steps=200, warmup=20, lr=1e-3),
    shard_tokens=200 * 1024 + 1,
    planted={"fp32": 1.02, "bf16": 1.1},
)
# 128 tokens a step; every fiber of the emulator runs on one core
EMU_CASE = Case(
    dict(
        model="tiny",
        layers=2,
        d_model=32,
        d_ff=64,
        heads=2,
        head_dim=16,
        seq_len=32,
        batch=4,
        steps=12,
        warmup=2,
        lr=1e-3,
        threads=1,
    ),
    shard_tokens=12 * 128 + 1,
    planted={"fp32": 1.02, "bf16": 1.5},
)
# all at once; cuDNN's core has no --diff
MODIFIERS = dict(pos="rope", temperature=1.25, per_dim_scale=True, qk_norm=True, diff=True)
CUDNN_MODIFIERS = dict(MODIFIERS, diff=False)
FIRST, LATE = {"fp32": 5e-7, "bf16": 1e-3}, {"fp32": 1e-3, "bf16": 2e-2}
AVERAGE_BF16 = 5e-3  # over the second half of the run
FIRST_NORM = {"fp32": 1e-5, "bf16": 1e-2}  # of the first step's gradient norm: all gradients
SECONDS = 300  # for one run


class Trainer:
    """A program, and what --version says of it."""

    def __init__(self, path):
        self.path = os.path.abspath(path)
        done = subprocess.run(
            [self.path, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
        words = done.stdout.replace(",", "").split()
        self.key = tuple(
            words[words.index(word) + 1] if word in words else "?"
            for word in ("backend", "precision", "attention")
        )
        self.backend, self.precision, self.attention = self.key


def find_trainers():
    """The newest of each kind; not those that a sanitizer slows down."""
    newest = {}
    paths = glob.glob(f"{TOP}/build/*/train_gpt") + glob.glob(f"{TOP}/build/gpu/*/train_gpt")
    for path in sorted(paths, key=os.path.getmtime):
        if "-san" not in path:
            trainer = Trainer(path)
            newest[trainer.key] = trainer
    return list(newest.values())


def has_gpu():
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.startswith("GPU ")


def run(trainer, case, directory, lr_times=1.0, **more):
    """The training records of a run."""
    out = os.path.join(directory, "run")
    shutil.rmtree(out, ignore_errors=True)
    options = dict(case.options, train=f"{directory}/train.bin", out=out, seed=1, **more)
    options.update(val_every=0, save_every=0, tune_cache="none", lr=options["lr"] * lr_times)
    words = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is not False:
            words.append(option if value is True else f"{option}={value}")
    done = subprocess.run(
        [trainer.path, "--quiet", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{trainer.path} ended with {done.returncode}: {done.stderr[-1000:]}")
    return [r for r in log_lines(out) if r["kind"] == "train"]


def relative(a, b):
    return abs(a - b) / abs(b) if math.isfinite(a) else math.inf


def differences(case, precision, got, want):
    """What is wrong, as sentences, and the largest difference with its step."""
    wrong = []
    apart = [relative(g["loss"], w["loss"]) for g, w in zip(got, want)]
    if len(got) != len(want):
        return [f"{len(got)} steps, want {len(want)}"], math.inf, 0
    for step, x in enumerate(apart, 1):
        if x > case.bound(precision, step):
            wrong.append(
                f"step {step}: loss {got[step - 1]['loss']}, the CPU's {want[step - 1]['loss']}: "
                f"{x:.1e} apart, at most {case.bound(precision, step):.1e}"
            )
            break
    half = apart[len(apart) // 2 :]
    if precision == "bf16" and sum(half) / len(half) > AVERAGE_BF16:
        wrong.append(f"second half: {sum(half) / len(half):.1e} apart, at most {AVERAGE_BF16}")
    norm = relative(got[0]["grad_norm"], want[0]["grad_norm"])
    if norm > FIRST_NORM[precision]:
        wrong.append(f"first gradient norm: {norm:.1e} apart, at most {FIRST_NORM[precision]}")
    return wrong, max(apart), apart.index(max(apart)) + 1


def cores_of(trainer, asked):
    """Each way in which this trainer can compute attention."""
    if asked:
        return [asked]
    return ["auto", "gemm"] if trainer.key[:2] == ("cuda", "bf16") else ["auto"]


def report(trainer, what, case, got, want):
    """Prints a comparison; whether it failed."""
    wrong, most, step = differences(case, trainer.precision, got, want)
    print(
        f"{'FAILED' if wrong else 'ok'}: {'-'.join(trainer.key)}, {what}, {len(got)} steps: "
        f"{most:.1e} apart at step {step}, first gradient norm "
        f"{relative(got[0]['grad_norm'], want[0]['grad_norm']):.1e}; last loss "
        f"{got[-1]['loss']:.6f}, the CPU's {want[-1]['loss']:.6f}",
        *wrong,
        sep="\n    ",
        flush=True,
    )
    return bool(wrong)


def compare(pairs, case, asked_core, directory):
    """Returns how many comparisons failed."""
    failed = 0
    for trainer, reference in pairs:
        want = run(reference, case, directory)
        name = "-".join(trainer.key)
        for core in cores_of(trainer, asked_core):
            got = run(trainer, case, directory, attn_core=core)
            failed += report(trainer, f"core {core}", case, got, want)
        modified = case.modified(CUDNN_MODIFIERS if asked_core == "cudnn" else MODIFIERS)
        got = run(trainer, modified, directory, attn_core=asked_core or "auto")
        modified_want = run(reference, modified, directory)
        failed += report(trainer, "all modifiers", modified, got, modified_want)
        planted = case.planted[trainer.precision]
        got = run(reference, case, directory, lr_times=planted)
        wrong, most, _ = differences(case, trainer.precision, got, want)
        print(f"{'ok' if wrong else 'FAILED'}: {name}: lr times {planted} is {most:.1e} apart")
        failed += not wrong
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--attn-core", choices=("auto", "gemm", "cudnn"))
    parser.add_argument("trainers", nargs="*")
    args = parser.parse_args()
    trainers = [Trainer(p) for p in args.trainers] or find_trainers()
    backend = "cuda" if has_gpu() else "emu"
    reference = {t.attention: t for t in trainers if t.backend == "cpu"}
    pairs = [
        (t, reference[t.attention])
        for t in sorted(trainers, key=lambda t: t.key)
        if t.backend == backend and t.attention in reference
    ]
    if not pairs:
        print(
            f"skipped: to compare, build/ must hold trainers of BACKEND=cpu and of "
            f"BACKEND={backend}; it holds {sorted('-'.join(t.key) for t in trainers)}"
        )
        return 77
    case = GPU_CASE if backend == "cuda" else EMU_CASE
    with tempfile.TemporaryDirectory() as directory:
        tokens = tokens_like_text(case.shard_tokens, seed=1, vocab=VOCAB)
        write_shard(f"{directory}/train.bin", tokens, vocab=VOCAB)
        failed = compare(pairs, case, args.attn_core, directory)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
