/* test_modifiers.c: QK-norm and per-dimension scale, and differential attention's two maps into
 * one, on the linked backend, against the oracle, over the cases of dev/ref/cases.h; with other
 * threads every bit must be the same. Knows the seam alone. */
#include <math.h>
#include <string.h>

#include "dev/ref/cases.h"
#include "dev/test/tensor.h"

/* Whether one token shows in a sum over all channels of N of them, beside what the sum may be off
 * by. */
static bool token_shows(int N) {
    return N > 1 && N < 1000;
}

/* ---- queries and keys ------------------------------------------------------------------------ */

enum {
    QK_QKV,
    QK_DQKV,
    QK_DQKV2,
    QK_QW,
    QK_KW,
    QK_P,
    QK_RAW,
    QK_DQW,
    QK_DKW,
    QK_DP,
    QK_DQW_ADDED,
    QK_DKW_ADDED,
    QK_DP_ADDED
};

static void query_key_run(Bench *b, const void *opaque) {
    const QueryKeyCase *c = opaque;
    const size_t HD = (size_t)c->HD, n = product(c->N, 3) * product(c->H, c->HD);
    backend_reserve(
        b->be, &(BackendLimits){1, c->N, c->H * c->HD, 1, c->H, c->HD, c->HD, 2, false});
    act_t *qkv = tensor_act(bench_random(b, TENSOR_ACT, n, c->std, c->mean));
    act_t *dqkv = tensor_act(bench_random(b, TENSOR_ACT, n, 1, 0));
    act_t *dqkv2 = tensor_act(bench_random(b, TENSOR_ACT, n, 1, 0));
    act_t *qw = tensor_act(bench_random(b, TENSOR_ACT, HD, 0.5, 1));
    act_t *kw = tensor_act(bench_random(b, TENSOR_ACT, HD, 0.5, 1));
    act_t *p = tensor_act(bench_random(b, TENSOR_ACT, HD, c->p_std, 0));
    act_t *raw = tensor_act(bench_output(b, TENSOR_ACT, n / 3 * 2));
    float *out[3], *added[3];
    for (int i = 0; i < 3; i++) out[i] = tensor_float(bench_output(b, TENSOR_FLOAT, HD));
    for (int i = 0; i < 3; i++) added[i] = tensor_float(bench_random(b, TENSOR_FLOAT, HD, 1, 0));
    const bool norm = c->norm, scale = c->p_std > 0;
    for (int i = 0; i < 3; i++)
        if (i < 2 ? !norm : !scale) out[i] = added[i] = NULL;
    const QueryKeyArgs a = {c->N, c->H, c->HD, (float)c->eps, norm ? qw : NULL, norm ? kw : NULL,
        scale ? p : NULL, norm ? raw : NULL};
    op_query_key_fwd(b->be, qkv, &a);
    op_query_key_bwd(b->be, dqkv, out[0], out[1], out[2], 0, qkv, &a);
    op_query_key_bwd(b->be, dqkv2, added[0], added[1], added[2], 1, qkv, &a);
}

static RefQueryKey query_key_ref(const Bench *b, const QueryKeyCase *c) {
    const Tensor *at = b->tensors;
    RefQueryKey a = {.N = c->N, .H = c->H, .HD = c->HD, .eps = float_value(c->eps), .act_u = ACT_U};
    if (c->norm) a.qw = at[QK_QW].in, a.kw = at[QK_KW].in;
    if (c->p_std > 0) a.p = at[QK_P].in;
    return a;
}

/* What one backward pass leaves: from tensor dqkv, and from the sums that begin with sums[0]. */
typedef struct QueryKeyBack {
    double *dqkv;
    RefQueryKeyGrads g;
} QueryKeyBack;

static QueryKeyBack query_key_back(
    Bench *b, const RefQueryKey *a, const Tensor *dqkv, const Tensor *sums, double beta) {
    const size_t HD = (size_t)a->HD;
    QueryKeyBack r = {.dqkv = tensor_copy(b, dqkv), .g = {.beta = beta}};
    r.g.qw = beta == 0 ? bench_doubles(b, HD) : tensor_copy(b, &sums[0]);
    r.g.kw = beta == 0 ? bench_doubles(b, HD) : tensor_copy(b, &sums[1]);
    r.g.p = beta == 0 ? bench_doubles(b, HD) : tensor_copy(b, &sums[2]);
    ref_query_key_bwd(r.dqkv, &r.g, b->tensors[QK_QKV].in, a);
    return r;
}

