#!/usr/bin/env bash
# The paper's experiment on numerical error (its appendix A.5) at the size of a laptop; make
# bench-numerics calls it:
#   numerics.sh PROGRAMS [bench_numerics option...]
# PROGRAMS-laser and PROGRAMS-standard are folders with train_gpt and bench_numerics. Trains a small
# model of the paper's shape of attention (8 heads of 256, 1024 tokens) with each attention, and
# prints the error of attention's output in bfloat16 over validation text.
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

for attention in standard laser; do
    "$PROGRAMS-$attention/train_gpt" --train "$DATA/shards_train_*.bin" \
        --val "$DATA/shards_val_*.bin" --layers 2 --d-model 128 --d-ff 256 --heads 8 \
        --head-dim 256 --seq-len 1024 --batch 1 --steps "$STEPS" --warmup 20 --lr 2e-3 \
        --val-every 0 --val-tokens 16384 --save-every 50 --out "$RUNS/$attention"
done
for attention in standard laser; do
    printf '\n== trained with %s attention\n' "$attention"
    "$PROGRAMS-$attention/bench_numerics" "$RUNS/$attention" "$DATA/shards_val_*.bin" "$@"
done
