"""What a test of the data tools is written with: calls of c4_tokenize and shard_tool, and a reader
of what they leave behind that follows dataloader/FORMAT.md on its own, so that a mistake in our C
writer cannot hide one in our C reader. Only Python's standard library. Knows no test."""

import array
import json
import os
import shutil
import subprocess
import sys

import stop_at
from system_kit import IO, INPUT, USAGE, Failure, Skip, check, read, write  # noqa: F401

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "dev", "data"))
import make_c4  # noqa: E402

TOKENIZE = os.path.join(TOP, "build", "bin", "c4_tokenize")
SHARD_TOOL = os.path.join(TOP, "build", "bin", "shard_tool")
MAKE_C4 = os.path.join(TOP, "dev", "data", "make_c4.py")
TESTS = []


def test(name):
    """Registers a test."""

    def add(function):
        TESTS.append((name, function))
        return function

    return add


def short(value):
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-100:]}"


def same(got, want, what):
    if got != want:
        raise Failure(f"{what}: got {short(got)}, want {short(want)}")


# ---- files -------------------------------------------------------------------------------------


def read_shard(path):
    """(header words, tokens)"""
    data = read(path)
    header = array.array("i", data[:1024])
    check(header[0] in (20240520, 20240801), f"{path}: first word {header[0]}")
    tokens = array.array("H" if header[0] == 20240520 else "I", data[1024:])
    same(len(tokens), header[2], f"tokens of {path}")
    return header, tokens


def read_split(prefix, split):
    """The tokens of all shards of a split, in order."""
    tokens = []
    for number in range(10**6):
        path = f"{prefix}_{split}_{number:06}.bin"
        if not os.path.exists(path):
            return tokens
        tokens += read_shard(path)[1]


def documents_of(tokens, eos=1):
    """Lists of tokens, without what ends them; the last has to be ended too."""
    out, begin = [], 0
    for at, token in enumerate(tokens):
        if token == eos:
            out.append(list(tokens[begin:at]))
            begin = at + 1
    same(begin, len(tokens), "the last token ends a document: its place")
    return out


def manifest(prefix):
    return json.loads(read(f"{prefix}.json"))


def tree(directory):
    """{name: bytes} of everything in a directory."""
    return {name: read(os.path.join(directory, name)) for name in sorted(os.listdir(directory))}


def same_tree(got, want, what):
    same(sorted(got), sorted(want), f"{what}: files")
    for name, data in want.items():
        if got[name] != data:
            at = next((i for i, (a, b) in enumerate(zip(got[name], data)) if a != b), "the end")
            raise Failure(f"{what}: {name} differs at byte {at}")


def stamps(directory):
    """What changes when a file is written again."""
    out = {}
    for name in sorted(os.listdir(directory)):
        s = os.stat(os.path.join(directory, name))
        out[name] = (s.st_ino, s.st_mtime_ns, s.st_size)
    return out


def shards_in(directory):
    if not os.path.isdir(directory):
        return []
    return sorted(os.path.join(directory, n) for n in os.listdir(directory) if n.endswith(".bin")
                  and n != "tokenizer.bin")


# ---- a test and its calls ----------------------------------------------------------------------


class Shared:
    """Made once, for all tests: C4-like files and a vocabulary of 1000 pieces."""

    def __init__(self, root):
        self.root, self.data = root, os.path.join(root, "data")
        command = [sys.executable, MAKE_C4, "--out", self.data, "--files", "3", "--ugly"]
        subprocess.run([*command, "--documents", "400"], check=True, stdout=subprocess.DEVNULL)
        self.c4 = [os.path.join(self.data, f"c4-train.0000{i}-of-00003.json.gz") for i in range(3)]
        self.model = os.path.join(root, "vocabulary", "tokenizer.model")
        command = [TOKENIZE, "--train-vocab", "1000", "--train-bytes", "600000", "--vocab-only"]
        command += ["--out", os.path.join(root, "vocabulary", "x"), self.c4[0]]
        subprocess.run(command, check=True, capture_output=True)
        self.stop_at, why = stop_at.build(root)
        check(self.stop_at, why)


class Context:
    """One test: its own directory, and how to call the tools in it."""

    def __init__(self, shared, directory):
        self.shared, self.dir = shared, directory
        self.data, self.c4, self.model = shared.data, shared.c4, shared.model
        os.makedirs(directory)

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def write(self, name, data):
        write(self.path(name), data)
        return self.path(name)

    def call(self, command, code=0, says=(), **popen):
        """Runs to the end; checks the exit code and what stderr has to hold. (stdout, stderr)"""
        done = subprocess.run(
            command, cwd=self.dir, stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
            **popen,
        )
        err = done.stderr.decode(errors="replace")
        shown = " ".join(os.path.relpath(w, self.dir) if w.startswith("/") else w for w in command)
        check(
            code is None or done.returncode == code,
            f"exit code {done.returncode}, want {code}, of {shown}\n{err[-2000:]}",
        )
        for text in [says] if isinstance(says, str) else says:
            check(text in err, f"{text!r} is not in what {shown} said: {err[-2000:]}")
        return done.stdout, err

    def command(self, out, inputs, options):
        """Words of a call of c4_tokenize. model: the shared one, unless told; None: left out."""
        words = [TOKENIZE, f"--out={self.path(out)}"]
        for name, value in {"model": self.model, **options}.items():
            name = "--" + name.replace("_", "-")
            if value is True:
                words.append(name)
            elif value is not None and value is not False:
                words.append(f"{name}={value}")
        return words + list(inputs)

    def tokenize(self, out, inputs, code=0, says=(), popen=None, **options):
        return self.call(self.command(out, inputs, options), code, says, **(popen or {}))

    def stopped(self, out, inputs, moment, kind="STOP_AT", **options):
        """As tokenize, but killed at a moment of stop_at.py; whether it came to that."""
        done = subprocess.run(
            self.command(out, inputs, options), cwd=self.dir, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=120,
            env=stop_at.environment(self.shared.stop_at, {kind: moment}),
        )
        killed = stop_at.was_stopped(done.returncode)
        check(killed or done.returncode == 0, f"ended with {done.returncode}: {done.stderr}")
        return killed

    def tool(self, *words, code=0, says=()):
        """shard_tool: its stdout."""
        return self.call([SHARD_TOOL, *words], code, says)[0]

    def cat(self, *words):
        return self.tool("cat", *words)

    def verify_whole(self, directory):
        """What lies under a final name is whole, always: shards, and all that a manifest names."""
        shards = shards_in(directory)
        if shards:
            self.tool("verify", *shards)
        for name in os.listdir(directory) if os.path.isdir(directory) else []:
            if name.endswith(".json") and not name.endswith(".progress.json"):
                self.tool("verify", os.path.join(directory, name))

    def close(self):
        shutil.rmtree(self.dir, ignore_errors=True)
