#!/bin/sh
# prepare_c4.sh: C4 (en), from the network or from files, as token shards. POSIX sh, curl and
# c4_tokenize (make tools). One C4 file after the other: download, check, tokenize, while the next
# one downloads. It may be stopped at any moment: the same command goes on, to the same bytes.
set -eu

usage() {
    cat <<'END'
Usage: prepare_c4.sh --out DIR [OPTION]...
Makes token shards of C4 (en): 1,024 files of about 320 MB (.json.gz), each about 180 M tokens;
in all 327 GB to download and about 370 GB of shards. --files 0-9 is enough for a first run.

  --out DIR           the shards: DIR/c4_00012_train_000000.bin, ...; DIR/tokenizer.model
  --files LIST        which files: 0-1023 (the default), 0,5,7-9; with --from: those that are there
  --validation[=LIST] also the validation files, 0-7 of 40 MB: DIR/c4_validation_00000_val_*.bin
  --from FOLDER       take c4-train.00000-of-01024.json.gz ... from there; no network is used
  --url BASE          download from BASE/c4-train.00000-of-01024.json.gz instead of the hub
                      (default: $HF_ENDPOINT/datasets/allenai/c4/resolve/main/en, with $HF_TOKEN)
  --delete-downloads  remove each download when its shards are there (default: DIR/downloads keeps)
  --model FILE        the vocabulary: a sentencepiece model that you have, or
  --train-vocab N     one of N pieces (32000), trained on the beginning of file 0, once
  --train-bytes N     how much of it (100000000)
  --threads N         of c4_tokenize (all cores)
  --tries N, --wait N of a download: tries that bring nothing, seconds before the second (7, 2)
  --help              this text

Stop it with Ctrl-C, or in any other way; the same command again passes over files that are done,
goes on inside the one that is not, and with a download where it stopped. Downloads are compared
with the size and SHA-256 that the hub gives.

Exit status: 0 done, 2 wrong usage, 3 bad or missing input (the network too), 4 out of space or I/O.
END
}

top=$(cd "$(dirname "$0")/.." && pwd)
tokenize=$top/build/bin/c4_tokenize
get=$top/dev/data/get_file.sh
first=c4-train.00000-of-01024.json.gz # what the vocabulary is trained on

stop() { # CODE MESSAGE
    echo "error: $2" >&2
    exit "$1"
}
say() { echo "== $*"; }

# ---- options ----------------------------------------------------------------------------------

expand() { # OPTION LIST LAST: of 0,5,7-9 one number a line, ascending, to $work/list
    echo "$2" | tr ',' '\n' | awk -F- -v last="$3" '
        !/^[0-9]+(-[0-9]+)?$/ || $1 + 0 > $NF + 0 || $NF + 0 > last { exit 1 }
        { for (i = $1 + 0; i <= $NF + 0; i++) print i }' >"$work/expanded" ||
        stop 2 "--$1 $2: expected numbers and ranges, as 0,5,7-9, up to $3."
    sort -nu "$work/expanded" >"$work/list"
}

number() { # VALUE of the option at hand
    case $1 in *[!0-9]* | ????????????*) stop 2 "$option $1: expected a whole number." ;; esac
}

out='' files='' validation='' from='' url='' model='' vocab='' train_bytes='' threads='' delete=''
tries=7 pause=2
parse() { # OPTION...: --name value or --name=value
    while [ $# -gt 0 ]; do
        option=${1%%=*}
        case $1 in
            --help) usage; exit 0 ;;
            --delete-downloads) delete=yes; shift; continue ;;
            --validation) validation=0-7; shift; continue ;;
            --*=*) value=${1#*=}; shift ;;
            --*) value=${2:-}; shift $(($# > 1 ? 2 : 1)) ;;
            *) stop 2 "$1: not an option. Try --help." ;;
        esac
        case $option in
            --out) out=$value ;;
            --files) files=$value ;;
            --validation) validation=$value ;;
            --from) from=$value ;;
            --url) url=$value ;;
            --model) model=$value ;;
            --train-vocab) number "$value"; vocab=$value ;;
            --train-bytes) number "$value"; train_bytes=$value ;;
            --threads) number "$value"; threads=$value ;;
            --tries) number "$value"; tries=$value ;;
            --wait) number "$value"; pause=$value ;;
            *) stop 2 "$option: no such option. Try --help." ;;
        esac
        [ -n "$value" ] || stop 2 "$option: its value is missing."
    done
}

