/* cuda/gemm.cuh: matrix products by cuBLASLt. All matrices row-major in device memory. Knows
 * neither the model nor the operations that are made of products. Private to laser/cuda. */
#ifndef LASER_CUDA_GEMM_CUH
#define LASER_CUDA_GEMM_CUH

#include "laser/cuda/backend.cuh"

/* C = alpha * op(A) op(B) + beta * C, then + bias and ReLU where asked; batch of them at strides.
 * C overlaps neither A nor B; it may lie in the same block between them. */
typedef struct Gemm {
    int M, N, K;         /* op(A) (M, K), op(B) (K, N), C (M, N); all > 0 */
    const act_t *A, *B;
    void *C;             /* act_t, or float where c_float */
    int64_t lda, ldb, ldc; /* elements from row to row */
    bool transA, transB; /* A is held as (K, M), B as (N, K) */
    bool c_float;
    float alpha, beta;   /* alpha not 0; with beta 0 the old C is not read */
    const act_t *bias;   /* (N), added to each row, or NULL; only with C of act_t and beta 0 */
    bool relu;           /* only with C of act_t and beta 0 */
    int batch;           /* 0 counts as 1; 1 with bias or relu */
    int64_t strideA, strideB, strideC; /* elements */
} Gemm;

/* Opens the library; reads be->options.tune_cache, where there is one. */
void gemm_open(Backend *be);
void gemm_close(Backend *be); /* writes the cache file, where something is new */
size_t gemm_workspace_bytes(int major /* compute capability */);

/* Enqueues the product on be->stream. A shape that was not seen before is planned first: the 16
 * best of the library's heuristics are timed (or, with options.untuned, the first is taken) and the
 * winner is kept for all later calls and in the cache file. C holds after the call what it would
 * hold without the timing. */
void gemm(Backend *be, const Gemm *g);

/* One line of text: library and version, tuned or not. */
void gemm_describe(const Backend *be, char *text, size_t capacity);

/* ---- what was planned, for the benchmark and the tests ---- */

typedef struct GemmPlanInfo {
    int64_t M, N, K, batch;
    char form[48];       /* "nt bias relu", "tn f32 +=" */
    const char *origin;  /* "timed", "file", "first": the library's first choice; "plain": it has
                            none, a slow kernel of ours */
    int candidates;      /* that were offered and can run */
    int chosen;          /* which of them in the library's order, from 0 */
    float ms, first_ms;  /* timed: the winner, the library's first choice; else 0 */
    int algorithm, tile, splits, reduction; /* attributes of the library; -1: not known */
    size_t workspace;
    bool fused;          /* bias and ReLU by the library */
} GemmPlanInfo;

int gemm_plan_count(const Backend *be);
GemmPlanInfo gemm_plan_info(const Backend *be, int i);
int64_t gemm_query_count(const Backend *be); /* times the library's heuristics were asked */
void gemm_print_plans(const Backend *be, FILE *f);

#endif
