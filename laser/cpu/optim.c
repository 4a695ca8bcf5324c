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

/* Range i of the CPU_SUM_CUTS into which n elements are cut. */
static void sum_cut(size_t n, int i, size_t *begin, size_t *end) {
    size_t piece = ((n + CPU_SUM_CUTS - 1) / CPU_SUM_CUTS + 15) & ~(size_t)15;
    *begin = (size_t)i * piece < n ? (size_t)i * piece : n;
    *end = n - *begin < piece ? n : *begin + piece;
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
    s->grad_sumsq = 0;
    for (int i = 0; i < CPU_SUM_CUTS; i++) s->grad_sumsq += be->sum_partials[i];
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

void op_step_decide(Backend *be, StepState *s) {
    (void)be;
    s->skipped = s->bad_weights || !isfinite(s->loss_sum) || !isfinite(s->grad_sumsq);
    s->updates += !s->skipped;
}

/* ---- AdamW and LAMB -------------------------------------------------------------------------- */

/* Elements whose weights, gradients, moments and updates lie in the first-level cache together. */
enum { ADAM_PIECE = 1024 };

typedef struct Adam { /* of one step */
    float *params, *master, *m, *v;
    const float *grads;
    float clip;                       /* factor of the gradient */
    float beta1, beta2, rest1, rest2; /* rest: 1 - beta */
    float m_scale, v_scale;           /* 1 / (1 - beta^t) */
    float lr, eps, weight_decay, update_clip;
    bool lamb;
    int32_t *bad_weights; /* becomes 1 */
} Adam;

static Adam adam_of_step(const AdamArgs *a, const StepState *s) {
    const double t = (double)s->updates, norm = sqrt(s->grad_sumsq);
    Adam k = {.beta1 = a->beta1,
        .beta2 = a->beta2,
        .lr = a->lr,
        .eps = a->eps,
        .clip = 1.0f,
        .weight_decay = a->weight_decay,
        .update_clip = a->update_clip,
        .lamb = a->lamb};
    k.rest1 = (float)(1.0 - (double)a->beta1);
    k.rest2 = (float)(1.0 - (double)a->beta2);
    k.m_scale = (float)(1.0 / (1.0 - pow((double)a->beta1, t)));
    k.v_scale = (float)(1.0 / (1.0 - pow((double)a->beta2, t)));
    if (a->grad_clip > 0 && norm + 1e-6 > (double)a->grad_clip)
        k.clip = (float)((double)a->grad_clip / (norm + 1e-6));
    return k;
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

/* u. Where v is 0 there was never a gradient, or one whose square is below float: no update,
 * whatever eps is. */
static inline float adam_direction(const Adam *k, float m, float v) {
    float u = m * k->m_scale / (sqrtf(v * k->v_scale) + k->eps);
    return v > 0.0f ? u : 0.0f;
}

/* A range moves by -lr * (direction * u + decay * (master - center)). */
typedef struct AdamFactors {
    float direction, decay;
} AdamFactors;

static void adam_apply(
    const Adam *k, AdamFactors by, const OptRange *r, size_t begin /* in the arena */, size_t n) {
    float *restrict p = k->master + begin;
    const float *restrict m = k->m + begin, *restrict v = k->v + begin;
    const float center = r->center;
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        const float u = adam_direction(k, m[i], v[i]);
        p[i] -= k->lr * (u * by.direction + by.decay * (p[i] - center));
        bad |= !(fabsf(p[i]) <= FLT_MAX);
    }
    if (bad) {
#pragma omp atomic write
        *k->bad_weights = 1;
    }
    if (k->params != k->master) memcpy(k->params + begin, p, n * sizeof *p);
}

/* Sums over a range, q being master - center: they give the norm of any combination of u and q.
 * Where u and decay cancel, doubles lose less than u has lost as a float. */
typedef struct AdamSums {
    double uu, uq, qq;
} AdamSums;

static void adam_add_products(AdamSums *s, const float *u, const float *p, float center, size_t n) {
    enum { H = VL / 2 };
    vd uu = {0}, uq = {0}, qq = {0};
    size_t i = 0;
    for (; i + H <= n; i += H) {
        const vd du = __builtin_convertvector(*(const vh_mem *)(u + i), vd);
        const vd dq = __builtin_convertvector(*(const vh_mem *)(p + i), vd) - (double)center;
        uu += du * du, uq += du * dq, qq += dq * dq;
    }
    for (int j = 0; j < H; j++) s->uu += uu[j], s->uq += uq[j], s->qq += qq[j];
    for (; i < n; i++) {
        const double du = (double)u[i], dq = (double)p[i] - (double)center;
        s->uu += du * du, s->uq += du * dq, s->qq += dq * dq;
    }
}

/* Of the elements [begin, begin + n) of the arena, whose moments are up to date. */
static void adam_add_sums(
    const Adam *k, AdamSums *s, const OptRange *r, size_t begin, size_t n /* <= ADAM_PIECE */) {
    float u[ADAM_PIECE];
    for (size_t i = 0; i < n; i++) u[i] = adam_direction(k, k->m[begin + i], k->v[begin + i]);
    if (k->lamb)
        adam_add_products(s, u, k->master + begin, r->center, n);
    else
        s->uu += sum_of_squares(u, n);
}

static AdamFactors adam_factors(const Adam *k, const OptRange *r, const AdamSums *s) {
    const double decay = (double)(k->weight_decay * r->decay), limit = (double)k->update_clip;
    double shrink = 1, trust = 1;
    if (limit > 0) shrink = 1 / fmax(1, sqrt(s->uu / (double)r->count) / limit);
    if (k->lamb) {
        const double squares =
            shrink * shrink * s->uu + 2 * shrink * decay * s->uq + decay * decay * s->qq;
        if (squares > 0 && s->qq > 0) trust = sqrt(s->qq / squares);
    }
    return (AdamFactors){(float)(trust * shrink), (float)(trust * decay)};
}

/* Where norms are needed before anything is moved: the ranges cut into pieces that are dealt out to
 * the threads, twice. Cut i of range r has slot offset / piece + r + i for its sums. No two have
 * the same: the slots of the next range begin at least count / piece + 1 later, which is no less
 * than the number of cuts. */
enum { ADAM_SLOTS = 21 }; /* for each range; its factors take the rest of its work */
_Static_assert(sizeof(AdamFactors) + ADAM_SLOTS * sizeof(AdamSums) == OPT_WORK * sizeof(double),
    "factors and slots are what a range has in work");

typedef struct AdamCuts {
    const OptRange *ranges;
    int count, used;      /* ranges; slots up to the last cut */
    size_t piece;         /* elements of a cut */
    AdamFactors *factors; /* (count) */
    AdamSums *slots;      /* (used) */
} AdamCuts;

static size_t first_slot(const AdamCuts *c, int range) {
    return c->ranges[range].offset / c->piece + (size_t)range;
}
static size_t cuts_of(const AdamCuts *c, int range) {
    return (c->ranges[range].count + c->piece - 1) / c->piece;
}

static AdamCuts adam_cuts(const OptTensors *x) {
    AdamCuts c = {.ranges = x->ranges, .count = x->count};
    const size_t count = (size_t)x->count;
    const size_t least = (x->elements / ((ADAM_SLOTS - 1) * count) + 16) & ~(size_t)15;
    c.piece = least > ADAM_PIECE ? least : ADAM_PIECE;
    c.factors = (AdamFactors *)x->work;
    c.slots = (AdamSums *)(x->work + count);
    c.used = (int)(first_slot(&c, x->count - 1) + cuts_of(&c, x->count - 1));
    REQUIRE((size_t)c.used <= ADAM_SLOTS * count, "%d slots for %zu tensors", c.used, count);
    return c;
}

/* The range of a slot and its elements there; none where the slot lies between those of two. */
static int adam_cut(const AdamCuts *c, int slot, size_t *begin, size_t *end) {
    int low = 0, high = c->count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (first_slot(c, middle) <= (size_t)slot)
            low = middle;
        else
            high = middle;
    }
    const OptRange *r = &c->ranges[low];
    const size_t cut = (size_t)slot - first_slot(c, low), last = r->offset + r->count;
    *begin = r->offset + cut * c->piece;
    *end = *begin + c->piece < last ? *begin + c->piece : last;
    return low;
}

