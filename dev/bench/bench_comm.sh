#!/bin/sh
# bench_comm.sh: the collectives of all GPUs of this machine, right and how fast:
#   dev/bench/bench_comm.sh BENCH_COMM [MIB]     (make bench-comm builds it, with MPI=0 NCCL=1)
# Starts a process a GPU, by the variables that torchrun sets. With fewer than two GPUs it says so.
# Exit code: the worst of the processes'.
set -u
[ $# -ge 1 ] || { echo "usage: dev/bench/bench_comm.sh BENCH_COMM [MIB]" >&2; exit 2; }
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
if [ "$gpus" -lt 2 ]; then
    echo "bench-comm needs two GPUs or more, nvidia-smi -L lists $gpus"
    exit 0
fi
nvidia-smi topo -m
export WORLD_SIZE="$gpus" LOCAL_WORLD_SIZE="$gpus" MASTER_ADDR=127.0.0.1 MASTER_PORT=29400
pids="" worst=0 rank=0
while [ "$rank" -lt "$gpus" ]; do
    RANK=$rank LOCAL_RANK=$rank "$@" &
    pids="$pids $!" rank=$((rank + 1))
done
for pid in $pids; do
    wait "$pid" || worst=$?
done
exit "$worst"
