#!/usr/bin/env bash
# laptop.sh: the paper's comparisons at the size of a laptop: standard attention against LASER,
# plain and with each modifier, with AdamW and LAMB, on text and on a recall task.
#
#   scripts/laptop.sh [--seeds N] [--arms plain,diff] [--jobs N] [--steps N]
#
# About 150 runs and, measured, 138 minutes of one core; the same command goes on after a stop.
# TEXT=path: your own text.
# Runs, results.md and losses.json: RUNS (runs/laptop)
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs/laptop}
DATA=${DATA:-data/laptop}

scripts/setup.sh build quickstart
make --no-print-directory all tools
dev/data/get_text.sh "$DATA/text"
build/bin/c4_tokenize --train-vocab 2048 --train-bytes 4000000 --out "$DATA/shards" \
    --val-fraction 0.02 "$DATA/text/text.jsonl"
[ -s "$DATA/recall/recall_val_000000.bin" ] || build/venv/bin/python dev/data/make_recall.py \
    --out "$DATA/recall" --seq-len 64 --pairs 4 --keys 32 --values 32 --train 40000
build/venv/bin/python dev/plot/laptop.py --out "$RUNS" --data text="$DATA" \
    --data recall="$DATA/recall" "$@"
