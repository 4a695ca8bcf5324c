"""Checks dev/data/from_huggingface.py: from the same documents and a vocabulary of the same ids,
its shards, tokenizer.bin and manifest are those of c4_tokenize, byte for byte but for the
tokenizer's hash; text comes back unchanged through shard_tool; what a user can get wrong ends with
a message and an exit code. Exit code 0: all of it holds; 1: not; 77: something is missing (named).
"""

import gzip
import importlib.util
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(TOP, "build", "bin")
IMPORT = os.path.join(TOP, "dev", "data", "from_huggingface.py")
FAILURES = []


def check(condition, what):
    if not condition:
        FAILURES.append(what)
        print(f"FAILED: {what}"[:1000])


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def call(command, code=0, says=""):
    done = subprocess.run(command, capture_output=True, check=False)
    said = done.stderr.decode() + done.stdout.decode(errors="replace")
    good = done.returncode == code and says in said
    check(good, f"{command}: code {done.returncode}, want {code} and {says!r}:\n{said[-2000:]}")
    return done.stdout


def convert(*words, **how):
    return call([sys.executable, IMPORT, *words], **how)


# ---- a sentencepiece model as tokenizer.json ---------------------------------------------------


def fields(data):
    """(number, value) of the fields of a protobuf message: integers, 4 bytes, or bytes."""

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    at = 0
    while at < len(data):
        key = varint()
        size = {0: 0, 1: 8, 5: 4}.get(key & 7)
        size = varint() if size is None else size
        value = varint() if key & 7 == 0 else data[at : at + size]
        at += size
        yield key >> 3, value


NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def pieces_of(model):
    """[(piece, score, kind)] of a unigram model trained by c4_tokenize."""
    pieces = []
    for number, value in fields(model):
        if number == 1:
            piece = dict(fields(value))
            kind = piece.get(3, NORMAL)
            pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0], kind))
    return pieces


def one_best_cut(text, pieces):
    """Whether one cut of the text into pieces is better than all others by more than the rounding
    of the scores' sums: of equally good ones the libraries choose as they like. Not so, too, where
    the text spells a byte ("<0x0A>") or "<unk>": one library takes that for the piece."""
    if any(kind in (BYTE, UNKNOWN) and piece in text for piece, _, kind in pieces):
        return False
    text = text.replace(" ", "\u2581")
    scores = {piece: score for piece, score, kind in pieces if kind in (NORMAL, USER)}
    longest = max(map(len, scores))
    unknown = min(scores.values()) - 10
    ends = [(0.0, -math.inf)]  # by position: the two best sums of the cuts that end there
    for end in range(1, len(text) + 1):
        sums = []
        for start in range(max(0, end - longest), end):
            score = scores.get(text[start:end], unknown if start == end - 1 else None)
            if score is not None:
                sums += [ends[start][0] + score, ends[start][1] + score]
        ends.append(tuple(sorted(sums)[:-3:-1]))
    best, second = ends[-1]
    return best - second > 1e-4 * len(text)  # 2^-23 * |sum| an addition, and then some


def as_tokenizer_json(pieces, path):
    """The same pieces, with the same ids and scores."""
    whole = [i for i, p in enumerate(pieces) if p[2] in (UNKNOWN, CONTROL, USER)]
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    added = [
        {
            "id": i,
            "content": pieces[i][0],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": pieces[i][2] != USER,
        }
        for i in whole
    ]
    settings = {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 5,
            "strategy": "LongestFirst",
            "stride": 0,
        },  # files have it; documents are taken whole all the same
        "padding": None,
        "added_tokens": added,
        "normalizer": mark,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "byte_fallback": True,
            "vocab": [[piece, score] for piece, score, _ in pieces],
        },
    }
    write(path, json.dumps(settings).encode())


# ---- what must hold ----------------------------------------------------------------------------


def documents():
    """What the project itself says, in paragraphs; and what text can hold besides."""
    text = b"".join(
        read(os.path.join(TOP, name))
        for name in ("README.md", "laser/forward.c", "laser/config.c", "dataloader/shard.c")
    ).decode()
    odd = [
        "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 \x01\x7f",
        "  two  spaces \n\n\n\ttab\r\nend ",
        "a text that says </s> in it",
        "x" * 200,
        "\u00e9",
        "NUL \0 byte",
    ]
    return [part for part in text.split("\n\n") if part.strip()] + odd


