"""Files like those of C4 (en): named alike, gzipped, one JSON object a line with text, timestamp
and url; made-up English whose documents are as long as C4's (median 1 kB, mean 2 kB, a heavy tail).
The same options give the same bytes of text, and of the files with the same zlib.

    make_c4.py --out DIR [--files N] [--documents M] [--seed S] [--split NAME] [--ugly] [--truncate]

--ugly adds what the web has in store: see ugly_lines. Standard library only; no network."""

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
import zlib

MEDIAN, SIGMA, SHORTEST, LONGEST = 1050, 1.2, 40, 1_000_000  # of documents, in characters
FUNCTION_WORDS = (
    "the of and to a in is that for it you on with as are be this was your or from have at we can"
    " by not will but if an they more which about all has their our one there so what when who up"
    " i out do my get time been also no like some just into how other than may new would them make"
).split()
ONSETS = "b c d f g h l m n p r s t v w br ch cl cr fl gr pl pr qu sh sl sp st str th tr wh".split()
VOWELS = "a e i o u ai ea ee ie oa oo ou y".split()
CODAS = "b ck d g l ll m n nd ng nt p r rd rt s ss st t th x".split() + [""] * 12
ENDINGS = ["", "", "", "s", "ed", "ing", "er", "ly", "tion", "ment", "al"]
RARE = "don\u2019t it\u2019s \u201cthis\u201d caf\u00e9 \u2013 \u00a39.99 \u2122".split()
CLAUSES = 12_000
LARGE = 5_000_000  # bytes of the large document and of the long line


# ---- text --------------------------------------------------------------------------------------


def make_word(rng):
    syllables = rng.choice((1, 1, 2, 2, 2, 3))
    stem = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables))
    return stem + rng.choice(CODAS) + rng.choice(ENDINGS)


def make_words(rng):
    """Words and how often each occurs: by rank, as Zipf and Mandelbrot have it."""
    made = [make_word(rng) for _ in range(9000)]
    made.sort(key=lambda word: len(word) + 8 * rng.random())  # short ones are frequent, mostly
    made[20::60] = [w.capitalize() for w in made[20::60]]  # names
    made[30::90] = [str(rng.randrange(1, 2030)) for _ in made[30::90]]
    made[100::400] = rng.choices(RARE, k=len(made[100::400]))
    words = list(dict.fromkeys(FUNCTION_WORDS + made))
    return words, [1 / (rank + 2.7) for rank in range(len(words))]


class Language:
    """Halves of sentences: any first and any second make one. The words do not depend on the seed
    of the documents, as English does not."""

    def __init__(self):
        rng = random.Random("the words of make_c4")
        words, weights = make_words(rng)
        stock = iter(rng.choices(words, weights, k=2 * CLAUSES * 12))
        self.first, self.second = [], []
        for _ in range(CLAUSES):
            clause = " ".join(next(stock) for _ in range(rng.randrange(2, 9)))
            self.first.append(clause[0].upper() + clause[1:] + rng.choice((" ", " ", ", ")))
            clause = " ".join(next(stock) for _ in range(rng.randrange(2, 12)))
            end = rng.choice(". . . . . ? ! . :".split()) + rng.choice("     \n")
            self.second.append(clause + end)
        self.mean = sum(map(len, self.first + self.second)) / CLAUSES

    def text(self, rng, length):
        """About so many characters."""
        pick, first, second = rng.random, self.first, self.second
        sentences = range(max(1, round(length / self.mean)))
        text = [
            first[int(pick() * CLAUSES)] + second[int(pick() * CLAUSES)] for _ in sentences
        ]
        return "".join(text).rstrip()


def document_length(rng):
    return min(LONGEST, max(SHORTEST, MEDIAN * rng.lognormvariate(0, SIGMA)))


ENCODERS = [json.JSONEncoder(ensure_ascii=a, separators=(",", ":")) for a in (False, True)]


def c4_line(text, rng, ascii_only=False):
    second = int(rng.random() * 3e7)
    day, clock = divmod(second, 86400)
    fields = {
        "text": text,
        "timestamp": f"2019-{day // 28 % 12 + 1:02}-{day % 28 + 1:02}"
        f"T{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02}Z",
        "url": f"https://www.example{second:x}.com/page",
    }
    return ENCODERS[ascii_only].encode(fields).encode()


