/* at_sum.c: for LD_PRELOAD, with MPI. At the n-th time that processes hand round what they summed,
 * counted from 1, something goes wrong in this one: SUM_FLIPS=n: a bit of the result is another
 * one, as with a broken memory or network; SUM_HANGS=n: it never ends; WORK_HANGS=n: what the
 * process does after it never ends. With --zero 0 those are the gradients, bucket by bucket. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <mpi.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int count;
static int inside;

static int since(const char *name) { /* negative: not yet, or never */
    const char *at = getenv(name);
    return at ? count - atoi(at) : -1;
}

int MPI_Allgatherv(const void *from, int n, MPI_Datatype type, void *to, const int *counts,
    const int *at, MPI_Datatype type_to, MPI_Comm comm) {
    int (*real)(const void *, int, MPI_Datatype, void *, const int *, const int *, MPI_Datatype,
        MPI_Comm);
    int size, all = 0;
    *(void **)&real = dlsym(RTLD_NEXT, "MPI_Allgatherv");
    MPI_Comm_size(comm, &size);
    for (int i = 0; i < size; i++) all += counts[i];
    count++;
    inside = 1;
    while (since("SUM_HANGS") == 0) sleep(1);
    const int status = real(from, n, type, to, counts, at, type_to, comm);
    if (since("SUM_FLIPS") == 0) ((uint32_t *)to)[all / 2] ^= 1u << 22;
    inside = 0;
    return status;
}

int MPI_Alltoallv(const void *from, const int *counts, const int *at, MPI_Datatype type, void *to,
    const int *counts_to, const int *at_to, MPI_Datatype type_to, MPI_Comm comm) {
    int (*real)(const void *, const int *, const int *, MPI_Datatype, void *, const int *,
        const int *, MPI_Datatype, MPI_Comm);
    *(void **)&real = dlsym(RTLD_NEXT, "MPI_Alltoallv");
    inside = 1;
    const int status = real(from, counts, at, type, to, counts_to, at_to, type_to, comm);
    inside = 0;
    return status;
}

int MPI_Allreduce(const void *from, void *to, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
    int (*real)(const void *, void *, int, MPI_Datatype, MPI_Op, MPI_Comm);
    *(void **)&real = dlsym(RTLD_NEXT, "MPI_Allreduce");
    inside = 1;
    const int status = real(from, to, n, type, op, comm);
    inside = 0;
    return status;
}

/* The trainer looks at the clock after each step, MPI within its calls; other threads may go on. */
int clock_gettime(clockid_t id, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *);
    *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    while (!inside && gettid() == getpid() && since("WORK_HANGS") >= 0) sleep(1);
    return real(id, t);
}
