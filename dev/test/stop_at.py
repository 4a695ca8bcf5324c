"""Ends a program as kill -9 does at a moment that is counted, not timed (faults/stop_at.c), and
builds what else is loaded into programs to fail: for tests that have to fail or pass alike however
busy the machine is."""

import os
import signal
import subprocess

FAULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "faults")


def build(folder, name="stop_at"):
    """(path of the library, None) or (None, why there is none)."""
    library, source = os.path.join(folder, f"{name}.so"), os.path.join(FAULTS, f"{name}.c")
    command = [os.environ.get("CC", "cc"), "-D_GNU_SOURCE", "-shared", "-fPIC", "-O1", source]
    try:
        done = subprocess.run([*command, "-o", library, "-ldl"], capture_output=True)
    except OSError as error:
        return None, f"{source} cannot be compiled: {error}"
    if done.returncode != 0:
        return None, f"{source} cannot be compiled: {done.stderr.decode(errors='replace')}"
    return library, None


def environment(library, moment):
    """moment: STOP_AT=n or STOP_AT_WRITE=n, as faults/stop_at.c has them."""
    # AddressSanitizer wants to be the first library of a program
    sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    words = {name: str(value) for name, value in moment.items()}
    return {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": sanitizer, **words}


def was_stopped(returncode):
    return returncode == -signal.SIGKILL
