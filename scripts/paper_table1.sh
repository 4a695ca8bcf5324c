#!/usr/bin/env bash
# Table 1, and Figures 2 and 3: test losses of the 234M, 301M and 435M models with both attentions;
# curves and gradient norms of the 301M.
#
#   DATA=DIR RUNS=DIR scripts/paper_table1.sh [--OPTION...]
#
# Six runs, one after another: train_{234M,301M,435M}.sh state what each takes, 135 h together on 8
# H100. Results: RUNS/table1/
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for size in 234M 301M 435M; do
    for attention in standard laser; do arm $size "" $attention "$@"; done
done
results table table1
results curves table1 "$RUNS/301M-standard" "$RUNS/301M-laser"
results norm table1 "$RUNS/301M-standard" "$RUNS/301M-laser"