static void query_key_compare(Bench *b, const RefQueryKey *a, const QueryKeyBack *want,
    const QueryKeyBack *tol, const Tensor *dqkv, const Tensor *sums) {
    bench_compare(b, "dqkv", dqkv, want->dqkv, tol->dqkv);
    if (a->qw) bench_compare(b, "dqw", &sums[0], want->g.qw, tol->g.qw);
    if (a->kw) bench_compare(b, "dkw", &sums[1], want->g.kw, tol->g.kw);
    if (a->p) bench_compare(b, "dp", &sums[2], want->g.p, tol->g.p);
}

typedef struct QueryKeyWrong {
    const char *name;
    RefQueryKey a;
} QueryKeyWrong;

static void query_key_planted(
    Bench *b, const QueryKeyCase *c, const RefQueryKey *a, double *tol, const QueryKeyBack *back) {
    Tensor *at = b->tensors;
    QueryKeyWrong wrong[5] = {{"norm missing", *a}, {"scale missing", *a}, {"q and k mixed up", *a},
        {"epsilon ignored", *a}, {"last token missing", *a}};
    wrong[0].a.qw = wrong[0].a.kw = NULL;
    wrong[1].a.p = NULL;
    wrong[2].a.qw = a->kw, wrong[2].a.kw = a->qw;
    wrong[3].a.eps = 0;
    wrong[4].a.N = c->N - 1;
    const bool shows[5] = {c->norm, c->p_std > 0, c->norm, c->norm && c->std<0.01, c->N> 1};
    for (int i = 0; i < 5; i++) {
        if (!shows[i]) continue;
        double *qkv = tensor_copy(b, &at[QK_QKV]);
        ref_query_key_fwd(qkv, &wrong[i].a);
        bench_compare_planted(b, wrong[i].name, &at[QK_QKV], qkv, tol);
        QueryKeyBack r = {.dqkv = tensor_copy(b, &at[QK_DQKV])};
        r.g.qw = bench_doubles(b, (size_t)c->HD), r.g.kw = bench_doubles(b, (size_t)c->HD);
        r.g.p = bench_doubles(b, (size_t)c->HD);
        ref_query_key_bwd(r.dqkv, &r.g, at[QK_QKV].in, &wrong[i].a);
        if (ACT_U == 0 || c->HD > 2) /* of two channels the norm hands down next to nothing */
            bench_compare_planted(b, wrong[i].name, &at[QK_DQKV], r.dqkv, back->dqkv);
        if (i == 4 && !token_shows(c->N)) continue;
        if (c->norm && i != 1 && i != 2)
            bench_compare_planted(b, wrong[i].name, &at[QK_DKW], r.g.kw, back->g.kw);
        if (c->p_std > 0 && i != 3)
            bench_compare_planted(b, wrong[i].name, &at[QK_DP], r.g.p, back->g.p);
    }
}

static void query_key_check(Bench *b, const QueryKeyCase *c) {
    Tensor *at = b->tensors;
    const RefQueryKey a = query_key_ref(b, c);
    const size_t n = at[QK_QKV].n, HD = (size_t)c->HD, row = product(c->H, c->HD);
    double *qkv = tensor_copy(b, &at[QK_QKV]), *tol = bench_doubles(b, n);
    QueryKeyBack back[2];
    for (int i = 0; i < 2; i++) {
        double *sums[3];
        for (int k = 0; k < 3; k++) sums[k] = bench_doubles(b, HD);
        back[i] = (QueryKeyBack){bench_doubles(b, n), {sums[0], sums[1], sums[2], 0}};
        double *unused = i ? bench_doubles(b, n) : tol;
        ref_query_key_bound(
            unused, back[i].dqkv, &back[i].g, at[QK_DQKV + i].in, at[QK_QKV].in, &a);
    }
    ref_query_key_fwd(qkv, &a);
    bench_compare(b, "qkv", &at[QK_QKV], qkv, tol);
    const double *raw = c->norm ? tensor_read(b, &at[QK_RAW]) : NULL;
    for (size_t i = 0; i < n; i++) {
        const size_t token = i / (3 * row), at_raw = token * 2 * row + i % (3 * row);
        if (c->norm && i / row % 3 < 2)
            CHECK(b->t, raw[at_raw] == at[QK_QKV].in[i], "%s: raw[%zu]", c->label, at_raw);
    }
    const QueryKeyBack want = query_key_back(b, &a, &at[QK_DQKV], &at[QK_DQW], 0);
    query_key_compare(b, &a, &want, &back[0], &at[QK_DQKV], &at[QK_DQW]);
    const QueryKeyBack added = query_key_back(b, &a, &at[QK_DQKV2], &at[QK_DQW_ADDED], 1);
    for (size_t i = 0; i < HD; i++) { /* one addition more */
        back[1].g.qw[i] += REF_U * fabs(at[QK_DQW_ADDED].in[i]);
        back[1].g.kw[i] += REF_U * fabs(at[QK_DKW_ADDED].in[i]);
        back[1].g.p[i] += REF_U * fabs(at[QK_DP_ADDED].in[i]);
    }
    query_key_compare(b, &a, &added, &back[1], &at[QK_DQKV2], &at[QK_DQW_ADDED]);
    query_key_planted(b, c, &a, tol, &back[0]);
}

