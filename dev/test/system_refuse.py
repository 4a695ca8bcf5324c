"""What the command line and the run directory refuse: with exit code 2 or 4, naming the option or
the directory, and without touching what is there. Also the texts that need no data: --help,
--version, --plan."""

import os
import re
import shutil
import subprocess
import time

from system_kit import (
    IO,
    TINY,
    USAGE,
    check,
    check_same_run,
    logged,
    newest,
    read,
    records,
    same,
    test,
    tokens_like_text,
    write_data,
    write_shard,
)

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


# ---- the command line --------------------------------------------------------------------------

BAD_WORDS = [
    (["--warmpu", "3"], "unknown option '--warmpu'; did you mean --warmup?"),
    (["--learning-rate=3"], "unknown option '--learning-rate'"),
    (["--lr"], "--lr needs a value"),
    (["--lr", "fast"], "--lr: 'fast' is not a number"),
    (["--lr", "nan"], "--lr: 'nan' is not a number"),
    (["--lr", "1e99"], "--lr: 1e+99 is outside"),
    (["--lr", "-1"], "--lr: -1 is outside"),
    (["--lr="], "--lr: '' is not a number"),
    (["--batch", "0"], "--batch: 0 is outside"),
    (["--batch", "1.5"], "--batch: '1.5' is not a whole number"),
    (["--batch", "99999999999999999999"], "--batch: "),
    (["--steps", "12x"], "--steps: '12x' is not a whole number"),
    (["--seed", "-1"], "--seed: -1 is outside"),
    (["--beta2", "1"], "--beta2: 1 is outside"),
    (["--act", "swish"], "--act: 'swish' is not one of"),
    (["--schedule", "step"], "--schedule: 'step' is not one of cosine|linear|constant|wsd"),
    (["--model", "huge"], "--model: no preset 'huge'; there are 234M"),
    (["--prefetch=no"], "--prefetch takes no value"),
    (["--no-lr"], "unknown option '--no-lr'"),
    (["train.bin"], "unexpected argument 'train.bin'"),
    (["--"], "unexpected argument '--'"),
    (["-lr", "3"], "unexpected argument '-lr'"),
    (["--pos", "rope", "--head-dim", "7"], "--pos rope needs an even --head-dim, not 7"),
    (["--diff", "--head-dim", "7"], "--diff cuts heads in two: it needs an even --head-dim, not 7"),
    (["--diff-plain", "--pos", "rope", "--head-dim", "6"], "a --head-dim that is a multiple of 4"),
    (["--temperature", "0"], "--temperature: 0 is outside"),
    (["--warmup", "30"], "--warmup 30 is longer than --steps 24"),
    (["--total-batch", "100"], "--total-batch 100 is not a multiple of --seq-len 16"),
    (
        ["--total-batch", "96"],
        "--total-batch 96 is 6 sequences of 16 tokens, not a multiple of --batch 4",
    ),
    (["--resume", "no/such/place"], "--resume no/such/place"),
    (["--train", ""], "--train GLOB is needed"),
]


@test("options: each wrong one ends with exit code 2, named, before anything is written")
def bad_options(t):
    for words, says in BAD_WORDS:
        done = t.call([t.trainer, *t.options({}), *words])
        same(done.code, USAGE, f"exit code of {' '.join(words)} ({done.err})")
        check(says in done.err, f"{' '.join(words)}: {says!r} is not in {done.err!r}")
        check(done.err.startswith("error: "), f"{' '.join(words)}: {done.err!r}")
    done = t.call([t.trainer])
    same(done.code, USAGE, "exit code without options")
    check(not os.path.exists(t.path("run")), "a run directory was made")


def config_options():
    """(kind, option, help) of every row of the table in laser/config.h."""
    table = read(os.path.join(TOP, "laser/config.h")).decode().split("#define CONFIG_TABLE")[1]
    text = re.sub(r"\\\n\s*", " ", table)
    return re.findall(
        r'\b(TEXT|INT|REAL|FLAG|ENUM)\(\w+, "([a-z0-9-]+)",.*?"((?:[^"\\]|\\.)*)"\)', text
    )