def documents(language, count, seed):
    """(text, line) of each document of a file."""
    rng = random.Random(seed)
    for number in range(count):
        text = language.text(rng, document_length(rng))
        yield text, c4_line(text, rng, ascii_only=number % 8 == 7)


# ---- the ugly cases ----------------------------------------------------------------------------

ODD = "\x7f \x85 \u2028 \ufeff \ufffe \U0010ffff".encode()  # rare, but text
EMPTY, BAD = "empty", "bad"  # a document of nothing; a line that is left out and counted


def ugly_documents():
    """(line, text that it holds as bytes): what comes back byte for byte where the vocabulary has
    a piece for every byte. Halves of surrogate pairs, of which no text can be made, are U+FFFD."""
    return [
        (rb'{"text": "escapes: \n\t\r\b\f\"\\\/ \u00e9"}', b'escapes: \n\t\r\b\f"\\/ \xc3\xa9'),
        (rb'{"text": "pair \ud83d\ude00 end"}', b"pair \xf0\x9f\x98\x80 end"),
        (b'{"text": "pair \xf0\x9f\x98\x80 as it is"}', b"pair \xf0\x9f\x98\x80 as it is"),
        (rb'{"text": "half \ud83d of a pair"}', b"half \xef\xbf\xbd of a pair"),
        (rb'{"text": "the other \ude00 half"}', b"the other \xef\xbf\xbd half"),
        (rb'{"text": "\ud83d\ud83d\ude00 \ud83d\u0041"}', "\ufffd\U0001f600 \ufffdA".encode()),
        (b'{"text": "lower block \xe2\x96\x81 one"}', b"lower block \xe2\x96\x81 one"),
        (rb'{"text": "and \u2581 escaped \u2581"}', b"and \xe2\x96\x81 escaped \xe2\x96\x81"),
        (rb'{"text": "CR\r\nLF\r\n"}', b"CR\r\nLF\r\n"),
        (b'{"text": "a line that CRLF ends"}\r', b"a line that CRLF ends"),
        (b'{"text": "not UTF-8: \xff\x80 end"}', b"not UTF-8: \xff\x80 end"),
        (b'{"text": "overlong \xc0\xaf, cut \xe2\x96"}', b"overlong \xc0\xaf, cut \xe2\x96"),
        (b'{"text": "a surrogate \xed\xa0\x80 in UTF-8"}', b"a surrogate \xed\xa0\x80 in UTF-8"),
        (rb'{"text": "NUL \u0000 and \\u0000"}', b"NUL \0 and \\u0000"),
        (rb'{"text": "\u0000"}', b"\0"),
        (b'{"text": " two  spaces \\n\\n\\n\\ttab\\nend "}', b" two  spaces \n\n\n\ttab\nend "),
        (b'{"text": "</s> <unk> <0x41> <s>"}', b"</s> <unk> <0x41> <s>"),
        (b'{"text": "' + ODD + b'"}', ODD),
        (b' { "n" : [1e999, {"text": 3}], "text" : "late" } ', b"late"),
        (b'{"text": "z' + b"\xcd\x84" * 500 + b'"}', b"z" + b"\xcd\x84" * 500),
        (b'{"text": "' + b"x" * 5000 + b'"}', b"x" * 5000),
        (b'{"text": "' + b"\\n" * 3000 + b'."}', b"\n" * 3000 + b"."),
    ]


def ugly_lines():
    """(line without its newline, EMPTY, BAD or the document as bytes)"""
    lines = ugly_documents()
    bad = [
        b"not JSON",
        b'{"url": "no text"}',
        b'{"text": 7}',
        b'{"text": null}',
        b'{"text": ["a", "list"]}',
        b'{"Text": "another name"}',
        b'{"inner": {"text": "too deep"}}',
        b'["text", "in a list"]',
        b'"text"',
        b'{"text": "cut sho',
        b'{"text": "two"} {"text": "on a line"}',
        b'{"text": "a NUL \0 byte"}',
        b'{"text": "a tab \t that is not escaped"}',
        rb'{"text": "unknown escape \x41"}',
        rb'{"text": "cut \u12"}',
        b"[" * 100_000,
    ]
    lines[3:3] = [(line, BAD) for line in bad[:8]]
    lines += [(line, BAD) for line in bad[8:]]
    lines[5:5] = [(b'{"text": ""}', EMPTY), (rb'{"text": " \n\t\r "}', EMPTY)]
    lines.append((b'{"text": "last, without a newline"}', b"last, without a newline"))
    return lines


