"""Tests of the data tools: what the options of c4_tokenize promise, and what it refuses."""

import json
import math
import os
from collections import Counter

from tokenize_kit import (
    INPUT, USAGE, check, documents_of, manifest, read, read_shard, read_split, same, same_tree,
    shards_in, test, tree,
)  # fmt: skip
from tokenize_text import c4_documents, ended


def numbered(t, count=200):
    lines = [json.dumps({"text": f"document {i} of them all"}) for i in range(count)]
    return t.write("many.jsonl", "\n".join(lines).encode() + b"\n")


def texts(t, prefix, split):
    shards = [p for p in shards_in(os.path.dirname(t.path(prefix))) if f"_{split}_" in p]
    return t.cat(*shards).split(b"\f")[:-1] if shards else []


@test("threads: 1, 2 and 5 give the same bytes of shards, manifest and vocabulary")
def threads(t):
    files = [*t.c4, *(os.path.join(t.data, f"ugly_{n}.json.gz") for n in ("large", "lines"))]
    options = dict(shard_tokens=40000, val_fraction=0.1)
    trees = {}
    for count in (1, 2, 5):
        t.tokenize(f"{count}/x", files, threads=count, **options)
        trees[count] = tree(t.path(str(count)))
    for count, got in trees.items():
        same_tree(got, trees[1], f"--threads {count} and 1")
    check(len(trees[1]) > 20, f"there are few shards: {sorted(trees[1])}")
    t.verify_whole(t.path("1"))


@test("shards: all but the last of a split are full; documents go on in the next")
def full_shards(t):
    t.tokenize("a/x", t.c4, shard_tokens=7000, val_fraction=0.2)
    for split in ("train", "val"):
        said = manifest(t.path("a/x"))[split]
        sizes = [len(read_shard(t.path("a", s["file"]))[1]) for s in said["shards"]]
        same(sizes[:-1], [7000] * (len(sizes) - 1), f"tokens of the shards of {split}")
        check(0 < sizes[-1] <= 7000, f"the last shard has {sizes[-1]} tokens")
        same(sizes, [s["tokens"] for s in said["shards"]], "what the manifest says")
    t.tokenize("b/x", t.c4, val_fraction=0.2)
    for split in ("train", "val"):
        one, many = read_split(t.path("b/x"), split), read_split(t.path("a/x"), split)
        check(one == many, f"{split}: other tokens in other shards")


@test("manifest: every number in it is that of the files")
def numbers(t):
    t.tokenize("a/x", t.c4, shard_tokens=20000, val_fraction=0.2)
    said = manifest(t.path("a/x"))
    same((said["format"], said["version"]), ("laser.c data", 1), "format")
    same(said["options"]["shard_tokens"], 20000, "options.shard_tokens")
    for split in ("train", "val"):
        part, tokens = said[split], read_split(t.path("a/x"), split)
        documents = documents_of(tokens, said["tokenizer"]["eos"])
        same(part["tokens"], len(tokens), f"{split}.tokens")
        same(part["documents"], len(documents), f"{split}.documents")
        same(part["bytes"], sum(map(len, texts(t, "a/x", split))), f"{split}.bytes")
        counts = Counter(tokens).values()
        entropy = -sum(c / len(tokens) * math.log(c / len(tokens)) for c in counts)
        # six digits behind the point, and sums of some thousand terms in double
        check(
            abs(part["unigram_entropy_nats"] - entropy) < 1e-6,
            f"{split}: entropy {part['unigram_entropy_nats']}, want {entropy}",
        )
        for shard in part["shards"]:
            header, own = read_shard(t.path("a", shard["file"]))
            same(shard["documents"], own.tolist().count(header[19]), f"documents of {shard}")
            same(shard["crc32c"], f"{header[23] & 0xFFFFFFFF:08x}", f"checksum of {shard}")
    import hashlib

    model = read(t.path("a", "tokenizer.model"))
    same(said["tokenizer"]["sha256"], hashlib.sha256(model).hexdigest(), "tokenizer.sha256")
    for path, entry in zip(t.c4, said["inputs"]):
        data = read(path)
        same(entry["size"], len(data), "inputs.size")
        same(entry["sha256"], hashlib.sha256(data).hexdigest(), "inputs.sha256")


@test("splits: no document is lost or doubled, and the same ones are drawn again")
def splits(t):
    source = numbered(t)
    t.tokenize("a/x", [source], val_fraction=0.1, shard_tokens=1000)
    train, val = texts(t, "a/x", "train"), texts(t, "a/x", "val")
    want = sorted(b"document %d of them all" % i for i in range(200))
    same(sorted(train + val), want, "documents of both")
    # 20 expected, standard deviation 4.2
    check(3 <= len(val) <= 42, f"{len(val)} of 200 documents for validation")
    t.tokenize("b/x", [source], val_fraction=0.1, shard_tokens=1000)
    same_tree(tree(t.path("b")), tree(t.path("a")), "again")


