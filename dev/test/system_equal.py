"""What may not change a run: how it is cut into processes, micro-batches and threads, how it
reads ahead, what it computes twice; and which attention it trains may not change what it starts
from or what it reads. The first group must agree within rounding, the second in every bit."""

import json
import os
import subprocess

from system_kit import (
    Skip,
    check,
    check_same_run,
    crc32c,
    flip_byte,
    largest_difference,
    linked,
    log_lines,
    mpirun,
    newest,
    read,
    records,
    same,
    tensors,
    test,
    write,
    write_data,
)

# Rounding. Cutting a step differently only changes the order in which the n = 128 tokens'
# contributions to a gradient entry are summed. Entries are at most 1 (the norm is clipped to 1),
# so two orders differ by at most about n * 2^-24 = 7.6e-6. AdamW's update is lr * m / (sqrt(v) +
# eps): with --eps 0.01 its slope in the gradient is at most lr / eps, so k steps with peak lr
# move a weight by at most k * lr / eps * n * 2^-24, as long as the difference does not grow by
# itself, which it does not in so few steps. The losses of the first step come from equal weights:
# a mean of equal values, each within a few float roundings.
STEPS, LR, EPS = 8, 1e-3, 1e-2
ROUNDED = dict(
    steps=STEPS, lr=LR, eps=EPS, warmup=0, grad_clip=1, save_every=0, schedule="constant"
)
WEIGHT_BOUND = STEPS * LR / EPS * 128 * 2**-24
LOSS_BOUND, NORM_BOUND = 2**-20, 128 * 2**-24


def check_rounding(a, b):
    first, other = records(a, "train"), records(b, "train")
    same(
        [(r["step"], r["tokens"], r["lr"]) for r in other],
        [(r["step"], r["tokens"], r["lr"]) for r in first],
        "steps, tokens and learning rates",
    )
    for key, bound in (("loss", LOSS_BOUND), ("grad_norm", NORM_BOUND)):
        x, y = first[0][key], other[0][key]
        check(
            abs(x - y) <= bound * x,
            f"{key} of step 1: {x} and {y} are further apart than {bound:.1e}",
        )
    apart = largest_difference(a, b)
    check(apart <= WEIGHT_BOUND, f"weights differ by {apart:.2e}, bound {WEIGHT_BOUND:.2e}")
    x, y = (next(r["loss"] for r in records(d, "val") if r["step"] == 0) for d in (a, b))
    check(abs(x - y) <= LOSS_BOUND * x, f"validation loss before step 1: {x} and {y}")


@test("steps: 4 micro-steps of 2, 1 of 8 and 8 of 1 train the same within rounding", each=True)
def micro_batches(t):
    for batch in (8, 2, 1):
        t.train(out=f"b{batch}", batch=batch, **ROUNDED)
    check_rounding(t.path("b8"), t.path("b2"))
    check_rounding(t.path("b8"), t.path("b1"))


@test("steps: the bound for rounding is not loose: one changed token breaks it tenfold")
def planted(t):
    t.train(out="whole", **ROUNDED)
    write_data(t.path("data"))
    flip_byte(t.path("data/train_1.bin"), 1024 + 2 * 40)  # one token of 464 is another one
    t.train(out="other", train=t.path("data/train_*.bin"), verify_data=False, **ROUNDED)
    apart = largest_difference(t.path("whole"), t.path("other"))
    check(
        apart > 10 * WEIGHT_BOUND, f"weights differ by {apart:.2e} only, bound {WEIGHT_BOUND:.2e}"
    )


@test(
    "bits: the same with and without prefetching, and with each --recompute",
    each=True,
)
def same_bits(t):
    t.train(out="plain")
    for name, change in (
        ("noprefetch", dict(prefetch=False)),
        ("light", dict(recompute="light")),
        ("block", dict(recompute="block")),
        ("again", {}),
    ):
        t.train(out=name, **change)
        check_same_run(t.path("plain"), t.path(name))


@test("threads: 1, 2 and 3 train the same; in every bit but with OpenBLAS", each=True)
def threads(t):
    # OpenBLAS cuts its sums by the number of threads
    rounds = "libopenblas" in linked(t)
    for n in (1, 2, 3):
        t.train(out=f"threads{n}", threads=n, **ROUNDED)
        (check_rounding if rounds else check_same_run)(t.path("threads1"), t.path(f"threads{n}"))


@test("bits: how shards are stored does not matter: 16 or 32 bits, with extension or not")
def stored(t):
    t.train(out="plain", vocab=61)
    for name, how in (
        ("bare", dict(extended=False)),
        ("wide", dict(wide=True)),
        ("barewide", dict(extended=False, wide=True)),
    ):
        write_data(t.path(name), **how)
        t.train(
            out=f"{name}run",
            vocab=61,
            train=t.path(name, "train_*.bin"),
            val=t.path(name, "val_*.bin"),
        )
        check_same_run(t.path("plain"), t.path(f"{name}run"))


# ---- the two attentions ------------------------------------------------------------------------


def both(t):
    if len(t.trainers) < 2:
        raise Skip("needs trainers of both attentions")
    return t.trainers["standard"], t.trainers["laser"]


