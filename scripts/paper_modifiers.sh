#!/usr/bin/env bash
# The language models of Table 2: plain, with a scale per dimension, with a temperature; and with
# QK-normalisation, which the paper tries on other models (Tables 4 and 5). Each with both
# attentions.
#
#   DATA=DIR RUNS=DIR SIZE=2.2B TEMPERATURES="0.8 1.25" scripts/paper_modifiers.sh [--OPTION...]
#
# Ten runs; train_SIZE.sh states what each takes: SIZE=301M a seventh of 2.2B. The temperatures are
# ours: the paper tuned its own by hand and does not give it. Results: RUNS/modifiers-SIZE/
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

size=${SIZE:-2.2B}
for attention in standard laser; do
    arm "$size" "" $attention "$@"
    arm "$size" per_dim $attention --per-dim-scale "$@"
    arm "$size" qk_norm $attention --qk-norm "$@"
    for t in ${TEMPERATURES:-0.8 1.25}; do
        arm "$size" "temperature$t" $attention --temperature "$t" "$@"
    done
done
results table "modifiers-$size"
