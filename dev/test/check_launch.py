"""Checks the launchers: mpirun.sh, torchrun_like.sh, srun.sh and slurm.sbatch start what they
should, hand on signals, end together, report the exit code of the first failure, and put a run back
into Slurm's queue when it has saved because its time is over, and only then. Slurm, GPUs and mpirun
are stand-ins, small scripts at the head of PATH; where the trainer is built with MPI, it runs under
the real mpirun, too. Each promise is tried with a planted fault in a copy of the scripts.

    check_launch.py [NAME...]     (all checks when none is named)

Exit code 0: all as promised; 1: something is not."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from system_kit import checkpoints, records, tokens_like_text, write_shard

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FAILURES = []
SECONDS = 60  # nothing here takes as long; a planted fault may be that nothing ends
SECONDS_PLANTED = 4
USR1 = 128 + signal.SIGUSR1
TINY = (
    "--layers 1 --d-model 32 --d-ff 64 --heads 2 --head-dim 16 --vocab 61 --seq-len 16 --batch 4 "
    "--total-batch 128 --warmup 2 --val-every 0 --save-every 0 --threads 1 --quiet"
).split()
WAIT = 'while :; do sleep 0.05; done'
# Programs that a launcher starts: they say "up", then save as the trainer does, or end badly
SAVES = f'#!/bin/bash\ntrap "echo saved; exit {USR1}" USR1\ntrap "exit 9" TERM\necho up\n{WAIT}\n'
FULL = f'#!/bin/bash\ntrap "exit 4" USR1\necho up\n{WAIT}\n'
SHOWS = (
    "#!/bin/bash\necho $RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT "
    "$OMP_NUM_THREADS\n"
)
GPU_PROGRAM = '#!/bin/bash\n[ "$1" != --version ] || echo "attention laser, backend cuda"\n'
# srun and mpirun leave out their own options and become the program; what they were told is kept
STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >>"$CALLS"
case "$*" in *--mpi=list*) echo "$MPI_LIST"; exit 0 ;; esac
while [ $# -gt 0 ]; do
    case $1 in
        --map-by | --bind-to | --hostfile | -x) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$CALLS"
case $1 in show) printf 'node7\\nnode8\\n' ;; esac
"""
NVIDIA_SMI = "#!/bin/bash\nprintf 'GPU %s: H100\\n' 0 1 2 3\n"


def check(condition, what):
    if not condition:
        FAILURES.append(what)
    return condition


class Bench:
    """A directory with a copy of the scripts, the stand-ins and the programs."""

    def __init__(self, root, seconds):
        self.root, self.calls, self.seconds = root, os.path.join(root, "calls"), seconds
        shutil.copytree(os.path.join(TOP, "scripts"), self.path("scripts"))
        os.mkdir(self.path("bin"))
        for name, text in (
            ("bin/srun", STAND_IN),
            ("bin/mpirun", STAND_IN),
            ("bin/scontrol", SCONTROL),
            ("bin/nvidia-smi", NVIDIA_SMI),
            ("saves", SAVES),
            ("full", FULL),
            ("shows", SHOWS),
            ("gpu_program", GPU_PROGRAM),
        ):
            self.write(name, text)
        for attention in ("laser", "standard"):
            program = f"train_gpt_{attention}"
            os.symlink(os.path.join(TOP, program), self.path(program))

    def path(self, name):
        return os.path.join(self.root, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(self.path(name), 0o755)

    def called(self):
        """What the stand-ins were called with, since the last time."""
        if not os.path.exists(self.calls):
            return ""
        with open(self.calls, encoding="utf-8") as f:
            text = f.read()
        os.remove(self.calls)
        return text

    def start(self, *command, real=False, **variables):
        """real: with the machine's own mpirun."""
        ours = ("SLURM_", "OMPI_", "PMI", "OMP_", "CUDA_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL")
        others = ("PROCESSES", "HOSTS", "BIND", "PASS", "LAUNCHER", "PRECISION", "OUT", "PLAN")
        env = {
            k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in others
        }
        if not real:
            env["PATH"] = self.path("bin") + ":" + env["PATH"]
        env.update(CALLS=self.calls, MPI_LIST="none pmix", OMP_WAIT_POLICY="passive")
        env.update({k: str(v) for k, v in variables.items()})
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        process.timer = threading.Timer(self.seconds, self.late, [process])
        process.timer.start()
        return process

    def late(self, process):
        FAILURES.append(f"no end after {self.seconds} s: {process.args}")
        self.seconds = 1  # it has failed: what follows is not waited for as long
        self.kill_all()

    def kill_all(self):
        """Whatever was started here has the path of our calls in its environment."""
        mine = f"\0CALLS={self.calls}\0".encode()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/environ", "rb") as f:
                    ours = mine in b"\0" + f.read()
                if ours:
                    os.kill(int(entry), signal.SIGKILL)
            except OSError:  # it has ended, or is another's
                continue

    def end(self, process):
        """(exit code, stdout, stderr)"""
        out, err = process.communicate()
        process.timer.cancel()
        return process.returncode, out, err

    def run(self, *command, **variables):
        return self.end(self.start(*command, **variables))

    def signalled(self, command, signals, ups=1, **variables):
        """Starts, sends the signals when so many programs are up, and waits for the end."""
        process = self.start(*command, **variables)
        for _ in range(ups):
            process.stdout.readline()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)  # two at once are one
        return self.end(process)


