"""Checks dev/lint: in a small tree, each rule broken once must be found, at its line, and a
tree that keeps them passes. Exit code 0: so it is; 1: not."""

import os
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LINT = os.path.join(TOP, "dev", "lint", "lint.py")

HEADER = """/* {0}: a header. */
#ifndef {1}_H
#define {1}_H
{2}
#endif
"""


def header(name, inside=""):
    return HEADER.format(name, name.upper().replace("/", "_").split(".")[0], inside)


# A tree that keeps every rule, with what the rules must not stumble over.
CLEAN = {
    "laser/base.h": header("laser/base.h", "int base_of(int x);"),
    "laser/model.h": header("laser/model.h", '#include "laser/base.h"\ntypedef int Model;'),
    "laser/cpu/gemm.h": header("laser/cpu/gemm.h", '_Static_assert(1, "C11 only");'),
    "laser/base.c": """#include "laser/base.h"

typedef struct Pair {
    int a, b;
} Pair;
static const char *const words[] = {"a;", "{b", "/* c"}; // }
static const struct {
    int x;
} table[] = {{1}, {2}};
static int twice(int (*f)(int), const int *x);
enum { A = 1, B };

int base_of(int x) {
    static const int t[] = {1, 2};
    const Pair p = {.a = x};
    return t[0] + table[0].x + p.b + (words[0] != 0) + twice(0, t) + A + B;
}

static int twice(int (*f)(int), const int *x) {
    return f ? 2 * f(*x) : 0;
}
""",
    "laser/cuda/x.cuh": header("laser/cuda/x.cuh", '#include "laser/base.h"\nconstexpr int X = 1;'),
    "laser/cuda/x.cu": """#include "laser/cuda/x.cuh"

template <typename E, int VEC>
struct __align__(sizeof(E) * VEC) Pack {
    E e[VEC];
};
template <bool A = true, int B = 4 * (1 + 1)>
__global__ static void __launch_bounds__(256 * (A ? 2 : 1), 2) long_kernel(int *x) {
"""
    + "    x[0]++;\n" * 100
    + """}
__device__ static inline int one(void) {
    return 1;
}
""",
    "laser/cuda/nvcc/launch.h": HEADER.format("launch.h", "LAUNCH", "#define L(k) k<<<1, 1>>>()"),
    "dev/emu/include/launch.h": HEADER.format("launch.h", "LAUNCH", "#define L(k) k()"),
    "test_gpt.c": '#include "dev/test/test.h"\n',
    "dev/test/test.h": header("dev/test/test.h"),
    "scripts/run.sh": "#!/usr/bin/env bash\necho one\n",
    "dev/plot/plot.py": "print(1)\n",
    "README.md": "x" * 300 + "\n",
}

LONG = "int f(void) {\n" + "    ;\n" * 59 + "}\n"  # 61 lines