def same_but_for_the_tokenizer(got, want, what):
    """Two shards: words 24 and 25 are the hash, and 26 is the checksum of a header with it."""
    check(got[:96] == want[:96], f"{what}: headers {got[:96].hex()}, want {want[:96].hex()}")
    check(got[108:1024] == want[108:1024], f"{what}: the rest of the header")
    check(got[1024:] == want[1024:], f"{what}: the tokens")


def check_same_bytes(folder):
    """c4_tokenize's files and ours, of JSON lines and text, in each way to split."""
    write(f"{folder}/all.txt", "\f".join(documents()).encode())
    voc = f"{folder}/voc/tokenizer.model"
    words = ["--train-vocab", "700", "--vocab-only", "--out", f"{folder}/voc/x"]
    call([f"{BIN}/c4_tokenize", *words, f"{folder}/all.txt"])
    pieces = pieces_of(read(voc))
    as_tokenizer_json(pieces, f"{folder}/tokenizer.json")
    texts = [text for text in documents() if one_best_cut(text, pieces)]
    check(len(texts) > 100, f"{len(texts)} documents have one best cut")
    records = [json.dumps({"text": text}) for text in texts]
    records[3:3] = [
        "",
        "not json",
        '{"url": 1}',
        '{"text": 7}',
        '{"text": " \\n"}',
        '{"text": "a\ttab"}',
        '{"text": "half \\ud83d pair"}',
        '{"text": "NUL \\u0000 and \\\\u0000"}',
    ]
    write(f"{folder}/a.jsonl.gz", gzip.compress("\n".join(records).encode()))
    write(f"{folder}/b.txt", "\f".join(texts).encode() + b"\f \f")
    inputs = [f"{folder}/a.jsonl.gz", f"{folder}/b.txt"]
    for i, options in enumerate(
        (
            ["--val-docs", "5"],
            ["--val-fraction", "0.2", "--shard-tokens", "3000"],
            ["--split", "val", "--shard-tokens", "5000"],
            ["--separator", "none"],
        )
    ):
        ours, theirs = f"{folder}/ours{i}", f"{folder}/theirs{i}"
        call(
            [
                f"{BIN}/c4_tokenize",
                "--quiet",
                "--model",
                voc,
                "--out",
                f"{theirs}/x",
                *options,
                *inputs,
            ]
        )
        convert(
            "--quiet",
            "--tokenizer",
            f"{folder}/tokenizer.json",
            "--out",
            f"{ours}/x",
            *options,
            *inputs,
        )
        names = sorted(os.listdir(theirs))
        want = sorted({*names, "tokenizer.json"} - {"tokenizer.model"})
        check(sorted(os.listdir(ours)) == want, f"{options}: {os.listdir(ours)}, want {want}")
        shards = [f"{ours}/{name}" for name in names if name.startswith("x_")]
        call([f"{BIN}/shard_tool", "verify", *shards])
        for name in sorted(set(names) & set(os.listdir(ours))):
            got, want = read(f"{ours}/{name}"), read(f"{theirs}/{name}")
            if name.startswith("x_"):
                same_but_for_the_tokenizer(got, want, f"{options}: {name}")
            elif name == "tokenizer.bin":
                check(got == want, "tokenizer.bin differs")
            else:
                same_manifest(json.loads(got), json.loads(want), ours, options)


def same_manifest(got, want, folder, options):
    """All but what tells the tokenizers apart, and how c4_tokenize came to its own."""
    header = read(f"{folder}/{(got['train']['shards'] + got['val']['shards'])[0]['file']}")
    stored = struct.unpack_from("<Q", header, 96)[0]
    check(got["tokenizer"]["hash"] == f"{stored:016x}", f"{options}: hash of the tokenizer")
    for one in (got, want):
        for name in ("file", "hash", "sha256"):
            check(len(one["tokenizer"].pop(name)) > 9, f"{options}: tokenizer's {name}")
    want["options"] = {name: want["options"].get(name) for name in got["options"]}
    for split in ("train", "val"):
        values = [one[split].pop("unigram_entropy_nats") for one in (got, want)]
        check(abs(values[0] - values[1]) < 2e-6, f"{options}: entropies {values}")
    check(got == want, f"{options}: manifest {got}\nwant {want}")


