#!/usr/bin/env bash
# Figure 4, and Figures 5 and 6: test loss against parameters with its power law, from 234M to 2.2B;
# curves of the 1.1B and 2.2B models; spikes early in training.
#
#   DATA=DIR RUNS=DIR SIZES="234M 301M 435M 1.1B 2.2B" scripts/paper_scaling.sh [--OPTION...]
#
# Ten runs, smallest first, those of paper_table1.sh among them: 516 h together on 8 H100, as
# train_SIZE.sh states for each. Results: RUNS/scaling/
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for size in ${SIZES:-234M 301M 435M 1.1B 2.2B}; do
    for attention in standard laser; do arm "$size" "" $attention "$@"; done
done
results table scaling
results scaling scaling
results curves scaling
results spikes scaling
