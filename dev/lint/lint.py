"""The house rules, checked on every file that git knows or would add. Prints file:line for each
finding.

- Text: lines of at most 100 columns, no tabs, no blanks at the end, a newline at the end, files of
  at most 500 lines, no notes of unfinished work, no paths of one machine.
- C: functions of at most 60 lines (main 80, kernels 120); include layers (layers.py); own header
  first; header guards; headers that compile alone as C11, and as C++17 where C++ may meet them; no
  mutable variables at file scope or static in a function, but those of MUTABLE.
- CUDA: kernels are named so and launched by LAUNCH; what DEVICE lists, not at all.
- Scripts: shellcheck's warnings, or bash -n where it is not installed; Python compiles."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import layers

MAX_COLUMNS, MAX_LINES, MAX_FUNCTION, MAX_MAIN, MAX_KERNEL = 100, 500, 60, 80, 120
C_FILES = (".c", ".h", ".cc", ".cu", ".cuh")
CODE_FILES = (*C_FILES, ".py", ".sh")
TEXT_FILES = (*CODE_FILES, ".md", ".txt", ".mk", ".sbatch")
SKIPPED_FOLDERS = ("build/", "runs/", "data/")

# Variables that may change at file scope, and why.
MUTABLE = {
    ("laser/stop.c", "stop_signal"): "set by a signal handler",
    ("dataloader/shard.c", "mappings"): "read by a signal handler",
    ("dataloader/shard.c", "mappings_lock"): "guards what the handler reads",
    ("laser/base.c", "reporter"): "where die() and warn() go: they have no room for a pointer",
    ("laser/base.c", "table"): "checksum table, computed once",
    ("laser/base.c", "ready"): "whether it was",
    ("dev/test/faults/stop_at.c", "count"): "calls of a whole process, whose code is not ours",
    ("dev/test/faults/stop_at.c", "writes"): "calls of a whole process, whose code is not ours",
    ("dev/test/faults/at_sum.c", "count"): "the same",
    ("dev/test/faults/at_sum.c", "inside"): "whether one of them is under way",
    ("dev/test/faults/full_disk.c", "used"): "bytes of a whole process, whose code is not ours",
    ("dev/bench/op_times.c", "times"): "the operations it stands in for have no room for a pointer",
    ("dev/bench/mpi_time.c", "seen"): "the same of MPI",
    ("dev/emu/launch.cc", "emu_place_of_thread"): "threadIdx and its like",
    ("dev/emu/launch.cc", "emu_machine"): "the one device; CUDA's calls have no room for a pointer",
    ("dev/emu/memory.cc", "memory"): "its memory, read by a signal handler",
    ("dev/emu/order.cc", "order"): "the order of its threads",
    ("dev/emu/nccl_twin.cc", "group"): "calls between ncclGroupStart and ncclGroupEnd",
    ("dev/emu/runtime.cc", "runtime"): "its runtime",
    ("dev/emu/shared.cc", "shared"): "its shared memory",
}

# What files with kernels may not hold, and why. cuDNN's frontend speaks STL: HOST_ONLY.
DEVICE = [
    (r"<<<", "kernels are launched by LAUNCH"),
    (r"\b__shared__\b", "shared memory is taken by DYN_SMEM and SHARED_ARRAY"),
    (r"\basm\b", "inline PTX"),
    (r"\b__(exp|exp10|log|log2|log10|pow|sin|cos|tan)f\b", "a function of reduced accuracy"),
    (r"\bstd\s*::", "no STL"),
    (r"\b(class|try|catch|throw|virtual)\b", "no classes, no exceptions"),
    (r"\batomicAdd\b[^;]*\b(float|double)\b", "no atomics on floating point numbers"),
]
HOST_ONLY = {"laser/cuda/attention_cudnn.cc"}
PLUMBING = "laser/cuda/nvcc/"  # what LAUNCH and its like are made of
# Folders with headers of the same names, of which one is in the search path, for <>
TWINS = ("laser/cuda/nvcc/", "dev/emu/include/")

UNFINISHED = re.compile(
    r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]) + r")\b"
)
MACHINE_PATH = re.compile(
    "(?<![A-Za-z0-9_.])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me"]) + ")/"
)

FINDINGS = []
GUARDS = {}


def report(path, line, text):
    FINDINGS.append((path, line, text))


def all_files():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        names = listed.stdout.split("\n")
    else:  # an unpacked archive
        names = [
            os.path.relpath(os.path.join(folder, name))
            for folder, _, files in os.walk(".")
            for name in files
        ]
    return sorted(
        n
        for n in set(names)
        if n and os.path.isfile(n) and not n.startswith((*SKIPPED_FOLDERS, ".git/"))
    )


# ---- text --------------------------------------------------------------------------------------


def check_text(path, text):
    lines = text.split("\n")
    code = path.endswith(CODE_FILES)
    for number, line in enumerate(lines, 1):
        if code and len(line) > MAX_COLUMNS:
            report(path, number, f"{len(line)} columns, at most {MAX_COLUMNS}")
        if code and "\t" in line:
            report(path, number, "a tab")
        if line != line.rstrip():
            report(path, number, "blanks at the end of the line")
        if UNFINISHED.search(line):
            report(
                path,
                number,
                "unfinished work belongs in an issue: " + UNFINISHED.search(line).group(),
            )
        if MACHINE_PATH.search(line):
            report(path, number, "a path of one machine: " + line.strip()[:60])
    if text and not text.endswith("\n"):
        report(path, len(lines), "no newline at the end of the file")
    if code and len(lines) - 1 > MAX_LINES:
        report(path, MAX_LINES + 1, f"{len(lines) - 1} lines, at most {MAX_LINES}")


# ---- C -----------------------------------------------------------------------------------------

TOKENS = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)


def blank(match):
    """A comment or a string as blanks, its newlines kept."""
    quote = match.group()[0] if match.group()[0] in "\"'" else " "
    return quote + re.sub(r"[^\n]", " ", match.group()[1:-1]) + quote


PREPROCESSOR = re.compile(r"^[ ]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
# what C++ and CUDA write before the name of a function or a type
PREFIX = re.compile(
    r"\btemplate\s*<(?:[^<>;{]|<[^<>]*>)*>"
    r"|\b(?:__launch_bounds__|__align__|alignas)\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
)


def strip_c(text):
    """C without comments, strings' contents and preprocessor lines; every line stays where it
    is."""
    text = TOKENS.sub(blank, text)
    for unwanted in (PREPROCESSOR, PREFIX):
        text = unwanted.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    return text


def top_level(text):
    """[(first line, last line, head, body)] of the pieces at file scope: a declaration (body "")
    or something with braces, head being what stands before them."""
    pieces, depth, start, body = [], 0, 0, 0
    skip = re.compile(r'extern\s+"[^"]*"\s*\{')
    i = 0
    while i < len(text):
        c = text[i]
        if depth == 0 and (found := skip.match(text, i)):
            i = start = found.end()
            continue
        if c == "{":
            body = i if depth == 0 else body
            depth += 1
        elif c == "}":
            depth -= 1
            if depth < 0:  # the end of extern "C"
                depth, start = 0, i + 1
            elif (
                depth == 0
                and not re.match(r"\s*[;,=\w*(\[]", text[i + 1 :])
                or depth == 0
                and is_function(text[start:body])
            ):
                pieces.append((start, i, text[start:body], text[body : i + 1]))
                start = i + 1
        elif c == ";" and depth == 0:
            pieces.append((start, i, text[start:i], ""))
            start = i + 1
        i += 1
    out = []
    for a, b, head, inner in pieces:
        a += len(head) - len(head.lstrip())
        out.append((text.count("\n", 0, a) + 1, text.count("\n", 0, b) + 1, head.strip(), inner))
    return out


def is_function(head):
    return (
        "(" in head
        and "=" not in head.split("(")[0]
        and not re.match(r"\s*(typedef|struct|enum|union)\b[^(]*$", head)
    )


def variable_name(declaration):
    """The name of the variable that a declaration makes and that may change; None when it makes
    none."""
    text = re.sub(r"__attribute__\s*\(\(.*?\)\)", " ", declaration)
    while "{" in text and (shorter := re.sub(r"\{[^{}]*\}", "@", text)) != text:
        text = shorter
    left = text.split("=")[0].strip()
    if not left or re.match(
        r"(typedef|extern|using|template|namespace|_Static_assert|static_assert|return|goto)\b",
        left,
    ):
        return None
    if re.match(r"(struct|enum|union|class)\b\s*\w*\s*(:[^@]*)?@?$", left):
        return None  # a type
    pointer = re.match(r"[^()]*\(\s*\*\s*(const\s+)?(\w+)(\[[^]]*\])?\s*\)\s*\(", left)
    if pointer:
        return None if pointer.group(1) else pointer.group(2)
    if "(" in left:
        return None
    constant = re.search(r"\bconst\b", left.rsplit("*", 1)[-1]) or "constexpr" in left
    name = re.search(r"(\w+)\s*(\[[^]]*\]\s*)*$", left)
    is_declaration = len(left.split()) > 1 or "*" in left
    return name.group(1) if name and is_declaration and not constant else None


def check_variables(path, first, text, what):
    # enum { A, B } x; and struct { ... } x = ...; : what stands behind the braces is the
    # declaration
    name = variable_name(text)
    if name and (path, name) not in MUTABLE:
        report(path, first, f"{name} is a mutable {what}")


def check_functions(path, stripped):
    for first, last, head, body in top_level(stripped):
        if not body or not is_function(head):
            check_variables(path, first, head, "variable at file scope")
            continue
        # macros that define functions stand before it without a semicolon: its own head is the last
        # line that is not indented
        starts = [m.start() for m in re.finditer(r"^\w[^(\n]*\(", head, re.M)]
        if starts:
            skipped = head[: starts[-1]].lstrip("\n").count("\n")
            first, head = first + skipped, head[starts[-1] :]
        name = re.search(r"(\w+)\s*\($", head[: head.index("(") + 1])
        name = name.group(1) if name else head
        limit = (
            MAX_MAIN if name == "main" else MAX_KERNEL if name.endswith("_kernel") else MAX_FUNCTION
        )
        if last - first + 1 > limit:
            report(path, first, f"{name} has {last - first + 1} lines, at most {limit}")
        if "__global__" in head and not name.endswith("_kernel"):
            report(path, first, f"{name} is a kernel: its name should end in _kernel")
        for found in re.finditer(r"^[ ]+static\s+([^;{]*)", body, re.MULTILINE):
            line = last - body.count("\n") + body.count("\n", 0, found.start())
            check_variables(path, line, found.group(1), "static variable")


def check_device(path, stripped):
    """Rules for kernels, and for the host code around them."""
    if not path.startswith("laser/cuda/") or path.startswith(PLUMBING) or path in HOST_ONLY:
        return
    for number, line in enumerate(stripped.split("\n"), 1):
        for pattern, why in DEVICE:
            if found := re.search(pattern, line):
                report(path, number, f"{found.group().split('(')[0]}: {why}")


INCLUDE = re.compile(r'^[ ]*#[ ]*include[ ]+(["<])([^">]+)[">]', re.MULTILINE)


def includes(path, texts):
    return [
        (m.group(2), texts[path].count("\n", 0, m.start()) + 1, m.group(1))
        for m in INCLUDE.finditer(texts[path])
    ]


def reachable(header, texts, seen):
    if header in texts and header not in seen:
        seen.add(header)
        for name, _, _ in includes(header, texts):
            reachable(name, texts, seen)
    return seen


def check_includes(path, texts):
    found = includes(path, texts)
    for header in (path.rsplit(".", 1)[0] + suffix for suffix in (".h", ".cuh")):
        if (
            not path.endswith((".h", ".cuh"))
            and header in texts
            and (not found or found[0][0] != header)
        ):
            report(path, found[0][1] if found else 1, f"the first include is not {header}")
    if layers.unknown(path):
        report(path, 1, "no line of dev/lint/layers.py says what this file may include")
    for name, line, kind in found:
        if kind == "<":
            continue
        if name.endswith((".c", ".cc", ".cu")):
            report(path, line, f"includes a source file: {name}")
        if name not in texts:
            report(path, line, f"{name} is not a header of this tree, named from its top")
        for reached in sorted(reachable(name, texts, set())):
            if not layers.may_reach(path, reached):
                way = "" if reached == name else f" (through {name})"
                report(path, line, f"may not include {reached}{way}: dev/lint/layers.py")


def check_guard(path, text):
    found = re.search(r"^#ifndef (\w+)\n#define (\w+)$", text, re.MULTILINE)
    if not found or found.group(1) != found.group(2) or not text.rstrip().endswith("#endif"):
        report(path, 1, "no header guard around the file")
    else:
        GUARDS.setdefault(found.group(1), []).append(path)


def check_guards():
    for guard, paths in GUARDS.items():
        if all(path.startswith(TWINS) for path in paths):
            continue
        for path in paths[1:]:
            report(path, 1, f"guard {guard} is that of {paths[0]}")


def languages(path, texts):
    """What a header has to compile as. C++ may meet all but what only the CPU backend, the tests
    and the tools include; what knows CUDA's types is compiled as the emulator has them."""
    if path.startswith(PLUMBING):
        return []  # needs nvcc
    if path.endswith(".cuh") or path.startswith("dev/emu/"):
        return [("c++", "c++", "c++17")]
    users = [
        p for p in texts if p.endswith((".c", ".cu", ".cc")) and path in reachable(p, texts, set())
    ]
    in_cpp = any(p.endswith(".cc") for p in users)
    if users and all(p.endswith(".cc") for p in users):
        return [("c++", "c++", "c++17")]
    c_only = path.startswith(("laser/cpu/", "dev/")) and not in_cpp
    return [("cc", "c", "c11")] + ([] if c_only else [("c++", "c++", "c++17")])


