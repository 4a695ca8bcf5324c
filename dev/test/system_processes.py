"""Several processes that fail: whatever goes wrong in one of them is said once, names it, ends all
within seconds, and costs nothing that was saved. Faults are real ones where they can be made:
kill -9, SIGSTOP, other options, other files, a file system that takes no more."""

import os
import re
import signal
import subprocess
import time

from system_kit import (
    DIVERGED,
    INPUT,
    IO,
    PROCESS,
    USAGE,
    Skip,
    check,
    check_same_run,
    checkpoints,
    linked,
    logged,
    mpirun,
    newest,
    read,
    records,
    same,
    shard_bytes,
    test,
    tokens_like_text,
    write,
    write_data,
)

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHARED = dict(batch=2, total_batch=192)  # what 1, 2 and 3 processes can divide
# Steps for longer than any test looks at them
LONG = dict(steps=1000000, save_every=20, val_every=0, schedule="constant")
HANG_SECONDS = 3  # what --timeout gets, times t.patience; a step takes milliseconds
ERROR = re.compile(r"^error: ", re.M)


def part(t, changes=None, n=1, trainer=None, before=(), env=()):
    """Words for n processes of one mpirun: what is to run, and with what."""
    variables = [word for pair in env for word in ("-x", pair)]
    program = [*before, trainer or t.trainer, *t.options(dict(SHARED, **(changes or {})))]
    return [*variables, "-np", str(n), *program]


def together(t, parts):
    words = mpirun(t)
    for i, one in enumerate(parts):
        words += [":"] * (i > 0) + one
    return words


def check_once(text, *says):
    """One error was said, with all of these words in it."""
    same(len(ERROR.findall(text)), 1, f"errors in what was said: {text}")
    for what in says:
        check(what in text, f"{what!r} is not in what was said: {text}")


def fails(t, parts, code, *says, seconds=20):
    done = t.call(together(t, parts))
    same(done.code, code, f"exit code ({done.err})")
    check_once(done.err, *says)
    check(done.seconds < seconds * t.patience, f"it took {done.seconds:.0f} s")
    return done


