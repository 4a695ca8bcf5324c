"""Tests of the data tools: text -> tokens -> text, whatever the text and the file that it comes
in; the tokens are those of sentencepiece's own Python package."""

import gzip
import json
import os
import random

from make_c4 import BAD, EMPTY, Language, large_lines, ugly_lines
from tokenize_kit import (
    INPUT, TOP, Skip, check, documents_of, manifest, read, read_split, same, test,
)  # fmt: skip


def sorted_out(lines):
    """(documents, empty, bad) of (line, kind) pairs."""
    documents = [kind for _, kind in lines if kind not in (EMPTY, BAD)]
    kinds = [kind for _, kind in lines]
    return documents, kinds.count(EMPTY), kinds.count(BAD)


def c4_documents(*paths):
    """The documents of C4-like files, as bytes."""
    out = []
    for path in paths:
        with gzip.open(path, "rb") as file:
            out += [json.loads(line)["text"].encode() for line in file]
    return out


def ended(documents):
    return b"".join(document + b"\f" for document in documents)


def comes_back(t, source, documents, **options):
    """The file gives these documents and no other, byte for byte."""
    name = os.path.basename(source).split(".")[0]
    t.tokenize(f"{name}/x", [source], **options)
    shards = [t.path(name, "x_train_000000.bin")]
    got = t.cat(*shards)
    same(len(got), len(ended(documents)), f"bytes of text of {name}")
    if got != ended(documents):
        pairs = zip(got.split(b"\f"), ended(documents).split(b"\f"))
        wrong = next((number, *pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
        check(False, f"{name}: part {wrong[0]} is {wrong[1][:200]}, want {wrong[2][:200]}")
    same(t.cat(t.path(name, "x.json")), got, f"text of the manifest of {name}")
    same(manifest(t.path(name, "x"))["train"]["documents"], len(documents), "documents")
    t.verify_whole(t.path(name))


@test("text: every ugly document comes back byte for byte, ends, form feeds and all")
def ugly_text(t):
    documents, empty, bad = sorted_out(ugly_lines())
    comes_back(t, os.path.join(t.data, "ugly_lines.json.gz"), documents)
    for number, document in enumerate(documents):
        got = t.cat(f"--documents={number}", t.path("ugly_lines", "x.json"))
        same(got, document + b"\f", f"document {number}")
    wrong = manifest(t.path("ugly_lines", "x"))["inputs"][0]
    same((wrong["empty"], wrong["bad_lines"]), (empty, bad), "empty documents, bad lines")


@test("text: gzip members that split lines are one text")
def members(t):
    documents, _, _ = sorted_out(ugly_lines())
    comes_back(t, os.path.join(t.data, "ugly_members.json.gz"), documents)


@test("text: a document of 5 MB and a line of 5 MB come back")
def large(t):
    lines = large_lines(Language(), random.Random("0 large"))
    comes_back(t, os.path.join(t.data, "ugly_large.json.gz"), sorted_out(lines)[0])


@test("text: C4-like files come back, in the order of the files")
def c4_text(t):
    t.tokenize("all/x", t.c4, shard_tokens=50000)
    documents = c4_documents(*t.c4)
    same(t.cat(t.path("all", "x.json")), ended(documents), "text of three files")
    inputs = manifest(t.path("all", "x"))["inputs"]
    same([i["name"] for i in inputs], [os.path.basename(p) for p in t.c4], "names of the inputs")
    same([i["documents"] for i in inputs], [400] * 3, "documents of the inputs")
    same(manifest(t.path("all", "x"))["train"]["bytes"], sum(map(len, documents)), "bytes of text")


PLAIN = {
    "source": (b"", None),  # filled in below: our own sources
    "spaces": (b" two  spaces \n\n\n\ttab\r\nend ", None),
    "utf8": ("caf\u00e9 \u65e5\u672c \U0001f600 \x01\x7f </s> <unk> <0x41>".encode(), None),
    "bytes": (b"a\0b \200\377 c", None),
    "three": (b"one\ntwo\f\f \n\fthree\f", [b"one\ntwo", b"three"]),
    "crlf": (b"one\r\ntwo\r\n", None),
}


@test("text: plain files are one document, or several between form feeds")
def plain(t):
    source = os.path.join(TOP, "dataloader")
    names = sorted(n for n in os.listdir(source) if n.endswith((".c", ".h")))
    texts = dict(PLAIN, source=(b"".join(read(os.path.join(source, n)) for n in names), None))
    for name, (text, documents) in texts.items():
        comes_back(t, t.write(f"{name}.txt", text), documents or [text])


@test("text: json, jsonl and plain text, each also gzipped, give the same tokens")
def kinds_of_files(t):
    documents = c4_documents(t.c4[0])[:50]
    lines = b"".join(json.dumps({"text": d.decode()}).encode() + b"\n" for d in documents)
    tokens = {}
    for name, data in {
        "a.json": lines,
        "b.jsonl": lines,
        "c.txt": b"\f".join(documents),
        "d": b"\f".join(documents) + b"\f",
        "e.json": lines.rstrip(b"\n"),
        "f.jsonl": lines.replace(b"\n", b"\r\n\n"),
    }.items():
        for packed in (data, gzip.compress(data)):
            full = name if packed is data else f"{name}.gz"
            t.tokenize(f"{full}.d/x", [t.write(full, packed)])
            tokens[full] = read_split(t.path(f"{full}.d", "x"), "train")
    for name, got in tokens.items():
        check(got == tokens["a.json"], f"{name} gives other tokens than a.json")


def sentencepiece():
    try:
        import sentencepiece as library
    except ImportError as error:
        raise Skip(str(error))
    return library


def boundaries(processor, tokens):
    """{bytes of text before it: scores of the tokens before it} of each token's end."""
    length, score, out = 0, 0.0, {}
    for token in tokens:
        length += 1 if processor.is_byte(token) else len(processor.id_to_piece(token).encode())
        score += processor.get_score(token)
        out[length] = score
    return out


def as_good(processor, got, want):
    """Whether two ways to cut a text are equally likely, as far as float can tell: the library
    adds scores in float from the start of the document on, and of two ways whose sums round to the
    same its versions take the one or the other. Where the ways meet again, each has added some
    tokens since they parted, and every sum is off by half a unit in the last place at most."""
    ours, theirs = boundaries(processor, got), boundaries(processor, want)
    parted, before, tokens = 0, 0.0, 0
    for length in sorted({*ours, *theirs}):
        tokens += (length in ours) + (length in theirs)
        if length not in ours or length not in theirs:
            continue
        now = ours[length] - theirs[length]
        if abs(now - before) > tokens * abs(ours[length]) * 2**-24 + 1e-9:
            return False
        parted, before, tokens = length, now, 0
    return parted == max(ours) == max(theirs)


def same_tokens(t, processor, prefix, documents, ties):
    """ties: ways that are equally likely are the same."""
    got = documents_of(read_split(t.path(prefix), "train"), processor.eos_id())
    same(len(got), len(documents), f"{prefix}: documents")
    exact = 0
    for number, (tokens, document) in enumerate(zip(got, documents)):
        want = processor.encode(document.decode())
        exact += tokens == want
        if tokens != want:
            good = ties and as_good(processor, tokens, want)
            check(good, f"{prefix}: document {number}: {tokens[:50]}, want {want[:50]}")
    check(exact > len(documents) / 2, f"{exact} of {len(documents)} documents are the same")


@test("tokens: as the Python package of sentencepiece gives them, with our vocabulary")
def our_vocabulary(t):
    processor = sentencepiece().SentencePieceProcessor(model_file=t.model)
    t.tokenize("x/x", [t.c4[1]])
    same_tokens(t, processor, "x/x", c4_documents(t.c4[1]), ties=True)


@test("tokens: as the Python package gives them, with models that it has trained")
def other_vocabularies(t):
    library = sentencepiece()
    documents = c4_documents(t.c4[0])[:100]
    for kind in ("bpe", "unigram"):
        prefix = t.path(kind)
        library.SentencePieceTrainer.train(
            sentence_iterator=(d.decode() for d in documents),
            model_prefix=prefix,
            vocab_size=500,
            model_type=kind,
            minloglevel=2,
        )
        processor = library.SentencePieceProcessor(model_file=f"{prefix}.model")
        t.tokenize(f"{kind}.d/x", [t.c4[1]], model=f"{prefix}.model")
        ties = kind == "unigram"
        same_tokens(t, processor, f"{kind}.d/x", c4_documents(t.c4[1]), ties)


@test("vocabulary: the same text gives the same bytes, in shards and with --vocab-only")
def vocabulary(t):
    options = dict(model=None, train_vocab=600, train_bytes=200000)
    t.tokenize("one/x", [t.c4[0]], vocab_only=True, **options)
    t.tokenize("two/x", [t.c4[0]], threads=3, **options)
    for name in ("tokenizer.model", "tokenizer.bin"):
        check(read(t.path("one", name)) == read(t.path("two", name)), f"{name} differs")
    same(sorted(os.listdir(t.path("one"))), ["tokenizer.bin", "tokenizer.model"], "files")
    same(t.cat(t.path("two", "x.json")), ended(c4_documents(t.c4[0])), "text")


@test("vocabulary: text that is too little or too varied is said, exit code 3 only where it must")
def vocabulary_faults(t):
    text = t.write("plain.txt", b"".join(c4_documents(t.c4[0])[:20]))
    options = dict(model=None, vocab_only=True)
    t.tokenize("a/x", [text], train_vocab=300, code=INPUT, says="cannot train", **options)
    t.tokenize("b/x", [text], train_vocab=30000, says="asked for 30000", **options)
    t.tokenize("c/x", [text], model=text, code=INPUT, says="not a sentencepiece model")
    check(not os.path.exists(t.path("c", "tokenizer.model")), "it is not copied")


# ---- files that are damaged ---------------------------------------------------------------------


def refused(t, name, data, *says):
    source = t.write(name, data)
    t.tokenize(f"{name}.d/x", [source], code=INPUT, says=[name, *says])
    t.verify_whole(t.path(f"{name}.d"))
    check(not os.path.exists(t.path(f"{name}.d", "x.json")), f"{name}: a manifest was written")


@test("input: a damaged gzip file is refused and named, and leaves only whole shards")
def damaged(t):
    data = read(t.c4[0])
    refused(t, "cut.json.gz", data[: len(data) * 2 // 3], "byte ")
    refused(t, "cut_late.json.gz", data[:-3], "byte ")
    refused(t, "cut_early.json.gz", data[:5], "byte ")
    refused(t, "nothing.json.gz", b"", "byte 0")
    refused(t, "flipped.json.gz", data[:50000] + b"XXXX" + data[50004:], "byte ")
    refused(t, "sum.json.gz", data[:-8] + b"\0\0\0\0" + data[-4:], "byte ")
    refused(t, "tail.json.gz", data + b"something else", "byte ")
    refused(t, "plain.json.gz", b'{"text": "not packed"}\n', "byte 0")


@test("input: a cut file among many is refused after whole shards; mended, the command goes on")
def damaged_late(t):
    data = read(t.c4[2])
    names = [t.write(os.path.basename(p), read(p)) for p in t.c4]
    os.truncate(names[2], len(data) * 2 // 3)
    options = dict(shard_tokens=30000)
    t.tokenize("a/x", names, code=INPUT, says=os.path.basename(names[2]), **options)
    t.verify_whole(t.path("a"))
    t.write(os.path.basename(names[2]), data)
    t.tokenize("a/x", names, **options)
    same(t.cat(t.path("a", "x.json")), ended(c4_documents(*t.c4)), "text of three files")


@test("input: nothing to read and what cannot be read are errors by name")
def nothing(t):
    t.tokenize("a/x", [t.write("empty.txt", b"")], code=INPUT, says="no document")
    t.tokenize("b/x", [t.path("none.txt")], code=INPUT, says="none.txt")
    t.tokenize("c/x", [t.dir], code=INPUT, says=t.dir)
    files = [os.path.join(t.data, n) for n in ("ugly_nothing.json", "ugly_empty.json.gz")]
    t.tokenize("d/x", files, code=INPUT, says="no document")
    t.tokenize("e/x", [*files, t.c4[0]])
    same(t.cat(t.path("e", "x.json")), ended(c4_documents(t.c4[0])), "text")


@test("input: bad lines are counted and named, up to --max-bad of them")
def bad_lines(t):
    source, lines = os.path.join(t.data, "ugly_lines.json.gz"), ugly_lines()
    documents, empty, bad = sorted_out(lines)
    first = next(number for number, line in enumerate(lines, 1) if line[1] == BAD)
    for name in ("default", "exactly"):
        limit = {} if name == "default" else {"max_bad": bad}
        _, err = t.tokenize(f"{name}/x", [source], says="ugly_lines.json.gz", **limit)
        check(f"ugly_lines.json.gz:{first} " in err, f"line {first} is named: {err}")
        same(t.cat(t.path(name, "x.json")), ended(documents), "text")
    t.tokenize("less/x", [source], max_bad=bad - 1, code=INPUT, says=["--max-bad", "ugly_lines"])
    check(not os.path.exists(t.path("less", "x.json")), "a manifest was written")
    t.tokenize("none/x", [source], max_bad=0, code=INPUT, says="--max-bad")
    hundred = b'{"text": "good"}\n' + b"bad\n" * 101
    t.tokenize("many/x", [t.write("many.json", hundred)], code=INPUT, says="--max-bad")
    t.tokenize("many/x", [t.write("many.json", hundred[:-4])])
    same(manifest(t.path("many", "x"))["inputs"][0]["bad_lines"], 100, "bad lines")
