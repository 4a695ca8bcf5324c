/* comm.h: data parallel processes. One of comm_single.c, comm_mpi.c is linked. Knows nothing of the
 * model. */
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
} Comm;

/* World 1 when not started by a launcher. With more, a rank that exits before comm_close ends all
 * the others. */
void comm_open(Comm *c, int *argc, char ***argv);
void comm_close(Comm *c);
void comm_barrier(const Comm *c);
void comm_sum_float(const Comm *c, float *x, size_t n); /* in place, the same bits on every rank */
void comm_sum_double(const Comm *c, double *x, size_t n);
void comm_max_int(const Comm *c, int *x, size_t n);
void comm_broadcast(const Comm *c, void *data, size_t bytes, int root);
const char *comm_name(void); /* "none", "mpi" */

#ifdef __cplusplus
}
#endif
#endif
