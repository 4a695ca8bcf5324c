"""Tests of the data tools: c4_tokenize killed at any moment, or stopped by a full disk, leaves only
whole files under final names, and the same command then makes the bytes of a run that nothing has
interrupted."""

import gzip
import itertools
import os
import random
import resource
import subprocess

from tokenize_kit import (
    IO, USAGE, Skip, check, read, same, same_tree, shards_in, stamps, test, tree, write,
)  # fmt: skip

SPLIT = dict(val_fraction=0.15)


def final_shards(directory):
    return {os.path.basename(p): os.stat(p).st_ino for p in shards_in(directory)}


@test("kill -9: within random writes, several times in one run, the bytes come out the same")
def random_moments(t):
    files, options = t.c4[:2], dict(shard_tokens=15000, **SPLIT)
    t.tokenize("whole/x", files, threads=2, **options)
    want, rng = tree(t.path("whole")), random.Random(1)
    for name in ("a", "b", "c"):
        kills = 0
        # none of the bytes depends on the number of threads
        while t.stopped(f"{name}/x", files, rng.randrange(150), "STOP_AT_WRITE",
                threads=rng.choice((1, 2, 5)), **options):  # fmt: skip
            kills += 1
            t.verify_whole(t.path(name))
            check(kills < 100, "a run that is killed again and again does not end")
        check(kills >= 2, f"{name}: {kills} kills before the end")
        same_tree(tree(t.path(name)), want, name)


def few_documents(t):
    """About 50,000 tokens."""
    with gzip.open(t.c4[0], "rb") as file:
        return t.write("few.jsonl", b"".join(itertools.islice(file, 60)))


@test("kill -9: before and after every fsync, rename and unlink, the bytes come out the same")
def every_moment(t):
    files, options = [few_documents(t)], dict(shard_tokens=12000, threads=2, **SPLIT)
    t.tokenize("whole/x", files, **options)
    want, seen = tree(t.path("whole")), []
    moment = 0
    while t.stopped(f"{moment}/x", files, moment, **options):
        t.verify_whole(t.path(str(moment)))
        before = final_shards(t.path(str(moment)))
        seen.append(len(before))
        t.tokenize(f"{moment}/x", files, **options)
        same_tree(tree(t.path(str(moment))), want, f"stopped at moment {moment}")
        after = final_shards(t.path(str(moment)))
        # one of each split may have been renamed and not yet noted down
        kept = sum(after[name] == inode for name, inode in before.items())
        check(kept >= len(before) - 2, f"moment {moment}: {len(before) - kept} shards made anew")
        moment += 1
    shards = len(want) - 3
    check(shards >= 4 and set(seen) == set(range(shards + 1)), f"shards at the stops: {seen}")


@test("kill -9: stopped at ever later moments of one run, the bytes come out the same")
def later_moments(t):
    files, options = [few_documents(t)], dict(shard_tokens=12000, threads=2, **SPLIT)
    t.tokenize("whole/x", files, **options)
    moment = 0
    while t.stopped("a/x", files, moment, **options):
        t.verify_whole(t.path("a"))
        moment += 1
        check(moment < 300, "a run that is stopped at ever later moments does not end")
    same_tree(tree(t.path("a")), tree(t.path("whole")), f"after {moment} stops")


@test("kill -9: the vocabulary is not trained on a later part of the text after it")
def vocabulary_stopped(t):
    options = dict(model=None, train_vocab=500, train_bytes=100000, shard_tokens=30000)
    t.tokenize("whole/x", [t.c4[0]], **options)
    want = tree(t.path("whole"))
    for moment in (0, 2, 5, 9):
        if t.stopped(f"{moment}/x", [t.c4[0]], moment, **options):
            t.tokenize(f"{moment}/x", [t.c4[0]], **options)
        same_tree(tree(t.path(str(moment))), want, f"stopped at moment {moment}")


def half_done(t, name, files, **options):
    """A run that was killed with two shards or more in place."""
    for moment in range(10, 200, 4):
        check(t.stopped(name, files, moment, **options), "the run ended before it was stopped")
        if len(shards_in(os.path.dirname(t.path(name)))) >= 2:
            return
    check(False, "no shard after 200 moments")


def left(directory):
    """What the next call finds; the lock of one that was killed may be taken away."""
    return {name: data for name, data in tree(directory).items() if not name.endswith(".lock")}


@test("resume: other options or inputs than those of the interrupted run are refused by name")
def changed(t):
    files = [t.write(f"{i}.json.gz", read(path)) for i, path in enumerate(t.c4)]
    options = dict(shard_tokens=15000, threads=2, **SPLIT)
    t.tokenize("whole/x", files, **options)
    half_done(t, "a/x", files, **options)
    before = left(t.path("a"))
    other = t.path("other", "tokenizer.model")
    t.tokenize("other/x", files, model=None, train_vocab=500, train_bytes=100000, vocab_only=True)
    for says, changes in {
        "shard": {"shard_tokens": 16000},
        "separator": {"separator": "none"},
        "fraction": {"val_fraction": 0.2},
        "split": {"val_fraction": None, "split": "train"},
        "val": {"val_fraction": None, "val_docs": 5},
        "model": {"model": other},
        "train-vocab": {"model": None, "train_vocab": 500},
    }.items():
        t.tokenize("a/x", files, code=USAGE, says=[says, "--force"], **{**options, **changes})
        same_tree(left(t.path("a")), before, f"after {changes} was refused")
    for given in (files[:2], files[::-1], [*files, t.c4[0]], [t.c4[0], *files[1:]]):
        t.tokenize("a/x", given, code=USAGE, says="--force", **options)
        same_tree(left(t.path("a")), before, "after other inputs were refused")
    t.tokenize("a/x", files, **options)
    same_tree(tree(t.path("a")), tree(t.path("whole")), "then the same command")


