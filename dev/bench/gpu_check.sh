#!/usr/bin/env bash
# Everything that only a GPU can prove or measure, in one call, without git and without compilers:
#   gpu_check.sh [--limit SECONDS] [--sections "tests curves ..."] [--out DIR] PROGRAMS
# PROGRAMS is what make gpu-binaries makes, build/gpu: {bf16,fp32}-{laser,standard}/{train_gpt,
# test_gpt,bench_ops,bench_train}, and cpu-fp32-{laser,standard}/train_gpt. Writes DIR/log.txt, and
# by gpu_report.py DIR/summary.txt: what has passed, and the goals of speed with what was reached.
# DIR is build/gpu_check, or $OUT where that is set. Sections, in order:
#   tests     every test, all four builds              curves  loss curves beside the CPU's
#   train     whole steps of the presets               start   time to the first step
#   ops       each operation, LASER beside standard    peers   GPT-2 124M: ours, llm.c, PyTorch
#   sanitize  compute-sanitizer on the kernels' tests  system  whole runs of the bf16 trainers
#   comm      what GPUs send each other, two processes on one where there is one
#     LIMITS="train=590 ops=60": seconds for a section; PRESETS, OPS_PRESETS: what train and ops run
#     LLMC_PROGRAMS=: programs that peer_llmc.sh built; LLMC=: a checkout to build one from
#     SANITIZE_FILTERS="ops: attention:": names of tests
# What has no time left is named as skipped. Exit code 0: all that ran has passed; 1: not.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

usage() {
    echo "usage: gpu_check.sh [--limit SECONDS] [--sections LIST] [--out DIR] PROGRAMS" >&2
    exit 2
}

limit=3000 sections="tests curves train start ops peers sanitize system comm"
out=${OUT:-build/gpu_check}
while [ $# -gt 1 ]; do
    case $1 in
        --limit) limit=$2 ;;
        --sections) sections=$2 ;;
        --out) out=$2 ;;
        *) usage ;;
    esac
    shift 2
