"""Checks dev/bench/scale_model.py: limits that any such model must keep, small cases worked out by
hand in fractions, its memory against --plan of the trainers that are built, what it reads and
refuses.

Exit code 0: all as promised, and planted errors were seen; 1: something is not; 77: no trainer is
built to compare with (the rest passed)."""

import glob
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from fractions import Fraction

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "dev", "bench"))

import scale_machine as machines
import scale_model as model
import scale_shapes as shapes

PROGRAM = os.path.join(TOP, "dev", "bench", "scale_model.py")
FAILURES = []
ROUNDING = 1e-9  # relative: thousands of additions in double, each off by 1e-16
PRESETS = shapes.read_presets()
H100 = replace(machines.Machine(), network_sms=24)  # as many as carry all that there is
FREE = replace(H100, nvlink=math.inf, nic=math.inf, base=0, hop_node=0, hop_net=0, network_sms=0)


def check(condition, what):
    if not condition:
        FAILURES.append(what)
        print(f"FAILED: {what}")


def same(got, want, what):
    check(got == want, f"{what}: got {got!r}, want {want!r}")


def near(got, want, what, relative=ROUNDING):
    check(abs(got - want) <= relative * abs(want), f"{what}: got {got!r}, want {want!r}")


# ---- limits ----


def check_one_gpu():
    for preset in ("301M", "7.7B", "gpt2-124M"):
        for recompute in ("none", "block"):
            run = model.Run(1, 2, 8, recompute=recompute)
            s = model.model_step(PRESETS[preset], H100, run)
            what = f"{preset} on one GPU"
            same((s.network, s.exposed, s.slowed), (0, 0, 0), f"{what}: no network")
            compute, network = model.build_step(PRESETS[preset], H100, run)
            same(network, [], f"{what}: no collectives")
            near(s.seconds, sum(w.seconds for w in compute), f"{what}: the sum of its work")


def check_free_network():
    """A network that costs nothing: what AdamW is spared is all that differs from one GPU."""
    shape = PRESETS["2.2B"]
    for world, sequences in ((8, 8), (256, 32), (1000, 8)):
        run = model.Run(world, 8, sequences, zero=0)
        near(model.scaled(shape, FREE, run)[1], 1, f"{world} GPUs, --zero 0, weak")
        near(model.scaled(shape, FREE, run, True)[1] * model.model_step(shape, FREE, run).seconds
             * world, model.model_step(shape, FREE, replace(
                 run, world=1, sequences=sequences * world)).seconds, f"{world} GPUs, strong")
        step, share = model.scaled(shape, FREE, replace(run, zero=1))
        near(step.seconds, step.compute, f"{world} GPUs, --zero 1: all of it is compute")
        spared = shape.elements() - shapes.held_elements(shape, world, 1)
        gained = spared * model.ADAM_BYTES / H100.memory_rate
        near(step.seconds * share - step.seconds, gained, f"{world} GPUs, --zero 1: AdamW", 1e-6)


def check_bounds():
    """Of any step: what the columns promise."""
    machine_kinds = (H100, replace(H100, algorithm="rail"), replace(H100, nic=1e9),
                     replace(H100, network_sms=0))
    cases = itertools.product(
        ("301M", "7.7B"), machine_kinds, (2, 8, 24, 1024), (1, 4), (0, 1), (1, 4), (4, 2))
    for name, m, world, micro_steps, zero, layers, bytes_ in cases:
        run = model.Run(world, 2, 2 * micro_steps, zero, "none", bytes_, layers)
        compute, network = model.build_step(PRESETS[name], m, run)
        s = model.model_step(PRESETS[name], m, run)
        what = f"{name}, {run}"
        alone, busy = sum(w.seconds for w in compute), sum(w.seconds for w in network)
        near(s.compute, alone, f"{what}: compute")
        near(s.network, busy, f"{what}: network")
        near(s.seconds, s.compute + s.exposed + s.slowed, f"{what}: parts")
        check(0 <= s.exposed <= s.network * (1 + ROUNDING), f"{what}: exposed {s.exposed}")
        check(0 <= s.slowed <= m.network_sms / m.sms * s.network * (1 + ROUNDING),
              f"{what}: slowed {s.slowed}")
        check(s.seconds * (1 + ROUNDING) >= max(alone, busy), f"{what}: not before either stream")
        check(s.seconds <= alone + busy * (1 + ROUNDING), f"{what}: not after both in turn")