/* ---- two maps into one ----------------------------------------------------------------------- */

enum {
    DIFF_O1,
    DIFF_O2,
    DIFF_DOUT,
    DIFF_LQ1, /* and LK1, LQ2, LK2 */
    DIFF_W = DIFF_LQ1 + 4,
    DIFF_OUT,
    DIFF_DO1,
    DIFF_DO2,
    DIFF_GRADS,                 /* of LQ1 .. W */
    DIFF_ADDED = DIFF_GRADS + 5 /* the same with beta 1 */
};

static DiffGrads diff_grads(const Bench *b, int first, bool norm, float beta) {
    float *g[5];
    for (int i = 0; i < 5; i++) g[i] = tensor_float(&b->tensors[first + i]);
    return (DiffGrads){g[0], g[1], g[2], g[3], norm ? g[4] : NULL, beta};
}

static void diff_run(Bench *b, const void *opaque) {
    const DiffCase *c = opaque;
    const size_t n = (size_t)c->N * product(c->H, c->HD), HD = (size_t)c->HD;
    const act_t *l[4];
    backend_reserve(
        b->be, &(BackendLimits){1, c->N, c->H * c->HD, 1, c->H, c->HD, c->HD, 2, false});
    const act_t *o1 = tensor_act(bench_random(b, TENSOR_ACT, n, c->std, 0));
    const act_t *o2 = tensor_act(bench_random(b, TENSOR_ACT, n, c->std, 0));
    const act_t *dout = tensor_act(bench_random(b, TENSOR_ACT, n, 1, 0));
    for (int i = 0; i < 4; i++)
        l[i] = tensor_act(bench_random(b, TENSOR_ACT, HD / 2, c->lambda_std, 0));
    const act_t *w = tensor_act(bench_random(b, TENSOR_ACT, HD, 0.5, 1));
    act_t *out = tensor_act(bench_output(b, TENSOR_ACT, n));
    act_t *do1 = tensor_act(bench_values(b, TENSOR_ACT, b->tensors[DIFF_DOUT].in, n));
    act_t *do2 = tensor_act(bench_output(b, TENSOR_ACT, n));
    for (int i = 0; i < 5; i++) bench_output(b, TENSOR_FLOAT, i < 4 ? HD / 2 : HD);
    for (int i = 0; i < 5; i++) bench_random(b, TENSOR_FLOAT, i < 4 ? HD / 2 : HD, 1, 0);
    const DiffArgs a = {c->N, c->H, c->HD, (float)c->lambda_init, (float)c->eps, l[0], l[1], l[2],
        l[3], c->norm ? w : NULL};
    const DiffGrads g = diff_grads(b, DIFF_GRADS, c->norm, 0);
    const DiffGrads added = diff_grads(b, DIFF_ADDED, c->norm, 1);
    op_diff_fwd(b->be, out, o1, o2, &a);
    op_diff_bwd(b->be, out, do2, &added, dout, o1, o2, &a); /* into others: what is read stays */
    op_diff_fwd(b->be, out, o1, o2, &a);
    op_diff_bwd(b->be, do1, do2, &g, do1, o1, o2, &a); /* do1 is dout */
}

static RefDiffGrads diff_doubles(Bench *b, const DiffCase *c, double beta) {
    const Tensor *at = &b->tensors[DIFF_ADDED];
    double *g[5];
    for (int i = 0; i < 5; i++)
        g[i] = beta == 0 ? bench_doubles(b, at[i].n) : tensor_copy(b, at + i);
    return (RefDiffGrads){g[0], g[1], g[2], g[3], c->norm ? g[4] : NULL, beta};
}

static void diff_compare_grads(Bench *b, int first, const RefDiffGrads *want, RefDiffGrads *tol) {
    static const char *const names[] = {"dlq1", "dlk1", "dlq2", "dlk2", "dw"};
    double *const w[5] = {want->lq1, want->lk1, want->lq2, want->lk2, want->w};
    double *const allowed[5] = {tol->lq1, tol->lk1, tol->lq2, tol->lk2, tol->w};
    for (int i = 0; i < 5; i++) {
        const Tensor *x = &b->tensors[first + i];
        if (!w[i]) continue;
        for (size_t k = 0; k < x->n && x->in; k++) allowed[i][k] += REF_U * fabs(x->in[k]);
        bench_compare(b, names[i], x, w[i], allowed[i]);
    }
}

typedef struct DiffWrong {
    const char *name;
    RefDiff a;
    bool shows;
} DiffWrong;

