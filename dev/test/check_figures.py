"""Checks the statistics of the paper's figures (dev/plot/stats.py) against known values, exact
curves and simulations with a bound on chance, and dev/plot/paper.py on logs whose numbers are
worked out by hand.

Exit code 0: all as promised; 1: something is not; 77: a library is missing (named)."""

import json
import math
import os
import re
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PLOT = os.path.join(TOP, "dev", "plot")
sys.path.insert(0, PLOT)
FAILURES = []


def check(condition, what):
    if not condition:
        FAILURES.append(what)
        print(f"FAILED: {what}")
    return condition


def near(got, want, tolerance, what):
    check(abs(got - want) <= tolerance, f"{what}: got {got!r}, want {want!r} +- {tolerance:g}")


def chance(p, n):
    """Five standard deviations of a share p of n draws: exceeded once in a million calls."""
    return 5 * math.sqrt(p * (1 - p) / n)


# ---- Student's t, paired differences -----------------------------------------------------------


def check_t(S, np):
    # printed tables, three digits behind the point
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}
    for df, want in table.items():
        near(S.t_quantile(df), want, 6e-4, f"t quantile 95 %, {df} df")
    near(S.t_quantile(9, 0.99), 3.250, 6e-4, "t quantile 99 %, 9 df")
    for df in (1, 2, 3, 4, 7, 8):  # against the density, summed by Simpson's rule
        x = np.linspace(0, 1.7, 2001)
        density = (1 + x * x / df) ** (-(df + 1) / 2)
        weight = np.where(np.arange(2001) % 2, 4.0, 2.0)
        weight[[0, -1]] = 1
        scale = math.gamma((df + 1) / 2) / math.sqrt(df * math.pi) / math.gamma(df / 2)
        want = 2 * scale * (density @ weight) * (x[1] - x[0]) / 3
        near(S.t_within(1.7, df), want, 1e-9, f"P(|T| <= 1.7), {df} df")
        near(S.t_within(-1.7, df), want, 1e-9, f"P(|T| <= |-1.7|), {df} df")
    # d = 1, 2, 3: mean 2, sd 1, t = 2 sqrt 3; two degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    d = S.paired_t([1.0, 2.0, 3.0])
    near(d.mean, 2, 1e-12, "paired mean")
    near(d.t, 2 * math.sqrt(3), 1e-12, "paired t")
    near(d.p, 1 - math.sqrt(12 / 14), 1e-12, "paired p")
    near(d.half, 4.303 / math.sqrt(3), 1e-3, "paired interval")
    check(S.paired_t([0.5]).p is None and S.paired_t([0.5, 0.5]).t is None, "too few differences")
    rng = np.random.default_rng(1)
    draws = 4000
    false = sum(S.paired_t(rng.normal(0, 3, 5)).p < 0.05 for _ in range(draws)) / draws
    near(false, 0.05, chance(0.05, draws), "share of p < 0.05 where there is no difference")


# ---- power law ---------------------------------------------------------------------------------


def check_power(S, np):
    n = np.array([234.0, 301.0, 435.0, 1139.0, 2213.0])
    fit = S.fit_power(n, 4.2 * n**-0.07)
    near(fit.a, 4.2, 1e-12, "a of an exact law")
    near(fit.b, -0.07, 1e-13, "b of an exact law")
    near(S.size_at(fit, 4.2 * 500**-0.07), 500, 1e-8, "size at a loss")
    check(S.intervals(S.fit_power(n[:2], [3.0, 2.9])) is None, "two points leave no interval")
    # the same exponent, LASER as if it had 1 / 0.8 the parameters: it needs 20 % fewer
    other = S.fit_power(n, 4.2 * (n / 0.8) ** -0.07)
    near(S.saving(fit, other, 2.6).share, 0.2, 1e-9, "saving at equal loss")
    rng = np.random.default_rng(2)
    draws, hits = 1500, {"a": 0, "b": 0, "saving": 0}
    for _ in range(draws):
        noise = np.exp(rng.normal(0, 0.003, (2, len(n))))
        fit = S.fit_power(n, 4.2 * n**-0.07 * noise[0])
        (a0, a1), (b0, b1) = S.intervals(fit)
        hits["a"] += a0 <= 4.2 <= a1
        hits["b"] += b0 <= -0.07 <= b1
        s = S.saving(fit, S.fit_power(n, 4.2 * (n / 0.8) ** -0.07 * noise[1]), 2.6)
        hits["saving"] += s.low <= 0.2 <= s.high
    for name in ("a", "b"):
        near(hits[name] / draws, 0.95, chance(0.95, draws), f"95 % intervals that hold {name}")
    # to first order, with the degrees of freedom of both fits: not exact
    near(hits["saving"] / draws, 0.95, 0.03, "95 % intervals that hold the saving")


