/* cpu/classifier.c: logits, softmax and cross-entropy, for some tokens at a time, so that the
 * logits of all tokens never exist together. A chunk's logits become their own gradient in
 * place. The rows that pad the vocabulary are not touched. */
#include "laser/cpu/gemm.h"

#include <math.h>

#include "laser/base.h"
#include "laser/cpu/vec.h"

typedef struct RowStats {
    float max;
    double sum; /* of exp(z - max) */
} RowStats;

static float row_max(const float *z, int V) {
    float max = z[0];
    vf best = vf_set1(z[0]);
    int j = 0;
    for (; j + VL <= V; j += VL) best = vf_max(vf_load(z + j), best);
    for (; j < V; j++) max = z[j] > max ? z[j] : max;
    float lanes = vf_hmax(best);
    return lanes > max ? lanes : max;
}

/* z = cap * tanh(z / cap) */
static void row_softcap(float *z, float cap, int V) {
    int j = 0;
    for (; j + VL <= V; j += VL) vf_store(z + j, cap * vf_tanh(vf_load(z + j) / cap));
    if (j < V) vf_store_n(z + j, cap * vf_tanh(vf_load_n(z + j, V - j) / cap), V - j);
}

/* One step of the sum: e = exp(z - max); where the logits are wanted as gradients, e takes their
 * place, times the slope of the soft cap, 1 - (z / cap)^2. */
static inline vf exp_step(vf z, float max, float cap, vf *kept) {
    vf e = vf_exp(z - max), t = z / cap;
    *kept = cap > 0.0f ? e * (1.0f - t * t) : e;
    return e;
}

/* The sum in float over 64 vectors at a time, those in double: the error stays near that of one
 * exp. */
static inline double row_exp_sum(float *z, float max, float cap, bool keep, int V) {
    double sum = 0;
    int j = 0;
    while (j + VL <= V) {
        const int end = V - j < 64 * VL ? j + (V - j) / VL * VL : j + 64 * VL;
        vf s = {0}, kept;
        for (; j < end; j += VL) {
            s += exp_step(vf_load(z + j), max, cap, &kept);
            if (keep) vf_store(z + j, kept);
        }
        sum += vf_sum(s);
    }
    if (j < V) {
        vf kept, e = exp_step(vf_load_n(z + j, V - j), max, cap, &kept);
        for (int k = 0; k < V - j; k++) sum += e[k];
        if (keep) vf_store_n(z + j, kept, V - j);
    }
    return sum;
}

/* The loss of one token; with keep, its logits become d(grad_scale * loss) / d(logits before the
 * cap). */
static float row_loss(float *z, int target, const ClassifierArgs *a, bool keep, float grad_scale) {
    const float cap = a->softcap;
    if (cap > 0.0f) row_softcap(z, cap, a->V);
    const float max = row_max(z, a->V), zt = z[target];
    double sum;
    if (cap > 0.0f)
        sum = row_exp_sum(z, max, cap, keep, a->V);
    else
        sum = row_exp_sum(z, max, 0.0f, keep, a->V);
    if (keep) {
        const float factor = (float)(grad_scale / sum), t = cap > 0.0f ? zt / cap : 0.0f;
        for (int j = 0; j < a->V; j++) z[j] *= factor;
        z[target] -= grad_scale * (1.0f - t * t);
    }
    return (float)(log(sum) + ((double)max - (double)zt));
}

/* Where the outputs of the gradient go; NULL: only the loss is wanted. */
typedef struct ClassifierGrads {
    float *dx, *dw, *dbias;
    float beta, scale;
} ClassifierGrads;

static void logits_rows(
    Backend *be, float *logits, long ld, const float *x, int rows, const ClassifierArgs *a) {
    GemmArgs g = {.M = rows,
        .N = a->V,
        .K = a->C,
        .A = x,
        .B = a->w,
        .C = logits,
        .lda = a->C,
        .ldb = a->C,
        .ldc = ld,
        .transB = true,
        .bias = a->bias};
    if (a->bias) g.fusion = GEMM_ACT;
    gemm(be, &g);
}

static void classifier_chunk(Backend *be, float *losses, const float *x, const int32_t *targets,
    int rows, const ClassifierArgs *a, const ClassifierGrads *out) {
    float *z = be->logits;
    const long ld = be->logits_ld;
    logits_rows(be, z, ld, x, rows, a);
    CPU_PARALLEL_FOR
    for (int n = 0; n < rows; n++) {
        const int t = targets[n];
        REQUIRE(t >= 0 && t < a->V, "target %d of %d at %d", t, a->V, n);
        losses[n] = row_loss(z + n * ld, t, a, out != NULL, out ? out->scale : 0.0f);
    }
    if (!out) return;
    GemmArgs dx = {.M = rows,
        .N = a->C,
        .K = a->V,
        .A = z,
        .B = a->w,
        .C = out->dx,
        .lda = ld,
        .ldb = a->C,
        .ldc = a->C};
    gemm(be, &dx);
    GemmArgs dw = {.M = a->V,
        .N = a->C,
        .K = rows,
        .A = z,
        .B = x,
        .C = out->dw,
        .lda = ld,
        .ldb = a->C,
        .ldc = a->C,
        .transA = true,
        .beta = out->beta};
    gemm(be, &dw);
    if (out->dbias) cpu_column_sums(be, out->dbias, out->beta, z, rows, a->V, ld);
}

static void classifier_chunks(Backend *be, float *losses, const float *x, const int32_t *targets,
    const ClassifierArgs *a, const ClassifierGrads *out) {
    REQUIRE(be->scratch && a->V <= be->logits_ld, "V=%d, reserved %d", a->V, be->limits.V);
    REQUIRE(a->Vp >= a->V, "V=%d, rows for %d", a->V, a->Vp);
    ClassifierGrads grads = out ? *out : (ClassifierGrads){0};
    const int chunks = (a->N + be->logits_rows - 1) / be->logits_rows;
    const int rows = (a->N + chunks - 1) / chunks;
    for (int n = 0; n < a->N; n += rows) {
        const int count = a->N - n < rows ? a->N - n : rows;
        const size_t at = (size_t)n * (size_t)a->C;
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
    ClassifierGrads out = {.dx = dx, .dw = dw, .dbias = dbias, .beta = beta, .scale = grad_scale};
    classifier_chunks(be, losses, x, targets, a, &out);
}

void op_classifier_logits(Backend *be, float *logits, const act_t *x, const ClassifierArgs *a) {
    logits_rows(be, logits, a->V, x, a->N, a);
    if (a->softcap <= 0.0f) return;
    CPU_PARALLEL_FOR
    for (int n = 0; n < a->N; n++) row_softcap(logits + (size_t)n * (size_t)a->V, a->softcap, a->V);
}