static void diff_planted(Bench *b, const DiffCase *c, const RefDiff *a, const RefDiffTol *tol) {
    Tensor *at = b->tensors;
    const size_t n = at[DIFF_OUT].n;
    DiffWrong wrong[5] = {{"no norm", *a, c->norm}, {"lambda_init off", *a, true},
        {"the dot products exchanged", *a, c->lambda_std > 0.2 && c->HD > 2},
        {"epsilon ignored", *a, c->norm && c->std < 0.01}, {"last token missing", *a, c->N > 1}};
    wrong[0].a.w = NULL;
    wrong[1].a.lambda_init *= 1.01 + 64 * ACT_U; /* what storage rounds must be small beside it */
    wrong[2].a.lq1 = a->lq2, wrong[2].a.lk1 = a->lk2, wrong[2].a.lq2 = a->lq1;
    wrong[2].a.lk2 = a->lk1;
    wrong[3].a.eps = 0;
    wrong[4].a.N = c->N - 1;
    for (int i = 0; i < 5; i++) {
        if (!wrong[i].shows) continue;
        double *out = bench_doubles(b, n), *do1 = bench_doubles(b, n), *do2 = bench_doubles(b, n);
        RefDiffGrads g = diff_doubles(b, c, 0);
        ref_diff_fwd(out, at[DIFF_O1].in, at[DIFF_O2].in, &wrong[i].a);
        ref_diff_bwd(do1, do2, &g, at[DIFF_DOUT].in, at[DIFF_O1].in, at[DIFF_O2].in, &wrong[i].a);
        bench_compare_planted(b, wrong[i].name, &at[DIFF_OUT], out, tol->out);
        bench_compare_planted(b, wrong[i].name, &at[DIFF_DO2], do2, tol->do2);
        if (i == 4 && !token_shows(c->N)) continue;
        if (i == 2 || i == 4)
            bench_compare_planted(b, wrong[i].name, &at[DIFF_GRADS], g.lq1, tol->grads.lq1);
        if (c->norm && i == 4)
            bench_compare_planted(b, wrong[i].name, &at[DIFF_GRADS + 4], g.w, tol->grads.w);
    }
}

static void diff_check(Bench *b, const DiffCase *c) {
    Tensor *at = b->tensors;
    const size_t n = at[DIFF_OUT].n;
    const RefDiff a = {c->N, c->H, c->HD, float_value(c->lambda_init), float_value(c->eps),
        at[DIFF_LQ1].in, at[DIFF_LQ1 + 1].in, at[DIFF_LQ1 + 2].in, at[DIFF_LQ1 + 3].in,
        c->norm ? at[DIFF_W].in : NULL};
    const double *o1 = at[DIFF_O1].in, *o2 = at[DIFF_O2].in, *dout = at[DIFF_DOUT].in;
    RefDiffTol tol = {
        bench_doubles(b, n), bench_doubles(b, n), bench_doubles(b, n), diff_doubles(b, c, 0)};
    ref_diff_bound(&tol, dout, o1, o2, &a);
    double *out = bench_doubles(b, n), *do1 = bench_doubles(b, n), *do2 = bench_doubles(b, n);
    RefDiffGrads g = diff_doubles(b, c, 0), added = diff_doubles(b, c, 1);
    ref_diff_fwd(out, o1, o2, &a);
    ref_diff_bwd(do1, do2, &added, dout, o1, o2, &a);
    ref_diff_bwd(do1, do2, &g, dout, o1, o2, &a);
    bench_compare(b, "out", &at[DIFF_OUT], out, tol.out);
    bench_compare(b, "do1", &at[DIFF_DO1], do1, tol.do1);
    bench_compare(b, "do2", &at[DIFF_DO2], do2, tol.do2);
    diff_compare_grads(b, DIFF_GRADS, &g, &tol.grads);
    diff_planted(b, c, &a, &tol);
    diff_compare_grads(b, DIFF_ADDED, &added, &tol.grads);
}

/* ---- the tables ------------------------------------------------------------------------------ */

static const int one_and_two[3] = {1, 2, 1};

static void query_key_equals(Test *t) {
    BENCH_EACH_CASE(t, query_key);
    BENCH_EACH_SAME_BITS(t, query_key, one_and_two);
}

static void diff_equals(Test *t) {
    BENCH_EACH_CASE(t, diff);
    BENCH_EACH_SAME_BITS(t, diff, one_and_two);
}

const TestCase *test_modifiers(int *count) {
    static const TestCase cases[] = {
        {"modifiers: QK-norm and per-dim scale equal the oracle, any threads the same bits",
            query_key_equals},
        {"modifiers: two maps into one equal the oracle, any threads the same bits", diff_equals},
    };
    return TEST_TABLE(cases, count);
}
