"""What a run does and leaves to read: it learns, it ends when it diverges, and its files hold
what is documented."""

import glob
import json
import math
import os
import re

from system_kit import (
    DIVERGED,
    TINY,
    check,
    checkpoints,
    log_lines,
    newest,
    records,
    same,
    tensors,
    test,
    tokens_like_text,
    write_shard,
)


@test("training: a few batches are learnt by heart, to a loss near nothing", each=True)
def overfit(t):
    write_shard(t.path("few.bin"), tokens_like_text(8 * 16 + 1, 11))
    # lr and size are such that 300 steps suffice for 128 tokens
    t.train(
        out="run",
        train=t.path("few.bin"),
        val=None,
        steps=300,
        lr=1e-2,
        weight_decay=0,
        warmup=10,
        save_every=0,
    )
    losses = [r["loss"] for r in records(t.path("run"), "train")]
    # at first about the entropy of a uniform guess, plus the spread of random logits
    check(math.log(61) - 0.5 < losses[0] < math.log(61) + 4, f"first loss {losses[0]}")
    check(losses[-1] < 0.1, f"last loss {losses[-1]}")


@test("training: the loss on unseen text falls below what single tokens tell", each=True)
def learns(t):
    write_shard(t.path("train.bin"), tokens_like_text(60000, 21))
    write_shard(t.path("val.bin"), tokens_like_text(3000, 22))
    t.train(
        out="run",
        train=t.path("train.bin"),
        val=t.path("val.bin"),
        steps=400,
        lr=1e-2,
        total_batch=1024,
        batch=16,
        seq_len=64,
        val_every=200,
        val_tokens=0,
        save_every=0,
    )
    losses = [r["loss"] for r in records(t.path("run"), "val")]
    # every token is as frequent as any other: only the rule behind them brings the loss under log
    # 61 = 4.11. A source that follows its rule 3 times in 4 has an entropy of 1.56.
    check(losses[-1] < 2.2, f"validation losses {losses}")
    check(losses[-1] > 1.5, f"validation losses {losses} are below the entropy of the source")


@test(
    "training: steps that are not finite are skipped; 20 in a row end it with exit code 5",
    each=True,
)
def diverges(t):
    # decay by lr * weight_decay = 1e6 a step, with a sign: the weights grow until their products
    # are infinite
    t.train(
        out="run",
        lr=1e3,
        weight_decay=1e3,
        warmup=0,
        schedule="constant",
        steps=200,
        save_every=5,
        code=DIVERGED,
        says=["diverged", "20 steps in a row", "--lr"],
    )
    train = records(t.path("run"), "train")
    skipped = [r.get("skipped", False) for r in train]
    same(skipped[-20:], [True] * 20, "skipped in the last records")
    check(not skipped[-21], "more than 20 steps in a row were skipped")
    check(len(train) < 60, f"it took {len(train)} steps")
    for r in train[-20:]:
        check(r["loss"] is None or r["grad_norm"] is None, f"a finite step was skipped: {r}")
    events = [r for r in records(t.path("run"), "event") if r["name"] == "diverged"]
    same(len(events), 1, "diverged events")
    for name in checkpoints(t.path("run")):
        for kind in ("model", "optimizer"):
            for tensor, values in tensors(
                t.path("run/checkpoints", name, f"{kind}.safetensors")
            ).items():
                check(all(map(math.isfinite, values)), f"{name}: {tensor} is not finite")
        state = json.load(open(t.path("run/checkpoints", name, "state.json"), encoding="utf-8"))
        same(state["skipped"], sum(skipped[: state["step"]]), f"skipped steps of {name}")
        same(state["updates"], state["step"] - state["skipped"], f"updates of {name}")
        same(state["skipped_in_row"], 0, f"{name} is from before: skipped steps at its end")


# ---- files -------------------------------------------------------------------------------------

KEYS = {
    "train": {"kind", "step", "tokens", "loss", "grad_norm", "lr", "step_ms", "tok_s", "mfu"},
    "val": {"kind", "step", "tokens", "val_tokens", "loss"},
    "event": {"kind", "step", "name", "text", "time"},
}
RUN_KEYS = {
    "attention",
    "backend",
    "precision",
    "parameters",
    "parameters_bare",
    "flops_per_token",
    "peak_flops",
    "processes",
    "data_tokens",
    "data_fingerprint",
    "data",
    "device",
    "version",
    "revision",
    "started",
}


