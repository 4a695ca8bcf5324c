"""Checks the scripts of the paper's runs: every one of them plans what the paper trained, its
header states what the plan prints, and with a tiny model they train, resume, pass over what is
finished and end with their tables.

    check_scripts.py [NAME...]     (all checks when none is named)

Exit code 0: all as promised; 1: something is not; 77: a library is missing (named)."""

import glob
import json
import os
import re
import subprocess
import sys
import tempfile

from system_kit import read, tokens_like_text, write_shard

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FAILURES = []
STEP = 1024 * 1024  # tokens

# layers, width, MLP, heads x head size
MODELS = {
    "234M": (16, 1024, 4096, 1024),
    "301M": (32, 1024, 2048, 1024),
    "435M": (32, 1024, 4096, 1024),
    "1.1B": (32, 2048, 4096, 2048),
    "2.2B": (32, 2048, 8192, 4096),
    "7.7B": (32, 3440, 11584, 11520),
}
TRAIN = {size: (size, 160000) for size in MODELS}
TRAIN.update({"7.7B": ("7.7B", 41962), "diff_2.2B": ("2.2B", 22888)})
# What else they run: (size, how many runs)
PAPER = {
    "sweep_234M": [("234M", 15)],
    "paper_table1": [("234M", 2), ("301M", 2), ("435M", 2)],
    "paper_lamb": [("301M", 2)],
    "paper_bf16": [("2.2B", 2)],  # a precision
    "paper_modifiers": [("2.2B", 10)],
    "paper_scaling": [(size, 2) for size in ("234M", "301M", "435M", "1.1B", "2.2B")],
    "paper_diff": [("2.2B", 2)],
}
TINY = (
    "--layers 1 --d-model 32 --d-ff 64 --heads 2 --head-dim 16 --vocab 61 --seq-len 16 --batch 4 "
    "--total-batch 64 --warmup 2 --val-every 4 --val-tokens 128 --save-every 4 --threads 1 --quiet"
).split()
STEPS = 12
VARIABLES = set(
    "ATTN DATA OUT RUNS STEPS MODEL PLAN PROCESSES LAUNCHER HOSTS BIND PASS SIZE SIZES "
    "PRECISION PRECISIONS TEMPERATURES".split()
)
# What the paper states of the optimizer; --schedule takes a default that could change
STATED = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-24, "schedule": "cosine", "min_lr_ratio": 0}


def check(condition, what):
    if not condition:
        FAILURES.append(what)
        print(f"FAILED: {what}")
    return condition


def parameters(size):
    """Bare: embedding and matrices, vocabulary 32,000."""
    layers, width, mlp, heads = MODELS[size]
    return layers * (4 * width * heads + 2 * width * mlp) + 32000 * width


def call(script, *options, **variables):
    """(exit code, stdout, stderr) of scripts/SCRIPT.sh in an environment without its variables."""
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    # paper_bf16.sh calls make: with the variables of a make that this runs under, not its jobs
    flags = re.sub(r"(^| )-?-j(observer-)?\S*", "", environment.get("MAKEFLAGS", ""))
    environment.update({k: str(v) for k, v in variables.items()}, MAKEFLAGS=flags)
    command = [os.path.join(TOP, "scripts", script + ".sh"), *options]
    done = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, timeout=900
    )
    return done.returncode, done.stdout, done.stderr


def number(pattern, text):
    found = re.search(pattern, text)
    return float(found.group(1).replace(",", "")) if found else float("nan")


def plans(text):
    """Of each plan in the text: bare parameters, tokens of the run."""
    return [
        (int(number(r"bare: embedding and matrices +(\d+)", part)),
         number(r"the run +\S+ +\((\S+) tokens", part))
        for part in text.split("\nParameters\n")[1:]
    ]


def wrong_plans(text, want):
    """What is wrong with the plans in a text; want: [(size, steps)]."""
    got = plans(text)
    if len(got) != len(want):
        return f"{len(got)} plans, want {len(want)}"
    for (bare, tokens), (size, steps) in zip(got, want):
        if bare != parameters(size):
            return f"{bare} parameters, {size} has {parameters(size)}"
        if abs(tokens / (steps * STEP) - 1) > 1e-3:  # four digits are printed
            return f"{tokens:g} tokens, want {steps * STEP:g}"
    return ""


def check_parameters():
    """The counts that the paper names, from its sizes."""
    named = {"234M": 234.09, "301M": 301.20, "435M": 435.42, "1.1B": 1139.3, "2.2B": 2213.0}
    named["7.7B"] = 7732.9
    for size, millions in named.items():
        got = parameters(size) / 1e6
        check(abs(got - millions) < 0.1, f"{size}: {got} M by its sizes, want {millions}")


