"""The data of whole runs: that validation is on the same tokens however a run is cut, what a byte
of text costs, what is said of the data, and which files are taken for one data set."""

import json
import math
import os
import struct

from system_equal import linked, mpirun
from system_kit import (
    INPUT,
    VOCAB,
    Skip,
    check,
    crc32c,
    flip_byte,
    log_lines,
    logged,
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

# ---- validation --------------------------------------------------------------------------------

# Nothing is learnt, so that all validations of a run see the same weights; the best of them, which
# is the same loss, stands in state.json with all its digits.
STILL = dict(lr=0, weight_decay=0, warmup=0, steps=2, val_every=2, save_every=0)
# A mean of losses, each within a few roundings of the activations, where a product of another shape
# rounds otherwise.
LOSS_BOUND = {"fp32": 2**-20, "bf16": 2**-9}


def validation(t, out, **changes):
    """Tokens and loss, of the log and with all digits."""
    t.train(out=out, **dict(STILL, **changes))
    vals = records(t.path(out), "val")
    same(len({(r["loss"], r["val_tokens"]) for r in vals}), 1, f"different validations in {vals}")
    state = json.loads(read(f"{newest(t.path(out))}/state.json"))
    check(abs(state["best_val"] - vals[0]["loss"]) < 1e-8, f"{state['best_val']}, {vals}")
    return vals[0]["val_tokens"], state["best_val"]


@test(
    "validation: 1 process with batches of 8, 4, 3 and 1, 2 processes, other steps: the same "
    "tokens, and the same loss in every bit but with OpenBLAS",
    each=True,
)
def val_cut(t):
    version = t.call([t.trainer, "--version"]).out
    bound = LOSS_BOUND["bf16" if "precision bf16" in version else "fp32"]
    exact = "backend cpu" in version and "libopenblas" not in linked(t)
    tokens, loss = validation(t, "b8", batch=8, val_tokens=0)
    same(tokens, 320, "validation tokens")
    ways = {
        "b4": dict(batch=4),
        "b1": dict(batch=1),
        "b3": dict(batch=3, total_batch=3 * 16),
        "large": dict(batch=2, total_batch=256),
        "once": dict(batch=20, total_batch=20 * 16),
    }
    try:
        launch = [*mpirun(t), "-np", "2"]
        ways["two"] = dict(batch=4, launch=launch)
        ways["two1"] = dict(batch=1, launch=launch)
    except Skip:
        pass  # the tests of processes say so
    for out, how in ways.items():
        got_tokens, got = validation(t, out, val_tokens=0, **how)
        same(got_tokens, tokens, f"{out}: validation tokens")
        check(abs(got - loss) <= bound * loss, f"{out}: loss {got!r}, want {loss!r}")
        if exact:
            same(got, loss, f"{out}: loss")


@test("validation: --val-tokens are the first of the files, in whole sequences; 0: all")
def val_tokens(t):
    for asked, got in ((1, 16), (100, 96), (128, 128), (320, 320), (10**9, 320), (0, 320)):
        same(validation(t, f"v{asked}", val_tokens=asked)[0], got, f"--val-tokens {asked}")
    write_shard(t.path("first.bin"), tokens_like_text(20 * 16 + 1, 99)[: 8 * 16 + 1])
    write_shard(t.path("rest.bin"), tokens_like_text(20 * 16 + 1, 99)[8 * 16 :])
    whole = validation(t, "whole", val_tokens=0, batch=1)[1]
    # the mean over all is the mean of the parts, and each part is what it says
    first = validation(t, "first", val=t.path("first.bin"), val_tokens=0, batch=8)
    rest = validation(t, "rest", val=t.path("rest.bin"), val_tokens=0, batch=8)
    same((first[0], rest[0]), (128, 192), "tokens of the parts")
    mean = (8 * first[1] + 12 * rest[1]) / 20
    check(abs(mean - whole) < 1e-6 * whole, f"parts {first}, {rest}; whole {whole}")
    same(validation(t, "v128 again", val_tokens=128, batch=8), first, "the first 128 tokens")
    check(abs(first[1] - rest[1]) > 1e-4, "the parts do not differ: the test sees nothing")


# ---- bits per byte -----------------------------------------------------------------------------


def bits(t, out):
    vals = records(t.path(out), "val")
    return vals[0]["loss"], vals[0].get("bits_per_byte")


def check_bits(t, out, bytes_per_token, what):
    loss, got = bits(t, out)
    want = loss / math.log(2) / bytes_per_token
    check(got is not None and abs(got - want) <= 1e-6 * want, f"{what}: {got}, want {want}")


@test("validation: bits per byte from tokenizer.bin, in which control pieces have no bytes")
def bits_per_byte(t):
    write_data(t.path("data"))
    data = dict(STILL, train=t.path("data/train_*.bin"), val=t.path("data/val_*.bin"))
    data.update(val_tokens=0)
    t.train(out="unknown", **data)
    same(bits(t, "unknown")[1], None, "bits per byte without a vocabulary")
    # id 0 ends a document; 1 to 3 are control pieces by their names; then lengths 1 to 58
    pieces = [b"<end>", b"<unk>", b"</s>", b"<|pad|>"]
    pieces += [b"x" * n for n in range(1, VOCAB - len(pieces) + 1)]
    lengths = [0] * 4 + [len(p) for p in pieces[4:]]
    write_tokenizer(t.path("data/tokenizer.bin"), pieces)
    ids = tokens_like_text(20 * 16 + 1, 99)[1:]
    for special in range(4):
        check(special in ids, f"no id {special} among the targets: the test sees less")
    t.train(out="known", **data)
    check_bits(t, "known", sum(lengths[i] for i in ids) / len(ids), "bits per byte")
    t.train(out="ones", batch=1, **data)
    same(bits(t, "ones")[1], bits(t, "known")[1], "bits per byte with other batches")


# ---- manifests ---------------------------------------------------------------------------------


def crc_of(path):
    return struct.unpack("<I", read(path)[92:96])[0]


def write_manifest(path, train, val=(), **changes):
    """Of shards as write_data writes them: one document each, 5 bytes of text a token."""

    def split(names):
        shards = []
        for name in names:
            file = os.path.join(os.path.dirname(path), name)
            tokens = (os.path.getsize(file) - 1024) // 2
            shards.append(
                dict(file=name, tokens=tokens, documents=1, crc32c=f"{crc_of(file):08x}")
            )
        tokens = sum(s["tokens"] for s in shards)
        return dict(
            documents=len(shards),
            tokens=tokens,
            bytes=5 * tokens,
            unigram_entropy_nats=4.0 if shards else 0,
            shards=shards,
        )

    manifest = {
        "format": "laser.c data",
        "version": 1,
        "tokenizer": {
            "file": "tokenizer.model",
            "hash": f"{0x567800001234:016x}",
            "sha256": "0" * 64,
            "vocab": VOCAB,
            "eos": 0,
        },
        "options": {
            "separator": "eos",
            "split": None,
            "val_docs": len(val),
            "val_fraction": 0,
            "shard_tokens": 1 << 20,
        },
        "inputs": [
            {
                "name": "text.jsonl",
                "size": 1,
                "sha256": "0" * 64,
                "documents": len(train) + len(val),
                "empty": 0,
                "bad_lines": 0,
            }
        ],
        "train": split(train),
        "val": split(val),
    }
    for key, value in changes.items():
        manifest["tokenizer"][key] = value
    write(path, json.dumps(manifest, indent=1).encode())


TRAIN_NAMES = ("train_0.bin", "train_1.bin", "train_2.bin")


@test("manifests: what the run trains on is printed, and stands in the run line of the log")
def manifest_told(t):
    write_data(t.path("data"))
    data = dict(train=t.path("data/train_*.bin"), val=t.path("data/val_*.bin"), steps=1, warmup=0)
    t.train(out="without", **data)
    (line,) = [r for r in log_lines(t.path("without")) if r["kind"] == "run"]
    check("documents" not in line["data"]["train"], f"documents of nowhere: {line['data']}")
    write_manifest(t.path("data/set.json"), TRAIN_NAMES, ["val_0.bin"])
    write(t.path("data/other.json"), b'{"format": "something else"')
    said = t.train(out="run", **data)
    same(said.err, "", "stderr")
    tokens = 7 * 16 + 1 + 12 * 16 + 6 + 10 * 16 + 16
    for what in (
        f"train_*.bin: {tokens} tokens in 3 shards",
        "3 documents of 1 file, 5.00 bytes/token",
        "unigram entropy 4.000 nats",
        "tokenizer 0000567800001234 of 61",
        "0.276 epochs in this run",
        "bits per byte by the manifest's bytes/token",
    ):
        check(what in said.out, f"{what!r} is not in {said.out}")
    (line,) = [r for r in log_lines(t.path("run")) if r["kind"] == "run"]
    facts = line["data"]
    check(abs(facts["epochs"] - 8 / 29) < 1e-6, f"epochs {facts['epochs']}")
    same(facts["tokenizer"], dict(hash="0000567800001234", vocab=VOCAB, eos=0), "tokenizer")
    same((facts["train"]["tokens"], facts["train"]["documents"]), (tokens, 3), "train")
    same((facts["val"]["tokens"], facts["val"]["bytes_per_token"]), (321, 5), "val")
    same((facts["train"]["shards"], facts["train"]["verified"]), (3, True), "shards")
    check_bits(t, "run", 5, "bits per byte by the manifest")


@test("manifests: one that is torn or contradicts the shards ends with exit code 3, both named")
def manifest_refused(t):
    write_data(t.path("data"))
    data = dict(train=t.path("data/train_*.bin"), val=None, out="run")
    path = t.path("data/set.json")
    write_manifest(path, TRAIN_NAMES)
    whole = read(path)
    write(path, whole[: len(whole) // 2])
    t.train(code=INPUT, says=[f"{path}: is cut short", "data/train_0.bin"], **data)
    write(path, whole)
    write_shard(t.path("data/train_1.bin"), tokens_like_text(12 * 16 + 6, 5))
    t.train(code=INPUT, says=[f"{path}: says that", "data/train_1.bin", "checksum"], **data)
    check(not os.path.exists(t.path("run")), "a run directory was made")
    os.remove(t.path("data/train_1.bin"))
    t.train(says=["train_1.bin first: the data are not complete"], **dict(data, steps=1, warmup=0))


# ---- what belongs together ---------------------------------------------------------------------


def patch(path, offset, value):
    """Another int32 in the header of one of our shards, and its checksum."""
    data = bytearray(read(path))
    data[offset : offset + 4] = struct.pack("<i", value)
    data[104:108] = bytes(4)
    data[104:108] = struct.pack("<I", crc32c(bytes(data[:1024])))
    write(path, bytes(data))


@test("data: shards of two tokenizers are refused with exit code 3, train against val too")
def two_tokenizers(t):
    for what, offset, value in (("hash", 96, 7), ("end of document", 76, 3)):
        where = what.split()[0]
        write_data(t.path(where))
        data = dict(train=t.path(where, "train_*.bin"), val=t.path(where, "val_*.bin"), out="run")
        patch(t.path(where, "val_0.bin"), offset, value)
        t.train(code=INPUT, says=["train_*.bin and", "val_*.bin", "different tokenizers"], **data)
        patch(t.path(where, "train_1.bin"), offset, value)
        t.train(code=INPUT, says=["train_0.bin and", "train_1.bin", "different"], **data)
    check(not os.path.exists(t.path("run")), "a run directory was made")


@test("data: where only one of train and val records its tokenizer there is a warning")
def half_recorded(t):
    write_data(t.path("plain"), extended=False)
    plain, ours = t.path("plain/{}_*.bin"), f"{t.data}/{{}}_*.bin"
    for train, val, named in ((ours, plain, "plain/val_*"), (plain, ours, "plain/train_*")):
        half = dict(train=train.format("train"), val=val.format("val"), vocab=VOCAB)
        said = t.train(out=None, steps=1, warmup=0, **half)
        check(
            "warning: " in said.err and f"{named}.bin: these shards do not record" in said.err,
            f"no warning of {named}: {said.err}",
        )
    alone = dict(train=plain.format("train"), val=plain.format("val"), vocab=VOCAB)
    said = t.train(out=None, steps=1, warmup=0, **alone)
    same(said.err, "", "stderr with plain shards alone")
    write_data(t.path("mixed"))
    write(t.path("mixed/train_1.bin"), shard_bytes(tokens_like_text(300, 1), extended=False))
    said = t.train(out=None, steps=1, warmup=0, train=t.path("mixed/train_*.bin"), val=None)
    check("1 of 3 shards do not record their tokenizer" in said.err, f"no warning: {said.err}")


@test("data: a tokenizer.bin that is not the shards' is refused with exit code 3")
def other_vocabulary_file(t):
    write_data(t.path("data"))
    data = dict(train=t.path("data/train_*.bin"), val=None, out="run")
    path = t.path("data/tokenizer.bin")
    pieces = [b"w%d" % i for i in range(VOCAB + 1)]
    write_tokenizer(path, pieces)
    t.train(code=INPUT, says=[path, "has 62 pieces", "with 61"], **data)
    write_tokenizer(path, pieces[:-1])
    whole = read(path)
    write(path, whole[:12] + struct.pack("<i", 5) + whole[16:])
    t.train(code=INPUT, says=[path, "ends a document with id 5", "with 0"], **data)
    write(path, whole)
    write(t.path("data/tokenizer.model"), b"another tokenizer of as many pieces")
    t.train(code=INPUT, says=["tokenizer.model has hash", "0000567800001234", path], **data)
    os.remove(t.path("data/tokenizer.model"))
    t.train(**dict(data, steps=1, warmup=0))


# ---- reading through, files that change, runs of before ----------------------------------------


@test("data: less than 1 GB is read through at the start, more only with --verify-data")
def verify(t):
    path = t.path("large.bin")
    tokens = 500 * 10**6
    with open(path, "wb") as f:
        # 1 GB, nearly all of it a hole; one id, which no step reads, is wrong
        f.write(struct.pack("<256i", 20240520, 1, tokens, *[0] * 253))
        f.seek(1024 + 2 * 1000)
        f.write(struct.pack("<H", VOCAB))
        f.truncate(1024 + 2 * tokens)
    if os.stat(path).st_blocks * 512 > 1 << 20:
        raise Skip("this file system has no holes")
    large = dict(train=path, val=None, steps=1, warmup=0, vocab=VOCAB)
    said = t.train(out="large", **large)
    check("not read through (1.00 GB; --verify-data does)" in said.out, said.out)
    same(log_lines(t.path("large"))[0]["verify_data"], False, "verify_data in the log")
    t.train(out="run", code=INPUT, verify_data=True, says="token 1000 is 61", **large)
    write_data(t.path("data"))
    flip_byte(t.path("data/train_1.bin"), 1024 + 100)
    small = dict(train=t.path("data/train_*.bin"), val=None, steps=1, warmup=0)
    t.train(out="run", code=INPUT, says="train_1.bin: byte 1024: checksum", **small)
    said = t.train(out="small", verify_data=False, **small)
    check("not read through" in said.out, said.out)


@test("data: a shard that is cut while a run reads it ends the run with exit code 3 and its name")
def cut_while_read(t):
    for prefetch in (True, False):
        write_data(t.path("data"))
        out, path = f"run{prefetch}", t.path("data/train_1.bin")
        process = t.start(
            out=out,
            train=t.path("data/train_*.bin"),
            steps=100000,
            val_every=0,
            save_every=0,
            prefetch=prefetch,
        )
        t.wait_for(lambda: logged(t.path(out), "train"), process, "a step")
        os.truncate(path, 1030)
        code, said = t.wait(process)
        same(code, INPUT, f"exit code ({said})")
        check(f"error: {path}: byte 1030: cannot be read any more" in said, said)


def fingerprint(paths):
    """Of names without directory, sizes and headers: 64-bit FNV-1a."""
    value = 0xCBF29CE484222325
    for path in sorted(paths):
        data = read(path)
        name = os.path.basename(path).encode() + b"\0"
        for byte in name + struct.pack("<Q", len(data)) + data[:1024]:
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


@test("data: the fingerprint and the options of runs begun by earlier versions are known again")
def earlier_runs(t):
    t.train(out="run", stop_after=2)
    state = f"{newest(t.path('run'))}/state.json"
    saved = json.loads(read(state))
    want = fingerprint(f"{t.data}/{name}" for name in TRAIN_NAMES)
    same(saved["data_fingerprint"], f"{want:016x}", "fingerprint")
    for path in (state, t.path("run/config.json")):
        text = read(path)
        check(b"val_tokens" in text, f"no val_tokens in {path}")
        write(path, text.replace(b"val_tokens", b"val_batches"))
    said = t.train(out="run")
    same(said.err, "", "stderr")
    same(len(records(t.path("run"), "train")), 24, "steps")
