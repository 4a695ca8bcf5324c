#!/usr/bin/env bash
# quickstart.sh: from nothing to two loss curves in a few minutes: text, vocabulary, shards, a small
# transformer with each attention from the same weights on the same batches, and the comparison.
# Called by `make quickstart`, which has built the programs. A second call redoes nothing that is
# done. TEXT=path, directory or glob: your own text, kept apart from other runs.
set -eu
cd "$(dirname "$0")/.."

# Sizes. Text and model fit each other and a few minutes on two cores; change them as you like: runs
# that were trained with other sizes are not continued but refused, so name another RUNS as well.
VOCAB=${VOCAB:-4096}             # pieces of the vocabulary
TRAIN_BYTES=${TRAIN_BYTES:-4000000} # text to train the vocabulary on
MODEL=${MODEL:-tiny}
SEQ_LEN=${SEQ_LEN:-128}
BATCH=${BATCH:-8}               # sequences a step
STEPS=${STEPS:-2500}
LR=${LR:-8e-3}
WARMUP=${WARMUP:-100}
SEED=${SEED:-1}

tag=quickstart
[ -z "${TEXT:-}" ] || tag=quickstart-$(printf %s "$TEXT" | cksum | cut -d' ' -f1)
DATA=${DATA:-data/$tag}
RUNS=${RUNS:-runs/$tag}

# threads that wait in a loop bring everything to a crawl where other programs run too
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

step() { printf '\n== %s\n' "$*"; }

scripts/setup.sh build quickstart

step "text: $DATA/text"
dev/data/get_text.sh "$DATA/text"
cat "$DATA/text/source"

step "vocabulary and shards: $DATA"
if [ ! -s "$DATA/shards.json" ]; then # written last
    documents=$(wc -l <"$DATA/text/text.jsonl") # shuffled: the first are as good as any
    build/bin/c4_tokenize --train-vocab "$VOCAB" --train-bytes "$TRAIN_BYTES" --out "$DATA/shards" \
        --val-docs $((documents / 50 + 1)) --force "$DATA/text/text.jsonl"
fi
build/bin/shard_tool count "$DATA"/shards_train_*.bin

for attention in standard laser; do
    step "training with $attention attention: $RUNS-$attention"
    "./train_gpt_$attention" --model "$MODEL" --seq-len "$SEQ_LEN" --batch "$BATCH" \
        --steps "$STEPS" --lr "$LR" --warmup "$WARMUP" --seed "$SEED" \
        --train "$DATA/shards_train_*.bin" --val "$DATA/shards_val_*.bin" \
        --val-every 250 --val-tokens 20480 --save-every 500 --sample-every 1250 \
        --out "$RUNS-$attention"
done

step "comparison"
page=$RUNS-compare/index.html
if [ "$page" -nt "$RUNS-standard/log.jsonl" ] && [ "$page" -nt "$RUNS-laser/log.jsonl" ]; then
    echo "already made: $page"
else
    scripts/compare.sh --out "$RUNS-compare" "$RUNS-standard" "$RUNS-laser"
fi
