"""Input that is wrong, and disks that are full: the exit code, and a message with the file, the
place in it and what was expected. No input may crash the program, and no failed save may cost the
checkpoint before it."""

import os
import resource
import shutil
import subprocess

from system_kit import (
    INPUT,
    IO,
    VOCAB,
    Skip,
    check,
    check_same_run,
    checkpoints,
    flip_byte,
    newest,
    read,
    records,
    same,
    shard_bytes,
    test,
    tokens_like_text,
    write,
    write_data,
    write_shard,
    write_tokenizer,
)

TOKENS = tokens_like_text(300, 1)


def patched(offset, value, data=None):
    """A shard's bytes with another int32 at an offset."""
    data = bytearray(data or shard_bytes(TOKENS, extended=False))
    data[offset : offset + 4] = value.to_bytes(4, "little", signed=value < 0)
    return bytes(data)


PLAIN, EXTENDED = shard_bytes(TOKENS, extended=False), shard_bytes(TOKENS)
BAD_SHARDS = {
    "empty": (b"", "byte 0: the file ends within the header"),
    "half a header": (PLAIN[:700], "byte 700: the file ends within the header"),
    "cut short": (PLAIN[:-10], f"byte {1024 + 590}: the file has {1024 + 590} bytes"),
    "cut by half a token": (PLAIN[:-1], "byte 1623: the file has 1623 bytes"),
    "too long": (PLAIN + b"\0\0", "byte 1624: the file has 1626 bytes"),
    "another magic": (patched(0, 20240520 ^ 1), "byte 0: first word is 20240521"),
    "a model of llm.c": (patched(0, 20240326), "byte 0: first word is 20240326 (an llm.c model)"),
    "a byte-swapped shard": (patched(0, int.from_bytes(PLAIN[:4], "big")), "byte-swapped"),
    "text": (b"It was a dark and stormy night. " * 64, "not a token shard"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(2000), "gzip"),
    "another version": (patched(4, 2), "byte 4: version is 2; expected 1"),
    "no tokens": (patched(8, 0), "byte 8: token count is 0"),
    "a negative count": (patched(8, -5), "byte 8: token count is -5"),
    "an extension of the future": (patched(68, 9, EXTENDED), "byte 68: extension version is 9"),
    "an extension that was changed": (patched(72, 62, EXTENDED), "byte 104: header checksum"),
}


@test("data: every kind of broken shard ends with exit code 3, file, byte and what was expected")
def bad_shards(t):
    for i, (what, (data, says)) in enumerate(BAD_SHARDS.items()):
        path = t.path(f"bad{i}.bin")
        write(path, data)
        done = t.call([t.trainer, *t.options(dict(train=path))])
        same(done.code, INPUT, f"{what}: exit code ({done.err})")
        check(
            f"error: {path}: " in done.err and says in done.err,
            f"{what}: {says!r} is not in {done.err!r}",
        )
    done = t.call([t.trainer, *t.options(dict(val=t.path("bad2.bin")))])
    same(done.code, INPUT, f"exit code for a broken validation shard ({done.err})")
    check("bad2.bin: byte 1614" in done.err, done.err)
    check(not os.path.exists(t.path("run")), "a run directory was made")


@test("data: nothing, a directory, a pipe or too little data end with exit code 3 and the name")
def bad_patterns(t):
    os.mkdir(t.path("directory.bin"))
    os.mkfifo(t.path("pipe.bin"))
    write_shard(t.path("short.bin"), TOKENS[: 17 * 3])
    for name, says in (
        ("none_*.bin", "no file matches"),
        ("directory.bin", "is a directory"),
        ("pipe.bin", "device"),
        ("short.bin", "Add data"),
    ):
        t.train(out="run", code=INPUT, train=t.path(name), says=[name, says])
    t.train(out="run", code=INPUT, val=t.path("none_*.bin"), says=["none_*.bin", "no file matches"])


