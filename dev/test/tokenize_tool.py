"""Tests of the data tools: shard_tool finds every fault of shards and manifests that can be found,
and prints what is in them."""

import array
import json
import os
import re
import shutil

from system_kit import crc32c, flip_byte, shard_bytes
from tokenize_kit import (
    INPUT, SHARD_TOOL, USAGE, check, documents_of, manifest, read, read_split, same, test, write,
)  # fmt: skip
from tokenize_text import c4_documents


def data_set(t, **options):
    """Shards and a manifest in a/, of documents that are long and short."""
    t.tokenize("a/x", t.c4[:1], **{"shard_tokens": 40000, "val_fraction": 0.2, **options})
    return t.path("a", "x.json")


def damaged(t, change, says, code=INPUT, command="verify"):
    """A copy of a/, changed, is refused."""
    shutil.rmtree(t.path("b"), ignore_errors=True)
    shutil.copytree(t.path("a"), t.path("b"))
    change(t.path("b"))
    t.tool(command, t.path("b", "x.json"), code=code, says=says)


def edit(*changes):
    """A change of the manifest: (way to the value, value)."""

    def change(directory):
        path = os.path.join(directory, "x.json")
        whole = json.loads(read(path))
        for way, value in changes:
            *parents, last = way
            at = whole
            for name in parents:
                at = at[name]
            if value is None:
                del at[last]
            else:
                at[last] = value
        write(path, json.dumps(whole).encode())

    return change


@test("verify: a flipped byte of a shard is found, wherever it is")
def flipped_shard(t):
    data_set(t)
    shard = t.path("a", "x_val_000000.bin")
    good = read(shard)
    # words that llm.c reads, the extension, words that nobody reads, first and last token
    for offset in (0, 4, 8, 64, 68, 72, 76, 80, 88, 92, 96, 104, 300, 1023, 1024, len(good) - 1):
        flip_byte(shard, offset)
        t.tool("verify", shard, code=INPUT if offset not in range(64, 68) else None)
        t.tool("verify", t.path("a", "x.json"), code=INPUT, says="x_val_000000.bin")
        write(shard, good)
    t.tool("verify", shard, t.path("a", "x.json"))


# What verify cannot know: it does not have the inputs, nor SHA-256. (The hash of the tokenizer is
# there twice, and checked.)
UNKNOWABLE = re.compile(
    rb'"sha256":\s*"([0-9a-f]{64})"|"name":\s*"([^"]*)"|"size":\s*(\d+)'
    rb'|"empty":\s*(\d+)|"bad_lines":\s*(\d+)|"bytes":\s*(\d+)|"val_fraction":\s*([0-9.e+-]+)'
    rb'|("train_vocab":\s*\d+,\s*"train_bytes":\s*\d+)|"unigram_entropy_nats":\s*\d+\.\d{5}(\d*)'
)


@test("verify: a flipped byte of the manifest is found, wherever it can be")
def flipped_manifest(t):
    path = data_set(t, shard_tokens=100000)
    good = read(path)
    unknowable = set()
    for found in UNKNOWABLE.finditer(good):
        for group in range(1, len(found.groups()) + 1):
            unknowable.update(range(*found.span(group)))
    missed = []
    for at, byte in enumerate(good):
        if at in unknowable or bytes([byte]).isspace():
            continue
        write(path, good[:at] + bytes([byte ^ 1]) + good[at + 1 :])
        out, err = t.call([SHARD_TOOL, "verify", path], code=None)
        if b"x.json: whole" in out:
            missed.append(good[max(0, at - 30) : at] + b">>" + good[at : at + 10])
        check(err.startswith("error: ") or not err, f"byte {at}: {out} {err}")
    same(missed, [], "changes that were not found")
    check(len(unknowable) < len(good) / 2, f"{len(unknowable)} of {len(good)} are not looked at")


