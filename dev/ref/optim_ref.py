#!/usr/bin/env python3
"""optim_ref.py: AdamW and LAMB in numpy, float64, written from their descriptions and not from the
C code; writes the fixture that dev/test/test_adam_steps.c compares with. Needs numpy and
safetensors, and optax and jax for --optax. Knows no file of laser/.

    python3 dev/ref/optim_ref.py [--out dev/ref/fixtures] [--check | --optax]

--check writes nothing and fails when the file there differs from what would be written. --optax
writes nothing, takes the same steps by optax and prints how far apart the weights end. In the file,
the tensors one after the other, TOTAL elements in all:

    tensors           (tensors, 3) elements, 1 where it is a matrix, center
    rates             (STEPS) learning rates
    init              (TOTAL) weights;    grads (STEPS, TOTAL)
    CASE.options      beta1 beta2 eps weight_decay grad_clip update_clip lamb decay_all
    CASE.first        (TOTAL) weights after the first step;    CASE.final after the last
"""
import argparse
import pathlib
import sys

import numpy as np
from safetensors.numpy import save

STEPS = 10
# elements, matrix, center, std of what it starts from (around center), std of its gradient, step of
# the first gradient that is not 0
TENSORS = {
    "large": (371, True, 0, 20.0, 1e-2, 0),  # trust ratios above 10
    "small": (323, True, 0, 0.02, 1e-4, 0),
    "bias": (53, False, 0, 0.0, 3e-3, 0),  # starts from 0
    "scale": (40, False, 1, 0.0, 1e-3, 0),  # starts from 1, as norms do
    "late": (29, False, 0, 0.0, 1e-3, 3),
    "still": (35, True, 0, 0.5, 0.0, STEPS),  # never has a gradient
    "one": (1, False, 0, 0.7, 1e-2, 0),
    "moved": (31, False, 1, 0.3, 2e-2, 0),
}
OPTIONS = ("beta1", "beta2", "eps", "weight_decay", "grad_clip", "update_clip", "lamb", "decay_all")
CASES = {
    "adamw": (0.9, 0.99, 1e-8, 0.1, 0, 0, 0, 0),
    "adamw_clipped": (0.9, 0.99, 1e-24, 0.1, 0.15, 0.5, 0, 1),  # as Pax has it
    "lamb": (0.9, 0.999, 1e-6, 0.02, 0.15, 0, 1, 1),
    "lamb_matrices": (0.9, 0.99, 1e-24, 0.1, 0, 0, 1, 0),
    "lamb_no_decay": (0.8, 0.95, 1e-6, 0, 1, 0, 1, 0),
    "lamb_clipped": (0.9, 0.99, 1e-24, 0.3, 0.15, 0.5, 1, 1),
}


def problem():
    """Weights, gradients of each step and rates, as float32."""
    rng = np.random.Generator(np.random.PCG64(300))
    init, grads = {}, [{} for _ in range(STEPS)]
    for name, (n, _, center, std, grad_std, first) in TENSORS.items():
        init[name] = (center + std * rng.standard_normal(n)).astype(np.float32)
        mean = grad_std * rng.standard_normal(n)  # so that moments do not cancel
        for step in range(STEPS):
            g = mean + grad_std * rng.standard_normal(n)
            grads[step][name] = (g if step >= first else 0 * g).astype(np.float32)
    rates = (0.02 * (1 - np.arange(STEPS) / 20)).astype(np.float32)
    return init, grads, rates


def options_of(case):
    """Rounded to float32, which is what a program that computes in it is given."""
    return {k: float(np.float32(x)) for k, x in zip(OPTIONS, CASES[case])}


def decay_of(name, o):
    return o["weight_decay"] if o["decay_all"] or TENSORS[name][1] else 0.0


def clip_gradients(grads, o):
    """All of them by one factor, as torch's clip_grad_norm_ does."""
    grads = {name: g.astype(np.float64) for name, g in grads.items()}
    norm = np.sqrt(sum((g * g).sum() for g in grads.values()))
    factor = min(1.0, o["grad_clip"] / (norm + 1e-6)) if o["grad_clip"] > 0 else 1.0
    return {name: g * factor for name, g in grads.items()}


