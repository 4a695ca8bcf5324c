#!/usr/bin/env bash
# torchrun_like.sh: a program as several processes that find each other by variables of the
# environment, as torchrun sets them: for builds with NCCL=1 MPI=0. On this machine, or on several,
# where the same command is started on each, with another --node-rank:
#
#   scripts/torchrun_like.sh [OPTION...] PROGRAM [ITS OPTION...]
#
#   --nproc-per-node N|gpu   gpu (default): one for each GPU of this machine
#   --nnodes N               machines (1)
#   --node-rank N            which of them this is: 0 ... (0)
#   --master-addr ADDRESS    of machine 0, as the others reach it (127.0.0.1; needed with several)
#   --master-port PORT       on it (one that is free; 29500 with several machines)
#
# Each gets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, and an equal
# share of the cores as OMP_NUM_THREADS, unless that is set. When one ends badly, all are ended.
# Ctrl-C, SIGTERM or SIGUSR1 once: all save after the step and end; twice: they end at once. Exit
# code: that of the first that failed, or 128 + the signal's number.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"

processes=gpu nodes=1 node=0 address="" port=""
while [ $# -gt 0 ]; do
    # torchrun takes both forms, and _ for -
    case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --*) [ $# -gt 1 ] || usage "$1 needs a value" ;;
        *) break ;;
    esac
    case ${1//_/-} in
        --nproc-per-node) processes=$2 ;;
        --nnodes) nodes=$2 ;;
        --node-rank) node=$2 ;;
        --master-addr) address=$2 ;;
        --master-port) port=$2 ;;
        *) usage "no option $1" ;;
    esac
    shift 2
done
[ $# -gt 0 ] || usage "no program to start"

case $processes in gpu | gpus | auto) processes=$(gpus "$1") ;; esac
is_number "$processes" 1 || stop "--nproc-per-node $processes is neither a number nor gpu"
is_number "$nodes" 1 || stop "--nnodes $nodes is no number of machines"
if ! is_number "$node" 0 || [ "$node" -ge "$nodes" ]; then
    stop "--node-rank $node: with --nnodes $nodes it is one of 0 ... $((nodes - 1))"
fi
[ "$nodes" = 1 ] || [ -n "$address" ] ||
    stop "--nnodes $nodes: --master-addr is to say where machine 0 is"

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000)) # below those that the system gives to others
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo $port
}
if [ -z "$port" ]; then
    if [ "$nodes" = 1 ]; then port=$(free_port); else port=29500; fi
fi
if ! is_number "$port" 1 || [ "$port" -gt 65535 ]; then stop "--master-port $port is no port"; fi

threads=$(($(cores) / processes))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}
export MASTER_ADDR=${address:-127.0.0.1} MASTER_PORT=$port
export WORLD_SIZE=$((nodes * processes)) LOCAL_WORLD_SIZE=$processes
for ((i = 0; i < processes; i++)); do
    rank=$((node * processes + i))
    start "rank $rank" env RANK=$rank LOCAL_RANK=$i "$@"
done
wait_for_all