# ---- spikes ------------------------------------------------------------------------------------

PLANTED = [90, 130, 400, 430, 700, 1500, 2600]  # in the steep fall, and within another's window


def curve(np, seed, steps=4000):
    """A loss that falls as they do, with normal noise of 0.02."""
    step = np.arange(1, steps + 1)
    noise = np.random.default_rng(seed).normal(0, 0.02, steps)
    return 2.5 + 7.5 * np.exp(-step / 60) + 2 * step**-0.4 + noise


def check_spikes(S, np):
    quiet = 0
    for seed in range(20):
        loss = curve(np, seed)
        quiet += len(S.find_spikes(loss).first)
        for at in PLANTED:
            loss[at : at + 6] += 0.8 * 0.7 ** np.arange(6)  # 40 standard deviations, decaying
        found = S.find_spikes(loss)
        same = list(found.first) == PLANTED
        check(same, f"spikes, seed {seed}: at {list(found.first)}, planted at {PLANTED}")
        # 0.8, 0.56 and 0.39 lie above a line at 8 times 0.02
        check(found.steps >= 3 * len(PLANTED), f"spikes, seed {seed}: {found.steps} steps above")
    check(quiet == 0, f"{quiet} spikes in 20 curves of 4000 steps that have none")
    loss = curve(np, 1)
    loss[1000] += 0.08  # four standard deviations: noise
    check(not len(S.find_spikes(loss).first), "four standard deviations are taken for a spike")
    loss = curve(np, 1)
    loss[2000:2030] += np.linspace(0, 1, 30)
    loss[2030:2060] += np.linspace(1, 0, 30)
    found = S.find_spikes(loss).first
    check(len(found) == 1 and 2000 < found[0] < 2030, f"a rise over 30 steps: {found}")
    loss = curve(np, 1)
    loss[2000:] += 1.0
    check(list(S.find_spikes(loss).first) == [2000], "a rise that lasts does not count once")
    loss = curve(np, 1)
    loss[[3, 2000, 2001, 3000]] = np.nan
    check(list(S.find_spikes(loss).first) == [3, 2000, 3000], "losses that are not finite")
    check(not len(S.find_spikes(curve(np, 1)[:30]).first), "fewer steps than the window")
    check(S.find_spikes(np.full(100, np.nan)).steps == 100, "nothing but NaN")


# ---- the program -------------------------------------------------------------------------------


