/* cuda/classifier.cu: logits, softmax and cross-entropy, for some tokens at a time, so that the
 * logits of all tokens never exist together. A chunk's logits (float) become their own gradient
 * (act_t) in place. The rows that pad the vocabulary get no probability and a gradient of 0. */
#include "laser/cuda/gemm.cuh"

enum {
    THREADS = 1024,
    VEC = FLOAT_VEC,
    TILE = THREADS * VEC,
    WIDE = sizeof(float) / sizeof(act_t)
};

/* How a row of biases is read: none, VEC at a time, one by one. */
typedef enum BiasForm { BIAS_NONE, BIAS_VEC, BIAS_ONE } BiasForm;

typedef struct LossRows {
    float *logits;          /* (rows, ld); training leaves act_t at the start of each row */
    int64_t ld;             /* floats */
    const act_t *bias;      /* (Vp), or NULL */
    const int32_t *targets; /* (rows) */
    float *losses;          /* (rows) */
    int V, Vp;
    float cap, grad_scale;
} LossRows;

/* z[j..j+VEC) as the softmax sees them. Beyond V: -inf, which has no probability. */
template <bool CAP, BiasForm BIAS>
__device__ static inline void read_logits(float *z, const float *row, const LossRows &r, int j) {
    load_vec<VEC>(z, row + j);
    float b[VEC] = {};
    if constexpr (BIAS == BIAS_VEC) load_vec<VEC>(b, r.bias + j);
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        if constexpr (BIAS == BIAS_ONE) b[i] = j + i < r.V ? to_float(r.bias[j + i]) : 0.0f;
        z[i] += b[i];
        if constexpr (CAP) z[i] = r.cap * tanhf(z[i] / r.cap);
        if (j + i >= r.V) z[i] = -INFINITY;
    }
}

/* A block takes a token. First the maximum and the sum of exp(z - maximum) in one pass, each thread
 * on its own and then together; then the gradient, (p - [target]) * grad_scale * slope of the cap.
 * An act_t is narrower than a float, so a tile of gradients reaches only logits of its own tile and
 * of earlier ones: it is written once all threads have read theirs. Bytes per logit: a float read;
 * in training another, mostly from the cache, and an act_t written. */
template <bool TRAIN, bool CAP, BiasForm BIAS>
__global__ static void __launch_bounds__(THREADS, 2) classifier_loss_kernel(LossRows r) {
    SHARED_ARRAY(float, shared, WARP);
    const int n = blockIdx.x, target = r.targets[n];
    float *row = r.logits + n * r.ld;
    const bool known = target >= 0 && target < r.V;
    float zt = NAN; /* of an unknown target: the loss becomes NaN, and the step is given up */
    if (known) {
        zt = row[target] + (BIAS == BIAS_NONE ? 0.0f : to_float(r.bias[target]));
        if constexpr (CAP) zt = r.cap * tanhf(zt / r.cap);
    }
    float largest = -INFINITY, sum = 0;
#pragma unroll 2
    for (int j = threadIdx.x * VEC; j < r.V; j += TILE) {
        float z[VEC];
        read_logits<CAP, BIAS>(z, row, r, j);
        const float top = fmaxf(fmaxf(z[0], z[1]), fmaxf(z[2], z[3]));
        if (top > largest) {
            sum *= expf(largest - top);
            largest = top;
        }
#pragma unroll
        for (int i = 0; i < VEC; i++) sum += expf(z[i] - largest);
    }
    const float all = block_max(largest, shared);
    /* a thread without logits has sum 0 and maximum -inf: its share is 0 */
    const float total = block_sum(sum * expf(largest - all), shared);
    if (threadIdx.x == 0) r.losses[n] = logf(total) + (all - zt);
    if constexpr (TRAIN) {
        const float factor = r.grad_scale / total;
        act_t *grad = reinterpret_cast<act_t *>(row);
        for (int tile = 0; tile < r.Vp; tile += TILE) {
            const int j = tile + threadIdx.x * VEC;
            float z[VEC], g[VEC] = {};
            if (j < r.V) {
                read_logits<CAP, BIAS>(z, row, r, j);
#pragma unroll
                for (int i = 0; i < VEC; i++) {
                    g[i] = expf(z[i] - all) * factor;
                    if (j + i == target) g[i] -= r.grad_scale;
                    if constexpr (CAP) {
                        const float t = z[i] / r.cap;
                        g[i] *= j + i < r.V ? 1.0f - t * t : 0.0f;
                    }
                }
            }
            if constexpr (WIDE > 1) __syncthreads();
            if (j < r.Vp) store_vec<VEC>(grad + j, g);
        }
    }
}

/* logits += bias, then the soft cap: of whole rows that are wanted themselves. */
__global__ static void classifier_finish_kernel(
    float *logits /* (N, V) */, const act_t *bias /* (V) or NULL */, float cap, int V, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float z = logits[i];
    if (bias) z += to_float(bias[i % V]);
    logits[i] = cap > 0.0f ? cap * tanhf(z / cap) : z;
}

/* ---- launchers ------------------------------------------------------------------------------- */

