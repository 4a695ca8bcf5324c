"""Reads the logs of runs and computes what is compared: curves, their smoothing, the numbers of
the table. Knows nothing of pictures or pages."""

import json
import os
import sys

import numpy as np

EXIT_USAGE, EXIT_INPUT, EXIT_IO = 2, 3, 4

# Keys of a run's first line in which two runs may differ and still be one experiment: the
# attention that is compared, where the run lies, what only says how it is watched, saved or
# resumed, and what is measured anew by each process.
FREE_KEYS = {
    "kind",
    "attention",
    "out",
    "tokenizer",
    "resume",
    "stop_after",
    "save_every",
    "keep",
    "probe_attention",
    "sample_every",
    "sample_tokens",
    "quiet",
    "prefetch",
    "plan",
    "time",
    "started",
    "command",
    "command_line",
    "peak_flops",
}


def fail(code, message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def warn(message):
    print(f"warning: {message}", file=sys.stderr)


class Run:
    """One run: config (dict of its newest "run" line), whether it diverged (its log ends with that
    event), and arrays over its steps and its validations.

    step, tokens, loss, norm, step_ms, tok_s, skipped: (steps)
    seconds: (steps) training time up to and with each
    val_step, val_tokens, val_loss, val_seconds: (validations)
    probes: records of --probe-attention, by step (probes.py reads them)"""

    def __init__(self, path, config, train, val, probes=(), diverged=False):
        self.path = path
        self.name = os.path.basename(os.path.dirname(os.path.abspath(path)))
        self.config, self.diverged = config, diverged
        self.probes = list(probes)
        self.step = np.array([r["step"] for r in train], dtype=np.int64)
        self.tokens = np.array([r["tokens"] for r in train], dtype=np.float64)
        self.loss, self.norm = column(train, "loss"), column(train, "grad_norm")
        self.step_ms, self.tok_s = column(train, "step_ms"), column(train, "tok_s")
        self.skipped = np.array([bool(r.get("skipped")) for r in train])
        self.seconds = np.cumsum(np.nan_to_num(self.step_ms)) / 1e3
        self.val_step = np.array([r["step"] for r in val], dtype=np.int64)
        self.val_tokens = np.array([r["tokens"] for r in val], dtype=np.float64)
        self.val_loss = column(val, "loss")
        self.val_seconds = np.interp(
            self.val_tokens, np.append(0, self.tokens), np.append(0, self.seconds)
        )

    def tokens_per_step(self):
        """The same for every step, or None."""
        counts = set(np.diff(self.tokens) / np.maximum(np.diff(self.step), 1))
        return counts.pop() if len(counts) == 1 else None


def label(run):
    attention = run.config.get("attention", "")
    return run.name if not attention or attention in run.name else f"{run.name} ({attention})"


def column(records, key):
    """NaN where the record says null or nothing."""
    return np.array([np.nan if r.get(key) is None else r[key] for r in records], dtype=np.float64)


def parse_lines(path):
    try:
        with open(path, "rb") as f:
            lines = f.read().split(b"\n")
    except OSError as error:
        fail(EXIT_INPUT, f"{path}: {error.strerror}: expected a run directory with a log.jsonl")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):
                warn(f"{path}: line {number}, the last, is torn (a killed run); ignored")
                return
            fail(
                EXIT_INPUT,
                f"{path}: line {number} is not a JSON object ({error}); the log is damaged",
            )
        yield number, record


def check_record(path, number, record):
    """The fields that everything else relies on."""
    for key in ("step", "tokens"):
        if (
            isinstance(record.get(key), bool)
            or not isinstance(record.get(key), int)
            or record[key] < 0
        ):
            fail(EXIT_INPUT, f'{path}: line {number}: "{key}" is not a whole number')
    for key in ("loss", "grad_norm", "step_ms", "tok_s"):
        value = record.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            fail(EXIT_INPUT, f'{path}: line {number}: "{key}" is neither a number nor null')


def load_run(path):
    """PATH: a run directory or its log. The last record of a step wins, and a step that is
    trained again ends what an earlier attempt logged beyond it."""
    if not os.path.isfile(path):
        path = os.path.join(path, "log.jsonl")
    config, train, val, probes, diverged = None, {}, {}, {}, False
    for number, record in parse_lines(path):
        kind = record.get("kind")
        if kind == "run":
            config = record
        if kind in ("train", "event"):
            diverged = kind == "event" and record.get("name") == "diverged"
        target = {"train": train, "val": val, "probe": probes}.get(kind)
        if target is None:
            continue
        check_record(path, number, record)
        step = record["step"]
        if kind == "train" and train and step <= next(reversed(train)):
            for records in (train, val, probes):
                for later in [s for s in records if s >= step]:
                    del records[later]
        target.pop(step, None)
        target[step] = record
    if config is None:
        fail(EXIT_INPUT, f'{path}: has no line of kind "run": torn, or not the log of a run')
    if not train:
        fail(EXIT_INPUT, f"{path}: has no training step yet")
    by_step = [[records[s] for s in sorted(records)] for records in (train, val, probes)]
    run = Run(path, config, *by_step, diverged)
    if not np.isfinite(run.loss).any():
        fail(EXIT_INPUT, f"{path}: no step has a finite loss")
    if not np.isfinite(run.val_loss).any():
        warn(f"{path}: has no validation (train with --val): validation rows stay empty")
    return run


