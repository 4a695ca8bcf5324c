"""Tests of the data tools from the outside: text -> shards and manifest -> text, whatever the text,
the number of threads and the interruptions. They make their own text and use no network.

    check_tokenize.py [--list] [--filter TEXT] [--jobs N]

c4_tokenize and shard_tool are looked for in build/bin. Ends with a line "N passed, N failed[, N
skipped]"; exit code 0: all passed, 1: some failed."""

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

import tokenize_kit
import tokenize_text  # noqa: F401  (imported for the tests they register)
import tokenize_options  # noqa: F401
import tokenize_resume  # noqa: F401
import tokenize_tool  # noqa: F401
from tokenize_kit import SHARD_TOOL, TESTS, TOKENIZE, Context, Failure, Shared, Skip


def run_test(shared, index, function):
    """(verdict, message)"""
    context = Context(shared, os.path.join(shared.root, str(index)))
    try:
        function(context)
        return "ok", ""
    except Skip as reason:
        return "skipped", str(reason)
    except Failure as failure:
        kits = ("tokenize_kit.py", "system_kit.py")
        place = traceback.extract_tb(failure.__traceback__)
        own = [f for f in place if not f.filename.endswith(kits)][-1]
        return "FAILED", f"{os.path.basename(own.filename)}:{own.lineno}: {failure}"
    except subprocess.TimeoutExpired as late:
        return "FAILED", f"no end after {late.timeout:.0f} s: {late.cmd}"
    except Exception:
        return "FAILED", traceback.format_exc()
    finally:
        context.close()


def run_all(shared, chosen, jobs):
    counts = {"ok": 0, "FAILED": 0, "skipped": 0}
    lock = threading.Lock()

    def one(numbered):
        index, (name, function) = numbered
        begin = time.monotonic()
        verdict, message = run_test(shared, index, function)
        with lock:
            counts[verdict] += 1
            print(f"{name:<88} {verdict} {time.monotonic() - begin:7.2f} s", flush=True)
            for line in message.splitlines():
                print(f"    {line}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, enumerate(chosen)))
    return counts


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].strip())
    parser.add_argument("--filter", default="")
    parser.add_argument("--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = [each for each in TESTS if args.filter in each[0]]
    if args.list:
        print("\n".join(name for name, _ in chosen))
        return 0
    if not chosen:
        sys.exit(f"error: no test name contains {args.filter!r}")
    for program in (TOKENIZE, SHARD_TOOL):
        if not os.path.exists(program):
            print(f"skipped: {os.path.relpath(program)} is not built (make tools)")
            print(f"0 passed, 0 failed, {len(chosen)} skipped")
            return 0
    root = tempfile.mkdtemp(prefix="laser_tokenize_")
    try:
        counts = run_all(Shared(root), chosen, args.jobs)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"{counts['ok']} passed, {counts['FAILED']} failed{skipped}")
    return 1 if counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
