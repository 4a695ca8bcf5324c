#!/usr/bin/env bash
# mpirun.sh: a program as several processes, by Open MPI, on this machine or on several:
#
#   [VARIABLE=VALUE...] scripts/mpirun.sh PROGRAM [OPTION...]
#
#   PROCESSES=gpus|N   on each machine; gpus (default): one for each GPU of this machine, and one
#                      where there is none, or where the program is not built for GPUs
#   HOSTS=FILE         the machines: a line for each, "node1" or "node1 slots=8" where there may be
#                      no more. PROGRAM and its files lie at the same place on all of them; mpirun
#                      reaches them by ssh, or by Slurm within a job of Slurm's
#   BIND=none          leaves processes to any core. Otherwise each has cores of its own, as many
#                      as there are for each, and so many threads
#   PASS="A B"         variables for the other machines, beside those of Open MPI, OpenMP, CUDA,
#                      NCCL, UCX and OpenBLAS, and LD_LIBRARY_PATH and MASTER_ADDR
#
# Ctrl-C, SIGTERM or SIGUSR1 once: all save after the step and end, however long that takes. Twice:
# they end at once. Exit code: the program's, or 128 + the signal's number; mpirun's own where it
# lost a machine, which it notices within a minute.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"

[ $# -gt 0 ] || usage "no program to start"
HOSTS=${HOSTS:-}
PROCESSES=${PROCESSES:-gpus}
[ "$PROCESSES" != gpus ] || PROCESSES=$(gpus "$1")
is_number "$PROCESSES" 1 || stop "PROCESSES=$PROCESSES is neither a number nor gpus"
[ -z "$HOSTS" ] || [ -r "$HOSTS" ] || stop "HOSTS=$HOSTS: there is no such file"
if [ "$PROCESSES" = 1 ] && [ -z "$HOSTS" ]; then exec "$@"; fi
command -v mpirun >/dev/null || stop "$PROCESSES processes: there is no mpirun (openmpi-bin)"

# A machine that is lost is found out when it has been silent for 20 + 6 * 5 seconds. By default
# that takes 8 minutes, and 15 more where --timeout has ended our processes before.
export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-20}
export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-5}
export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-6}

words=()
[ "$(id -u)" != 0 ] || words+=(--allow-run-as-root) # whoever is root chose to be
[ -z "$HOSTS" ] || words+=(--hostfile "$HOSTS")
each=$(($(cores) / PROCESSES))
if [ "${BIND:-}" = none ] || [ $each = 0 ]; then
    words+=(--map-by "ppr:$PROCESSES:node" --bind-to none --oversubscribe)
else
    words+=(--use-hwthread-cpus --map-by "ppr:$PROCESSES:node:PE=$each" --bind-to hwthread)
fi
for name in $(compgen -e); do
    case $name in
        OMP_* | GOMP_* | CUDA_* | NCCL_* | UCX_* | OPENBLAS_* | LD_LIBRARY_PATH | MASTER_ADDR) ;;
        *) [[ " ${PASS:-} " = *" $name "* ]] || continue ;;
    esac
    words+=(-x "$name")
done
start mpirun mpirun "${words[@]}" "$@"
wait_for_all