@test("data: a file that may not be read ends with exit code 3 and its name")
def unreadable(t):
    write_shard(t.path("secret.bin"), TOKENS)
    os.chmod(t.path("secret.bin"), 0)
    nobody = {} if os.geteuid() else dict(user=65534, group=65534, extra_groups=[])
    try:
        t.call([t.trainer, "--version"], **nobody)
    except PermissionError:
        raise Skip(
            "the superuser may read everything, and others may not run this program"
        ) from None
    t.train(
        out=None,
        code=INPUT,
        train=t.path("secret.bin"),
        says=["secret.bin", "Permission denied"],
        popen=nobody,
    )


@test("data: a token outside the vocabulary ends the run with exit code 3, file, byte and token")
def bad_token(t):
    for prefetch in (True, False):
        for place in (0, 150, 299):
            name = t.path(f"bad{place}.bin")
            tokens = list(TOKENS)
            tokens[place] = VOCAB
            write_shard(name, tokens, extended=place == 150)
            t.train(
                out=None,
                code=INPUT,
                train=name,
                seq_len=13,
                total_batch=13 * 4,
                vocab=VOCAB,
                prefetch=prefetch,
                val=None,
                says=[f"{name}: byte {1024 + 2 * place}: token {place} is 61; expected less than"],
            )
    t.train(
        out=None,
        code=INPUT,
        val=t.path("bad150.bin"),
        val_tokens=0,
        says="bad150.bin: byte 1324: token 150 is 61",
    )


@test("data: shards of another vocabulary than the model's end with exit code 3 at once")
def other_vocabulary(t):
    done = t.train(
        out="run",
        code=INPUT,
        model="gpt2-124M",
        says=["61", "50257", "--vocab 61"],
        layers=None,
        d_model=None,
        d_ff=None,
        heads=None,
        head_dim=None,
    )
    check(done.seconds < 2 * t.patience, f"it took {done.seconds:.1f} s")
    t.train(out="run", code=INPUT, vocab=60, says=["train_0.bin", "vocabulary of 61", "--vocab 61"])
    write_data(t.path("mixed"))
    write_shard(t.path("mixed/train_1.bin"), TOKENS, vocab=62)
    t.train(
        out="run",
        code=INPUT,
        train=t.path("mixed/train_*.bin"),
        says=["train_0.bin", "train_1.bin", "different"],
    )
    write_shard(t.path("bare.bin"), TOKENS, extended=False)
    t.train(out="run", code=2, train=t.path("bare.bin"), says="--vocab N is needed")
    t.train(out="run", train=t.path("bare.bin"), vocab=100)


@test("data: a changed token is found before training and by shard_tool verify, exit code 3")
def changed_token(t):
    if not os.path.exists(t.tool):
        raise Skip(f"{t.tool} is not built")
    write_data(t.path("data"))
    name = t.path("data/train_1.bin")
    same(t.call([t.tool, "verify", name]).code, 0, "exit code of verify on a whole shard")
    flip_byte(name, 1024 + 100)
    done = t.call([t.tool, "verify", name])
    same(done.code, INPUT, f"exit code of verify ({done.err})")
    check(f"{name}: byte " in done.err, done.err)
    pattern = t.path("data/train_*.bin")
    t.train(out="run", code=INPUT, train=pattern, says=[f"{name}: byte 1024: checksum"])
    t.call([t.trainer, "--no-verify-data", *t.options(dict(train=pattern, steps=4))])


@test("data: a malformed tokenizer.bin ends with exit code 3, file and byte")
def tokenizer(t):
    path = t.path("tokenizer.bin")
    pieces = [b"w%d " % i for i in range(VOCAB)]
    write_tokenizer(path, pieces)
    whole = read(path)
    t.train(out="good", tokenizer=path, sample_every=12, sample_tokens=9, steps=12)
    (text,) = [r["text"] for r in records(t.path("good"), "sample")]
    words = text.split()
    check(words and all(w.encode() + b" " in pieces for w in words), f"sample {text!r}")
    bad = {
        "cut": (whole[:-3], "the file ends within piece"),
        "short": (whole[:500], "byte 500: "),
        "empty": (b"", "byte 0"),
        "magic": (b"\1" + whole[1:], "byte 0: first word"),
        "version": (whole[:4] + b"\7" + whole[5:], "byte 4: version"),
        "count": (whole[:8] + b"\xff\xff\xff\x7f" + whole[12:], "byte 8: number of pieces"),
        "longer": (whole + b"x", "follow the last"),
    }
    for what, (data, says) in bad.items():
        write(path, data)
        done = t.train(out="run", code=INPUT, tokenizer=path, says=[f"{path}: ", says])
        check("byte" in done.err, f"{what}: no byte is named: {done.err}")
    t.train(out="run", code=INPUT, tokenizer=t.path("none.bin"), says="none.bin")
    t.train(out="run", code=INPUT, sample_every=5, says=["--sample-every", "--tokenizer"])


