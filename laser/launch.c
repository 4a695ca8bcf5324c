/* launch.c: who started this process, and how many beside it. */
#include "laser/launch.h"

#include <stdlib.h>
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
