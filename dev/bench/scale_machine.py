"""The machine of scale_model.py: GPUs, their network, what a collective takes. What is assumed of
them has its source beside it; --measured FILE replaces it."""

import math
import re
import sys
from dataclasses import dataclass, field, replace

GIB = 2**30
EXIT_INPUT = 3
COLLECTIVES = ("reduce_scatter", "all_gather", "all_reduce")


def die(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_INPUT)


@dataclass(frozen=True)
class Machine:
    """Bytes, seconds, FLOP/s; SOURCES says where the defaults are from."""

    name: str = "h100"
    peak: float = 989.4e12
    memory: float = 79.6 * GIB
    memory_rate: float = 0.9 * 3.35e12
    node: int = 8  # GPUs of a node
    sms: int = 132
    network_sms: int = 8  # blocks of its kernels, each on one; 0: none are needed
    block: float = 36e9  # what a block can move
    nvlink: float = 370e9  # bus bandwidth in a node
    nic: float = 0.97 * 50e9  # of a GPU's adapter
    shares: tuple = ((1, 1.0), (4, 360 / 370), (8, 345 / 370), (16, 320 / 370), (32, 300 / 370),
                     (64, 280 / 370), (128, 260 / 370))  # of the bandwidth, by nodes
    base: float = 8.4e-6  # latency of a call, of a hop in a node, of a hop between nodes
    hop_node: float = 3.4e-6
    hop_net: float = 14e-6
    algorithm: str = "ring"
    library: float = 1.6e9  # NCCL's memory
    mfu: dict = field(default_factory=dict)  # by model, a fraction
    tokens: dict = field(default_factory=dict)  # measured: (model, batch, recompute) -> tokens/s
    busbw: dict = field(default_factory=dict)  # measured: (collective, GPUs) -> [(bytes, seconds)]

    def layout(self, world):
        """GPUs of a node that take part, and nodes."""
        return min(world, self.node), -(-world // self.node)

    def share(self, nodes):
        """Of the bandwidth; interpolated in the logarithm of the nodes."""
        for (n0, s0), (n1, s1) in zip(self.shares, self.shares[1:]):
            if n0 < nodes < n1:
                return s0 + (s1 - s0) * math.log(nodes / n0) / math.log(n1 / n0)
        return dict(self.shares).get(nodes, self.shares[-1][1])

    def carried(self, rate):
        """What of a bandwidth the network's SMs can use."""
        return min(rate, self.network_sms * self.block) if self.network_sms else rate


GPUS = {"h100": {}, "h200": {"name": "h200", "memory": 139 * GIB, "memory_rate": 0.9 * 4.8e12}}

SOURCES = """\
FLOP rate      {peak:.1f} TFLOP/s in bf16: data sheet (H100, H200 SXM)
memory         {memory:.1f} GiB, 98 % of it to be taken; {rate:.2f} TB/s, 90 % of the data sheet's
in a node      8 GPUs, {nvlink:.0f} GB/s bus bandwidth: what NCCL reaches over an H100's NVLink
               but for all-reduce (a maintainer, github.com/NVIDIA/nccl-tests, issues 212, 326)
between nodes  {nic:.1f} GB/s a GPU: InfiniBand of 400 Gb/s, of which 97 % is a guess
more nodes     min(NVLink, 8 x InfiniBand), as a ring through all GPUs with all adapters has it,
               times a share that falls to {last:.2f} at 128 nodes: reduce-scatter on H100, 4 to 128
               nodes, 360, 345, 320, 300, 280, 260 GB/s (github.com/NVIDIA/nccl, issue 1229,
               which does not say of how many bytes)
latency        {base:.1f} us a call, {hop_node:.1f} us a hop in a node, {hop_net:.1f} us between
               nodes: NCCL's model of itself (Ring, Simple: src/graph/tuning.cc, 5067397)
network's SMs  {sms} of 132 while a collective runs: MAX_CTAS of laser/cuda/comm_nccl.cu, 8 (left to
               itself NCCL takes 24: forums.developer.nvidia.com, 337991); a block moves at most
               {block:.0f} GB/s, which NCCL's tuning.cc has for a channel of its trees on Hopper
library        {library:.1f} GB a GPU (github.com/NVIDIA/nccl, issue 864)
algorithm      {algorithm}""".splitlines()

ALGORITHMS = {
    "ring": "ring: one through all GPUs for each adapter, as NCCL does",
    "rail": "rail: in the node, then between nodes among the GPUs of one place in theirs",
}


def print_machine(m):
    text = "\n  ".join(SOURCES)
    print("  " + text.format(
        peak=m.peak / 1e12, memory=m.memory / GIB, rate=m.memory_rate / 1e12, nvlink=m.nvlink / 1e9,
        nic=m.nic / 1e9, last=m.shares[-1][1], base=m.base * 1e6, hop_node=m.hop_node * 1e6,
        hop_net=m.hop_net * 1e6, sms=m.network_sms, block=m.block / 1e9, library=m.library / 1e9,
        algorithm=ALGORITHMS[m.algorithm]))
    for (model, batch, recompute), rate in m.tokens.items():
        print(f"  MEASURED       {model}, batch {batch}, recompute {recompute}: {rate:g} tokens/s")
    for (name, world), rows in m.busbw.items():
        print(f"  MEASURED       {name} on {world} GPUs, {len(rows)} sizes")


# ---- collectives ----


def ring_seconds(m, size, world):
    """Reduce-scatter or all-gather of an array of so many bytes: n - 1 hops, of which nodes - 1 are
    between nodes. One ring for each adapter, each with its part of the array: the adapters of a
    node together stand against the NVLink of one GPU."""
    gpus, nodes = m.layout(world)
    rate = m.nvlink if nodes == 1 else min(m.nvlink, gpus * m.nic) * m.share(nodes)
    latency = m.base + (world - nodes) * m.hop_node + (nodes - 1) * m.hop_net
    return latency + size / m.carried(rate) * (world - 1) / world


def rail_seconds(m, size, world):
    """The same in two calls, one after the other: in the node; then 1 / gpus of it between nodes,
    by a ring or by NCCL's PAT, a tree (tuning.cc as above: 3/4 of the bandwidth)."""
    gpus, nodes = m.layout(world)
    if nodes == 1 or world != gpus * nodes:
        return ring_seconds(m, size, world)
    part = size / gpus * (nodes - 1) / nodes / m.carried(m.nic * m.share(nodes))
    ring = m.base + (nodes - 1) * m.hop_net + part
    tree = m.base + math.log2(nodes) * m.hop_net / 3.5 + nodes * 2.8e-6 + part / 0.75
    return ring_seconds(m, size, gpus) + min(ring, tree)


def tree_seconds(m, size, world):
    """All-reduce of few bytes, up a tree and down."""
    gpus, nodes = m.layout(world)
    hops = (gpus - 1) * m.hop_node + (math.log2(nodes) * m.hop_net if nodes > 1 else 0)
    moved = ring_seconds(m, size, world) - ring_seconds(m, 0, world)
    return m.base + 2 * hops + 2 * moved


def interpolate(rows, size):
    """Seconds, linear in bytes between what was measured; below it as long as the smallest, above
    it at the rate of the largest."""
    if size <= rows[0][0]:
        return rows[0][1]
    for (b0, t0), (b1, t1) in zip(rows, rows[1:]):
        if size <= b1:
            return t0 + (t1 - t0) * (size - b0) / (b1 - b0)
    return rows[-1][1] * size / rows[-1][0]


def collective_seconds(m, name, size, world):
    """One of COLLECTIVES. size: bytes of the whole array, which every GPU has or will have."""
    if (name, world) in m.busbw:
        return interpolate(m.busbw[name, world], size)
    if name == "all_reduce":
        return tree_seconds(m, size, world)
    return {"ring": ring_seconds, "rail": rail_seconds}[m.algorithm](m, size, world)


# ---- what was measured ----


class Measured:
    """tokens and busbw of a Machine, from lines."""

    def __init__(self):
        self.tokens, self.sizes = {}, {}
        self.world, self.options = 0, None  # of the bench whose output follows

    def add_size(self, name, world, size, seconds):
        self.sizes.setdefault((name, world), {})[size] = seconds

    def words(self, kind, name, count, third, rate):
        """A line of our own; ValueError where it says nothing."""
        count, rate = int(count), float(rate)
        if count < 1 or not 0 < rate < math.inf:
            raise ValueError
        if kind == "tokens" and third in ("none", "light", "block"):
            self.tokens[name, count, third] = rate
        elif kind == "busbw" and name in COLLECTIVES and count > 1 and int(third) > 0:
            moved = int(third) * (2 if name == "all_reduce" else 1) * (count - 1) / count
            self.add_size(name, count, int(third), moved / (rate * 1e9))
        else:
            raise ValueError

    def bench(self, line):
        """A line of bench_presets.sh or bench_comm; False where the bench found a wrong sum. Of
        reductions those that send fp32: the others are made of other calls."""
        if found := re.match(r"comm \S+, (\d+) processes: (\w+)", line):
            self.world = int(found[1])
            return found[2] == "right"
        if found := re.match(r"== (\S+) laser \w+: --model \1 (.*)", line):
            self.options = found[1], re.findall(r"--(\S+) (\S+)", found[2])
        elif line.startswith("== "):
            self.options = None
        elif self.options and (found := re.match(r" +step, median of .* ([\d.]+) tokens/s", line)):
            model, options = self.options[0], dict(self.options[1])
            key = model, int(options.get("batch", 0)), options.get("recompute", "none")
            self.tokens[key] = float(found[1])
        elif self.world > 1 and (found := re.match(
                r"(reduce-scatter fp32|all-gather \w+) +([\d.]+) +([\d.]+) ", line)):
            name = found[1].split()[0].replace("-", "_")
            self.add_size(name, self.world, float(found[2]) * 2**20, float(found[3]) * 1e-6)
        return True


def read_measured(path, machine):
    """The machine with what a file holds, as scale_model.py --help describes it. Dies on a line of
    its own format that says nothing, on a bench that went wrong, on a file without either."""
    found = Measured()
    try:
        with open(path, encoding="utf-8") as f:
            lines = f.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        die(f"{path}: {error}")
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        try:
            if words and words[0] in ("tokens", "busbw"):
                found.words(*words)
            elif not found.bench(line):
                die(f"{path}, line {number}: '{line}': times of wrong sums are worth nothing")
        except (TypeError, ValueError):
            die(f"{path}, line {number}: '{line}' is neither 'tokens MODEL BATCH RECOMPUTE "
                "TOKENS/S' nor 'busbw COLLECTIVE GPUS BYTES GB/S'")
    if not found.tokens and not found.sizes:
        die(f"{path}: nothing measured in it, neither of a bench nor as --help describes it")
    return replace(machine, tokens=found.tokens,
                   busbw={k: sorted(v.items()) for k, v in found.sizes.items()})