def check_plans():
    scripts = {os.path.basename(p)[:-3] for p in glob.glob(os.path.join(TOP, "scripts", "*.sh"))}
    ours = {s for s in scripts if s.startswith(("train_", "paper_", "sweep_"))}
    known = {f"train_{name}" for name in TRAIN} | set(PAPER)
    check(ours == known, f"scripts without a check, or missing: {ours ^ known}")
    for name, want in TRAIN.items():
        for attention in ("standard", "laser"):
            check_plan(f"train_{name}", [want], PLAN=1, ATTN=attention)
    for name, sizes in PAPER.items():
        steps = TRAIN["diff_2.2B"][1] if name == "paper_diff" else 160000
        want = [(size, steps) for size, runs in sizes for _ in range(runs)]
        check_plan(name, want, "--plan", PRECISIONS="fp32")
    text = call("train_301M", "--plan", "--layers", "31")[1]
    check(wrong_plans(text, [TRAIN["301M"]]), "a layer too few goes unnoticed")
    text = call("train_301M", "--plan", "--warmup", "10", STEPS=1000)[1]
    check(wrong_plans(text, [TRAIN["301M"]]), "too few steps go unnoticed")
    check(not wrong_plans(text, [("301M", 1000)]), "STEPS=1000 is not what is planned")


def check_plan(script, want, *options, **variables):
    code, text, errors = call(script, *options, **variables)
    if check(code == 0, f"{script} {' '.join(options)}: exit code {code}: {errors.strip()}"):
        wrong = wrong_plans(text, want)
        check(not wrong, f"{script}: {wrong}")


def header_of(script):
    with open(os.path.join(TOP, "scripts", script + ".sh"), encoding="utf-8") as f:
        return f.read().split("source")[0]


def check_hours():
    """The hours that stand in a paper_*.sh are those of the runs it starts."""
    for script in ("paper_table1", "paper_scaling"):
        hours = [
            runs * number(r"time +(\S+) h", header_of(f"train_{size}"))
            for size, runs in PAPER[script]
        ]
        got = number(r"(\d+) h\s+(?:# )?together", header_of(script))
        check(abs(got - sum(hours)) < 1, f"{script}: {got} h together, its runs say {sum(hours)}")


def check_headers():
    """What the header of a train_*.sh states is what its plan prints."""
    for name in TRAIN:
        header = header_of(f"train_{name}")
        code, plan, errors = call(f"train_{name}", PLAN=1)
        if not check(code == 0, f"train_{name}: exit code {code}: {errors.strip()}"):
            continue
        share = number(r"assumed MFU of (\d+) %", header) / 100
        flops = number(r"the run +(\S+) ", plan)
        rows = [
            ("parameters +([\\d.]+) M bare", number(r"bare: .*\((\S+) M\)", plan), 1e-4),
            ("([\\d.]+) M with biases", number(r"with biases.*\((\S+) M\)", plan), 1e-4),
            ("tokens +([\\d.]+) B", number(r"the run.*\((\S+) tokens", plan) / 1e9, 2e-3),
            ("([\\d,]+) steps", TRAIN[name][1], 0),
            ("FLOPs +(\\S+)\n", flops, 5e-3),
            ("time +(\\S+) h", flops / (8 * 989e12 * share) / 3600, 1e-2),
            ("disk +(\\S+) GiB", number(r"while saving.*?(\S+) GiB", plan), 1e-2),
        ]
        if "(bf16," in plan:  # memory is of the build for GPUs
            rows.append(("memory +(\\S+) GiB", number(r"\n +total +(\S+) GiB", plan), 5e-2))
        for pattern, want, part in rows:
            got = number(pattern, header)
            check(abs(got - want) <= part * want, f"train_{name}: {pattern}: {got}, want {want}")


# ---- real runs, tiny ---------------------------------------------------------------------------


def write_data(directory):
    for split, count, seed in (("train", 64 * 16 + 1, 1), ("val", 320 + 1, 9)):
        tokens = tokens_like_text(count, seed, 61)
        write_shard(f"{directory}/x_{split}_000000.bin", tokens, vocab=61)


def real(script, directory, *options, runs="runs", warns="", **variables):
    """What a script prints that trains a tiny model; warns: what must stand in its warnings."""
    where = {"DATA": directory, "RUNS": os.path.join(directory, runs), "MODEL": "tiny"}
    code, text, errors = call(script, *TINY, *options, **{"STEPS": STEPS, **where, **variables})
    if not check(code == 0, f"{script}: exit code {code}: {errors.strip()[-600:]}"):
        return ""
    if warns:
        check(warns in errors, f"{script}: no warning {warns!r} in {errors}")
    else:
        check("warning" not in errors, f"{script}: {errors}")
    return text


