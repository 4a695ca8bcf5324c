"""Checks the files that a run leaves with the libraries which define their formats: safetensors,
tensorboard, json.

    check_formats.py TEST_GPT

TEST_GPT is the test program; its two "formats:" cases write our files and read one written here.
Values are compared, not only shapes. Exit code 0: all agree; 1: something differs; 77: a library
is missing (named)."""

import ctypes
import glob
import json
import logging
import math
import os
import struct
import subprocess
import sys
import tempfile

FAILURES = []


def check(condition, what):
    if not condition:
        FAILURES.append(what)
        print(f"FAILED: {what}")


def same(got, want, what):
    check(got == want, f"{what}: got {got!r}, want {want!r}")


def run_cases(test_gpt, directory):
    done = subprocess.run(
        [test_gpt, "--filter", "formats:"],
        check=False,
        env={**os.environ, "FORMATS_DIR": directory},
        capture_output=True,
        text=True,
    )
    check(
        done.returncode == 0 and "2 passed" in done.stdout,
        f"{test_gpt} --filter formats: ended with {done.returncode}\n{done.stdout}{done.stderr}",
    )


def encode(type_name, values):
    """The stored bytes of numbers; bfloat16 is the upper half of float."""
    if type_name == "int64":
        return struct.pack(f"<{len(values)}q", *values)
    data = struct.pack(f"<{len(values)}f", *values)
    if type_name == "float32":
        return data
    return b"".join(data[i + 2 : i + 4] for i in range(0, len(data), 4))


def decode(type_name, data):
    if type_name == "I64":
        return list(struct.unpack(f"<{len(data) // 8}q", data))
    if type_name == "BF16":
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    return list(struct.unpack(f"<{len(data) // 4}f", data))


THEIR_TENSORS = {
    "h.0.attn.c_attn.weight": ("float32", [7, 13], [i / 3 for i in range(91)]),
    "h.0.attn.c_attn.bias": ("bfloat16", [5], [0.5, -1.0, 3.0, 0.0, 256.0]),
    "deep": ("bfloat16", [2, 3, 1, 4], [float(i) for i in range(24)]),
    "positions": ("int64", [7], [i << 58 for i in range(-3, 4)]),
    "scalar": ("float32", [], [3.25]),
    "empty": ("float32", [0, 4], []),
    'a "quoted" n\u00e4me\\': ("float32", [3], [float("inf"), float("nan"), -0.0]),
}


def write_theirs(path):
    """Every type we know, odd shapes, a name that needs escapes, metadata. By the package's byte
    interface, which needs no torch for bfloat16; from version 0.8 on it takes addresses."""
    import safetensors

    tensors, buffers = {}, []
    for name, (type_name, shape, values) in THEIR_TENSORS.items():
        data = encode(type_name, values)
        if hasattr(safetensors, "TensorSpec"):
            buffers.append(ctypes.create_string_buffer(data, max(len(data), 1)))
            tensors[name] = safetensors.TensorSpec(
                dtype=type_name,
                shape=shape,
                data_ptr=ctypes.addressof(buffers[-1]),
                data_len=len(data),
            )
        else:
            tensors[name] = {"dtype": type_name, "shape": shape, "data": data}
    safetensors.serialize_file(tensors, path, {"format": "pt", "by": "check_formats"})


def read_with_theirs(path):
    """{name: {"dtype", "shape", "data"}}"""
    import safetensors

    with open(path, "rb") as f:
        return dict(safetensors.deserialize(f.read()))


OUR_TENSORS = {
    "wte.weight": ("F32", [5, 3]),
    'h.0."odd\\name"\x01\u00e9': ("BF16", [1, 3, 1, 1]),
    "scalar": ("F32", []),
    "empty": ("F32", [0, 7]),
    "counts": ("I64", [3]),
}