static void adam_sum_slot(const Adam *k, const AdamCuts *c, int slot) {
    AdamSums sums = {0, 0, 0};
    size_t begin, end;
    const OptRange *r = &c->ranges[adam_cut(c, slot, &begin, &end)];
    for (; begin < end; begin += ADAM_PIECE) {
        const size_t n = end - begin < ADAM_PIECE ? end - begin : ADAM_PIECE;
        adam_moments(k, begin, n);
        adam_add_sums(k, &sums, r, begin, n);
    }
    c->slots[slot] = sums;
}

static void adam_apply_slot(const Adam *k, const AdamCuts *c, int slot) {
    size_t begin, end;
    const int at = adam_cut(c, slot, &begin, &end);
    if (begin < end) adam_apply(k, c->factors[at], &c->ranges[at], begin, end - begin);
}

static void adam_with_norms(Backend *be, const Adam *k, const AdamCuts *c) {
    CPU_PARALLEL_FOR
    for (int slot = (int)first_slot(c, 0); slot < c->used; slot++) adam_sum_slot(k, c, slot);
    for (int r = 0; r < c->count; r++) {
        AdamSums all = {0, 0, 0};
        const AdamSums *sums = c->slots + first_slot(c, r);
        for (size_t i = 0; i < cuts_of(c, r); i++)
            all.uu += sums[i].uu, all.uq += sums[i].uq, all.qq += sums[i].qq;
        c->factors[r] = adam_factors(k, &c->ranges[r], &all);
    }
    CPU_PARALLEL_FOR
    for (int slot = (int)first_slot(c, 0); slot < c->used; slot++) adam_apply_slot(k, c, slot);
}

