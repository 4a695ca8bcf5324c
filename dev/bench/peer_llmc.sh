#!/usr/bin/env bash
# llm.c's train_gpt2cu, built and timed: GPT-2 124M of random weights and tokens.
#   LLMC=DIR peer_llmc.sh build PROGRAM     DIR: a checkout of karpathy/llm.c; needs nvcc
#   peer_llmc.sh time PROGRAM [BATCH]       needs the GPU alone; prints the median step
# Works on a copy with one line changed, as CUDA 13 has it: cudaMemAdvise takes a cudaMemLocation;
# and without NVML, with which llm.c shows the clocks only. Without cuDNN, as is llm.c's default,
# unless CUDNN=1. ARCH=90: for a machine other than this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
STEPS=${STEPS:-60}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

found() { # NAME: what find_cuda.sh says, ~ for a blank
    sed -n "s/^$1=//p" "$tmp/found" | tr '~' ' '
}

build() { # PROGRAM
    local host="cudaMemLocation{cudaMemLocationTypeHost, 0}"
    local changed folder arch flags=(-O3 --use_fast_math -std=c++17 -DENABLE_BF16)
    [ -f "${LLMC:-}/train_gpt2.cu" ] || {
        echo "LLMC=${LLMC:-}: no train_gpt2.cu of karpathy/llm.c there" >&2
        return 1
    }
    PRECISION=bf16 dev/make/find_cuda.sh cuda >"$tmp/found"
    [ -n "$(found NVCC)" ] || {
        echo "no nvcc: $(found MISSING)" >&2
        return 1
    }
    mkdir "$tmp/llm.c"
    cp -r "$LLMC"/llmc "$LLMC"/train_gpt2.cu "$tmp/llm.c"
    case $(found NVCC_VERSION) in
        12.*) ;;
        *)
            sed -i "s/PreferredLocation, cudaCpuDeviceId/PreferredLocation, $host/" \
                "$tmp/llm.c/llmc/cuda_utils.cuh"
            changed=$(grep -c cudaMemLocationTypeHost "$tmp/llm.c/llmc/cuda_utils.cuh") || true
            [ "$changed" = 1 ] || echo "llm.c: the line to change for CUDA 13 is not there" >&2
            ;;
    esac
    sed -i 's/__has_include(<nvml.h>)/0/' "$tmp/llm.c/llmc/mfu.h"
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
        sed -n '1s/\.//p' || true)
    arch=${ARCH:-${arch:-90}}
    flags+=(-gencode "arch=compute_$arch,code=sm_$arch")
    for folder in $(found CUDA_INCLUDES); do flags+=(-isystem "$folder"); done
    if [ "${CUDNN:-0}" = 1 ]; then
        flags+=(-DENABLE_CUDNN "$tmp/llm.c/llmc/cudnn_att.cpp" "$(found CUDNN_LIBRARY)"
            "$(find "$(dirname "$(found CUBLAS)")/" -name 'libnvrtc.so*' | sort | head -n 1)")
        for folder in $(found CUDNN_INCLUDES); do flags+=(-isystem "$folder"); done
    fi
    # cublasLt's folder holds cublas too
    folder=$(dirname "$(found CUBLAS)")
    mkdir -p "$(dirname "$1")"
    "$(found NVCC)" "${flags[@]}" -o "$1" "$tmp/llm.c/train_gpt2.cu" \
        "$(find "$folder/" -name 'libcublas.so*' | sort | head -n 1)" "$(found CUBLAS)" \
        -Xlinker -rpath,"$folder",-rpath,/usr/local/cuda/lib64
}

# A shard of STEPS steps; llm.c wants more tokens than one step takes.
write_shard() { # FILE TOKENS
    python3 - "$1" "$2" <<'PYTHON'
import array, random, struct, sys
count = int(sys.argv[2])
tokens = array.array("H", random.Random(1).choices(range(50257), k=count))
with open(sys.argv[1], "wb") as f:
    f.write(struct.pack("<256i", 20240520, 1, count, *[0] * 253) + tokens.tobytes())
PYTHON
}

run() { # PROGRAM BATCH
    local program
    program=$(readlink -f "$1")
    write_shard "$tmp/tokens.bin" $((4 * $2 * 1024 + 1))
    (cd "$tmp" && "$program" -e d12 -i tokens.bin -j tokens.bin -b "$2" -t 1024 -x "$STEPS" \
        -v 1000000 -m 1 -s 0 -l 1e-4 -c 0.1) >"$tmp/log" || {
        tail -n 5 "$tmp/log" >&2
        return 1
    }
    sed -n 's/^step .*| \([0-9.]*\) ms |.*/\1/p' "$tmp/log" | tail -n +11 | sort -n |
        awk -v tokens=$(($2 * 1024)) '{ ms[NR] = $1 }
            END { if (!NR) exit 1
                  m = ms[int((NR + 1) / 2)]
                  printf "llm.c: step, median of %d: %.3f ms, %.1f tokens/s\n", NR, m,
                      1e3 * tokens / m }'
}

case ${1:-}:$# in
    build:2) build "$2" ;;
    time:2 | time:3) run "$2" "${3:-32}" ;;
    *)
        echo "usage: LLMC=DIR dev/bench/peer_llmc.sh build PROGRAM | time PROGRAM [BATCH]" >&2
        exit 2
        ;;
esac