def check_safetensors(directory):
    import safetensors

    copy = read_with_theirs(os.path.join(directory, "copy.safetensors"))
    original = read_with_theirs(os.path.join(directory, "theirs.safetensors"))
    same(sorted(copy), sorted(THEIR_TENSORS), "names in our copy of their file")
    same(copy, original, "our copy of their file")
    for name, (type_name, _, values) in THEIR_TENSORS.items():
        same(bytes(copy[name]["data"]), encode(type_name, values), f"bytes of {name}")
    path = os.path.join(directory, "ours.safetensors")
    with safetensors.safe_open(path, "np") as f:
        same(f.metadata(), {"format": "pt", "note": 'a "quoted" line\n'}, "metadata of our file")
    ours = read_with_theirs(path)
    same(set(ours), set(OUR_TENSORS), "names in our file")
    for i, (name, (type_name, shape)) in enumerate(OUR_TENSORS.items()):
        got = ours[name]
        same((got["dtype"], got["shape"]), (type_name, shape), f"type and shape of {name}")
        values = [i * 16 - e * 0.5 for e in range(math.prod(shape))]
        if type_name == "I64":
            values = [int(v * 2) - (1 << 60) for v in values]
        same(decode(type_name, bytes(got["data"])), values, f"values of {name}")


def loss_at(step):
    """What test_runs.c logged: attempt 0 up to its checkpoint at step 10, attempt 1 from there to
    19."""
    return 10 / step + (step > 10)


def close(got, want, digits):
    return abs(got - want) <= abs(want) * 10**-digits


def check_log(directory):
    with open(os.path.join(directory, "log.jsonl"), encoding="utf-8", newline="\n") as f:
        lines = [json.loads(line) for line in f]
    train = [line for line in lines if line["kind"] == "train"]
    same([line["step"] for line in train], list(range(1, 20)), "steps in log.jsonl")
    for line in train:
        check(close(line["loss"], loss_at(line["step"]), 8), f"loss in {line}")
        same(
            (line["tokens"], line["lr"], line["mfu"]),
            (line["step"] * 512, 3e-4, 0.71),
            f"values in {line}",
        )
    same(
        [line["step"] for line in lines if line["kind"] == "val"],
        [5, 10, 15],
        "validation steps in log.jsonl",
    )
    same([line["kind"] for line in lines].count("run"), 2, "run lines in log.jsonl")
    same(
        [line["text"] for line in lines if line["kind"] == "sample"],
        ['quote " backslash \\ newline \n bad \ufffd good \u00e9'],
        "samples in log.jsonl",
    )


def check_events(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of the restart
    same(len(glob.glob(os.path.join(directory, "events.out.tfevents.*"))), 2, "event files")
    events = EventAccumulator(directory, size_guidance={"scalars": 0})
    events.Reload()
    same(
        sorted(events.Tags()["scalars"]),
        [
            "train/grad_norm",
            "train/loss",
            "train/lr",
            "train/tokens_per_second",
            "val/bits_per_byte",
            "val/loss",
        ],
        "tags",
    )
    train = events.Scalars("train/loss")
    same([e.step for e in train], list(range(1, 20)), "steps that TensorBoard shows")
    check(all(close(e.value, loss_at(e.step), 6) for e in train), "losses that TensorBoard shows")
    for tag, want in (
        ("train/lr", 3e-4),
        ("train/grad_norm", 1.5),
        ("train/tokens_per_second", 6300),
    ):
        check(all(close(e.value, want, 6) for e in events.Scalars(tag)), tag)
    for tag, value in (
        ("val/loss", lambda s: loss_at(s) + 0.25),
        ("val/bits_per_byte", lambda s: loss_at(s) / 4),
    ):
        same([e.step for e in events.Scalars(tag)], [5, 10, 15], f"steps of {tag}")
        check(all(close(e.value, value(e.step), 6) for e in events.Scalars(tag)), tag)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: check_formats.py TEST_GPT")
    try:
        import safetensors  # noqa: F401
        import tensorboard  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as directory:
        write_theirs(os.path.join(directory, "theirs.safetensors"))
        run_cases(os.path.abspath(sys.argv[1]), directory)
        if not FAILURES:
            check_safetensors(directory)
            check_log(directory)
            check_events(directory)
    result = f"{len(FAILURES)} failures" if FAILURES else "safetensors, log.jsonl, events agree"
    print(f"check_formats: {result}")
    sys.exit(1 if FAILURES else 0)


if __name__ == "__main__":
    main()
