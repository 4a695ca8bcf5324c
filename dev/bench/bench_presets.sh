#!/usr/bin/env bash
# Whole training steps of presets on a GPU, LASER after standard attention:
#   bench_presets.sh PROGRAMS [PRESET...]
# PROGRAMS-laser and PROGRAMS-standard are folders with train_gpt and bench_train, such as
# build/gpu/bf16. PRESET-uncapped is the preset with --attn-cap 0, which more attention cores serve;
# those and GPT-2 are run with --attn-core auto and gemm, the others, where gemm is all there is,
# with auto. Of BATCHES (sequences) the first is taken whose memory, by --plan, fits. Prints what
# bench_train does, and the most memory that nvidia-smi saw; gpu_report.py reads it.
#     BATCHES="32 24 16 8 4 2 1"   CORES=   SECONDS_EACH=120: time limit of a program
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

if [ $# -lt 1 ] || [ ! -x "$1-laser/bench_train" ] || [ ! -x "$1-standard/bench_train" ]; then
    echo "usage: bench_presets.sh PROGRAMS [PRESET...] (with PROGRAMS-laser/bench_train)" >&2
    exit 2
fi
PROGRAMS=$1
shift
[ $# -gt 0 ] || set -- 301M 1.1B 2.2B 301M-uncapped 435M 7.7B
BATCHES=${BATCHES:-32 24 16 8 4 2 1}
SECONDS_EACH=${SECONDS_EACH:-120}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

gpu_memory() { # total|used: MiB, of the first GPU
    nvidia-smi --id=0 --query-gpu="memory.$1" --format=csv,noheader,nounits
}

plan_mib() { # OPTION...: the total of --plan
    "$PROGRAMS-laser/train_gpt" --plan "$@" |
        awk '$1 == "total" { printf "%d\n", $3 == "GiB" ? $2 * 1024 : $2 }'
}

# The planned memory is less than all of the device by what plan_require_memory leaves free.
choose_batch() { # OPTION...: -> BATCH, empty where none fits
    local need
    for BATCH in $BATCHES; do
        need=$(plan_mib --batch "$BATCH" "$@")
        [ -z "$need" ] || [ "$need" -gt $((TOTAL * 97 / 100)) ] || return 0
    done
    BATCH=""
}

measure() { # ATTENTION CORE OPTION...
    local program=$PROGRAMS-$1/bench_train core=$2 before sampler status
    shift 2
    before=$(gpu_memory used)
    nvidia-smi --id=0 --query-gpu=memory.used --format=csv,noheader,nounits -lms 200 >"$tmp/used" &
    sampler=$!
    timeout --foreground -k 10 "$SECONDS_EACH" "$program" --attn-core "$core" "$@" 2>&1
    status=$?
    kill "$sampler" 2>/dev/null
    wait "$sampler" 2>/dev/null
    [ $status -eq 0 ] || echo "FAILED: $program --attn-core $core $*: ended with $status"
    awk -v before="$before" '$1 > most { most = $1 }
        END { printf "  memory, by nvidia-smi: %.3f GiB\n", (most - before) / 1024 }' "$tmp/used"
    return $status
}

TOTAL=$(gpu_memory total) || exit 1
failed=0
for preset in "$@"; do
    options=(--model "${preset%-uncapped}")
    cores=auto
    case $preset in
        *-uncapped)
            options+=(--attn-cap 0)
            cores="auto gemm"
            ;;
        gpt2-*) cores="auto gemm" ;;
    esac
    choose_batch "${options[@]}"
    if [ -z "$BATCH" ] || { [ "$preset" = 7.7B ] && [ "$BATCH" -lt 4 ]; }; then
        options+=(--recompute block)
        choose_batch "${options[@]}"
    fi
    if [ -z "$BATCH" ]; then
        echo "skipped: $preset does not fit into $TOTAL MiB"
        continue
    fi
    for core in ${CORES:-$cores}; do
        for attention in standard laser; do
            echo "== $preset $attention $core: ${options[*]} --batch $BATCH"
            measure $attention "$core" "${options[@]}" --batch "$BATCH" || failed=1
        done
    done
done
exit $failed
