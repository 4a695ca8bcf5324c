#!/usr/bin/env bash
# Runs every test: dev/test/run.sh TEST_GPT...   (make check calls it, with everything built)
# First each test program, then each script in dev/test: system.py with the trainers that lie beside
# the test programs, check_tokenize.py, and the other check_*.py, each of which is one test: exit
# code 0 passed, 77 skipped, with the reason in its last line. All others end with "N passed, N
# failed[, N skipped]", and so does this. Exit code 0: all passed, 1: something failed or ended
# without that line.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

if [ $# -eq 0 ]; then
    echo "usage: dev/test/run.sh TEST_GPT..." >&2
    exit 2
fi
python=build/venv/bin/python
[ -x $python ] || python=python3
export PYTHONDONTWRITEBYTECODE=1
output=$(mktemp)
trap 'rm -f "$output"' EXIT
passed=0 failed=0 skipped=0 failures=()

fail() { # NAME WHY
    failed=$((failed + 1))
    failures+=("$1: $2")
    echo "FAILED: $1: $2"
}

count() { # NAME STATUS: adds what the last line of the output says
    local last pattern='([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?$'
    last=$(tail -n 1 "$output")
    if [[ ! $last =~ $pattern ]]; then
        fail "$1" "ended with $2 and without 'N passed, N failed'"
        return
    fi
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    skipped=$((skipped + ${BASH_REMATCH[4]:-0}))
    if [ "${BASH_REMATCH[2]}" -ne 0 ]; then
        failures+=("$1: ${BASH_REMATCH[2]} failed")
    elif [ "$2" -ne 0 ]; then
        fail "$1" "ended with $2"
    fi
}

count_one() { # NAME STATUS: a script that is one test
    case $2 in
        0) passed=$((passed + 1)) ;;
        77) skipped=$((skipped + 1)) ;;
        *) fail "$1" "ended with $2" ;;
    esac
}

part() { # COUNT NAME COMMAND...: COUNT is the function that counts
    local counter=$1 name=$2 begin=$SECONDS status
    shift 2
    echo "== $name"
    "$@" </dev/null 2>&1 | tee "$output"
    status=${PIPESTATUS[0]}
    $counter "$name" "$status"
    echo "== $name: $((SECONDS - begin)) s"
}

trainers=()
for tester in "$@"; do
    trainers+=("$(dirname "$tester")/train_gpt")
    part count "$tester" "$tester"
done
for script in dev/test/*.sh dev/test/*.py; do
    case $(basename "$script") in
        # this, and parts of system.py and check_tokenize.py
        run.sh | system_*.py | tokenize_*.py | stop_at.py) ;;
        system.py) part count "$script" $python "$script" "${trainers[@]}" ;;
        check_tokenize.py) part count "$script" $python "$script" ;;
        check_formats.py) part count_one "$script" $python "$script" "$1" ;;
        check_*.py) part count_one "$script" $python "$script" ;;
        *.sh) part count "$script" bash "$script" ;;
        *) fail "$script" "dev/test/run.sh does not know how to run it" ;;
    esac
done

[ ${#failures[@]} -eq 0 ] || printf 'FAILED: %s\n' "${failures[@]}"
echo "all of it: $SECONDS s"
echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")"
[ "$failed" -eq 0 ]
