/* cpu/optim.c: what happens once a step: the loss and the norm of the gradient, whether the step
 * counts, and AdamW. Bound by memory: every array is passed over once (twice with update
 * clipping). */
#include "laser/cpu/backend.h"

#include <math.h>
#include <string.h>

#include "laser/base.h"
#include "laser/cpu/vec.h"

/* Half a vector of floats becomes a vector of doubles. */
typedef float vh_mem __attribute__((vector_size(2 * VL), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(4 * VL)));

/* In double: squares of small gradients would vanish in float, and sums over millions lose their
 * last digits. */
static double sum_of_squares(const float *x, size_t n) {
    enum { H = VL / 2 };
    vd s[4] = {{0}, {0}, {0}, {0}};
    size_t i = 0;
    for (; i + 4 * H <= n; i += 4 * H)
        for (int k = 0; k < 4; k++) {
            vd d = __builtin_convertvector(*(const vh_mem *)(x + i + k * H), vd);
            s[k] += d * d;
        }
    double sum = 0;
    for (; i < n; i++) sum += (double)x[i] * x[i];
    for (int k = 0; k < 4; k++)
        for (int j = 0; j < H; j++) sum += s[k][j];
    return sum;
}

/* Range i of the CPU_SUM_CUTS into which n elements are cut. */
static void sum_cut(size_t n, int i, size_t *begin, size_t *end) {
    size_t piece = ((n + CPU_SUM_CUTS - 1) / CPU_SUM_CUTS + 15) & ~(size_t)15;
    *begin = (size_t)i * piece < n ? (size_t)i * piece : n;
    *end = n - *begin < piece ? n : *begin + piece;
}

static double sum_partials(const Backend *be) {
    double sum = 0;
    for (int i = 0; i < CPU_SUM_CUTS; i++) sum += be->sum_partials[i];
    return sum;
}

void op_loss_add(Backend *be, StepState *s, const float *losses, size_t n) {
    (void)be;
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += losses[i];
    s->loss_sum += sum;
}

void op_grad_norm(Backend *be, StepState *s, const float *grads, size_t n) {
    REQUIRE(be->scratch, "no scratch is reserved");
    CPU_PARALLEL_FOR
    for (int i = 0; i < CPU_SUM_CUTS; i++) {
        size_t begin, end;
        sum_cut(n, i, &begin, &end);
        be->sum_partials[i] = sum_of_squares(grads + begin, end - begin);
    }
    s->grad_sumsq = sum_partials(be);
}

void op_step_decide(Backend *be, StepState *s) {
    (void)be;
    s->skipped = !isfinite(s->loss_sum) || !isfinite(s->grad_sumsq);
    s->updates += !s->skipped;
}

/* ---- AdamW ----------------------------------------------------------------------------------- */

typedef struct Adam { /* of one step */
    float *params, *master, *m, *v;
    const float *grads;
    float clip;                       /* factor of the gradient */
    float beta1, beta2, rest1, rest2; /* rest: 1 - beta */
    float m_scale, v_scale;           /* 1 / (1 - beta^t) */
    float lr, eps, weight_decay, update_clip;
} Adam;

static Adam adam_of_step(const AdamArgs *a, const StepState *s) {
    const double t = (double)s->updates, norm = sqrt(s->grad_sumsq);
    Adam k = {.beta1 = a->beta1,
        .beta2 = a->beta2,
        .lr = a->lr,
        .eps = a->eps,
        .clip = 1.0f,
        .weight_decay = a->weight_decay,
        .update_clip = a->update_clip};
    k.rest1 = (float)(1.0 - (double)a->beta1);
    k.rest2 = (float)(1.0 - (double)a->beta2);
    k.m_scale = (float)(1.0 / (1.0 - pow((double)a->beta1, t)));
    k.v_scale = (float)(1.0 / (1.0 - pow((double)a->beta2, t)));
    if (a->grad_clip > 0 && norm + 1e-6 > (double)a->grad_clip)
        k.clip = (float)((double)a->grad_clip / (norm + 1e-6));
    return k;
}

/* The two halves of an update. Where v is 0 there was never a gradient, or one whose square is
 * below float: no update, whatever eps is. */