@test("verify: shards that are missing, foreign, swapped, left over or torn are named")
def faults(t):
    data_set(t, shard_tokens=15000)
    first, second = "x_train_000000.bin", "x_train_000001.bin"

    def swap(directory):
        a, b = (os.path.join(directory, name) for name in (first, second))
        data = read(a)
        write(a, read(b))
        write(b, data)

    def another(directory):
        data = shard_bytes([1, 2, 3] * 5000, vocab=1000)
        write(os.path.join(directory, first), data)

    def plain(directory):
        path = os.path.join(directory, first)
        write(path, read(path)[:64] + bytes(960) + read(path)[1024:])

    damaged(t, lambda d: os.unlink(f"{d}/{first}"), [first, "No such file"])
    damaged(t, lambda d: os.truncate(f"{d}/{first}", 5000), [first, "byte 5000"])
    damaged(t, swap, [first, "x.json says"])
    damaged(t, another, [first, "x.json says"])
    damaged(t, plain, [first, "plain"])
    damaged(t, lambda d: shutil.copy(f"{d}/{second}", f"{d}/x_train_000099.bin"), "000099")
    damaged(t, lambda d: shutil.copy(f"{d}/{second}", f"{d}/x_val_000099.bin"), "000099")
    damaged(t, lambda d: flip_byte(f"{d}/tokenizer.model", 700), "tokenizer.model")
    damaged(t, lambda d: os.unlink(f"{d}/tokenizer.model"), "tokenizer.model")
    damaged(t, lambda d: write(f"{d}/x.json", b"{}"), '"format"')
    damaged(t, lambda d: write(f"{d}/x.json", b'{"format": '), ["x.json", "not JSON from byte 11"])
    damaged(t, lambda d: os.unlink(f"{d}/x.json"), "x.json")


def rewritten_shard(t, directory, number):
    """The shard with its tokens in another order, header and checksums as they should be."""
    path = os.path.join(directory, f"x_train_{number:06}.bin")
    data = read(path)
    header, tokens = array.array("I", data[:1024]), array.array("H", data[1024:])
    tokens.reverse()
    header[23], header[26] = crc32c(tokens.tobytes()), 0
    header[26] = crc32c(header.tobytes())
    write(path, header.tobytes() + tokens.tobytes())


@test("verify: what a manifest says twice has to agree")
def contradictions(t):
    whole = manifest(data_set(t, shard_tokens=15000)[: -len(".json")])
    train, val, inputs = whole["train"], whole["val"], whole["inputs"]
    for says, *changes in (
        ("version is 2", (("version",), 2)),
        ("tokenizer is missing", (("tokenizer",), None)),
        ("tokenizer.hash", (("tokenizer", "hash"), "00ff")),
        ("tokenizer.hash", (("tokenizer", "hash"), "F" * 16)),
        ("tokenizer.file", (("tokenizer", "file"), "../tokenizer.model")),
        ("tokenizer.model", (("tokenizer", "hash"), "0" * 16)),
        ("vocabulary size is 1000", (("tokenizer", "vocab"), 999)),
        ("end-of-document id is 1", (("tokenizer", "eos"), 2)),
        ("tokenizer.eos", (("tokenizer", "eos"), 1000)),
        ("options.separator", (("options", "separator"), "newline")),
        ("separator is 1", (("options", "separator"), "none")),
        ("options.split", (("options", "split"), "test")),
        ("options.split", (("options", "split"), "train")),
        ("val.documents", (("options", "split"), "train"), (("options", "val_fraction"), 0)),
        ("val.documents", (("options", "val_fraction"), 0)),
        ("val.documents", (("options", "val_fraction"), 0), (("options", "val_docs"), 3)),
        ("val.documents", (("options", "val_fraction"), 0.9)),
        ("options.val_fraction", (("options", "val_fraction"), 1.5)),
        ("train.shards[0].tokens", (("options", "shard_tokens"), 15001)),
        ("inputs have", (("inputs", 0, "documents"), inputs[0]["documents"] + 1)),
        ("inputs[0].size", (("inputs", 0, "size"), "many")),
        ("inputs[0].sha256", (("inputs", 0, "sha256"), "0" * 63)),
        ("train.tokens", (("train", "tokens"), train["tokens"] + 1)),
        ("train.documents", (("train", "documents"), train["documents"] - 1)),
        ("val.unigram_entropy", (("val", "unigram_entropy_nats"), 99)),
        ("train.unigram_entropy", (("train", "unigram_entropy_nats"), 3.25)),
        ("train.shards is not a list", (("train", "shards"), 7)),
        ("train.tokens", (("train", "shards", -1), None)),
        ("x_train_000000.bin", (("train", "shards", 0, "crc32c"), "00000000")),
        ("val.shards[0].crc32c", (("val", "shards", 0, "crc32c"), 7)),
        ("expected 'x_val_000000.bin'", (("val", "shards", 0, "file"), "x_train_000000.bin")),
        ("token count", (("val", "shards", -1, "tokens"), val["shards"][-1]["tokens"] - 1),
            (("val", "tokens"), val["tokens"] - 1)),
        ("document count", (("val", "shards", 0, "documents"), val["shards"][0]["documents"] - 1),
            (("val", "shards", 1, "documents"), val["shards"][1]["documents"] + 1)),
        ("val.shards[0].tokens", (("val", "shards", 0, "tokens"), 1.5)),
    ):  # fmt: skip
        damaged(t, edit(*changes), ["x", says])
    damaged(t, lambda d: rewritten_shard(t, d, 0), ["x_train_000000.bin", "checksum"])


