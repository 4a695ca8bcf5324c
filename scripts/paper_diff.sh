#!/usr/bin/env bash
# The differential transformer of 2.2B with both attentions (section 4.4). Table 7 has accuracies
# of downstream tasks; this has the losses.
#
#   DATA=DIR RUNS=DIR scripts/paper_diff.sh [--OPTION...]
#
# Two runs; train_diff_2.2B.sh states what each takes. Results: RUNS/diff/
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for attention in standard laser; do arm diff_2.2B "" $attention "$@"; done
results table diff
results curves diff
