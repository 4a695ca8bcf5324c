# shellcheck shell=bash
# common.sh: what the scripts of the paper's runs share: where things lie, how a run is started, and
# what is passed over. Sourced by them; read it for what the environment can change:
#
#   ATTN=laser|standard   train_*.sh and sweep_234M.sh: the attention           (laser)
#   DATA=DIR              shards: DIR/*_train_*.bin and DIR/*_val_*.bin         (data/c4)
#   OUT=DIR               train_*.sh: the run's directory                       (runs/NAME-ATTN)
#   RUNS=DIR              sweep_*.sh, paper_*.sh: where their runs and results lie     (runs/paper)
#   STEPS=N MODEL=NAME    instead of the script's: another length (with --warmup N: 4000 is the
#                         scripts'), another preset
#   PLAN=1                or --plan: print what each run needs, and start none
#   PROCESSES=gpus|N      processes; gpus: one for each GPU, one where there is none. mpirun.sh says
#                         what else there is (HOSTS=FILE: on each of several machines)
#   LAUNCHER=COMMAND      what starts the program, in place of mpirun.sh; slurm.sbatch sets it
#
# Options behind a script's name go to the trainer and win over the script's own. The same command
# resumes what was stopped and passes over what is finished.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ATTN=${ATTN:-laser}
DATA=${DATA:-data/c4}
# runs of other lengths and models are other runs
RUNS=${RUNS:-runs/paper${MODEL:+-$MODEL}${STEPS:+-$STEPS}}
export PROCESSES=${PROCESSES:-gpus}
PLAN=${PLAN:-0}
for word in "$@"; do [ "$word" != --plan ] || PLAN=1; done

stop() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

[ "$ATTN" = laser ] || [ "$ATTN" = standard ] ||
    stop "ATTN=$ATTN is not known; choose laser or standard"

option() { # NAME WORD...: the value that the trainer will take, the last
    local name=--$1 value="" previous=""
    shift
    for word in "$@"; do
        [ "$previous" != "$name" ] || value=$word
        case $word in "$name"=*) value=${word#*=} ;; esac
        previous=$word
    done
    printf '%s\n' "$value"
}

finished() { # DIR STEPS: the checkpoint of the last step is there
    [ -e "$1/checkpoints/step_$(printf %08d "$2")/state.json" ]
}

passed_over() { # DIR COMMAND: says that the run is finished, and when it was by another command
    local before
    before=$(sed -n 's/.*"command_line": *"\([^"]*\)".*/\1/p' "$1/config.json")
    echo "$1: finished before"
    [ "$before" = "$2" ] || printf 'warning: by another command:\n  %s\n' "$before" "$2" >&2
}

diverged() { # DIR: its log ends with that event
    [ -e "$1/log.jsonl" ] && tail -n 1 "$1/log.jsonl" | grep -q '"name":"diverged"'
}

trainer() { # the program; PRECISION=fp32|bf16 builds the one of that precision where it is missing
    local path=./train_gpt_$ATTN
    if [ -n "${PRECISION:-}" ]; then
        path=$(make -s "PRECISION=$PRECISION" "ATTN=$ATTN" print_testers | tail -n 1)
        path=${path%test_gpt}train_gpt
        make -s "PRECISION=$PRECISION" "ATTN=$ATTN" "$path" >&2
    fi
    [ -x "$path" ] || stop "$path is not there: make builds it"
    printf '%s\n' "$path"
}

train() { # NAME OPTION...: one run
    local program out=${OUT:-runs/$1-$ATTN}
    program=$(trainer)
    shift
    if [ "$PLAN" != 0 ]; then exec "$program" "$@" --plan; fi
    set -- --train "$DATA/*_train_*.bin" --val "$DATA/*_val_*.bin" --out "$out" "$@"
    out=$(option out "$@")
    if finished "$out" "$(option steps "$@")"; then
        passed_over "$out" "$program $*"
        exit 0
    fi
    exec "${LAUNCHER:-scripts/mpirun.sh}" "$program" "$@"
}

arms=() # directories of the runs of a paper_*.sh, in order

arm() { # SIZE VARIANT ATTENTION OPTION...: a run of train_SIZE.sh in RUNS/SIZE[-VARIANT]-ATTENTION
    local size=$1 status=0 out=$RUNS/$1${2:+-$2}-$3 attention=$3
    shift 3
    arms+=("$out")
    echo "== $out"
    if [ "$PLAN" = 0 ] && diverged "$out"; then
        echo "diverged before; to try again, remove it"
        return
    fi
    PLAN=$PLAN ATTN=$attention OUT=$out "scripts/train_$size.sh" "$@" || status=$?
    [ "$status" = 5 ] || [ "$status" = 0 ] || exit "$status"
}

results() { # COMMAND NAME [RUN...]: a table or figure of paper.py, of all arms, into RUNS/NAME
    local python=build/venv/bin/python command=$1 name=$2
    shift 2
    [ $# -gt 0 ] || set -- "${arms[@]}"
    [ "$PLAN" = 0 ] || return 0
    [ -x $python ] || python=python3
    echo "== $RUNS/$name: $command"
    $python dev/plot/paper.py "$command" --out "$RUNS/$name" "$@"
}
