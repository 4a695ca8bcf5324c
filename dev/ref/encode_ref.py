#!/usr/bin/env python3
"""encode_ref.py: what the sentencepiece library makes of some texts, for dev/test/test_encode.c.

    python3 dev/ref/encode_ref.py [--out dev/ref/fixtures] [--check]

Writes encode.model, a small vocabulary of the recipe of c4_tokenize --train-vocab trained on text
made here, and encode.json: [{"text_hex": ..., "ids": [...]}, ...]. --check: fails when the library
that is installed now gives other ids for the model that is there."""
import argparse
import io
import json
import pathlib
import random
import sys

import sentencepiece as spm

RECIPE = dict(model_type="unigram", vocab_size=600, normalization_rule_name="identity",
              remove_extra_whitespaces=False, add_dummy_prefix=False, byte_fallback=True,
              allow_whitespace_only_pieces=True, split_digits=True, character_coverage=0.9995,
              user_defined_symbols=["\n", "\t"], unk_id=0, eos_id=1, bos_id=-1, pad_id=-1,
              hard_vocab_limit=False, minloglevel=2, num_threads=1)
WORDS = ("the of and attention values keys queries softmax exponent logarithm gradient weight "
         "layer model loss train token sequence step learn rate warm decay matrix vector channel "
         "maximum sum mean norm scale caf\u00e9 na\u00efve \u00fcber \u65e5\u672c\u8a9e").split()


def sentence(rng, words):
    text = " ".join(rng.choice(WORDS) + rng.choice(["", "s", "ed", "ing", ",", "."])
                    for _ in range(words))
    return text + rng.choice([" 2024", " 3.14", "  two spaces", " x=1;", ""])


def texts():
    rng = random.Random(7)
    made = [sentence(rng, n) for n in (1, 3, 10, 40, 200)]
    made += ["", " ", "  ", "a", "\n", "\n\n\tindented\n", " leading", "trailing ", "a" * 50,
             "0123456789", "Zx\u00e9\u4e2d\U0001f600\u20ac", "under_score CamelCase",
             "\u2581", "mark \u2581 inside", "nul \0 inside", "caf\u00e9 \u65e5\u672c\u8a9e"]
    return [t.encode() for t in made] + [b"\xff", b"bad \xc3( utf-8", b"\xe2\x82", b"\xed\xa0\x80x",
                                         b"\xf4\x90\x80\x80", b"\xc0\xaf"]


def altered(byte_run):
    """What the library would not give back: cut out, as bytes. Yields (plain?, bytes)."""
    run, at = b"", 0
    while at < len(byte_run):
        for size in (1, 2, 3, 4):
            part = byte_run[at:at + size]
            try:
                part.decode()
                break
            except UnicodeDecodeError:
                part = b""
        if part and part not in (b"\0", "\u2581".encode()):
            run += part
        else:
            if run:
                yield True, run
            run = b""
            yield False, part or byte_run[at:at + 1]
        at += len(part) or 1
    if run:
        yield True, run


def encode(model, data):
    ids = []
    for plain, part in altered(data):
        if plain:
            ids += model.encode(part.decode())
        else:
            ids += [model.piece_to_id(f"<0x{byte:02X}>") for byte in part]
    return ids


def train():
    rng = random.Random(1)
    out = io.BytesIO()
    lines = [sentence(rng, rng.randint(3, 20)) for _ in range(3000)]
    spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **RECIPE)
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).parent / "fixtures")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    path = args.out / "encode.model"
    if not args.check:
        path.write_bytes(train())
    model = spm.SentencePieceProcessor(model_proto=path.read_bytes())
    cases = [{"text_hex": t.hex(), "ids": encode(model, t)} for t in texts()]
    if args.check:
        sys.exit(cases != json.loads((args.out / "encode.json").read_text()))
    (args.out / "encode.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
