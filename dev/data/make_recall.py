#!/usr/bin/env python3
"""make_recall.py: token shards of multi-query associative recall (Arora et al.,
arXiv 2312.04927), a task that only attention to the right place solves.

    python3 dev/data/make_recall.py --out DIR [--pairs 8] [--seq-len 128] [--train 20000]

A sequence of T tokens: n pairs of a key and a value, all keys different, then queries: a key that
was shown, drawn uniformly, and its value. Keys, values and queries cannot be known before; what
follows a query can. Sequences are as long as the trainer's windows (--seq-len T), so that each is
one. Prints the entropy in nats a token, the least loss that any model can reach: a loss above it
by x is a mean loss of x * T / answers on the answers.

Writes DIR/recall_train_000000.bin and DIR/recall_val_000000.bin (dataloader/FORMAT.md; no
tokenizer: ids are keys, then values)."""
import argparse
import math
import pathlib
import sys

import numpy as np

MAGIC, VERSION = 20240520, 1  # llm.c: tokens of 16 bits


def sequences(rng, count, args):
    """(count, T) ids: keys are 0 .. keys-1, values follow."""
    order = np.argsort(rng.random((count, args.keys)), axis=1)[:, : args.pairs]
    values = args.keys + rng.integers(args.values, size=(count, args.pairs))
    asked = rng.integers(args.pairs, size=(count, args.seq_len // 2 - args.pairs))
    rows = np.arange(count)[:, None]
    keys = np.concatenate([order, order[rows, asked]], axis=1)
    answers = np.concatenate([values, values[rows, asked]], axis=1)
    return np.stack([keys, answers], axis=2).reshape(count, -1).astype("<u2")


def entropy(args):
    """Nats a token."""
    shown = sum(math.log(args.keys - i) + math.log(args.values) for i in range(args.pairs))
    queries = args.seq_len // 2 - args.pairs
    return (shown + queries * math.log(args.pairs)) / args.seq_len


def write_shard(path, tokens, vocab):
    header = np.zeros(256, "<i4")
    header[:3] = MAGIC, VERSION, tokens.size
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "wb") as file:
        file.write(header.tobytes())
        file.write(tokens.tobytes())
    partial.replace(path)
    print(f"{path}: {tokens.size} tokens, ids below {vocab}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory")
    parser.add_argument("--seq-len", type=int, default=128, help="T, even")
    parser.add_argument("--pairs", type=int, default=8, help="pairs shown in a sequence")
    parser.add_argument("--keys", type=int, default=64, help="different keys")
    parser.add_argument("--values", type=int, default=64, help="different values")
    parser.add_argument("--train", type=int, default=20000, help="sequences")
    parser.add_argument("--val", type=int, default=1000, help="sequences")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.seq_len % 2 or not 0 < args.pairs <= min(args.keys, args.seq_len // 2):
        print("error: --seq-len must be even, --pairs at most --keys and seq-len / 2",
              file=sys.stderr)
        sys.exit(2)
    args.out.mkdir(parents=True, exist_ok=True)
    vocab = args.keys + args.values
    for split, (name, count) in enumerate((("train", args.train), ("val", args.val))):
        rng = np.random.Generator(np.random.PCG64([args.seed, split]))
        tokens = sequences(rng, count, args).ravel()
        # the trainer's windows share a token: the last sequence is one only with one more behind it
        tokens = np.append(tokens, tokens[:1])
        write_shard(args.out / f"recall_{name}_000000.bin", tokens, vocab)
    print(f"entropy {entropy(args):.6f} nats a token; {args.seq_len // 2 - args.pairs} of "
          f"{args.seq_len} tokens are answers")


if __name__ == "__main__":
    main()