@test("resume: an input that has changed since it was read, in one byte too, is refused by name")
def changed_input(t):
    files = [t.write(f"{i}.txt", b"a text of its own\f" * 4000) for i in range(3)]
    options = dict(shard_tokens=5000, threads=2)
    for number, keep_time in ((0, False), (0, True), (2, False)):
        name = f"{number}{keep_time}"
        half_done(t, f"{name}/x", files, **options)
        before, data, times = left(t.path(name)), read(files[number]), os.stat(files[number])
        write(files[number], data.replace(b"own", b"OWN", 1))
        if keep_time:
            os.utime(files[number], ns=(times.st_atime_ns, times.st_mtime_ns))
        if number == 0:  # others were not read yet: they may be taken as they are now
            says = [f"{number}.txt", "--force"]
            t.tokenize(f"{name}/x", files, code=USAGE, says=says, **options)
            same_tree(left(t.path(name)), before, "after it was refused")
        t.tokenize(f"{name}/x", files, force=number == 0, **options)
        t.tokenize(f"{name}_new/x", files, **options)
        same_tree(tree(t.path(name)), tree(t.path(f"{name}_new")), "of a run of its own")
        write(files[number], data)


@test("resume: a shard that was damaged or taken away meanwhile is not built upon")
def damaged_shard(t):
    options = dict(shard_tokens=15000, threads=2, **SPLIT)
    t.tokenize("whole/x", t.c4, **options)
    want = tree(t.path("whole"))
    for name in ("gone", "cut"):
        half_done(t, f"{name}/x", t.c4, **options)
        shard = shards_in(t.path(name))[0]
        os.unlink(shard) if name == "gone" else os.truncate(shard, 2000)
        _, err = t.tokenize(f"{name}/x", t.c4, code=None, **options)
        if not os.path.exists(t.path(name, "x.json")):  # it may refuse, or make it again
            check(os.path.basename(shard) in err, f"{name}: the shard is named: {err}")
            t.tokenize(f"{name}/x", t.c4, force=True, **options)
        same_tree(tree(t.path(name)), want, name)


@test("finished: the same command says so and touches nothing; another one is refused")
def finished(t):
    options = dict(shard_tokens=20000, **SPLIT)
    t.tokenize("a/x", t.c4, threads=1, **options)
    before = stamps(t.path("a"))
    for threads in (1, 5):
        out, err = t.tokenize("a/x", t.c4, threads=threads, **options)
        check("x.json" in err + out.decode(), f"nothing is said: {out} {err}")
        same(stamps(t.path("a")), before, "files")
    t.tokenize("a/x", t.c4, code=USAGE, says=["shard", "--force"], shard_tokens=9999, **SPLIT)
    t.tokenize("a/x", t.c4[:2], code=USAGE, says="--force", **options)
    t.tokenize("a/x", t.c4, code=USAGE, says="--force", shard_tokens=20000)
    same(stamps(t.path("a")), before, "files after refusals")


# ---- the disk is full --------------------------------------------------------------------------


@test("disk full: exit code 4, only whole shards; the same command then finishes the same bytes")
def file_size(t):
    options = dict(shard_tokens=15000, threads=2, **SPLIT)
    t.tokenize("whole/x", t.c4, **options)
    for limit in (500, 9000, 30000):  # within the vocabulary, within a small shard, at its end

        def limited(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        # SIGXFSZ stays ignored, as Python has it: writes fail as on a full disk
        popen = dict(preexec_fn=limited, restore_signals=False)
        name = str(limit)
        t.tokenize(f"{name}/x", t.c4, code=IO, says=name + "/", popen=popen, **options)
        t.verify_whole(t.path(name))
        t.tokenize(f"{name}/x", t.c4, **options)
        same_tree(tree(t.path(name)), tree(t.path("whole")), f"after files were limited to {limit}")


def mounted(t, size):
    os.makedirs(t.path("disk"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", t.path("disk")]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise Skip("a file system in memory cannot be mounted: " + done.stderr.decode().strip())


@test("disk full: a small file system; with more room the same command goes on")
def small_disk(t):
    options = dict(shard_tokens=30000, threads=2, **SPLIT)
    t.tokenize("whole/x", t.c4, **options)
    mounted(t, "400k")
    try:
        t.tokenize("disk/out/x", t.c4, code=IO, **options)
        kept = final_shards(t.path("disk", "out"))
        t.verify_whole(t.path("disk", "out"))
        t.tokenize("disk/out/x", t.c4, code=IO, **options)  # still full
        subprocess.run(["mount", "-o", "remount,size=64m", t.path("disk")], check=True)
        t.tokenize("disk/out/x", t.c4, **options)
        same_tree(tree(t.path("disk", "out")), tree(t.path("whole")), "with more room")
        after = final_shards(t.path("disk", "out"))
        check(len(kept) >= 2, f"few shards fitted: {sorted(kept)}")
        moved = [name for name, inode in kept.items() if after[name] != inode]
        check(len(moved) <= 2, f"made anew: {moved}")
    finally:
        subprocess.run(["umount", t.path("disk")], check=True)
