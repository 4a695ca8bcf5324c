"""Resume: a run that was interrupted, in whatever way, ends as if it had not been: the same bits
in weights and moments, the same records in the log. The data is such that every few steps an
epoch ends and every step crosses shards."""

import json
import os
import random
import shutil
import signal
import time

from system_kit import (
    SIGNALS,
    check,
    check_same_run,
    checkpoints,
    flip_byte,
    log_lines,
    logged,
    newest,
    read,
    records,
    same,
    stop_status,
    tensors,
    test,
    tokens_like_text,
    write,
    write_shard,
)


@test("resume: stopped by --stop-after wherever, the same command ends in the same bits", each=True)
def stop_after(t):
    t.train(out="whole")
    check(24 * 8 > 6 * 29, "no epoch ends in this test")
    for stop in (1, 7, 11):
        name = f"stop{stop}"
        for _ in range(min(3, 24 // stop)):
            t.train(out=name, stop_after=stop)
        t.train(out=name)
        check_same_run(t.path("whole"), t.path(name))
    stops = [r["step"] for r in records(t.path("stop7"), "event") if r["name"] == "stopped"]
    same(stops, [7, 14, 21], "steps at which it stopped")


@test("resume: LAMB and clipped updates end in the same bits too", each=True)
def stop_after_optimizers(t):
    ends = []
    for name, options in (
        ("adamw", {}),
        ("clipped", dict(update_clip=0.5)),
        ("lamb", dict(optimizer="lamb")),
    ):
        t.train(out=f"{name}_whole", **options)
        t.train(out=name, stop_after=7, **options)
        t.train(out=name, **options)
        check_same_run(t.path(f"{name}_whole"), t.path(name))
        ends.append(read(f"{newest(t.path(name))}/model.safetensors"))
    same(len(set(ends)), 3, "number of different ends")


@test("resume: killed at any moment, the same command ends in the same bits", each=True)
def kill(t):
    """Moments are counted in the writes to log, event file and checkpoints (about ten a step): the
    files, and nothing else, are what a killed run leaves."""
    long = dict(steps=60, save_every=10)
    t.train(out="whole", **long)
    rng, kills = random.Random(3), 0
    while t.stopped(dict(STOP_AT_WRITE=rng.randrange(400)), out="run", **long):
        kills += 1
        check(kills < 100, "a run that is killed again and again does not end")
    check(kills >= 3, f"only {kills} kills before the end")
    check_same_run(t.path("whole"), t.path("run"))


@test("resume: killed at each sync, rename and removal of a save, it ends in the same bits")
def kill_in_save(t):
    short = dict(steps=2, save_every=1, val_every=0, warmup=0, keep=1)
    t.train(out="whole", **short)
    left, moment = set(), 0
    while t.stopped(dict(STOP_AT=moment), out="run", **short):
        directory = t.path("run/checkpoints")
        names = os.listdir(directory) if os.path.isdir(directory) else []
        left.add(tuple(sorted(names)))
        check("tmp_00000002" not in names or checkpoints(t.path("run")), f"only {names} is left")
        t.train(out="run", **short)
        check_same_run(t.path("whole"), t.path("run"))
        shutil.rmtree(t.path("run"))
        moment += 1
    for what in (("tmp_00000001",), ("step_00000001", "tmp_00000002")):
        check(what in left, f"{what} was never left: {left}")
    check(("step_00000001", "step_00000002") in left, f"no kill before a removal: {left}")
    check(("step_00000002", "tmp_step_00000001") in left, f"no kill in a removal: {left}")


@test(
    "resume: SIGTERM and SIGINT save after the step, end with 128 + n, and nothing is lost",
    each=True,
)
def signals(t):
    long = dict(steps=150, save_every=0, val_every=0)
    t.train(out="whole", **long)
    for number in SIGNALS:
        name = f"run{int(number)}"
        process = t.start(out=name, **dict(long, steps=150))
        t.wait_for(lambda n=name: logged(t.path(n), "train") >= 5, process, "five steps")
        process.send_signal(number)
        code, _ = t.wait(process)
        if code == 0:  # it was done before the signal came
            continue
        same(code, stop_status(number), "exit code")
        last = records(t.path(name), "train")[-1]["step"]
        same(checkpoints(t.path(name)), [f"step_{last:08d}"], "checkpoints")
        stopped = [r for r in records(t.path(name), "event") if r["name"] == "stopped"]
        same([r["step"] for r in stopped], [last], "steps of the stopped events")
        t.train(out=name, **long)
        check_same_run(t.path("whole"), t.path(name), kinds=("train",))


@test("signals: a second one ends the run at once, in the middle of a step", each=True)
def second_signal(t):
    write_shard(t.path("long.bin"), tokens_like_text(1 << 17, 5))
    slow = dict(
        layers=4,
        d_model=512,
        d_ff=2048,
        heads=8,
        head_dim=64,
        seq_len=128,
        batch=8,
        total_batch=1 << 16,
        val_every=0,
        train=t.path("long.bin"),
    )
    process = t.start(out="run", **slow)
    t.wait_for(lambda: logged(t.path("run"), "run"), process, "the start of the run")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    check(process.poll() is None, "the first signal did not wait for the step")
    process.send_signal(signal.SIGTERM)
    code, _ = t.wait(process)
    same(code, stop_status(signal.SIGTERM), "exit code")
    same(records(t.path("run"), "train"), [], "train records")  # not even of this step


# ---- damaged checkpoints -----------------------------------------------------------------------


def truncate(path):
    write(path, read(path)[:-1])


DAMAGES = {
    "model cut short": (lambda d: truncate(f"{d}/model.safetensors"), "model.safetensors has"),
    "model gone": (lambda d: os.remove(f"{d}/model.safetensors"), "model.safetensors has -1 bytes"),
    "a weight flipped": (lambda d: flip_byte(f"{d}/model.safetensors", -100), "checksum"),
    "a moment flipped": (lambda d: flip_byte(f"{d}/optimizer.safetensors", 5000), "checksum"),
    "state.json gone": (lambda d: os.remove(f"{d}/state.json"), "state.json is missing or torn"),
    "state.json cut": (lambda d: truncate(f"{d}/state.json"), "state.json is missing or torn"),
    "state.json empty": (lambda d: write(f"{d}/state.json", b""), "state.json is missing or torn"),
    "state.json of another kind": (
        lambda d: write(f"{d}/state.json", b"{}"),
        "state.json is missing or torn",
    ),
}


@test("resume: a damaged newest checkpoint is passed over by name and the one before is used")
def damaged(t):
    t.train(out="whole")
    t.train(out="begun", stop_after=12)
    same(checkpoints(t.path("begun")), ["step_00000010", "step_00000012"], "checkpoints")
    for i, (what, (damage, says)) in enumerate(DAMAGES.items()):
        out = f"run{i}"
        shutil.copytree(t.path("begun"), t.path(out))
        damage(newest(t.path(out)))
        os.makedirs(t.path(out, "checkpoints/tmp_00000013"))
        write(t.path(out, "checkpoints/tmp_00000013/model.safetensors"), b"half")
        said = t.train(out=out, says=["step_00000012 is passed over", says])
        check(
            "resumed after step 10" in said.out, f"{what}: it went on from elsewhere:\n{said.out}"
        )
        check(
            not os.path.exists(t.path(out, "checkpoints/tmp_00000013")),
            "a leftover save is still there",
        )
        check_same_run(t.path("whole"), t.path(out))


@test("resume: what is saved after a damaged newer checkpoint is kept, and is gone on from")
def saved_before_damaged(t):
    t.train(out="run", stop_after=12)
    truncate(t.path("run/checkpoints/step_00000012/model.safetensors"))
    t.train(out="run", keep=1, stop_after=1, says="step_00000012 is passed over")
    check("step_00000011" in checkpoints(t.path("run")), str(checkpoints(t.path("run"))))
    said = t.train(out="run", keep=1, says="step_00000012 is passed over")
    check("resumed after step 11" in said.out, said.out)


@test("resume: where every checkpoint is damaged the run is not begun again over its remains")
def all_damaged(t):
    t.train(out="run", stop_after=12)
    for name in checkpoints(t.path("run")):
        truncate(t.path("run/checkpoints", name, "model.safetensors"))
    before = read(t.path("run/log.jsonl"))
    t.train(out="run", code=3, says=["passed over", "checkpoints"])
    check(read(t.path("run/log.jsonl")) == before, "the log was changed")


@test("resume: killed before the first checkpoint, it begins again and logs each record once")
def killed_early(t):
    process = t.start(out="run", save_every=0, total_batch=128 * 3)
    t.wait_for(lambda: logged(t.path("run"), "train"), process, "a step")
    process.kill()
    t.wait(process)
    t.train(out="twice", save_every=0, total_batch=128 * 3)
    t.train(out="run", save_every=0, total_batch=128 * 3)
    check_same_run(t.path("twice"), t.path("run"))


@test("checkpoints: --keep N leaves the newest N")
def keep(t):
    for n in (1, 3):
        t.train(out=f"keep{n}", keep=n, save_every=4)
        want = [f"step_{s:08d}" for s in (4, 8, 12, 16, 20, 24)][-n:]
        same(
            os.listdir(t.path(f"keep{n}/checkpoints"))
            and sorted(os.listdir(t.path(f"keep{n}/checkpoints"))),
            want,
            "what lies in checkpoints/",
        )


@test(
    "checkpoints: hold what the run had: position, options, finite float tensors, checksums",
    each=True,
)
def contents(t):
    t.train(out="run")
    directory = newest(t.path("run"))
    state = json.loads(read(f"{directory}/state.json"))
    same(
        (state["step"], state["tokens"], state["updates"], state["skipped"]),
        (24, 24 * 128, 24, 0),
        "position",
    )
    same(state["config"]["lr"], 3e-3, "an option in state.json")
    same(
        [f["name"] for f in state["files"]], ["model.safetensors", "optimizer.safetensors"], "files"
    )
    model, moments = tensors(f"{directory}/model.safetensors"), tensors(
        f"{directory}/optimizer.safetensors"
    )
    same(sorted(moments), sorted(f"{p}.{n}" for n in model for p in "mv"), "names of the moments")
    run = [r for r in log_lines(t.path("run")) if r["kind"] == "run"][0]
    same(sum(len(x) for x in model.values()), run["parameters"], "number of weights")
    for name, values in model.items():
        check(all(abs(v) < 1e3 for v in values), f"{name} is not finite")


@test("resume: a finished run is left as it is, with exit code 0 and quickly", each=True)
def finished(t):
    t.train(out="run")
    before = {
        name: os.stat(t.path("run", name)).st_mtime_ns
        for name in ("log.jsonl", "config.json", "checkpoints")
    }
    names = sorted(os.listdir(t.path("run")))
    said = t.train(out="run")
    check("nothing to do" in said.out, said.out)
    check(said.seconds < 10 * t.patience, f"it took {said.seconds:.1f} s")
    for name, stamp in before.items():
        same(os.stat(t.path("run", name)).st_mtime_ns, stamp, f"time of the last change of {name}")
    same(sorted(os.listdir(t.path("run"))), names, "files of the run")


@test(
    "resume: more --steps continue a finished run, and say that the schedule is no longer the same"
)
def extended(t):
    t.train(out="run", schedule="constant")
    t.train(out="run", schedule="constant", steps=30, says="--steps: 24 -> 30")
    t.train(out="whole", schedule="constant", steps=30)
    check_same_run(t.path("whole"), t.path("run"), kinds=("train",))


@test(
    "resume: --resume PATH continues another run's checkpoint in a new directory, then on its own"
)
def from_path(t):
    t.train(out="whole")
    t.train(out="first", stop_after=10)
    source = newest(t.path("first"))
    stamp = os.stat(source).st_mtime_ns
    t.train(out="second", resume=source, stop_after=6)
    same(checkpoints(t.path("second")), ["step_00000015", "step_00000016"], "checkpoints")
    t.train(out="second", resume=source)
    for name in ("model.safetensors", "optimizer.safetensors"):
        check(
            read(f"{newest(t.path('second'))}/{name}") == read(f"{newest(t.path('whole'))}/{name}"),
            f"{name} differs",
        )
    want = [r for r in records(t.path("whole"), "train") if r["step"] > 10]
    same(records(t.path("second"), "train"), want, "train records")
    same(os.stat(source).st_mtime_ns, stamp, "time of the last change of the source")