# ---- mpirun.sh ---------------------------------------------------------------------------------


def check_mpirun(b):
    mpirun = b.path("scripts/mpirun.sh")
    code, out, _ = b.run(mpirun, "sh", "-c", "echo alone; exit 3")
    check((code, out, b.called()) == (3, "alone\n", ""), "mpirun.sh: one process without a GPU")
    b.run(mpirun, b.path("gpu_program"))
    check("ppr:4:node" in b.called(), "mpirun.sh: not a process for each of 4 GPUs")
    b.run(mpirun, b.path("gpu_program"), CUDA_VISIBLE_DEVICES="1,3")
    check("ppr:2:node" in b.called(), "mpirun.sh: CUDA_VISIBLE_DEVICES is not respected")
    code, _, _ = b.run(mpirun, "sh", "-c", "exit 5", PROCESSES=2)
    check(code == 5, f"mpirun.sh: exit code {code}, want 5")
    cores = len(os.sched_getaffinity(0))
    words = b.called()
    want = f"ppr:2:node:PE={cores // 2} --bind-to hwthread" if cores > 1 else "--bind-to none"
    check(want in words, f"mpirun.sh: no {want} in {words}")
    b.write("hosts", "a\nb\n")
    b.run(mpirun, "true", HOSTS="hosts", BIND="none", PASS="MINE", MINE="1", NCCL_DEBUG="INFO")
    words = b.called()
    for want in ("--hostfile hosts", "--bind-to none", "-x MINE", "-x NCCL_DEBUG"):
        check(want in words, f"mpirun.sh: no {want} in {words}")
    for variables in ({"PROCESSES": "many"}, {"PROCESSES": "0"}, {"HOSTS": "nowhere"}):
        code, _, err = b.run(mpirun, "true", **variables)
        check(code == 2 and "error: " in err, f"mpirun.sh: {variables}: {code} {err}")
    check(b.run(mpirun)[0] == 2, "mpirun.sh: nothing to start, and no error")


def check_mpirun_signals(b):
    command = [b.path("scripts/mpirun.sh"), b.path("saves")]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        code, out, err = b.signalled(command, [number], PROCESSES=2)
        check("saved" in out, f"mpirun.sh: upon {number.name} nothing was saved: {err}")
        check(code == 128 + number, f"mpirun.sh: exit code {code} upon {number.name}")
    b.write("slow", f'#!/bin/bash\ntrap : USR1\ntrap "exit 9" TERM\necho up\n{WAIT}\n')
    command = [b.path("scripts/mpirun.sh"), b.path("slow")]
    code, _, _ = b.signalled(command, [signal.SIGINT, signal.SIGINT], PROCESSES=2)
    check(code == 9, f"mpirun.sh: exit code {code} upon a second Ctrl-C")


