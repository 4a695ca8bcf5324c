"""Training over NCCL, in the emulator, whose twin of it moves data between local processes:
started by mpirun and by the variables that torchrun sets, it gives the bits of MPI through the
host's memory, whichever way the optimizer is dealt out; and what goes wrong is said once and ends
all. Needs the three emulated trainers that make check BACKEND=emu builds beside each other."""

import os
import re
import signal
import socket
import subprocess
import time

from system_kit import (
    PROCESS,
    USAGE,
    Skip,
    check,
    check_same_run,
    checkpoints,
    mpirun,
    newest,
    read,
    records,
    said,
    same,
    tensors,
    test,
)

# As in system_parallel.py: every process of 2 and 3 holds a part of each layer. What 1, 2 and 3
# processes can divide
SHORT = dict(d_model=96, d_ff=200, head_dim=48, steps=2, warmup=0, batch=1, total_batch=96)
SHORT.update(val_every=0)
LONG = dict(SHORT, steps=1000000, save_every=1, schedule="constant", out="run")
ERROR = re.compile(r"^error: ", re.M)
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def program(t, place, name="train_gpt"):
    """That of the build whose processes meet in this way: mpi1, mpi1-nccl, mpi0-nccl."""
    folder = os.path.basename(os.path.dirname(t.trainer))
    carried = os.path.join(os.path.dirname(os.path.dirname(t.trainer)), f"nccl-{folder}", name)
    if place == "mpi0-nccl" and os.path.exists(carried):
        return carried  # make gpu-binaries
    found = re.fullmatch(r"(emu-\w+)-mpi\d(?:-nccl)?-(\w+)", folder)
    if not found:
        raise Skip("the twin of NCCL is for BACKEND=emu, without sanitizers")
    top = os.path.dirname(os.path.dirname(t.trainer))
    path = os.path.join(top, f"{found[1]}-{place}-{found[2]}", name)
    if not os.path.exists(path):
        raise Skip(f"{path} is not built")
    return path