def train(case, init, all_grads, rates):
    """Yields the weights after each step. Stored as 1 + w where center is 1: what decays, and whose
    norm counts, is w."""
    o = options_of(case)
    w = {name: x.astype(np.float64) for name, x in init.items()}
    m = {name: np.zeros_like(x) for name, x in w.items()}
    v = {name: np.zeros_like(x) for name, x in w.items()}
    for t, rate in enumerate(rates, start=1):
        grads = clip_gradients(all_grads[t - 1], o)
        for name, g in grads.items():
            m[name] = o["beta1"] * m[name] + (1 - o["beta1"]) * g
            v[name] = o["beta2"] * v[name] + (1 - o["beta2"]) * g**2
            mhat = m[name] / (1 - o["beta1"] ** t)
            vhat = v[name] / (1 - o["beta2"] ** t)
            u = mhat / (np.sqrt(vhat) + o["eps"])
            if o["update_clip"] > 0:
                u = u / max(1.0, np.sqrt(np.mean(u**2)) / o["update_clip"])
            held = w[name] - TENSORS[name][2]
            u = u + decay_of(name, o) * held
            if o["lamb"] and np.any(held) and np.any(u):
                u = u * np.linalg.norm(held) / np.linalg.norm(u)
            w[name] = w[name] - float(rate) * u
        yield dict(w)


def train_optax(case, init, all_grads, rates):
    """The same by optax's optimizers; update clipping by its parts. Global clipping is ours:
    optax's divides by the norm alone."""
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    o = options_of(case)
    table = jax.numpy.asarray(rates, dtype="float64")
    mask = {name: decay_of(name, o) > 0 for name in TENSORS}
    common = dict(b1=o["beta1"], b2=o["beta2"], eps=o["eps"])
    if o["update_clip"] > 0:
        parts = [optax.scale_by_adam(**common), optax.clip_by_block_rms(o["update_clip"]),
                 optax.add_decayed_weights(o["weight_decay"], mask)]
        parts += [optax.scale_by_trust_ratio()] if o["lamb"] else []
        rule = optax.chain(*parts, optax.scale_by_learning_rate(lambda step: table[step]))
    else:
        make = optax.lamb if o["lamb"] else optax.adamw
        rule = make(lambda step: table[step], weight_decay=o["weight_decay"], mask=mask, **common)
    held = {name: jax.numpy.asarray(x.astype(np.float64) - TENSORS[name][2])
            for name, x in init.items()}
    state = rule.init(held)
    for grads in all_grads:
        grads = {n: jax.numpy.asarray(g) for n, g in clip_gradients(grads, o).items()}
        updates, state = rule.update(grads, state, held)
        held = optax.apply_updates(held, updates)
    return {name: np.asarray(x) + TENSORS[name][2] for name, x in held.items()}


def compare_with_optax():
    import optax

    init, grads, rates = problem()
    print(f"optax {optax.__version__}, float64, {STEPS} steps: largest difference of a weight, as "
          "a fraction of the largest of its tensor")
    for case in CASES:
        ours = list(train(case, init, grads, rates))[-1]
        theirs = train_optax(case, init, grads, rates)
        worst = max(np.abs(ours[n] - theirs[n]).max() / np.abs(theirs[n]).max() for n in TENSORS
                    if np.any(theirs[n]))
        print(f"  {case:16} {worst:.2g}")
        if not worst < 1e-12:
            sys.exit(f"{case}: differs from optax")


def build():
    init, grads, rates = problem()

    def joined(tensors):
        return np.concatenate([tensors[name] for name in TENSORS]).astype(np.float32)

    table = [[n, int(matrix), center] for n, matrix, center, *_ in TENSORS.values()]
    out = {"tensors": np.array(table, np.int64), "rates": rates, "init": joined(init),
           "grads": np.stack([joined(g) for g in grads])}
    for case, options in CASES.items():
        steps = list(train(case, init, grads, rates))
        out[case + ".options"] = np.array(options, np.float32)
        out[case + ".first"], out[case + ".final"] = joined(steps[0]), joined(steps[-1])
    return save(out)


def main():
    parser = argparse.ArgumentParser(description="write the fixture of test_adam_steps.c")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "fixtures")
    parser.add_argument(
        "--check", action="store_true", help="compare with the file instead of writing it")
    parser.add_argument("--optax", action="store_true", help="compare with optax instead")
    args = parser.parse_args()
    if args.optax:
        compare_with_optax()
        return
    path, content = args.out / "optim.safetensors", build()
    if args.check:
        if path.read_bytes() != content:
            sys.exit(f"{path} differs from what optim_ref.py writes")
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    print(f"{path}: {len(content)} bytes, {'as written' if args.check else 'written'}")


if __name__ == "__main__":
    main()