def differences(reference, run):
    """[(key, value, value)] of the options that are not free to differ, and of the tokens a
    step."""
    found = [
        (key, reference.config.get(key, "-"), run.config.get(key, "-"))
        for key in sorted(set(reference.config) | set(run.config))
        if key not in FREE_KEYS and reference.config.get(key, "-") != run.config.get(key, "-")
    ]
    a, b = reference.tokens_per_step(), run.tokens_per_step()
    if a != b:
        found.append(("tokens a step (as logged)", a or "varies", b or "varies"))
    return found


def same_batches(reference, run):
    """Step i of both trained on the same tokens, as far as the logs can tell."""
    keys = {key for key, _, _ in differences(reference, run)}
    return not keys & {
        "seed",
        "seq_len",
        "total_batch",
        "data_fingerprint",
        "vocab",
        "tokens a step (as logged)",
    }


WARM_SHARE = 0.1


def ema(values, factor):
    """Exponential moving average without the pull towards its start: divided by the sum of its
    weights. A value that is not finite has no weight. At value i it reaches back over at most
    about WARM_SHARE * i values, so that it does not lag behind the steep beginning of a run."""
    out = np.empty(len(values))
    total = weight = 0.0
    for i, v in enumerate(values):
        keep = min(factor, 1 - 1 / (1 + WARM_SHARE * i))
        total, weight = total * keep, weight * keep
        if np.isfinite(v):
            total, weight = total + v * (1 - keep), weight + (1 - keep)
        out[i] = total / weight if weight > 0 else np.nan
    return out


def paired(reference, run):
    """Steps that both have, their tokens, and loss(run) - loss(reference) at each."""
    steps, i, j = np.intersect1d(reference.step, run.step, return_indices=True)
    return steps, run.tokens[j], run.loss[j] - reference.loss[i]


def paired_validation(reference, run):
    steps, i, j = np.intersect1d(reference.val_step, run.val_step, return_indices=True)
    return steps, run.val_tokens[j], run.val_loss[j] - reference.val_loss[i]


def reaches(run, target):
    """(tokens, seconds) at which the validation loss first is at or below target, on the line
    between validations; None when it never is."""
    good = np.isfinite(run.val_loss)
    loss, tokens, seconds = run.val_loss[good], run.val_tokens[good], run.val_seconds[good]
    below = np.flatnonzero(loss <= target)
    if not len(below):
        return None
    k = below[0]
    if k == 0:
        return tokens[0], seconds[0]
    part = (loss[k - 1] - target) / (loss[k - 1] - loss[k])
    return tokens[k - 1] + part * (tokens[k] - tokens[k - 1]), seconds[k - 1] + part * (
        seconds[k] - seconds[k - 1]
    )


def compare_reach(run, owner, target):
    """Where run reaches the best loss of owner: (tokens, the same over owner's, seconds, the same
    over owner's)."""
    if target is None or reaches(run, target) is None:
        return None
    tokens, seconds = reaches(run, target)
    own_tokens, own_seconds = reaches(owner, target)
    return (
        tokens,
        tokens / own_tokens,
        seconds,
        seconds / own_seconds if own_seconds > 0 else float("nan"),
    )


def numbers(run, reference):
    """Every number of the table; None where there is none."""
    n = {
        "steps": int(run.step[-1]),
        "tokens": run.tokens[-1],
        "parameters": run.config.get("parameters"),
        "seconds": run.seconds[-1],
    }
    val = run.val_loss[np.isfinite(run.val_loss)]
    n["final_val"] = val[-1] if len(val) else None
    n["best_val"] = val.min() if len(val) else None
    tail = run.loss[-max(1, len(run.loss) // 20) :]
    n["final_train"] = np.nanmean(tail) if np.isfinite(tail).any() else None
    n["tok_s"] = np.nanmedian(run.tok_s) if np.isfinite(run.tok_s).any() else None
    n["step_ms"] = np.nanmedian(run.step_ms) if np.isfinite(run.step_ms).any() else None
    norm = run.norm[np.isfinite(run.norm)]
    n["norm_mean"], n["norm_max"] = (norm.mean(), norm.max()) if len(norm) else (None, None)
    n["skipped"] = int(run.skipped.sum())
    if run is reference:
        return n
    base = numbers(reference, reference)
    for key in ("final_val", "best_val", "final_train"):
        n["d_" + key] = None if n[key] is None or base[key] is None else n[key] - base[key]
    _, _, gap = paired(reference, run)
    tail = gap[-max(1, len(gap) // 10) :] if len(gap) else gap
    n["paired"] = np.nanmean(tail) if np.isfinite(tail).any() else None
    n["speed"] = n["tok_s"] / base["tok_s"] - 1 if n["tok_s"] and base["tok_s"] else None
    n["reaches"] = compare_reach(run, reference, base["best_val"])
    n["reached_by"] = compare_reach(reference, run, n["best_val"])
    return n
