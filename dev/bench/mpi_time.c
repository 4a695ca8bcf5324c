/* mpi_time.c: for LD_PRELOAD, with MPI: how much of the time of training steps the main thread is
 * within MPI, between one of the first and the last exchange of many numbers. Prints on rank 0,
 * when MPI ends: "comm SHARE of SECONDS s". */
#define _GNU_SOURCE
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>

enum {
    LARGE = 1 << 15, /* elements: parts of gradients, or of weights */
    SKIPPED = 4,     /* large ones: what is sent around at the start, and the first step's */
};

static struct {
    double inside;      /* seconds since the first that counts */
    double counted;     /* as of the last large one */
    double first, last; /* ends of large ones */
    int large, depth;
} seen;

static double enter(void) {
    return gettid() == getpid() && seen.depth++ == 0 ? MPI_Wtime() : 0;
}

static void leave(double begin, int n) {
    if (gettid() != getpid() || --seen.depth > 0) return;
    const double now = MPI_Wtime();
    seen.inside += now - begin;
    if (n < LARGE) return;
    if (++seen.large == SKIPPED) seen.first = now, seen.inside = 0;
    seen.last = now;
    seen.counted = seen.inside;
}

/* In place of a function of MPI; n: elements that this process gives. */
#define TIMED(name, parameters, arguments, n)                                                      \
    int MPI_##name parameters {                                                                    \
        const double begin = enter();                                                              \
        const int result = PMPI_##name arguments;                                                  \
        leave(begin, n);                                                                           \
        return result;                                                                             \
    }

TIMED(Allreduce,
    (const void *from, void *to, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm),
    (from, to, n, type, op, comm), n)
TIMED(Allgather,
    (const void *from, int n, MPI_Datatype type, void *to, int m, MPI_Datatype other,
        MPI_Comm comm),
    (from, n, type, to, m, other, comm), n)
TIMED(Allgatherv,
    (const void *from, int n, MPI_Datatype type, void *to, const int m[], const int at[],
        MPI_Datatype other, MPI_Comm comm),
    (from, n, type, to, m, at, other, comm), n)
TIMED(Alltoallv,
    (const void *from, const int n[], const int out[], MPI_Datatype type, void *to, const int m[],
        const int in[], MPI_Datatype other, MPI_Comm comm),
    (from, n, out, type, to, m, in, other, comm), n[0])
TIMED(Reduce_scatter,
    (const void *from, void *to, const int n[], MPI_Datatype type, MPI_Op op, MPI_Comm comm),
    (from, to, n, type, op, comm), n[0])
TIMED(Bcast, (void *data, int n, MPI_Datatype type, int root, MPI_Comm comm),
    (data, n, type, root, comm), n)
TIMED(Barrier, (MPI_Comm comm), (comm), 0)
TIMED(Wait, (MPI_Request * request, MPI_Status *status), (request, status), LARGE)
TIMED(Waitall, (int n, MPI_Request requests[], MPI_Status statuses[]), (n, requests, statuses),
    LARGE)
TIMED(Test, (MPI_Request * request, int *done, MPI_Status *status), (request, done, status), 0)

int MPI_Finalize(void) {
    int rank = 0;
    PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
    const double seconds = seen.last - seen.first;
    if (rank == 0 && seen.large > SKIPPED)
        fprintf(stderr, "comm %.4f of %.3f s\n", seen.counted / seconds, seconds);
    return PMPI_Finalize();
}
