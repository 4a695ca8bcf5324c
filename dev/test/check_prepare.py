"""Checks scripts/prepare_c4.sh against a server on this machine that has files in the shape of C4
and every fault of a network: redirects as the hub makes them, connections that end in the middle,
503, 429, 404, wrong bytes, none at all; and kills it at random moments. Whatever happened, the data
set must be that of one undisturbed run on local files, byte for byte. Needs curl and c4_tokenize;
reaches no network. Exit code 0: all of it holds; 1: not; 77: something is missing (named)."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PREPARE = os.path.join(TOP, "scripts", "prepare_c4.sh")
HUB = "/datasets/allenai/c4/resolve/main/en/"
TRAIN = [f"c4-train.{i:05d}-of-01024.json.gz" for i in range(3)]
NAMES = [*TRAIN, "c4-validation.00000-of-00008.json.gz"]
DOCUMENTS = 400
OPTIONS = ["--files", "0-2", "--validation=0", "--wait", "0"]
VOCABULARY = ["--train-vocab", "400", "--train-bytes", "60000"]
FAILURES = []


def check(condition, what):
    if not condition:
        FAILURES.append(what)
        print(f"FAILED: {what}")


# ---- files and a server ------------------------------------------------------------------------


def c4_file(seed):
    """Documents of words that occur as often as words do, in C4's shape."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(2000)]
    weights = [1 / (i + 2) for i in range(len(words))]
    lines = []
    for _ in range(DOCUMENTS):
        text = " ".join(rng.choices(words, weights, k=rng.randint(20, 200)))
        record = {"text": text + ".\n", "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.b/"}
        lines.append(json.dumps(record) + "\n")
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as f:
        f.write("".join(lines).encode())
    return packed.getvalue()


class Server:
    """HUB redirects, with size and hash in the headers, to /store/, which is another host; /plain/
    has the files and no hash. faults: name -> what happens to the next requests for it."""

    def __init__(self, files):
        self.files, self.faults, self.log = files, {}, []
        self.seconds = 0  # that a file takes
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.port = self.http.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def answer(self, request):
        folder, _, name = request.path.rpartition("/")
        start = re.match(r"bytes=(\d+)-$", request.headers.get("Range", ""))
        start = int(start[1]) if start else 0
        token = request.headers.get("Authorization")
        self.log.append((folder, name, start, token, time.monotonic()))
        data = self.files.get(name)
        if data is None:
            return self.say(request, 404)
        if folder + "/" == HUB:
            where = f"http://localhost:{self.port}/store/{name}"
            sha = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": len(data)}
            return self.say(request, 302, Location=where, **linked)
        fault = self.faults.get(name) or [""]
        fault = fault.pop(0)
        if fault.isdigit():
            return self.say(request, int(fault), **({"Retry-After": 1} if fault == "429" else {}))
        if fault == "wrong":
            data = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
        if fault == "norange" and start:
            start = 0
        elif start >= len(data):
            return self.say(request, 416, **{"Content-Range": f"bytes */{len(data)}"})
        headers = {"Content-Length": len(data) - start}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.head(request, 206 if start else 200, headers)
        self.send(request, data[start : start + 9000 if fault == "drop" else len(data)])
        request.close_connection = True
        return None

    def send(self, request, data):
        with contextlib.suppress(OSError):  # the client may be gone
            for i in range(0, len(data), 4096):
                request.wfile.write(data[i : i + 4096])
                time.sleep(self.seconds * 4096 / 65536)

    def head(self, request, status, headers):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, str(value))
        request.end_headers()

    def say(self, request, status, **headers):
        self.head(request, status, {"Content-Length": 0, **headers})


# ---- calls -------------------------------------------------------------------------------------