# ---- torchrun_like.sh --------------------------------------------------------------------------


def check_torchrun(b):
    torchrun = b.path("scripts/torchrun_like.sh")
    _, out, _ = b.run(torchrun, "--nproc_per_node=2", b.path("shows"), OMP_NUM_THREADS=3)
    lines = sorted(out.splitlines())
    port = lines[0].split()[3] if lines else "?"
    want = [f"{i}/2 {i}/2 127.0.0.1 {port} 3" for i in (0, 1)]
    check(lines == want, f"torchrun_like.sh: {lines}, want {want}")
    options = "--nproc-per-node 2 --nnodes 3 --node-rank 1 --master-addr h --master-port 77".split()
    _, out, _ = b.run(torchrun, *options, b.path("shows"), OMP_NUM_THREADS=3)
    want = [f"{2 + i}/6 {i}/2 h 77 3" for i in (0, 1)]
    check(sorted(out.splitlines()) == want, f"torchrun_like.sh: {out}, want {want}")
    for options in (
        ["--bogus", "1"],
        ["--nproc-per-node", "x"],
        ["--nnodes", "2"],
        ["--node-rank", "1"],
        ["--master-port", "70000"],
        ["--nnodes"],
    ):
        code, _, err = b.run(torchrun, *options, b.path("shows"))
        check(code == 2 and "error: " in err, f"torchrun_like.sh: {options}: {code} {err}")


def check_torchrun_ends(b):
    command = [b.path("scripts/torchrun_like.sh"), "--nproc-per-node", "3"]
    b.write("fails", f"#!/bin/bash\n[ $RANK != 1 ] || exit 5\n{WAIT}\n")
    begin = time.monotonic()
    code, _, err = b.run(*command, b.path("fails"))
    check((code, err) == (5, ""), f"torchrun_like.sh: {code} {err} where one ends with 5")
    b.write("dies", f"#!/bin/bash\n[ $RANK != 1 ] || kill -9 $$\n{WAIT}\n")
    code, _, err = b.run(*command, b.path("dies"))
    says = "error: rank 1 was ended by signal 9\n"
    check((code, err) == (137, says), f"torchrun_like.sh: {code} {err} where one is killed")
    check(time.monotonic() - begin < 20, "torchrun_like.sh: the others are not ended at once")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        code, out, _ = b.signalled([*command, b.path("saves")], [number], ups=3)
        check(out.count("saved") == 3, f"torchrun_like.sh: upon {number.name} not all saved")
        check(code == 128 + number, f"torchrun_like.sh: exit code {code} upon {number.name}")


def check_torchrun_refused(b):
    """A trainer that cannot meet that way says so once and begins nothing."""
    command = [b.path("scripts/torchrun_like.sh"), "--nproc-per-node", "2"]
    linked = subprocess.run(["ldd", b.path("train_gpt_laser")], capture_output=True, text=True)
    if "libnccl" in linked.stdout:
        return
    code, _, err = b.run(*command, "./train_gpt_laser", "--train", "x", "--out", "refused")
    check(code == 2, f"torchrun_like.sh: exit code {code} of a build that cannot meet: {err}")
    check(err.count("error: ") == 1 and "started 2 processes" in err, f"torchrun_like.sh: {err}")
    check(not os.path.exists(b.path("refused")), "torchrun_like.sh: a run was begun")


# ---- Slurm -------------------------------------------------------------------------------------


def slurm(b, **more):
    return dict(
        SLURM_JOB_ID="4711", SLURM_JOB_NODELIST="node[7-8]", SLURM_SUBMIT_DIR=b.root,
        SLURM_NTASKS="8", SLURM_TASKS_PER_NODE="4(x2)", SLURM_CPUS_PER_TASK="3", **more
    )  # fmt: skip


