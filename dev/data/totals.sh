#!/bin/sh
# totals.sh: what the manifests (dataloader/FORMAT.md) of token shards add up to, a line for each
# split:  totals.sh MANIFEST...     ->  train: 12 tokens of 48 bytes in 2 documents
# Reads the numbers in the order in which the manifests have them. Exit code 3: one is not a
# manifest.
set -eu

numbers=$(for manifest in "$@"; do
    for split in train val; do
        # documents, tokens, bytes
        found=$(tr -d '\n' <"$manifest" | sed -n 's/.*"'$split'": *{ *"documents": *\([0-9]*\),'\
' *"tokens": *\([0-9]*\), *"bytes": *\([0-9]*\).*/\1 \2 \3/p')
        if [ -z "$found" ]; then
            echo "error: $manifest: is not a manifest of token shards. Remove it." >&2
            exit 3
        fi
        echo "$split $found"
    done
done)
echo "$numbers" | awk '
    { documents[$1] += $2; tokens[$1] += $3; bytes[$1] += $4 }
    function say(part) {
        if (tokens[part])
            printf "%s: %.0f tokens of %.0f bytes in %.0f documents\n", part, tokens[part],
                bytes[part], documents[part]
    }
    END { say("train"); say("val") }'