def write_run(directory, name, losses, val, norms=None, probes=None, **config):
    """A run of one loss and norm a step; val: [(step, loss)]; probes: {step: layers}."""
    path = os.path.join(directory, name)
    os.makedirs(path, exist_ok=True)
    run = {"kind": "run", "attention": "laser" if "laser" in name else "standard", "seed": 1}
    run.update(steps=len(losses), parameters=1000000, model=name.split("-")[0])
    run.update(config)
    lines = [run]
    for i, loss in enumerate(losses, 1):
        one = {"kind": "train", "step": i, "tokens": 100 * i, "loss": loss, "step_ms": 1.0}
        lines.append({**one, "tok_s": 1e5, "grad_norm": norms[i - 1] if norms else 1.0})
        if probes and i in probes:
            lines.append({"kind": "probe", "step": i, "tokens": 100 * i, "layers": probes[i]})
        at = dict(val).get(i)
        if at is not None:
            lines.append({"kind": "val", "step": i, "tokens": 100 * i, "loss": at})
    with open(os.path.join(path, "log.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def paper(*arguments):
    command = [sys.executable, os.path.join(PLOT, "paper.py"), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def printed(directory, command, *arguments):
    """What a command prints; checks the files that it writes."""
    out = os.path.join(directory, "out")
    code, text, errors = paper(command, "--out", out, *arguments)
    if not check(code == 0, f"{command}: exit code {code}: {errors}"):
        return ""
    check(not errors, f"{command}: {errors}")
    with open(os.path.join(out, command + ".txt"), encoding="utf-8") as f:
        check(text.startswith(f.read()), f"{command}.txt is not what is printed")
    path = os.path.join(out, command + ".png")
    if command not in ("table", "sweep", "seeds"):
        with open(path, "rb") as f:
            check(f.read(8) == b"\x89PNG\r\n\x1a\n", f"{path} is no PNG")
    return text


def row(text, label):
    """The cells of the line that begins with the label."""
    for line in text.splitlines():
        if line.startswith(label):
            return re.split(r"\s{2,}", line[len(label) :].strip())
    check(False, f"no line {label!r} in:\n{text}")
    return []


def same(got, want, what):
    check(got == want, f"{what}: got {got!r}, want {want!r}")


def check_tables(d):
    runs = [
        write_run(d, "301M-standard", [4.0, 3.0, 2.5, 2.0], [(2, 3.0), (4, 2.0)], [1, 2, 2, 4]),
        write_run(d, "301M-laser", [4.0, 3.0, 2.4, 1.9], [(2, 2.9), (4, 1.9)], [2, 1, 4, 8]),
        write_run(d, "x-laser", [4.0, 3.0], [(2, 3.5)]),
    ]
    text = printed(d, "table", *runs)
    want = ["2.0000", "1.9000", "5.00%", "2.0000", "1.9000", "5.00%", "1.74%"]
    same(row(text, "301M"), want, "table: pair")
    same(row(text, "x")[:3], ["-", "3.5000", "-"], "table: alone")
    text = printed(d, "curves", *runs)
    same(row(text, "301M")[:3], want[:3], "curves: pair")
    text = printed(d, "norm", *runs)
    # ratios 2, 1/2, 2, 2: geometric mean 2^(1/2)
    same(row(text, "301M"), ["2.25", "3.75", "1.414", "75%"], "norm: pair")
    other = write_run(d, "y-laser", [4.0], [(1, 3.0)], lr=2.0)
    code, _, errors = paper("table", write_run(d, "y-standard", [4.0], [(1, 3.0)], lr=1.0), other)
    check(code == 0 and "lr 1.0 -> 2.0" in errors, f"arms that differ in the rate: {errors}")


def check_grid(d):
    runs = []
    for lr, decay, loss in ((0.1, 1, 5.0), (0.01, 1, 2.0), (0.001, 1, 3.0), (0.01, 0.1, 2.5)):
        name = f"lr{lr:g}-decay{decay:g}-laser"
        runs.append(write_run(d, name, [4.0], [(1, loss)], lr=lr, weight_decay=decay))
    with open(os.path.join(runs[0], "log.jsonl"), "a", encoding="utf-8") as f:
        f.write('{"kind":"event","step":1,"name":"diverged","text":""}\n')
    text = printed(d, "sweep", *runs)
    same(row(text, "lr 0.1"), ["-", "diverged at step 1"], "sweep: a run that diverged")
    same(row(text, "lr 0.01"), ["2.5000", "2.0000 *"], "sweep: the best")
    check("best: --lr 0.01 --weight-decay 1; on the edge" in text, f"sweep: best of {text}")


def check_seeds(d):
    runs = []
    for seed, (standard, laser) in enumerate(((2.0, 1.9), (2.2, 2.0), (2.4, 2.1)), 1):
        for name, loss in (("standard", standard), ("laser", laser)):
            runs.append(write_run(d, f"{name}-s{seed}", [4.0], [(1, loss)], seed=seed))
    text = printed(d, "seeds", *runs)
    same(row(text, "standard"), ["3", "2.2000", "0.2000"], "seeds: reference")
    # d = -.1, -.2, -.3: as in check_t, with another sign
    want = ["3", "2.0000", "0.1000", "-0.2000", "+-0.2484", "-3.46 (2)", "0.074"]
    same(row(text, "laser"), want, "seeds: paired")
    twice = write_run(d, "laser-s9", [4.0], [(1, 2.0)], seed=3)
    code, _, errors = paper("seeds", *runs, twice)
    check(code == 2 and "twice" in errors, f"a seed that is there twice: {code}, {errors}")


def check_figures(d, np):
    text = printed(d, "scaling", "--paper")
    same(row(text, "laser")[0], "3.664 n^-0.0592", "the paper's points: LASER")
    same(row(text, "standard")[0], "3.709 n^-0.0597", "the paper's points: standard")
    check("at loss 2.347" in text and "13.1% fewer" in text, f"the paper's saving: {text}")
    runs = []
    for n in (100, 200, 400):  # millions; LASER as if it had 1.25 times as many
        for name, size in (("standard", n), ("laser", 1.25 * n)):
            val = [(1, 4 * size**-0.08)]
            runs.append(write_run(d, f"{n}M-{name}", [4.0], val, parameters=n * 1000000))
    text = printed(d, "scaling", *runs)
    same(row(text, "standard")[0], "4.000 n^-0.0800", "scaling: an exact law")
    check("20.0% fewer" in text, f"scaling: the saving: {text}")
    # 1.25^-0.08 at every size
    check("equal size: -1.77% over 3 sizes" in text, f"scaling: at equal size: {text}")
    loss = {"standard": curve(np, 5, 1000), "laser": curve(np, 6, 1000)}
    for at in (300, 500):
        loss["standard"][at] += 1
    runs = [write_run(d, f"z-{name}", list(v), [(1000, 2.0)]) for name, v in loss.items()]
    text = printed(d, "spikes", "--until", "600", *runs)
    same(row(text, "z"), ["2", "2", "600", "0", "0", "600"], "spikes: both arms")
    text = printed(d, "spikes", "--until", "400", *runs)
    same(row(text, "z")[0], "1", "spikes: the first 400 steps")


def probe_layer(shares, sizes):
    """A layer of a probe: 1000 probabilities, shares of them below 1e-3 and 1e-7, the others above
    0.1; sizes in the order of probes.QUANTITIES."""
    low, lowest = shares[0], shares[1]
    bins = [0] * 24
    bins[0], bins[12], bins[23] = (round(1000 * n) for n in (lowest, low - lowest, 1 - low))
    names = ("jacobian", "slope", "grad_q", "grad_k", "grad_v")
    layer = {"below_1e-3": low, "below_1e-7": lowest, "bins": bins}
    return {**layer, **dict(zip(names, sizes))}


def check_probes(d):
    one, two = (0.5, 0.1), (0.9, 0.3)
    layers = {  # first and last probe of two layers; LASER has an early one that standard has not
        "standard": {2: [(two, (1, 2, 1, 4, 1)), (two, (2, 2, 2, 2, 2))]},
        "laser": {1: [(two, (9, 9, 9, 9, 9))] * 2, 2: [(two, (2, 2, 4, 1, 1))] * 2},
    }
    layers["standard"][4] = [(one, (1, 2, 1, 4, 1)), (two, (4, 2, 1, 2, 0))]
    layers["laser"][4] = [(one, (2, 2, 1, 4, 4)), (one, (4, 2, 1, 2, 7))]
    runs = []
    for name, steps in layers.items():
        probes = {at: [probe_layer(*layer) for layer in both] for at, both in steps.items()}
        runs.append(write_run(d, f"p-{name}", [4.0] * 4, [(4, 3.0)], probes=probes, seq_len=1024))
    text = printed(d, "attention", *runs)
    same(row(text, "standard, step 4, all layers"), ["70.00%", "20.00%"], "attention: all layers")
    same(row(text, "laser, step 4, all layers"), ["50.00%", "10.00%"], "attention: all layers")
    same(row(text, "  layer 1"), ["90.00%", "30.00%"], "attention: a layer")
    check("80% below 0.001 and 20% below 1e-07" in text, f"attention: the paper's shares: {text}")
    # (1001 + ... + 1024) of (1 + ... + 1024)
    check("1024 tokens attended to all before them alike: 4.63%" in text, "attention: uniform")
    text = printed(d, "gradients", *runs)
    # W_q: 1, 2; 1, 1 against 4, 4; 1, 1 and 9, 9 of the probe that only LASER has
    want = ["1.25", "4.667", "1.682", "50%"]  # (4 * 2)^(1/4)
    same(row(text, "gradient of W_q"), want, "gradients: all layers")
    same(row(text, "layer 0"), ["2.000", "1.000", "2.000", "0.500", "2.000"], "gradients: a layer")
    # a gradient of zero has no ratio: only 1 / 2 of the first probe is left
    same(row(text, "layer 1"), ["1.000", "1.000", "1.414", "0.707", "0.500"], "gradients: zero")
    text = printed(d, "gradients", runs[1])
    same(row(text, "slope of the output")[0], "-", "gradients: LASER alone")
    again = {"kind": "train", "step": 3, "tokens": 300, "loss": 4.0, "step_ms": 1.0, "tok_s": 1e5}
    with open(os.path.join(runs[0], "log.jsonl"), "a", encoding="utf-8") as f:
        # resumed from step 2: the probe of step 4 is void
        f.write(json.dumps(again) + "\n" + json.dumps({**again, "kind": "val"}) + "\n")
    text = printed(d, "attention", runs[0])
    same(row(text, "standard, step 2, all layers"), ["90.00%", "30.00%"], "a step trained again")


def check_bad_input(d):
    probe = probe_layer((0.5, 0.1), (1, 1, 1, 1, 1))
    torn = write_run(d, "b-laser", [4.0], [(1, 2.0)], probes={1: [{**probe, "slope": "x"}]})
    less = write_run(d, "c-laser", [4.0] * 2, [], probes={1: [probe], 2: [probe, probe]})
    run = write_run(d, "a-laser", [4.0], [(1, 2.0)])
    same_name = write_run(d + "/2", "a-laser", [4.0], [(1, 2.0)])
    table = [
        ("no run", ["table"], 2, "no runs"),
        ("no command", ["paint", run], 2, "paint"),
        ("one name twice", ["table", run, same_name], 2, "one name"),
        ("no log", ["table", d + "/none"], 3, "none"),
        ("nowhere to write", ["table", run, "--out", run + "/log.jsonl"], 4, "log.jsonl"),
        ("no probe", ["attention", run], 3, "--probe-attention"),
        ("a probe that is no number", ["gradients", torn], 3, "slope"),
        ("layers that vanish", ["gradients", less], 3, "damaged"),
        ("no window", ["spikes", run, "--window", "1"], 2, "--window"),
    ]
    for what, arguments, want, said in table:
        code, _, errors = paper(*arguments)
        check(code == want, f"{what}: exit code {code}, want {want}")
        check(said in errors and "Traceback" not in errors, f"{what}: {said!r} in {errors!r}")


def main():
    try:
        import matplotlib  # noqa: F401
        import numpy as np
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(77)
    import stats as S

    for part in (check_t, check_power, check_spikes):
        part(S, np)
    for part in (check_tables, check_grid, check_seeds, check_probes, check_bad_input):
        with tempfile.TemporaryDirectory() as directory:
            part(directory)
    with tempfile.TemporaryDirectory() as directory:
        check_figures(directory, np)
    result = f"{len(FAILURES)} failures" if FAILURES else "numbers, tables and figures as promised"
    print(f"check_figures: {result}")
    sys.exit(1 if FAILURES else 0)


if __name__ == "__main__":
    main()
