/* gemm.h: the one matrix product of this backend. One of gemm_native.c and gemm_cblas.c is
 * linked. */
#ifndef LASER_CPU_GEMM_H
#define LASER_CPU_GEMM_H

#include "laser/cpu/backend.h"

typedef enum GemmFusion {
    GEMM_PLAIN,
    GEMM_ACT,     /* C = act(C + bias), the value before act kept in pre unless it is NULL */
    GEMM_ACT_BWD, /* C = C * act'(slope_at) */
} GemmFusion;

/* C(M,N) = beta * C + op(A)(M,K) op(B)(K,N), then the fusion. Row-major; beta 0 (C is not read)
 * or 1, 0 with a fusion. A transposed matrix is stored as (K,M) or (N,K). */
typedef struct GemmArgs {
    int M, N, K;
    const float *A, *B;
    float *C;
    long lda, ldb, ldc; /* elements from row to row, as stored */
    bool transA, transB;
    float beta;
    GemmFusion fusion;
    Act act;
    const float *bias;     /* (N) or NULL */
    float *pre;            /* (M, N), rows ldc apart, or NULL */
    const float *slope_at; /* (M, N), rows ldc apart: the value before act; for ReLU the one after
                              it serves too */
} GemmArgs;

void gemm(Backend *be, const GemmArgs *a);

/* Applies a->fusion to rows i .. i+m-1 and columns j .. j+n-1 of C. */
void gemm_fuse(const GemmArgs *a, int i, int j, int m, int n);

size_t gemm_scratch_bytes(int threads);
void gemm_open(Backend *be);
void gemm_describe(char *text, size_t capacity); /* "OpenBLAS 0.3.21 SkylakeX" */

#endif
