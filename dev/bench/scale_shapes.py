"""The models of scale_model.py and what they take of a GPU's memory: shapes from the presets in
laser/config.c, counts as laser/model.c has them, memory by the trainer's own --plan where one is
built."""

import glob
import os
import re
import subprocess
from dataclasses import dataclass, replace

from scale_machine import GIB, die

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MIB = 2**20
GRAIN = 4096  # elements: buckets begin, and are cut, at its multiples (laser/model.h)
GRADIENT, WEIGHT = 4, 2  # bytes of an element, with PRECISION=bf16


@dataclass(frozen=True)
class Shape:
    name: str
    L: int
    C: int
    F: int
    H: int
    HD: int
    V: int
    T: int
    gpt2: bool  # learned positions, GELU, biases in attention and none on logits

    @property
    def A(self):
        return self.H * self.HD

    def tensors(self):
        """Elements of the tensors of each bucket: embeddings, a layer, what follows the last."""
        C, F, A, padded = self.C, self.F, self.A, -(-self.V // 128) * 128
        embeddings = [padded * C] + [self.T * C] * self.gpt2
        biases = [F, C] + [3 * A, C] * self.gpt2
        layer = [3 * A * C, A * C, C * F, F * C, C, C, C, C] + biases
        return embeddings, layer, [C, C] + [padded] * (not self.gpt2)

    def buckets(self):
        """Elements of each bucket, in forward order."""
        e, l, f = (-(-sum(-(-n // 16) * 16 for n in b) // GRAIN) * GRAIN for b in self.tensors())
        return [e] + [l] * self.L + [f]

    def elements(self):
        return sum(self.buckets())

    def layer_flops(self, tokens):
        """Of a layer's forward pass: matrices, causal scores and values."""
        return tokens * (2 * (4 * self.A * self.C + 2 * self.C * self.F) + 2 * self.A * self.T)

    def head_flops(self, tokens):
        return tokens * 2 * self.V * self.C

    def step_flops(self, tokens):  # model_flops_per_token() of laser/model.c
        return 3 * (self.L * self.layer_flops(tokens) + self.head_flops(tokens))

    def activation_bytes(self, batch, recompute, act=2, laser_floats=None):
        """plan_activations() of laser/model.c; act: bytes of an activation."""
        N, C, F, A = batch * self.T, self.C, self.F, self.A
        if laser_floats is None:
            laser_floats = 3 * batch * A + N * A * act // 4
        block = 4 * (4 * N + N * self.H + laser_floats) + act * N * (4 * A + C)
        light = act * N * 2 * C
        if self.gpt2:
            block, light = block + act * N * F, light + act * N * F
        else:
            block += act * N * F
        kept = {"none": (self.L, self.L), "light": (self.L, 1), "block": (1, 1)}[recompute]
        layers = self.L * act * N * C + kept[0] * block + kept[1] * light
        ends = act * N * 3 * C + 4 * (3 * N + 32 * self.V + 2 * N) + act * self.T * C * (
            not self.gpt2)
        return layers + ends + act * N * (C + max(C, 3 * A, F) + max(C, A))

    def scratch_bytes(self, batch):
        """About what laser/cuda/backend.cu takes where attention is by products: in chunks of
        (sequence, head) pairs of about the same size."""
        N, padded, budget = batch * self.T, -(-self.V // 128) * 128, 512 * MIB
        logits = min(budget, 4 * N * padded)
        partials = 4 * 512 * max(self.C, self.F, 3 * self.A, padded)
        pair = self.T * (18 * self.HD + 4 * (self.T + max(self.T, self.HD)))
        pairs = batch * self.H
        chunk = -(-pairs // -(-pairs // min(pairs, budget // pair))) * pair
        exact = 16 * 4 * 3 * self.T * self.HD
        return 32 * MIB + logits + partials + chunk + exact


def read_presets():
    """From the table in laser/config.c, those that have a vocabulary of their own."""
    with open(os.path.join(TOP, "laser", "config.c"), encoding="utf-8") as f:
        rows = re.findall(r'\{"([\w.-]+)", (\d+), (\d+), (\d+), (\d+), (\d+), (\d+), (\d+), '
                          r"(true|false), ", f.read())
    return {r[0]: Shape(r[0], *map(int, r[1:8]), r[8] == "true") for r in rows}


# ---- memory ----


def find_planner():
    """The newest trainer with bf16 weights in build/, or None."""
    found = glob.glob(os.path.join(TOP, "build", "*-bf16-*-laser", "train_gpt"))
    return max(found, key=os.path.getmtime) if found else None


def read_plan(program, model, batch, recompute="none"):
    """Bytes by category as the trainer's --plan prints them."""
    command = [program, "--plan", "--model", model, "--batch", str(batch)]
    done = subprocess.run(command + ["--recompute", recompute], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        die(f"{' '.join(command)}: {done.stderr.strip()}")
    unit = {"MiB": MIB, "GiB": GIB}
    rows = re.findall(r"^  ([a-z].*?) {2,}([\d.]+) (MiB|GiB)$", done.stdout, re.M)
    return {name: float(number) * unit[u] for name, number, u in rows}


def optimizer_bytes(n):
    """Two moments, and a sum of squares for each block of gradients."""
    return 8 * n + 8 * (n // GRAIN)


def compute_plan(shape, batch, recompute="none"):
    """The same where no such trainer is built; dev/test/check_scale.py compares."""
    n = shape.elements()
    return {
        "weights": WEIGHT * n,
        "master weights (fp32)": 4 * n,
        "gradients": GRADIENT * n,
        "optimizer (two moments)": optimizer_bytes(n),
        "activations": shape.activation_bytes(batch, recompute),
        "scratch": shape.scratch_bytes(batch),
        "context and libraries": 500 * MIB,
    }


def held_elements(shape, world, zero):
    """Elements that the last rank, which has the most, updates: of each bucket as many whole grains
    as all ranks have, and what is left (CommShare of laser/comm.h)."""
    if zero == 0 or world == 1:
        return shape.elements()
    return sum(n - (world - 1) * (n // GRAIN // world * GRAIN) for n in shape.buckets())


class Memory:
    """Bytes of a GPU; asks each plan once."""

    def __init__(self, planner):
        self.planner, self.plans = planner, {}

    def bytes(self, shape, machine, run):
        key = (shape.name, run.batch, run.recompute)
        if key not in self.plans:
            self.plans[key] = read_plan(self.planner, *key) if self.planner else \
                compute_plan(shape, *key[1:])
        share = held_elements(shape, run.world, run.zero) / shape.elements()
        total = machine.library if run.world > 1 else 0
        for name, size in self.plans[key].items():
            if name.startswith(("master", "optimizer")):
                whole = optimizer_bytes(shape.elements()) - 8 * shape.elements()
                kept = whole if name.startswith("optimizer") else 0  # sums over all blocks
                total += kept + (size - kept) * share
            elif not name.startswith(("total", "one checkpoint", "while saving")):
                total += size
        return total

    def fitting(self, shape, machine, run):
        """The run with the largest batch, of halves of run.batch, that is whole and fits; with the
        smallest where none does; and whether it fits."""
        while True:
            whole = run.sequences % run.batch == 0
            fits = self.bytes(shape, machine, run) <= 0.98 * machine.memory
            if (whole and fits) or run.batch == 1:
                return run, fits
            run = replace(run, batch=run.batch // 2)