@test(
    "run directory: log.jsonl holds JSON lines with the documented keys and values that agree",
    each=True,
)
def log(t):
    t.train(out="run", stop_after=9)
    t.train(out="run")
    lines = log_lines(t.path("run"))
    for line in lines:
        if line["kind"] == "run":
            missing = RUN_KEYS - set(line) | {o for o in TINY if o not in line}
            same(missing, set(), "keys missing in the run line")
        else:
            same(set(line), KEYS[line["kind"]], f"keys of {line}")
    train = [line for line in lines if line["kind"] == "train"]
    for i, line in enumerate(train):
        same((line["step"], line["tokens"]), (i + 1, (i + 1) * 128), "step and tokens")
        check(
            0 < line["loss"] < 10 and 0 < line["grad_norm"] < 100 and line["step_ms"] > 0,
            f"values of {line}",
        )
        # tokens a second and milliseconds are of one clock; 6 digits are kept
        check(abs(line["tok_s"] * line["step_ms"] / 128e3 - 1) < 1e-4, f"speed in {line}")
    rates = [line["lr"] for line in train]
    same([round(r, 9) for r in rates[:3]], [0.001, 0.002, 0.003], "warm-up")
    check(
        all(a > b for a, b in zip(rates[3:], rates[4:])) and rates[-1] < 3e-3 * 0.01,
        f"cosine: {rates}",
    )
    same(
        [line["step"] for line in lines if line["kind"] == "val"],
        [0, 5, 10, 15, 20, 24],
        "validations",
    )
    # a step's record comes before what was done after that step, and no step comes twice
    steps = [x for x in lines if "step" in x and x.get("name") != "resumed"]
    order = [(x["step"], ("train", "val", "event").index(x["kind"])) for x in steps]
    same(order, sorted(order), "the order of the records")
    names = [line["name"] for line in lines if line["kind"] == "event"]
    same(
        names,
        ["saved", "saved", "stopped", "resumed", "saved", "saved", "saved", "saved"],
        "events",
    )


@test(
    "run directory: config.json holds every option, resolved, and the command line",
    each=True,
)
def config(t):
    t.train(out="run", steps=3)
    with open(t.path("run/config.json"), encoding="utf-8") as f:
        saved = json.load(f)
    for option, value in TINY.items():
        if option != "steps":
            same(saved[option], value, f"option {option} in config.json")
    same(
        (saved["vocab"], saved["act"], saved["pos"], saved["steps"]),
        (61, "relu", "sinusoid", 3),
        "resolved options",
    )
    missing = RUN_KEYS - set(saved)
    same(missing, set(), "keys missing in config.json")
    check("command" in "".join(saved), "config.json does not tell the command line")


@test("run directory: without --steps the run is one pass over the data")
def one_pass(t):
    t.train(out="run", steps=None)
    same(len(records(t.path("run"), "train")), 29 * 16 // 128, "steps")


@test("run directory: without --out nothing is written; without --val nothing is validated")
def no_out(t):
    said = t.train(out=None, val=None)
    same(os.listdir(t.dir), [], "files")
    check("validation" not in said.out, said.out)
    check("step 24/24" in said.out, said.out)


@test(
    "terminal: plain lines in a pipe, without escape sequences; --quiet says nothing at all",
    each=True,
)
def output(t):
    said = t.train(out="loud")
    same(said.err, "", "stderr")
    check(
        "\x1b" not in said.out and "\r" not in said.out,
        "there are control characters in plain output",
    )
    for what in (
        r"step 24/24 \| loss \d\.\d+ \| norm \d+\.\d+ \| lr \d\.\d+e-\d+ \| [\d.]+ ms \| .* tok/s",
        "of peak",
        "validation loss",
        f"{t.data}/train_",
    ):
        check(re.search(what, said.out), f"{what!r} is not in {said.out}")
    said = t.train(out="quiet", quiet=True)
    same((said.out, said.err), ("", ""), "output with --quiet")
    check(glob.glob(t.path("quiet/events.out.tfevents.*")), "no event file")
    newest(t.path("quiet"))
