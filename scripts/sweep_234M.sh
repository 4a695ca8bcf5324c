#!/usr/bin/env bash
# The paper's search for learning rate and weight decay (Table 9): 15 runs of its 16-layer model.
# It takes what is best here for all its models, and so:
#   scripts/paper_scaling.sh --lr BEST --weight-decay BEST
#
#   ATTN=laser|standard DATA=DIR RUNS=DIR scripts/sweep_234M.sh [--OPTION...]
#
# 15 times what train_234M.sh states. STEPS=16000 and --warmup 400 take a tenth of it.
# Runs that diverge stand in the table as that. Results: RUNS/sweep-ATTN/sweep.txt
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for lr in 1e-1 1e-2 1e-3 1e-4 1e-5; do
    for decay in 1e-2 1e-1 1; do
        arm 234M "lr$lr-decay$decay" "$ATTN" --lr "$lr" --weight-decay "$decay" "$@"
    done
done
results sweep "sweep-$ATTN"
