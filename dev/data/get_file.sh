#!/bin/sh
# get_file.sh: one large file over HTTP, whole or not at all. The bytes come into FILE.part; FILE
# appears when size and hash agree with what the server says of it. A download that was interrupted
# in any way goes on where it stopped, when this is called again. Needs curl. Messages speak of the
# options of scripts/prepare_c4.sh, which calls it.
set -eu

usage() {
    cat <<'END'
Usage: get_file.sh [OPTION]... URL FILE
Downloads URL to FILE; does nothing where FILE is there. FILE.part holds what came so far.

  --tries N      tries in a row that bring nothing, before it gives up (7)
  --wait N       seconds before the second try; twice as long before each further one, to 60 (2)
  --help         this text

Checked: the size, and the SHA-256 where the server gives one, as the Hugging Face hub does (headers
X-Linked-Size and X-Linked-Etag); for *.gz of other servers, the checksums inside the file. Dropped
connections, 429 (after the Retry-After it names) and 5xx are tried again. GET_FILE_TOKEN in the
environment is sent as bearer token to the host of URL, and to no other.

Exit status: 0 FILE is there, 2 wrong usage, 3 it cannot be had, 4 it cannot be written.
END
}

stop() { # CODE MESSAGE
    echo "error: $2" >&2
    exit "$1"
}
say() { echo "get_file: $*" >&2; }
bytes_of() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }
number() { # OPTION VALUE
    case $2 in '' | *[!0-9]* | ????????*) stop 2 "--$1 $2: expected a whole number." ;; esac
}

tries=7 pause=2
while [ $# -gt 0 ]; do
    case $1 in
        --tries | --wait)
            [ $# -gt 1 ] || stop 2 "$1: a number is missing."
            number "${1#--}" "$2"
            if [ "$1" = --tries ]; then tries=$2; else pause=$2; fi
            shift ;;
        --help) usage; exit 0 ;;
        -*) stop 2 "$1: no such option. Try --help." ;;
        *) break ;;
    esac
    shift
done
[ $# = 2 ] || stop 2 "give a URL and a FILE. Try --help."
url=$1 file=$2 part=$2.part
[ ! -e "$file" ] || exit 0
command -v curl >/dev/null || stop 2 "curl is not installed: run scripts/setup.sh quickstart."

work=$(mktemp -d "${TMPDIR:-/tmp}/get_file.XXXXXX") || stop 4 "no temporary directory."
child=
tidy() {
    [ -z "$child" ] || { kill "$child" 2>/dev/null && wait "$child"; } || true
    rm -rf "$work"
}
trap tidy EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# A signal ends `wait`, but would have to wait for a command in the foreground.
in_background() { # COMMAND...: its exit status
    "$@" &
    child=$!
    status=0
    wait "$child" || status=$?
    child=
    return $status
}

header() { # NAME: its value in the first of the answers (the hub redirects) that has it
    tr -d '\r"' <"$work/headers" | awk -v name="$1:" \
        'tolower($1) == name { sub(/^[^:]*: */, ""); print; exit }'
}

transfer() { # one try; sets code (of curl), http (status of the last answer)
    : >"$work/headers"
    code=0
    # the token by a file, not by arguments, which everyone may read; redirects to other hosts are
    # followed without it. A connection that brings less than 1 kB/s for a minute counts as dropped.
    (umask 077 && printf '%s' "${GET_FILE_TOKEN:+Authorization: Bearer $GET_FILE_TOKEN}" \
        >"$work/token")
    in_background curl -sS --fail --location --max-redirs 10 --connect-timeout 30 \
        --speed-limit 1000 --speed-time 60 -H "@$work/token" -D "$work/headers" -C - -o "$part" \
        "$url" 2>"$work/errors" || code=$?
    # 000 where there was no answer
    http=$(awk '/^HTTP\// { s = $2 } END { print s ? s : "000" }' "$work/headers")
    reason=$(sed -n 's/^curl: ([0-9]*) //p' "$work/errors" | tail -n 1)
}

# Whether FILE.part is what the server has; if not, says in reason how it differs.
is_whole() {
    size=$(header x-linked-size)
    hash=$(header x-linked-etag)
    have=$(bytes_of "$part")
    # of an answer to a range: bytes 5-9/10, or bytes */10
    [ -n "$size" ] || size=$(header content-range | sed -n 's,.*/\([0-9][0-9]*\)$,\1,p')
    [ -n "$size" ] || [ "$http" != 200 ] || size=$(tr -d '\r' <"$work/headers" |
        awk '/^HTTP\// { n = "" } tolower($1) == "content-length:" { n = $2 } END { print n }')
    if [ -n "$size" ] && [ "$have" != "$size" ]; then
        reason="it has $have bytes, the server says $size"
        return 1
    fi
    case ${#hash}$hash in
        64*[!0-9a-f]*) ;;
        64*)
            in_background sha256sum "$part" >"$work/sum" || stop 4 "$part: cannot be read."
            read -r sum _ <"$work/sum"
            checked="size and SHA-256 agree"
            reason="its SHA-256 is $sum, the server says $hash"
            [ "$sum" = "$hash" ]
            return ;;
    esac
    checked="the size agrees"
    case $url in
        *.gz)
            in_background gzip -t "$part" 2>"$work/errors" ||
                { reason="it is damaged: $(head -n 1 "$work/errors")"; return 1; }
            checked="the checksum inside agrees" ;;
    esac
}

