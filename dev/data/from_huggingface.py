#!/usr/bin/env python3
"""Token shards by any tokenizer.json: the files that c4_tokenize writes (dataloader/FORMAT.md), for
vocabularies that are not sentencepiece's, GPT-2's for one, and for parquet files and data sets of
the datasets package. Needs the Python packages tokenizers and google-crc32c (scripts/setup.sh test
has them in build/venv). Exit status: 0 done, 2 wrong usage, 3 bad input, 4 out of space or I/O."""

import argparse
import concurrent.futures
import glob
import json
import os
import re
import sys
import time

from documents import Source
from shards import (
    INPUT,
    IO,
    USAGE,
    Split,
    fnv1a,
    sha256_of,
    stop,
    uniform,
    vocabulary_file,
    write_atomic,
    write_manifest,
)

BATCH_BYTES, BATCH_DOCUMENTS = 8 << 20, 8192  # in memory at a time, twice
KNOWN_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


def options():
    p = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes text as token shards PREFIX_train_000000.bin, ..., with any "
        "tokenizer.json.\n\nInput: *.json, *.jsonl (one object a line), *.parquet, folders of "
        "datasets.save_to_disk;\nany other name is text: one document, or several separated by "
        "form feeds.\nText and JSON also as .gz and .zst.",
        epilog="Exit status: 0 done, 2 wrong usage, 3 bad input, 4 out of space or I/O.",
    )
    p.add_argument("--tokenizer", required=True, metavar="FILE", help="tokenizer.json")
    p.add_argument("--out", required=True, metavar="PREFIX", help="directory and name of shards")
    p.add_argument("--text-field", default="text", metavar="NAME", help="of the document (text)")
    p.add_argument("--eos", metavar="TOKEN", help="ends documents (default: the usual one)")
    p.add_argument("--separator", choices=("eos", "none"), default="eos", help="(eos)")
    p.add_argument("--split", choices=("train", "val"), help="all documents go there")
    p.add_argument("--val-docs", type=int, default=0, metavar="N", help="the first N to val (0)")
    p.add_argument("--val-fraction", type=float, default=0.0, metavar="X", help="share to val (0)")
    p.add_argument("--shard-tokens", type=int, default=100000000, metavar="N", help="(100000000)")
    p.add_argument("--max-bad", type=int, default=100, metavar="N", help="lines left out (100)")
    p.add_argument("--threads", type=int, metavar="N", help="(all cores)")
    p.add_argument("--force", action="store_true", help="replace what an earlier run left")
    p.add_argument("--quiet", action="store_true", help="no progress")
    p.add_argument("inputs", nargs="+", metavar="FILE", help="text")
    o = p.parse_args()
    if bool(o.split) + (o.val_docs > 0) + (o.val_fraction > 0) > 1:
        stop(USAGE, "give one of --split, --val-docs and --val-fraction.")
    for name, value, low, high in (
        ("val-docs", o.val_docs, 0, 1 << 62),
        ("val-fraction", o.val_fraction, 0, 1),
        ("shard-tokens", o.shard_tokens, 1, (1 << 31) - 1),
        ("max-bad", o.max_bad, 0, 1 << 62),
        ("threads", o.threads or 1, 1, 4096),
    ):
        if not low <= value <= high:
            stop(USAGE, f"--{name} {value}: expected {low} to {high}.")
    return o


# ---- the tokenizer -----------------------------------------------------------------------------