@test("info: documents, tokens per document, bytes per token")
def info(t):
    path = data_set(t)
    said, out = manifest(path[: -len(".json")]), t.tool("info", path).decode()
    for split in ("train", "val"):
        part = said[split]
        line = next(line for line in out.splitlines() if line.strip().startswith(split + ":"))
        for text in (
            f"{part['tokens']} tokens in {len(part['shards'])} shards",
            f"{part['documents']} documents",
            f"{part['tokens'] / part['documents']:.1f} tokens per document",
            f"{part['bytes'] / part['tokens']:.3f} bytes per token",
        ):
            check(text in line, f"{text!r} is not in {line!r}")
    out = t.tool("info", t.path("a", "x_val_000000.bin")).decode()
    check(f"{said['val']['shards'][0]['documents']} documents" in out, f"info of a shard: {out}")


@test("count: tokens of each shard and of all, of shards as of the manifest")
def count(t):
    path = data_set(t, shard_tokens=15000)
    said = manifest(path[: -len(".json")])
    parts = said["train"]["shards"] + said["val"]["shards"]
    total = said["train"]["tokens"] + said["val"]["tokens"]
    shards = [t.path("a", s["file"]) for s in parts]
    for files in ([path], shards):
        out = t.tool("count", *files).decode().splitlines()
        for shard in parts:
            want = f"{shard['file']}: {shard['tokens']} tokens, {shard['documents']} documents"
            check(any(line.endswith(want) for line in out), f"{want!r} is not in {out}")
        documents = said["train"]["documents"] + said["val"]["documents"]
        want = f"{total} tokens in {len(parts)} shards, {documents} documents"
        check(out[-1].startswith(want), f"last line {out[-1]!r}, want {want!r}")
    entropy = f"unigram entropy {said['val']['unigram_entropy_nats']:.3f} nats"
    check(any(", val: " in line and entropy in line for line in t.tool("count", path).decode()
              .splitlines()), f"no {entropy!r} of val")