@test("splits: --val-docs takes the first, --split takes all")
def split_options(t):
    source = numbered(t)
    t.tokenize("a/x", [source], val_docs=2)
    val = [b"document 0 of them all", b"document 1 of them all"]
    same(texts(t, "a/x", "val"), val, "val of --val-docs 2")
    same(len(texts(t, "a/x", "train")), 198, "train of --val-docs 2")
    for split, other in (("train", "val"), ("val", "train")):
        t.tokenize(f"{split}/x", [source], split=split)
        same(len(texts(t, f"{split}/x", split)), 200, f"{split} of --split {split}")
        same(texts(t, f"{split}/x", other), [], f"{other} of --split {split}")
        same(manifest(t.path(split, "x"))[other]["shards"], [], f"shards of {other}")
        t.verify_whole(t.path(split))


@test("splits: one that leaves nothing for validation is said")
def empty_split(t):
    t.tokenize("a/x", [numbered(t, 3)], val_fraction=0.001, says="no document for validation")


@test("separator: none writes no end of document, and cat --documents says so")
def separator(t):
    t.tokenize("a/x", [t.write("a.txt", b"one\ntwo\fthree\f")], separator="none")
    same(t.cat(t.path("a", "x.json")), b"one\ntwothree", "text")
    t.verify_whole(t.path("a"))
    t.tool("cat", "--documents", "0", t.path("a", "x.json"), code=USAGE, says="separator")


@test("usage: what is unknown, malformed or contradicts itself is refused")
def usage(t):
    source = numbered(t, 3)
    for says, options in {
        "frobnicate": {"frobnicate": True},
        "shard-tokens": {"shard_tokens": 0},
        "max-bad": {"max_bad": -1},
        "threads": {"threads": "many"},
        "split": {"split": "test"},
        "separator": {"separator": "newline"},
        "val-fraction": {"val_fraction": 1.5},
        "not ": {"val_docs": 1, "val_fraction": 0.5},
        "--val-docs": {"val_docs": 1, "split": "val"},
        "one of": {"train_vocab": 500},
        "--model": {"model": None},
    }.items():
        t.tokenize("a/x", [source], code=USAGE, says=says, **options)
    t.tokenize("a/x", [], code=USAGE, says="input")
    t.tokenize("a/", [source], code=USAGE, says="--out")
    same(shards_in(t.path("a")), [], "shards")
    out = t.call([t.command("a/x", [], {})[0], "--help"])[0].decode()
    words = ("--threads", "--max-bad", "--split", "--force", "--quiet", "Exit status")
    check(all(w in out for w in words), f"--help: {out}")


@test("--quiet: nothing but errors and warnings")
def quiet(t):
    _, err = t.tokenize("a/x", t.c4, quiet=True)
    same(err, "", "what was said")


@test("tokenizer.model: that of another data set is not replaced without --force")
def other_tokenizer(t):
    source, other = t.c4[0], dict(model=None, train_vocab=500, train_bytes=100000)
    t.tokenize("a/x", [source])
    before = tree(t.path("a"))
    t.tokenize("a/y", [source], code=USAGE, says=["tokenizer.model", "--force"], **other)
    same_tree(tree(t.path("a")), before, "after the refusal")
    t.tokenize("b/x", [source], vocab_only=True, **other)
    model = t.path("b", "tokenizer.model")
    t.tokenize("a/y", [source], code=USAGE, says="tokenizer.model", model=model)
    t.tokenize("a/y", [source], code=USAGE, says="tokenizer.model", model=model, vocab_only=True)
    same_tree(tree(t.path("a")), before, "after refusals")
    t.tokenize("a/y", [t.c4[1]])  # the same one is no other
    t.tokenize("a/z", [source], force=True, **other)
    check(read(t.path("a", "tokenizer.model")) != before["tokenizer.model"], "--force replaces it")
    t.tool("verify", t.path("a", "x.json"), code=3, says="tokenizer.model")
    t.tool("verify", t.path("a", "z.json"))


@test("--force: replaces all that an earlier run with this name left, and nothing else")
def force(t):
    t.tokenize("a/x", t.c4, shard_tokens=10000)
    t.tokenize("a/xx", [t.c4[0]])
    before = tree(t.path("a"))
    for model in (t.c4[0], t.path("none.model")):  # an error takes nothing away
        t.tokenize("a/x", t.c4, force=True, model=model, code=INPUT)
        same_tree(tree(t.path("a")), before, "after an error")
    t.tokenize("a/x", [t.c4[0]], force=True)
    t.tokenize("b/x", [t.c4[0]])
    t.tokenize("b/xx", [t.c4[0]])
    same_tree(tree(t.path("a")), tree(t.path("b")), "after --force")
    same(t.cat(t.path("a", "x.json")), ended(c4_documents(t.c4[0])), "text")