/* The share of one thread in all ranges: elements are dealt out evenly, whatever the sizes of the
 * tensors. */
static void adam_share(const Adam *k, const OptRange *ranges, int count, int thread, int team) {
    size_t total = 0, before = 0;
    for (int r = 0; r < count; r++) total += ranges[r].count;
    const size_t share = (total / (size_t)team + 16) & ~(size_t)15;
    const size_t first = share * (size_t)thread, last = first + share;
    for (int r = 0; r < count && before < last; r++) {
        const OptRange *range = &ranges[r];
        const AdamFactors by = {1.0f, k->weight_decay * range->decay};
        size_t begin = first > before ? first - before : 0;
        size_t end = last - before < range->count ? last - before : range->count;
        for (; begin < end; begin += ADAM_PIECE) {
            const size_t n = end - begin < ADAM_PIECE ? end - begin : ADAM_PIECE;
            adam_moments(k, range->offset + begin, n);
            adam_apply(k, by, range, range->offset + begin, n);
        }
        before += range->count;
    }
}

void op_adamw(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    if (s->skipped) return;
    REQUIRE(be->scratch, "no scratch is reserved");
    REQUIRE(x->count > 0, "%d tensors", x->count);
    REQUIRE(s->updates >= 1, "updates=%lld: op_step_decide comes first", (long long)s->updates);
    Adam k = adam_of_step(a, s);
    k.params = x->params, k.master = x->master, k.m = x->m, k.v = x->v, k.grads = x->grads;
    k.bad_weights = &s->bad_weights;
    if (k.lamb || k.update_clip > 0) {
        const AdamCuts cuts = adam_cuts(x);
        adam_with_norms(be, &k, &cuts);
        return;
    }
#pragma omp parallel num_threads(be->threads)
    adam_share(&k, x->ranges, x->count, cpu_thread(), cpu_team());
}