def trained(folder, vocab):
    """A byte-level BPE tokenizer, as GPT-2's is."""
    import tokenizers

    level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(), trainer)
    tokenizer.save(f"{folder}/bpe.json")
    return f"{folder}/bpe.json"


def check_round_trip(folder):
    """Text -> ids -> text by shard_tool, which knows tokenizer.bin alone; narrow and wide ids."""
    texts = [*documents(), "it says <|endoftext|> and <unk> and <0x41>"]
    whole = "\f".join(texts).encode() + b"\f"
    write(f"{folder}/text.txt", whole)
    path = trained(folder, 600)
    convert("--tokenizer", path, "--out", f"{folder}/bpe/x", f"{folder}/text.txt")
    shard = f"{folder}/bpe/x_train_000000.bin"
    check(call([f"{BIN}/shard_tool", "cat", shard]) == whole, "byte-level: other text came back")
    # ids beyond 16 bits: a piece for each of 70,000 words
    words = [f"w{i} " for i in range(70000)]
    random.Random(1).shuffle(words)
    settings = json.loads(read(path))
    settings["model"] = {"type": "WordLevel", "unk_token": "<|endoftext|>"}
    settings["model"]["vocab"] = {"<|endoftext|>": 0} | {w: i + 1 for i, w in enumerate(words)}
    pattern = {"type": "Split", "pattern": {"Regex": "[^ ]+ "}, "behavior": "Isolated"}
    settings.update(pre_tokenizer={**pattern, "invert": False}, decoder=None)
    write(f"{folder}/wide.json", json.dumps(settings).encode())
    text = "".join(words[::7]).encode()
    write(f"{folder}/words.txt", text)
    wide = ["--tokenizer", f"{folder}/wide.json", "--out", f"{folder}/wide/x"]
    convert(*wide, f"{folder}/words.txt")
    shard = f"{folder}/wide/x_train_000000.bin"
    check(read(shard)[:8] == struct.pack("<2I", 20240801, 7), "70,001 pieces: not 32 bits wide")
    call([f"{BIN}/shard_tool", "verify", shard])
    check(call([f"{BIN}/shard_tool", "cat", shard]) == text + b"\f", "wide: other text came back")
    convert(*wide, f"{folder}/words.txt", code=2, says="from an earlier run")
    convert(
        "--tokenizer", path, *wide[2:], f"{folder}/words.txt", code=2, says="of another tokenizer"
    )
    convert("--tokenizer", path, *wide[2:], "--force", f"{folder}/words.txt")
    check(read(shard)[:8] == struct.pack("<2I", 20240520, 1), "--force did not replace the shard")


