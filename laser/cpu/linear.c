/* cpu/linear.c: the linear layer, forward and backward, as matrix products and column sums. */
#include "laser/cpu/gemm.h"

#include "laser/base.h"

void op_linear_fwd(Backend *be, act_t *y, const act_t *x, const LinearArgs *a) {
    GemmArgs g = {.M = a->N,
        .N = a->OC,
        .K = a->IC,
        .A = x,
        .B = a->w,
        .C = y,
        .lda = a->IC,
        .ldb = a->IC,
        .ldc = a->OC,
        .transB = true};
    if (a->bias || a->act != ACT_NONE || a->pre) g.fusion = GEMM_ACT;
    g.act = a->act;
    g.bias = a->bias;
    g.pre = a->pre;
    gemm(be, &g);
}

void op_linear_bwd(Backend *be, act_t *dx, float *dw, float *dbias, float beta, const act_t *dy,
    const act_t *x, const LinearArgs *a) {
    REQUIRE(a->act != ACT_GELU || a->pre, "the value before the activation is needed");
    if (dx) {
        GemmArgs g = {.M = a->N,
            .N = a->IC,
            .K = a->OC,
            .A = dy,
            .B = a->w,
            .C = dx,
            .lda = a->OC,
            .ldb = a->IC,
            .ldc = a->IC};
        if (a->act != ACT_NONE) g.fusion = GEMM_ACT_BWD;
        g.act = a->act;
        g.slope_at = a->pre ? a->pre : x;
        gemm(be, &g);
    }
    GemmArgs g = {.M = a->OC,
        .N = a->IC,
        .K = a->N,
        .A = dy,
        .B = x,
        .C = dw,
        .lda = a->OC,
        .ldb = a->IC,
        .ldc = a->IC,
        .transA = true,
        .beta = beta};
    gemm(be, &g);
    if (dbias) cpu_column_sums(be, dbias, beta, dy, a->N, a->OC, a->OC);
}

/* Sums of 64 rows, then sums of those: the error grows with 64 + rows / 64 and not with rows. */
static void column_sums_block(
    float *restrict out, float beta, const float *x, int rows, int cols, long ld) {
    enum { ROWS = 64, COLS = 64 };
    float total[COLS] = {0};
    for (int i = 0; i < rows; i += ROWS) {
        const int end = rows - i < ROWS ? rows : i + ROWS;
        float part[COLS] = {0};
        for (int r = i; r < end; r++) {
            const float *restrict row = x + r * ld;
            for (int j = 0; j < cols; j++) part[j] += row[j];
        }
        for (int j = 0; j < cols; j++) total[j] += part[j];
    }
    for (int j = 0; j < cols; j++) out[j] = beta == 0.0f ? total[j] : out[j] + total[j];
}

void cpu_column_sums(
    Backend *be, float *out, float beta, const float *x, int rows, int cols, long ld) {
    enum { COLS = 64 };
    CPU_PARALLEL_FOR
    for (int j = 0; j < cols; j += COLS)
        column_sums_block(out + j, beta, x + j, rows, cols - j < COLS ? cols - j : COLS, ld);
}