def environment(**changes):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI"))}
    env.update({"EMU_GPUS": "4", "OMP_NUM_THREADS": "1", **changes})
    return {k: v for k, v in env.items() if v is not None}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Ranks:
    """Processes started as torchrun starts them. changes: of the environment, by rank."""

    def __init__(self, t, n, words, changes=None, start=None):
        self.t, self.processes = t, []
        port = str(free_port())
        for rank in start if start is not None else range(n):
            known = (rank, n, rank, n, "127.0.0.1", port)
            env = dict(zip(VARIABLES, map(str, known)), **(changes or {}).get(rank, {}))
            process = subprocess.Popen(
                words,
                cwd=t.dir,
                env=environment(**env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            t.started.append(process)
            self.processes.append(process)

    def wait(self, seconds=60):
        """Exit codes, and what all said on stderr."""
        end = time.monotonic() + seconds * self.t.patience
        err = ""
        for process in self.processes:
            err += said(process.communicate(timeout=max(1, end - time.monotonic()))[1])
        return [p.returncode for p in self.processes], err


def fails(ranks, code, *says, seconds=60):
    """All end with this code, and one error was said, with all of these words in it."""
    begin = time.monotonic()
    codes, err = ranks.wait(seconds)
    same(codes, [code] * len(codes), f"exit codes ({err})")
    same(len(ERROR.findall(err)), 1, f"errors in what was said: {err}")
    for what in says:
        check(what in err, f"{what!r} is not in what was said: {err}")
    took = time.monotonic() - begin
    check(took < seconds * ranks.t.patience, f"it took {took:.0f} s")


def by_mpirun(t, n, place, **changes):
    launch = [*mpirun(t), "-np", str(n)]
    popen = dict(env=environment())
    t.train(trainer=program(t, place), launch=launch, popen=popen, **{**SHORT, **changes})


def by_environment(t, n, **changes):
    codes, err = Ranks(t, n, words(t, **changes)).wait()
    same((codes, err), ([0] * n, ""), "exit codes and stderr")


def words(t, **changes):
    return [program(t, "mpi0-nccl"), *t.options({**SHORT, **changes})]


# ---- the same training -------------------------------------------------------------------------


@test("nccl: the bits of MPI through host memory: mpirun and torchrun's variables; --zero 0 and 1")
def same_bits(t):
    by_mpirun(t, 2, "mpi1", out="host2", zero=0)
    by_mpirun(t, 2, "mpi1-nccl", out="mpi1", zero=1)
    by_environment(t, 2, out="env0", zero=0)
    for name in ("mpi1", "env0"):
        check_same_run(t.path("host2"), t.path(name), kinds=("train",))


@test("nccl: 3 processes, gradients in bf16: the bits of MPI through host memory")
def same_bits_of_three(t):
    options = dict(reduce_in="bf16", total_batch=48)
    by_mpirun(t, 3, "mpi1", out="host", zero=0, **options)
    by_environment(t, 3, out="env", zero=1, **options)
    check_same_run(t.path("host"), t.path("env"), kinds=("train",))
    by_environment(t, 3, out="fp32", zero=1, total_batch=48)
    a, b = (tensors(f"{newest(t.path(x))}/model.safetensors") for x in ("env", "fp32"))
    check(any(a[k] != b[k] for k in a), "gradients in bf16 and in fp32 gave the same bits")


@test("nccl: collectives of 2, 3 and 4 processes are exact, of every length; a wrong bit is found")
def exact(t):
    bench = program(t, "mpi0-nccl", "bench_comm")
    for n in (2, 3, 4):
        codes, err = Ranks(t, n, [bench, "--check", "2"]).wait()
        same((codes, err), ([0] * n, ""), f"exit codes and stderr of {n}")
    wrong = {1: dict(EMU_NCCL_FAULT="flip:1:4")}
    codes, err = Ranks(t, 2, [bench, "--check", "2"], wrong).wait()
    same(codes, [0, 1], "exit codes with a wrong bit")
    check("element 0 of rank 1" in err, err)


@test("nccl: on GPUs, or two processes on one: --zero 0 and 1 the same bits, one process's losses")
def on_gpus(t):
    options = dict(steps=4, total_batch=96, share_gpu=True)
    share = {rank: dict(EMU_GPUS="1", NCCL_MULTI_RANK_GPU_ENABLE="1") for rank in range(2)}
    for zero in (0, 1):
        done = Ranks(t, 2, words(t, out=f"z{zero}", zero=zero, **options), share).wait(120)
        if "have the same GPU" in done[1]:
            raise Skip(f"one GPU, and too old an NCCL: {done[1].strip()}")
        same(done, ([0, 0], ""), "exit codes and stderr")
    check_same_run(t.path("z0"), t.path("z1"), kinds=("train",))
    t.train(trainer=program(t, "mpi0-nccl"), popen=dict(env=environment()), out="one", **SHORT)
    first, two = records(t.path("one"), "train")[0], records(t.path("z0"), "train")[0]
    # the same sequences by the same kernels; six gradients are added up in another order, in fp32
    for what, bound in (("loss", 2**-20), ("grad_norm", 6 * 2**-23)):
        apart = abs(first[what] - two[what]) / first[what]
        check(apart <= bound, f"{what} of one process differs by {apart:.2e}, at most {bound:.2e}")


# ---- what goes wrong ---------------------------------------------------------------------------


@test("nccl: one process that is killed ends all, and is named; the same command goes on")
def killed(t):
    ranks = Ranks(t, 2, words(t, **LONG))
    t.wait_for(lambda: checkpoints(t.path("run")), ranks.processes[0], "a checkpoint")
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    codes, err = ranks.wait(15)
    same(codes, [PROCESS, -signal.SIGKILL], f"exit codes ({err})")
    same(len(ERROR.findall(err)), 1, f"errors in what was said: {err}")
    check("rank 1 on" in err and "ended without a word" in err, err)
    last = records(t.path("run"), "train")[-1]["step"]
    by_environment(t, 2, **dict(LONG, stop_after=1))
    check(records(t.path("run"), "train")[-1]["step"] >= last, "the same command did not go on")


@test("nccl: errors end all: of a call, one that comes later, calls in another order, a wrong bit")
def errors(t):
    for fault, *says in (
        ("fail:1:6", "rank 1 on", "failed: internal error", "NCCL_DEBUG=INFO"),
        ("lost:1:6", "NCCL: remote process exited"),
        ("skip:1:5", "all ranks must make the same calls in the same order"),
        ("flip:1:5", "after step 1", "those of rank 1 differ"),
    ):
        changes = dict(zero=0, check_every=1, timeout=20)
        faulty = {1: dict(EMU_NCCL_FAULT=fault)}
        fails(Ranks(t, 2, words(t, out=fault, **changes), faulty), PROCESS, *says)


@test("nccl: processes that do not come: --timeout ends the others, who say where they looked")
def nobody_there(t):
    options = words(t, timeout=2)
    says = ["rank 1 and 0 more have not come", "(--timeout)"]
    fails(Ranks(t, 3, options, start=[0, 2]), PROCESS, *says)
    says = ["has not found rank 0 at 127.0.0.1", "(--timeout)"]
    fails(Ranks(t, 2, options, start=[1]), PROCESS, *says)
    elsewhere = {1: dict(WORLD_SIZE="3")}
    fails(Ranks(t, 2, options, elsewhere), USAGE, "WORLD_SIZE is 2 for rank 0 and 3 for rank 1")
    check(not os.path.exists(t.path("run")), "a run directory was made")


@test("nccl: a variable that is missing or cannot be is named, once, with exit code 2")
def variables(t):
    options = words(t)
    wrong = [(name, None) for name in VARIABLES]
    wrong += [("LOCAL_RANK", "2"), ("MASTER_PORT", "0"), ("WORLD_SIZE", "two")]
    started = [Ranks(t, 2, options, {r: {k: v} for r in range(2)}) for k, v in wrong]
    for ranks, (name, value) in zip(started, wrong):
        if name == "RANK":  # nobody knows who is first
            codes, err = ranks.wait()
            same(codes, [USAGE] * 2, f"exit codes ({err})")
            same(err.count("error: RANK is not set"), 2, f"errors in {err}")
        else:
            fails(ranks, USAGE, f"{name}={value}: " if value else f"{name} is not set")
    check(not os.path.exists(t.path("run")), "a run directory was made")


@test("nccl: two processes on one GPU are refused; --share-gpu allows it without NCCL alone")
def one_gpu(t):
    one = {rank: dict(EMU_GPUS="1") for rank in range(2)}
    fails(Ranks(t, 2, words(t), one), USAGE, "2 or more processes", "1 GPU:", "--share-gpu")
    shown = {rank: dict(EMU_GPUS="1", CUDA_VISIBLE_DEVICES="0") for rank in range(2)}
    says = ["ranks 0 and 1 on", "have the same GPU, GPU-00000000-0000-0000-0000-000000000001"]
    fails(Ranks(t, 2, words(t), shown), USAGE, *says)
    fails(Ranks(t, 2, words(t, share_gpu=True), one), USAGE, *says, "NCCL=0 MPI=1")
    popen = dict(env=environment(EMU_GPUS="1"))
    launch = [*mpirun(t), "-np", "2"]
    options = dict(SHORT, steps=1, trainer=program(t, "mpi1"), launch=launch, popen=popen)
    t.train(out="shared", share_gpu=True, **options)
    t.train(code=USAGE, says="--share-gpu", **options)
    popen["env"]["CUDA_VISIBLE_DEVICES"] = "0"
    t.train(code=USAGE, says="have the same GPU", **options)
    check(b'"kind":"train"' in read(t.path("shared/log.jsonl")), "nothing was trained")