def compile_header(path, texts):
    """Alone, in each of its languages; returns the findings."""
    out = []
    options = "-fsyntax-only -march=native -fopenmp -D_GNU_SOURCE -DLASER_ATTENTION=1 -I."
    for compiler, language, standard in languages(path, texts):
        if not shutil.which(compiler):
            continue
        emulator = ["-Idev/emu/include"] if language == "c++" else []
        done = subprocess.run(
            [compiler, f"-std={standard}", "-x", language, *options.split(), *emulator, path],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            error = next((l for l in done.stderr.split("\n") if "error" in l), done.stderr[:200])
            out.append((path, 1, f"does not compile alone as {standard}: {error}"))
    return out


# ---- scripts -----------------------------------------------------------------------------------


def check_shell(path):
    if shutil.which("shellcheck"):
        command = ["shellcheck", "-S", "warning", "-f", "gcc", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            found = re.match(r"[^:]*:(\d+):\d+: (.*)", line)
            report(path, int(found.group(1)) if found else 1, found.group(2) if found else line)
    else:
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        if done.returncode:
            report(path, 1, done.stderr.strip())


def check_python(path, text):
    try:
        compile(text, path, "exec")
    except SyntaxError as error:
        report(path, error.lineno or 1, str(error))


def is_shell(path, text):
    return path.endswith((".sh", ".sbatch")) or re.match(r"#!.*\b(ba)?sh\b", text)


def main():
    texts = {}
    for path in all_files():
        try:
            with open(path, encoding="utf-8", newline="") as f:
                texts[path] = f.read()
        except UnicodeDecodeError:
            if path.endswith(TEXT_FILES):
                report(path, 1, "not UTF-8")
    wanted = sys.argv[1:] or list(texts)
    for path in [p for p in wanted if p in texts]:
        text = texts[path]
        if path.endswith(TEXT_FILES) or "." not in os.path.basename(path):
            check_text(path, text)
        if path.endswith(C_FILES):
            stripped = strip_c(text)
            check_functions(path, stripped)
            check_device(path, stripped)
            check_includes(path, texts)
        if path.endswith((".h", ".cuh")):
            check_guard(path, text)
        if is_shell(path, text):
            check_shell(path)
        if path.endswith(".py"):
            check_python(path, text)
    check_guards()
    headers = [p for p in wanted if p in texts and p.endswith((".h", ".cuh"))]
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda p: compile_header(p, texts), headers):
            FINDINGS.extend(found)
    for path, line, text in sorted(FINDINGS):
        print(f"{path}:{line}: {text}")
    print(
        f"lint: {len(FINDINGS)} findings in {len(wanted)} files"
        if FINDINGS
        else f"lint: {len(wanted)} files keep the rules"
    )
    sys.exit(1 if FINDINGS else 0)


if __name__ == "__main__":
    main()
