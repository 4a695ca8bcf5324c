#!/usr/bin/env bash
# The paper's experiment on numerical error (its appendix A.5) at the size of a laptop; make
# bench-numerics calls it:
#   numerics.sh PROGRAMS [bench_numerics option...]
# PROGRAMS-laser and PROGRAMS-standard are folders with train_gpt and bench_numerics. Trains a small
# model of the paper's shape of attention (8 heads of 256, 1024 tokens) with each attention, and
# prints the error of attention's output in bfloat16 over validation text, after one step and at
# the end.
#     DATA=data/laptop    shards, as the first commands of scripts/laptop.sh make them
#     RUNS=runs/numerics  keeps the models: the same command goes on after a stop
#     STEPS=100           some minutes for each attention on 2 cores
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ $# -lt 1 ] || [ ! -x "$1-laser/bench_numerics" ] || [ ! -x "$1-standard/bench_numerics" ]; then
    echo "usage: numerics.sh PROGRAMS [OPTION...] (with PROGRAMS-laser/bench_numerics)" >&2
    exit 2
fi
PROGRAMS=$1
shift
DATA=${DATA:-data/laptop}
RUNS=${RUNS:-runs/numerics}
STEPS=${STEPS:-100}
if ! compgen -G "$DATA/shards_train_*.bin" >/dev/null; then
    echo "error: no shards_train_*.bin in $DATA: name their directory by DATA=, or make them by" \
        "the first commands of scripts/laptop.sh" >&2
    exit 3
fi

train() { # ATTENTION NAME [OPTION...]
    "$PROGRAMS-$1/train_gpt" --train "$DATA/shards_train_*.bin" --val "$DATA/shards_val_*.bin" \
        --layers 2 --d-model 128 --d-ff 256 --heads 8 --head-dim 256 --seq-len 1024 --batch 1 \
        --steps "$STEPS" --warmup 20 --lr 2e-3 --val-every 0 --val-tokens 16384 --save-every 50 \
        --out "$RUNS/$2" "${@:3}"
}

for attention in standard laser; do
    [ -e "$RUNS/$attention-start/checkpoints" ] || train $attention $attention-start --stop-after 1
    train $attention $attention
done
for run in standard-start standard laser-start laser; do
    printf '\n== %s\n' "$run"
    "$PROGRAMS-${run%-start}/bench_numerics" "$RUNS/$run" "$DATA/shards_val_*.bin" "$@" 2>&1
done
