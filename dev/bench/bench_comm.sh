#!/bin/sh
# bench_comm.sh: the collectives of all GPUs of this machine, right and how fast:
#   dev/bench/bench_comm.sh BENCH_COMM [MIB]     (make bench-comm builds it, with MPI=0 NCCL=1)
# Starts a process a GPU, by the variables that torchrun sets. With one GPU, two processes share it,
# where NCCL is new enough: whether they are right can then be seen, and not how fast they are.
# Exit code: the worst of the processes'; 77: nothing could be tried.
set -u
[ $# -ge 1 ] || { echo "usage: dev/bench/bench_comm.sh BENCH_COMM [MIB]" >&2; exit 2; }
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
# where the library that the build had is not here: NVIDIA's Python packages
if ldd "$1" | grep -q 'not found'; then
    site=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    for folder in "$site"/nvidia/*/lib; do LD_LIBRARY_PATH=$folder:${LD_LIBRARY_PATH:-}; done
    export LD_LIBRARY_PATH
fi
count=$gpus
case $gpus in
    0)
        echo "skipped: bench-comm needs two GPUs or more, nvidia-smi -L lists none"
        exit 77
        ;;
    1)
        echo "one GPU: two processes share it, nothing is measured; NCCL 2.30 or newer can that"
        export NCCL_MULTI_RANK_GPU_ENABLE=1
        count=2
        set -- "$1" --check --share-gpu 64
        ;;
    *) nvidia-smi topo -m ;;
esac
export WORLD_SIZE="$count" LOCAL_WORLD_SIZE="$count" MASTER_ADDR=127.0.0.1 MASTER_PORT=29400
pids="" worst=0 rank=0
while [ "$rank" -lt "$count" ]; do
    RANK=$rank LOCAL_RANK=$rank "$@" &
    pids="$pids $!" rank=$((rank + 1))
done
for pid in $pids; do
    wait "$pid" || worst=$?
done
exit "$worst"