retry_after() { # seconds that the server asks for, else those given; at most 10 minutes
    asked=$(header retry-after)
    case $asked in '' | *[!0-9]* | ????????*) asked=$1 ;; esac
    if [ "$asked" -gt 600 ]; then echo 600; else echo "$asked"; fi
}

advice="Look at the network, or fetch the file on another machine and name its folder with --from."
failed=0 wrong=0 before=$(bytes_of "$part")
while :; do
    transfer
    case $code:$http in
        0:200 | 0:206 | 0:416 | 22:416)
            if is_whole; then
                mv "$part" "$file" || stop 4 "$file: cannot be written."
                say "$(basename "$file"): $(bytes_of "$file") bytes, $checked"
                exit 0
            fi
            rm -f "$part"
            wrong=$((wrong + 1))
            [ $wrong -lt 3 ] || stop 3 "$url: came $wrong times and was wrong: $reason. $advice" ;;
        23:*)
            stop 4 "$part: cannot be written: $reason. Free some space; the same command \
goes on." ;;
        33:*) rm -f "$part" ;; # this server cannot go on in the middle
        22:401 | 22:403)
            stop 3 "$url: the server refuses it (status $http). Where it wants an account, set \
HF_TOKEN; or name another server with --url." ;;
        22:404 | 22:410)
            stop 3 "$url: the server has no such file (status $http). Name a folder of it that has \
these files with --url, or files on this machine with --from." ;;
        22:408 | 22:425 | 22:429 | 22:5??) ;;
        22:*) stop 3 "$url: the server answers with status $http. $advice" ;;
        1:* | 3:* | 51:* | 58:* | 60:* | 77:*) stop 3 "$url: $reason. $advice" ;;
    esac
    now=$(bytes_of "$part")
    if [ "$now" -gt "$before" ]; then failed=0; fi
    before=$now
    failed=$((failed + 1))
    [ "$failed" -lt "$tries" ] || stop 3 "$url: $tries tries brought nothing: \
${reason:-no answer}. $now bytes are kept; the same command goes on. $advice"
    seconds=$pause
    i=1
    while [ $i -lt "$failed" ] && [ "$seconds" -lt 60 ]; do
        seconds=$((seconds * 2)) i=$((i + 1))
    done
    [ "$seconds" -le 60 ] || seconds=60
    seconds=$(retry_after "$seconds")
    say "$(basename "$file"): ${reason:-no answer}; again in $seconds s, from byte $now"
    in_background sleep "$seconds" || true
done
