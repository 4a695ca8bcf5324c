"""System tests: promises that only whole runs of the trainer can keep. They write their own tiny
shards, use no network and leave nothing behind.

    system.py [--list] [--filter TEXT] [--jobs N] TRAINER...

TRAINER: train_gpt programs, best one of each attention; shard_tool is looked for in build/bin.
Ends with a line "N passed, N failed[, N skipped]"; exit code 0: all passed, 1: some failed, 2:
usage."""

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import stop_at
import system_kit
import system_resume  # noqa: F401  (imported for the tests they register)
import system_equal  # noqa: F401
import system_refuse  # noqa: F401
import system_input  # noqa: F401
import system_data  # noqa: F401
import system_runs  # noqa: F401
import system_modifiers  # noqa: F401
import system_generate  # noqa: F401
import system_processes  # noqa: F401
import system_nccl  # noqa: F401
import system_zero  # noqa: F401
import system_parallel  # noqa: F401
import system_hosts  # noqa: F401
from system_kit import Context, Failure, Skip

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SANITIZED_PATIENCE = 8  # an instrumented program is up to this much slower


class Suite:
    """What all tests share."""

    def __init__(self, programs, root):
        self.trainers, self.root, self.data = {}, root, os.path.join(root, "data")
        for program in programs:
            path = os.path.abspath(program)
            said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            if ", attention " not in said:
                sys.exit(f"error: {program} is not a trainer: --version says {said!r}")
            self.trainers[said.split(", attention ")[1].split(",")[0]] = path
        self.tool = os.path.join(TOP, "build/bin/shard_tool")
        sanitized = any(
            "-san" in path or b"__asan_init" in system_kit.read(path)
            for path in self.trainers.values()
        )
        self.patience = SANITIZED_PATIENCE if sanitized else 1
        self.stop_at, self.no_stop_at = stop_at.build(root)
        system_kit.write_data(self.data)


def cases(suite, text):
    """(name, trainer, function) of every test whose name contains text."""
    found = []
    for name, each, function in system_kit.TESTS:
        trainers = list(suite.trainers.items())
        for attention, trainer in trainers if each else trainers[:1]:
            full = f"{name} [{attention}]" if each else name
            if text in full:
                found.append((full, trainer, function))
    return found


def run_case(suite, index, case):
    """(verdict, seconds, message)"""
    _, trainer, function = case
    begin = time.monotonic()
    context = Context(suite, trainer, os.path.join(suite.root, str(index)))
    verdict, message = "ok", ""
    try:
        function(context)
    except Skip as reason:
        verdict, message = "skipped", str(reason)
    except Failure as failure:
        place = traceback.extract_tb(failure.__traceback__)
        own = [f for f in place if not f.filename.endswith("system_kit.py")][-1]
        verdict, message = "FAILED", f"{os.path.basename(own.filename)}:{own.lineno}: {failure}"
    except subprocess.TimeoutExpired as late:
        verdict, message = "FAILED", f"no end after {late.timeout:.0f} s: {late.cmd}"
    except Exception:
        verdict, message = "FAILED", traceback.format_exc()
    finally:
        context.close()
    return verdict, time.monotonic() - begin, message


def run_all(suite, chosen, jobs):
    counts = {"ok": 0, "FAILED": 0, "skipped": 0}
    lock = threading.Lock()

    def one(numbered):
        verdict, seconds, message = run_case(suite, *numbered)
        with lock:
            counts[verdict] += 1
            print(f"{numbered[1][0]:<96} {verdict} {seconds:7.2f} s", flush=True)
            for line in message.splitlines():
                print(f"    {line}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, enumerate(chosen)))
    return counts


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].strip())
    parser.add_argument("trainers", nargs="+")
    parser.add_argument("--filter", default="")
    parser.add_argument("--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    # OpenMPI keeps memory until the end; leaks are looked for in the unit tests, which do not
    # start it
    os.environ.setdefault("ASAN_OPTIONS", "detect_leaks=0")
    os.environ["OMP_WAIT_POLICY"] = (
        "passive"  # two runs at a time: waiting threads must not take cores
    )
    root = tempfile.mkdtemp(prefix="laser_system_")
    try:
        os.chmod(root, 0o755)  # one test runs as another user
        suite = Suite(args.trainers, root)
        chosen = cases(suite, args.filter)
        if args.list:
            print("\n".join(name for name, _, _ in chosen))
            return 0
        if not chosen:
            sys.exit(f"error: no test name contains {args.filter!r}")
        counts = run_all(suite, chosen, args.jobs)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"{counts['ok']} passed, {counts['FAILED']} failed{skipped}")
    return 1 if counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