# (what, file, its content, line of the finding, part of the finding)
PLANTED = [
    (
        "long line",
        "laser/base.c",
        '#include "laser/base.h"\n//' + "x" * 99 + "\n",
        2,
        "101 columns",
    ),
    ("tab", "scripts/run.sh", "#!/bin/bash\nif true; then\n\techo\nfi\n", 3, "tab"),
    ("trailing blank", "README.md", "one\ntwo \n", 2, "blanks"),
    ("no last newline", "README.md", "one", 1, "newline"),
    ("unfinished", "dev/plot/plot.py", "# TO" + "DO: more\n", 1, "unfinished"),
    ("machine path", "scripts/run.sh", "#!/bin/bash\ncd /ro" + "ot/x\n", 2, "path of one machine"),
    ("long file", "dev/plot/plot.py", "x = 1\n" * 501, 501, "501 lines"),
    ("long function", "laser/base.c", '#include "laser/base.h"\n' + LONG, 2, "61 lines"),
    (
        "own header late",
        "laser/base.c",
        '#include <stdio.h>\n#include "laser/base.h"\n',
        1,
        "first",
    ),
    ("cpu reaches the model", "laser/cpu/x.c", '#include "laser/model.h"\n', 1, "laser/model.h"),
    ("data reaches the model", "dataloader/x.c", '#include "laser/model.h"\n', 1, "model.h"),
    (
        "indirectly",
        "laser/base.h",
        header("laser/base.h", '#include "laser/model.h"'),
        4,
        "may not include laser/model.h",
    ),
    ("dev included", "train.c", '#include "dev/test/test.h"\n', 1, "dev/test/test.h"),
    ("unlisted file", "laser/new.c", "int x(void);\n", 1, "no line of dev/lint/layers.py"),
    ("absent header", "train.c", '#include "base.h"\n', 1, "not a header of this tree"),
    ("source included", "train.c", '#include "laser/base.c"\n', 1, "source file"),
    ("no guard", "laser/model.h", "typedef int Model;\n", 1, "no header guard"),
    (
        "the same guard",
        "laser/model.h",
        CLEAN["laser/model.h"].replace("MODEL_H", "BASE_H"),
        1,
        "is that of laser/base.h",
    ),
    (
        "not alone",
        "laser/model.h",
        header("laser/model.h", "size_t f(void);"),
        1,
        "does not compile alone as c11",
    ),
    (
        "not in C++",
        "laser/model.h",
        header("laser/model.h", "int f(int class);"),
        1,
        "does not compile alone as c++17",
    ),
    ("variable", "train.c", "int a;\nstatic int counter = 1;\n", 2, "counter is a mutable"),
    ("pointer", "train.c", '\nstatic const char *name = "x";\n', 2, "name is a mutable"),
    ("array", "train.c", "static double sums[4] = {1, 2};\n", 1, "sums is a mutable"),
    ("of a struct", "train.c", "static struct { int x; } state;\n", 1, "state is a mutable"),
    ("to a function", "train.c", "static int (*hook)(int);\n", 1, "hook is a mutable"),
    (
        "in a function",
        "train.c",
        "int f(void) {\n    static int n;\n    return n++;\n}\n",
        2,
        "n is",
    ),
    (
        "long function in CUDA",
        "laser/cuda/x.cu",
        '#include "laser/cuda/x.cuh"\ntemplate <int V>\n__device__ ' + LONG,
        3,
        "61 lines",
    ),
    (
        "long kernel",
        "laser/cuda/x.cu",
        CLEAN["laser/cuda/x.cu"].replace("    x[0]++;\n", "    x[0]++;\n" * 2),
        8,
        "long_kernel has 202 lines, at most 120",
    ),
    (
        "kernel's name",
        "laser/cuda/x.cu",
        CLEAN["laser/cuda/x.cu"].replace("long_kernel", "kernel9"),
        8,
        "kernel9 is a kernel",
    ),
    ("launch", "laser/cuda/y.cu", "void f(void) {\n    k_kernel<<<1, 1>>>();\n}\n", 2, "LAUNCH"),
    ("STL", "laser/cuda/y.cu", "\nstatic const std::vector<int> x;\n", 2, "no STL"),
    ("accuracy", "laser/cuda/y.cu", "float f(float x) {\n    return __expf(x);\n}\n", 2, "reduced"),
    ("cuda reaches the model", "laser/cuda/y.cu", '#include "laser/model.h"\n', 1, "model.h"),
    ("cuda reaches cpu", "laser/cuda/y.cu", '#include "laser/cpu/gemm.h"\n', 1, "gemm.h"),
    ("emulator reaches cuda", "dev/emu/e.cc", '#include "laser/cuda/x.cuh"\n', 1, "x.cuh"),
    ("shell", "scripts/run.sh", "#!/bin/bash\nif true; then\n", 0, ""),
    ("python", "dev/plot/plot.py", "print(\n", 1, "never closed"),
]


def lint(files):
    with tempfile.TemporaryDirectory() as tree:
        for path, content in files.items():
            os.makedirs(os.path.dirname(os.path.join(tree, path)) or tree, exist_ok=True)
            with open(os.path.join(tree, path), "w", encoding="utf-8") as f:
                f.write(content)
        done = subprocess.run(
            [sys.executable, LINT], cwd=tree, capture_output=True, text=True, check=False
        )
    return done.returncode, done.stdout + done.stderr


def main():
    failures = 0
    code, said = lint(CLEAN)
    if code != 0:
        failures += 1
        print(f"FAILED: a tree that keeps the rules: exit code {code}\n{said}")
    for what, path, content, line, part in PLANTED:
        code, said = lint({**CLEAN, path: content})
        place = f"{path}:{line}: " if line else f"{path}:"
        found = [s for s in said.splitlines() if s.startswith(place) and part in s]
        if code != 1 or not found:
            failures += 1
            print(f"FAILED: {what}: exit code {code}, want {place}...{part}\n{said}")
    print(
        f"check_lint: {failures} failures" if failures else "check_lint: every planted fault found"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
