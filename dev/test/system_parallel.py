"""What several processes train: the same tokens and, within rounding, the same losses as one; the
same bits with the optimizer dealt out (--zero 1) or not, and with --reproducible for any number
of processes. On the CPU, over MPI."""

import math

from system_kit import (
    USAGE,
    check,
    check_same_run,
    largest_difference,
    mpirun,
    newest,
    records,
    same,
    tensors,
    test,
)

# Layers of 17 and 26 blocks of 4,096 parameters: every process of 2, 3 and 4 holds a part of each,
# none the same, and of the final norm's one block all but the last hold nothing.
WIDE = dict(d_model=96, d_ff=200, head_dim=48, steps=10, save_every=0, probe_attention=5)


def launch(t, count):
    return [*mpirun(t), "-np", str(count)] if count > 1 else []


def train(t, count, out, **options):
    return t.train(launch=launch(t, count), out=out, **options)


# The bound of system_equal.py, for k steps: weights apart by at most k * lr / eps * n * 2^-24. A
# loss then differs by at most the norm of its gradient times the distance of all P weights, and by
# its own rounding.
STEPS, LR, EPS, N = 100, 1e-3, 1e-2, 128
SAME = dict(
    steps=STEPS, lr=LR, eps=EPS, warmup=0, schedule="constant", batch=2, val_every=0, save_every=0
)
ROUNDING = 2**-20


def furthest(t, a, b):
    """The largest |difference of losses| / bound over the steps of two runs."""
    parameters = sum(map(len, tensors(f"{newest(t.path(a))}/model.safetensors").values()))
    worst = 0
    for x, y in zip(records(t.path(a), "train"), records(t.path(b), "train"), strict=True):
        same((y["step"], y["tokens"], y["lr"]), (x["step"], x["tokens"], x["lr"]), "records")
        apart = x["step"] * LR / EPS * N * 2**-24 * math.sqrt(parameters)
        bound = ROUNDING * x["loss"] + max(x["grad_norm"], y["grad_norm"]) * apart
        worst = max(worst, abs(x["loss"] - y["loss"]) / bound)
    return worst


@test("parallel: 1, 2 and 4 processes: 100 losses within rounding; again, the same bits")
def same_training(t):
    for count in (1, 2, 4):
        train(t, count, f"p{count}", **SAME)
    train(t, 4, "again", **SAME)
    for count in (2, 4):
        worst = furthest(t, "p1", f"p{count}")
        check(worst <= 1, f"{count} processes: {worst:.2g} of the bound")
    check_same_run(t.path("p4"), t.path("again"), kinds=("train",))
    # what a process that reads other tokens would give is far beyond it
    train(t, 2, "other", **{**SAME, "seed": 8})
    worst = furthest(t, "p1", "other")
    check(worst > 10, f"other tokens: {worst:.2g} of the bound only")


@test("parallel: --zero 0 and 1, the same bits: AdamW, LAMB, clipped updates; 2, 3, 4", each=True)
def dealt_out(t):
    for count, options in (
        (2, {}),
        (3, dict(optimizer="lamb", decay_all=True, total_batch=96, batch=2)),
        (4, dict(update_clip=0.5, batch=2)),
    ):
        for zero in (0, 1):
            train(t, count, f"p{count}z{zero}", zero=zero, **WIDE, **options)
        kinds = ("train", "val", "probe")
        check_same_run(t.path(f"p{count}z0"), t.path(f"p{count}z1"), kinds)


def probed(t, run):
    """What a probe says of the gradients, which are of all processes."""
    layers = [layer for r in records(t.path(run), "probe") for layer in r["layers"]]
    check(len(layers) == 4, f"{len(layers)} layers were probed")
    return [[layer[f"grad_{x}"] for x in "qkv"] for layer in layers]


@test("parallel: --reproducible: 1, 2 and 4 processes give the same bits, with --zero 0 and 1")
def reproducible(t):
    options = dict(reproducible=True, batch=2, **WIDE)
    train(t, 1, "p1", **options)
    for count in (2, 4):
        for zero in (0, 1):
            train(t, count, f"p{count}z{zero}", zero=zero, **options)
            check_same_run(t.path("p1"), t.path(f"p{count}z{zero}"))
            same(probed(t, f"p{count}z{zero}"), probed(t, "p1"), "norms of gradients in the probes")
    three = dict(batch=1, total_batch=48, reproducible=True)
    train(t, 1, "refused", code=USAGE, says="1, 2, 4, 8", **three)


@test("parallel: --reduce-in bf16: gradients rounded to 8 bits, alike with --zero 0 and 1")
def rounded_gradients(t):
    once = dict(WIDE, steps=1, warmup=0, lr=1e-3, beta1=0, eps=1, grad_clip=0, weight_decay=0)
    train(t, 2, "fp32", **once)
    for zero in (0, 1):
        train(t, 2, f"z{zero}", reduce_in="bf16", zero=zero, **once)
    check_same_run(t.path("z0"), t.path("z1"))
    # a weight moves by lr * g / (|g| + 1): each process's part of g is off by at most 2^-9 of
    # itself; of half the tokens, it is taken to be at most twice the norm of the whole
    norm = records(t.path("fp32"), "train")[0]["grad_norm"]
    apart = largest_difference(t.path("fp32"), t.path("z1"))
    bound = 1e-3 * 2 * 2 * norm * 2**-9
    check(0 < apart <= bound, f"weights differ by {apart:.2e}, bound {bound:.2e}")
