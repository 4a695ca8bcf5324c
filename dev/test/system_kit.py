"""What a system test is written with: tiny token shards, calls of the trainer, comparisons of
what runs leave behind. Only Python's standard library: the tests must run where the trainers do.
The shard writer follows the layout in dataloader/FORMAT.md on its own, so that a mistake in our C
writer cannot hide one in our C reader. Knows no test."""

import array
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import time

import stop_at

USAGE, INPUT, IO, DIVERGED, PROCESS = 2, 3, 4, 5, 6
TESTS = []

# A model and a batch whose sizes divide nothing of each other; two micro-steps a step. The
# options of every run here, where a test does not override them.
TINY = dict(
    model="tiny",
    layers=2,
    d_model=32,
    d_ff=56,
    heads=2,
    head_dim=12,
    seq_len=16,
    batch=4,
    total_batch=128,
    steps=24,
    warmup=3,
    lr=3e-3,
    val_every=5,
    val_tokens=128,
    save_every=5,
    seed=7,
    threads=1,
)
VOCAB = 61


class Failure(Exception):
    pass


class Skip(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failure(message)


def same(got, want, what):
    check(got == want, f"{what}: got {got!r}, want {want!r}")


def test(name, each=False):
    """Registers a test. each: once per trainer; otherwise once, with the first trainer given."""

    def add(function):
        TESTS.append((name, each, function))
        return function

    return add


# ---- checksums and files -----------------------------------------------------------------------


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = _crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def flip_byte(path, offset):
    data = bytearray(read(path))
    data[offset] ^= 0x10
    write(path, data)


# ---- shards ------------------------------------------------------------------------------------


def tokens_like_text(count, seed, vocab=VOCAB):
    """Tokens that follow a rule, with exceptions: there is something to learn, and no end."""
    rng = random.Random(seed)
    out, last = [], 0
    for _ in range(count):
        last = rng.randrange(vocab) if rng.random() < 0.25 else (5 * last + 3) % vocab
        out.append(last)
    return out


def shard_bytes(tokens, vocab=VOCAB, extended=True, wide=False):
    header = [0] * 256
    payload = array.array("I" if wide else "H", tokens).tobytes()
    header[:3] = [20240801, 7, len(tokens)] if wide else [20240520, 1, len(tokens)]
    if extended:
        header[16:27] = [0x5253414C, 1, vocab, 0, 1, 0, 1, crc32c(payload), 0x1234, 0x5678, 0]
        header[26] = crc32c(struct.pack("<256I", *header))
    return struct.pack("<256I", *header) + payload


def write_shard(path, tokens, **how):
    write(path, shard_bytes(tokens, **how))


def write_data(directory, vocab=VOCAB, **how):
    """Three training shards of 7, 12 and 10 windows of 16 tokens, with tokens left over: 29
    windows, so that steps of 8 cross shards all the time and an epoch ends every 3.6 steps. One
    validation shard of 20 windows.
    """
    os.makedirs(directory, exist_ok=True)
    for i, count in enumerate((7 * 16 + 1, 12 * 16 + 6, 10 * 16 + 16)):
        write_shard(
            f"{directory}/train_{i}.bin", tokens_like_text(count, i, vocab), vocab=vocab, **how
        )
    write_shard(
        f"{directory}/val_0.bin", tokens_like_text(20 * 16 + 1, 99, vocab), vocab=vocab, **how
    )


def write_tokenizer(path, pieces):
    """llm.c's tokenizer file, version 2."""
    body = b"".join(bytes([len(p)]) + p for p in pieces)
    write(path, struct.pack("<256I", 20240328, 2, len(pieces), 0, *[0] * 252) + body)


# ---- what a run leaves -------------------------------------------------------------------------

TIMES = ("step_ms", "tok_s", "mfu", "time")


def log_lines(out):
    with open(f"{out}/log.jsonl", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def records(out, kind):
    """The records of one kind, without what a clock wrote."""
    return [
        {k: v for k, v in r.items() if k not in TIMES} for r in log_lines(out) if r["kind"] == kind
    ]


def checkpoints(out):
    """Names, oldest first."""
    directory = f"{out}/checkpoints"
    return (
        sorted(n for n in os.listdir(directory) if n.startswith("step_"))
        if os.path.isdir(directory)
        else []
    )


def newest(out):
    names = checkpoints(out)
    check(names, f"{out}: no checkpoint")
    return f"{out}/checkpoints/{names[-1]}"


def tensors(path):
    """name -> array of floats."""
    data = read(path)
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: array.array(
            "f", data[8 + size + t["data_offsets"][0] : 8 + size + t["data_offsets"][1]]
        )
        for name, t in header.items()
    }


def check_same_run(a, b, kinds=("train", "val")):
    """Weights, moments and records of run b are those of run a, bit for bit."""
    for kind in kinds:
        ra, rb = records(a, kind), records(b, kind)
        same([r["step"] for r in rb], [r["step"] for r in ra], f"steps of the {kind} records")
        for x, y in zip(ra, rb):
            same(y, x, f"{kind} record")
    same(os.path.basename(newest(b)), os.path.basename(newest(a)), "last checkpoint")
    for name in ("model.safetensors", "optimizer.safetensors"):
        check(
            read(f"{newest(a)}/{name}") == read(f"{newest(b)}/{name}"),
            f"{name} differs between {a} and {b}",
        )


def largest_difference(a, b):
    """Between the weights of the newest checkpoints of two runs."""
    x, y = tensors(f"{newest(a)}/model.safetensors"), tensors(f"{newest(b)}/model.safetensors")
    same(sorted(y), sorted(x), "tensor names")
    return max(abs(p - q) for name in x for p, q in zip(x[name], y[name]))


# ---- calls -------------------------------------------------------------------------------------


class Result:
    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds


def said(stderr):
    """As text, without what OpenBLAS gives reason to say on machines that it does not know well."""
    lines = stderr.decode(errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("warning: OpenBLAS uses"))


class Context:
    """One test: the trainer it looks at, its own directory, and how to call things in it."""

    def __init__(self, suite, trainer, directory):
        self.trainer, self.dir = trainer, directory
        self.trainers, self.tool, self.data = suite.trainers, suite.tool, suite.data
        self.stop_at, self.no_stop_at = suite.stop_at, suite.no_stop_at
        self.patience = suite.patience  # how many times longer than usual everything may take
        self.started = []
        os.makedirs(directory)

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def options(self, changes):
        options = dict(
            TINY, train=f"{self.data}/train_*.bin", val=f"{self.data}/val_*.bin", out="run"
        )
        options.update(changes)
        if options.get("out"):
            options["out"] = os.path.join(self.dir, options["out"])
        words = []
        for name, value in options.items():
            name = name.replace("_", "-")
            if value is True or value is False:
                words.append(f"--{'' if value else 'no-'}{name}")
            elif value is not None:
                words.append(f"--{name}={value}")
        return words

    def call(self, command, timeout=300, **popen):
        """Runs a command to its end."""
        begin = time.monotonic()
        done = subprocess.run(
            command,
            cwd=self.dir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout * self.patience,
            **popen,
        )
        return Result(
            done.returncode,
            done.stdout.decode(errors="replace"),
            said(done.stderr),
            time.monotonic() - begin,
        )

    def train(self, code=0, says=(), trainer=None, launch=(), timeout=300, popen=None, **changes):
        """Trains; checks exit code and stderr. launch: words before the program."""
        command = [*launch, trainer or self.trainer, *self.options(changes)]
        result = self.call(command, timeout, **(popen or {}))
        shown = f"{result.err[-2000:]}{result.out[-500:]}"
        check(
            result.code == code,
            f"exit code {result.code}, want {code}, of {' '.join(command)}\n{shown}",
        )
        for text in [says] if isinstance(says, str) else says:
            check(text in result.err, f"{text!r} is not in what was said: {result.err}")
        return result

    def stopped(self, moment, **changes):
        """Trains, but is killed at a moment of stop_at.py; whether it came to that."""
        if not self.stop_at:
            raise Skip(self.no_stop_at)
        env = stop_at.environment(self.stop_at, moment)
        result = self.call([self.trainer, *self.options(changes)], env=env)
        killed = stop_at.was_stopped(result.code)
        check(killed or result.code == 0, f"{moment}: ended with {result.code}: {result.err}")
        return killed

    def start(self, **changes):
        """Starts a training run and returns its process; the test ends it."""
        process = subprocess.Popen(
            [self.trainer, *self.options(changes)],
            cwd=self.dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def wait(self, process, seconds=300):
        """Exit code and what was said on stderr."""
        err = process.communicate(timeout=seconds * self.patience)[1]
        return process.returncode, said(err)

    def wait_for(self, condition, process, what, seconds=300):
        """Until condition() is true, while the process runs."""
        end = time.monotonic() + seconds * self.patience
        while not condition():
            check(process.poll() is None, f"the run ended ({process.returncode}) before {what}")
            check(time.monotonic() < end, f"no sign of {what} after {seconds * self.patience} s")
            time.sleep(0.002)

    def close(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        shutil.rmtree(self.dir, ignore_errors=True)


def linked(t):
    """The libraries of the trainer."""
    return subprocess.run(["ldd", t.trainer], capture_output=True, text=True).stdout


def mpirun(t):
    """The words before the program; skips where several processes cannot be had."""
    if "libmpi" not in linked(t):
        raise Skip("this trainer was built with MPI=0")
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    try:
        tried = t.call([*command, "-np", "2", "true"])
    except FileNotFoundError:
        raise Skip("mpirun is not installed") from None
    if tried.code:
        raise Skip(f"mpirun does not work here: {tried.err.strip()[:300]}")
    return command


def logged(out, kind):
    """How many whole lines of a kind log.jsonl has by now; the run may be writing it."""
    path = f"{out}/log.jsonl"
    return read(path).count(b'"kind":"%s"' % kind.encode()) if os.path.exists(path) else 0


def stop_status(number):
    return 128 + int(number)


SIGNALS = (signal.SIGTERM, signal.SIGINT)