class Place:
    """A folder, the server, and how prepare_c4.sh is called there."""

    def __init__(self, folder):
        self.folder = folder
        self.server = Server({name: c4_file(i) for i, name in enumerate(NAMES)})
        os.mkdir(f"{folder}/bin")
        self.disk(80_000_000)
        os.mkdir(f"{folder}/from")
        for name, data in self.server.files.items():
            with open(f"{folder}/from/{name}", "wb") as f:
                f.write(data)

    def disk(self, kilobytes):
        """What df says: the script reckons with the sizes of C4's own files."""
        self.program("df", f"echo head\necho disk 1 1 {kilobytes} 1% /")

    def program(self, name, text):
        """One that is found before the system's."""
        path = f"{self.folder}/bin/{name}"
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"#!/bin/sh\n{text}\n")
        os.chmod(path, 0o755)

    def start(self, out, *options, network=True, vocabulary=True, **popen):
        """The process; with HF_ENDPOINT at the server, where network is true."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment["PATH"] = f"{self.folder}/bin:{os.environ['PATH']}"
        environment["HF_ENDPOINT"] = self.server.endpoint if network else "http://127.0.0.1:9"
        environment["HF_TOKEN"] = "secret"
        command = ["sh", PREPARE, "--out", self.path(out), *OPTIONS]
        return subprocess.Popen(
            [*command, *(VOCABULARY if vocabulary else []), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **popen,
        )

    def run(self, out, *options, code=0, says=(), **how):
        """To its end: exit code and what it must say. Returns what it said."""
        process = self.start(out, *options, **how)
        said = "".join(process.communicate(timeout=60))
        check(process.returncode == code, f"{out}: code {process.returncode}, want {code}\n{said}")
        for text in [says] if isinstance(says, str) else says:
            check(text in said, f"{out}: {text!r} is not in what it said:\n{said}")
        return said

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def same(self, out):
        """The data set is that of the undisturbed run."""
        want, got = contents(self.path("whole")), contents(self.path(out))
        check(sorted(got) == sorted(want), f"{out}: files {sorted(got)}, want {sorted(want)}")
        for name, data in want.items():
            check(got.get(name) == data, f"{out}: {name} differs from the undisturbed run's")

    def nothing(self, out):
        """Nothing lies under a final name that is not whole."""
        found = [n for n in contents(self.path(out)) if n.startswith("c4_")]
        check(not found, f"{out}: {found} are there")


def contents(folder):
    out = {}
    for name in os.listdir(folder):
        if os.path.isfile(f"{folder}/{name}") and not name.startswith("."):
            with open(f"{folder}/{name}", "rb") as f:
                out[name] = f.read()
    return out


# ---- what must hold ----------------------------------------------------------------------------


def check_local(p):
    """Files on this machine, no network; the totals; the command to run next."""
    said = p.run("whole", "--from", p.path("from"), network=False)
    check(not os.path.exists(p.path("whole/downloads")), "--from made a folder for downloads")
    check(f"in {3 * DOCUMENTS} documents" in said, f"total of training documents:\n{said}")
    check(f"in {DOCUMENTS} documents" in said, f"total of validation documents:\n{said}")
    again = p.run("whole", "--from", p.path("from"), network=False, says="0 of them to do")
    command = again[again.index("./train_gpt_laser") :]
    trainer = os.path.join(TOP, "train_gpt_laser")
    if os.path.exists(trainer):
        done = subprocess.run(
            command.replace("./train_gpt_laser", f"{trainer} --plan"),
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
        check(done.returncode == 0, f"the command it names: {command}\n{done.stderr}")


def check_faults(p):
    """All of it by way of every fault that is not for ever."""
    server = p.server
    server.faults = {
        TRAIN[0]: ["503", "drop", "429", "drop", "norange"],
        TRAIN[1]: ["wrong", "drop", "502"],
        NAMES[3]: ["wrong", "500"],
    }
    said = p.run("faults")
    p.same("faults")
    check("SHA-256 agree" in said, f"nothing is said of the hash:\n{said}")
    check(not any(server.faults.values()), f"not all faults were met: {server.faults}")
    tries = [entry for entry in server.log if entry[0] == "/store" and entry[1] == TRAIN[0]]
    check(tries[3][4] - tries[2][4] >= 1, "Retry-After was not waited for")
    starts = [entry[2] for entry in tries]
    check(starts[2:4] == [9000, 9000] and starts[4] == 18000, f"requests began at {starts}")
    tokens = {(entry[0].startswith(HUB[:9]), entry[3]) for entry in server.log}
    check(tokens == {(True, "Bearer secret"), (False, None)}, f"the token went to {tokens}")
    count = len(server.log)
    p.run("faults", says="0 of them to do")
    check(len(server.log) == count, "what is done was downloaded again")


def check_lasting(p):
    """Faults that stay: what is said, exit code 3, nothing half done."""
    server = p.server
    p.run(
        "closed", "--tries", "2", code=3, says=["2 tries brought nothing", "--from"], network=False
    )
    p.nothing("closed")
    server.faults[TRAIN[0]] = ["wrong"] * 9
    p.run("wrong", code=3, says=[TRAIN[0], "SHA-256"])
    p.nothing("wrong")
    check(not os.listdir(p.path("wrong/downloads")), "a wrong download is still there")
    server.faults[TRAIN[0]] = ["503"] * 9
    p.run("down", "--tries", "3", code=3, says="3 tries brought nothing: The requested URL")
    server.faults.clear()
    server.files["c4-train.00007-of-01024.json.gz"] = None
    p.run("missing", "--files", "0,7", code=3, says=["status 404", "the same command goes on"])
    check("c4_00000.json" in contents(p.path("missing")), "file 0 was there, and is not done")
    check("c4_00007.json" not in contents(p.path("missing")), "file 7 is said to be done")
    p.run("missing", "--files", "5,9", "--from", p.path("from"), code=3, says="is not there")
    # a server without hashes: what gzip finds is enough
    plain = ["--url", f"{server.endpoint}/plain", "--delete-downloads"]
    server.faults[TRAIN[2]] = ["wrong", "drop"]
    said = p.run("plain", *plain, says="the checksum inside agrees")
    p.same("plain")
    check(not os.listdir(p.path("plain/downloads")), f"downloads were kept:\n{said}")
    check(all(e[3] is None for e in server.log if e[0] == "/plain"), "--url got the hub's token")
    count = len(server.log)
    p.run("plain", *plain, says="0 of them to do")
    check(len(server.log) == count, "what was deleted was downloaded again")


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (30 << 10, 30 << 10))


def check_disk(p):
    """Too little room: said before anything is fetched; and when it comes to it. Exit code 4."""
    count = len(p.server.log)
    p.disk(900_000)
    p.run("small", code=4, says=["are free", "are needed", "--delete-downloads"])
    check(len(p.server.log) == count, "something was fetched for a disk that is too small")
    p.disk(80_000_000)
    # SIGXFSZ stays ignored, as Python has it: writes fail as on a full disk
    p.run("small", code=4, says="Free some space", preexec_fn=limit_files, restore_signals=False)
    p.nothing("small")
    p.run("small")
    p.same("small")


def check_vocabulary(p):
    """A vocabulary is made once, and what contradicts it is refused: exit code 2."""
    local = ["--from", p.path("from")]
    shutil.copytree(p.path("whole"), p.path("other"))
    how = dict(vocabulary=False)
    p.run("other", *local, "--train-vocab", "500", code=2, says="is not of 500 pieces", **how)
    p.run("other", *local, "--model", p.path("from", TRAIN[0]), code=2, says="another", **how)
    p.run("other", *local, "--model", p.path("whole/tokenizer.model"), **how)
    p.same("other")
    os.remove(p.path("other/c4_00001_train_000000.bin"))
    p.run("other", *local, code=3, says=["c4_00001_train_000000.bin", "is not there"], **how)
    os.remove(p.path("other/tokenizer.model"))
    os.remove(p.path("other/c4_00001.json"))
    p.run("other", *local, code=3, says="Put it back", **how)
    p.run("other", *local, "--model", p.path("whole/tokenizer.model"), **how)
    p.same("other")


def check_usage(p):
    """Exit code 2 and the word that is wrong."""
    for words, says in (
        (["--files", "3-2"], "--files 3-2"),
        (["--files", "1024"], "up to 1023"),
        (["--files", "1,,2"], "--files 1,,2"),
        (["--validation=8"], "up to 7"),
        (["--frobnicate", "1"], "--frobnicate"),
        (["--threads", "many"], "--threads many"),
        (["--threads"], "value is missing"),
        (["stray"], "stray"),
        (["--from", p.folder, "--url", "http://x"], "one of --from and --url"),
    ):
        p.run("usage", *words, code=2, says=says)
    p.run("usage", "--from", p.path("none"), code=3, says="no such folder")


def check_two(p):
    """Two at work on one folder would spoil each other's files: the second is refused. And a signal
    ends what the script has started, also where the system does not do so."""
    p.program("setpriv", "exit 1")
    p.server.seconds = 60
    first = p.start("two")
    while not os.path.exists(p.path("two/downloads")):
        time.sleep(0.01)
    p.run("two", code=2, says="another prepare_c4.sh")
    first.terminate()
    try:
        said = "".join(first.communicate(timeout=20))
        check(first.returncode == 143, f"SIGTERM: {first.returncode}\n{said}")
    except subprocess.TimeoutExpired:
        check(False, "after SIGTERM a download goes on")
    os.remove(p.path("bin/setpriv"))
    p.server.seconds = 0


def check_interrupted(p, rounds, seconds):
    """Signals at random moments, to the script and to its whole group, until it is through."""
    rng = random.Random()
    seed = rng.randrange(1 << 30)
    rng.seed(seed)
    p.server.seconds = 0.15
    p.server.faults = {name: ["", "drop"] for name in NAMES}
    for i in range(rounds):
        number = rng.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
        group = rng.random() < 0.5
        process = p.start("killed", start_new_session=True)
        time.sleep(rng.uniform(0.05, seconds))
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(process.pid, number)
        said = "".join(process.communicate(timeout=60))
        # a shell ignores SIGINT for what it started in the background: the script ends that itself
        good = (0, -number, 128 + number)
        check(process.returncode in good, f"seed {seed}, round {i}, {number!r}: {said}")
    p.server.seconds = 0
    p.run("killed")
    p.same("killed")
    return seed


def main():
    if not os.path.exists(os.path.join(TOP, "build", "bin", "c4_tokenize")):
        print("skipped: build/bin/c4_tokenize is not built (make tools)")
        sys.exit(77)
    if not shutil.which("curl"):
        print("skipped: curl is not installed")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder)
        for part in (
            check_local,
            check_usage,
            check_faults,
            check_lasting,
            check_disk,
            check_vocabulary,
            check_two,
        ):
            begin = time.monotonic()
            part(place)
            print(f"{part.__name__}: {time.monotonic() - begin:.1f} s")
        seed = check_interrupted(place, rounds=12, seconds=1.5)
    result = f"{len(FAILURES)} failures" if FAILURES else "the same bytes, whatever happened"
    print(f"check_prepare: {result} (moments of the signals: seed {seed})")
    sys.exit(1 if FAILURES else 0)


if __name__ == "__main__":
    main()
