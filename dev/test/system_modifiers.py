"""Attention's modifiers in whole runs: all of them on, a run resumes in the same bits and does not
depend on threads or recomputation; what they learn lies in the checkpoint by name, beside weights
that a run without them starts from too; a run that was begun without them cannot go on with them.
"""

import json

from system_kit import (
    USAGE,
    check,
    check_same_run,
    newest,
    read,
    records,
    same,
    tensors,
    test,
    write,
)

# head_dim 12: two maps of 6 channels each
ALL = dict(temperature=0.8, per_dim_scale=True, qk_norm=True, diff=True, pos="rope")
LEARNED = {  # option -> names in a layer's attention
    "per_dim_scale": ["per_dim_scale"],
    "qk_norm": ["k_norm.weight", "q_norm.weight"],
    "diff_plain": ["lambda_k1", "lambda_k2", "lambda_q1", "lambda_q2"],
    "diff": ["diff_norm.weight", "lambda_k1", "lambda_k2", "lambda_q1", "lambda_q2"],
}


@test("modifiers: all of them on, a stopped run ends in the same bits", each=True)
def resume(t):
    t.train(out="whole", **ALL)
    t.train(out="run", stop_after=7, **ALL)
    t.train(out="run", stop_after=4, **ALL)
    t.train(out="run", **ALL)
    check_same_run(t.path("whole"), t.path("run"))
    loss = [r["loss"] for r in records(t.path("whole"), "train")]
    check(loss[-1] < loss[0] - 0.1, f"nothing was learned: {loss[0]} .. {loss[-1]}")


@test("modifiers: all of them on, threads and recomputation change no bit", each=True)
def same_bits(t):
    t.train(out="plain", **ALL)
    for name, change in (
        ("threads", dict(threads=2)),
        ("light", dict(recompute="light")),
        ("block", dict(recompute="block")),
    ):
        t.train(out=name, **{**ALL, **change})
        check_same_run(t.path("plain"), t.path(name))


@test("modifiers: each adds its tensors by name and leaves the other initial weights as they are")
def names(t):
    start = dict(lr=0, steps=1, warmup=0, val_every=0)
    t.train(out="without", **start)
    without = tensors(f"{newest(t.path('without'))}/model.safetensors")
    for option, learned in LEARNED.items():
        t.train(out=option, **start, **{option: True})
        found = tensors(f"{newest(t.path(option))}/model.safetensors")
        added = sorted(set(found) - set(without))
        wanted = sorted(f"transformer.h.{l}.attn.{n}" for l in range(2) for n in learned)
        same(added, wanted, f"tensors that --{option} adds")
        check(all(found[n] == without[n] for n in without), f"--{option} changed other weights")
        for name in added:
            if "lambda" in name:
                check(0 < max(map(abs, found[name])) < 0.6, f"{name} is not N(0, 0.1)")
            else:
                same(set(found[name]), {0.0 if "per_dim" in name else 1.0}, f"values of {name}")


@test("modifiers: each trains another model, and so does a temperature")
def they_matter(t):
    t.train(out="without")
    losses = [[r["loss"] for r in records(t.path("without"), "train")]]
    for option, value in (*((o, True) for o in LEARNED), ("temperature", 0.5)):
        t.train(out=option, **{option: value})
        losses.append([r["loss"] for r in records(t.path(option), "train")])
    for i, one in enumerate(losses):
        for other in losses[:i]:
            check(one[-1] != other[-1], f"two runs end with loss {one[-1]}")


@test("modifiers: a run from before these options were there goes on without them, and only so")
def older_run(t):
    t.train(out="whole")
    t.train(out="run", stop_after=7)
    for path in (t.path("run/config.json"), f"{newest(t.path('run'))}/state.json"):
        found = json.loads(read(path))
        for option in ("temperature", "per_dim_scale", "qk_norm", "diff", "diff_plain"):
            recorded = found.get("config", found).pop(option, None)
            check(recorded is not None, f"{path} does not record {option}")
        write(path, json.dumps(found, separators=(",", ":")).encode())
    t.train(out="run", code=USAGE, says="  --qk-norm: 0 -> 1", qk_norm=True)
    t.train(out="run", code=USAGE, says="  --temperature: 1 -> 2", temperature=2)
    t.train(out="run")
    check_same_run(t.path("whole"), t.path("run"))