check_options() {
    [ -n "$out" ] || stop 2 "--out DIR is missing. Try --help."
    [ -z "$model" ] || [ -z "$vocab$train_bytes" ] || stop 2 "give one of --model and --train-*."
    [ -z "$from" ] || [ -z "$url" ] || stop 2 "give one of --from and --url."
    [ -z "$from" ] || [ -d "$from" ] || stop 3 "--from $from: no such folder."
    [ -z "$model" ] || [ -f "$model" ] || stop 3 "--model $model: no such file."
    [ -x "$tokenize" ] || stop 2 "$tokenize is not built: run make tools."
    if [ -z "$url" ]; then
        url=${HF_ENDPOINT:-https://huggingface.co}/datasets/allenai/c4/resolve/main/en
        export GET_FILE_TOKEN="${HF_TOKEN:-}"
    fi
    mkdir -p "$out" || stop 4 "--out $out: cannot be made."
    # what an earlier call left running, should this one follow a kill, ends with its parent
    exec 9>>"$out/.prepare_c4.lock" || stop 4 "$out: cannot be written."
    ! command -v flock >/dev/null || flock -w 3 9 || stop 2 "another prepare_c4.sh, or what one \
left running, is at work on $out. Let it end, or end it."
}

# ---- what is there ----------------------------------------------------------------------------

names() { # train|validation NUMBER: sets name, path and prefix of that file
    if [ "$1" = train ]; then
        name=$(printf 'c4-train.%05d-of-01024.json.gz' "$2") prefix=$(printf 'c4_%05d' "$2")
    else
        name=$(printf 'c4-validation.%05d-of-00008.json.gz' "$2")
        prefix=$(printf 'c4_validation_%05d' "$2")
    fi
    path=${from:-$out/downloads}/$name
}

is_done() { # names' file: its manifest is there, and the shards that it names
    manifest=$out/$prefix.json
    [ -f "$manifest" ] || return 1
    [ -z "$sum" ] || grep -q "$sum" "$manifest" || stop 2 "$manifest: was made with another \
vocabulary than $used. Name another --out, or remove $out/$prefix*."
    grep -o '"file": *"[^"]*\.bin"' "$manifest" | cut -d'"' -f4 >"$work/shards"
    while read -r shard; do
        [ -f "$out/$shard" ] || stop 3 "$out/$shard: is not there, and $manifest says that it is \
done. Put it back, or remove $out/$prefix* to make it again."
    done <"$work/shards"
}

# Lines of KIND NUMBER: everything asked for in $work/all, what is left of it in $work/todo.
list_work() {
    if [ -n "$from" ] && [ -z "$files" ]; then
        find "$from/" -maxdepth 1 -name 'c4-train.?????-of-01024.json.gz' |
            sed 's,.*/c4-train\.0*\([0-9][0-9]*\)-of.*,\1,' | sort -n >"$work/list"
        [ -s "$work/list" ] || stop 3 "--from $from: has no $first or other file of C4."
    else
        expand files "${files:-0-1023}" 1023
    fi
    sed 's/^/train /' "$work/list" >"$work/all"
    if [ -n "$validation" ]; then
        expand validation "$validation" 7
        sed 's/^/validation /' "$work/list" >>"$work/all"
    fi
    sum='' used=${model:-$out/tokenizer.model}
    [ ! -f "$used" ] || sum=$(sha256sum <"$used" | cut -c-64)
    : >"$work/todo"
    while read -r kind number; do
        names "$kind" "$number"
        if is_done; then
            delete_download "$path"
        elif [ -z "$from" ] || [ -f "$path" ]; then
            echo "$kind $number" >>"$work/todo"
        else
            stop 3 "$path: is not there. Put it there, leave it out of --files, or leave --from \
out to download it."
        fi
    done <"$work/all"
    say "$out: $(wc -l <"$work/all") files of C4, $(wc -l <"$work/todo") of them to do"
}

# Files of C4 have 320 MB (validation: 40), and their shards, of 16-bit tokens, 1.15 times as much.
check_disk() {
    needed=$(while read -r kind number; do
        names "$kind" "$number"
        if [ -f "$path" ]; then echo "there $(wc -c <"$path")"; else echo "$kind"; fi
    done <"$work/todo" | awk -v few="$delete" '
        { size = $1 == "there" ? $2 / 1e6 : $1 == "train" ? 320 : 40; shards += 1.15 * size }
        $1 != "there" && (few == "" || ++held <= 2) { downloads += size }
        END { printf "%d %d", shards + 1, downloads }')
    total=$((${needed% *} + ${needed#* }))
    free=$(df -Pk "$out" | awk 'NR == 2 { printf "%d", $4 * 1024 / 1e6 }')
    say "needs about ${needed% *} MB for shards, ${needed#* } MB for downloads; $free MB are free"
    [ "$free" -ge $total ] || stop 4 "$out: $free MB are free, about $total MB are needed. Make \
room, name another --out, take fewer --files, or try --delete-downloads."
}

# ---- doing it ---------------------------------------------------------------------------------

# Children end with this shell, also where it is killed. A signal ends `wait`, and only that.
bound=''
! setpriv --pdeathsig TERM true 2>/dev/null || bound="setpriv --pdeathsig TERM"
fetching='' working=''
tidy() {
    for child in $fetching $working; do kill "$child" 2>/dev/null && wait "$child"; done || true
    rm -rf "$work"
}

work_on() { # COMMAND...
    # shellcheck disable=SC2086
    $bound "$@" &
    working=$!
    wait $working || left $?
    working=''
}

left() { # STATUS: the reason has been said
    echo "prepare_c4: stopped; the same command goes on where it is now" >&2
    exit "$1"
}

fetch_start() { # KIND NUMBER
    names "$1" "$2"
    [ ! -f "$path" ] || return 0
    mkdir -p "$out/downloads" || stop 4 "$out/downloads: cannot be made."
    # shellcheck disable=SC2086
    $bound sh "$get" --tries "$tries" --wait "$pause" "$url/$name" "$path" &
    fetching=$!
}

fetch_end() {
    [ -z "$fetching" ] || wait "$fetching" || left $?
    fetching=''
}

delete_download() { # PATH
    [ -z "$delete" ] || [ -n "$from" ] || rm -f "$1"
}

# DIR/tokenizer.model appears last; DIR/tokenizer.txt says what a trained one was trained on.
vocabulary() {
    record="${vocab:-32000} pieces, trained on ${train_bytes:-100000000} bytes of $first"
    if [ -f "$out/tokenizer.model" ]; then
        [ -z "$model" ] || cmp -s "$model" "$out/tokenizer.model" || stop 2 "--model $model: \
$out/tokenizer.model is there and is another. Name another --out, or leave --model out."
        [ -z "$vocab$train_bytes" ] || [ "$(cat "$out/tokenizer.txt" 2>&1)" = "$record" ] ||
            stop 2 "$out/tokenizer.model is there and is not of $record. Name another --out, or \
leave --train-* out."
        return
    fi
    [ -z "$model" ] || return 0
    for manifest in "$out"/c4_*[0-9].json; do
        [ ! -f "$manifest" ] || stop 3 "$out/tokenizer.model: is not there, but shards that were \
made with it are. Put it back, or name it with --model."
    done
    [ -z "$from" ] || [ -f "$from/$first" ] || stop 3 "$from/$first: is not there, and the \
vocabulary is trained on it. Put it there, or name a vocabulary with --model."
    say "vocabulary: $record"
    fetch_start train 0
    fetch_end
    rm -rf "$out/vocabulary.tmp"
    work_on "$tokenize" --train-vocab "${vocab:-32000}" --train-bytes "${train_bytes:-100000000}" \
        --vocab-only --out "$out/vocabulary.tmp/vocabulary" "$path"
    echo "$record" >"$out/tokenizer.txt" || stop 4 "$out: cannot be written."
    mv "$out/vocabulary.tmp/tokenizer.bin" "$out/vocabulary.tmp/tokenizer.model" "$out" ||
        stop 4 "$out: the vocabulary cannot be moved there."
    rm -rf "$out/vocabulary.tmp"
    grep -q "^train 0$" "$work/todo" || delete_download "$path"
}

tokenize_all() { # KIND NUMBER KIND NUMBER ...
    [ $# = 0 ] || fetch_start "$1" "$2"
    while [ $# -gt 0 ]; do
        fetch_end
        kind=$1 number=$2
        shift 2
        [ $# = 0 ] || fetch_start "$1" "$2"
        names "$kind" "$number"
        say "$name; $(($# / 2)) to go"
        work_on "$tokenize" --model "${model:-$out/tokenizer.model}" --split "${kind%idation}" \
            ${threads:+--threads "$threads"} --out "$out/$prefix" "$path"
        delete_download "$path"
    done
}

# Over all that lies in DIR, and what to do with it.
report() {
    say "$out"
    sh "$top/dev/data/totals.sh" "$out"/c4_*[0-9].json >"$work/totals" || exit 3
    cat "$work/totals"
    # one epoch, or as long as the paper trains
    steps=$(awk '$1 == "train:" { n = int($2 / 1048576) } END { print (n < 1 ? 1 : n > 160000 ? \
        160000 : n) }' "$work/totals")
    pieces=$(od -An -tu4 -j8 -N4 "$out/tokenizer.bin" | tr -d ' ')
    valid="--val '$out/c4_validation_*_val_*.bin'"
    if ! grep -q '^val:' "$work/totals"; then
        valid=''
        echo "For a validation loss, run this command once more with --validation."
    fi
    cat <<END
Next (without a GPU: --model small --batch 16 --total-batch 16384):
./train_gpt_laser --train '$out/c4_*_train_*.bin' $valid \\
    --model 301M --vocab $pieces --batch 16 --total-batch 1048576 --steps $steps --out runs/c4-laser
END
}

work=$(mktemp -d "${TMPDIR:-/tmp}/prepare_c4.XXXXXX") || exit 4
trap tidy EXIT
trap 'exit 129' HUP && trap 'exit 130' INT && trap 'exit 143' TERM
parse "$@"
check_options
list_work
check_disk
vocabulary
# shellcheck disable=SC2046
tokenize_all $(cat "$work/todo")
report
