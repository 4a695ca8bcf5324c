"""A model of data-parallel training with laser.c on many GPUs: time of a step, communication that
compute does not hide, memory of a GPU. Nothing of it is a measurement: what is assumed is printed,
and where it is from.

    scale_model.py [--model NAME,...] [--gpus N,...] [--sequences N,...] [--zero 0|1] [OPTION...]

prints weak scaling (a GPU's sequences are fixed), strong scaling (--total-batch is), and, for one
model on --goal-gpus, whether a goal is met and what each assumption does to it.

A step is two streams of work, each in order (simulate()):
    compute   passes, micro-step by micro-step; then norms and AdamW
    network   --zero 1: weights gathered, bucket by bucket in forward order; each bucket of
              gradients reduce-scattered when the last micro-step's backward pass has made it, from
              the top; sums for the norms.  --zero 0: a bucket's gradients are gathered behind
              their reduction, and nothing after AdamW
A layer's first forward pass waits for its weights, the norm for all gradients. A step begins when
AdamW of the one before has ended and the network is idle: all steps are alike. While both streams
run, compute is slowed by the share of SMs that the network's kernels hold.

    a pass        FLOPs of the layer / (peak * MFU); backward is twice forward, --recompute block
                  adds one forward, light nothing
    a collective  latency + bytes * (n - 1) / n / bandwidth: scale_machine.py
    memory        --plan of the trainer, master weights and moments cut: scale_shapes.py
    AdamW         bytes that it moves / memory bandwidth

Left out: small batches run below their MFU; processes wait for the slowest; other jobs use the
network; power limits; data, validation, checkpoints; a matrix product can lose a whole wave where
the network takes a few SMs. All of these make real steps longer.

--measured FILE replaces assumptions by what bench_presets.sh (the laser lines) and bench_comm
printed, or by lines
    tokens MODEL BATCH RECOMPUTE TOKENS/S   whole steps of one micro-step on one GPU
    busbw COLLECTIVE GPUS BYTES GB/S        as nccl-tests count, BYTES being the whole array's;
                                            reduce_scatter, all_gather or all_reduce"""

import argparse
import math
import os
import sys
from dataclasses import dataclass, replace

from gpu_report import MFU_GOALS
from scale_machine import (ALGORITHMS, GIB, GPUS, Machine, collective_seconds, die, print_machine,
                           read_measured)
from scale_shapes import (GRADIENT, GRAIN, WEIGHT, Memory, find_planner, held_elements,
                          read_presets)

OTHER_MFU = 55  # percent, of models without a goal
# AdamW with --update-clip, as scripts/train_*.sh have it: (what, bytes of a parameter that are
# moved, bytes that each GRAIN of elements adds to an all-reduce behind it)
ADAM = (
    ("norm", 4, 8),  # gradient in
    ("moments", 16 + 8, 24),  # gradient, m, v, master in; m, v out
    ("update", 12 + 6, 0),  # m, v, master in; master and weight out
)
ADAM_BYTES = sum(moved for _, moved, _ in ADAM)


# ---- a step ----


@dataclass(frozen=True)
class Run:
    """How a model is trained. sequences: of a GPU and step, whole micro-steps of batch."""
    world: int
    batch: int
    sequences: int
    zero: int = 1
    recompute: str = "none"
    reduce_bytes: int = 4  # of a gradient under way: --reduce-in
    layers_a_bucket: int = 1


@dataclass
class Work:
    name: str
    seconds: float
    after: int = 0  # works of the other stream that must have ended


@dataclass
class Step:
    seconds: float = 0
    compute: float = 0  # compute's own time, were it alone
    network: float = 0  # time in collectives
    exposed: float = 0  # of it, while compute waits
    slowed: float = 0  # what compute lost to the network's SMs while both ran


def simulate(compute, network, slow):
    """Both streams in order, each work when those it waits for have ended; compute runs at 1 - slow
    while the network is busy. seconds = compute + exposed + slowed."""
    s, done = Step(), [0, 0]
    streams = (compute, network)
    left = [works[0].seconds if works else 0 for works in streams]
    while any(done[i] < len(streams[i]) for i in (0, 1)):
        ready = [done[i] < len(streams[i]) and streams[i][done[i]].after <= done[1 - i]
                 for i in (0, 1)]
        if not any(ready):
            raise ValueError(f"both streams wait: {done}")
        both = all(ready)
        rate = 1 - slow if both else 1
        ends = [left[i] if ready[i] else math.inf for i in (0, 1)]
        if both:
            ends[0] /= rate
        passed = min(ends)
        s.seconds += passed
        s.compute += passed * rate if ready[0] else 0
        s.network += passed if ready[1] else 0
        s.exposed += passed if ready[1] and not ready[0] else 0
        s.slowed += passed * slow if both else 0
        for i in (0, 1):
            if ends[i] == passed:
                done[i] += 1
                left[i] = streams[i][done[i]].seconds if done[i] < len(streams[i]) else 0
            elif ready[i]:
                left[i] -= passed * (rate if i == 0 else 1)
    return s


