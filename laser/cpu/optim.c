/* cpu/optim.c: what happens once a step: the loss and the norm of the gradient, whether the step
 * counts, and AdamW and LAMB. Bound by memory: every array is passed over once, with LAMB or update
 * clipping all but the gradients twice. */
#include "laser/cpu/backend.h"

#include <float.h>
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

void op_loss_add(Backend *be, double *sum, const float *losses, size_t n) {
    (void)be;
    double all = 0;
    for (size_t i = 0; i < n; i++) all += losses[i];
    *sum += all;
}

void op_add(Backend *be, float *x, const float *y, size_t n) {
    const size_t piece = (size_t)1 << 16;
    CPU_PARALLEL_FOR
    for (size_t at = 0; at < n; at += piece) {
        const size_t end = n - at < piece ? n : at + piece;
        for (size_t i = at; i < end; i++) x[i] += y[i];
    }
}

void op_square_blocks(Backend *be, double *squares, const float *x, size_t n) {
    REQUIRE(n % OPT_BLOCK == 0, "%zu elements are not whole blocks", n);
    CPU_PARALLEL_FOR
    for (size_t i = 0; i < n / OPT_BLOCK; i++)
        squares[i] = sum_of_squares(x + i * OPT_BLOCK, OPT_BLOCK);
}

static uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

void op_checksum(Backend *be, uint64_t *sum, const float *x, size_t n) {
    (void)be;
    uint64_t total = 0;
#pragma omp parallel for reduction(+ : total)
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        total += mixed(bits ^ (uint64_t)i * 0x9e3779b97f4a7c15);
    }
    *sum = total;
}

void op_bad_weights(Backend *be, double *bad, const StepState *s) {
    (void)be;
    *bad = s->bad_weights;
}