def check_slow_network():
    """Where bytes are all that counts: 4 of each gradient reduced, 2 of each weight gathered (or 4
    of each gradient), and the norms' sums, which go up and down."""
    shape = PRESETS["435M"]
    slow = replace(FREE, nvlink=1e3, nic=1e3 / 8)
    for world, sums in ((2, 1), (64, 1)):
        rate = 1e3 * slow.share(max(1, world // 8))
        n, grains = shape.elements(), shape.elements() / shapes.GRAIN
        moved = 6 * n + 2 * 32 * grains * sums
        for zero, size in ((1, moved), (0, 8 * n)):
            s = model.model_step(shape, slow, model.Run(world, 8, 8, zero))
            near(s.seconds, size * (world - 1) / world / rate, f"{world} GPUs, zero {zero}", 1e-4)


def check_more_buckets():
    """Without latency a finer cut lets everything begin earlier."""
    for name, zero, world, rate, k in itertools.product(
            ("301M", "2.2B"), (0, 1), (8, 512), (1e9, 20e9, 370e9), (1, 3)):
        m = replace(FREE, nvlink=rate, nic=rate / 8)
        times = [model.model_step(PRESETS[name], m, model.Run(
            world, 8, 8 * k, zero, layers_a_bucket=cut)).seconds for cut in (1, 2, 4, 8, 16, 32)]
        rising = all(a <= b * (1 + ROUNDING) for a, b in zip(times, times[1:]))
        check(rising, f"{name}, zero {zero}, {world} GPUs, {rate:g}: finer is slower: {times}")


# ---- by hand ----


def check_streams():
    """compute 4, then 2 that waits for the network's first; the network's second waits for both.
    Half of the SMs: the network's first (3) runs beside 1.5 of compute, which then has 2.5 left,
    ends at 5.5; 2 more until 7.5; the second 1, alone."""
    Work = model.Work
    compute = [Work("a", Fraction(4)), Work("b", Fraction(2), 1)]
    network = [Work("x", Fraction(3)), Work("y", Fraction(1), 2)]
    s = model.simulate(compute, network, Fraction(1, 2))
    want = model.Step(Fraction(17, 2), Fraction(6), Fraction(4), Fraction(1), Fraction(3, 2))
    same(s, want, "two streams by hand")
    try:
        model.simulate([Work("a", 1, 1)], [Work("x", 1, 1)], 0)
        check(False, "streams that wait for each other end in an error")
    except ValueError:
        pass


TINY = shapes.Shape("tiny", L=2, C=64, F=64, H=1, HD=64, V=64, T=64, gpt2=False)


def tiny_machine():
    """A token takes a layer 1 s; an array of 4096 bytes goes from one GPU to the other in 1/2 s."""
    flops = 2 * 6 * 64 * 64 + 2 * 64 * 64
    return replace(H100, peak=Fraction(flops), mfu={"tiny": 1}, memory_rate=Fraction(4096),
                   nvlink=Fraction(4096), base=0, hop_node=0, hop_net=0, network_sms=0)


def tiny_step(run, slow=Fraction(0)):
    """In fractions, where model_step() divides SMs in double."""
    return model.simulate(*model.build_step(TINY, tiny_machine(), run), slow)


def check_tiny():
    """Buckets: embeddings, 128 x 64 (the vocabulary is padded) = 2 grains of 4096; a layer,
    6 * 4096 + 6 * 64, so 7; norm and bias of the logits, 2 * 64 + 128, so 1. All: 17. Of two ranks
    the last has 1, 4, 4 and 1 of them.

    A batch of 1 x 64 tokens: a layer's forward pass 64 s, backward 128 s; head 3 * 2 * 64 * 64 * 64
    FLOPs at 57344 a second, 192/7 s.

    --zero 1, seconds, gathers of 2 bytes a weight, each grain 1 s: embeddings until 2, layers until
    9 and 16, the last 17. Compute: embed at 2, layer 1 from 9 to 73, 2 until 137, head until
    137 + 192/7 = h. Reductions, a grain 2 s: the last h to h + 2; layer 2, made at h + 128, to
    h + 142; layer 1, made at h + 256, to h + 270; embeddings, made then, to h + 274. The norm of 10
    grains, 4 bytes an element: 40 s; all-reduce of 17 * 8 bytes, 2 * 136 / 2 / 4096 s; moments 240;
    17 * 24, three times as long; update 180."""
    same(TINY.buckets(), [2 * 4096, 7 * 4096, 7 * 4096, 4096], "tiny: buckets")
    same(shapes.held_elements(TINY, 2, 1), 10 * 4096, "tiny: of the last rank")
    s = tiny_step(model.Run(2, 1, 1))
    h, sums = 137 + Fraction(192, 7), Fraction(136, 4096)
    same(s.seconds, h + 274 + 40 + sums + 240 + 3 * sums + 180, "tiny, --zero 1: seconds")
    compute = 2 * (64 + 128) + Fraction(192, 7) + 40 + 240 + 180
    same(s.compute, compute, "tiny, --zero 1: compute")
    same(s.network, 17 + 2 * 17 + 4 * sums, "tiny, --zero 1: network")
    same(s.exposed, s.seconds - compute, "tiny, --zero 1: exposed")
    # --zero 0: behind each reduction its gather, 4 bytes: twice the time. The head ends at
    # 128 + 192/7; layer 1, made 256 later, takes 28, the embeddings 8. Of 17 grains: norm 68,
    # moments 408, update 306
    s = tiny_step(model.Run(2, 1, 1, zero=0))
    want = 128 + Fraction(192, 7) + 256 + 28 + 8 + 68 + 408 + 306
    same(s.seconds, want, "tiny, --zero 0: seconds")
    # 3 micro-steps: two more of all passes, without the network; recomputed: 2 * 64 more in each
    more = 2 * (2 * 192 + Fraction(192, 7))
    three = tiny_step(model.Run(2, 1, 3, zero=0))
    same((three.seconds, three.network), (want + more, s.network), "tiny, 3 micro-steps")
    s = tiny_step(model.Run(2, 1, 1, zero=0, recompute="block"))
    same(s.seconds, want + 128, "tiny, --recompute block")
    # a quarter of the SMs for the network: only layer 2's reduction and gather (28 s) run beside
    # compute, the last bucket's (4 s) too
    s = tiny_step(model.Run(2, 1, 1, zero=0), Fraction(1, 4))
    same(s.slowed, 32 * Fraction(1, 4), "tiny, a quarter of the SMs")
    same(s.seconds, want + 8, "tiny, a quarter of the SMs: seconds")


def check_planted():
    """The hand-worked case sees a stream in another order, and one that forgets to wait."""
    m = tiny_machine()
    want = tiny_step(model.Run(2, 1, 1))
    compute, network = model.build_step(TINY, m, model.Run(2, 1, 1))
    network[4:8] = [replace(w, after=network[7].after) for w in reversed(network[4:8])]
    check(model.simulate(compute, network, 0) != want, "reductions from the bottom are not seen")
    compute, network = model.build_step(TINY, m, model.Run(2, 1, 1))
    waiting = next(w for w in compute if w.name == "norm")
    waiting.after = 0
    check(model.simulate(compute, network, 0) != want, "a norm that does not wait is not seen")


def check_collectives():
    """At 256 GPUs: 224 hops in nodes, 31 between; bandwidth at 32 nodes 300 GB/s. In two: 7 hops,
    then the tree's 5 * 14 / 3.5 + 32 * 2.8 us or the ring's 31 * 14."""
    us = 1e-6
    ring = machines.ring_seconds(H100, 2**28, 256)
    near(ring, (8.4 + 224 * 3.4 + 31 * 14) * us + 2**28 * 255 / 256 / 300e9, "ring at 256")
    near(machines.ring_seconds(H100, 1e9, 8), (8.4 + 7 * 3.4) * us + 7e9 / 8 / 370e9, "ring at 8")
    part = 2**32 / 8 * 31 / 32 / (48.5e9 * 30 / 37)
    node = machines.ring_seconds(H100, 2**32, 8)
    near(machines.rail_seconds(H100, 2**32, 256), node + (8.4 + 31 * 14) * us + part, "in two")
    small = machines.rail_seconds(H100, 0, 256)
    near(small, (8.4 + 7 * 3.4 + 8.4 + 5 * 4 + 32 * 2.8) * us, "in two, no bytes: the tree")
    near(machines.tree_seconds(H100, 0, 256), (8.4 + 14 * 3.4 + 10 * 14) * us, "all-reduce")
    near(H100.share(2) * 370, 365, "share between 1 and 4 nodes")
    same(H100.share(4096), 260 / 370, "share beyond what was reported")
    few = machines.Machine(network_sms=2)
    near(machines.ring_seconds(few, 1e9, 8) - machines.ring_seconds(few, 0, 8), 1e9 * 7 / 8 / 72e9,
         "two blocks of 36 GB/s")
    narrow = replace(H100, nic=12e9)
    near(machines.ring_seconds(narrow, 1e9, 16) - machines.ring_seconds(narrow, 0, 16),
         1e9 * 15 / 16 / (96e9 * H100.share(2)), "8 slow adapters beside NVLink")


def check_blocks():
    """The network's SMs are as many as the program asks for, where it has that file."""
    path = os.path.join(TOP, "laser", "cuda", "comm_nccl.cu")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            asked = re.search(r"MAX_CTAS = (\d+)", f.read())
        same(machines.Machine.network_sms, int(asked[1]), "blocks, as in comm_nccl.cu")


def check_dealt():
    """The last rank's part, added to what all others have, is the whole, and no rank has more."""
    for name in PRESETS:
        buckets = PRESETS[name].buckets()
        for world in (1, 2, 7, 8, 256, 1024):
            each = [n // shapes.GRAIN // world * shapes.GRAIN for n in buckets]
            last = shapes.held_elements(PRESETS[name], world, 1)
            same(last + (world - 1) * sum(each), sum(buckets), f"{name} on {world}: all of it")
            check(last >= sum(each), f"{name} on {world}: the last has the most")


# ---- memory ----


def unit_of(program, name, batch, recompute):
    """Half of the last digit that --plan prints of each row, in bytes."""
    plan = shapes.read_plan(program, name, batch, recompute)
    return {k: (0.005 * 2**30 if v >= 1e9 else 0.005 * 2**20) for k, v in plan.items()}, plan


def compare_plan(program, shape, batch, recompute, bf16):
    """Rows that differ: [what]. Buckets may begin at grains: so many elements more."""
    half, plan = unit_of(program, shape.name, batch, recompute)
    n, tokens = shape.elements(), batch * shape.T
    want = shapes.compute_plan(shape, batch, recompute)
    if not bf16:
        activations = shape.activation_bytes(batch, recompute, 4, tokens * shape.A)
        want = {"weights": 4 * n, "gradients": 4 * n, "activations": activations,
                "optimizer (two moments)": shapes.optimizer_bytes(n)}
    grains = shapes.GRAIN * (shape.L + 2)
    differ = []
    for row, size in want.items():
        slack = half[row] + 64 * 20 * shape.L if row == "activations" else half[row] + 8 * grains
        if row == "scratch":
            slack = 0.02 * plan["total"]
        if abs(size - plan[row]) > slack:
            differ.append(f"{shape.name}, batch {batch}, {recompute}: {row}: {size / 2**20:.2f} "
                          f"MiB, --plan: {plan[row] / 2**20:.2f}")
    return differ


def check_plan(program):
    """Every preset's parameters and FLOPs, and memory by category."""
    bf16 = "-bf16-" in program
    for name, shape in PRESETS.items():
        for batch, recompute in ((1, "none"), (4, "light"), (8, "block")):
            if bf16 and shape.gpt2:
                continue  # served by the other core of attention, which takes other scratch
            for line in compare_plan(program, shape, batch, recompute, bf16):
                check(False, line)
        done = subprocess.run([program, "--plan", "--model", name], capture_output=True, text=True,
                              check=True).stdout
        embeddings, layer, final = shape.tensors()
        padding = (embeddings[0] // shape.C - shape.V) * (shape.C + (not shape.gpt2))
        count = sum(embeddings) + shape.L * sum(layer) + sum(final) - padding
        printed = re.search(r"with biases, norms, positions +(\d+)", done)[1]
        same(str(count), printed, f"{name}: parameters")
        flops = re.search(r"a token +(\S+)", done)[1]
        same(f"{shape.step_flops(1):.4g}", flops, f"{name}: FLOPs a token")
    wrong = replace(PRESETS["301M"], F=PRESETS["301M"].F + 64)
    check(compare_plan(program, wrong, 4, "none", bf16), "an MLP that is 3 % wider is not seen")


def check_plans():
    """Of the newest trainers of each precision; how many there were."""
    found = {}
    for path in glob.glob(os.path.join(TOP, "build", "*-laser", "train_gpt")):
        kind = os.path.basename(os.path.dirname(path)).split("-")
        if kind[:2] in (["cpu", "fp32"], ["cuda", "bf16"], ["emu", "bf16"]) and not any(
                k.startswith("san") for k in kind):
            found.setdefault(kind[1], []).append(path)
    for paths in found.values():
        check_plan(max(paths, key=os.path.getmtime))
    return len(found)


def check_memory():
    """--zero 1 takes away what others hold, of master weights and moments alone."""
    memory, shape = shapes.Memory(None), PRESETS["1.1B"]
    sizes = {(world, zero): memory.bytes(shape, H100, model.Run(world, 8, 8, zero))
             for world, zero in ((1, 1), (8, 0), (8, 1))}
    same(sizes[8, 0] - sizes[1, 1], H100.library, "what the library takes")
    held = shapes.held_elements(shape, 8, 1)
    near(sizes[8, 0] - sizes[8, 1], 12 * (shape.elements() - held), "what --zero 1 spares")
    run, fits = memory.fitting(shape, replace(H100, memory=sizes[8, 1]), model.Run(8, 8, 24))
    same((run.batch, fits), (4, True), "the batch is halved until it fits")
    run, fits = memory.fitting(shape, replace(H100, memory=2**30), model.Run(8, 8, 24))
    same((run.batch, fits), (1, False), "and what never fits is said")


# ---- what it reads, prints and refuses ----


def call(*options):
    return subprocess.run([sys.executable, PROGRAM, "--planner", "none", *options],
                          capture_output=True, text=True, check=False)


def check_measured(folder):
    path = os.path.join(folder, "measured.txt")
    with open(path, "w", encoding="utf-8") as f:
        f.write("# of a bench\n\ntokens 301M 8 none 100000   # whole steps\n"
                "busbw all_gather 8 2000000 200\nbusbw all_gather 8 1000000 100\n"
                "busbw all_reduce 16 1000 1\n")
    m = machines.read_measured(path, H100)
    shape = PRESETS["301M"]
    alone = model.model_step(shape, m, model.Run(1, 8, 8))
    near(8 * 1024 / alone.seconds, 100000, "a measured rate comes out again")
    near(machines.collective_seconds(m, "all_gather", 1e6, 8), 1e6 * 7 / 8 / 100e9, "as measured")
    near(machines.collective_seconds(m, "all_gather", 4e6, 8), 4e6 * 7 / 8 / 200e9, "beyond")
    near(machines.collective_seconds(m, "all_gather", 1, 8), 1e6 * 7 / 8 / 100e9, "below")
    near(machines.collective_seconds(m, "all_gather", 1.5e6, 8), 1e6 * 7 / 8 / 100e9, "between")
    near(machines.collective_seconds(m, "all_reduce", 1000, 16), 1000 * 2 * 15 / 16 / 1e9, "reduce")
    same(machines.collective_seconds(m, "all_gather", 1e6, 16),
         machines.ring_seconds(H100, 1e6, 16), "other numbers of GPUs stay assumed")
    done = call("--measured", path, "--model", "301M", "--goal", "0")
    check("MEASURED       301M, batch 8" in done.stdout, "what was measured is printed")
    for line in ("tokens 301M 8 none", "busbw gather 8 1 1", "tokens 301M 0 none 1",
                 "tokens a b c d", "busbw all_gather 8 1000 nan", "busbw all_gather 1 1000 1",
                 "tokens 301M 8 none 1 2", "comm nccl, 8 processes: WRONG"):
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"# one\n{line}\n")
        done = call("--measured", path)
        check(done.returncode == 3 and f"line 2: '{line}'" in done.stderr, f"refused: {line}")
    with open(path, "w", encoding="utf-8") as f:
        f.write("# nothing\n")
    same(call("--measured", path).returncode, 3, "a file without anything")
    same(call("--measured", os.path.join(folder, "none")).returncode, 3, "no such file")


BENCHES = """\
== 301M standard auto: --model 301M --batch 16
  step, median of 5            99.00 ms      4444.0 tokens/s     300.0 GFLOP/s (model FLOPs)
== 301M laser auto: --model 301M --batch 16
  step, median of 5            65.54 ms    250000.0 tokens/s     300.0 GFLOP/s (model FLOPs)
  step, best                   60.00 ms    260000.0 tokens/s   333.0 GFLOP/s
== 301M-uncapped laser cudnn: --model 301M --attn-cap 0 --batch 16
  step, median of 5            50.00 ms    333333.0 tokens/s     300.0 GFLOP/s (model FLOPs)
== 7.7B laser auto: --model 7.7B --recompute block --batch 2
  step, median of 5           500.00 ms      4096.0 tokens/s     300.0 GFLOP/s (model FLOPs)
comm mpi+nccl, 4 processes: right
                            MiB      time us   algbw GB/s   busbw GB/s
reduce-scatter fp32         1.0         20.0        52.43        39.32
reduce-scatter fp32         4.0         40.0       104.86        78.64
reduce-scatter bf16         2.0         77.0        27.24        20.43
all-gather fp32             1.0         15.0        69.91        52.43
all-gather bf16             0.5         10.0        52.43        39.32
"""


def check_benches(folder):
    """What the benches print is read as it is: of whole steps LASER's, capped."""
    path = os.path.join(folder, "benches.txt")
    with open(path, "w", encoding="utf-8") as f:
        f.write(BENCHES)
    m = machines.read_measured(path, H100)
    same(m.tokens, {("301M", 16, "none"): 250000, ("7.7B", 2, "block"): 4096}, "steps of a bench")
    us, mib = 1e-6, 2**20
    same(m.busbw, {("reduce_scatter", 4): [(mib, 20 * us), (4 * mib, 40 * us)],
                   ("all_gather", 4): [(mib / 2, 10 * us), (mib, 15 * us)]}, "its collectives")
    s = model.model_step(PRESETS["7.7B"], m, model.Run(1, 2, 2, recompute="block"))
    near(2 * 1024 / s.seconds, 4096, "a measured rate with recomputing comes out again")
    rates = [model.flop_rate(m, PRESETS["301M"], model.Run(1, b, 8)) for b in (1, 16)]
    same(rates[0], rates[1], "another batch runs at the rate of the nearest")


def check_program():
    done = call("--model", "301M,2.2B")
    lines = done.stdout.splitlines()
    same(done.returncode, 0, f"it runs: {done.stderr}")
    check(lines[0].startswith("A MODEL, NOT A MEASUREMENT"), "the first line says what it is")
    check(any(line.startswith("Assumed") for line in lines), "what is assumed is said")
    same(sum(" scaling:" in line for line in lines), 6, "two weak tables and a strong one a model")
    check(any(line.startswith("Goal: 2.2B on 256 GPUs") for line in lines), "the goal")
    for options in (("--model", "3B"), ("--gpus", "0"), ("--zero", "2"), ("--network-sms", "132"),
                    ("--mfu", "0"), ("--gpus", "a")):
        same(call(*options).returncode, 2, f"refused: {options}")


def main():
    for part in (check_one_gpu, check_free_network, check_bounds, check_slow_network,
                 check_more_buckets, check_streams, check_tiny, check_planted, check_collectives,
                 check_blocks, check_dealt, check_memory, check_program):
        part()
    with tempfile.TemporaryDirectory() as folder:
        check_measured(folder)
        check_benches(folder)
    compared = check_plans()
    if FAILURES:
        sys.exit(1)
    if not compared:
        print("skipped: no trainer is built whose --plan memory could be compared with")
        sys.exit(77)
    print(f"the scale model keeps its limits, and --plan of {compared} precisions agrees")


if __name__ == "__main__":
    main()
