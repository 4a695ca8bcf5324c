/* test_oracle.c: the fp64 oracle against itself: every gradient against central finite differences,
 * the identities of LASER, and the paper's plain form. Knows no backend. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/ops_ref.h"
#include "dev/test/test.h"
#include "laser/rng.h"

static double *doubles(size_t n) {
    return xcalloc(n, sizeof(double));
}

static double *randoms(size_t n, uint64_t seed, double std) {
    double *x = doubles(n);
    for (size_t i = 0; i < n; i++) x[i] = std * rng_normal(seed, RNG_TEST, i);
    return x;
}

/* A function of many values: loss(user) reads x[0..n). */
typedef struct Slope {
    double (*loss)(void *user);
    void *user;
} Slope;

/* Central differences with step h: error h^2 f'''/6 + 2^-53 f/h. At h = 1e-5 both are near 1e-10 of
 * the scale of the problem, so 1e-7 of the largest gradient leaves room and finds any missing term.
 */
static void check_slope(
    Test *t, const char *what, const Slope *s, double *x, size_t n, const double *grad) {
    const double h = 1e-5;
    double largest = 1e-3;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(grad[i]));
    for (size_t i = 0; i < n; i++) {
        double at = x[i];
        x[i] = at + h;
        double above = s->loss(s->user);
        x[i] = at - h;
        double below = s->loss(s->user);
        x[i] = at;
        double slope = (above - below) / (2 * h), tol = 1e-7 * largest;
        CHECK(t, fabs(slope - grad[i]) <= tol, "%s[%zu] is %.12g, differences say %.12g", what, i,
            grad[i], slope);
    }
}