@test("attentions: standard and LASER start from the same weights, in every bit")
def same_start(t):
    for name, trainer in zip(("standard", "laser"), both(t)):
        t.train(out=name, trainer=trainer, lr=0, steps=1, warmup=0)
    x, y = (tensors(f"{newest(t.path(n))}/model.safetensors") for n in ("standard", "laser"))
    same(list(y), list(x), "tensors")
    for name in x:
        check(x[name].tobytes() == y[name].tobytes(), f"{name} differs")
        check(
            "ln_" in name or "bias" in name or len(set(x[name])) > len(x[name]) / 2,
            f"{name} is not random",
        )


def without_attention(source, target, attention):
    """A copy of a checkpoint, as if of that attention, which adds nothing to the stream."""
    os.makedirs(target)
    data = bytearray(read(f"{source}/model.safetensors"))
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name, where in header.items():
        if name.endswith("attn.c_proj.weight"):
            begin, end = (8 + size + at for at in where["data_offsets"])
            data[begin:end] = bytes(end - begin)
    state = json.loads(read(f"{source}/state.json"))
    state["attention"] = attention
    state["files"][0]["crc32c"] = f"{crc32c(data):08x}"
    write(f"{target}/model.safetensors", data)
    write(f"{target}/optimizer.safetensors", read(f"{source}/optimizer.safetensors"))
    write(f"{target}/state.json", json.dumps(state).encode())


@test("attentions: standard and LASER see the same batches: silenced, they have the same losses")
def same_batches(t):
    frozen = dict(lr=0, warmup=0, steps=20, val_every=0)
    programs = dict(zip(("standard", "laser"), both(t)))
    t.train(out="seedling", trainer=programs["standard"], stop_after=1, **frozen)
    losses = {}
    for name, trainer in programs.items():
        without_attention(newest(t.path("seedling")), t.path(f"silent_{name}"), name)
        t.train(out=name, trainer=trainer, resume=t.path(f"silent_{name}"), **frozen)
        losses[name] = [(r["step"], r["loss"]) for r in records(t.path(name), "train")]
    same(losses["laser"], losses["standard"], "losses")
    check(
        len({loss for _, loss in losses["laser"]}) == 19, "the losses do not tell the batches apart"
    )
    prints = {
        next(r for r in log_lines(t.path(n)) if r["kind"] == "run")["data_fingerprint"]
        for n in programs
    }
    same(len(prints), 1, "number of data fingerprints")


@test("attentions: standard and LASER do not train the same: their losses part")
def different(t):
    for name, trainer in zip(("standard", "laser"), both(t)):
        t.train(out=name, trainer=trainer)
    a, b = (records(t.path(n), "train")[-1]["loss"] for n in ("standard", "laser"))
    check(a != b, f"both end with a loss of {a}")


# ---- several processes -------------------------------------------------------------------------


@test("processes: 2 train the same as 1 within rounding", each=True)
def two_processes(t):
    launch = [*mpirun(t), "-np", "2"]
    t.train(out="one", **ROUNDED)
    t.train(out="two", launch=launch, **ROUNDED)
    same(
        [r["processes"] for r in log_lines(t.path("two")) if r["kind"] == "run"],
        [2],
        "processes in the log",
    )
    check_rounding(t.path("one"), t.path("two"))


@test(
    "processes: 1 goes on with 2 and back within rounding, and 2 resume bit for bit",
    each=True,
)
def change_processes(t):
    launch = [*mpirun(t), "-np", "2"]
    t.train(out="one", **ROUNDED)
    t.train(out="mixed", stop_after=3, **ROUNDED)
    t.train(out="mixed", stop_after=3, launch=launch, **ROUNDED)
    t.train(out="mixed", **ROUNDED)
    check_rounding(t.path("one"), t.path("mixed"))
    t.train(out="two", launch=launch, **ROUNDED)
    t.train(out="halves", launch=launch, stop_after=5, **ROUNDED)
    t.train(out="halves", launch=launch, **ROUNDED)
    check_same_run(t.path("two"), t.path("halves"))


@test("processes: one with a bad file takes the others with it, at once, with exit code 3")
def one_fails(t):
    command = mpirun(t)
    write_data(t.path("bad"))
    write(t.path("bad/train_1.bin"), read(t.path("bad/train_1.bin"))[:-2])
    good, bad = t.options({}), t.options(dict(train=t.path("bad/train_*.bin")))
    done = t.call([*command, "-np", "1", t.trainer, *good, ":", "-np", "1", t.trainer, *bad])
    same(done.code, 3, f"exit code ({done.err})")
    check("bad/train_1.bin" in done.err, f"the file is not named: {done.err}")
    check(done.seconds < 20 * t.patience, f"it took {done.seconds:.0f} s")


@test(
    "processes: one signal to one of 2 stops both after the same step, with a checkpoint",
    each=False,
)
def one_signalled(t):
    if t.patience > 1:
        raise Skip("mpirun kills a second after its signal: too soon for an instrumented program")
    launch = [*mpirun(t), "-np", "2"]
    long = dict(steps=100000, save_every=0, val_every=0)
    process = subprocess.Popen(
        [*launch, t.trainer, *t.options(dict(long, out="run"))],
        cwd=t.dir,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    t.started.append(process)
    t.wait_for(
        lambda: os.path.exists(t.path("run/log.jsonl"))
        and b'"step":5,' in read(t.path("run/log.jsonl")),
        process,
        "five steps",
    )
    process.terminate()  # mpirun hands it on
    code, said = t.wait(process)
    check(code != 0, f"exit code 0 after a signal: {said}")
    last = records(t.path("run"), "train")[-1]["step"]
    same(os.path.basename(newest(t.path("run"))), f"step_{last:08d}", "checkpoint")
