/* launch.h: who started this process, and how many beside it, by what launchers leave in the
 * environment. N processes that do not know of each other would be N runs that overwrite each
 * other. */
#ifndef LASER_LAUNCH_H
#define LASER_LAUNCH_H

#include <stdbool.h>

#include "laser/base.h"

typedef struct Launch {
    const char *by; /* for messages */
    int rank, world;
    bool mpi; /* MPI_Init will find the others */
} Launch;

Launch launch_find(void); /* world 1 where no launcher is known */

/* RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets
 * them: enough to meet without MPI. */
typedef struct LaunchEnv {
    int rank, world, local_rank, local_world;
    const char *address; /* of rank 0's machine; NULL: world is 1 */
    int port;
} LaunchEnv;

/* False: they are not set, but perhaps a single one that was left over in some shell. Dies with
 * EXIT_USAGE, naming it, where one is missing or cannot be. */
bool launch_env(LaunchEnv *out);
/* Dies with EXIT_USAGE; of the processes started together, the first alone prints. */
void launch_refuse(const Launch *l, const char *why) NORETURN;

#endif
