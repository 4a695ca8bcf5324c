/* comm.h: data parallel processes. Two files implement it: who the processes are and what moves in
 * the host's memory (comm_single.c, comm_mpi.c, comm_env.c), and what moves in the backend's
 * (comm_host.c, cuda/comm_nccl.cu). Knows nothing of the model.
 *
 * With several, an error in any of them (die(), a kill, a hang) is printed once, with the rank, and
 * ends all within seconds, with the exit code of the error where the launcher hands it on. Ranks
 * above 0 have no stdout, and what they warn of comes out at rank 0. */
#ifndef LASER_COMM_H
#define LASER_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Comm {
    int rank, world;
    int local_rank, local_world; /* among the processes of this machine */
    struct Watch *watch;         /* NULL: one process */
    struct CommHost *host;       /* of comm_env.c */
    struct CommDevice *device;   /* of comm_attach */
} Comm;

/* World 1 when not started by a launcher. Dies with EXIT_USAGE, saying what to do, where a launcher
 * started several that cannot meet. */
void comm_open(Comm *c, int *argc, char ***argv);
void comm_close(Comm *c);
/* No progress of any process for that long ends the run (EXIT_PROCESS), naming those that the
 * others wait for; 0: never. Progress: collectives, made_progress(), comm_at_step(). */
void comm_set_timeout(const Comm *c, double seconds);
void comm_at_step(const Comm *c, int64_t step); /* steps done, for messages */

/* ---- the host's memory; each waits ---- */

void comm_barrier(const Comm *c);
void comm_sum_double(const Comm *c, double *x, size_t n); /* in place, the same bits everywhere */
void comm_max_int(const Comm *c, int *x, size_t n);
void comm_broadcast(const Comm *c, void *data, size_t bytes, int root);
/* all: (world, bytes), by rank */
void comm_gather(const Comm *c, const void *mine, size_t bytes, void *all);
const char *comm_name(void); /* of who the processes are: "none", "mpi", "env" */

/* An array of n elements dealt out: rank r has `each` of them from r * each on, and the last rank
 * what is left besides. */
typedef struct CommShare {
    size_t n, each;
} CommShare;

/* all-to-all of floats, `most` of a rank's share at a time from its element `from` on: received
 * (world, most) has, of each rank, what it holds of this one's share there. Returns how many. */
size_t comm_exchange(const Comm *c, const float *x, CommShare s, size_t from, size_t most,
    float *received);
/* In place: each rank's share is sent to all. elem: bytes of an element. */
void comm_collect(const Comm *c, void *x, CommShare s, size_t elem);

/* ---- the backend's memory, beside its operations ----
 *
 * Each begins when the operations called before it have run; those called after comm_wait() of its
 * ticket find its result. All ranks call the same ones in the same order. */

struct Backend;
typedef int64_t CommTicket;
typedef enum CommWire { COMM_FP32, COMM_BF16 } CommWire; /* as --reduce-in */

/* Takes what these need. most: elements of the largest array; wire: that will be asked for, or
 * COMM_FP32. Dies (EXIT_USAGE) where processes of a machine would share a GPU and share_gpu does
 * not allow it, or it cannot be. */
void comm_attach(Comm *c, struct Backend *be, size_t most, CommWire wire, bool share_gpu);
size_t comm_device_bytes(int world, size_t most, CommWire wire); /* of the backend's, about */
void comm_detach(Comm *c);
/* Memory of weights and gradients: registered with the network where that is faster. Before
 * comm_attach, or with one process: the backend's. Zeroed. */
void *comm_alloc(Comm *c, struct Backend *be, size_t bytes);
void comm_free(Comm *c, struct Backend *be, void *p);

/* The rank's own share becomes the sum over all ranks, in fp32 whatever travels; what else x holds
 * is lost. comm_host.c: in the order of a binary tree (0 + 1) + (2 + 3) ..., the same bits for
 * any way of cutting. */
CommTicket comm_reduce_scatter(const Comm *c, float *x, CommShare s, CommWire wire);
CommTicket comm_all_gather(const Comm *c, void *x, CommShare s, size_t elem);
/* The sum on all ranks: exact where at most one rank has other than 0. */
CommTicket comm_add_double(const Comm *c, double *x, size_t n);
void comm_wait(const Comm *c, CommTicket t);
const char *comm_device_name(void); /* of what moves it: "host", "nccl" */

#ifdef __cplusplus
}
#endif
#endif
