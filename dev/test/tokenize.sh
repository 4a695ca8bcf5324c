#!/bin/sh
# tokenize.sh: c4_tokenize and shard_tool from the outside: ugly input, exit codes, and text ->
# shards -> text without a changed byte.    dev/test/tokenize.sh [DIRECTORY OF THE TOOLS]
# what eval gets is meant to be expanded there
# shellcheck disable=SC2016
set -u
top=$(cd "$(dirname "$0")/../.." && pwd)
bin=$(cd "${1:-build/bin}" && pwd) || exit 2
work=$(mktemp -d "${TMPDIR:-/tmp}/tokenize.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2
passed=0 failed=0

ok() { # DESCRIPTION COMMAND...
    what=$1
    shift
    if "$@" >out 2>err; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $what"
        sed 's/^/    /' out err | head -20
    fi
}
ends() { # CODE PATTERN-ON-STDERR COMMAND...
    code=$1 pattern=$2
    shift 2
    "$@" >ends.out 2>ends.err
    got=$?
    [ $got = "$code" ] && grep -q -e "$pattern" ends.err && return 0
    echo "exit code $got, want $code with '$pattern'"
    cat ends.err
    return 1
}
tokenize() { "$bin/c4_tokenize" --out "$1" --model voc/tokenizer.model "$2" >/dev/null; }
text_of() { "$bin/shard_tool" cat "$1"; }
# TEXT goes through the shards unchanged. $1: file, $2: what must come out (default: the same)
survives() {
    rm -rf t && tokenize t/x "$1" && text_of t/x_train_000000.bin >t/back &&
        "$bin/shard_tool" verify t/x_train_000000.bin >/dev/null && cmp t/back "${2:-$1}"
}

# ---- a vocabulary, the same each time ----------------------------------------------------------
cat "$top"/dataloader/*.[ch] >plain.txt
train() { "$bin/c4_tokenize" --train-vocab 500 --vocab-only --out "$1/x" plain.txt; }
ok "trains a vocabulary" train voc
ok "trains the same vocabulary again" eval \
    'train again && cmp voc/tokenizer.model again/tokenizer.model'
ok "exports the same tokenizer.bin" cmp voc/tokenizer.bin again/tokenizer.bin

# ---- round trips: \f ends a document -----------------------------------------------------------
printf '\f' >ff
cat plain.txt ff >plain.ff
ok "text comes back" survives plain.txt plain.ff
printf ' two  spaces \n\n\n\ttab\r\nend ' >spaces.txt
cat spaces.txt ff >spaces.ff
ok "spaces, tabs and newlines come back" survives spaces.txt spaces.ff
printf 'caf\303\251 \346\227\245\346\234\254 \360\237\230\200 \001\177 </s> <unk> <0x41>' >utf8.txt
cat utf8.txt ff >utf8.ff
ok "any Unicode comes back" survives utf8.txt utf8.ff
printf 'one\ntwo\f\f \n\fthree\f' >three.txt
printf 'one\ntwo\fthree\f' >three.ff
ok "form feeds separate documents, empty ones are left out" survives three.txt three.ff
ok "documents are counted" eval \
    '"$bin/shard_tool" info t/x_train_000000.bin | grep -q " 2 documents"'
printf 'a\000b \200\377 c' >bytes.txt
printf 'a\000b \357\277\275\357\277\275 c\f' >bytes.ff
ok "invalid UTF-8 becomes U+FFFD, NUL bytes in text stay" survives bytes.txt bytes.ff

# ---- JSON lines --------------------------------------------------------------------------------
cat >ugly.jsonl <<'END'
{"text": "line\nbreak\ttab \"quoted\" back\\slash \/ \u00e9 \ud83d\ude00", "url": "x"}
{"text": ""}
{"text": " \n "}

not json
{"text": 7}
{"url": "no text"}
{"text": "cut short
{"text": "NUL \u0000 and not: \\u0000"}
{"text": "half \ud83d surrogate"}
{"text": "two"} {"text": "on a line"}
{"text": "last, without a newline"}
END
printf '%s' "$(cat ugly.jsonl)" >ugly_end.jsonl
printf 'line\nbreak\ttab "quoted" back\\slash / \303\251 \360\237\230\200\f' >ugly.ff
printf 'NUL \357\277\275 and not: \\u0000\f' >>ugly.ff
printf 'last, without a newline\f' >>ugly.ff
ok "escapes, surrogate pairs; bad lines are left out" survives ugly_end.jsonl ugly.ff
rm -rf t
ok "bad lines are named" ends 0 \
    'ugly.jsonl: line 5 (byte 1[0-9]*) is not JSON' tokenize t/x ugly.jsonl
rm -rf t
ok "no text field is named" ends 0 \
    'line 7 (byte [0-9]*) has no string under "text"' tokenize t/x ugly.jsonl
ok "bad lines are counted" grep -q '"bad_lines": 6' t/x.json
ok "empty documents are counted" grep -q '"empty": 2' t/x.json
gzip -c ugly.jsonl >ugly.json.gz
ok "gzip'd JSON gives the same" survives ugly.json.gz ugly.ff

# ---- damaged and missing input -----------------------------------------------------------------
gzip -c plain.txt >whole.txt.gz
head -c 500 whole.txt.gz >cut.txt.gz
rm -rf t
ok "a truncated gzip file is refused" ends 3 \
    'cut.txt.gz: byte [0-9]* ' tokenize t/x cut.txt.gz
ok "and leaves no shard" eval '! ls t/x_train_*.bin 2>/dev/null'
{ head -c 300 whole.txt.gz; printf XXXX; tail -c +305 whole.txt.gz; } >flipped.txt.gz
ok "a damaged gzip file is refused" ends 3 'flipped.txt.gz: byte ' tokenize t/x flipped.txt.gz
: >empty.txt
ok "no document at all is refused" ends 3 'no document' tokenize t/x empty.txt
ok "a missing file is refused" ends 3 'none.txt' tokenize t/x none.txt
ok "a foreign model is refused" ends 3 'is not a sentencepiece model' \
    "$bin/c4_tokenize" --model plain.txt --out t/x plain.txt
ok "too small a vocabulary for the text is refused" ends 3 'cannot train the vocabulary' \
    "$bin/c4_tokenize" --train-vocab 300 --out t/x plain.txt
ok "little text makes a smaller vocabulary" ends 0 'asked for 30000' \
    "$bin/c4_tokenize" --train-vocab 30000 --vocab-only --out small/x plain.txt
ok "an unknown option is refused" ends 2 'frobnicate' "$bin/c4_tokenize" --frobnicate
ok "a count out of range is refused" ends 2 'shard-tokens' \
    "$bin/c4_tokenize" --model voc/tokenizer.model --out t/x --shard-tokens 0 plain.txt

# ---- shards, splits, earlier runs --------------------------------------------------------------
i=0
while [ $i -lt 200 ]; do
    printf '{"text": "document %d of two hundred"}\n' $i
    i=$((i + 1))
done >many.jsonl
split() { "$bin/c4_tokenize" --model voc/tokenizer.model --out "$1/m" --shard-tokens 1000 \
    --val-fraction 0.1 many.jsonl; }
ok "splits into shards" split s1
ok "the same again" eval 'split s2 && for f in s1/*; do cmp $f s2/${f#s1/} || exit 1; done'
ok "all shards but the last are full" eval \
    '[ "$("$bin/shard_tool" info s1/m_train_*.bin | grep -c ": 1000 tokens")" = \
       $(($(ls s1/m_train_*.bin | wc -l) - 1)) ]'
ok "no document is lost or doubled" eval \
    'cat s1/m_train_*.bin >/dev/null; for s in train val; do
         "$bin/shard_tool" cat s1/m_${s}_*.bin; done | tr "\f" "\n" | sort >got
     sed "s/.*\": \"\(.*\)\"}/\1/" many.jsonl | sort >want; cmp got want'
ok "earlier shards are not mixed with new ones" ends 2 'earlier run' split s1
ok "--val-docs takes the first" eval '"$bin/c4_tokenize" --model voc/tokenizer.model --out s3/m \
    --val-docs 2 many.jsonl && [ "$("$bin/shard_tool" cat s3/m_val_000000.bin | tr "\f" "\n")" = \
    "document 0 of two hundred
document 1 of two hundred" ]'
ok "--separator none writes no end of document" eval '"$bin/c4_tokenize" --separator none \
    --model voc/tokenizer.model --out s4/m three.txt &&
    [ "$("$bin/shard_tool" cat s4/m_train_000000.bin)" = "one
twothree" ]'

ok "a split that leaves nothing for validation is said" ends 0 'no document for validation' \
    "$bin/c4_tokenize" --model voc/tokenizer.model --out s5/m --val-fraction 0.001 three.txt

# ---- shard_tool --------------------------------------------------------------------------------
cp s3/m_train_000000.bin hurt.bin
printf '\001' | dd of=hurt.bin bs=1 seek=2000 conv=notrunc 2>/dev/null
ok "verify finds a changed byte" ends 3 'hurt.bin: byte 1024: checksum' \
    "$bin/shard_tool" verify hurt.bin
ok "cat needs the right vocabulary" ends 3 'tokenizer.bin' "$bin/shard_tool" cat hurt.bin
ok "count agrees with the summary" eval \
    '"$bin/shard_tool" count s3/m_train_*.bin | grep -q " 198 documents"'
ok "no arguments is wrong usage" ends 2 'command' "$bin/shard_tool"

echo "tokenize: $passed passed, $failed failed"
[ $failed = 0 ]
