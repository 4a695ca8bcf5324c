"""Token shards, tokenizer.bin and manifest, as dataloader/FORMAT.md lays them down: the writer of
data sets that are not made by c4_tokenize. Knows no tokenizer and no text. What a user can cause
ends with a message and an exit code: see stop()."""

import array
import collections
import hashlib
import json
import math
import os
import struct
import sys

USAGE, INPUT, IO = 2, 3, 4
MASK32 = 0xFFFFFFFF


def stop(code, message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def crc32c(data, crc=0):
    try:
        import google_crc32c
    except ImportError:
        stop(
            USAGE,
            "the Python package google-crc32c is missing: pip install google-crc32c, or "
            "scripts/setup.sh test and build/venv/bin/python.",
        )
    return google_crc32c.extend(crc, bytes(data))


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def uniform(seed, stream, index):
    """rng_uniform of laser/rng.h: Philox-4x32-10, 53 bits, in [0, 1)."""
    keys = [seed & MASK32, seed >> 32]
    w = [index & MASK32, index >> 32, stream & MASK32, stream >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * w[0], 0xCD9E8D57 * w[2]
        w = [p1 >> 32 ^ w[1] ^ keys[0], p1 & MASK32, p0 >> 32 ^ w[3] ^ keys[1], p0 & MASK32]
        keys = [(keys[0] + 0x9E3779B9) & MASK32, (keys[1] + 0xBB67AE85) & MASK32]
    return ((w[1] << 32 | w[0]) >> 11) * 2.0**-53


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomic(path, data):
    """Under the final name when it is whole, and on the disk."""
    with open(f"{path}.tmp", "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    publish(path)


def publish(path):
    os.replace(f"{path}.tmp", path)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def vocabulary_file(pieces, eos):
    """Bytes of tokenizer.bin; pieces: (bytes of each id)."""
    body = b"".join(bytes([len(piece)]) + piece for piece in pieces)
    return struct.pack("<256i", 20240328, 2, len(pieces), eos, *[0] * 252) + body


class Shard:
    """One file that is being written."""

    def __init__(self, path, info):
        self.path, self.info = path, info
        self.tokens = self.documents = self.crc = 0
        self.code = "H" if info["vocab"] <= 65536 else "I"
        self.file = open(f"{path}.tmp", "wb")
        self.file.write(bytes(1024))

    def put(self, ids):
        words = array.array(self.code, ids)
        if sys.byteorder == "big":
            words.byteswap()
        data = words.tobytes()
        self.crc = crc32c(data, self.crc)
        self.file.write(data)
        self.tokens += len(ids)

    def header(self):
        info = self.info
        magic, version = (20240520, 1) if self.code == "H" else (20240801, 7)
        words = bytearray(struct.pack("<3I", magic, version, self.tokens)).ljust(1024, b"\0")
        struct.pack_into(
            "<IIIiqIIQ",
            words,
            64,
            0x5253414C,
            1,
            info["vocab"],
            info["eos"],
            self.documents,
            info["separator"],
            self.crc,
            info["hash"],
        )
        struct.pack_into("<I", words, 104, crc32c(words))
        return words

    def close(self):
        self.file.seek(0)
        self.file.write(self.header())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        publish(self.path)


class Split:
    """Shards of one split, cut at shard_tokens wherever that falls."""

    def __init__(self, prefix, name, info, shard_tokens):
        self.prefix, self.name, self.info, self.shard_tokens = prefix, name, info, shard_tokens
        self.shard, self.shards = None, []
        self.documents = self.tokens = self.bytes = 0
        self.counts = collections.Counter()

    def put(self, ids, text_bytes):
        """One document."""
        at = 0
        while at < len(ids):
            if not self.shard:
                path = f"{self.prefix}_{self.name}_{len(self.shards):06d}.bin"
                self.shard = Shard(path, self.info)
            room = self.shard_tokens - self.shard.tokens
            part = ids[at : at + room] if at or len(ids) > room else ids
            self.shard.put(part)
            at += len(part)
            self.shard.documents += at == len(ids)
            if self.shard.tokens == self.shard_tokens:
                self.close()
        self.counts.update(ids)
        self.documents += 1
        self.tokens += len(ids)
        self.bytes += text_bytes

    def close(self):
        if not self.shard:
            return
        self.shard.close()
        self.shards.append(
            {
                "file": os.path.basename(self.shard.path),
                "tokens": self.shard.tokens,
                "documents": self.shard.documents,
                "crc32c": f"{self.shard.crc:08x}",
            }
        )
        self.shard = None

    def entropy(self):
        """Nats a token: what a model reaches that knows only how often each token occurs."""
        n = self.tokens
        return -sum(c / n * math.log(c / n) for c in self.counts.values()) if n else 0.0

    def summary(self):
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "unigram_entropy_nats": round(self.entropy(), 6),
            "shards": self.shards,
        }


def write_manifest(path, tokenizer, options, inputs, splits):
    """The last file of a data set: where it is, the shards beside it are complete."""
    manifest = {
        "format": "laser.c data",
        "version": 1,
        "tokenizer": tokenizer,
        "options": options,
        "inputs": inputs,
        **{split.name: split.summary() for split in splits},
    }
    write_atomic(path, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