def check_srun(b):
    srun, task = b.path("scripts/srun.sh"), dict(SLURM_PROCID="5", SLURM_LOCALID="1")
    _, out, err = b.run(srun, b.path("shows"), **slurm(b, **task))
    want = f"5/8 1/4 node7 {20000 + 4711} 3\n"
    check(out == want, f"srun.sh: {out!r}, want {want!r} ({err})")
    b.called()
    linked = subprocess.run(["ldd", b.path("train_gpt_laser")], capture_output=True, text=True)
    if "libmpi" in linked.stdout:
        b.run(srun, "./train_gpt_laser", "--version", **slurm(b))
        words = b.called()
        check("srun --kill-on-bad-exit=0 --mpi=pmix ./train" in words, f"srun.sh: {words}")
        _, _, err = b.run(srun, "./train_gpt_laser", "--version", MPI_LIST="none pmi2", **slurm(b))
        words = b.called()
        check("\nmpirun " in words and "no PMIx" in err, f"srun.sh without PMIx: {words}")
    code, _, err = b.run(srun, "true")
    check(code == 2 and "no job of Slurm's" in err, f"srun.sh outside of Slurm: {code} {err}")


def check_queue(b):
    """What goes back into the queue, and what does not."""
    batch, again = ["bash", b.path("scripts/slurm.sbatch")], "scontrol requeue 4711\n"
    for program, signals, after, code_wanted, queued in (
        ("exit 0", [], 0, 0, False),
        ("exit 5", [], 0, 5, False),
        ("exit 6", [], 0, 0, True),
        ("kill -9 $$", [], 0, 0, True),
        ("exit 6", [], 60, 6, False),
        (b.path("saves"), [signal.SIGUSR1], 0, 0, True),
        (b.path("saves"), [signal.SIGUSR1], 60, USR1, False),
        (b.path("full"), [signal.SIGUSR1], 0, 4, False),
    ):
        command = [program] if program.startswith("/") else ["bash", "-c", program]
        variables = slurm(b, REQUEUE_AFTER=after)
        b.called()
        ups = 2 if signals else 0  # the heading, and the program
        code, out, err = b.signalled([*batch, *command], signals, ups=ups, **variables)
        words = b.called()
        what = f"slurm.sbatch: {program}, {len(signals)} signals, within {after} s"
        check(code == code_wanted, f"{what}: exit code {code}, want {code_wanted}: {out}{err}")
        check((again in words) == queued, f"{what}: {'not ' * queued}queued again: {words}")
    check(b.run(*batch, "true")[0] != 0, "slurm.sbatch: runs outside of Slurm")
    check(b.run(*batch, **slurm(b))[0] == 2, "slurm.sbatch: no command, and no error")


def write_data(b):
    for split, count in (("train", 64 * 16 + 1), ("val", 320 + 1)):
        tokens = tokens_like_text(count, 1, 61)
        write_shard(b.path(f"x_{split}_000000.bin"), tokens, vocab=61)


def is_training(out):
    """Whether the log has the record of a step, so that the signal's handler is there."""
    try:
        return bool(records(out, "train"))
    except (OSError, ValueError):
        return False


def trained(b, command, steps, number=None, **variables):
    """Trains a tiny model by a train_*.sh; sends the signal when it trains."""
    options = [*TINY, "--steps", str(steps), "--schedule", "constant"]
    variables = dict(variables, MODEL="tiny", DATA=b.root, OUT=b.path("run"))
    process = b.start(*command, *options, **variables)
    end = time.monotonic() + SECONDS
    while number and not is_training(b.path("run")) and time.monotonic() < end:
        time.sleep(0.05)
    if number:
        process.send_signal(number)
    return b.end(process)