@test("cat: any range of documents, also where shards end within them")
def ranges(t):
    t.tokenize("a/x", t.c4[:1], shard_tokens=2000)
    path, documents = t.path("a", "x.json"), c4_documents(t.c4[0])
    shards = [t.path("a", s["file"]) for s in manifest(path[:-5])["train"]["shards"]]
    check(len(shards) > 50, f"{len(shards)} shards: too few to be of use")
    n = len(documents)
    for words, first, last in (
        ("0", 0, 0), ("0-0", 0, 0), ("0-9", 0, 9), ("17-333", 17, 333), ("200-", 200, n - 1),
        (f"{n - 1}", n - 1, n - 1), (f"0-{n - 1}", 0, n - 1), ("0-", 0, n - 1),
    ):  # fmt: skip
        want = b"".join(d + b"\f" for d in documents[first : last + 1])
        for files in ([path], shards):
            got = t.cat("--documents", words, *files)
            check(got == want, f"--documents {words}: {len(got)} bytes, want {len(want)}")
    t.tool("cat", "--documents", f"{n}", path, code=USAGE, says=f"there are {n}")
    t.tool("cat", "--documents", f"5-{n}", path, code=USAGE, says=f"there are {n}")
    for words in ("", "a", "-3", "3-2", "1-x", "1--2", "1 2", "99999999999999999999"):
        t.tool("cat", f"--documents={words}", path, code=USAGE, says="--documents")
    t.tool("cat", "--documents=1", "--from=3", path, code=USAGE, says="not both")


@test("cat: --from and --tokens are places in a shard")
def places(t):
    data_set(t)
    shard = t.path("a", "x_val_000000.bin")
    whole = t.cat(shard)
    tokens = len(read_split(t.path("a", "x"), "val"))
    parts = [t.cat(f"--from={i}", "--tokens=5000", shard) for i in range(0, tokens, 5000)]
    check(b"".join(parts) == whole, "parts are not the whole")
    same(t.cat(f"--from={tokens + 5}", shard), b"", "beyond the end")


@test("cat: another vocabulary than the shard's is refused")
def wrong_vocabulary(t):
    data_set(t)
    t.tokenize("v/x", t.c4[:1], model=None, train_vocab=500, train_bytes=100000, vocab_only=True)
    other = t.path("v", "tokenizer.bin")
    t.tool("cat", "--tokenizer", other, t.path("a", "x.json"), code=INPUT, says="--tokenizer")
    os.unlink(t.path("a", "tokenizer.bin"))
    t.tool("cat", t.path("a", "x.json"), code=INPUT, says="tokenizer.bin")


@test("llm.c's plain shards are counted, checked and printed as ours")
def plain_shards(t):
    data_set(t, shard_tokens=10**6)
    tokens = read_split(t.path("a", "x"), "val")
    theirs = t.path("a", "theirs.bin")
    write(theirs, shard_bytes(tokens, extended=False))
    check("plain llm.c shard" in t.tool("info", theirs).decode(), "info")
    check("plain llm.c shard" in t.tool("verify", theirs).decode(), "verify")
    check(f"{len(tokens)} tokens in 1 shards, " in t.tool("count", theirs).decode(), "count")
    same(t.cat(theirs), t.cat(t.path("a", "x_val_000000.bin")), "text")
    same(len(documents_of(tokens)), t.cat(theirs).count(b"\f"), "documents")
    t.tool("cat", "--documents=0", theirs, code=USAGE, says="another program")
    t.tool("verify", "--vocab=10", theirs, code=INPUT, says="vocabulary size, 10")


@test("shard_tool: wrong usage ends with 2, --help names everything")
def usage(t):
    t.tool(code=USAGE, says="--help")
    t.tool("verify", code=USAGE, says="--help")
    t.tool("mend", "x.bin", code=USAGE, says="no such command")
    t.tool("cat", "--frobnicate", "x.bin", code=USAGE, says="frobnicate")
    t.tool("cat", "--from=-1", "x.bin", code=USAGE, says="--from")
    t.tool("verify", "none.bin", code=INPUT, says="none.bin")
    t.tool("verify", "none.json", code=INPUT, says="none.json")
    out = t.tool("--help").decode()
    words = "info verify count cat --vocab --tokenizer --documents --from --tokens Exit".split()
    check(all(word in out for word in words), f"--help: {out}")