class Vocabulary:
    """A tokenizer.json: encodes documents, and knows what its pieces print as."""

    def __init__(self, path, eos, separator):
        try:
            import tokenizers
        except ImportError:
            stop(
                USAGE,
                "the Python package tokenizers is missing: pip install tokenizers, or "
                "scripts/setup.sh test and build/venv/bin/python.",
            )
        if not os.path.isfile(path):
            stop(INPUT, f"--tokenizer {path}: no such file.")
        with open(path, "rb") as f:
            self.file = f.read()
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(path)
            self.settings = json.loads(self.file)
        except Exception as error:  # the package raises nothing narrower
            stop(INPUT, f"{path}: is not a tokenizer.json: {error}.")
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # a text that says </s> is text
        self.ids = self.tokenizer.get_vocab(with_added_tokens=True)
        if not self.ids:
            stop(INPUT, f"{path}: has no pieces.")
        self.size = max(self.ids.values()) + 1
        self.eos = self.find_eos(path, eos, separator)

    def find_eos(self, path, eos, separator):
        found = [eos] if eos else [token for token in KNOWN_EOS if token in self.ids][:1]
        if eos and eos not in self.ids:
            stop(USAGE, f"--eos {eos}: {path} has no such piece.")
        if not found and separator == "eos":
            stop(
                USAGE,
                f"{path}: names no end-of-document piece that is known here. Name it with "
                "--eos, or use --separator none.",
            )
        return self.ids[found[0]] if found else -1

    def encode(self, texts):
        """[ids of each text], on all cores."""
        encode = getattr(self.tokenizer, "encode_batch_fast", self.tokenizer.encode_batch)
        found = [encoding.ids for encoding in encode(texts, add_special_tokens=False)]
        return [
            self.without_eos(t, ids) if self.eos in ids else ids for t, ids in zip(texts, found)
        ]

    def without_eos(self, text, ids):
        """Unigram models may take the name of the end-of-document piece in a text for the piece:
        the text is encoded in parts that are cut behind the first character of the name."""
        name = self.tokenizer.id_to_token(self.eos)
        if len(name) < 2 or name not in text:
            return ids
        first, *others = text.split(name)
        parts = [first + name[0], *(name[1:] + part + name[0] for part in others)]
        parts[-1] = parts[-1][:-1]
        return [
            i for e in self.tokenizer.encode_batch(parts, add_special_tokens=False) for i in e.ids
        ]

    def pieces(self):
        """The bytes that each id prints as, 1 to 255 of them."""
        added = {token["id"]: token["content"] for token in self.settings["added_tokens"]}
        of_id = {number: piece for piece, number in self.ids.items()}
        to_bytes = piece_decoder(self.settings)
        out = []
        for i in range(self.size):
            name = f"<{i}>".encode()  # where the vocabulary has a hole
            piece = added[i].encode() if i in added else to_bytes(of_id[i]) if i in of_id else name
            if len(piece) > 255:
                print(
                    f"warning: piece {i} has {len(piece)} bytes; 255 of them print.",
                    file=sys.stderr,
                )
            out.append(piece[:255] or name)
        return out


def flatten(part):
    """The steps of a decoder or pre-tokenizer, which may be a sequence of them."""
    if not part:
        return []
    steps = part.get("decoders") or part.get("pretokenizers")
    return [step for inner in steps for step in flatten(inner)] if steps else [part]


