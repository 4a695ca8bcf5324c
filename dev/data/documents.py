"""Documents out of files, as c4_tokenize cuts them (dataloader/FORMAT.md): text separated by form
feeds, JSON lines, both also compressed; and parquet files and folders of datasets.save_to_disk,
where the packages that read them are installed. Knows no tokenizer."""

import gzip
import hashlib
import json
import os
import re
import sys
import zlib

from shards import INPUT, sha256_of, stop

LONGEST = 1 << 30  # bytes of a document
NAMED = 10  # bad lines
HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON can escape one half of a surrogate pair


def need(module, package, path):
    """The module, or a message that says what to install."""
    try:
        return __import__(module, fromlist=["x"])
    except ImportError:
        stop(INPUT, f"{path}: needs the Python package {package}: pip install {package}.")


class Source:
    """All documents of all inputs, in order; what is left out is counted, for each input."""

    def __init__(self, paths, field="text", max_bad=100, quiet=False):
        self.paths, self.field, self.max_bad, self.quiet = paths, field, max_bad, quiet
        self.bad = 0
        self.inputs = []
        for path in paths:
            if not os.access(path, os.R_OK):
                stop(INPUT, f"{path}: cannot be read: no such file, or not allowed.")
            kind_of(path)

    def __iter__(self):
        for path in self.paths:
            self.entry = {"name": os.path.basename(os.path.normpath(path)), "size": 0, "sha256": ""}
            self.entry.update(documents=0, empty=0, bad_lines=0)
            for text in kind_of(path)(self, path):
                if text is None:
                    continue
                if text.strip(" \t\r\n"):
                    self.entry["documents"] += 1
                    yield text
                else:
                    self.entry["empty"] += 1
            self.entry["size"], self.entry["sha256"] = size_and_hash(path)
            self.inputs.append(self.entry)

    def leave_out(self, where, why):
        self.bad += 1
        self.entry["bad_lines"] += 1
        if self.bad > self.max_bad:
            stop(
                INPUT,
                f"{where} {why}, the {self.bad}. of such lines. Look at the input; if they may be "
                "left out: --max-bad N.",
            )
        if self.bad <= NAMED and not self.quiet:
            print(f"warning: {where} {why}; it is left out.", file=sys.stderr)
        elif self.bad == NAMED + 1 and not self.quiet:
            print("warning: more lines are bad; they are counted, not named.", file=sys.stderr)


def size_and_hash(path):
    """Of a folder: the SHA-256 of those of its files, in the order of their names."""
    if not os.path.isdir(path):
        return os.path.getsize(path), sha256_of(path)
    total, digest = 0, hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            total += os.path.getsize(os.path.join(folder, name))
            digest.update(bytes.fromhex(sha256_of(os.path.join(folder, name))))
    return total, digest.hexdigest()


def damaged(path, error):
    stop(INPUT, f"{path}: {error}. The file is damaged or was not copied whole: copy it again.")


def zstd_chunks(path):
    """By frames: the package's own reader takes a file that was cut short for a whole one."""
    zstandard = need("zstandard", "zstandard", path)
    frame = None
    with open(path, "rb") as f:
        while data := f.read(1 << 18):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(data)
                except zstandard.ZstdError as error:
                    damaged(path, error)
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame:
        damaged(path, "it ends within a compressed frame")


def chunks(path):
    """The bytes of a file, unpacked, some at a time."""
    if path.endswith(".zst"):
        yield from zstd_chunks(path)
        return
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as f:
            while chunk := f.read(1 << 20):
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        damaged(path, error)


def records(path, delimiter):
    """(number, offset, bytes) of what stands between delimiters; a last empty one is none."""
    kept, size, number, offset = [], 0, 0, 0
    for chunk in chunks(path):
        *whole, rest = chunk.split(delimiter)
        for part in whole:
            record = b"".join((*kept, part))
            kept, size, number = [], 0, number + 1
            yield number, offset, record
            offset += len(record) + 1
        kept.append(rest)
        size += len(rest)
        if size > LONGEST:
            stop(
                INPUT,
                f"{path}: byte {offset}: a document of more than 1 GiB starts here. Separate its "
                "parts with form feeds.",
            )
    if size:
        yield number + 1, offset, b"".join(kept)


def read_text(_, path):
    for _, _, data in records(path, b"\f"):
        yield data.decode("utf-8", errors="replace")


def parse_line(data, field):
    """The document and what is wrong with the line, one of them None."""
    try:
        record = json.loads(data.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None, "is not JSON"
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        return None, f'has no string under "{field}"'
    return HALF_PAIR.sub("\ufffd", text), None


def read_json(source, path):
    for number, offset, data in records(path, b"\n"):
        if not data.strip(b" \t\r"):
            continue
        if number == 1 and data.lstrip().startswith(b"["):
            stop(
                INPUT,
                f"{path}: is one JSON array; expected an object on each line. Make them of it: "
                f"jq -c '.[]' {path} >lines.jsonl",
            )
        text, fault = parse_line(data, source.field)
        if fault:
            source.leave_out(f"{path}: line {number} (byte {offset})", fault)
        yield text


def columns(source, path, names):
    if source.field not in names:
        stop(
            INPUT,
            f'{path}: has no column "{source.field}"; it has {", ".join(names)}. Name it with '
            "--text-field.",
        )


def values(source, path, batches):
    """Strings of batches of rows; a row of another type is left out."""
    number = 0
    for batch in batches:
        for text in batch:
            number += 1
            if isinstance(text, str):
                yield text
            else:
                source.leave_out(f"{path}: row {number}", f'has no string under "{source.field}"')


def read_parquet(source, path):
    parquet = need("pyarrow.parquet", "pyarrow", path)
    try:
        with parquet.ParquetFile(path) as file:
            columns(source, path, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=1000, columns=[source.field])
            yield from values(source, path, (batch.column(0).to_pylist() for batch in batches))
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these types
        stop(INPUT, f"{path}: {error}. The file is damaged or is not parquet.")


def read_folder(source, path):
    datasets = need("datasets", "datasets", path)
    try:
        found = datasets.load_from_disk(path)
    except (OSError, ValueError) as error:
        stop(INPUT, f"{path}: is not a folder of datasets.save_to_disk: {error}")
    if isinstance(found, datasets.DatasetDict):
        names = ", ".join(os.path.join(path, name) for name in found)
        stop(INPUT, f"{path}: holds several splits. Name one of them: {names}.")
    columns(source, path, found.column_names)
    rows = found.select_columns([source.field]).iter(batch_size=1000)
    yield from values(source, path, (row[source.field] for row in rows))


def kind_of(path):
    """The reader for a path, by its name."""
    if os.path.isdir(path):
        return read_folder
    name = path[: -len(os.path.splitext(path)[1])] if path.endswith((".gz", ".zst")) else path
    if name.endswith((".json", ".jsonl")):
        return read_json
    return read_parquet if name.endswith(".parquet") else read_text