@test(
    "options: --help lists every option of the table with its explanation, and every preset",
    each=True,
)
def help_text(t):
    said = t.call([t.trainer, "--help"])
    same((said.code, said.err), (0, ""), "exit code and stderr")
    rows = config_options()
    check(len(rows) > 45, f"only {len(rows)} options were found in laser/config.h")
    for kind, option, explanation in rows:
        left = rf"--\[no-\]{option} " if kind == "FLAG" else rf"--{option} "
        check(
            re.search(rf"^  {left}.*{re.escape(explanation)}", said.out, re.M),
            f"--{option} is not listed",
        )
    for preset in PARAMETERS:
        check(
            re.search(rf"^  {re.escape(preset)} ", said.out, re.M), f"preset {preset} is not listed"
        )


@test("options: --version tells version, attention, backend and precision", each=True)
def version(t):
    said = t.call([t.trainer, "--version"])
    same((said.code, said.err), (0, ""), "exit code and stderr")
    check(
        re.match(
            r"laser\.c \S+ \(.+\), attention (laser|standard), backend \w+, precision \w+\n$",
            said.out,
        ),
        said.out,
    )


# Bare parameters: embedding and matrices. The first six are the paper's models, with 32,000 pieces.
PARAMETERS = {
    "234M": 234.09e6,
    "301M": 301.20e6,
    "435M": 435.42e6,
    "1.1B": 1139.3e6,
    "2.2B": 2213.0e6,
    "7.7B": 7732.9e6,
    "gpt2-124M": None,
    "gpt2-350M": None,
    "gpt2-774M": None,
    "gpt2-1558M": None,
    "small": None,
    "tiny": None,
}
# All parameters, position table and biases included; GPT-2's as published.
ALL_PARAMETERS = {
    "gpt2-124M": 124439808,
    "gpt2-350M": 354823168,
    "gpt2-774M": 774030080,
    "gpt2-1558M": 1557611200,
}


def count_after(label, text):
    found = re.search(rf"{label}\s+(\d+)", text)
    check(found, f"no {label!r} in {text}")
    return int(found.group(1))


