#!/usr/bin/env bash
# What several processes cost, and gain, on a CPU; make bench-processes calls it:
#   processes.sh PROGRAM                (a train_gpt that is built with MPI=1)
# Trains the same model on the same tokens a step in turn, each time anew: as 1 process with all
# threads, by hand and under mpirun (what the layer costs where there is nothing to send), and as
# PROCESSES of fewer threads each (what sending costs). Prints the median time of a step, tokens/s,
# ratios as medians over the rounds, and the share of steps that the main thread of rank 0 is within
# MPI, waiting for others included.
#     PROCESSES=2         each bound to its share of the cores
#     ROUNDS=5 STEPS=12   the first 3 steps of each count for nothing
#     SEQUENCES=8 SEQ_LEN=128   a step
#     MODEL="..."         options of the trainer; DATA="*.bin": shards of its vocabulary
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ $# -ne 1 ] || [ ! -x "$1" ]; then
    echo "usage: dev/bench/processes.sh PROGRAM (build/CONFIG-laser/train_gpt)" >&2
    exit 2
fi
PROGRAM=$1
PROCESSES=${PROCESSES:-2}
ROUNDS=${ROUNDS:-5}
STEPS=${STEPS:-12}
SEQUENCES=${SEQUENCES:-8}
SEQ_LEN=${SEQ_LEN:-128}
MODEL=${MODEL:---model small --vocab 8192}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

TMP=$(mktemp -d)
trap 'rm -rf "$TMP"' EXIT
threads=$(nproc)
if [ $((threads % PROCESSES)) != 0 ] || [ $((SEQUENCES % PROCESSES)) != 0 ]; then
    echo "error: $PROCESSES processes cannot share $threads cores and $SEQUENCES sequences" >&2
    exit 2
fi
ldd "$PROGRAM" | grep libmpi >/dev/null || {
    echo "error: $PROGRAM is built with MPI=0" >&2
    exit 2
}

# tokens do not matter to the time of a step: 0 ... of a vocabulary that every model has
shards() {
    python3 - "$1" <<'END'
import array, sys
tokens = array.array("H", [(i * 7919) % 256 for i in range(1 << 18)])
with open(sys.argv[1], "wb") as f:
    f.write(array.array("i", [20240520, 1, len(tokens)] + 253 * [0]).tobytes() + tokens.tobytes())
END
}
DATA=${DATA:-$TMP/tokens.bin}
[ -n "${DATA##"$TMP"/*}" ] || shards "$DATA"
timer=$TMP/mpi_time.so
mpicc -shared -fPIC -O1 -o "$timer" dev/bench/mpi_time.c

train() { # ARM ROUND BATCH THREADS WORDS...: samples of an arm; words before the program
    local arm=$1 round=$2 batch=$3 count=$4 out=$TMP/run
    shift 4
    rm -rf "$out"
    # shellcheck disable=SC2086
    "$@" "$PROGRAM" $MODEL --seq-len "$SEQ_LEN" --batch "$batch" \
        --total-batch $((SEQUENCES * SEQ_LEN)) --threads "$count" --steps "$STEPS" --warmup 1 \
        --val-every 0 --save-every 0 --train "$DATA" --out "$out" --quiet >"$TMP/said" 2>&1 || {
        echo "error: $arm ended badly:" >&2
        cat "$TMP/said" >&2
        exit 1
    }
    sed -n 's/.*"kind":"train","step":\([0-9]*\),.*"step_ms":\([0-9.e+-]*\).*/\1 \2/p' \
        "$out/log.jsonl" | awk '$1 > 3 { print $2 }' | sort -g >"$TMP/steps"
    awk -v round="$round" -v arm="$arm" '{ x[NR] = $1 }
        END { print round, arm, NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2 }' \
        "$TMP/steps" >>"$TMP/samples"
    awk -v round="$round" -v arm="$arm" '$1 == "comm" { print round, arm, 100 * $2 }' \
        "$TMP/said" >>"$TMP/shares"
}

measure() {
    local round split=$((threads / PROCESSES)) each=$((SEQUENCES / PROCESSES)) arms arm
    local one=(mpirun -np 1 --bind-to none)
    local several=(env HOSTS= BIND= "PROCESSES=$PROCESSES" scripts/mpirun.sh
        env "LD_PRELOAD=$timer")
    [ "$(id -u)" != 0 ] || one+=(--allow-run-as-root)
    : >"$TMP/samples"
    : >"$TMP/shares"
    for ((round = 1; round <= ROUNDS; round++)); do
        arms=(hand mpirun several)
        [ $((round % 2)) = 1 ] || arms=(several mpirun hand)
        for arm in "${arms[@]}"; do
            case $arm in
                hand) train hand "$round" "$SEQUENCES" "$threads" ;;
                mpirun) train mpirun "$round" "$SEQUENCES" "$threads" "${one[@]}" ;;
                several) train several "$round" "$each" "$split" "${several[@]}" ;;
            esac
        done
    done
}

echo "laser.c $(git describe --always --dirty 2>/dev/null || echo unknown), $PROGRAM"
echo "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $threads cores, load before:" \
    "$(cut -d' ' -f1 /proc/loadavg)"
echo "$MODEL, $SEQUENCES x $SEQ_LEN tokens a step; $(date -u '+%Y-%m-%d %H:%M UTC')"
measure
awk -v tokens=$((SEQUENCES * SEQ_LEN)) -v processes="$PROCESSES" -v threads="$threads" \
    -v shares="$TMP/shares" -f dev/bench/processes.awk "$TMP/samples"
