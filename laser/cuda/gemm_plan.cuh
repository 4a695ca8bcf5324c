/* cuda/gemm_plan.cuh: how products are planned: one plan a shape, chosen by timing (gemm_plan.cu),
 * kept from run to run in a file (gemm_cache.cu), run by gemm.cu. Private to those. */
#ifndef LASER_CUDA_GEMM_PLAN_CUH
#define LASER_CUDA_GEMM_PLAN_CUH

#include <cublasLt.h>

#include "laser/cuda/gemm.cuh"

enum {
    GEMM_TRANS_A = 1,
    GEMM_TRANS_B = 2,
    GEMM_C_FLOAT = 4,
    GEMM_BIAS = 8,
    GEMM_RELU = 16,
    GEMM_ADDS = 32, /* beta is not 0 */
    GEMM_TF32 = 64,
    GEMM_BF16 = 128,
};

/* All that the choice of an algorithm may depend on. Fields of one type: no padding, compared as
 * bytes. */
typedef struct GemmKey {
    int64_t M, N, K, lda, ldb, ldc, strideA, strideB, strideC, batch;
    int64_t flags;
    int64_t alignment; /* A + 1000 B + 10^6 C + 10^9 bias, each a power of two */
    int64_t workspace; /* bytes there are */
} GemmKey;
enum { GEMM_KEY_WORDS = sizeof(GemmKey) / sizeof(int64_t) };

typedef struct GemmAlgo {
    cublasLtMatmulAlgo_t algo;
    size_t workspace;
    int order; /* in the library's list */
    float ms;  /* 0: not timed */
} GemmAlgo;

enum { GEMM_CANDIDATES = 16 };

typedef struct GemmPlan {
    GemmKey key;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t first, second, out; /* the library's A is our B: columns are its rows */
    GemmAlgo algos[GEMM_CANDIDATES];           /* the one in use first */
    int count;
    float first_ms;
    const char *origin;
    bool fused;  /* bias and ReLU are the library's */
    bool plain;  /* the library has nothing: gemm_plain */
    bool proven; /* has run */
} GemmPlan;

typedef struct GemmChoice { /* a line of the file */
    GemmKey key;
    cublasLtMatmulAlgo_t algo;
    int64_t workspace, fused;
} GemmChoice;

typedef struct GemmCache {
    const char *path;   /* NULL: none */
    char header[512];
    GemmChoice *choices;
    int count, capacity;
    bool writes;        /* one process a machine does */
    bool changed;
    double since;       /* when the oldest unwritten change was made */
} GemmCache;

struct GemmPlans {
    cublasLtHandle_t lt;
    cudaEvent_t start, stop;
    GemmPlan **plans; /* (count) in the order they were made */
    int count, capacity;
    int *table;       /* (slots) index of a plan + 1, or 0 */
    int slots;        /* a power of two, more than 2 * count */
    int64_t queries;
    GemmCache cache;
};

/* ---- gemm.cu ---- */
void gemm_fail(const GemmKey *key, const char *what, cublasStatus_t status) NORETURN;
/* One launch of plan->algos[i] into C, with g's other operands. False: the library refused it and
 * ran nothing. Dies of any other failure. */
bool gemm_launch(Backend *be, GemmPlan *plan, int i, const Gemm *g, void *C);

/* ---- gemm_plan.cu ---- */
/* A plan for the key with its descriptors and a list of algorithms; the alignment of g's bias
 * counts. */
GemmPlan *gemm_plan_make(Backend *be, const GemmKey *key, const Gemm *g);
/* After the algorithm in use was refused: another. */
void gemm_plan_next(Backend *be, GemmPlan *plan, const Gemm *g);
void gemm_plan_free(GemmPlan *plan);

/* ---- gemm_plain.cu ---- */
void gemm_plain(Backend *be, const Gemm *g);

/* ---- gemm_cache.cu ---- */
void gemm_cache_open(Backend *be);
const GemmChoice *gemm_cache_find(const GemmCache *cache, const GemmKey *key); /* or NULL */
void gemm_cache_add(GemmCache *cache, const GemmChoice *choice); /* or replaces */
void gemm_cache_save_old(GemmCache *cache); /* writes when a change is some seconds old */
void gemm_cache_close(GemmCache *cache);    /* writes what is unwritten */

#endif
