/* launch.c: who started this process, and how many beside it. */
#include "laser/launch.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Variables with the number of processes and the rank; the first pair that is there counts: mpirun
 * may run under Slurm, and any of them where some shell set WORLD_SIZE. SLURM_NTASKS is no sign: a
 * batch script has it too, in its one process. */
static const struct {
    const char *by, *world, *rank;
    bool mpi;
} KNOWN[] = {
    {"mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", true},
    {"a launcher (PMI_SIZE)", "PMI_SIZE", "PMI_RANK", true},
    {"srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", false},
    {"a launcher (WORLD_SIZE)", "WORLD_SIZE", "RANK", false},
};

static bool set(const char *name) {
    const char *value = getenv(name);
    return value && value[0];
}

Launch launch_find(void) {
    Launch l = {"nobody", 0, 1, set("PMIX_RANK")};
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++) {
        if (!set(KNOWN[i].world) || !set(KNOWN[i].rank)) continue;
        l.by = KNOWN[i].by;
        l.world = atoi(getenv(KNOWN[i].world));
        l.rank = atoi(getenv(KNOWN[i].rank));
        l.mpi |= KNOWN[i].mpi;
        break;
    }
    return l;
}

void launch_refuse(const Launch *l, const char *why) {
    if (l->rank == 0) die(EXIT_USAGE, "%s started %d processes, but %s", l->by, l->world, why);
    sleep(1); /* the launcher ends all when one ends: not before the first has spoken */
    exit(EXIT_USAGE);
}

/* ---- by the environment alone ---- */

enum { RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_PORT, MASTER_ADDR, VARIABLES };

static const char *const NAMES[VARIABLES] = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"};

/* Prints at rank 0 alone where there is a rank. */
static void refuse_variable(const char *name, const char *why) NORETURN;
static void refuse_variable(const char *name, const char *why) {
    const char *value = getenv(name), *rank = getenv("RANK");
    if (rank && rank[0] && strcmp(rank, "0") != 0 && strcmp(name, "RANK") != 0) {
        sleep(1);
        exit(EXIT_USAGE);
    }
    if (!value || !value[0])
        die(EXIT_USAGE,
            "%s is not set, but others of RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, "
            "MASTER_ADDR, MASTER_PORT are: %s. torchrun sets them all; without it, set them for "
            "each process",
            name, why);
    die(EXIT_USAGE, "%s=%s: %s", name, value, why);
}

static int number(int variable, int least, int most, const char *why) {
    const char *name = NAMES[variable], *value = getenv(name);
    char *end = NULL;
    const long x = set(name) ? strtol(value, &end, 10) : -1;
    if (!end || *end || end == value || x < least || x > most) refuse_variable(name, why);
    return (int)x;
}

bool launch_env(LaunchEnv *out) {
    int there = 0;
    *out = (LaunchEnv){.world = 1, .local_world = 1};
    for (int i = 0; i < VARIABLES; i++) there += set(NAMES[i]);
    if (!(set("RANK") || set("WORLD_SIZE")) || there < 2) return false;
    out->world = number(WORLD_SIZE, 1, INT_MAX, "the number of processes is expected");
    if (out->world == 1) return true;
    out->rank =
        number(RANK, 0, out->world - 1, "a process's number is expected, from 0 to WORLD_SIZE - 1");
    out->local_world = number(LOCAL_WORLD_SIZE, 1, out->world,
        "the number of processes of this machine is expected, at most WORLD_SIZE");
    out->local_rank = number(LOCAL_RANK, 0, out->local_world - 1,
        "a process's number on this machine is expected, from 0 to LOCAL_WORLD_SIZE - 1");
    out->port = number(MASTER_PORT, 1, UINT16_MAX, "a TCP port of rank 0's machine is expected");
    if (!set("MASTER_ADDR")) refuse_variable("MASTER_ADDR", "the address of rank 0's machine");
    out->address = getenv("MASTER_ADDR");
    return true;
}
