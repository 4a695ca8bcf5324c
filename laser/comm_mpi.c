/* comm_mpi.c: collectives over MPI, for processes that mpirun or srun started. Started by hand, the
 * program is one process and MPI is never initialised. */
#include "laser/comm.h"

#include <mpi.h>
#include <stdbool.h>
#include <stdlib.h>

#include "laser/base.h"

/* Counts of MPI calls are int: larger arrays go in pieces of this many elements. */
enum { PIECE = 1 << 28 };

static bool launched(void) {
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE") || getenv("PMIX_RANK");
}

static bool active(void) {
    int started = 0, ended = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    return started && !ended;
}

/* die() exits through here: a rank that ends without MPI_Finalize takes the others with it, at
 * once. */
static void abort_others(int status, void *unused) {
    (void)unused;
    if (active()) MPI_Abort(MPI_COMM_WORLD, status);
}

void comm_open(Comm *c, int *argc, char ***argv) {
    c->rank = 0;
    c->world = 1;
    c->local_rank = 0;
    c->local_world = 1;
    if (!launched()) return;
    int provided;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm node;
    MPI_Comm_rank(MPI_COMM_WORLD, &c->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &c->world);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &c->local_rank);
    MPI_Comm_size(node, &c->local_world);
    MPI_Comm_free(&node);
    on_exit(abort_others, NULL);
}

void comm_close(Comm *c) {
    (void)c;
    if (active()) MPI_Finalize();
}

void comm_barrier(const Comm *c) {
    if (c->world > 1) MPI_Barrier(MPI_COMM_WORLD);
}

const char *comm_name(void) {
    return "mpi";
}

static void all_reduce(
    const Comm *c, char *x, size_t n, size_t elem, MPI_Datatype type, MPI_Op op) {
    if (c->world == 1) return;
    for (size_t i = 0; i < n; i += PIECE) {
        int count = (int)(n - i < PIECE ? n - i : PIECE);
        MPI_Allreduce(MPI_IN_PLACE, x + i * elem, count, type, op, MPI_COMM_WORLD);
    }
}

void comm_sum_float(const Comm *c, float *x, size_t n) {
    all_reduce(c, (char *)x, n, sizeof *x, MPI_FLOAT, MPI_SUM);
}

void comm_sum_double(const Comm *c, double *x, size_t n) {
    all_reduce(c, (char *)x, n, sizeof *x, MPI_DOUBLE, MPI_SUM);
}

void comm_max_int(const Comm *c, int *x, size_t n) {
    all_reduce(c, (char *)x, n, sizeof *x, MPI_INT, MPI_MAX);
}

void comm_broadcast(const Comm *c, void *data, size_t bytes, int root) {
    if (c->world == 1) return;
    for (size_t i = 0; i < bytes; i += PIECE) {
        int count = (int)(bytes - i < PIECE ? bytes - i : PIECE);
        MPI_Bcast((char *)data + i, count, MPI_BYTE, root, MPI_COMM_WORLD);
    }
}