def config_of(out):
    if not check(os.path.isfile(f"{out}/config.json"), f"{out}: no config.json"):
        return {}
    with open(f"{out}/config.json", encoding="utf-8") as f:
        return json.load(f)


def check_training(directory):
    """Every train_*.sh trains, with the optimizer that the paper states."""
    for name in TRAIN:
        out = f"{directory}/{name}"
        real(f"train_{name}", directory, OUT=out, ATTN="standard", STEPS=2)
        config = config_of(out)
        check(config.get("attention") == "standard", f"train_{name}: {config.get('attention')}")
        for key, want in STATED.items():
            got = config.get(key)
            exact = isinstance(want, str) or got is None
            equal = got == want if exact else abs(got - want) <= 1e-6 * want
            check(equal, f"train_{name}: {key} is {got}, want {want}")


def check_table(directory):
    """paper_table1.sh trains, does nothing again, and ends the same when it was stopped."""
    text = real("paper_table1", directory)
    for part in ("234M", "301M", "435M", "test, standard"):
        check(part in text, f"paper_table1: {part!r} is not in its table")
    for name in ("table.txt", "curves.png", "norm.png"):
        path = f"{directory}/runs/table1/{name}"
        check(os.path.isfile(path) and os.path.getsize(path), f"paper_table1: no {name}")
    log = read(f"{directory}/runs/301M-laser/log.jsonl")
    again = real("paper_table1", directory)
    check(again.count("finished before") == 6, "paper_table1: again: not all are passed over")
    check(read(f"{directory}/runs/301M-laser/log.jsonl") == log, "a finished run was touched")
    real("paper_table1", directory, "--lr", "1e-4", warns="another command")
    check(read(f"{directory}/runs/301M-laser/log.jsonl") == log, "another command trained again")
    real("paper_table1", directory, "--stop-after", "5", runs="stopped")
    real("paper_table1", directory, runs="stopped")
    weights = f"301M-laser/checkpoints/step_{STEPS:08d}/model.safetensors"
    same = read(f"{directory}/runs/{weights}") == read(f"{directory}/stopped/{weights}")
    check(same, "paper_table1: stopped and resumed, the weights are others")
    code, _, errors = call("train_301M", *TINY, DATA=directory, OUT=f"{directory}/x", ATTN="lazer")
    check(code == 2 and "lazer" in errors, f"ATTN=lazer: exit code {code}: {errors}")


def check_others(directory):
    """The other scripts end with their tables; the sweep goes on behind a run that diverges."""
    lost = f"{directory}/runs/234M-lr1e-1-decay1-laser"
    os.makedirs(lost)
    with open(f"{lost}/log.jsonl", "w", encoding="utf-8") as f:
        for record in (
            {"kind": "run", "attention": "laser", "lr": 0.1, "weight_decay": 1, "steps": STEPS},
            {"kind": "train", "step": 7, "tokens": 448, "loss": 4.0, "grad_norm": 1.0},
            {"kind": "event", "step": 7, "name": "diverged", "text": "too many skipped steps"},
        ):
            f.write(json.dumps(record, separators=(",", ":")) + "\n")
    text = real("sweep_234M", directory, warns="has no validation")
    check("diverged before" in text, "sweep_234M: a diverged run is not passed over")
    check("diverged at step 7" in text, "sweep_234M: a diverged run is not in the table")
    check(re.search(r"best: --lr \S+ --weight-decay \S+", text), f"sweep_234M: no best: {text}")
    for script, part in (
        ("paper_lamb", "301M-lamb"),
        ("paper_bf16", "2.2B-fp32"),
        ("paper_modifiers", "2.2B-temperature1.25"),
        ("paper_scaling", "no fit"),  # all of one size
        ("paper_diff", "diff_2.2B"),
    ):
        text = real(script, directory, STEPS=2, runs=script, PRECISIONS="fp32")
        check(part in text, f"{script}: {part!r} is not in what it prints")


CHECKS = {
    "parameters": check_parameters,
    "plans": check_plans,
    "headers": check_headers,
    "hours": check_hours,
    "training": check_training,
    "table": check_table,
    "others": check_others,
}
REAL = ("training", "table", "others")  # in a directory with data


def main():
    try:
        import matplotlib  # noqa: F401
        import numpy  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(77)
    for name in sys.argv[1:] or CHECKS:
        with tempfile.TemporaryDirectory() as directory:
            if name in REAL:
                write_data(directory)
                CHECKS[name](directory)
            else:
                CHECKS[name]()
    result = f"{len(FAILURES)} failures" if FAILURES else "plans, headers and runs as promised"
    print(f"check_scripts: {result}")
    sys.exit(1 if FAILURES else 0)


if __name__ == "__main__":
    main()
