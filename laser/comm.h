/* comm.h: data parallel processes. One of comm_single.c, comm_mpi.c is linked. Knows nothing of the
 * model.
 *
 * With several, an error in any of them (die(), a kill, a hang) is printed once, with the rank, and
 * ends all within seconds, with the exit code of the error where the launcher hands it on. Ranks
 * above 0 have no stdout, and what they warn of comes out at rank 0. */
#ifndef LASER_COMM_H
#define LASER_COMM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Comm {
    int rank, world;
    int local_rank, local_world; /* among the processes of this machine */
    struct Watch *watch;         /* NULL: one process */
} Comm;

/* World 1 when not started by a launcher. Dies with EXIT_USAGE, saying what to do, where a launcher
 * started several that cannot meet. */
void comm_open(Comm *c, int *argc, char ***argv);
void comm_close(Comm *c);
/* No progress of any process for that long ends the run (EXIT_PROCESS), naming those that the
 * others wait for; 0: never. Progress: collectives, made_progress(), comm_at_step(). */
void comm_set_timeout(const Comm *c, double seconds);
void comm_at_step(const Comm *c, int64_t step); /* steps done, for messages */
void comm_barrier(const Comm *c);
void comm_sum_float(const Comm *c, float *x, size_t n); /* in place, the same bits on every rank */
void comm_sum_double(const Comm *c, double *x, size_t n);
void comm_max_int(const Comm *c, int *x, size_t n);
void comm_broadcast(const Comm *c, void *data, size_t bytes, int root);
/* all: (world, bytes), by rank */
void comm_gather(const Comm *c, const void *mine, size_t bytes, void *all);
const char *comm_name(void); /* "none", "mpi" */

#ifdef __cplusplus
}
#endif
#endif