def check_resumed(b):
    """A run of train_301M.sh in the queue: saved before the end of its time, queued, finished."""
    write_data(b)
    command = ["bash", b.path("scripts/slurm.sbatch"), "scripts/train_301M.sh"]
    variables = slurm(b, REQUEUE_AFTER=0)
    code, out, err = trained(b, command, 1000000, signal.SIGUSR1, **variables)
    check(code == 0 and "requeue 4711" in b.called(), f"slurm.sbatch: {code} {out}{err}")
    saved = checkpoints(b.path("run"))
    if not check(len(saved) == 1, f"slurm.sbatch: checkpoints before the end: {saved} {err}"):
        return
    steps = int(saved[0][5:]) + 2
    code, out, err = trained(b, command, steps, SLURM_RESTART_COUNT=1, **variables)
    check(code == 0 and "start 2" in out and "finished" in out, f"slurm.sbatch: {out}{err}")
    last = checkpoints(b.path("run"))[-1]
    check(last == f"step_{steps:08d}", f"slurm.sbatch: last checkpoint {last}, want {steps}")


def check_real(b):
    """The real mpirun: all save upon SIGTERM, and the exit code is that of the signal."""
    trainer = b.path("train_gpt_laser")
    linked = subprocess.run(["ldd", trainer], capture_output=True, text=True).stdout
    version = subprocess.run([trainer, "--version"], capture_output=True, text=True).stdout
    if "libmpi" not in linked or "backend cpu" not in version or not shutil.which("mpirun"):
        print("check_launch: not tried: the real mpirun, which needs BACKEND=cpu MPI=1")
        return
    write_data(b)
    command = [b.path("scripts/train_301M.sh")]
    variables = dict(real=True, PROCESSES=2, BIND="none")
    code, _, err = trained(b, command, 1000000, signal.SIGTERM, **variables)
    check(code == 128 + signal.SIGTERM, f"mpirun.sh: exit code {code} of a run that is stopped")
    check("error" not in err, f"mpirun.sh: {err}")
    last = records(b.path("run"), "train")[-1]["step"]
    got = checkpoints(b.path("run"))
    check(got == [f"step_{last:08d}"], f"mpirun.sh: checkpoints {got} after step {last}")


CHECKS = {
    "mpirun": check_mpirun,
    "mpirun_signals": check_mpirun_signals,
    "torchrun": check_torchrun,
    "torchrun_ends": check_torchrun_ends,
    "torchrun_refused": check_torchrun_refused,
    "srun": check_srun,
    "queue": check_queue,
    "resumed": check_resumed,
    "real": check_real,
}
# (check, script, text, what stands there instead): the check must fail
PLANTED = [
    ("mpirun", "processes.sh", "count=$(tr ',' '\\n'", "count=$(tr ';' '\\n'"),
    ("mpirun_signals", "processes.sh", "caught=$1 signal=USR1", "caught=$1"),
    ("torchrun", "torchrun_like.sh", "node * processes + i", "node + i"),
    ("torchrun_ends", "processes.sh", "first=$status failed", "failed"),
    ("srun", "srun.sh", "SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}", "SRUN_CPUS_PER_TASK=1"),
    ("queue", "slurm.sbatch", "*-[2345]", "*-[235]"),
    ("queue", "slurm.sbatch", "kill -s USR1", "kill -s CONT"),
]


def run(name, change=None):
    with tempfile.TemporaryDirectory(prefix="laser_launch_") as root:
        bench = Bench(root, SECONDS_PLANTED if change else SECONDS)
        if change:
            script, old, new = change
            path = bench.path(f"scripts/{script}")
            with open(path, encoding="utf-8") as f:
                text = f.read()
            if not check(text.count(old) == 1, f"{script}: {old!r} is not there once"):
                return
            bench.write(f"scripts/{script}", text.replace(old, new))
        try:
            CHECKS[name](bench)
        finally:
            bench.kill_all()


def main():
    # what a job in the background ignores, its children would ignore too, and no shell can trap
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = sys.argv[1:] or list(CHECKS)
    for name in names:
        begin = time.monotonic()
        run(name)
        print(f"{name:<20} {time.monotonic() - begin:6.1f} s", flush=True)
    found = list(FAILURES)
    for name, *change in PLANTED:
        FAILURES.clear()
        if name in names:
            run(name, change)
            if not FAILURES:
                found.append(f"a planted fault goes unnoticed: {name}: {change}")
    for what in found:
        print(f"FAILED: {what}")
    print(f"check_launch: {f'{len(found)} failures' if found else 'launchers as promised'}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