static double sum_in_order(const double *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

void op_step_decide(Backend *be, StepState *s, const StepSums *sums) {
    (void)be;
    s->loss_sum = sum_in_order(sums->losses, sums->micro_steps);
    s->grad_sumsq = sum_in_order(sums->squares, sums->blocks);
    s->bad_weights = *sums->bad != 0.0;
    s->skipped = s->bad_weights || !isfinite(s->loss_sum) || !isfinite(s->grad_sumsq);
    s->updates += !s->skipped;
}

/* ---- AdamW and LAMB -------------------------------------------------------------------------- */

/* What an element needs to know of the step; loops hold a copy of it in registers. */
typedef struct AdamStep {
    float clip;             /* factor of the gradient */
    float beta1, beta2;     /* of the moments */
    float rest1, rest2;     /* 1 - beta */
    float m_scale, v_scale; /* 1 / (1 - beta^t) */
    float eps, lr;
} AdamStep;

typedef struct Adam {
    const OptTensors *x;
    const AdamArgs *a;
    AdamStep step;
    bool in_place;        /* params is master */
    int32_t *bad_weights; /* becomes 1 */
} Adam;

static Adam adam_of_step(const OptTensors *x, const AdamArgs *a, StepState *s) {
    REQUIRE(s->updates >= 1, "updates=%lld: op_step_decide comes first", (long long)s->updates);
    const double t = (double)s->updates, norm = sqrt(s->grad_sumsq);
    Adam k = {.x = x, .a = a, .in_place = x->params == x->master, .bad_weights = &s->bad_weights};
    k.step =
        (AdamStep){.clip = 1.0f, .beta1 = a->beta1, .beta2 = a->beta2, .eps = a->eps, .lr = a->lr};
    k.step.rest1 = (float)(1.0 - (double)a->beta1);
    k.step.rest2 = (float)(1.0 - (double)a->beta2);
    k.step.m_scale = (float)(1.0 / (1.0 - pow((double)a->beta1, t)));
    k.step.v_scale = (float)(1.0 / (1.0 - pow((double)a->beta2, t)));
    if (a->grad_clip > 0 && norm + 1e-6 > (double)a->grad_clip)
        k.step.clip = (float)((double)a->grad_clip / (norm + 1e-6));
    return k;
}

/* ---- one element ---- */

static inline void adam_moments(const AdamStep *s, float grad, float *m, float *v) {
    const float g = grad * s->clip;
    *m = s->beta1 * *m + s->rest1 * g;
    *v = s->beta2 * *v + s->rest2 * (g * g);
}

/* u. Where v is 0 there was never a gradient, or one whose square is below float: no update,
 * whatever eps is. */
static inline float adam_direction(const AdamStep *s, float m, float v) {
    const float u = m * s->m_scale / (sqrtf(v * s->v_scale) + s->eps);
    return v > 0.0f ? u : 0.0f;
}

/* A tensor moves by -lr * (direction * u + decay * (master - center)). */
typedef struct AdamFactors {
    float direction, decay;
} AdamFactors;

static inline float adam_moved(
    const AdamStep *s, AdamFactors by, float u, float master, float center) {
    return master - s->lr * (u * by.direction + by.decay * (master - center));
}

/* ---- parts of tensors ---- */

/* Elements of one tensor that are held here. */
typedef struct Part {
    const OptRange *range;
    size_t at; /* the first one's place among all that is held */
    size_t n;
} Part;

/* The first one's place in the parameter arena. */
static inline size_t part_offset(const Part *p) {
    return p->range->offset + (p->at - p->range->held);
}
static inline float *part_master(const Adam *k, const Part *p) {
    return k->x->master + (k->in_place ? part_offset(p) : p->at);
}

/* master (n) of a part is written; bad: one of them is not finite. */
static void finish_part(const Adam *k, const Part *p, const float *master, bool bad) {
    if (bad) {
#pragma omp atomic write
        *k->bad_weights = 1;
    }
    if (!k->in_place) memcpy(k->x->params + part_offset(p), master, p->n * sizeof *master);
}

/* ---- sums over tensors ---- */

/* u (n) and q (n): they give the norm of any combination of the two. Where u and decay cancel,
 * doubles lose less than u has lost as a float. */
static OptSums products(const float *u, const float *p, float center, size_t n) {
    enum { H = VL / 2 };
    OptSums s = {0, 0, 0};
    vd uu = {0}, uq = {0}, qq = {0};
    size_t i = 0;
    for (; i + H <= n; i += H) {
        const vd du = __builtin_convertvector(*(const vh_mem *)(u + i), vd);
        const vd dq = __builtin_convertvector(*(const vh_mem *)(p + i), vd) - (double)center;
        uu += du * du, uq += du * dq, qq += dq * dq;
    }
    for (int j = 0; j < H; j++) s.uu += uu[j], s.uq += uq[j], s.qq += qq[j];
    for (; i < n; i++) {
        const double du = (double)u[i], dq = (double)p[i] - (double)center;
        s.uu += du * du, s.uq += du * dq, s.qq += dq * dq;
    }
    return s;
}

static size_t first_slot(const OptTensor *t, int tensor) {
    return t->offset / OPT_BLOCK + (size_t)tensor;
}

static AdamFactors factors_of(const Adam *k, int tensor) {
    const OptTensor *t = &k->x->tensors[tensor];
    const size_t first = first_slot(t, tensor);
    const size_t blocks = (t->offset % OPT_BLOCK + t->count + OPT_BLOCK - 1) / OPT_BLOCK;
    const double decay = (double)(k->a->weight_decay * t->decay), limit = (double)k->a->update_clip;
    double shrink = 1, trust = 1;
    OptSums s = {0, 0, 0};
    for (const OptSums *b = k->x->sums + first; b < k->x->sums + first + blocks; b++)
        s.uu += b->uu, s.uq += b->uq, s.qq += b->qq;
    if (limit > 0) shrink = 1 / fmax(1, sqrt(s.uu / (double)t->count) / limit);
    if (k->a->lamb) {
        const double squares =
            shrink * shrink * s.uu + 2 * shrink * decay * s.uq + decay * decay * s.qq;
        if (squares > 0 && s.qq > 0) trust = sqrt(s.qq / squares);
    }
    return (AdamFactors){(float)(trust * shrink), (float)(trust * decay)};
}

/* ---- what is done with all that is held, block by block: even shares for the threads ---- */

/* Takes the elements of one tensor in one block. */
typedef void AdamVisit(const Adam *k, Part p);

static void visit_all(const Adam *k, Part p) {
    const AdamStep s = k->step;
    const AdamFactors by = {1.0f, k->a->weight_decay * p.range->decay};
    float *restrict master = part_master(k, &p), *restrict m = k->x->m + p.at,
                    *restrict v = k->x->v + p.at;
    const float *restrict grads = k->x->grads + part_offset(&p);
    const float center = p.range->center;
    int bad = 0;
    for (size_t i = 0; i < p.n; i++) {
        float m1 = m[i], v1 = v[i]; /* in registers: GCC does not keep m[i] in one */
        adam_moments(&s, grads[i], &m1, &v1);
        m[i] = m1, v[i] = v1;
        const float p1 = adam_moved(&s, by, adam_direction(&s, m1, v1), master[i], center);
        master[i] = p1;
        bad |= !(fabsf(p1) <= FLT_MAX);
    }
    finish_part(k, &p, master, bad);
}

static void visit_sums(const Adam *k, Part p) {
    const AdamStep s = k->step;
    float *restrict m = k->x->m + p.at, *restrict v = k->x->v + p.at;
    const float *restrict grads = k->x->grads + part_offset(&p);
    float u[OPT_BLOCK];
    OptSums *to = k->x->sums + part_offset(&p) / OPT_BLOCK + p.range->tensor;
    for (size_t i = 0; i < p.n; i++) {
        float m1 = m[i], v1 = v[i];
        adam_moments(&s, grads[i], &m1, &v1);
        m[i] = m1, v[i] = v1;
        u[i] = adam_direction(&s, m1, v1);
    }
    if (k->a->lamb)
        *to = products(u, part_master(k, &p), p.range->center, p.n);
    else
        to->uu = sum_of_squares(u, p.n);
}

static void visit_apply(const Adam *k, Part p) {
    const AdamStep s = k->step;
    const float *factors = k->x->factors + 2 * p.range->tensor;
    const AdamFactors by = {factors[0], factors[1]};
    float *restrict master = part_master(k, &p);
    const float *restrict m = k->x->m + p.at, *restrict v = k->x->v + p.at;
    const float center = p.range->center;
    int bad = 0;
    for (size_t i = 0; i < p.n; i++) {
        const float u = adam_direction(&s, m[i], v[i]);
        const float p1 = adam_moved(&s, by, u, master[i], center);
        master[i] = p1;
        bad |= !(fabsf(p1) <= FLT_MAX);
    }
    finish_part(k, &p, master, bad);
}

/* The first range that ends behind element `at` of what is held. */
static int range_after(const OptTensors *x, size_t at) {
    int low = 0, high = x->count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (x->ranges[middle].held + x->ranges[middle].count <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void visit_block(const Adam *k, size_t block, AdamVisit *visit) {
    const OptTensors *x = k->x;
    const size_t first = block * OPT_BLOCK, last = first + OPT_BLOCK;
    for (int i = range_after(x, first); i < x->count && x->ranges[i].held < last; i++) {
        const OptRange *r = &x->ranges[i];
        const size_t begin = r->held > first ? r->held : first, behind = r->held + r->count;
        visit(k, (Part){r, begin, (behind < last ? behind : last) - begin});
    }
}

static void visit_held(Backend *be, const Adam *k, AdamVisit *visit) {
    const size_t blocks = (k->x->held + OPT_BLOCK - 1) / OPT_BLOCK;
    CPU_PARALLEL_FOR
    for (size_t i = 0; i < blocks; i++) visit_block(k, i, visit);
}

void op_adamw(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    REQUIRE(!a->lamb && !(a->update_clip > 0), "%s", "norms of tensors are asked for");
    if (s->skipped) return;
    const Adam k = adam_of_step(x, a, s);
    visit_held(be, &k, visit_all);
}

void op_adam_sums(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    backend_zero(be, x->sums, (x->blocks + (size_t)x->tensor_count) * sizeof *x->sums);
    if (s->skipped) return;
    const Adam k = adam_of_step(x, a, s);
    visit_held(be, &k, visit_sums);
}

void op_adam_apply(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    if (s->skipped) return;
    const Adam k = adam_of_step(x, a, s);
    for (int i = 0; i < x->tensor_count; i++) {
        const AdamFactors by = factors_of(&k, i);
        x->factors[2 * i] = by.direction, x->factors[2 * i + 1] = by.decay;
    }
    visit_held(be, &k, visit_apply);
}
