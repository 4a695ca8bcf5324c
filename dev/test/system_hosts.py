"""Two machines: two network namespaces of this one, each with its name and address, joined by a
cable (a veth pair) that can be pulled. scripts/mpirun.sh starts processes on both, and all they say
to each other, MPI's words and ours, goes over that cable. Where the machine does not allow for it,
the tests are skipped and say why.

A namespace is held by a process that ends when its input does, and whatever runs in it ends with
it: whatever becomes of the test, nothing of the two machines is left."""

import contextlib
import os
import shutil
import subprocess
import time

from system_kit import Skip, check, check_same_run, checkpoints, linked, mpirun, read, same
from system_kit import test, write
from system_processes import LONG, SHARED, check_once, goes_on

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NETWORK = "192.0.2"  # set aside for examples: no network of anybody
TOOLS = ("unshare", "nsenter", "ip")
NEVER = 100  # seconds: longer than any of these tests


def must(command, why):
    """Runs a command; skips the test where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"{why}: {' '.join(command)}: {done.stderr.strip()[:300]}")


class Host:
    """A machine: namespaces for network, name and processes. Those of the second lie within those
    of the first, from where mpirun has to enter them."""

    def __init__(self, name, outer=None):
        self.name = name
        hold = "hostname " + name + " && ip link set lo up && echo held && exec cat"
        command = ["unshare", "--net", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", hold]
        self.holder = subprocess.Popen(
            [*(outer.within("pid") if outer else ()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if self.holder.stdout.readline() != b"held\n":
            raise Skip(f"no namespaces here: {self.close().decode(errors='replace').strip()[:300]}")
        self.pid = self.holder.pid
        if outer:  # that one is nsenter, which waits for it
            self.pid = int(read(f"/proc/{self.pid}/task/{self.pid}/children").split()[0])

    def within(self, *kinds):
        """The words before a command that is to run there."""
        files = {"net": "net", "uts": "uts", "pid": "pid_for_children"}
        return ["nsenter", *(f"--{kind}=/proc/{self.pid}/ns/{files[kind]}" for kind in kinds)]

    def ip(self, *words):
        must([*self.within("net"), "ip", *words], "no network there")

    def runs(self, program):
        """How many processes there run a program."""
        count, network = 0, os.readlink(f"/proc/{self.pid}/ns/net")
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # it has ended
                here = os.readlink(f"/proc/{entry}/ns/net") == network
                count += here and os.readlink(f"/proc/{entry}/exe") == program
        return count

    def close(self):
        """Ends all that runs there; what the holder said on stderr."""
        self.holder.kill()
        return self.holder.communicate(timeout=NEVER)[1]


class Pair:
    """Two machines; mpirun runs on the first."""

    def __init__(self, t, hosts):
        self.t, self.hosts = t, hosts
        pids = [str(host.pid) for host in self.hosts]
        cable = ["eth0", "netns", pids[0], "type", "veth", "peer", "name", "eth0", "netns", pids[1]]
        must(["ip", "link", "add", *cable], "no veth pair")
        for i, host in enumerate(self.hosts):
            host.ip("address", "add", f"{NETWORK}.{i + 1}/24", "dev", "eth0")
            host.ip("link", "set", "eth0", "up")
        # what mpirun calls in place of ssh, with a host's name and a command
        there = " ".join(self.hosts[1].within("net", "uts", "pid"))
        write(t.path("agent"), f'#!/bin/sh\nshift\nexec {there} sh -c "$*"\n'.encode())
        os.chmod(t.path("agent"), 0o755)
        write(t.path("hosts"), "".join(f"{host.name}\n" for host in self.hosts).encode())
        os.makedirs(t.path("session"), exist_ok=True)

    def launch(self, each, **parameters):
        """The words before a program of which each machine runs so many processes; parameters:
        Open MPI's."""
        mpirun(self.t)  # skips where there is none
        parameters.update(
            plm_rsh_agent=self.t.path("agent"),
            # what a killed process leaves goes with the test
            orte_tmpdir_base=self.t.path("session"),
            btl_vader_backing_directory=self.t.path("session"),
        )
        words = [f"OMPI_MCA_{name}={value}" for name, value in parameters.items()]
        words += [f"HOSTS={self.t.path('hosts')}", f"PROCESSES={each}", "BIND=none"]
        there = self.hosts[0].within("net", "uts", "pid")
        return [*there, "env", *words, os.path.join(TOP, "scripts/mpirun.sh")]

    def start(self, said, launch, **changes):
        """A run that has saved; what it says goes to a file, as mpirun may not come to an end."""
        options = self.t.options(dict(LONG, **SHARED, out="run", **changes))
        with open(said, "wb") as err:
            process = subprocess.Popen(
                [*launch, self.t.trainer, *options],
                cwd=self.t.dir,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
        self.t.started.append(process)
        self.t.wait_for(lambda: checkpoints(self.t.path("run")), process, "a checkpoint")
        same([h.runs(self.t.trainer) for h in self.hosts], [1, 1], "processes on each machine")
        return process

    def pull(self):
        self.hosts[1].ip("link", "set", "eth0", "down")


@contextlib.contextmanager
def two_hosts(t):
    if "libmpi" not in linked(t):
        raise Skip("this trainer was built with MPI=0")
    if os.geteuid() != 0:
        raise Skip("two network namespaces need root")
    for tool in TOOLS:
        if not shutil.which(tool):
            raise Skip(f"{tool} is not installed (Debian: util-linux, iproute2)")
    hosts = []
    try:
        for i in (1, 2):
            hosts.append(Host(f"host{i}-{os.getpid()}", *hosts))
        yield Pair(t, hosts)
    finally:
        # the first at first: it is who has to see the ends of what mpirun began on the second
        for host in hosts:
            host.close()


def fault(t):
    library, source = t.path("at_split.so"), os.path.join(TOP, "dev/test/faults/at_split.c")
    done = t.call(["mpicc", "-shared", "-fPIC", "-O1", "-o", library, source])
    if done.code:
        raise Skip(f"{source} cannot be compiled: {done.err.strip()[:300]}")
    return library


def local_ranks(t, launch, **changes):
    """Trains; what each process was told of the others on its machine, sorted."""
    sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    preload = ["env", f"LD_PRELOAD={fault(t)}", f"ASAN_OPTIONS={sanitizer}"]
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


@test("hosts: a pulled cable ends the processes on both after --timeout, and is said once")
def timed_out(t):
    limit, said = 4 * t.patience, t.path("said")
    with two_hosts(t) as pair:
        process = pair.start(said, pair.launch(1), timeout=limit)
        begin = time.monotonic()
        pair.pull()
        # mpirun waits for the lost machine as long as the system does: its end is no part of it
        t.wait_for(
            lambda: not any(h.runs(t.trainer) for h in pair.hosts), process, "the end of both", 40
        )
        took = time.monotonic() - begin
        check(took < limit + 15 * t.patience, f"it took {took:.1f} s")
    name = pair.hosts[1].name
    says = [f"no progress for {limit} s (--timeout)", f"rank 1 on {name}", "its machine is lost"]
    check_once(read(said).decode(errors="replace"), *says)
    goes_on(t)


@test("hosts: mpirun.sh ends on its own when a machine is lost, and names it")
def lost(t):
    said = t.path("said")
    # of a connection without traffic, in seconds: as by default, but sooner
    soon = dict(oob_tcp_keepalive_time=2, oob_tcp_keepalive_intvl=1, oob_tcp_keepalive_probes=2)
    with two_hosts(t) as pair:
        process = pair.start(said, pair.launch(1, **soon), timeout=NEVER)
        pair.pull()
        code = process.wait(20 * t.patience)
        check(code != 0, "exit code 0")
        same(pair.hosts[0].runs(t.trainer), 0, "processes on the machine that is left")
    text = read(said).decode(errors="replace")
    check(f"on node {pair.hosts[1].name}" in text, f"the lost machine is not named: {text}")
    goes_on(t)
