#!/bin/bash
# Training steps of GPT-2 124M: LASER, standard attention, and whoever else is there, one step of
# each in turn, so that what disturbs one disturbs all; ratios are medians over the turns. Prints
# one table for each shape, and where the time of our steps goes.
#
#   bench.sh build/<configuration>        (make bench does)
#     ROUNDS=9        turns
#     SHAPES="4x64 1x1024"   batch x tokens
#     THREADS=        default: all cores
#     LLMC=DIR        a checkout of karpathy/llm.c: its train_gpt2.c takes part,
#     LLMC_ROUNDS=3,1 in so many turns of each shape
#     TORCH=python3   a Python that can import torch; TORCH=none: without
#     COMPILE_SECONDS=60   after which torch.compile is given up; 0: eager only
set -euo pipefail
cd "$(dirname "$0")/../.."

[ $# -eq 1 ] && [ -x "$1-laser/bench_train" ] && [ -x "$1-standard/bench_train" ] || {
    echo "usage: dev/bench/bench.sh build/CONFIG (with CONFIG-laser/bench_train)" >&2
    exit 2
}
OUT=$1
ROUNDS=${ROUNDS:-9}
SHAPES=${SHAPES:-4x64 1x1024}
THREADS=${THREADS:-$(nproc)}
LLMC=${LLMC:-}
LLMC_ROUNDS=${LLMC_ROUNDS:-3,1}
TORCH=${TORCH:-python3}
COMPILE_SECONDS=${COMPILE_SECONDS:-60}

# OpenBLAS falls back to kernels of 2004 on processors that it does not know.
if [ -z "${OPENBLAS_CORETYPE:-}" ]; then
    if grep -qw avx512dq /proc/cpuinfo; then
        export OPENBLAS_CORETYPE=SKYLAKEX
    elif grep -qw avx2 /proc/cpuinfo; then
        export OPENBLAS_CORETYPE=HASWELL
    fi
fi
export OMP_NUM_THREADS=$THREADS