done
if [ $# -ne 1 ] || [ ! -d "$1" ]; then usage; fi
PROGRAMS=$1
BUILDS=()
for build in "$PROGRAMS"/{bf16,fp32}-{laser,standard}; do
    [ ! -x "$build/train_gpt" ] || BUILDS+=("$build")
done
[ ${#BUILDS[@]} -gt 0 ] || {
    echo "error: $PROGRAMS holds no {bf16,fp32}-{laser,standard}/train_gpt: make gpu-binaries" >&2
    exit 2
}
nvidia-smi -L 2>/dev/null | grep -q '^GPU ' || {
    echo "error: nvidia-smi -L lists no GPU" >&2
    exit 1
}
mkdir -p "$out" || exit 2
log=$out/log.txt
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export PYTHONDONTWRITEBYTECODE=1
PYTHON=$(command -v python3 || true)

# Where the folders that the build had its libraries in are not here: NVIDIA's Python packages.
if ldd "${BUILDS[0]}/train_gpt" | grep -q 'not found' && [ -n "$PYTHON" ]; then
    site=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    for folder in "$site"/nvidia/*/lib; do LD_LIBRARY_PATH=$folder:${LD_LIBRARY_PATH:-}; done
    export LD_LIBRARY_PATH
fi

# ---- time ------------------------------------------------------------------------------------
left() { # seconds until the section has to end
    echo $((section_end - SECONDS))
}

# Runs a command for at most SECONDS, less where the section has less left; says how it ended. 77:
# it was not run, or had nothing to do.
run() { # SECONDS COMMAND...
    local most=$1 begin=$SECONDS status
    shift
    [ "$(left)" -lt "$most" ] && most=$(left)
    if [ "$most" -lt 5 ]; then
        echo "skipped, no time left: $*"
        return 77
    fi
    timeout -k 10 "$most" "$@" </dev/null 2>&1
    status=$?
    case $status in
        0 | 77) ;;
        124 | 137) echo "FAILED: stopped after $((SECONDS - begin)) s: $*" ;;
        *) echo "FAILED: ended with $status after $((SECONDS - begin)) s: $*" ;;
    esac
    return $status
}

note() { # STATUS: a section goes on after a failure
    [ "$1" -eq 77 ] || failed=1
}

limit_of() { # SECTION: from LIMITS, or what it is worth
    local word
    for word in ${LIMITS:-} tests=400 curves=120 train=400 start=90 ops=120 peers=240 sanitize=300 \
        system=300 comm=180; do
        if [ "${word%%=*}" = "$1" ]; then
            echo "${word#*=}"
            return
        fi
    done
}

# ---- sections: each prints, and returns 1 where something failed --------------------------------
section_tests() {
    local build failed=0
    for build in "${BUILDS[@]}"; do
        echo "== $build"
        run 180 "$build/test_gpt" || note $?
    done
    return $failed
}

section_curves() {
    local cpu=() path
    [ -n "$PYTHON" ] || {
        echo "skipped: no python3"
        return 0
    }
    for path in "$PROGRAMS"/cpu-*/train_gpt build/cpu-*/train_gpt; do
        [ -x "$path" ] && "$path" --version >/dev/null 2>&1 && cpu+=("$path")
    done
    run 300 "$PYTHON" dev/test/check_curves.py "${cpu[@]}" "${BUILDS[@]/%//train_gpt}"
}

section_train() {
    # shellcheck disable=SC2086
    run 3000 dev/bench/bench_presets.sh "$PROGRAMS/bf16" ${PRESETS:-}
}

# One training step of a preset, from the start of the program to its end.
section_start() {
    local how options begin failed=0
    [ -n "$PYTHON" ] || {
        echo "skipped: no python3"
        return 0
    }
    (cd dev/test && "$PYTHON" -c 'import sys, system_kit as kit
kit.write_shard(sys.argv[1], kit.tokens_like_text(8 * 1024 + 1, 1, 32000), vocab=32000)' \
        "$tmp/start.bin")
    for how in first-tuning tuned untuned; do
        options=(--tune-cache "$tmp/tuned")
        [ $how != untuned ] || options=(--no-tune --tune-cache none)
        begin=$EPOCHREALTIME
        run 60 "$PROGRAMS/bf16-laser/train_gpt" --model 301M --batch 8 --steps 1 --val-every 0 \
            --train "$tmp/start.bin" "${options[@]}" || {
            note $?
            continue
        }
        awk -v a="$begin" -v b="$EPOCHREALTIME" -v how=$how \
            'BEGIN { printf "start of 301M, %s: first step done %.2f s after\n", how, b - a }'
    done
    return $failed
}

bandwidth() { # GB/s of the data sheet, 0 for a GPU that is not known here
    case $(nvidia-smi --id=0 --query-gpu=name --format=csv,noheader) in
        *H200*) echo 4800 ;;
        *H100*PCIe*) echo 2039 ;;
        *H100*) echo 3350 ;;
        *A100*80GB*) echo 2039 ;;
        *A100*) echo 1555 ;;
        *) echo 0 ;;
    esac
}