def mfu_of(machine, model):
    return machine.mfu.get(model, MFU_GOALS.get(model, OTHER_MFU) / 100)


def flop_rate(machine, shape, run):
    """Of the passes; from the measured steps of the nearest batch where there are any."""
    batches = [b for name, b, recompute in machine.tokens
               if (name, recompute) == (shape.name, run.recompute)]
    if not batches:
        return machine.peak * mfu_of(machine, shape.name)
    batch = min(batches, key=lambda b: abs(math.log(b / run.batch)))
    tokens, measured = batch * shape.T, machine.tokens[shape.name, batch, run.recompute]
    passes = tokens / measured - ADAM_BYTES * shape.elements() / machine.memory_rate
    done = shape.step_flops(tokens)
    if run.recompute == "block":
        done += shape.L * shape.layer_flops(tokens)
    if passes <= 0:
        die(f"{shape.name}: {measured:g} tokens/s leave no time beside AdamW")
    return done / passes


def build_step(shape, machine, run):
    """The two streams of a step: compute, network."""
    rate, tokens = flop_rate(machine, shape, run), run.batch * shape.T
    layer, head = shape.layer_flops(tokens) / rate, shape.head_flops(tokens) / rate
    backward = layer * (3 if run.recompute == "block" else 2)
    single = shape.buckets()
    cut = list(range(1, shape.L + 1, run.layers_a_bucket)) + [shape.L + 1]
    buckets = single[:1] + [sum(single[a:b]) for a, b in zip(cut, cut[1:])] + single[-1:]
    opens = {a: i + 1 for i, a in enumerate(cut)}  # lowest layer of a bucket, from 1 on -> bucket
    several, dealt = run.world > 1, run.world > 1 and run.zero == 1
    compute, network = [], []

    def collective(name, size, after):
        seconds = collective_seconds(machine, name, size, run.world)
        network.append(Work(name, seconds, after))

    if dealt:
        for n in buckets:
            collective("all_gather", WEIGHT * n, 0)
    micro_steps = run.sequences // run.batch
    for k in range(micro_steps):
        gathered = dealt and k == 0
        compute.append(Work("embed", 0, 1 if gathered else 0))
        for l in range(1, shape.L + 1):
            compute.append(Work("forward", layer, opens[l] + 1 if gathered and l in opens else 0))
        compute.append(Work("head", 3 * head, len(buckets) if gathered else 0))
        made = [len(compute)] + [0] * (len(buckets) - 1)  # works after which each, from the top, is
        for l in range(shape.L, 0, -1):
            compute.append(Work("backward", backward))
            if l in opens:
                made[len(buckets) - 1 - opens[l]] = len(compute)
        compute.append(Work("embed backward", 0))
        made[-1] = len(compute)
        if several and k == micro_steps - 1:
            for n, after in zip(reversed(buckets), made):
                collective("reduce_scatter", run.reduce_bytes * n, after)
                if run.zero == 0:
                    collective("all_gather", GRADIENT * n, after)
    held, grains = held_elements(shape, run.world, run.zero), shape.elements() // GRAIN
    for name, moved, sums in ADAM:
        compute.append(Work(name, moved * held / machine.memory_rate, len(network)))
        if dealt and sums:
            collective("all_reduce", sums * grains, len(compute))
    return compute, network


def model_step(shape, machine, run):
    return simulate(*build_step(shape, machine, run), machine.network_sms / machine.sms)


# ---- what is printed ----

HEADING = (f"  {'GPUs':>5} {'batch':>8} {'tokens a step':>13} {'GiB':>6} {'step ms':>10} "
           f"{'network':>8} {'exposed':>8} {'slowed':>7} {'scaling':>8} {'kept':>7} {'tok/s':>8}")


def scaled(shape, machine, run, strong=False):
    """The step, and the share of the time that it would take if GPUs added up: against one GPU with
    as many sequences as one of these has, or (strong) as all of them."""
    step = model_step(shape, machine, run)
    work = run.world if strong else 1
    alone = model_step(shape, machine, replace(run, world=1, sequences=run.sequences * work))
    return step, alone.seconds / work / step.seconds