@test(
    "plan: every preset's parameters are the paper's or GPT-2's, told at once",
    each=True,
)
def plan(t):
    for preset, bare in PARAMETERS.items():
        words = ["--vocab=4096"] if preset in ("small", "tiny") else []
        begin = time.monotonic()
        process = subprocess.Popen(
            [t.trainer, "--plan", "--model", preset, "--steps", "1000", *words],
            cwd=t.dir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        took = time.monotonic() - begin
        same(process.returncode, 0, f"exit code for {preset} ({said})")
        check(took < 2 * t.patience, f"{preset}: it took {took:.1f} s")
        # the interpreter's own size counts until the program is started in its place
        check(usage.ru_maxrss < 200 * 1024 * t.patience, f"{preset}: it took {usage.ru_maxrss} kB")
        if bare:
            digits = 1e4 if bare < 1e9 else 1e5
            got = count_after("bare: embedding and matrices", said)
            check(
                abs(got - bare) <= digits / 2,
                f"{preset} has {got} bare parameters, want {bare:.0f}",
            )
        if preset in ALL_PARAMETERS:
            same(
                count_after("with biases, norms, positions", said),
                ALL_PARAMETERS[preset],
                f"parameters of {preset}",
            )
        for word in (
            "weights",
            "gradients",
            "optimizer",
            "activations",
            "total",
            "one checkpoint",
            "a token",
            "the run",
        ):
            check(
                re.search(rf"^  {word}.* [0-9.e+]+", said, re.M),
                f"{preset}: no line '{word}' in {said}",
            )
    same(os.listdir(t.dir), [], "files that --plan left")


# ---- the run directory -------------------------------------------------------------------------

FIXED = dict(
    seq_len=8,
    total_batch=256,
    seed=8,
    model="small",
    layers=3,
    d_model=40,
    d_ff=64,
    heads=3,
    head_dim=16,
    vocab=70,
    act="gelu",
    pos="rope",
    init="gpt2",
    norm_eps=1e-3,
    bias_attn=True,
    bias_mlp=False,
    bias_logits=False,
    embed_scale=False,
    attn_cap=20,
    logit_cap=20,
    temperature=2,
    per_dim_scale=True,
    qk_norm=True,
    diff=True,
    diff_plain=True,
    optimizer="lamb",
)
NOTED = dict(
    lr=1e-3,
    schedule="linear",
    warmup=4,
    min_lr_ratio=0.5,
    beta1=0.8,
    beta2=0.9,
    eps=1e-6,
    weight_decay=0.2,
    decay_all=True,
    grad_clip=2,
    update_clip=1,
    tf32=True,
    reduce_in="bf16",
    reproducible=True,
)
FREE = dict(
    batch=2,
    recompute="light",
    val_every=3,
    val_tokens=256,
    save_every=4,
    keep=3,
    threads=2,
    prefetch=False,
    verify_data=False,
    quiet=True,
    sample_every=0,
    attn_core="gemm",
    tune=False,
    tune_cache="none",
    probe_attention=3,
    prompt="text",
    prompt_ids="1",
    sample_temperature=0.5,
    top_k=4,
    check_every=3,
    timeout=60,
    share_gpu=True,
    zero=0,
)


def snapshot(directory):
    """Contents of the files of a run, without what a lock or a clock may touch."""
    found = {}
    for place, _, names in os.walk(directory):
        found.update(
            {os.path.join(place, n): read(os.path.join(place, n)) for n in names if n != "lock"}
        )
    return found


@test("run directory: an option that makes another run is refused with exit code 2 and named")
def other_options(t):
    t.train(out="run", stop_after=2)
    before = snapshot(t.path("run"))
    for option, value in FIXED.items():
        name = option.replace("_", "-")
        t.train(
            out="run",
            code=USAGE,
            says=[f"  --{name}: ", "holds a run with other options"],
            **{option: value},
        )
    t.train(out="run", code=USAGE, says=["  --d-ff: 56 -> 60", "  --seed: 7 -> 9"], d_ff=60, seed=9)
    check(snapshot(t.path("run")) == before, "the run's files changed")
    table = {option for _, option, _ in config_options()}
    known = {o.replace("_", "-") for o in (*FIXED, *NOTED, *FREE)}
    elsewhere = {
        "train",
        "val",
        "tokenizer",
        "decay-fraction",
        "out",
        "steps",
        "sample-from",
        "sample-tokens",
        "resume",
        "stop-after",
        "plan",
    }
    same(sorted(table - known - elsewhere), [], "options whose meaning on resume no test knows")


@test("run directory: the same holds before its first checkpoint")
def other_options_early(t):
    process = t.start(out="run", steps=100000, save_every=0, val_every=0)
    t.wait_for(lambda: logged(t.path("run"), "train"), process, "a step")
    process.kill()
    t.wait(process)
    t.train(out="run", steps=100000, code=USAGE, says="  --d-ff: 56 -> 60", d_ff=60)


@test("run directory: an option that changes how it learns is warned of by name")
def noted_options(t):
    t.train(out="begun", stop_after=1, steps=6)
    for option, value in NOTED.items():
        out = f"run_{option}"
        shutil.copytree(t.path("begun"), t.path(out))
        t.train(
            out=out,
            steps=6,
            says=["warning: ", f"  --{option.replace('_', '-')}: "],
            **{option: value},
        )
        same([r["step"] for r in records(t.path(out), "train")], [1, 2, 3, 4, 5, 6], "steps")


@test("run directory: an option about where and how it runs may change without a word")
def free_options(t):
    t.train(out="whole")
    t.train(out="run", stop_after=7)
    said = t.train(out="run", **FREE)
    check("--" not in said.err, f"something was said: {said.err}")
    same(
        records(t.path("run"), "train")[:7], records(t.path("whole"), "train")[:7], "records before"
    )
    loss = [r["loss"] for r in records(t.path("run"), "train")]
    for got, want in zip(loss, [r["loss"] for r in records(t.path("whole"), "train")]):
        check(
            abs(got - want) < 1e-4, f"loss {got}, want {want} within rounding"
        )  # micro-batches of 2: other sums


@test("run directory: seeds with many digits resume like any other")
def large_seeds(t):
    for seed in (2**32 + 12345, 2**63 - 1):
        t.train(out=f"whole{seed}", seed=seed, steps=4)
        t.train(out=f"run{seed}", seed=seed, steps=4, stop_after=2)
        t.train(out=f"run{seed}", seed=seed, steps=4)
        check_same_run(t.path(f"whole{seed}"), t.path(f"run{seed}"))


@test("run directory: other data is refused with exit code 2: one shard less, more or changed")
def other_data(t):
    write_data(t.path("data"))
    data = dict(train=t.path("data/train_*.bin"), val=t.path("data/val_*.bin"))
    t.train(out="run", stop_after=2, **data)
    extra = t.path("data/train_3.bin")
    write_shard(extra, tokens_like_text(500, 3))
    t.train(out="run", code=USAGE, says=["other data", "--train"], **data)
    os.remove(extra)
    t.train(
        out="run", code=USAGE, says="other data", **dict(data, train=t.path("data/train_[01].bin"))
    )
    keep = read(t.path("data/train_1.bin"))
    write_shard(t.path("data/train_1.bin"), tokens_like_text(12 * 16 + 6, 77))
    t.train(out="run", code=USAGE, says="other data", **data)
    with open(t.path("data/train_1.bin"), "wb") as f:
        f.write(keep)
    os.rename(t.path("data"), t.path("moved"))  # the same files elsewhere are the same data
    t.train(out="run", train=t.path("moved/train_*.bin"), val=t.path("moved/val_*.bin"))


@test(
    "run directory: a trainer of the other attention is refused, also before the first checkpoint"
)
def other_attention(t):
    if len(t.trainers) < 2:
        return
    other = next(path for path in t.trainers.values() if path != t.trainer)
    t.train(out="run", stop_after=2)
    t.train(out="run", trainer=other, code=USAGE, says=["attention", "--out"])
    t.train(out="new", trainer=other, resume=newest(t.path("run")), code=USAGE, says="attention")
    early = dict(steps=100000, save_every=0, val_every=0, out="early")
    process = t.start(**early)
    t.wait_for(lambda: logged(t.path("early"), "train"), process, "a step")
    process.kill()
    t.wait(process)
    t.train(trainer=other, code=USAGE, says="attention", **early)


@test("run directory: a second process in it is refused with exit code 4, the first goes on")
def two_at_once(t):
    long = dict(steps=100000, save_every=0, val_every=0)
    process = t.start(out="run", **long)
    t.wait_for(lambda: logged(t.path("run"), "train"), process, "a step")
    t.train(out="run", code=IO, says=["run", "another process"], **long)
    check(process.poll() is None, "the first one ended")
    process.terminate()
    same(t.wait(process)[0], 143, "exit code of the first")
    steps = [r["step"] for r in records(t.path("run"), "train")]
    same(steps, list(range(1, len(steps) + 1)), "steps in the log")


@test("run directory: --resume never refuses one that is in use, and takes a new one")
def never(t):
    t.train(out="run", resume="never", stop_after=2)
    t.train(out="run", resume="never", code=USAGE, says=["--resume never", "run"])
    same([r["step"] for r in records(t.path("run"), "train")], [1, 2], "steps")


@test("run directory: --resume PATH to what is no checkpoint is refused and named")
def wrong_path(t):
    os.mkdir(t.path("empty"))
    t.train(out="run", resume=t.path("nothing"), code=USAGE, says="nothing")
    t.train(out="run", resume=t.path("empty"), code=3, says="empty")
    t.train(out="first", stop_after=2)
    t.train(
        out="other", resume=newest(t.path("first")), code=USAGE, says="--d-ff: 56 -> 60", d_ff=60
    )


@test("run directory: one that cannot be made ends with exit code 4 and its name")
def unwritable(t):
    with open(t.path("file"), "w") as f:
        f.write("in the way")
    t.train(out="file", code=IO, says="file")
    t.train(out="file/run", code=IO, says="file")
    t.train(out="/proc/no/such/run", code=IO, says="/proc/no")


@test("memory: a run that does not fit ends with exit code 4 and what would fit")
def too_large(t):
    # 5 TB of activations; recomputed, 2 GB, beside 3 GB of weights, gradients and moments
    shape = dict(layers=10000, d_model=1, d_ff=8192, heads=1, head_dim=1)
    write_shard(t.path("long.bin"), tokens_like_text(1024 * 16 + 1, 5))
    large = dict(shape, batch=1024, total_batch=16384, train=t.path("long.bin"))
    said = t.train(out="run", code=IO, says="does not fit into memory", **large).err
    for remedy in (r"--batch \d+ \([\d.]+ GiB\)", r"or with --recompute block \([\d.]+ GiB\)"):
        check(re.search(remedy, said), f"{remedy!r} is not in what was said: {said}")
    check("--recompute light" not in said, f"light was offered, which saves little here: {said}")
    check(not os.path.exists(t.path("run")), "something was written")
    t.train(out="run", code=IO, says="choose a smaller --model", **dict(large, d_model=1 << 20))
