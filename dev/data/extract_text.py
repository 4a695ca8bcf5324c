#!/usr/bin/env python3
"""Documents -> JSON lines with "text", in the order of a hash of each document, so that any stretch
of the output is a fair sample of all of it.

From documentation (HTML, manual pages): plain English. One page is one document: its paragraphs of
prose, one a line. Code, tables, lists of options and whatever else is not sentences is left out; a
paragraph that occurred before (licences, boilerplate) is dropped. Standard library only, and groff
for manual pages where it is there. With --raw: from text and JSON lines, as they are.
"""

import argparse
import gzip
import hashlib
import html
import json
import multiprocessing
import os
import re
import shutil
import subprocess

BLOCKS = set(
    "p div li dd dt h1 h2 h3 h4 h5 h6 tr td th table section article blockquote ul ol dl body hr"
    .split())
SKIPPED = set("nav table footer header form".split())
DROPPED = re.compile(
    r"<!--.*?-->|<(pre|script|style|head|title|svg|math)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)[^>]*>")

LETTERS = re.compile(r"[A-Za-z ]")
FOREIGN = re.compile(r"[^\x00-\x7f]")
COMMON = set(
    "the of to a and is in that for it as be on this by with or are from not if an which can at you"
    " have was will has but when its all may they he his i their one so we no there any do use used"
    " must should only than more into then what these such other them out shall".split())


def read_bytes(path):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rb") as file:
        return file.read()


def from_html(path):
    """The text of each block element. A few regular expressions: html.parser takes seven times as
    long for the same paragraphs."""
    data = read_bytes(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    parts = TAG.split(DROPPED.sub("<p>", text))
    paragraph, depth = [parts[0]], 0
    for closing, tag, data in zip(parts[1::3], parts[2::3], parts[3::3]):
        tag = tag.lower()
        if tag in SKIPPED:
            depth = max(0, depth - 1) if closing else depth + 1
        if tag in BLOCKS or tag in SKIPPED:
            yield html.unescape("".join(paragraph))
            paragraph = []
        elif tag == "br":
            paragraph.append(" ")
        if depth == 0:
            paragraph.append(data)
    yield html.unescape("".join(paragraph))


def from_man(path):
    """Lines as wide as paragraphs: no line break, no hyphenation."""
    source = read_bytes(path)
    if source.startswith(b".so "):
        return []
    command = "groff -mandoc -Tutf8 -P-cbou -rLL=20000n -rHY=0 -dAD=l -E".split()
    out = subprocess.run(command, input=source, capture_output=True, check=False).stdout
    return out.decode("utf-8", "replace").split("\n")


def clean(paragraph):
    paragraph = paragraph.replace("\u00ad", "").replace("\u200b", "").replace("\u00b6", "")
    paragraph = paragraph.replace("\u2010", "-").replace("\u2581", " ")
    return re.sub(r"\s+", " ", paragraph).strip(" \u2022*")


def is_prose(text):
    """Sentences of English: a capital first, a full stop last, mostly letters, common words."""
    if len(text) < 50 or not re.match(r"[\"'(\u201c\u2018]?[A-Z]", text):
        return False
    if not re.search(r"[.!?:;][\"')\u201d\u2019]*$", text):
        return False
    letters, foreign = len(LETTERS.findall(text)), len(FOREIGN.findall(text))
    if letters < 0.88 * len(text) or foreign > 0.02 * len(text):
        return False
    words = re.findall(r"[a-z]+", text.lower())
    return len(words) >= 8 and sum(w in COMMON for w in words) >= 0.25 * len(words)


def list_files(roots):
    for root in roots:
        if os.path.isfile(root):
            yield root
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                yield os.path.join(folder, name)


def reader_of(path):
    """The function that reads a page's paragraphs; None for what is no page."""
    if re.search(r"/man/man[1-9]/[^/]+\.[1-9][a-z]*(\.gz)?$", path):
        return from_man if shutil.which("groff") else None
    if re.search(r"genindex|searchindex|\.(?!en)[a-z]{2}(_[A-Z]{2})?\.html?", path):
        return None
    return from_html if re.search(r"\.html?(\.gz)?$", path) else None


def prose_of(path):
    return [text for text in map(clean, reader_of(path)(path)) if is_prose(text)]


def from_pages(roots):
    """Documents of documentation. Two processes: parsing takes longer than everything else."""
    files = [path for path in list_files(roots) if reader_of(path)]
    seen = set()
    with multiprocessing.Pool(2) as pool:
        for paragraphs in pool.imap(prose_of, files, chunksize=16):
            kept = []
            for paragraph in paragraphs:
                letters = re.sub(r"[^a-z]", "", paragraph.lower()).encode()
                key = hashlib.blake2b(letters, digest_size=12).digest()
                if key not in seen:
                    seen.add(key)
                    kept.append(paragraph)
            yield "\n".join(kept)


def cut(text, longest):
    """Parts of about that many characters, cut after a line, better after an empty one."""
    while len(text) > longest:
        end = text.rfind("\n\n", longest // 2, longest) + 2
        if end < 2:
            end = text.rfind("\n", longest // 2, longest) + 1
        end = end or longest
        yield text[:end]
        text = text[end:]
    yield text


def from_texts(roots):
    """Documents as they are: JSON lines with "text", or text separated by form feeds, long ones in
    parts, so that a single book still gives documents to train on and others to validate on."""
    for path in list_files(roots):
        opener = gzip.open if path.endswith(".gz") else open
        with opener(path, "rb") as file:
            if b"\0" in file.read(4096):
                continue  # a picture, a program
        with opener(path, "rt", encoding="utf-8", errors="replace") as file:
            if re.search(r"\.jsonl?(\.gz)?$", path):
                for line in file:
                    try:
                        text = json.loads(line)["text"]
                    except (ValueError, KeyError, TypeError):
                        continue
                    if isinstance(text, str):
                        yield text
            else:
                for text in file.read().split("\f"):
                    yield from cut(text, 8000)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", required=True, help="file of JSON lines to write")
    parser.add_argument("--raw", action="store_true",
        help="PATHs are text or JSON lines, plain or gzipped; take documents as they are")
    parser.add_argument("--smallest", type=int, default=300, help="bytes of the shortest document")
    parser.add_argument("--max-bytes", type=int, default=40_000_000, help="stop after this much")
    parser.add_argument("paths", nargs="+", metavar="PATH")
    args = parser.parse_args()
    found, size = [], 0
    for text in (from_texts if args.raw else from_pages)(args.paths):
        data = text.encode("utf-8", "replace")
        if len(data) < args.smallest:
            continue
        found.append((hashlib.blake2b(data, digest_size=16).digest(), text))
        size += len(data)
        if size >= args.max_bytes:
            break
    found.sort()
    with open(args.out + ".tmp", "w", encoding="utf-8", errors="replace") as file:
        for _, text in found:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    os.replace(args.out + ".tmp", args.out)
    print(f"{len(found)} documents, {size / 1e6:.1f} MB of text")


if __name__ == "__main__":
    main()