TMP=$(mktemp -d)
declare -A IN FROM PID
cleanup() {
    [ ${#PID[@]} -eq 0 ] || kill "${PID[@]}" 2>/dev/null || true
    rm -rf "$TMP"
}
trap cleanup EXIT
trap '' PIPE

# ---- programs that take a step for each line they are sent -------------------------------------
start() { # NAME COMMAND...
    local name=$1 in out
    shift
    mkfifo "$TMP/$name.in" "$TMP/$name.out"
    "$@" <"$TMP/$name.in" >"$TMP/$name.out" 2>"$TMP/$name.err" &
    PID[$name]=$!
    exec {in}>"$TMP/$name.in" {out}<"$TMP/$name.out"
    IN[$name]=$in FROM[$name]=$out
}

expect() { # NAME PATTERN: the next line that matches, in REPLY
    while read -r -u "${FROM[$1]}" REPLY; do
        [[ $REPLY =~ $2 ]] && return 0
    done
    echo "$1 ended:" >&2
    tail -n 5 "$TMP/$1.err" >&2
    return 1
}

step() { # NAME ROUND: appends "ROUND NAME MILLISECONDS" to the samples
    echo step >&"${IN[$1]}"
    expect "$1" '([0-9.]+) ms'
    echo "$2 $1 ${BASH_REMATCH[1]}" >>"$TMP/samples"
}

# Each program ends when its input does; later ones hold the inputs of earlier ones open.
stop_all() {
    local name
    for name in "${!PID[@]}"; do eval "exec ${IN[$name]}>&- ${FROM[$name]}<&-"; done
    for name in "${!PID[@]}"; do
        wait "${PID[$name]}" || true
        rm -f "$TMP/$name.in" "$TMP/$name.out"
    done
    IN=() FROM=() PID=()
}

# ---- llm.c: a copy with this shape, no validation, no samples; waits for a line before a step --
start_llmc() { # B T
    local source=$TMP/train_gpt2.c
    sed -e "s/int B = 4;/int B = $1;/" -e "s/int T = 64;/int T = $2;/" \
        -e 's/val_num_batches = 5;/val_num_batches = 0;/' -e 's/step <= 40;/step <= 1000000;/' \
        -e 's/step > 0 && step % 20 == 0/0/' \
        -e 's|// do a training step|char line[64]; if (!fgets(line, 64, stdin)) break;|' \
        "$LLMC/train_gpt2.c" >"$source"
    local changed
    changed=$(diff "$LLMC/train_gpt2.c" "$source" | grep -c '^>') || true
    if [ "$changed" -lt 4 ] || ! grep -q 'fgets(line, 64, stdin)' "$source"; then
        echo "llm.c: $LLMC/train_gpt2.c is not the program this script knows; left out" >&2
        return 1
    fi
    gcc -Ofast -fno-finite-math-only -march=native -fopenmp -DOMP -Wno-unused-result -I"$LLMC" \
        -o "$TMP/llmc" "$source" -lm
    if [ ! -f "$TMP/gpt2_124M.bin" ]; then
        cc -O2 -o "$TMP/llmc_files" dev/bench/llmc_files.c
        mkdir -p "$TMP/dev/data/tinyshakespeare"
        "$TMP/llmc_files" "$TMP"
    fi
    start llm.c env -C "$TMP" stdbuf -oL ./llmc
    step llm.c 0 # takes its memory
}

has_torch() {
    [ "$TORCH" != none ] && "$TORCH" -c 'import torch' 2>/dev/null
}

# ---- one shape ---------------------------------------------------------------------------------
measure() { # B T LLMC_ROUNDS
    local name round order=(laser standard)
    local shape=(--batch "$1" --seq-len "$2" --threads "$THREADS")
    : >"$TMP/samples"
    : >"$TMP/notes"
    for name in laser standard; do
        start $name "$OUT-$name/bench_train" --serve "${shape[@]}"
        expect $name '^ready'
    done
    read -r _ FLOPS _ TOKENS _ <<<"$REPLY"
    if has_torch; then
        start PyTorch "$TORCH" dev/bench/peer_torch.py "${shape[@]}" \
            --compile-seconds "$COMPILE_SECONDS"
        expect PyTorch '^ready'
        echo "${REPLY#ready }" >>"$TMP/notes"
    fi
    [ -z "$LLMC" ] || start_llmc "$1" "$2" || LLMC=
    for ((round = 1; round <= ROUNDS; round++)); do
        gemm $round
        for name in "${order[@]}"; do step $name $round; done
        order=("${order[1]}" "${order[0]}")
        [ -z "${PID[PyTorch]:-}" ] || step PyTorch $round
        [ -z "${PID[llm.c]:-}" ] || [ $round -gt "$3" ] || step llm.c $round
    done
    gemm $round
    stop_all
}

gemm() { # ROUND
    echo gemm >&"${IN[laser]}"
    expect laser '([0-9.]+) ([0-9.]+) GFLOP/s'
    echo "$1 sgemm:own ${BASH_REMATCH[1]}" >>"$TMP/samples"
    echo "$1 sgemm:OpenBLAS ${BASH_REMATCH[2]}" >>"$TMP/samples"
    [ -n "${PID[PyTorch]:-}" ] || return 0
    echo gemm >&"${IN[PyTorch]}"
    expect PyTorch '([0-9.]+) GFLOP/s'
    echo "$1 sgemm:MKL(PyTorch) ${BASH_REMATCH[1]}" >>"$TMP/samples"
}

report() { # B T
    echo
    echo "== GPT-2 124M, batch $1 x $2 tokens =="
    cat "$TMP/notes"
    awk -v flops="$FLOPS" -v tokens="$TOKENS" -f dev/bench/report.awk "$TMP/samples"
}

# ---- all ---------------------------------------------------------------------------------------
revision=$(git describe --always --dirty 2>/dev/null || echo unknown)
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
echo "laser.c $revision, ${OUT##*/}, $(date -u '+%Y-%m-%d %H:%M UTC')"
echo "$cpu, $THREADS threads, load before: $(cut -d' ' -f1 /proc/loadavg)"
index=0
for shape in $SHAPES; do
    index=$((index + 1))
    llmc_rounds=$(cut -d, -f$index <<<"$LLMC_ROUNDS,1,1,1,1,1,1")
    measure "${shape%x*}" "${shape#*x}" "$llmc_rounds"
    report "${shape%x*}" "${shape#*x}"
    for name in standard laser; do
        echo
        "$OUT-$name/bench_train" --batch "${shape%x*}" --seq-len "${shape#*x}" --threads "$THREADS"
    done
done
