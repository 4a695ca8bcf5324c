/* cuda/linear.cu: the linear layer, forward and backward, as matrix products, column sums and
 * activations. */
#include "laser/cuda/activation.cuh"
#include "laser/cuda/gemm.cuh"

/* h = relu(pre) is never made again from pre, so ReLU may run inside the product. GELU is: it runs
 * on the rounded pre, so that op_act_fwd gives the same bits later. */
void op_linear_fwd(Backend *be, act_t *y, const act_t *x, const LinearArgs *a) {
    REQUIRE(a->act != ACT_GELU || a->pre, "%s", "the value before the activation has to be kept");
    const bool after = a->pre != NULL;
    Gemm g = {};
    g.M = a->N, g.N = a->OC, g.K = a->IC;
    g.A = x, g.B = a->w, g.C = after ? a->pre : y;
    g.lda = a->IC, g.ldb = a->IC, g.ldc = a->OC;
    g.transB = true;
    g.alpha = 1;
    g.bias = a->bias;
    g.relu = a->act == ACT_RELU && !after;
    gemm(be, &g);
    if (after) op_act_fwd(be, y, a->pre, a->act, (size_t)a->N * (size_t)a->OC);
}

void op_linear_bwd(Backend *be, act_t *dx, float *dw, float *dbias, float beta, const act_t *dy,
    const act_t *x, const LinearArgs *a) {
    REQUIRE(a->act != ACT_GELU || a->pre, "%s", "the value before the activation is needed");
    if (dx) {
        Gemm g = {};
        g.M = a->N, g.N = a->IC, g.K = a->OC;
        g.A = dy, g.B = a->w, g.C = dx;
        g.lda = a->OC, g.ldb = a->IC, g.ldc = a->IC;
        g.alpha = 1;
        gemm(be, &g);
        act_bwd(be, dx, a->pre ? a->pre : x, a->act, (size_t)a->N * (size_t)a->IC);
    }
    Gemm g = {};
    g.M = a->OC, g.N = a->IC, g.K = a->N;
    g.A = dy, g.B = x, g.C = dw;
    g.lda = a->OC, g.ldb = a->IC, g.ldc = a->IC;
    g.transA = true;
    g.c_float = true;
    g.alpha = 1, g.beta = beta;
    gemm(be, &g);
    if (dbias) column_sums(be, dbias, beta, dy, a->N, a->OC, a->OC);
}
