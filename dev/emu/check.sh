#!/usr/bin/env bash
# Runs the test programs of BACKEND=emu: dev/emu/check.sh TEST_GPT...  (make check BACKEND=emu does)
# Every kernel's cases run in several orders of the threads, so that a race shows: the sanitized
# programs in one order, the others in each of ORDERS, in fp32 without the second, for types change
# no order; the first of those runs all tests. Of standard attention's programs only what differs
# from LASER's is run, for they share all other objects. Some system tests run with the trainer. As
# many at a time as there are cores; JOBS=N changes that. Prints one line for each run, more for one
# that failed. Ends with "N passed, N failed[, N skipped]"; exit code 0: all passed, 1: not.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

if [ $# -eq 0 ]; then
    echo "usage: dev/emu/check.sh TEST_GPT..." >&2
    exit 2
fi
JOBS=${JOBS:-$(nproc)}
read -r -a ORDERS <<<"${ORDERS:-forward reverse random:1}"
KERNELS=(ops: modifiers: products: attention: optim: transfers: seam: gemm: choice: emu)
# whole trainings take minutes each: in bf16, with LASER, alone
TRAININGS=("model: a batch is learned by heart" "model: recomputing"
    "precision: updates of 1e-5")
SYSTEM=("resume: stopped by" "nccl:") # whole runs of the trainer
python=build/venv/bin/python
[ -x $python ] || python=python3
export PYTHONDONTWRITEBYTECODE=1
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
passed=0 failed=0 skipped=0 failures=() runs=()

plan() { # PROGRAM: appends to runs what is run of it: order, program, options; | parts them
    local only="" skipped="" name order trainer=${1%/*}/train_gpt
    case $1 in
        *-standard/*) only="|--filter|attention:" ;;
        *) for name in "${KERNELS[@]}"; do only+="|--filter|$name"; done ;;
    esac
    if [[ $1 == *-san* ]]; then
        runs+=("random:2|$1$only")
        return
    fi
    if [[ $1 != *-bf16-*-laser/* ]]; then
        for name in "${TRAININGS[@]}"; do skipped+="|--skip|$name"; done
    fi
    case $1 in
        *-standard/*) runs+=("${ORDERS[0]}|$1$only|--filter|model:|--filter|generate:$skipped") ;;
        *) runs+=("${ORDERS[0]}|$1$skipped") ;;
    esac
    if [ -z "$skipped" ] && [ -x "$trainer" ]; then
        for name in "${SYSTEM[@]}"; do
            runs+=("${ORDERS[0]}|$python|dev/test/system.py|--jobs|1|--filter|$name|$trainer")
        done
    fi
    for order in "${ORDERS[@]:1}"; do
        [[ $1 == *-fp32-* && $order == "${ORDERS[1]}" && ${#ORDERS[@]} -gt 2 ]] ||
            runs+=("$order|$1$only")
    done
}

run() { # INDEX
    local command begin=$SECONDS
    IFS='|' read -r -a command <<<"${runs[$1]}"
    EMU_ORDER=${command[0]} "${command[@]:1}" >"$logs/$1" 2>&1 </dev/null
    echo "ended with $? after $((SECONDS - begin)) s" >>"$logs/$1"
}

report() { # INDEX
    local log=$logs/$1 last end what
    local pattern='([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?$'
    last=$(tail -n 2 "$log" | head -n 1)
    end=$(tail -n 1 "$log")
    what=${runs[$1]%%|--*}
    echo "== ${what/|/ }: ${last:0:100}, ${end#ended with * after }"
    if [[ $last =~ $pattern ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        skipped=$((skipped + ${BASH_REMATCH[4]:-0}))
        [[ $end == "ended with 0 "* ]] && return
        [ "${BASH_REMATCH[2]}" -gt 0 ] || failed=$((failed + 1))
    else
        failed=$((failed + 1))
    fi
    failures+=("EMU_ORDER=${what/|/ }")
    grep -v ' ok  *[0-9.]* s$' "$log" | tail -n 60
}

for program in "$@"; do plan "$program"; done
# those that take longest go first: sanitized, then without a filter
mapfile -t runs < <(printf '%s\n' "${runs[@]}" |
    awk '{ print (/-san/ ? 0 : /--filter/ ? 2 : 1) "|" $0 }' | sort -s -t '|' -k 1,1 | cut -c 3-)
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
