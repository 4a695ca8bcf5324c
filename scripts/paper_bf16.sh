#!/usr/bin/env bash
# Table 11: the 2.2B model in fp32 and in bf16, with both attentions.
#
#   DATA=DIR RUNS=DIR SIZE=2.2B scripts/paper_bf16.sh [--OPTION...]
#
# Four runs; train_2.2B.sh states what one in bf16 takes; in fp32 it is 70 GiB a GPU, and more time.
# Precision is chosen when a trainer is built, and each is built here where it is missing. On GPUs
# fp32 multiplies in TF32 (ours: the paper's TPUs round what they multiply as well unless asked not
# to). PRECISIONS=fp32: that alone, which is all that a CPU has. Results: RUNS/table11/
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for precision in ${PRECISIONS:-fp32 bf16}; do
    for attention in standard laser; do
        PRECISION=$precision arm "${SIZE:-2.2B}" "$precision" $attention --tf32 "$@"
    done
done
results table table11
