"""Two machines: two network namespaces of this one, each with its name and address, joined by a
cable (a veth pair) that can be pulled. mpirun starts processes on both, and all they say to each
other, MPI's words and ours, goes over that cable. Where the machine does not allow for it, the
tests are skipped and say why.

Each namespace is held by a process that ends when its input does: whatever becomes of the test,
nothing of the two machines is left."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

from system_kit import (
    Skip,
    check,
    check_same_run,
    checkpoints,
    linked,
    logged,
    mpirun,
    newest,
    same,
    test,
    write,
)
from system_processes import ERROR, SHARED

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NETWORK = "192.0.2"  # set aside for examples: no network of anybody
TIMEOUT = 4  # seconds for --timeout, times t.patience; a step takes milliseconds, here up to 0.5 s
TOOLS = ("unshare", "nsenter", "ip")


def must(command, why):
    """Runs a command; skips the test where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"{why}: {' '.join(command)}: {done.stderr.strip()[:300]}")


class Host:
    """A machine: names of its own for network and host, and for processes, so that all of them
    end with the first, the holder."""

    def __init__(self, name):
        self.name = name
        hold = "hostname " + name + " && ip link set lo up && echo held && exec cat"
        command = ["unshare", "--net", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", hold]
        self.holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if self.holder.stdout.readline() != b"held\n":
            raise Skip(f"no namespaces here: {self.close().decode(errors='replace').strip()[:300]}")

    def within(self, *kinds):
        """The words before a command that is to run there."""
        of = f"/proc/{self.holder.pid}/ns/"
        files = {"net": "net", "uts": "uts", "pid": "pid_for_children"}
        return ["nsenter", *(f"--{kind}={of}{files[kind]}" for kind in kinds)]

    def ip(self, *words):
        must([*self.within("net"), "ip", *words], "no network there")

    def close(self):
        """What the holder said on stderr."""
        self.holder.kill()
        return self.holder.communicate()[1]


class Pair:
    """Two machines. mpirun runs on the first, but is a process of ours, to be ended as such."""

    def __init__(self, t, stack):
        self.t, self.hosts = t, []
        for i in (1, 2):
            self.hosts.append(Host(f"host{i}-{os.getpid()}"))
            stack.callback(self.hosts[-1].close)
        pids = [str(host.holder.pid) for host in self.hosts]
        cable = ["eth0", "netns", pids[0], "type", "veth", "peer", "name", "eth0", "netns", pids[1]]
        must(["ip", "link", "add", *cable], "no veth pair")
        for i, host in enumerate(self.hosts):
            host.ip("address", "add", f"{NETWORK}.{i + 1}/24", "dev", "eth0")
            host.ip("link", "set", "eth0", "up")
        # what mpirun calls in place of ssh, with a host's name and a command
        there = " ".join(self.hosts[1].within("net", "uts", "pid"))
        write(t.path("agent"), f'#!/bin/sh\nshift\nexec {there} sh -c "$*"\n'.encode())
        os.chmod(t.path("agent"), 0o755)
        os.makedirs(t.path("session"), exist_ok=True)

    def launch(self, each):
        """The words before a program of which each machine runs so many processes."""
        parameters = {
            "plm_rsh_agent": self.t.path("agent"),
            # what a killed process leaves goes with the test
            "orte_tmpdir_base": self.t.path("session"),
            "btl_vader_backing_directory": self.t.path("session"),
        }
        words = [*self.hosts[0].within("net", "uts"), *mpirun(self.t)]
        words += ["--host", ",".join(f"{host.name}:{each}" for host in self.hosts)]
        for name, value in parameters.items():
            words += ["--mca", name, value]
        return words


@contextlib.contextmanager
def two_hosts(t):
    if "libmpi" not in linked(t):
        raise Skip("this trainer was built with MPI=0")
    if os.geteuid() != 0:
        raise Skip("two network namespaces need root")
    for tool in TOOLS:
        if not shutil.which(tool):
            raise Skip(f"{tool} is not installed (Debian: util-linux, iproute2)")
    with contextlib.ExitStack() as stack:
        yield Pair(t, stack)


def fault(t):
    library, source = t.path("at_split.so"), os.path.join(TOP, "dev/test/faults/at_split.c")
    done = t.call(["mpicc", "-shared", "-fPIC", "-O1", "-o", library, source])
    if done.code:
        raise Skip(f"{source} cannot be compiled: {done.err.strip()[:300]}")
    return library


def local_ranks(t, launch, **changes):
    """Trains; what each process was told of the others on its machine, sorted."""
    sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    preload = ["-x", f"LD_PRELOAD={fault(t)}", "-x", f"ASAN_OPTIONS={sanitizer}"]
    done = t.train(launch=[*launch, *preload], **changes)
    return sorted(line for line in done.err.splitlines() if line.startswith("local "))


@test("hosts: 2 processes on each of 2 machines train as 4 on one, bit for bit")
def two_by_two(t):
    changes = dict(SHARED, total_batch=256, steps=12)  # what 4 processes can divide
    with two_hosts(t) as pair:
        got = local_ranks(t, pair.launch(2), out="two", **changes)
        same(got, ["local 0 of 2"] * 2 + ["local 1 of 2"] * 2, "local ranks on two machines")
    got = local_ranks(t, [*mpirun(t), "-np", "4"], out="one", **changes)
    same(got, [f"local {i} of 4" for i in range(4)], "local ranks on one machine")
    check_same_run(t.path("one"), t.path("two"))


@test("hosts: a cable that is pulled ends the run after --timeout, said once; it can go on")
def pulled(t):
    changes = dict(SHARED, steps=1000000, save_every=5, val_every=0, schedule="constant")
    limit = TIMEOUT * t.patience
    with two_hosts(t) as pair:
        process = subprocess.Popen(
            [*pair.launch(1), t.trainer, *t.options(dict(changes, timeout=limit))],
            cwd=t.dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        t.started.append(process)
        t.wait_for(lambda: checkpoints(t.path("run")), process, "a checkpoint")
        begin = time.monotonic()
        pair.hosts[1].ip("link", "set", "eth0", "down")
        code, said = t.wait(process, 60)
        took = time.monotonic() - begin
    check(code != 0, f"exit code 0 ({said})")
    same(len(ERROR.findall(said)), 1, f"errors in what was said: {said}")
    print("CODE", code, took, said)


# unused so far
_ = (signal, logged, newest)