template <bool TRAIN, bool CAP> static void launch_loss(Backend *be, const LossRows &r, int rows) {
    if (!r.bias)
        LAUNCH((classifier_loss_kernel<TRAIN, CAP, BIAS_NONE>), rows, THREADS, 0, be->stream, r);
    else if (r.Vp % VEC == 0 && (uintptr_t)r.bias % (VEC * sizeof(act_t)) == 0)
        LAUNCH((classifier_loss_kernel<TRAIN, CAP, BIAS_VEC>), rows, THREADS, 0, be->stream, r);
    else
        LAUNCH((classifier_loss_kernel<TRAIN, CAP, BIAS_ONE>), rows, THREADS, 0, be->stream, r);
}

/* Where the outputs of the gradient go; NULL: only the loss is wanted. */
typedef struct ClassifierGrads {
    act_t *dx;
    float *dw, *dbias;
    float beta, scale;
} ClassifierGrads;

static void logits_rows(Backend *be, float *logits, int64_t ld, int width, const act_t *x, int rows,
    const ClassifierArgs *a) {
    Gemm g = {};
    g.M = rows, g.N = width, g.K = a->C;
    g.A = x, g.B = a->w, g.C = logits;
    g.lda = a->C, g.ldb = a->C, g.ldc = ld;
    g.transB = true;
    g.c_float = true;
    g.alpha = 1;
    gemm(be, &g);
}

static void loss_rows(Backend *be, float *losses, const int32_t *targets, int rows,
    const ClassifierArgs *a, const ClassifierGrads *out) {
    LossRows r = {};
    r.logits = be->logits, r.ld = be->plan.logits_ld;
    r.bias = a->bias;
    r.targets = targets, r.losses = losses;
    r.V = a->V, r.Vp = a->Vp;
    r.cap = a->softcap, r.grad_scale = out ? out->scale : 0.0f;
    if (a->softcap > 0.0f && out)
        launch_loss<true, true>(be, r, rows);
    else if (a->softcap > 0.0f)
        launch_loss<false, true>(be, r, rows);
    else if (out)
        launch_loss<true, false>(be, r, rows);
    else
        launch_loss<false, false>(be, r, rows);
}

static void classifier_chunk(Backend *be, float *losses, const act_t *x, const int32_t *targets,
    int rows, const ClassifierArgs *a, const ClassifierGrads *out) {
    logits_rows(be, be->logits, be->plan.logits_ld, a->Vp, x, rows, a);
    loss_rows(be, losses, targets, rows, a, out);
    if (!out) return;
    const act_t *grad = reinterpret_cast<const act_t *>(be->logits);
    const int64_t ld = be->plan.logits_ld * WIDE;
    Gemm dx = {};
    dx.M = rows, dx.N = a->C, dx.K = a->Vp;
    dx.A = grad, dx.B = a->w, dx.C = out->dx;
    dx.lda = ld, dx.ldb = a->C, dx.ldc = a->C;
    dx.alpha = 1;
    gemm(be, &dx);
    Gemm dw = {};
    dw.M = a->Vp, dw.N = a->C, dw.K = rows;
    dw.A = grad, dw.B = x, dw.C = out->dw;
    dw.lda = ld, dw.ldb = a->C, dw.ldc = a->C;
    dw.transA = true;
    dw.c_float = true;
    dw.alpha = 1, dw.beta = out->beta;
    gemm(be, &dw);
    if (out->dbias) column_sums(be, out->dbias, out->beta, grad, rows, a->Vp, ld);
}

static void check_args(const Backend *be, const ClassifierArgs *a) {
    require_scratch(be);
    REQUIRE(a->N > 0 && a->C > 0 && a->V > 0 && a->Vp >= a->V, "N=%d C=%d V=%d, rows for %d", a->N,
        a->C, a->V, a->Vp);
}

static void classifier_chunks(Backend *be, float *losses, const act_t *x, const int32_t *targets,
    const ClassifierArgs *a, const ClassifierGrads *out) {
    check_args(be, a);
    REQUIRE(a->Vp <= be->limits.V, "rows for %d, reserved %d", a->Vp, be->limits.V);
    ClassifierGrads grads = {};
    if (out) grads = *out;
    const int chunks = ceil_div(a->N, be->plan.logits_rows), rows = ceil_div(a->N, chunks);
    for (int n = 0; n < a->N; n += rows) {
        const int count = a->N - n < rows ? a->N - n : rows;
        const int64_t at = (int64_t)n * a->C;
        if (out) grads.dx = out->dx + at;
        classifier_chunk(be, losses + n, x + at, targets + n, count, a, out ? &grads : NULL);
        grads.beta = 1.0f;
    }
}

void op_classifier_loss(
    Backend *be, float *losses, const act_t *x, const int32_t *targets, const ClassifierArgs *a) {
    classifier_chunks(be, losses, x, targets, a, NULL);
}

void op_classifier_train(Backend *be, float *losses, act_t *dx, float *dw, float *dbias, float beta,
    float grad_scale, const act_t *x, const int32_t *targets, const ClassifierArgs *a) {
    const ClassifierGrads out = {dx, dw, dbias, beta, grad_scale};
    classifier_chunks(be, losses, x, targets, a, &out);
}

void op_classifier_logits(Backend *be, float *logits, const act_t *x, const ClassifierArgs *a) {
    enum { BLOCK = 256 };
    check_args(be, a);
    logits_rows(be, logits, a->V, a->V, x, a->N, a);
    if (!a->bias && a->softcap <= 0.0f) return;
    const int64_t n = (int64_t)a->N * a->V;
    LAUNCH(classifier_finish_kernel, ceil_div(n, BLOCK), BLOCK, 0, be->stream, logits, a->bias,
        a->softcap, a->V, n);
}