def large_lines(language, rng):
    """A large document, and a line of which little is text, between small ones."""
    large = language.text(rng, LARGE).encode()
    line = json.dumps({"text": large.decode()}).encode()
    long = b'{"url": "' + b"u" * LARGE + b'", "text": "a long line"}'
    small = (b'{"text": "between"}', b"between")
    return [small, (line, large), small, (long, b"a long line"), small]


# ---- files -------------------------------------------------------------------------------------


class GzipFile:
    """A gzip file without a time in it. Level 1: files for tests need not be small."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.packer = zlib.compressobj(1, zlib.DEFLATED, 31)

    def write(self, data):
        self.file.write(self.packer.compress(data))

    def next_member(self):
        self.file.write(self.packer.flush())
        self.packer = zlib.compressobj(1, zlib.DEFLATED, 31)

    def close(self):
        self.file.write(self.packer.flush())
        self.file.close()


def write_gzip(path, *members):
    file = GzipFile(path)
    for number, member in enumerate(members):
        if number:
            file.next_member()
        file.write(member)
    file.close()


def write_c4(path, count, seed):
    """Returns the bytes of text."""
    language, file, size, lines = Language(), GzipFile(path), 0, []
    for text, line in documents(language, count, seed):
        size += len(text) if text.isascii() else len(text.encode())
        lines.append(line)
        if len(lines) == 500:
            file.write(b"\n".join(lines) + b"\n")
            lines.clear()
    file.write(b"".join(line + b"\n" for line in lines))
    file.close()
    return size


def write_ugly(out, language, seed):
    """ugly_lines.json.gz ends without a newline; ugly_members.json.gz is cut into gzip members
    within lines; ugly_empty.json.gz holds nothing, ugly_nothing.json has no byte."""
    lines = b"\n".join(line for line, _ in ugly_lines())
    write_gzip(os.path.join(out, "ugly_lines.json.gz"), lines)
    large = large_lines(language, random.Random(f"{seed} large"))
    write_gzip(os.path.join(out, "ugly_large.json.gz"), b"\n".join(line for line, _ in large))
    members = [lines[i : i + 1000] for i in range(0, 5000, 1000)] + [b"", lines[5000:]]
    write_gzip(os.path.join(out, "ugly_members.json.gz"), *members)
    write_gzip(os.path.join(out, "ugly_empty.json.gz"), b"")
    with open(os.path.join(out, "ugly_nothing.json"), "wb"):
        pass


def cut_short(path):
    os.truncate(path, os.path.getsize(path) * 2 // 3)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--files", type=int, default=1, metavar="N", help="how many (1)")
    parser.add_argument(
        "--documents", type=int, default=1000, metavar="M", help="in each of them (1000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="other text (0)")
    parser.add_argument(
        "--split", default="train", choices=("train", "validation"), help="in their names (train)"
    )
    parser.add_argument("--ugly", action="store_true", help="also files of ugly cases")
    parser.add_argument("--truncate", action="store_true", help="the last file is cut short")
    args = parser.parse_args()
    if args.files < 1 or args.documents < 0:
        parser.error("--files is at least 1, --documents at least 0")
    begin = time.monotonic()
    try:
        os.makedirs(args.out, exist_ok=True)
        calls = []
        for index in range(args.files):
            name = f"c4-{args.split}.{index:05}-of-{args.files:05}.json.gz"
            seed = f"{args.split} {args.seed} {index}"
            calls.append((os.path.join(args.out, name), args.documents, seed))
        with multiprocessing.Pool(min(args.files, os.cpu_count() or 1)) as pool:
            size = sum(pool.starmap(write_c4, calls))
        if args.truncate:
            cut_short(calls[-1][0])
        if args.ugly:
            write_ugly(args.out, Language(), args.seed)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(4)
    seconds = time.monotonic() - begin
    print(
        f"{args.out}: {args.files} files of {args.documents} documents, {size / 1e6:.1f} MB of text"
        f" in {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s"
    )


if __name__ == "__main__":
    main()
