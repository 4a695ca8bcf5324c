"""Checkpoints that several processes write together: the same files as one writes, read by any
number of them, and as safe: what goes wrong in one of them while it writes its part costs nothing
that was saved."""

import json
import os
import random

import stop_at
from system_kit import (
    IO,
    Skip,
    check,
    check_same_run,
    checkpoints,
    crc32c,
    mpirun,
    newest,
    read,
    same,
    tensors,
    test,
)
from system_processes import check_once, fails, part, together

# A layer's tensors fill 26 blocks of 4,096 parameters, of which each process of up to 8 holds some;
# of the final norm's one block all but the last hold nothing. 24 sequences a step: what 1, 2, 3, 4
# and 8 processes can divide.
WIDE = dict(
    d_model=96, d_ff=200, head_dim=48, batch=1, total_batch=384, val_every=0, save_every=2, steps=8
)
FILES = ("model.safetensors", "optimizer.safetensors")


def launch(t, count):
    return [*mpirun(t), "-np", str(count)]


def files(t, out):
    return [read(f"{newest(t.path(out))}/{name}") for name in FILES]


def check_checksums(path):
    """Those that were put together from several parts."""
    for recorded in json.loads(read(f"{path}/state.json"))["files"]:
        data = read(f"{path}/{recorded['name']}")
        same(recorded["bytes"], len(data), f"size of {recorded['name']}")
        same(recorded["crc32c"], f"{crc32c(data):08x}", f"checksum of {recorded['name']}")


# ---- any number of processes -------------------------------------------------------------------

# A step that changes no weight, and lets each moment decay by its beta: its gradients, which are
# rounded differently for other numbers of processes, are clipped to nothing beside them.
STILL = dict(lr=0, grad_clip=1e-30, stop_after=1)


def check_decayed(before, after, beta, prefix):
    for name in before:
        if name.startswith(prefix):
            for x, y in zip(before[name], after[name], strict=True):
                check(abs(y - beta * x) <= 2**-23 * abs(x), f"{name}: {x} became {y}")


def resumed(t, count, name, **options):
    """Goes on from what 4 processes have saved, in a directory of its own."""
    start = newest(t.path("saved"))
    t.train(out=name, resume=start, launch=launch(t, count), **{**WIDE, **STILL, **options})
    return files(t, name)


@test("zero: saved by 4 processes, 1, 2, 3, 4 and 8 go on with the same weights and moments")
def any_number(t):
    t.train(out="saved", launch=launch(t, 4), stop_after=4, **WIDE)
    check_checksums(newest(t.path("saved")))
    alone = resumed(t, 1, "p1")
    same(alone[0], files(t, "saved")[0], "weights after a step that changes none")
    before, after = (tensors(f"{newest(t.path(out))}/{FILES[1]}") for out in ("saved", "p1"))
    check_decayed(before, after, 0.9, "m.")
    check_decayed(before, after, 0.99, "v.")
    for count in (2, 3, 4, 8):
        for zero in (0, 1):
            name = f"p{count}z{zero}"
            check(resumed(t, count, name, zero=zero) == alone, f"{name}: other tensors than 1's")


@test("zero: stopped and resumed by 4 processes, the same bits as never stopped")
def goes_on(t):
    t.train(out="whole", launch=launch(t, 4), **WIDE)
    for stop in (3, 2):
        t.train(out="run", launch=launch(t, 4), stop_after=stop, **WIDE)
    t.train(out="run", launch=launch(t, 4), **WIDE)
    check_same_run(t.path("whole"), t.path("run"), kinds=("train",))


# ---- one of them fails while all save ----------------------------------------------------------


def preloaded(t, library, rank, variable, n=3, **changes):
    """n processes, one of them with a library that makes it fail."""
    # AddressSanitizer wants to be the first library of a program
    sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    pairs = (f"LD_PRELOAD={library}", variable, f"ASAN_OPTIONS={sanitizer}")
    words = [word for pair in pairs for word in ("-x", pair)]
    changes = dict(WIDE, out="run", **changes)
    return [[*(words if r == rank else []), *part(t, changes)] for r in range(n)]


def left(t):
    directory = t.path("run/checkpoints")
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


@test("zero: a full disk at one process ends all with exit code 4; the checkpoint before goes on")
def full_disk(t):
    library, why = stop_at.build(t.dir, "full_disk")
    if not library:
        raise Skip(why)
    t.train(out="whole", launch=launch(t, 3), **WIDE)
    t.train(out="run", launch=launch(t, 3), stop_after=2, **WIDE)
    parts = sum(map(len, files(t, "run"))) // 3
    for rank, full_after, says in (
        (1, parts // 2, "cannot be written at byte"),
        (2, parts + parts // 2, "cannot be written at byte"),
        (0, 1 << 16, "cannot be given its"),
    ):
        before = checkpoints(t.path("run"))
        faulty = preloaded(t, library, rank, f"FULL_AFTER={full_after}")
        fails(t, faulty, IO, f"rank {rank} on", "No space left", "safetensors", says)
        lost = set(before) - set(left(t))
        check(not lost, f"rank {rank}: {lost} are lost")
        same([n[:4] for n in left(t)].count("tmp_"), 1, f"unfinished checkpoints of {left(t)}")
    t.train(out="run", launch=launch(t, 3), **WIDE)
    same([n for n in left(t) if n.startswith("tmp_")], [], "unfinished checkpoints")
    check_same_run(t.path("whole"), t.path("run"), kinds=("train",))


@test("zero: a process that does not see the others' files ends all with exit code 4")
def not_shared(t):
    os.makedirs(t.path("elsewhere"))
    own = [part(t, dict(WIDE, out=None)) + ["--out=run"] for _ in range(2)]
    own[1] = ["-wdir", t.path("elsewhere"), *own[1]]
    fails(t, own, IO, "rank 1 on", "run/checkpoints/tmp_00000002/model.safetensors", "same files")


@test("zero: killed at any moment of a save, rank 0 or another, it ends in the same bits")
def kill_in_save(t):
    """Moments are counted in what a process writes: rank 0 its part, the log and the event file,
    the others their parts alone."""
    if not t.stop_at:
        raise Skip(t.no_stop_at)
    long = dict(steps=16)
    t.train(out="whole", launch=launch(t, 3), **dict(WIDE, **long))
    rng, kills, in_save, code = random.Random(5), 0, 0, 1
    while code:
        rank = rng.randrange(3)
        before, moment = checkpoints(t.path("run")), f"STOP_AT_WRITE={rng.randrange(40, 140)}"
        done = t.call(together(t, preloaded(t, t.stop_at, rank, moment, **long)))
        code = done.code
        now = checkpoints(t.path("run"))
        check(now[-1:] >= before[-1:], f"{moment}: {now} after {before}")
        if code:
            # of rank 0 by either of the others, or both: there is nobody to tell them who
            said = {line for line in done.err.splitlines() if line.startswith("error: ")}
            same(len(said), 1, f"different errors in what was said: {done.err}")
            check_once(*said, f"rank {rank} on", "ended without a word")
            in_save += any(name.startswith("tmp_") for name in left(t))
            kills += 1
            check(kills < 50, "a run that is killed again and again does not end")
    check(in_save >= 3, f"only {in_save} of {kills} kills were in a save")
    check_same_run(t.path("whole"), t.path("run"), kinds=("train",))