def byte_alphabet():
    """{character: byte} of byte-level vocabularies: printable Latin-1 stands for itself, the
    others for those after U+0100 in their order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def piece_decoder(settings):
    """A function from a piece to the bytes that it prints as, after the decoder in the file."""
    steps = flatten(settings.get("decoder")) or flatten(settings.get("pre_tokenizer"))
    step = {s["type"]: s for s in steps}
    alphabet = byte_alphabet()

    def byte_level(piece):
        known = all(c in alphabet for c in piece)
        return bytes(alphabet[c] for c in piece) if known else piece.encode()

    def word_piece(piece):
        prefix = step["WordPiece"].get("prefix", "##")
        return (piece[len(prefix) :] if piece.startswith(prefix) else " " + piece).encode()

    def marked(piece):
        if re.fullmatch("<0x[0-9A-F]{2}>", piece) and settings["model"].get("byte_fallback"):
            return bytes([int(piece[3:5], 16)])
        for s in steps:
            if s["type"] == "Metaspace":
                piece = piece.replace(s.get("replacement", "\u2581"), " ")
            if s["type"] == "Replace" and "String" in s["pattern"]:
                piece = piece.replace(s["pattern"]["String"], s["content"])
            if s["type"] == "BPEDecoder" and piece.endswith(s["suffix"]):
                piece = piece[: -len(s["suffix"])] + " "
        return piece.encode(errors="replace")

    return byte_level if "ByteLevel" in step else word_piece if "WordPiece" in step else marked


# ---- from text to shards -----------------------------------------------------------------------


def batches(source):
    texts, size = [], 0
    for text in source:
        texts.append(text)
        size += len(text)
        if size >= BATCH_BYTES or len(texts) == BATCH_DOCUMENTS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def encoded(vocabulary, source):
    """(text, ids) of each document; the next batch is read while one is encoded."""
    with concurrent.futures.ThreadPoolExecutor(1) as worker:
        texts, future = [], None
        for following in batches(source):
            done = (texts, future)
            texts, future = following, worker.submit(vocabulary.encode, following)
            if done[1]:
                yield from zip(done[0], done[1].result())
        if future:
            yield from zip(texts, future.result())


class Progress:
    def __init__(self, quiet):
        self.quiet, self.begin, self.last = quiet, time.monotonic(), time.monotonic()

    def say(self, splits):
        now = time.monotonic()
        if self.quiet or now - self.last < 5:
            return
        self.last = now
        tokens, size = sum(s.tokens for s in splits), sum(s.bytes for s in splits)
        rate = size / (now - self.begin)
        print(
            f"{tokens / 1e6:.1f} M tokens of {size / 1e6:.1f} MB of text, {rate / 1e6:.2f} MB/s",
            file=sys.stderr,
        )


def place(o, vocabulary):
    """Nothing of another run is mixed with this one's."""
    folder = os.path.dirname(o.out) or "."
    os.makedirs(folder, exist_ok=True)
    found = sorted(
        f
        for split in ("train", "val")
        for f in glob.glob(f"{glob.escape(o.out)}_{split}_[0-9]*.bin")
    )
    pieces = vocabulary_file(vocabulary.pieces(), vocabulary.eos)
    files = {"tokenizer.json": vocabulary.file, "tokenizer.bin": pieces}
    for name, data in files.items():
        path = os.path.join(folder, name)
        if os.path.exists(path) and not o.force:
            with open(path, "rb") as f:
                if f.read() != data:
                    stop(
                        USAGE,
                        f"{path}: is there and is of another tokenizer. Choose another "
                        "--out, or replace it with --force.",
                    )
    if found and not o.force:
        stop(
            USAGE,
            f"{found[0]} is there from an earlier run. Choose another --out, or replace it "
            "with --force.",
        )
    for path in (f"{o.out}.json", *found):
        if os.path.exists(path):
            os.remove(path)
    for name, data in files.items():
        write_atomic(os.path.join(folder, name), data)


def write_shards(o, vocabulary, source):
    info = {"vocab": vocabulary.size, "eos": vocabulary.eos, "hash": fnv1a(vocabulary.file)}
    info["separator"] = int(o.separator == "eos")
    splits = [Split(o.out, name, info, o.shard_tokens) for name in ("train", "val")]
    progress = Progress(o.quiet)
    for number, (text, ids) in enumerate(encoded(vocabulary, source)):
        valid = o.split == "val" or number < o.val_docs
        if o.val_fraction:
            valid = uniform(0, 0, number) < o.val_fraction
        if o.separator == "eos":
            ids.append(vocabulary.eos)
        splits[valid].put(ids, len(text.encode()))
        progress.say(splits)
    for split in splits:
        split.close()
    if not any(split.documents for split in splits):
        stop(INPUT, f"{o.inputs[0]}: no document in the input.")
    tokenizer = {"file": "tokenizer.json", "hash": f"{info['hash']:016x}"}
    tokenizer["sha256"] = sha256_of(o.tokenizer)
    tokenizer.update(vocab=vocabulary.size, eos=vocabulary.eos)
    kept = ("separator", "split", "val_docs", "val_fraction", "shard_tokens")
    write_manifest(
        f"{o.out}.json", tokenizer, {name: getattr(o, name) for name in kept}, source.inputs, splits
    )
    for s in splits:
        print(
            f"{s.name}: {s.tokens} tokens of {s.bytes} bytes in {s.documents} documents and "
            f"{len(s.shards)} shards; unigram entropy {s.entropy():.3f} nats"
        )


def main():
    o = options()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if o.threads:
        os.environ["RAYON_NUM_THREADS"] = str(o.threads)
    vocabulary = Vocabulary(o.tokenizer, o.eos, o.separator)
    source = Source(o.inputs, o.text_field, o.max_bad, o.quiet)
    try:
        place(o, vocabulary)
        write_shards(o, vocabulary, source)
    except OSError as error:
        stop(
            IO,
            f"{error.filename or o.out}: {error.strerror}. Nothing that is not whole has a "
            "final name.",
        )


if __name__ == "__main__":
    main()
