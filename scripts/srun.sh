#!/usr/bin/env bash
# srun.sh: within a job of Slurm's, a program as the job's tasks:
#
#   scripts/srun.sh PROGRAM [OPTION...]
#
# slurm.sbatch calls it; by hand, within salloc, it does the same. How the tasks meet:
#
#   built with MPI=1   by PMIx, where this Slurm has it (srun --mpi=list); else mpirun starts them
#                      on the job's machines
#   built with MPI=0   by RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
#                      MASTER_PORT, as torchrun sets them
#
# A signal goes to all of them; see laser.c's README for SIGUSR1.
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ -n "${SLURM_JOB_ID:-}" ] || {
    echo "error: this is no job of Slurm's: sbatch scripts/slurm.sbatch, or salloc first" >&2
    exit 2
}

# srun does not ask for as many cores a task as the job did, unless it is told
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
# Slurm is not to end those that still save because one has ended; ours end each other where needed
start=(srun --kill-on-bad-exit=0)

# grep reads all: a writer whose reader has gone would count as a failure
if ldd "$1" 2>/dev/null | grep libmpi >/dev/null; then
    if srun --mpi=list 2>&1 | grep -w pmix >/dev/null; then exec "${start[@]}" --mpi=pmix "$@"; fi
    echo "srun has no PMIx here: mpirun starts the processes" >&2
    root=()
    [ "$(id -u)" != 0 ] || root=(--allow-run-as-root)
    exec mpirun "${root[@]}" --bind-to none "$@"
fi

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # a line for each
MASTER_ADDR=${MASTER_ADDR:-${hosts%%$'\n'*}}
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 12000))} # jobs on one machine differ
# 8(x4): eight on each of four
LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-${SLURM_TASKS_PER_NODE%%[(,]*}}
export MASTER_ADDR MASTER_PORT LOCAL_WORLD_SIZE
# shellcheck disable=SC2016
exec "${start[@]}" bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    export WORLD_SIZE=$SLURM_NTASKS; exec "$@"' task "$@"
