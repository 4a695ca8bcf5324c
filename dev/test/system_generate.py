"""Text from a checkpoint by --sample-from, and attention's probe in the log, as a user meets
them."""

import os
import shutil

from system_kit import (
    INPUT,
    USAGE,
    check,
    newest,
    records,
    same,
    test,
)

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = os.path.join(TOP, "dev/ref/fixtures/encode.model")  # 600 pieces


def generate(t, code=0, says=(), **options):
    """Stdout of a call; checks exit code and stderr."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    result = t.call([t.trainer, "--threads=1", *words])
    same(result.code, code, f"exit code of {words}: {result.err}")
    for text in [says] if isinstance(says, str) else says:
        check(text in result.err, f"{text!r} is not in what was said: {result.err}")
    return result.out


@test("text: ids from a checkpoint, the same for the same seed, from a run's newest too", each=True)
def from_checkpoint(t):
    t.train(out="run", steps=4, save_every=2, diff=True, per_dim_scale=True, pos="rope")
    run, plan = t.path("run"), dict(prompt_ids="3,1 4", sample_tokens=5, seed=2)
    first = generate(t, sample_from=run, **plan)
    ids = [int(word) for word in first.split()]
    same(ids[:3], [3, 1, 4], "the prompt comes first")
    check(3 <= len(ids) <= 8, f"{len(ids)} ids of 3 + 5")
    same(generate(t, sample_from=newest(run), **plan), first, "by run and by checkpoint")
    greedy = dict(prompt_ids="3", sample_tokens=6, sample_temperature=0)
    same(
        generate(t, sample_from=run, seed=1, **greedy),
        generate(t, sample_from=run, seed=2, **greedy),
        "the most probable tokens, whatever the seed",
    )
    # a run that is saving is not disturbed: what looks interrupted stays
    os.makedirs(f"{run}/checkpoints/tmp_00000009")
    generate(t, sample_from=run, **plan)
    check(os.path.isdir(f"{run}/checkpoints/tmp_00000009"), "a reader removed a save under way")


@test("text: a prompt goes through the vocabulary beside the shards")
def from_text(t):
    shutil.copytree(t.data, t.path("data"))
    shards = t.path("data", "train_*.bin")
    t.train(out="run", steps=1, warmup=0, vocab=600, val=None, val_every=0, train=shards)
    run = t.path("run")
    generate(t, INPUT, "none.bin", sample_from=run, tokenizer=t.path("none.bin"), prompt="the")
    generate(t, INPUT, "no sentencepiece model at", sample_from=run, prompt="the")
    shutil.copy(MODEL, t.path("data", "tokenizer.model"))
    # no tokenizer.bin: ids are printed
    out = generate(t, sample_from=run, prompt="the values", sample_tokens=1)
    ids = [int(word) for word in out.split()]
    check(len(ids) >= 3 and max(ids) < 600, f"the prompt's ids and one more: {out}")
    same(generate(t, sample_from=run, prompt="the valuez", sample_tokens=1) == out, False, "prompt")


@test("text: what cannot be continued is refused with exit code 2 or 3 and named")
def refused(t):
    t.train(out="run", steps=1, warmup=0, val_every=0)
    run = t.path("run")
    generate(t, INPUT, "neither a checkpoint nor a run", sample_from=t.path("absent"))
    generate(t, USAGE, "expected ids from 0 to", sample_from=run, prompt_ids="1,99999")
    generate(t, USAGE, "expected ids from 0 to", sample_from=run, prompt_ids="1,x")
    many = " ".join(["1"] * 500)
    generate(t, USAGE, "the prompt has 500 tokens", sample_from=run, prompt_ids=many)
    with open(f"{newest(run)}/model.safetensors", "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\xff")
    generate(t, INPUT, "passed over", sample_from=run)
    generate(t, INPUT, "not a whole checkpoint", sample_from=newest(run))
    other = [trainer for trainer in t.trainers.values() if trainer != t.trainer]
    if other:
        t.train(out="two", steps=1, warmup=0, val_every=0)
        result = t.call([other[0], f"--sample-from={t.path('two')}"])
        same(result.code, USAGE, "exit code of the other attention's program")


@test("probe: --probe-attention writes shares, norms and counts of every layer", each=True)
def probe(t):
    t.train(out="plain", steps=6)
    t.train(out="run", steps=6, probe_attention=3, qk_norm=False)
    lines = records(t.path("run"), "probe")
    same([line["step"] for line in lines], [3, 6], "steps of the probe")
    for line in lines:
        same(len(line["layers"]), 2, "layers")
        for layer in line["layers"]:
            check(0 <= layer["below_1e-7"] <= layer["below_1e-3"] <= 1, f"shares {layer}")
            check(layer["grad_q"] > 0 and layer["jacobian"] > 0, f"norms {layer}")
            same(len(set(layer["bins"])) > 1, True, "bins are filled")
    same(
        [r["loss"] for r in records(t.path("run"), "train")],
        [r["loss"] for r in records(t.path("plain"), "train")],
        "losses with and without the probe",
    )
    t.train(out="block", steps=6, probe_attention=3, recompute="block", code=USAGE)