# ---- checkpoints -------------------------------------------------------------------------------


@test("checkpoints: one that lies about its tensors is refused with exit code 3")
def lying_checkpoint(t):
    t.train(out="first", stop_after=2)
    source = newest(t.path("first"))
    model = read(f"{source}/model.safetensors")
    size = int.from_bytes(model[:8], "little")
    header = model[8 : 8 + size]
    lies = {
        "length": (2**62).to_bytes(8, "little") + model[8:],
        "json": model[:8] + b"[" + header[1:] + model[8 + size :],
        "offsets": model[:8]
        + header.replace(b'"data_offsets":[0,', b'"data_offsets":[4,')
        + model[8 + size :],
        "name": model[:8]
        + header.replace(b"transformer.wte", b"transformer.wtf")
        + model[8 + size :],
        "type": model[:8] + header.replace(b'"F32"', b'"I64"') + model[8 + size :],
    }
    for name, data in lies.items():
        target = t.path(f"lie_{name}")
        os.mkdir(target)
        write(f"{target}/model.safetensors", data)
        for other in ("optimizer.safetensors", "state.json"):
            write(f"{target}/{other}", read(f"{source}/{other}"))
        # named on the command line: taken as it is, and found out while reading
        t.train(out=f"run_{name}", resume=target, code=INPUT, says=target)


# ---- full disks --------------------------------------------------------------------------------

LARGE = dict(d_model=256, d_ff=512, steps=6, save_every=2, val_every=0)  # a checkpoint of 10 MB


def limit_files(size):
    def apply():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return apply


@test("full disk: a failed save ends with exit code 4, and the checkpoint before goes on")
def file_limit(t):
    t.train(out="whole", **LARGE)
    t.train(out="run", stop_after=3, **LARGE)
    before = checkpoints(t.path("run"))
    # SIGXFSZ stays ignored, as Python has it: writes fail as on a full disk
    t.train(
        out="run",
        code=IO,
        says="safetensors",
        popen=dict(preexec_fn=limit_files(1 << 20), restore_signals=False),
        **LARGE,
    )
    same(checkpoints(t.path("run")), before, "checkpoints after the failed save")
    t.train(out="run", **LARGE)
    check_same_run(t.path("whole"), t.path("run"))


@test("full disk: the log that cannot be written ends the run with exit code 4")
def log_limit(t):
    t.train(
        out="run",
        code=IO,
        says=["log.jsonl"],
        val_every=1,
        save_every=0,
        steps=500,
        popen=dict(preexec_fn=limit_files(8 << 10), restore_signals=False),
    )


@test("full disk: too little room is found before a save begins, and making room is enough")
def small_disk(t):
    os.mkdir(t.path("disk"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", t.path("disk")],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        raise Skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        t.train(out="whole", **LARGE)
        t.train(out="disk/run", stop_after=3, keep=1, **LARGE)
        write(t.path("disk/ballast"), bytes(shutil.disk_usage(t.path("disk")).free - (3 << 20)))
        t.train(out="disk/run", code=IO, says=["free", "needs"], keep=1, **LARGE)
        same(checkpoints(t.path("disk/run")), ["step_00000003"], "checkpoints")
        os.remove(t.path("disk/ballast"))
        t.train(out="disk/run", keep=1, **LARGE)
        check_same_run(t.path("whole"), t.path("disk/run"))
    finally:
        subprocess.run(["umount", t.path("disk")], check=True)