static inline float adam_direction(const Adam *k, float m, float v) {
    float u = m * k->m_scale / (sqrtf(v * k->v_scale) + k->eps);
    return v > 0.0f ? u : 0.0f;
}
static inline float adam_step(const Adam *k, const OptRange *r, float p, float u) {
    return p - k->lr * (u + k->weight_decay * r->decay * (p - r->center));
}

static void adam_moments(const Adam *k, size_t begin, size_t n) {
    float *restrict m = k->m + begin, *restrict v = k->v + begin;
    const float *restrict grads = k->grads + begin;
    for (size_t i = 0; i < n; i++) {
        float g = grads[i] * k->clip;
        m[i] = k->beta1 * m[i] + k->rest1 * g;
        v[i] = k->beta2 * v[i] + k->rest2 * (g * g);
    }
}

static double adam_direction_squares(const Adam *k, size_t begin, size_t n) {
    enum { PIECE = 256 };
    double sum = 0;
    for (size_t i = 0; i < n; i += PIECE) {
        float u[PIECE];
        const size_t count = n - i < PIECE ? n - i : PIECE;
        for (size_t j = 0; j < count; j++)
            u[j] = adam_direction(k, k->m[begin + i + j], k->v[begin + i + j]);
        sum += sum_of_squares(u, count);
    }
    return sum;
}

/* u is divided by shrink */
static void adam_apply(const Adam *k, const OptRange *r, float shrink, size_t begin, size_t n) {
    float *restrict p = k->master + begin;
    const float *restrict m = k->m + begin, *restrict v = k->v + begin;
    const float factor = 1.0f / shrink;
    for (size_t i = 0; i < n; i++)
        p[i] = adam_step(k, r, p[i], adam_direction(k, m[i], v[i]) * factor);
    if (k->params != k->master) memcpy(k->params + begin, p, n * sizeof *p);
}

/* A range whose update is clipped: its mean square must be known before any of it is applied. */
static void adam_range_clipped(Backend *be, const Adam *k, const OptRange *r) {
    CPU_PARALLEL_FOR
    for (int i = 0; i < CPU_SUM_CUTS; i++) {
        size_t begin, end;
        sum_cut(r->count, i, &begin, &end);
        adam_moments(k, r->offset + begin, end - begin);
        be->sum_partials[i] = adam_direction_squares(k, r->offset + begin, end - begin);
    }
    const double rms = sqrt(sum_partials(be) / (double)r->count);
    const double shrink = fmax(1.0, rms / (double)k->update_clip);
    CPU_PARALLEL_FOR
    for (int i = 0; i < CPU_SUM_CUTS; i++) {
        size_t begin, end;
        sum_cut(r->count, i, &begin, &end);
        adam_apply(k, r, (float)shrink, r->offset + begin, end - begin);
    }
}

/* The share of one thread in all ranges: elements are dealt out evenly, whatever the sizes of the
 * tensors. */
static void adam_share(const Adam *k, const OptRange *ranges, int count, int thread, int team) {
    enum { PIECE = 2048 }; /* moments are still in the first-level cache when they are applied */
    size_t total = 0, before = 0;
    for (int r = 0; r < count; r++) total += ranges[r].count;
    const size_t share = (total / (size_t)team + 16) & ~(size_t)15;
    const size_t first = share * (size_t)thread, last = first + share;
    for (int r = 0; r < count && before < last; r++) {
        const OptRange *range = &ranges[r];
        size_t begin = first > before ? first - before : 0;
        size_t end = last - before < range->count ? last - before : range->count;
        for (; begin < end; begin += PIECE) {
            const size_t n = end - begin < PIECE ? end - begin : PIECE;
            adam_moments(k, range->offset + begin, n);
            adam_apply(k, range, 1.0f, range->offset + begin, n);
        }
        before += range->count;
    }
}

void op_adamw(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    if (s->skipped) return;
    REQUIRE(be->scratch, "no scratch is reserved");
    REQUIRE(s->updates >= 1, "updates=%lld: op_step_decide comes first", (long long)s->updates);
    Adam k = adam_of_step(a, s);
    k.params = x->params, k.master = x->master, k.m = x->m, k.v = x->v, k.grads = x->grads;
    if (k.update_clip > 0) {
        for (int r = 0; r < x->count; r++)
            if (x->ranges[r].count) adam_range_clipped(be, &k, &x->ranges[r]);
        return;
    }
#pragma omp parallel num_threads(be->threads)
    adam_share(&k, x->ranges, x->count, cpu_thread(), cpu_team());
}
