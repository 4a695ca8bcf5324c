#!/usr/bin/env bash
# Runs the test programs of BACKEND=emu: dev/emu/check.sh TEST_GPT...  (make check BACKEND=emu does)
# Every kernel's cases run in several orders of the threads, so that a race shows: the sanitized
# programs in one order, the others in each of ORDERS; the first of those also runs what knows no
# kernel. Of standard attention's programs only what differs from LASER's is run: they share all
# other objects. As many at a time as there are cores; JOBS=N changes that. Prints one line for each
# run, more for one that failed. Ends with "N passed, N failed[, N skipped]"; exit code 0: all
# passed, 1: not.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

if [ $# -eq 0 ]; then
    echo "usage: dev/emu/check.sh TEST_GPT..." >&2
    exit 2
fi
JOBS=${JOBS:-$(nproc)}
read -r -a ORDERS <<<"${ORDERS:-forward reverse random:1}"
KERNELS=(ops: products: attention: optim: model: precision: transfers: start: gemm: choose: emu)
OF_ATTENTION=(attention: model: choose:)
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
passed=0 failed=0 skipped=0 failures=() runs=()

filters() { # NAME...: as arguments
    local name
    for name in "$@"; do printf ' --filter %s' "$name"; done
}

plan() { # PROGRAM: appends to runs what is run of it
    local kernels order
    kernels=$(filters "${KERNELS[@]}")
    case $1 in *-standard/*) kernels=$(filters "${OF_ATTENTION[@]}") ;; esac
    case $1 in
        *-san1-*) runs+=("random:2 $1$kernels") ;;
        *-standard/*) for order in "${ORDERS[@]}"; do runs+=("$order $1$kernels"); done ;;
        *)
            runs+=("${ORDERS[0]} $1")
            for order in "${ORDERS[@]:1}"; do runs+=("$order $1$kernels"); done
            ;;
    esac
}

run() { # INDEX
    local order program begin=$SECONDS
    read -r order program <<<"${runs[$1]}"
    # shellcheck disable=SC2086
    EMU_ORDER=$order $program >"$logs/$1" 2>&1 </dev/null
    echo "ended with $? after $((SECONDS - begin)) s" >>"$logs/$1"
}

report() { # INDEX
    local log=$logs/$1 last end pattern='([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?$'
    last=$(tail -n 2 "$log" | head -n 1)
    end=$(tail -n 1 "$log")
    echo "== ${runs[$1]%% --*}: ${last:0:100}, ${end#ended with * after }"
    if [[ $last =~ $pattern ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        skipped=$((skipped + ${BASH_REMATCH[4]:-0}))
        [[ $end == "ended with 0 "* ]] && return
        [ "${BASH_REMATCH[2]}" -gt 0 ] || failed=$((failed + 1))
    else
        failed=$((failed + 1))
    fi
    failures+=("EMU_ORDER=${runs[$1]}")
    grep -v ' ok  *[0-9.]* s$' "$log" | tail -n 60
}

for program in "$@"; do plan "$program"; done
# the sanitized ones take longest: they go first
mapfile -t runs < <(printf '%s\n' "${runs[@]}" | sort -t ' ' -k 2,2 -s |
    awk '/-san1-/ { print; next } { rest = rest $0 "\n" } END { printf "%s", rest }')
for i in "${!runs[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
    run "$i" &
done
wait
for i in "${!runs[@]}"; do report "$i"; done

[ ${#failures[@]} -eq 0 ] || printf 'FAILED: %s\n' "${failures[@]}"
echo "all of it: $SECONDS s"
echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")"
[ "$failed" -eq 0 ]
