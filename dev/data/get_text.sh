#!/bin/sh
# get_text.sh: English text for the quick start -> DIR/text.jsonl, DIR/source (where it is from).
# In this order: the user's files (TEXT=path, directory or glob); a validation file of C4 where the
# network gives it quickly; the prose of documentation packages of Debian or Ubuntu, downloaded and
# unpacked here, not installed; documentation that is installed on this machine.
# A second call with the same TEXT does nothing. C4_URL: another place for the C4 file.
set -eu

usage="Usage: get_text.sh DIR        (TEXT=path, directory or glob: your own text instead)"
case "${1:-}" in
    --help) echo "$usage"; exit 0 ;;
    "" | -*) echo "$usage" >&2; exit 2 ;;
esac
dir=$1
text=${TEXT:-}
here=$(dirname "$0")
extract="python3 $here/extract_text.py"
c4=https://huggingface.co/datasets/allenai/c4/resolve/main/en
c4=${C4_URL:-$c4/c4-validation.00000-of-00008.json.gz}
# 20 MB of plain English prose after extraction
packages="python3-doc postgresql-doc sqlite3-doc git-doc exim4-doc-html postfix-doc bash-doc
libreoffice-help-en-us debian-policy debian-reference-en developers-reference"
enough=8000000 # bytes

say() { echo "get_text: $*"; }
size() { if [ -f "$1" ]; then wc -c <"$1"; else echo 0; fi; }
done_with() { # SOURCE...
    mv "$dir/new.jsonl" "$dir/text.jsonl"
    echo "$*" >"$dir/source"
    say "$dir/text.jsonl: $*"
    exit 0
}

from_user() {
    # unquoted on purpose: TEXT may be a glob
    # shellcheck disable=SC2086
    set -- $text
    for path in "$@"; do
        [ -r "$path" ] || { echo "get_text: TEXT: cannot read '$path'" >&2; exit 3; }
    done
    say "$($extract --raw --smallest 1 --out "$dir/new.jsonl" "$@")"
    [ -s "$dir/new.jsonl" ] || { echo "get_text: TEXT='$text': no text in it" >&2; exit 3; }
    done_with "TEXT=$text"
}

from_c4() {
    command -v curl >/dev/null || return 0
    file=$dir/c4-validation.00000.json.gz
    curl -fsSL --connect-timeout 4 --max-time 120 --speed-limit 500000 --speed-time 8 \
        -o "$file.part" "$c4" 2>/dev/null || { rm -f "$file.part"; return 0; }
    mv "$file.part" "$file"
    say "$($extract --raw --out "$dir/new.jsonl" "$file")"
    rm -f "$file"
    done_with "C4 (en, validation file 0)"
}

# Those of the packages that this release has; for one that is a name for the documentation of a
# certain version, that one too.
known_packages() {
    # shellcheck disable=SC2086
    apt-cache depends $packages 2>/dev/null |
        sed -n -e '/^[a-z0-9]/p' -e 's/^ *Depends: *\([a-z0-9.+-]*-doc[a-z0-9.-]*\)$/\1/p' |
        sort -u
}

from_packages() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 0
    if ! apt-cache show git-doc >/dev/null 2>&1; then # no package lists yet
        root=
        [ "$(id -u)" = 0 ] || root="sudo -n"
        $root apt-get update -qq >/dev/null 2>&1 || return 0
    fi
    rm -rf "$dir/packages"
    mkdir -p "$dir/packages/deb" "$dir/packages/tree"
    names=$(known_packages)
    # shellcheck disable=SC2086
    say "downloading" $names
    # one call for all; one for each where a server lacks some
    # shellcheck disable=SC2086
    (cd "$dir/packages/deb" && apt-get download -q $names >/dev/null 2>&1) ||
        for name in $names; do
            (cd "$dir/packages/deb" && apt-get download -q "$name" >/dev/null 2>&1) ||
                say "no $name"
        done
    for deb in "$dir"/packages/deb/*.deb; do
        [ -f "$deb" ] && dpkg-deb -x "$deb" "$dir/packages/tree"
    done
    # their manual pages say the same again, and groff takes longer than all the rest
    find "$dir/packages/tree" -type d -name man -prune -exec rm -rf {} +
    say "$($extract --out "$dir/new.jsonl" "$dir/packages/tree")"
    rm -rf "$dir/packages"
    [ "$(size "$dir/new.jsonl")" -ge $enough ] || return 0
    # shellcheck disable=SC2086
    done_with "prose of the packages" $names
}

from_installed() {
    [ -d /usr/share/doc ] || [ -d /usr/share/man ] || return 0
    say "taking documentation that is installed here"
    say "$($extract --max-bytes 9000000 --out "$dir/new.jsonl" /usr/share/doc /usr/share/man)"
    [ "$(size "$dir/new.jsonl")" -ge $enough ] || return 0
    done_with "prose of the documentation installed on this machine"
}

mkdir -p "$dir"
if [ -s "$dir/text.jsonl" ] && [ -s "$dir/source" ]; then
    old=$(cat "$dir/source")
    case "$old" in
        "TEXT=$text") exit 0 ;;
        TEXT=*) ;;
        *) [ -n "$text" ] || exit 0 ;;
    esac
fi
[ -z "$text" ] || from_user
from_c4
from_packages
from_installed
echo "get_text: found less than $((enough / 1000000)) MB of text: give your own with TEXT=path" >&2
exit 3