def start(t, parts):
    process = subprocess.Popen(
        together(t, parts),
        cwd=t.dir,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    t.started.append(process)
    return process


def rank_pid(process, rank):
    """The process with this rank below an mpirun."""
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8") as f:
                parent = int(f.read().rsplit(")", 1)[1].split()[1])
            if parent == process.pid and (
                b"OMPI_COMM_WORLD_RANK=%d\0" % rank in read(f"/proc/{entry}/environ") + b"\0"
            ):
                return int(entry)
        except (OSError, ValueError):
            continue
    raise AssertionError(f"no process of rank {rank}")


def training(t, n=2, **changes):
    """An mpirun that has saved a checkpoint."""
    before = checkpoints(t.path("run"))
    process = start(t, [part(t, dict(LONG, out="run", **changes), n)])
    t.wait_for(lambda: checkpoints(t.path("run")) != before, process, "a checkpoint")
    return process


def goes_on(t, n=2):
    """The same command continues what the failed one left."""
    last = int(os.path.basename(newest(t.path("run")))[5:])
    changes = dict(LONG, out="run", stop_after=5)
    done = t.call(together(t, [part(t, changes, n)]))
    same(done.code, 0, f"exit code of the same command ({done.err})")
    same(os.path.basename(newest(t.path("run"))), f"step_{last + 5:08d}", "checkpoint")


# ---- errors ------------------------------------------------------------------------------------


@test("processes: an error that all of 3 find is said once, with a rank and its exit code")
def error_of_all(t):
    fails(t, [part(t, n=3) + ["--bogus"]], USAGE, "rank ", "--bogus")
    fails(t, [part(t, dict(train="nothing"), n=3)], INPUT, "rank ", "'nothing'")
    check(not os.path.exists(t.path("run")), "a run directory was made")


@test("processes: an error that one of 3 finds names it, and ends all with its exit code")
def error_of_one(t):
    for rank in range(3):
        parts = [part(t, dict(train="nothing") if r == rank else {}) for r in range(3)]
        fails(t, parts, INPUT, f"rank {rank} on {os.uname().nodename}: ", "'nothing'")


@test("processes: a run that diverges ends all with exit code 5, and its log says so")
def diverges(t):
    grows = dict(lr=1e3, weight_decay=1e3, warmup=0, schedule="constant", steps=200, save_every=5)
    fails(t, [part(t, dict(grows, out="run"), n=2)], DIVERGED, "rank 0", "20 steps in a row")
    events = [r["name"] for r in records(t.path("run"), "event")]
    same(events.count("diverged"), 1, "diverged events")


@test("processes: --version and --help are said once, with exit code 0")
def said_once(t):
    for option, line in (("--version", "laser.c "), ("--help", "usage: ")):
        done = t.call(together(t, [part(t, n=3) + [option]]))
        same((done.code, done.err), (0, ""), f"exit code and stderr of {option}")
        same(done.out.count(line), 1, f"{line!r} in what {option} prints")


@test("processes: with a terminal's output, only rank 0 prints")
def only_first_prints(t):
    done = t.call(together(t, [part(t, n=3)]))
    same((done.code, done.err), (0, ""), "exit code and stderr")
    same(done.out.count("step 24/24"), 1, "last steps in the output")


# ---- what all must have in common --------------------------------------------------------------


@test("processes: other options on one are refused with exit code 2, and the option named")
def other_options(t):
    for changes, option in (
        (dict(lr=4e-3), "--lr: 0.003 -> 0.004"),
        (dict(batch=4), "--batch: 2 -> 4"),
        (dict(val_every=6), "--val-every: 5 -> 6"),
        (dict(seed=8), "--seed: 7 -> 8"),
    ):
        parts = [part(t, n=2), part(t, changes)]
        fails(t, parts, USAGE, "rank 2 on ", option)
    check(not os.path.exists(t.path("run")), "a run directory was made")


@test("processes: how each runs may differ: threads, reading ahead, where its shards lie")
def own_options(t):
    write_data(t.path("copy"))
    mine = dict(
        threads=2,
        prefetch=False,
        train=t.path("copy/train_*.bin"),
        val=t.path("copy/val_*.bin"),
    )
    done = t.call(together(t, [part(t), part(t, mine)]))
    same(done.code, 0, f"exit code ({done.err})")


@test("processes: two attentions in one run are refused with exit code 2")
def other_program(t):
    if len(t.trainers) < 2:
        raise Skip("needs trainers of both attentions")
    a, b = t.trainers.values()
    fails(t, [part(t, trainer=a), part(t, trainer=b)], USAGE, "rank 1 on ", "attention ")


@test("processes: other shards on one are refused with exit code 3, training or validation")
def other_shards(t):
    write_data(t.path("data"))
    write(t.path("data/train_2.bin"), shard_bytes(tokens_like_text(300, 5)))
    parts = [part(t), part(t, dict(train=t.path("data/train_*.bin")))]
    fails(t, parts, INPUT, "rank 1 on ", "other training shards")
    fails(t, [part(t), part(t, dict(val=None))], INPUT, "rank 1 on ", "other validation shards")


def start_from(t, names):
    """One process a directory, each beginning with the checkpoint that lies in its own."""
    return [
        ["-wdir", t.path(name), *part(t, dict(resume="start", out=None))] for name in names
    ]


def make_start(t, name, seed):
    t.train(out=f"{name}_run", seed=seed, stop_after=1, **SHARED)
    os.makedirs(t.path(name))
    os.rename(newest(t.path(f"{name}_run")), t.path(name, "start"))
    state = read(t.path(name, "start/state.json")).replace(b'"seed":\t%d' % seed, b'"seed":\t7')
    write(t.path(name, "start/state.json"), state)


@test("processes: other weights on one end the run with exit code 6, and name the minority")
def other_weights(t):
    make_start(t, "good", 7)
    make_start(t, "bad", 8)
    fails(t, start_from(t, ["good", "bad"]), PROCESS, "those of rank 1 differ from rank 0's")
    fails(t, start_from(t, ["good", "good", "bad"]), PROCESS, "those of rank 2 differ from rank 0")
    fails(
        t,
        start_from(t, ["bad", "good", "good"]),
        PROCESS,
        "those of rank 0 differ from the majority's",
    )
    done = t.call(together(t, start_from(t, ["good", "good"])))
    same(done.code, 0, f"exit code with equal weights ({done.err})")


def fault(t):
    """The library that breaks a sum of the process it is loaded into."""
    library = t.path("at_sum.so")
    source = os.path.join(TOP, "dev/test/faults/at_sum.c")
    done = t.call(["mpicc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"])
    if done.code:
        raise Skip(f"the fault cannot be compiled: {done.err.strip()[:300]}")
    return library


BUCKETS = 4  # of TINY's gradients in a step: embeddings, two layers, the last norm


def broken(t, changes, how, step, rank=1, n=2):
    """In that step, while the upper layer's gradients are handed round."""
    how = f"{how}={BUCKETS * (step - 1) + 2}"
    changes = dict(changes, zero=0)
    # AddressSanitizer wants to be the first library of a program
    sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    env = ["-x", f"LD_PRELOAD={fault(t)}", "-x", how, "-x", f"ASAN_OPTIONS={sanitizer}"]
    parts = [[*(env if r == rank else []), *part(t, changes)] for r in range(n)]
    return parts


@test("processes: one wrong bit in a sum is found before the next checkpoint is written")
def wrong_bit(t):
    changes = dict(out="run", val_every=0)
    fails(t, broken(t, changes, "SUM_FLIPS", 7), PROCESS, "after step 10", "those of rank 1 differ")
    same(checkpoints(t.path("run")), ["step_00000005"], "checkpoints")
    launch = [*mpirun(t), "-np", "2"]
    t.train(out="whole", launch=launch, val_every=0, **SHARED)
    t.train(out="run", launch=launch, val_every=0, **SHARED)
    check_same_run(t.path("whole"), t.path("run"))
    often = dict(changes, out="often", check_every=1)
    fails(t, broken(t, often, "SUM_FLIPS", 7), PROCESS, "after step 7", "those of rank 1 differ")
    never = dict(changes, out="never", check_every=0)
    done = t.call(together(t, broken(t, never, "SUM_FLIPS", 7)))
    same(done.code, 0, f"exit code without comparing: the fault must be real ({done.err})")


# ---- processes that stop, or are no more -------------------------------------------------------


def ends(t, process, seconds, *says):
    """Exit code is not 0 and one error was said; some launchers have codes of their own."""
    begin = time.monotonic()
    code, err = t.wait(process, 2 * seconds)
    check(code != 0, f"exit code 0 ({err})")
    check_once(err, *says)
    took = time.monotonic() - begin
    check(took < seconds * t.patience, f"it took {took:.1f} s")


@test("processes: one that is stopped ends the run after --timeout, and is named")
def stopped(t):
    limit = HANG_SECONDS * t.patience
    process = training(t, n=3, timeout=limit)
    os.kill(rank_pid(process, 1), signal.SIGSTOP)
    says = ["rank 1 on", "stopped", "did not come where the other 2 wait"]
    ends(t, process, HANG_SECONDS + 15, f"no progress for {limit} s (--timeout)", *says)
    goes_on(t, 3)


@test("processes: rank 0, stopped, ends the run after --timeout too")
def first_stopped(t):
    process = training(t, n=2, timeout=HANG_SECONDS * t.patience)
    os.kill(rank_pid(process, 0), signal.SIGSTOP)
    ends(t, process, 2 * HANG_SECONDS + 15, "rank 0 on", "stopped", "--timeout")
    goes_on(t)


@test("processes: one that lives but hangs in its work, or in a sum, ends the run after --timeout")
def hangs(t):
    changes = dict(LONG, out="run", timeout=HANG_SECONDS * t.patience, save_every=2)
    process = start(t, broken(t, changes, "WORK_HANGS", 4, rank=2, n=3))
    ends(t, process, 60, "rank 2 on", "alive, after step", "did not come where the other 2 wait")
    goes_on(t, 3)
    process = start(t, broken(t, changes, "SUM_HANGS", 4, rank=2, n=3))
    ends(t, process, 60, "all 3 processes wait for each other after step ")


@test("processes: --timeout is no limit for what goes on, and 0 is for ever")
def slow(t):
    limit = HANG_SECONDS * t.patience
    process = training(t, n=2, timeout=limit)
    steps = logged(t.path("run"), "train")
    time.sleep(limit + 1)
    check(process.poll() is None, "a run that trains was ended")
    check(logged(t.path("run"), "train") > steps, "it does not train")
    process.terminate()
    t.wait(process)
    process = training(t, n=2, timeout=0)
    pid = rank_pid(process, 1)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(HANG_SECONDS + 3)
    check(process.poll() is None, "a run with --timeout 0 was ended")
    os.kill(pid, signal.SIGCONT)
    process.terminate()
    t.wait(process)


@test("processes: one that is killed, rank 0 or another, ends the run at once, and is named")
def killed(t):
    for rank in (1, 0):
        process = training(t, n=2)
        os.kill(rank_pid(process, rank), signal.SIGKILL)
        ends(t, process, 15, f"rank {rank} on", "ended without a word", "goes on from the newest")
        goes_on(t)


@test("processes: SIGUSR1 to mpirun stops all after the same step, with a checkpoint")
def asked_to_stop(t):
    process = training(t, n=2)
    for _ in range(2):
        process.send_signal(signal.SIGUSR1)
    code, err = t.wait(process)
    same(code, 128 + signal.SIGUSR1, f"exit code ({err})")
    same(len(ERROR.findall(err)), 0, f"errors in what was said: {err}")
    last = records(t.path("run"), "train")[-1]["step"]
    same(os.path.basename(newest(t.path("run"))), f"step_{last:08d}", "checkpoint")
    goes_on(t)


@test("processes: a full disk at rank 0 ends all with exit code 4; the checkpoint before goes on")
def full_disk(t):
    large = dict(d_model=256, d_ff=512, steps=6, save_every=2, val_every=0)  # 10 MB
    launch = [*mpirun(t), "-np", "2"]
    large.update(SHARED)
    t.train(out="whole", launch=launch, **large)
    t.train(out="run", launch=launch, stop_after=3, **large)
    before = checkpoints(t.path("run"))
    # the limit's signal is ignored: writes fail as on a full disk
    limited = ["sh", "-c", 'trap "" XFSZ; ulimit -f 2000; exec "$0" "$@"']
    changes = dict(large, out="run")
    parts = [part(t, changes, before=limited), part(t, changes)]
    fails(t, parts, IO, "rank 0 on", "safetensors")
    same(checkpoints(t.path("run")), before, "checkpoints after the failed save")
    t.train(out="run", launch=launch, **large)
    check_same_run(t.path("whole"), t.path("run"))


# ---- launchers ---------------------------------------------------------------------------------


@test("launchers: processes that cannot meet are refused, said once, and begin no run")
def cannot_meet(t):
    mpi = "libmpi" in linked(t)
    for by, variables, says in (
        ("srun", ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), "srun --mpi=pmix"),
        ("a launcher (WORLD_SIZE)", ("WORLD_SIZE", "RANK"), "mpirun"),
        ("mpirun", ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), "MPI sees only this one"),
    ):
        for rank in (0, 1):
            env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI"))}
            env.update({variables[0]: "2", variables[1]: str(rank)})
            done = t.call([t.trainer, *t.options({})], env=env)
            same(done.code, USAGE, f"exit code of rank {rank} under {by} ({done.err})")
            if rank:
                same(done.err, "", f"what rank 1 says under {by}")
            else:
                check_once(done.err, f"{by} started 2 processes", says if mpi else "MPI=1")
    check(not os.path.exists(t.path("run")), "a run directory was made")


@test("launchers: one process under any of them trains as if started by hand")
def one_process(t):
    for variables in (
        dict(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0"),
        dict(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1"),
        dict(SLURM_NTASKS="8", SLURM_PROCID="0"),  # a batch script's own process
        dict(WORLD_SIZE="2"),  # left over in some shell
    ):
        name = "_".join(variables)
        t.train(out=name, steps=3, popen=dict(env={**os.environ, **variables}))