def print_rows(shape, machine, runs, memory, strong=False):
    print(HEADING)
    for run in runs:
        run, fits = memory.fitting(shape, machine, run)
        s, share = scaled(shape, machine, run, strong)
        tokens = run.sequences * shape.T * run.world
        size = memory.bytes(shape, machine, run) / GIB
        batch = f"{run.batch} x {run.sequences // run.batch}"
        print(f"  {run.world:>5} {batch:>8} {tokens:>13} {size:>6.1f}{' ' if fits else '!'}"
              f"{1e3 * s.seconds:>10.2f} {1e3 * s.network:>8.2f} {1e3 * s.exposed:>8.2f} "
              f"{1e3 * s.slowed:>7.2f} {100 * share:>6.1f} % {100 * s.compute / s.seconds:>5.1f} % "
              f"{tokens / s.seconds / 1e3:>7.0f}k")


def print_scaling(shape, machine, run, options, memory):
    def heading(kind, sequences, of):
        print(f"\n{shape.name}, {kind} scaling: {sequences} sequences of {shape.T} {of}, "
              f"--zero {run.zero}, --recompute {run.recompute}")

    for sequences in options.sequences:
        heading("weak", sequences, "a GPU and step")
        runs = [replace(run, world=n, sequences=sequences) for n in options.gpus]
        print_rows(shape, machine, runs, memory)
    total = options.total_batch // shape.T
    heading("strong", total, "a step")
    runs = [replace(run, world=n, sequences=total // n) for n in options.gpus if total % n == 0]
    print_rows(shape, machine, runs, memory, strong=True)


def goal_variants(machine, run):
    """What else might be: (what, machine, run)."""
    four = replace(run, sequences=4 * run.sequences)
    slow = {"nvlink": min(200e9, machine.nvlink), "shares": ((1, 1.0),)}
    late = {"hop_node": 3 * machine.hop_node, "hop_net": 3 * machine.hop_net}
    narrow = {"nic": machine.nic / 4}
    for what, other, r in (
        ("as assumed", {}, run),
        ("--zero 0", {}, replace(run, zero=0)),
        ("2 micro-steps", {}, replace(run, sequences=2 * run.sequences)),
        ("4 micro-steps", {}, four),
        ("16 micro-steps", {}, replace(run, sequences=16 * run.sequences)),
        ("network on 24 SMs, as NCCL would by itself", {"network_sms": 24}, run),
        ("on 4", {"network_sms": 4}, run),
        ("on none (copy engines)", {"network_sms": 0}, run),
        ("--reduce-in bf16", {}, replace(run, reduce_bytes=2)),
        ("4 layers a bucket", {}, replace(run, layers_a_bucket=4)),
        ("collectives in two: in nodes, between nodes", {"algorithm": "rail"}, run),
        ("a block moves 20 GB/s", {"block": 20e9}, run),
        ("bus bandwidth 200 GB/s (NVIDIA/nccl, 1218)", slow, run),
        ("a hop takes 3 times as long", late, run),
        ("both", slow | late, run),
        ("both, 4 micro-steps", slow | late, four),
        ("InfiniBand of 100 Gb/s a GPU", narrow, run),
        ("the same, 4 micro-steps", narrow, four),
    ):
        yield what, replace(machine, **other), r


def print_goal(shape, machine, run, goal, memory):
    run, fits = memory.fitting(shape, machine, run)
    print(f"\nGoal: {shape.name} on {run.world} GPUs, {run.batch} x {run.sequences // run.batch} "
          f"sequences a GPU{'' if fits else ' (does not fit)'}: both shares above {goal:g} %")
    print(f"  {'':46} {'step ms':>9} {'exposed':>8} {'slowed':>7} {'scaling':>8} {'kept':>7}")
    for what, other, r in goal_variants(machine, run):
        s, share = scaled(shape, other, r)
        kept = s.compute / s.seconds
        met = "" if 100 * min(share, kept) > goal else "  MISSED"
        print(f"  {what:46} {1e3 * s.seconds:>9.2f} {1e3 * s.exposed:>8.2f} "
              f"{1e3 * s.slowed:>7.2f} {100 * share:>6.1f} % {100 * kept:>5.1f} %{met}")


LEGEND = """
Columns: batch, sequences x micro-steps of a GPU; GiB of a GPU, ! where it does not fit; network,
time in collectives; exposed, of it with compute waiting; slowed, what compute lost to the network's
SMs; scaling, of one GPU's time alone (above 100 % where --zero 1 spares AdamW's time); kept, share
of the step that compute would take without a network."""


def numbers(text):
    return [int(n) for n in text.split(",")]


def parse(argv):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="301M,435M,1.1B,2.2B,7.7B", help="presets, with commas")
    p.add_argument("--gpus", type=numbers, default=[1, 8, 16, 32, 64, 128, 256, 512, 1024])
    p.add_argument("--sequences", type=numbers, default=[8, 128], help="a GPU and step, weak")
    p.add_argument("--total-batch", type=int, default=2**20, help="tokens a step, strong")
    p.add_argument("--batch", type=int, default=8, help="at most; halved until it fits")
    p.add_argument("--zero", type=int, choices=(0, 1), default=1)
    p.add_argument("--recompute", choices=("none", "light", "block"), default="none")
    p.add_argument("--reduce-in", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--layers-a-bucket", type=int, default=1)
    p.add_argument("--gpu", choices=GPUS, default="h100")
    p.add_argument("--mfu", type=float, help="percent, of all models")
    p.add_argument("--nvlink", type=float, help="GB/s, bus bandwidth in a node")
    p.add_argument("--nic", type=float, help="GB/s between nodes, a GPU")
    p.add_argument("--network-sms", type=int)
    p.add_argument("--algorithm", choices=ALGORITHMS, default="ring")
    p.add_argument("--measured", metavar="FILE")
    p.add_argument("--planner", metavar="PROGRAM", help="train_gpt with bf16 weights, asked for "
                   "memory by its --plan; none: computed (default: the newest in build/)")
    p.add_argument("--goal", type=float, default=92, help="percent; 0: do not ask")
    p.add_argument("--goal-model", default="2.2B")
    p.add_argument("--goal-gpus", type=int, default=256)
    o = p.parse_args(argv)
    o.model, o.shapes = o.model.split(","), read_presets()
    for name in o.model + [o.goal_model]:
        if name not in o.shapes:
            p.error(f"no preset '{name}'; there are {', '.join(o.shapes)}")
    if min(o.gpus + o.sequences + [o.batch, o.layers_a_bucket, o.goal_gpus]) < 1:
        p.error("numbers of GPUs, sequences and layers begin at 1")
    if o.network_sms is not None and not 0 <= o.network_sms < Machine.sms:
        p.error(f"--network-sms: 0 to {Machine.sms - 1}")
    if min(x for x in (o.mfu, o.nvlink, o.nic, 1) if x is not None) <= 0:
        p.error("--mfu, --nvlink and --nic are above 0")
    return o


def machine_of(o):
    given = {"nvlink": o.nvlink and o.nvlink * 1e9, "nic": o.nic and o.nic * 1e9,
             "network_sms": o.network_sms, "algorithm": o.algorithm}
    machine = Machine(**GPUS[o.gpu], **{k: v for k, v in given.items() if v is not None})
    if o.mfu:
        machine = replace(machine, mfu=dict.fromkeys(o.shapes, o.mfu / 100))
    return read_measured(o.measured, machine) if o.measured else machine


def print_assumptions(o, machine, planner):
    print("A MODEL, NOT A MEASUREMENT: steps of laser.c on many "
          f"{machine.name.upper()}, data parallel, bf16\n")
    print("Assumed; nothing of it was measured by us, but where a line says so")
    print_machine(machine)
    models = sorted({*o.model, o.goal_model})
    print("  MFU            of the passes: "
          + ", ".join(f"{m} {100 * mfu_of(machine, m):.0f} %" for m in models))
    print(f"                 the goals in dev/bench/gpu_report.py, {OTHER_MFU} % where there is "
          "none;\n                 not reached yet, and slower passes hide more")
    print(f"  AdamW          {ADAM_BYTES} bytes a parameter: with --update-clip, as in "
          "scripts/train_*.sh")
    plan = "computed as laser/model.c does, scratch within 2 % of the total"
    if planner:
        plan = f"{os.path.basename(os.path.dirname(planner))}/train_gpt --plan"
    print(f"  memory         {plan};\n                 --zero 1 cuts master weights and moments")


def main():
    o = parse(sys.argv[1:])
    machine = machine_of(o)
    planner = None if o.planner == "none" else o.planner or find_planner()
    memory = Memory(planner)
    print_assumptions(o, machine, planner)
    print(LEGEND)
    run = Run(1, o.batch, o.batch, o.zero, o.recompute, 4 if o.reduce_in == "fp32" else 2,
              o.layers_a_bucket)
    for name in o.model:
        print_scaling(o.shapes[name], machine, run, o, memory)
    if o.goal:
        print_goal(o.shapes[o.goal_model], machine, replace(run, world=o.goal_gpus), o.goal, memory)


if __name__ == "__main__":
    main()
