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
/* Dies with EXIT_USAGE; of the processes started together, the first alone prints. */
void launch_refuse(const Launch *l, const char *why) NORETURN;

#endif
