/* tensor.h: backend memory for tests. A Bench opens a backend for one case and owns its tensors:
 * inputs filled from the random numbers of a test, outputs filled with NaN, a guard behind each.
 * Knows the seam, no operation. */
#ifndef DEV_TEST_TENSOR_H
#define DEV_TEST_TENSOR_H

#include "dev/test/test.h"
#include "laser/backend.h"

typedef enum TensorType { TENSOR_ACT, TENSOR_FLOAT } TensorType;

typedef struct Tensor {
    void *p; /* backend memory; act_t or float */
    size_t n;
    TensorType type;
    double *in; /* (n) what was uploaded, as the backend holds it (rounded to act_t); NULL for
                   outputs */
} Tensor;

/* Unit roundoff of activations that are narrower than float; 0 where they are float. */
#define ACT_U (sizeof(act_t) < sizeof(float) ? 0x1p-8 : 0.0)

enum { BENCH_TENSORS = 32 };
typedef struct Bench {
    Test *t;
    Backend *be;
    const char *label; /* of the case, for messages */
    uint64_t seed;
    Tensor tensors[BENCH_TENSORS];
    int count;
    void *host[4 * BENCH_TENSORS]; /* blocks that bench_doubles gave out */
    int hosts;
    int32_t *ids, *host_ids; /* of bench_ids, in backend memory and here */
} Bench;

/* As every test opens the backend: nothing is timed, no file is kept. */
BackendOptions bench_options(int threads);
void bench_open(Bench *b, Test *t, const char *label, const BackendLimits *limits, int threads);
void bench_open_with(Bench *b, Test *t, const char *label, const BackendLimits *limits,
    const BackendOptions *options);
/* Checks that no tensor was written past its end, and frees everything. */
void bench_close(Bench *b);
double *bench_doubles(Bench *b, size_t n); /* zeroed; freed by bench_close */

/* Values std * N(0,1) + mean, the same for the same seed and number of tensor. */
Tensor *bench_random(Bench *b, TensorType type, size_t n, double std, double mean);
Tensor *bench_values(Bench *b, TensorType type, const double *values, size_t n);
Tensor *bench_output(Bench *b, TensorType type, size_t n); /* NaN: must be written */

/* n numbers below V in b->ids and b->host_ids; once in a bench. */
void bench_ids(Bench *b, int n, int V);

static inline act_t *tensor_act(const Tensor *x) {
    return x ? (act_t *)x->p : NULL;
}
static inline float *tensor_float(const Tensor *x) {
    return x ? (float *)x->p : NULL;
}
double *tensor_read(Bench *b, const Tensor *x); /* (n) current content; freed by bench_close */
/* A fresh copy of what was uploaded: where the oracle accumulates. */
double *tensor_copy(Bench *b, const Tensor *x);
void *tensor_bits(Bench *b, const Tensor *x); /* raw content; freed by bench_close */
size_t tensor_bytes(const Tensor *x);

/* x rounded to float. A call and not a cast: GCC 12 at -O3 -march=native was seen to vectorise a
 * row of double -> float -> double casts into nothing. */
double float_value(double x);

/* |got - want| <= tol[i] + rounding of the storage for each element, and finite where want is.
 * Reports the worst. */
void bench_compare(
    Bench *b, const char *what, const Tensor *x, const double *want, const double *tol);
/* How many elements fail that comparison: a planted error must give more than 0. */
size_t bench_misses(Bench *b, const Tensor *x, const double *want, const double *tol);
/* The comparison must fail against the values of a planted error. */
void bench_compare_planted(
    Bench *b, const char *what, const Tensor *x, const double *wrong, const double *tol);

/* ---- helpers of the tests of operations ------------------------------------------------------ */

static inline size_t product(int a, int b) {
    return (size_t)a * (size_t)b;
}
double *bench_absolute(Bench *b, const double *x, size_t n);
double *bench_copied(Bench *b, const double *x, size_t n);
double *scaled(double *sums, size_t n, double factor); /* in place; returns sums */

/* Makes the tensors of a case and calls the operations. */
typedef void OpRun(Bench *b, const void *c);
/* Runs the case with each of three numbers of threads (emulated: two): every tensor must hold the
 * same bits. */
void bench_same_bits(Test *t, OpRun *run, const void *c, const char *label, const int *threads);

/* NAME_cases, NAME_run and NAME_check. One thread: that others give the same bits is a test of its
 * own. */
#define BENCH_EACH_CASE(t, name)                                                                   \
    for (size_t i = 0; i < sizeof name##_cases / sizeof *name##_cases; i++) {                      \
        Bench b;                                                                                   \
        bench_open(&b, (t), name##_cases[i].label, NULL, 1);                                       \
        b.seed = i;                                                                                \
        name##_run(&b, &name##_cases[i]);                                                          \
        name##_check(&b, &name##_cases[i]);                                                        \
        bench_close(&b);                                                                           \
    }
#define BENCH_EACH_SAME_BITS(t, name, threads)                                                     \
    for (size_t i = 0; i < sizeof name##_cases / sizeof *name##_cases; i++)                        \
    bench_same_bits((t), name##_run, &name##_cases[i], name##_cases[i].label, (threads))

/* Kernels run on a CPU, where a thread costs as much as a call: a test with many repetitions makes
 * fewer of them. */
bool bench_emulated(void);

/* OpenBLAS splits the inner dimension of a product by the number of threads. */
bool bench_threads_cut_sums(void);
#define BENCH_THREADS_CUT_SUMS "OpenBLAS cuts its sums by the number of threads; BLAS=none does not"

#endif