def check_wrong(folder):
    """What a user can get wrong: exit code, and the word that helps."""
    path = f"{folder}/bpe.json"
    rows = "".join(json.dumps({"text": t, "body": t + "!"}) + "\n" for t in documents())
    write(f"{folder}/good.jsonl", rows.encode())
    packed = gzip.compress(rows.encode())
    write(f"{folder}/cut.jsonl.gz", packed[:-50])
    write(f"{folder}/array.json", b'[{"text": "one"}]')
    write(f"{folder}/bad.jsonl", b"x\n" * 4 + rows.encode())
    write(f"{folder}/a.parquet", b"PAR1")
    write(f"{folder}/blank.txt", b" \f\n")
    for code, says, words in (
        (3, "damaged", [f"{folder}/cut.jsonl.gz"]),
        (3, "is one JSON array", [f"{folder}/array.json"]),
        (
            3,
            "pyarrow" if not importlib.util.find_spec("pyarrow") else "not parquet",
            [f"{folder}/a.parquet"],
        ),
        (
            3,
            "pip install datasets" if not importlib.util.find_spec("datasets") else "folder",
            [f"{folder}/voc"],
        ),
        (3, "no such file", [f"{folder}/none.txt"]),
        (3, "no document", [f"{folder}/blank.txt"]),
        (3, "line 4 (byte 6) is not JSON, the 4. of", ["--max-bad", "3", f"{folder}/bad.jsonl"]),
        (0, "line 4 (byte 6) is not JSON", ["--max-bad", "4", f"{folder}/bad.jsonl"]),
        (0, "0 documents and 0 shards", ["--text-field", "body", f"{folder}/good.jsonl"]),
        (3, 'no string under "none"', ["--text-field", "none", f"{folder}/good.jsonl"]),
        (2, "has no such piece", ["--eos", "<none>", f"{folder}/good.jsonl"]),
        (2, "one of --split", ["--split", "val", "--val-docs", "1", f"{folder}/good.jsonl"]),
        (2, "--shard-tokens 0", ["--shard-tokens", "0", f"{folder}/good.jsonl"]),
    ):
        out = ["--out", f"{folder}/wrong/x", "--force"]
        convert("--tokenizer", path, *out, *words, code=code, says=says)
        if code == 3:
            left = os.listdir(f"{folder}/wrong") if os.path.isdir(f"{folder}/wrong") else []
            final = [n for n in left if n.startswith("x") and not n.endswith(".tmp")]
            check(not final, f"{words} left {final}")
    convert(
        "--tokenizer",
        f"{folder}/good.jsonl",
        "--out",
        f"{folder}/wrong/x",
        f"{folder}/good.jsonl",
        code=3,
        says="is not a tokenizer.json",
    )


def check_readers(folder):
    """Parquet, and zstd, where the packages that read them are installed: the same as plain."""
    rows = [{"text": text, "n": i} for i, text in enumerate(documents())]
    plain = "".join(json.dumps(row) + "\n" for row in rows).encode()
    write(f"{folder}/plain.jsonl", plain)
    names = ["plain.jsonl"]
    if importlib.util.find_spec("pyarrow"):
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist([*rows, {"text": None}])
        pyarrow.parquet.write_table(table, f"{folder}/rows.parquet", row_group_size=17)
        names.append("rows.parquet")
    if importlib.util.find_spec("zstandard"):
        import zstandard

        half = len(plain) // 2
        frames = [zstandard.compress(part) for part in (plain[:half], plain[half:])]
        write(f"{folder}/packed.jsonl.zst", b"".join(frames))
        write(f"{folder}/cut.jsonl.zst", b"".join(frames)[:-9])
        names.append("packed.jsonl.zst")
        convert(
            "--tokenizer",
            f"{folder}/bpe.json",
            "--out",
            f"{folder}/cut/x",
            f"{folder}/cut.jsonl.zst",
            code=3,
            says="ends within a compressed frame",
        )
    if importlib.util.find_spec("datasets"):
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).save_to_disk(f"{folder}/folder")
        names.append("folder")
    for name in names:
        convert(
            "--tokenizer", f"{folder}/bpe.json", "--out", f"{folder}/{name}.d/x", f"{folder}/{name}"
        )
        got = read(f"{folder}/{name}.d/x_train_000000.bin")
        want = read(f"{folder}/plain.jsonl.d/x_train_000000.bin")
        check(got == want, f"{name}: other tokens than those of JSON lines")
    return names


def main():
    for module in ("tokenizers", "google_crc32c"):
        if not importlib.util.find_spec(module):
            print(f"skipped: the Python package {module} is not installed: scripts/setup.sh test")
            sys.exit(77)
    if not os.path.exists(f"{BIN}/c4_tokenize"):
        print("skipped: build/bin/c4_tokenize is not built (make tools)")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        check_same_bytes(folder)
        check_round_trip(folder)
        check_wrong(folder)
        names = check_readers(folder)
    result = f"{len(FAILURES)} failures" if FAILURES else "the files of c4_tokenize"
    print(f"check_huggingface: {result}; read {', '.join(names)}")
    sys.exit(1 if FAILURES else 0)


if __name__ == "__main__":
    main()
