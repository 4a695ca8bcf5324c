#!/usr/bin/env bash
# Section 4.1's ablation with LAMB: the 301M model with both attentions, its updates scaled to the
# weights, so that larger gradients alone cannot help.
#
#   DATA=DIR RUNS=DIR SIZE=301M scripts/paper_lamb.sh [--OPTION...]
#
# Two runs; train_301M.sh states what each takes. Results: RUNS/lamb/
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# ours, all of it: the paper names the optimizer alone. A rate is a share of a tensor's norm here.
flags=(--optimizer lamb --lr 5e-3 --weight-decay 0.01 --eps 1e-6 --update-clip 0)
for attention in standard laser; do
    arm "${SIZE:-301M}" lamb $attention "${flags[@]}" "$@"
done
results table lamb
results curves lamb
results norm lamb