static double dot(const double *x, const double *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* ---- the small operations -------------------------------------------------------------------- */

static const int32_t embed_tokens[] = {3, 0, 4, 3, 3, 1};
typedef struct EmbedProblem {
    double *wte, *pos, *g, *x;
    RefEmbed a;
} EmbedProblem;

static double embed_loss(void *user) {
    EmbedProblem *p = user;
    ref_embed_fwd(p->x, p->wte, p->pos, &p->a);
    return dot(p->x, p->g, 6 * 4);
}

static void embed_slopes(Test *t) {
    EmbedProblem p = {randoms(5 * 4, 1, 1), randoms(3 * 4, 2, 1), randoms(6 * 4, 3, 1),
        doubles(6 * 4), {.B = 2, .T = 3, .C = 4, .scale = 1.7, .tokens = embed_tokens}};
    double *dwte = doubles(5 * 4), *dpos = randoms(3 * 4, 4, 1);
    ref_embed_bwd(dwte, dpos, 0, p.g, &p.a);
    Slope s = {embed_loss, &p};
    check_slope(t, "dwte", &s, p.wte, 5 * 4, dwte);
    check_slope(t, "dpos", &s, p.pos, 3 * 4, dpos);
    free(p.wte), free(p.pos), free(p.g), free(p.x), free(dwte), free(dpos);
}

typedef struct NormProblem {
    double *x_in, *delta, *w, *b, *x, *out, *g;
    RefNorm a;
} NormProblem;

static double norm_loss(void *user) {
    NormProblem *p = user;
    ref_norm_fwd(p->x, p->out, NULL, NULL, p->x_in, p->delta, &p->a);
    return dot(p->out, p->g, 3 * 7);
}

static void norm_slopes(Test *t) {
    NormProblem p = {randoms(21, 1, 1), randoms(21, 2, 1), randoms(7, 3, 1), randoms(7, 4, 1),
        doubles(21), doubles(21), randoms(21, 5, 1), {.N = 3, .C = 7, .eps = 0.1}};
    p.a.w = p.w, p.a.b = p.b;
    norm_loss(&p);
    double *dx = doubles(21), *dw = randoms(7, 6, 1), *db = randoms(7, 7, 1);
    ref_norm_bwd(dx, dw, db, 0, p.g, p.x, &p.a);
    Slope s = {norm_loss, &p};
    check_slope(t, "dx", &s, p.x_in, 21, dx);
    check_slope(t, "ddelta", &s, p.delta, 21, dx);
    check_slope(t, "dw", &s, p.w, 7, dw);
    check_slope(t, "db", &s, p.b, 7, db);
    free(p.x_in), free(p.delta), free(p.w), free(p.b), free(p.x), free(p.out), free(p.g);
    free(dx), free(dw), free(db);
}

/* Two layers, so that the activation between them is seen by the backward of the second. */
typedef struct LinearProblem {
    double *x, *w1, *b1, *w2, *b2, *pre, *h, *y, *g;
    RefLinear first, second;
} LinearProblem;

static double linear_loss(void *user) {
    LinearProblem *p = user;
    ref_linear_fwd(p->h, p->pre, p->x, &p->first);
    ref_linear_fwd(p->y, NULL, p->h, &p->second);
    return dot(p->y, p->g, 4 * 3);
}

static void linear_slopes_of(Test *t, RefAct act) {
    LinearProblem p = {randoms(4 * 5, 1, 1), randoms(6 * 5, 2, 1), randoms(6, 3, 1),
        randoms(3 * 6, 4, 1), randoms(3, 5, 1), doubles(24), doubles(24), doubles(12),
        randoms(12, 6, 1), {.N = 4, .OC = 6, .IC = 5, .act = act}, {.N = 4, .OC = 3, .IC = 6}};
    p.first.w = p.w1, p.first.bias = p.b1, p.second.w = p.w2, p.second.bias = p.b2;
    linear_loss(&p);
    double *dpre = doubles(24), *dx = doubles(20), *dw2 = randoms(18, 7, 1), *dw1 = doubles(30);
    double *db1 = doubles(6), *db2 = doubles(3);
    RefLinear back = p.second; /* the act of a backward is that of the layer before */
    back.act = act;
    ref_linear_bwd(dpre, dw2, db2, 0, p.g, p.h, p.pre, &back);
    back = p.first;
    back.act = REF_NONE;
    ref_linear_bwd(dx, dw1, db1, 0, dpre, p.x, NULL, &back);
    Slope s = {linear_loss, &p};
    check_slope(t, "dx", &s, p.x, 20, dx);
    check_slope(t, "dw1", &s, p.w1, 30, dw1);
    check_slope(t, "db1", &s, p.b1, 6, db1);
    check_slope(t, "dw2", &s, p.w2, 18, dw2);
    check_slope(t, "db2", &s, p.b2, 3, db2);
    free(p.x), free(p.w1), free(p.b1), free(p.w2), free(p.b2), free(p.pre), free(p.h), free(p.y);
    free(p.g), free(dpre), free(dx), free(dw2), free(dw1), free(db1), free(db2);
}

static void linear_slopes(Test *t) {
    linear_slopes_of(t, REF_NONE);
    linear_slopes_of(t, REF_RELU);
    linear_slopes_of(t, REF_GELU);
}

typedef struct RopeProblem {
    double *qkv, *turned, *g;
} RopeProblem;

static double rope_loss(void *user) {
    RopeProblem *p = user;
    memcpy(p->turned, p->qkv, 2 * 5 * 3 * 2 * 6 * sizeof(double));
    ref_rope(p->turned, 1, 2, 5, 2, 6);
    return dot(p->turned, p->g, 2 * 5 * 3 * 2 * 6);
}

static void rope_slopes(Test *t) {
    size_t n = 2 * 5 * 3 * 2 * 6;
    RopeProblem p = {randoms(n, 1, 1), doubles(n), randoms(n, 2, 1)};
    double *grad = doubles(n), *back = doubles(n);
    memcpy(grad, p.g, n * sizeof *grad);
    ref_rope(grad, -1, 2, 5, 2, 6);
    Slope s = {rope_loss, &p};
    check_slope(t, "dqkv", &s, p.qkv, n, grad);
    rope_loss(&p);
    memcpy(back, p.turned, n * sizeof *back);
    ref_rope(back, -1, 2, 5, 2, 6);
    double changed = 0;
    for (size_t i = 0; i < n; i++) {
        CHECK_NEAR(t, back[i], p.qkv[i], 1e-14);
        changed = fmax(changed, fabs(p.turned[i] - p.qkv[i]));
    }
    CHECK(t, changed > 0.5, "rope moved nothing: %g", changed);
    free(p.qkv), free(p.turned), free(p.g), free(grad), free(back);
}

static const int32_t class_targets[] = {0, 6, 2};
typedef struct ClassProblem {
    double *x, *w, *b, losses[3];
    RefClassifier a;
} ClassProblem;

static double class_loss(void *user) {
    ClassProblem *p = user;
    ref_classifier_loss(p->losses, p->x, class_targets, &p->a);
    return 0.3 * (p->losses[0] + p->losses[1] + p->losses[2]);
}

static void class_slopes_of(Test *t, double softcap) {
    ClassProblem p = {.x = randoms(3 * 5, 1, 1),
        .w = randoms(7 * 5, 2, 1),
        .b = randoms(7, 3, 1),
        .a = {.N = 3, .C = 5, .V = 7, .softcap = softcap}};
    p.a.w = p.w, p.a.bias = p.b;
    double *dx = doubles(15), *dw = randoms(35, 4, 1), *db = randoms(7, 5, 1);
    RefClassifierGrads g = {.dx = dx, .dw = dw, .dbias = db, .beta = 0, .grad_scale = 0.3};
    ref_classifier_bwd(&g, p.x, class_targets, &p.a);
    Slope s = {class_loss, &p};
    check_slope(t, "dx", &s, p.x, 15, dx);
    check_slope(t, "dw", &s, p.w, 35, dw);
    check_slope(t, "dbias", &s, p.b, 7, db);
    free(p.x), free(p.w), free(p.b), free(dx), free(dw), free(db);
}

static void class_slopes(Test *t) {
    class_slopes_of(t, 0);
    class_slopes_of(t, 2.5);
}

/* ---- modifiers of attention ------------------------------------------------------------------ */

enum { QK_N = 3, QK_H = 2, QK_HD = 5, QK_VALUES = QK_N * 3 * QK_H * QK_HD };
typedef struct QueryKeyProblem {
    double *raw, *qkv, *g, *qw, *kw, *p;
    RefQueryKey a;
} QueryKeyProblem;

static double query_key_loss(void *user) {
    QueryKeyProblem *p = user;
    memcpy(p->qkv, p->raw, QK_VALUES * sizeof *p->qkv);
    ref_query_key_fwd(p->qkv, &p->a);
    return dot(p->qkv, p->g, QK_VALUES);
}

static void query_key_slopes_of(Test *t, bool norm, bool scale) {
    QueryKeyProblem p = {randoms(QK_VALUES, 1, 1), doubles(QK_VALUES), randoms(QK_VALUES, 2, 1),
        randoms(QK_HD, 3, 1), randoms(QK_HD, 4, 1), randoms(QK_HD, 5, 2),
        {.N = QK_N, .H = QK_H, .HD = QK_HD, .eps = 0.1}};
    if (norm) p.a.qw = p.qw, p.a.kw = p.kw;
    if (scale) p.a.p = p.p;
    double *dqkv = doubles(QK_VALUES), *dqw = randoms(QK_HD, 6, 1), *dkw = randoms(QK_HD, 7, 1);
    double *dp = randoms(QK_HD, 8, 1);
    memcpy(dqkv, p.g, QK_VALUES * sizeof *dqkv);
    const RefQueryKeyGrads g = {norm ? dqw : NULL, norm ? dkw : NULL, scale ? dp : NULL, 0};
    ref_query_key_bwd(dqkv, &g, p.raw, &p.a);
    Slope s = {query_key_loss, &p};
    check_slope(t, "dqkv", &s, p.raw, QK_VALUES, dqkv);
    if (norm) check_slope(t, "dqw", &s, p.qw, QK_HD, dqw);
    if (norm) check_slope(t, "dkw", &s, p.kw, QK_HD, dkw);
    if (scale) check_slope(t, "dp", &s, p.p, QK_HD, dp);
    free(p.raw), free(p.qkv), free(p.g), free(p.qw), free(p.kw), free(p.p);
    free(dqkv), free(dqw), free(dkw), free(dp);
}

static void query_key_slopes(Test *t) {
    query_key_slopes_of(t, true, true);
    query_key_slopes_of(t, true, false);
    query_key_slopes_of(t, false, true);
    CHECK_NEAR(t, ref_per_dim_factor(0), 1, 1e-9);
}

enum { DIFF_N = 3, DIFF_H = 2, DIFF_HD = 6, DIFF_VALUES = DIFF_N * DIFF_H * DIFF_HD };
typedef struct DiffProblem {
    double *o1, *o2, *out, *g, *lambdas, *w; /* lambdas (4, HD/2) */
    RefDiff a;
} DiffProblem;

static double diff_loss(void *user) {
    DiffProblem *p = user;
    ref_diff_fwd(p->out, p->o1, p->o2, &p->a);
    return dot(p->out, p->g, DIFF_VALUES);
}

static void diff_slopes_of(Test *t, bool norm) {
    enum { HALF = DIFF_HD / 2 };
    DiffProblem p = {randoms(DIFF_VALUES, 1, 1), randoms(DIFF_VALUES, 2, 1), doubles(DIFF_VALUES),
        randoms(DIFF_VALUES, 3, 1), randoms(4 * HALF, 4, 0.7), randoms(DIFF_HD, 5, 1),
        {.N = DIFF_N, .H = DIFF_H, .HD = DIFF_HD, .lambda_init = 0.35, .eps = 0.1}};
    p.a.lq1 = p.lambdas, p.a.lk1 = p.lambdas + HALF;
    p.a.lq2 = p.lambdas + 2 * HALF, p.a.lk2 = p.lambdas + 3 * HALF;
    if (norm) p.a.w = p.w;
    double *do1 = doubles(DIFF_VALUES), *do2 = doubles(DIFF_VALUES);
    double *dl = randoms(4 * HALF, 6, 1), *dw = randoms(DIFF_HD, 7, 1);
    const RefDiffGrads g = {dl, dl + HALF, dl + 2 * HALF, dl + 3 * HALF, norm ? dw : NULL, 0};
    ref_diff_bwd(do1, do2, &g, p.g, p.o1, p.o2, &p.a);
    Slope s = {diff_loss, &p};
    check_slope(t, "do1", &s, p.o1, DIFF_VALUES, do1);
    check_slope(t, "do2", &s, p.o2, DIFF_VALUES, do2);
    check_slope(t, "dlambdas", &s, p.lambdas, 4 * HALF, dl);
    if (norm) check_slope(t, "dw", &s, p.w, DIFF_HD, dw);
    free(p.o1), free(p.o2), free(p.out), free(p.g), free(p.lambdas), free(p.w);
    free(do1), free(do2), free(dl), free(dw);
}

static void diff_slopes(Test *t) {
    diff_slopes_of(t, true);
    diff_slopes_of(t, false);
}

/* ---- attention ------------------------------------------------------------------------------- */

typedef struct AttentionProblem {
    double *qkv, *out, *g;
    size_t n;
    RefAttention a;
} AttentionProblem;

static double attention_loss(void *user) {
    AttentionProblem *p = user;
    ref_attention_fwd(p->out, NULL, p->qkv, &p->a);
    return dot(p->out, p->g, p->n);
}

static AttentionProblem attention_open(const RefAttention *a, uint64_t seed, double v_std) {
    const size_t n = (size_t)(a->B * a->T * a->H * a->HD), width = (size_t)(a->H * a->HD);
    AttentionProblem p = {randoms(3 * n, seed, 1), doubles(n), randoms(n, seed + 1, 1), n, *a};
    for (size_t i = 0; i < 3 * n; i++) {
        if (i / width % 3 == 2) p.qkv[i] *= v_std;
    }
    return p;
}

static void attention_close(AttentionProblem *p) {
    free(p->qkv), free(p->out), free(p->g);
}

/* half: -1, or which of a head's two halves makes the scores. Added to dv: what is there counts
 * against it. */
static void attention_slopes_of(Test *t, bool laser, double softcap, int half) {
    RefAttention a = {.B = 2, .T = 6, .H = 2, .HD = 3, .DK = 3, .scale = 0.6, .softcap = softcap};
    a.laser = laser;
    if (half >= 0) a.HD = 6, a.k0 = 3 * half, a.add_dv = half == 1;
    AttentionProblem p = attention_open(&a, 11, 1.5);
    double *dqkv = doubles(3 * p.n);
    const size_t width = (size_t)(a.H * a.HD);
    for (size_t i = 0; i < 3 * p.n; i++) dqkv[i] = a.add_dv && i / width % 3 == 2 ? 0.5 : 0;
    ref_attention_bwd(dqkv, p.g, p.qkv, &p.a);
    for (size_t i = 0; i < 3 * p.n; i++) dqkv[i] -= a.add_dv && i / width % 3 == 2 ? 0.5 : 0;
    Slope s = {attention_loss, &p};
    check_slope(t, "dqkv", &s, p.qkv, 3 * p.n, dqkv);
    free(dqkv);
    attention_close(&p);
}

static void attention_slopes(Test *t) {
    for (int laser = 0; laser < 2; laser++) {
        for (int half = -1; half < 2; half++) {
            attention_slopes_of(t, laser, 0, half);
            attention_slopes_of(t, laser, 1.5, half);
        }
    }
}

/* The finite difference test itself must find an error: D_i missing. */
static void attention_slopes_planted(Test *t) {
    for (int laser = 0; laser < 2; laser++) {
        RefAttention a = {.B = 1, .T = 6, .H = 1, .HD = 3, .DK = 3, .scale = 0.6, .laser = laser};
        AttentionProblem p = attention_open(&a, 11, 1.5);
        double *dqkv = doubles(3 * p.n);
        RefAttention wrong = a;
        wrong.plant = PLANT_NO_D;
        ref_attention_bwd(dqkv, p.g, p.qkv, &wrong);
        Test probe = {.name = "planted", .quiet = true};
        Slope s = {attention_loss, &p};
        check_slope(&probe, "dqkv", &s, p.qkv, 3 * p.n, dqkv);
        CHECK(t, probe.failures > 0, "laser %d: a missing D_i was not found", laser);
        free(dqkv);
        attention_close(&p);
    }
}

static void laser_identities(Test *t) {
    RefAttention a = {.B = 1, .T = 9, .H = 2, .HD = 5, .DK = 5, .scale = 0.5, .laser = true};
    AttentionProblem p = attention_open(&a, 21, 2);
    double *dqkv = doubles(3 * p.n), *out = doubles(p.n), *paper = doubles(p.n);
    ref_attention_bwd(dqkv, p.g, p.qkv, &a);
    for (int c = 0; c < 10; c++) {
        double of_dv = 0, of_dout = 0;
        for (int i = 0; i < 9; i++) of_dv += dqkv[i * 30 + 20 + c], of_dout += p.g[i * 10 + c];
        CHECK_NEAR(t, of_dv, of_dout, 1e-12);
    }
    ref_attention_fwd(out, NULL, p.qkv, &a);
    ref_attention_paper_fwd(paper, p.qkv, &a);
    for (size_t i = 0; i < p.n; i++) CHECK_NEAR(t, paper[i], out[i], 1e-12);
    /* a constant added to v goes through */
    for (int i = 0; i < 9 * 30; i++) p.qkv[i] += i % 30 >= 20 ? 1000 : 0;
    ref_attention_fwd(paper, NULL, p.qkv, &a);
    for (size_t i = 0; i < p.n; i++) CHECK_NEAR(t, paper[i], out[i] + 1000, 1e-11);
    free(dqkv), free(out), free(paper);
    attention_close(&p);
}

/* log sum p exp(v) = sum p v + variance / 2 + ...: for small v it is standard attention, and so is
 * each map of differential attention. */
static void laser_small_values_of(Test *t, int DK, int k0) {
    RefAttention a = {.B = 1, .T = 9, .H = 1, .HD = 4, .DK = DK, .k0 = k0, .scale = 0.5};
    a.laser = true;
    AttentionProblem p = attention_open(&a, 31, 1e-4);
    double *laser = doubles(p.n);
    ref_attention_fwd(laser, NULL, p.qkv, &a);
    p.a.laser = false;
    attention_loss(&p);
    for (size_t i = 0; i < p.n; i++) CHECK_NEAR(t, laser[i], p.out[i], 1e-7);
    free(laser);
    attention_close(&p);
}

static void laser_small_values(Test *t) {
    laser_small_values_of(t, 4, 0);
    laser_small_values_of(t, 2, 0);
    laser_small_values_of(t, 2, 2);
}

static void laser_underflow(Test *t) {
    RefAttention a = {.B = 1, .T = 8, .H = 1, .HD = 2, .DK = 2, .scale = 0.5, .laser = true};
    AttentionProblem p = attention_open(&a, 41, 1);
    p.qkv[7 * 6 + 4] = 1e4; /* v of the last token, channel 0 */
    double *paper = doubles(p.n);
    ref_attention_fwd(p.out, NULL, p.qkv, &a);
    ref_attention_paper_fwd(paper, p.qkv, &a);
    for (size_t i = 0; i < p.n; i++) CHECK(t, isfinite(p.out[i]), "out[%zu] = %g", i, p.out[i]);
    CHECK(t, isinf(paper[0]), "the plain form gave %g where its sum underflows", paper[0]);
    CHECK_NEAR(t, paper[1], p.out[1], 1e-12);
    free(paper);
    attention_close(&p);
}

const TestCase *test_oracle(int *count) {
    static const TestCase cases[] = {
        {"oracle: embedding gradients equal finite differences", embed_slopes},
        {"oracle: LayerNorm gradients equal finite differences", norm_slopes},
        {"oracle: linear and activation gradients equal finite differences", linear_slopes},
        {"oracle: rope's gradient equals finite differences, -1 undoes +1", rope_slopes},
        {"oracle: classifier gradients equal finite differences, with and without cap",
            class_slopes},
        {"oracle: gradients of QK-norm and per-dimension scale equal finite differences",
            query_key_slopes},
        {"oracle: gradients of differential attention equal finite differences", diff_slopes},
        {"oracle: attention gradients equal finite differences, both attentions", attention_slopes},
        {"oracle: finite differences find a missing D_i", attention_slopes_planted},
        {"oracle: LASER: sums of dv equal sums of dout, the paper's form, shift of v",
            laser_identities},
        {"oracle: LASER of small values is standard attention", laser_small_values},
        {"oracle: LASER is finite where one maximum over the sequence underflows", laser_underflow},
    };
    return TEST_TABLE(cases, count);
}