section_ops() {
    local preset attention core failed=0 options
    for preset in ${OPS_PRESETS:-301M:auto 1.1B:auto 2.2B:auto gpt2-124M:auto gpt2-124M:gemm}; do
        core=${preset#*:} preset=${preset%:*}
        options=(--model "$preset" --batch 16 --attn-core "$core" --bandwidth "$(bandwidth)")
        for attention in standard laser; do
            echo "== $preset $attention $core"
            run 60 "$PROGRAMS/bf16-$attention/bench_ops" "${options[@]}" >"$tmp/$attention" ||
                note $?
            cat "$tmp/$attention"
        done
        echo "== $preset $core, LASER beside standard attention"
        awk -f dev/bench/ops_beside.awk "$tmp/standard" "$tmp/laser"
    done
    return $failed
}

section_peers() {
    local attention program failed=0
    for attention in standard laser; do
        echo "== gpt2-124M $attention auto: --batch 32"
        run 90 "$PROGRAMS/bf16-$attention/bench_train" --model gpt2-124M --batch 32 || note $?
    done
    if [ -n "${LLMC:-}" ]; then
        run 300 dev/bench/peer_llmc.sh build "$tmp/train_gpt2cu" &&
            LLMC_PROGRAMS+=" $tmp/train_gpt2cu"
    fi
    for program in ${LLMC_PROGRAMS:-}; do
        echo "== $(basename "$program")"
        run 90 dev/bench/peer_llmc.sh time "$program" 32 || note $?
    done
    if "${PYTHON:-false}" -c 'import torch; torch.zeros(1, device="cuda")' 2>/dev/null; then
        echo "== PyTorch"
        run 180 "$PYTHON" dev/bench/peer_torch.py --device cuda --dtype bf16 --batch 32 \
            --seq-len 1024 --compile-seconds 120 || note $?
    else
        echo "skipped: no PyTorch that sees the GPU"
    fi
    return $failed
}

section_sanitize() {
    local tool filter build failed=0
    command -v compute-sanitizer >/dev/null || {
        echo "skipped: no compute-sanitizer"
        return 0
    }
    for tool in memcheck racecheck; do
        for filter in ${SANITIZE_FILTERS:-attention: modifiers: ops: optim: gemm: model:}; do
            for build in "$PROGRAMS"/{bf16,fp32}-laser "$PROGRAMS/bf16-standard"; do
                case $build:$filter in *standard:attention:) ;; *standard:*) continue ;; esac
                echo "== $tool $build $filter"
                run 120 compute-sanitizer --tool $tool --error-exitcode 9 "$build/test_gpt" \
                    --filter "$filter" || note $?
            done
        done
    done
    return $failed
}

section_system() {
    [ -n "$PYTHON" ] || {
        echo "skipped: no python3"
        return 0
    }
    if [ ! -x build/bin/shard_tool ] && [ -x "$PROGRAMS/shard_tool" ]; then
        mkdir -p build/bin && cp "$PROGRAMS/shard_tool" build/bin
    fi
    run 600 "$PYTHON" dev/test/system.py --jobs 4 "$PROGRAMS"/bf16-{laser,standard}/train_gpt
}

section_comm() {
    local failed=0
    [ -x "$PROGRAMS/nccl-bf16-laser/bench_comm" ] || {
        echo "skipped: $PROGRAMS/nccl-bf16-laser was not built: there was no NCCL"
        return 0
    }
    run 120 dev/bench/bench_comm.sh "$PROGRAMS/nccl-bf16-laser/bench_comm" || note $?
    [ -z "$PYTHON" ] || run 120 "$PYTHON" dev/test/system.py --jobs 1 --filter "nccl: on GPUs" \
        "$PROGRAMS/bf16-laser/train_gpt" || note $?
    return $failed
}

# ---- all -------------------------------------------------------------------------------------
{
    date -u '+%Y-%m-%d %H:%M UTC'
    nvidia-smi
    query=name,driver_version,compute_cap,memory.total,memory.used,clocks.max.sm,power.limit
    nvidia-smi --id=0 --format=csv --query-gpu=$query
    for build in "${BUILDS[@]}"; do "$build/train_gpt" --version; done
    ldd "${BUILDS[0]}/train_gpt" | grep -i 'cuda\|cublas\|cudnn\|not found'
    "${BUILDS[0]}/train_gpt" --plan --model 301M --batch 8
} 2>&1 | tee "$log"
failed=()
for section in $sections; do
    [ "$(type -t "section_$section")" = function ] || usage
    section_end=$((SECONDS + $(limit_of "$section")))
    [ $section_end -le "$limit" ] || section_end=$limit
    begin=$SECONDS
    echo "==== $section: $(left) s at most" | tee -a "$log"
    "section_$section" 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    [ "$status" -ne 77 ] || status=0
    [ "$status" -eq 0 ] || failed+=("$section")
    echo "==== $section: ended with $status after $((SECONDS - begin)) s" | tee -a "$log"
done
[ -z "$PYTHON" ] || "$PYTHON" dev/bench/gpu_report.py "$log" | tee "$out/summary.txt"
[ ${#failed[@]} -eq 0 ] || echo "FAILED: ${failed[*]}"
[ ${#failed[@]} -eq 0 ]
