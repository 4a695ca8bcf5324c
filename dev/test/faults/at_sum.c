/* at_sum.c: for LD_PRELOAD, with MPI. At the n-th sum of many floats over the processes, counted
 * from 1, something goes wrong in this one: SUM_FLIPS=n: a bit of the result is another one, as
 * with a broken memory or network; SUM_HANGS=n: it never ends; WORK_HANGS=n: what the process does
 * after it never ends. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <mpi.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MANY = 1000 }; /* gradients, not single numbers */

static int count;
static int inside;

static int is_now(const char *name) {
    const char *at = getenv(name);
    return at && atoi(at) == count;
}

int MPI_Allreduce(const void *from, void *to, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
    int (*real)(const void *, void *, int, MPI_Datatype, MPI_Op, MPI_Comm);
    *(void **)&real = dlsym(RTLD_NEXT, "MPI_Allreduce");
    count += n >= MANY;
    inside = 1;
    while (n >= MANY && is_now("SUM_HANGS")) sleep(1);
    const int status = real(from, to, n, type, op, comm);
    if (n >= MANY && is_now("SUM_FLIPS")) ((uint32_t *)to)[n / 2] ^= 1u << 22;
    inside = 0;
    return status;
}

/* The trainer looks at the clock after each step; other threads may go on. */
int clock_gettime(clockid_t id, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *);
    *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    while (!inside && gettid() == getpid() && is_now("WORK_HANGS")) sleep(1);
    return real(id, t);
}
