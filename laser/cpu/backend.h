/* cpu/backend.h: what the files of this directory share: the Backend, its scratch memory,
 * threads. Private to laser/cpu; knows nothing of the model.
 *
 * Results must not depend on the number of threads (but for the products of BLAS=openblas, which
 * are the library's): work is cut by shape alone, an element is computed by one thread in a fixed
 * order, and partial sums are combined in the order of the cuts. */
#ifndef LASER_CPU_BACKEND_H
#define LASER_CPU_BACKEND_H

#include "laser/backend.h"

#ifdef _OPENMP
#include <omp.h>
#endif

_Static_assert(sizeof(act_t) == sizeof(float), "this backend stores float");

enum { CPU_NORM_CUTS = 64 }; /* token ranges whose norm gradients are summed apart */

struct Backend {
    int threads;
    int64_t allocations;
    double peak_flops;   /* 0: not measured yet */
    unsigned float_mode; /* the caller's, put back by backend_close */
    struct {
        size_t bytes; /* 0: nothing is being read */
        char content[BACKEND_READ_BYTES];
    } reads[BACKEND_READ_SLOTS];

    BackendLimits limits;
    char *scratch;        /* one block, NULL before backend_reserve; all below lies in it */
    char *thread_scratch; /* (threads) blocks of thread_bytes */
    size_t thread_bytes;
    char *gemm;    /* gemm_scratch_bytes(threads) */
    float *logits; /* (logits_rows, logits_ld) */
    int logits_rows;
    long logits_ld;
    float *norm_partials; /* (CPU_NORM_CUTS, max(2 C, 3 HD)) */
    double *sum_partials; /* (CPU_NORM_CUTS) */
    float *channels;      /* (2, HD) of one call of an operation */
    float *rope;          /* (T, 2, DK/2) cosines, sines */
    bool rope_ready;      /* filled by the first op_rope */
};

/* Scratch of one thread: cpu_attention_scratch_bytes(limits) of it, 64-byte aligned. */
static inline void *cpu_scratch(Backend *be, int thread) {
    return be->thread_scratch + (size_t)thread * be->thread_bytes;
}

#ifdef _OPENMP
static inline int cpu_thread(void) {
    return omp_get_thread_num();
}
static inline int cpu_team(void) {
    return omp_get_num_threads();
}
static inline int cpu_all_threads(void) {
    return omp_get_max_threads();
}
#else /* built for ThreadSanitizer, which cannot see OpenMP's barriers */
static inline int cpu_thread(void) {
    return 0;
}
static inline int cpu_team(void) {
    return 1;
}
static inline int cpu_all_threads(void) {
    return 1;
}
#endif

/* A loop that the threads share; be is the Backend. Built without OpenMP, be would be unused in
 * places. */
#define CPU_PARALLEL_FOR                                                                           \
    (void)be;                                                                                      \
    _Pragma("omp parallel for num_threads(be->threads) schedule(static)")

/* n bytes, 64-byte aligned, on huge pages where it is big; content undefined; dies when there are
 * none. free() it. */
void *cpu_alloc(size_t bytes);

/* out[j] = beta * out[j] + sum over the rows of x[:,j]; rows of x are ld apart */
void cpu_column_sums(
    Backend *be, float *out /* (cols) */, float beta, const float *x, int rows, int cols, long ld);

#endif
