# processes.sh: what the launchers mpirun.sh and torchrun_like.sh have in common; sourced by them.
# shellcheck shell=bash

usage() { # [REASON]: and what stands at the head of the launcher
    [ $# -eq 0 ] || printf 'error: %s\n' "$*" >&2
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

stop() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

gpus() { # PROGRAM: how many GPUs of this machine it will use, one a process; at least 1
    local count=1
    if "$1" --version 2>/dev/null | grep 'backend cuda' >/dev/null; then
        if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
            count=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
        else
            count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)
        fi
    fi
    echo $((count > 1 ? count : 1))
}

is_number() { # WORD LEAST
    [[ $1 =~ ^(0|[1-9][0-9]{0,5})$ ]] && [ "$1" -ge "$2" ]
}

cores() { # that we may use; nproc alone would tell OMP_NUM_THREADS
    env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc
}

# ---- children: they end together -----------------------------------------------------------------
GRACE=30 # seconds in which ours end by themselves when one has failed, and say why

children=()
declare -A name_of
caught="" # the first signal that came

# In a session of its own: what the terminal sends on Ctrl-C comes here alone, and once to each.
start() { # NAME COMMAND...
    local name=$1
    shift
    setsid "$@" </dev/null &
    children+=($!)
    name_of[$!]=$name
}

# The trainer takes SIGUSR1 as a wish to save and end, and so does mpirun, which hands it on; upon
# SIGTERM it kills after a second what is still saving.
on_signal() { # NAME
    local signal=TERM
    if [ -z "$caught" ]; then
        caught=$1 signal=USR1
    elif [ "$1" = USR1 ]; then
        return
    fi
    kill -s $signal "${children[@]}" 2>/dev/null || true
}

for signal in INT TERM HUP USR1; do
    # shellcheck disable=SC2064
    trap "on_signal $signal" $signal
done

end_others() { # NAME STATUS: of the first that failed
    [ -n "$killer" ] || [ ${#children[@]} -eq 0 ] || [ -n "$caught" ] || {
        [ "$2" -le 128 ] || echo "error: $1 was ended by signal $(($2 - 128))" >&2
        kill -s TERM "${children[@]}" 2>/dev/null || true
        # shellcheck disable=SC2016
        setsid bash -c 'sleep "$0"; for p in "$@"; do kill -s KILL -- "-$p"; done' $GRACE \
            "${children[@]}" </dev/null >/dev/null 2>&1 &
        killer=$!
    }
}

# Ends with exit code 0, that of the first child that failed, or 128 + the number of the signal that
# ended us.
wait_for_all() {
    local first=0 pid status left killer=""
    while [ ${#children[@]} -gt 0 ]; do
        wait -n "${children[@]}" 2>/dev/null || true # ends, too, when a signal comes
        left=()
        for pid in "${children[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then
                left+=("$pid")
                continue
            fi
            status=0
            # bash's own words on a child that was killed are not for users
            wait "$pid" 2>/dev/null || status=$?
            [ $first != 0 ] || [ $status = 0 ] || first=$status failed=${name_of[$pid]}
        done
        children=("${left[@]}")
        [ $first = 0 ] || end_others "$failed" $first
    done
    [ -z "$killer" ] || kill -- "-$killer" 2>/dev/null || true
    [ -z "$caught" ] || [ $first != $((128 + $(kill -l USR1))) ] ||
        first=$((128 + $(kill -l "$caught")))
    exit $first
}
