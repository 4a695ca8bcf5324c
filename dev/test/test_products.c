/* test_products.c: what is made of matrix products, the linear layer and the classifier, on the
 * linked backend, against the oracle, over the cases of dev/ref/cases.h. Laid out like test_ops.c.
 * Knows the seam alone. */
#include <math.h>
#include <string.h>

#include "dev/ref/cases.h"
#include "dev/test/tensor.h"
#include "laser/rng.h"

/* ---- linear layer and activation ------------------------------------------------------------- */

enum {
    LIN_X,
    LIN_W,
    LIN_BIAS,
    LIN_Y,
    LIN_PRE,
    LIN_DY,
    LIN_XPRE,
    LIN_XACT,
    LIN_DX,
    LIN_DW,
    LIN_DB,
    LIN_DW_ADDED,
    LIN_DB_ADDED
};

static Act act_of(RefAct a) {
    return a == REF_RELU ? ACT_RELU : a == REF_GELU ? ACT_GELU : ACT_NONE;
}

/* Forward; op_act_fwd on a random pre (which makes the x of the backward); backward twice, beta 0
 * and 1. */
static void linear_run(Bench *b, const void *opaque) {
    const LinearCase *c = opaque;
    const size_t nx = product(c->N, c->IC), ny = product(c->N, c->OC), nw = product(c->OC, c->IC);
    const int wide = c->OC > c->IC ? c->OC : c->IC;
    backend_reserve(b->be, &(BackendLimits){1, c->N, c->IC, wide, 1, c->OC, c->OC, 2, false});
    act_t *x = tensor_act(bench_random(b, TENSOR_ACT, nx, 1, 0));
    act_t *w = tensor_act(bench_random(b, TENSOR_ACT, nw, 1 / sqrt(c->IC), 0));
    act_t *bias = tensor_act(bench_random(b, TENSOR_ACT, (size_t)c->OC, 1, 0));
    act_t *y = tensor_act(bench_output(b, TENSOR_ACT, ny));
    act_t *pre = tensor_act(bench_output(b, TENSOR_ACT, ny));
    LinearArgs a = {c->N, c->OC, c->IC, w, c->bias ? bias : NULL, act_of(c->act), NULL};
    if (c->act == REF_GELU) a.pre = pre;
    op_linear_fwd(b->be, y, x, &a);

    act_t *dy = tensor_act(bench_random(b, TENSOR_ACT, ny, 1, 0));
    act_t *xpre = tensor_act(bench_random(b, TENSOR_ACT, nx, 1.5, 0));
    act_t *xact = tensor_act(bench_output(b, TENSOR_ACT, nx));
    if (c->act == REF_NONE) {
        xact = xpre;
    } else {
        op_act_fwd(b->be, xact, xpre, a.act, nx);
    }
    act_t *dx = tensor_act(bench_output(b, TENSOR_ACT, nx));
    float *dw = tensor_float(bench_output(b, TENSOR_FLOAT, nw));
    float *db = tensor_float(bench_output(b, TENSOR_FLOAT, (size_t)c->OC));
    float *dw2 = tensor_float(bench_random(b, TENSOR_FLOAT, nw, 1, 0));
    float *db2 = tensor_float(bench_random(b, TENSOR_FLOAT, (size_t)c->OC, 1, 0));
    a.pre = c->act == REF_GELU ? xpre : NULL;
    op_linear_bwd(b->be, dx, dw, c->bias ? db : NULL, 0, dy, xact, &a);
    op_linear_bwd(b->be, NULL, dw2, c->bias ? db2 : NULL, 1, dy, xact, &a);
}

/* How far gelu is off where its argument is by e: its slope changes by at most 0.8 e on the way. */
static double gelu_error(double x, double e) {
    return (fabs(ref_act_grad(x, REF_GELU)) + 0.8 * e) * e;
}

/* The tanh form of gelu against others: that with erf differs by up to 5e-4; with narrow
 * activations, which hide that, x / (1 + exp(-1.702 x)), by up to 0.02. */
static void linear_planted_gelu(Bench *b, double *y, const double *pre, const double *tol) {
    const Tensor *got = &b->tensors[LIN_Y];
    for (size_t i = 0; i < got->n; i++) {
        const double x = pre[i];
        y[i] = ACT_U > 0 ? x / (1 + exp(-1.702 * x)) : 0.5 * x * (1 + erf(x / sqrt(2)));
    }
    bench_compare_planted(b, "another gelu", got, y, tol);
}

/* y: a sum of IC products and the bias, off by tau = gamma(IC + 1) * absolute sum; gelu has slope
 * <= 1.13 and its own FN |pre|. Narrow: gelu is taken of the pre that was rounded and kept. */
static void linear_check_fwd(Bench *b, const LinearCase *c) {
    Tensor *at = b->tensors;
    const size_t ny = at[LIN_Y].n, nx = at[LIN_X].n, nw = at[LIN_W].n;
    RefLinear a = {c->N, c->OC, c->IC, at[LIN_W].in, c->bias ? at[LIN_BIAS].in : NULL, c->act};
    double *y = bench_doubles(b, ny), *pre = bench_doubles(b, ny), *tol = bench_doubles(b, ny);
    RefLinear sums = {c->N, c->OC, c->IC, bench_absolute(b, a.w, nw), NULL, REF_NONE};
    if (c->bias) sums.bias = bench_absolute(b, a.bias, (size_t)c->OC);
    ref_linear_fwd(y, pre, at[LIN_X].in, &a);
    ref_linear_fwd(tol, NULL, bench_absolute(b, at[LIN_X].in, nx), &sums);
    scaled(tol, ny, ref_gamma(c->IC + 1));
    if (c->act == REF_GELU) {
        bench_compare(b, "pre", &at[LIN_PRE], pre, tol);
        for (size_t i = 0; i < ny; i++) {
            const double rounded = gelu_error(pre[i], ACT_U * (fabs(pre[i]) + tol[i]));
            tol[i] = 1.13 * tol[i] + REF_FN * fabs(pre[i]) + rounded;
        }
    }
    bench_compare(b, "y", &at[LIN_Y], y, tol);

    const double last = at[LIN_W].in[nw - 1];
    at[LIN_W].in[nw - 1] = 0;
    ref_linear_fwd(y, pre, at[LIN_X].in, &a);
    at[LIN_W].in[nw - 1] = last;
    if (c->N > 1) bench_compare_planted(b, "last product missing", &at[LIN_Y], y, tol);
    if (c->bias) {
        a.bias = NULL;
        ref_linear_fwd(y, pre, at[LIN_X].in, &a);
        bench_compare_planted(b, "bias ignored", &at[LIN_Y], y, tol);
        a.bias = at[LIN_BIAS].in;
    }
    if (c->act == REF_GELU) linear_planted_gelu(b, y, pre, tol);
}

/* dw, dbias: sums of N terms. dx: a sum of OC products, times the slope of the activation; the
 * slope of gelu is off by FN (1 + 0.8 |x| + 0.107 |x|^3), from 0.5 FN in (1 + t) / 2 and 2 FN in 1
 * - t^2. Narrow: the sum is rounded before it meets the slope; that of relu, 0 or 1, keeps it. */
static void linear_check_bwd(Bench *b, const LinearCase *c) {
    Tensor *at = b->tensors;
    const size_t nx = at[LIN_X].n, nw = at[LIN_W].n, OC = (size_t)c->OC;
    const double *dy = at[LIN_DY].in, *pre = at[LIN_XPRE].in;
    const double *x = c->act == REF_NONE ? pre : tensor_read(b, &at[LIN_XACT]);
    RefLinear a = {c->N, c->OC, c->IC, at[LIN_W].in, NULL, c->act};
    RefLinear sums = {c->N, c->OC, c->IC, bench_absolute(b, a.w, nw), NULL, REF_NONE};
    double *dx = bench_doubles(b, nx), *dw = bench_doubles(b, nw), *db = bench_doubles(b, OC);
    double *dx_tol = bench_doubles(b, nx), *dw_tol = bench_doubles(b, nw);
    double *db_tol = bench_doubles(b, OC);
    ref_linear_bwd(dx, dw, db, 0, dy, x, pre, &a);
    const double *dy_abs = bench_absolute(b, dy, at[LIN_DY].n), *x_abs = bench_absolute(b, x, nx);
    ref_linear_bwd(dx_tol, dw_tol, db_tol, 0, dy_abs, x_abs, NULL, &sums);
    scaled(dw_tol, nw, ref_gamma(c->N + 1));
    scaled(db_tol, OC, ref_gamma(c->N + 1));
    for (size_t i = 0; i < nx; i++) {
        double p = fabs(pre[i]), slope = fabs(ref_act_grad(pre[i], c->act));
        double slope_err = c->act == REF_GELU ? REF_FN * (1 + 0.8 * p + 0.107 * p * p * p) : 0;
        dx_tol[i] *= ref_gamma(c->OC) * slope + slope_err;
        if (c->act == REF_GELU) dx_tol[i] += ACT_U * fabs(dx[i]);
    }
    bench_compare(b, "dx", &at[LIN_DX], dx, dx_tol);
    bench_compare(b, "dw", &at[LIN_DW], dw, dw_tol);
    if (c->bias) bench_compare(b, "dbias", &at[LIN_DB], db, db_tol);

    double *dw2 = tensor_copy(b, &at[LIN_DW_ADDED]), *db2 = tensor_copy(b, &at[LIN_DB_ADDED]);
    ref_linear_bwd(NULL, dw2, db2, 1, dy, x, pre, &a);
    bench_compare(b, "dw added", &at[LIN_DW_ADDED], dw2, dw_tol);
    if (c->bias) bench_compare(b, "dbias added", &at[LIN_DB_ADDED], db2, db_tol);
    bench_compare_planted(b, "dw written, not added", &at[LIN_DW_ADDED], dw, dw_tol);

    if (c->N == 1) return;
    a.N = c->N / 2; /* one token may be all zeros after a relu */
    ref_linear_bwd(NULL, dw, db, 0, dy, x, pre, &a);
    bench_compare_planted(b, "second half missing in dw", &at[LIN_DW], dw, dw_tol);
    if (c->bias) bench_compare_planted(b, "second half missing in db", &at[LIN_DB], db, db_tol);
    a.N = c->N, a.act = REF_NONE;
    ref_linear_bwd(dx, dw, db, 0, dy, x, pre, &a);
    if (c->act != REF_NONE) {
        bench_compare_planted(b, "derivative of the activation missing", &at[LIN_DX], dx, dx_tol);
    }
}

static void linear_check(Bench *b, const LinearCase *c) {
    Tensor *at = b->tensors;
    linear_check_fwd(b, c);
    if (c->act != REF_NONE) {
        const size_t n = at[LIN_XACT].n;
        double *h = bench_doubles(b, n), *tol = bench_doubles(b, n);
        for (size_t i = 0; i < n; i++) {
            h[i] = ref_act(at[LIN_XPRE].in[i], c->act);
            tol[i] = c->act == REF_GELU ? REF_FN * fabs(at[LIN_XPRE].in[i]) : 0;
        }
        bench_compare(b, "act(pre)", &at[LIN_XACT], h, tol);
    }
    linear_check_bwd(b, c);
}

/* ---- classifier ------------------------------------------------------------------------------ */

enum {
    CLASS_X,
    CLASS_W,
    CLASS_BIAS,
    CLASS_LOSS,
    CLASS_LOSS2,
    CLASS_LOGITS,
    CLASS_DX,
    CLASS_DW,
    CLASS_DB,
    CLASS_DX2,
    CLASS_DW_ADDED,
    CLASS_DB_ADDED
};
static const float class_grad_scale = 0.37f;

static void classifier_run(Bench *b, const void *opaque) {
    const ClassifierCase *c = opaque;
    const size_t N = (size_t)c->N, V = (size_t)c->V, nx = product(c->N, c->C);
    const size_t nw = product(c->V, c->C);
    backend_reserve(b->be, &(BackendLimits){1, c->N, c->C, 1, 1, 1, 1, c->V, false});
    bench_ids(b, c->N, c->V);
    act_t *x = tensor_act(bench_random(b, TENSOR_ACT, nx, c->logit_std, 0));
    act_t *w = tensor_act(bench_random(b, TENSOR_ACT, nw, 1 / sqrt(c->C), 0));
    act_t *bias = tensor_act(bench_random(b, TENSOR_ACT, V, 1, 0));
    float *losses = tensor_float(bench_output(b, TENSOR_FLOAT, N));
    float *losses2 = tensor_float(bench_output(b, TENSOR_FLOAT, N));
    float *logits = tensor_float(bench_output(b, TENSOR_FLOAT, N * V));
    ClassifierArgs a = {c->N, c->C, c->V, c->V, w, c->bias ? bias : NULL, (float)c->softcap};
    op_classifier_loss(b->be, losses, x, b->ids, &a);
    op_classifier_logits(b->be, logits, x, &a);
    act_t *dx = tensor_act(bench_output(b, TENSOR_ACT, nx));
    float *dw = tensor_float(bench_output(b, TENSOR_FLOAT, nw));
    float *db = tensor_float(bench_output(b, TENSOR_FLOAT, V));
    op_classifier_train(
        b->be, losses2, dx, dw, c->bias ? db : NULL, 0, class_grad_scale, x, b->ids, &a);
    act_t *dx2 = tensor_act(bench_output(b, TENSOR_ACT, nx));
    float *dw2 = tensor_float(bench_random(b, TENSOR_FLOAT, nw, 1, 0));
    float *db2 = tensor_float(bench_random(b, TENSOR_FLOAT, V, 1, 0));
    op_classifier_train(
        b->be, losses2, dx2, dw2, c->bias ? db2 : NULL, 1, class_grad_scale, x, b->ids, &a);
}

typedef struct ClassifierWant {
    double *logits, *losses, *dx, *dw, *db;
} ClassifierWant;

static ClassifierWant classifier_want(Bench *b, const RefClassifier *a, const double *x) {
    const size_t N = (size_t)a->N, V = (size_t)a->V, C = (size_t)a->C;
    ClassifierWant want = {bench_doubles(b, N * V), bench_doubles(b, N), bench_doubles(b, N * C),
        bench_doubles(b, V * C), bench_doubles(b, V)};
    RefClassifierGrads g = {want.dx, want.dw, want.db, 0, (double)class_grad_scale};
    ref_classifier_logits(want.logits, x, a);
    ref_classifier_loss(want.losses, x, b->host_ids, a);
    ref_classifier_bwd(&g, x, b->host_ids, a);
    return want;
}

static void classifier_planted(
    Bench *b, const ClassifierCase *c, const RefClassifier *right, const RefClassifierTol *tol) {
    Tensor *at = b->tensors;
    const double *x = at[CLASS_X].in;
    RefClassifier wrong = *right;
    /* one padding row of the table, all zero, receives probability; rounded gradients of logits
     * hide that of one row, not that of as many as there are */
    const int extra = ACT_U > 0 ? c->V : 1;
    double *padded = bench_doubles(b, product(c->V + extra, c->C));
    memcpy(padded, right->w, product(c->V, c->C) * sizeof *padded);
    double *padded_bias = bench_doubles(b, (size_t)(c->V + extra));
    if (c->bias) memcpy(padded_bias, right->bias, (size_t)c->V * sizeof *padded_bias);
    wrong.w = padded, wrong.bias = padded_bias, wrong.V = c->V + 1;
    /* with huge logits or a large vocabulary the probability of one more entry is below rounding */
    if (c->logit_std < 10 && c->V < 1000) {
        ClassifierWant want = classifier_want(b, &wrong, x);
        bench_compare_planted(b, "padding in loss", &at[CLASS_LOSS], want.losses, tol->losses);
        wrong.V = c->V + extra;
        want = classifier_want(b, &wrong, x);
        bench_compare_planted(b, "padding in dx", &at[CLASS_DX], want.dx, tol->dx);
    }
    wrong = *right, wrong.softcap = c->softcap * (ACT_U > 0 ? 1.5 : 1.01), wrong.bias = NULL;
    ClassifierWant want = classifier_want(b, &wrong, x);
    if (c->softcap > 0 || c->bias) {
        bench_compare_planted(
            b, "bias or cap in logits", &at[CLASS_LOGITS], want.logits, tol->logits);
        bench_compare_planted(b, "bias or cap in loss", &at[CLASS_LOSS], want.losses, tol->losses);
        bench_compare_planted(b, "bias or cap in dw", &at[CLASS_DW], want.dw, tol->dw);
    }
    wrong = *right, wrong.N = c->N - 1;
    if (c->N == 1) return;
    want = classifier_want(b, &wrong, x);
    bench_compare_planted(b, "last token missing", &at[CLASS_DW], want.dw, tol->dw);
    if (c->bias) bench_compare_planted(b, "last token missing", &at[CLASS_DB], want.db, tol->dbias);
}

static void classifier_check(Bench *b, const ClassifierCase *c) {
    Tensor *at = b->tensors;
    const size_t N = (size_t)c->N, V = (size_t)c->V, nx = at[CLASS_X].n, nw = at[CLASS_W].n;
    const double *x = at[CLASS_X].in;
    RefClassifier a = {c->N, c->C, c->V, at[CLASS_W].in, c->bias ? at[CLASS_BIAS].in : NULL,
        float_value(c->softcap)};
    ClassifierWant want = classifier_want(b, &a, x);
    RefClassifierTol tol = {bench_doubles(b, N * V), bench_doubles(b, N), bench_doubles(b, nx),
        bench_doubles(b, nw), bench_doubles(b, V), ACT_U};
    ref_classifier_bound(&tol, (double)class_grad_scale, x, b->host_ids, &a);
    bench_compare(b, "logits", &at[CLASS_LOGITS], want.logits, tol.logits);
    bench_compare(b, "losses", &at[CLASS_LOSS], want.losses, tol.losses);
    bench_compare(b, "losses of training", &at[CLASS_LOSS2], want.losses, tol.losses);
    bench_compare(b, "dx", &at[CLASS_DX], want.dx, tol.dx);
    bench_compare(b, "dw", &at[CLASS_DW], want.dw, tol.dw);
    if (c->bias) bench_compare(b, "dbias", &at[CLASS_DB], want.db, tol.dbias);
    bench_compare(b, "dx again", &at[CLASS_DX2], want.dx, tol.dx);
    double *dw2 = bench_copied(b, want.dw, nw), *db2 = bench_copied(b, want.db, V);
    for (size_t i = 0; i < nw; i++) dw2[i] += at[CLASS_DW_ADDED].in[i];
    for (size_t i = 0; i < V; i++) db2[i] += at[CLASS_DB_ADDED].in[i];
    bench_compare(b, "dw added", &at[CLASS_DW_ADDED], dw2, tol.dw);
    if (c->bias) bench_compare(b, "dbias added", &at[CLASS_DB_ADDED], db2, tol.dbias);
    classifier_planted(b, c, &a, &tol);
}

/* ---- the tables ------------------------------------------------------------------------------ */

/* What a row of dw may be off by: gamma and twice act_u, for each side one, of the sum of the
 * absolute gradients of its logits, times an x of at most 5. That sum is at most the sum itself,
 * dbias, and 2 for each of its targets, the only gradients that are negative. */
static double *chunk_tolerance(Bench *b, const double *db, int N, int V) {
    double *sums = bench_absolute(b, db, (size_t)V);
    for (int n = 0; n < N; n++) sums[b->host_ids[n]] += 2;
    return scaled(sums, (size_t)V, ref_gamma(N) + 2 * ACT_U);
}

enum { CHUNK_N = 130, CHUNK_C = 2 };

static void check_chunks(Bench *b, const BackendLimits *l, const ClassifierArgs *of_all) {
    enum { N = CHUNK_N, C = CHUNK_C };
    const size_t V = (size_t)l->V;
    ClassifierArgs a = *of_all;
    const act_t *x = tensor_act(bench_random(b, TENSOR_ACT, N * C, 1, 0));
    Tensor *loss = bench_output(b, TENSOR_FLOAT, N), *loss2 = bench_output(b, TENSOR_FLOAT, N);
    Tensor *dx = bench_output(b, TENSOR_ACT, N * C), *dx2 = bench_output(b, TENSOR_ACT, N * C);
    Tensor *dw = bench_output(b, TENSOR_FLOAT, V * C), *dw2 = bench_output(b, TENSOR_FLOAT, V * C);
    Tensor *db = bench_output(b, TENSOR_FLOAT, V), *db2 = bench_output(b, TENSOR_FLOAT, V);
    op_classifier_train(b->be, tensor_float(loss), tensor_act(dx), tensor_float(dw),
        tensor_float(db), 0, 1, x, b->ids, &a);
    a.N = N / 2;
    for (int half = 0; half < 2; half++) {
        const int at = half * (N / 2);
        op_classifier_train(b->be, tensor_float(loss2) + at, tensor_act(dx2) + at * C,
            tensor_float(dw2), tensor_float(db2), (float)half, 1, x + at * C, b->ids + at, &a);
    }
    const double *of_rows = chunk_tolerance(b, tensor_read(b, db2), N, l->V);
    double *tol = bench_doubles(b, V * C);
    for (size_t i = 0; i < V * C; i++) tol[i] = 5 * of_rows[i / C];
    bench_compare(b, "dw", dw, tensor_read(b, dw2), tol);
    bench_compare(b, "dbias", db, tensor_read(b, db2), of_rows);
    /* planted: the first half alone */
    op_classifier_train(b->be, tensor_float(loss2), tensor_act(dx2), tensor_float(dw2),
        tensor_float(db2), 0, 1, x, b->ids, &a);
    bench_compare_planted(b, "half of the tokens", dw, tensor_read(b, dw2), tol);
    bench_compare_planted(b, "half of the tokens", db, tensor_read(b, db2), of_rows);
    /* absolute gradients of a token sum to at most 2, times a w of at most 5 */
    double *dx_tol = bench_doubles(b, N * C), *loss_tol = bench_doubles(b, N);
    for (int i = 0; i < N * C; i++) dx_tol[i] = 10 * (ref_gamma(l->V) + 2 * ACT_U);
    for (int i = 0; i < N; i++) loss_tol[i] = 2 * ref_gamma(l->V);
    bench_compare(b, "dx", dx, tensor_read(b, dx2), dx_tol);
    bench_compare(b, "losses", loss, tensor_read(b, loss2), loss_tol);
    double *next = tensor_read(b, dx2); /* planted: each token gets the gradient of the next one */
    memmove(next, next + C, (N - 1) * C * sizeof *next);
    bench_compare_planted(b, "gradient of another token", dx, next, dx_tol);
}

/* More tokens than a backend makes logits for at a time: the whole equals its two halves added. A
 * GPU takes that from a budget, a CPU from the size of the vocabulary. */
static void chunks_add_up(Test *t) {
    const int V = strcmp(backend_name(), "cpu") == 0 ? 262147 : 1009;
    const BackendLimits limits = {
        .B = 1, .T = CHUNK_N, .C = CHUNK_C, .F = 1, .H = 1, .HD = 1, .DK = 1, .V = V};
    BackendOptions options = bench_options(1);
    options.logits_budget = 1;
    Bench b;
    bench_open_with(&b, t, "chunks", &limits, &options);
    bench_ids(&b, CHUNK_N, V);
    const act_t *w = tensor_act(bench_random(&b, TENSOR_ACT, (size_t)V * CHUNK_C, 1, 0));
    const act_t *bias = tensor_act(bench_random(&b, TENSOR_ACT, (size_t)V, 0, 0));
    const ClassifierArgs a = {.N = CHUNK_N, .C = CHUNK_C, .V = V, .Vp = V, .w = w, .bias = bias};
    check_chunks(&b, &limits, &a);
    bench_close(&b);
}

/* A vocabulary held with more rows than it has: those receive no probability, and no gradient
 * reaches them. */
enum { PADDED_N = 9, PADDED_C = 33, PADDED_V = 101, PADDED_VP = 128 };

static void check_no_gradient(Bench *b, const Tensor *g, size_t first, bool fresh) {
    const double *x = tensor_read(b, g);
    for (size_t i = first; i < g->n; i++) {
        CHECK(b->t, x[i] == 0 || (fresh && isnan(x[i])), "padding [%zu] of %zu got %g", i, g->n,
            x[i]);
    }
}

static void padded_vocabulary(Test *t) {
    enum { N = PADDED_N, C = PADDED_C, V = PADDED_V, VP = PADDED_VP };
    Bench b;
    bench_open(&b, t, "padded vocabulary", &(BackendLimits){1, N, C, 1, 1, 1, 1, VP, false}, 1);
    bench_ids(&b, N, V);
    double *w0 = bench_doubles(&b, VP * C), *bias0 = bench_doubles(&b, VP);
    for (size_t i = 0; i < V * C; i++) w0[i] = rng_normal(1, RNG_TEST, i) / sqrt(C);
    for (size_t i = 0; i < V; i++) bias0[i] = rng_normal(2, RNG_TEST, i);
    const Tensor *x = bench_random(&b, TENSOR_ACT, N * C, 2, 0);
    const Tensor *w = bench_values(&b, TENSOR_ACT, w0, VP * C);
    const Tensor *bias = bench_values(&b, TENSOR_ACT, bias0, VP);
    Tensor *loss = bench_output(&b, TENSOR_FLOAT, N), *dx = bench_output(&b, TENSOR_ACT, N * C);
    Tensor *dw = bench_output(&b, TENSOR_FLOAT, VP * C), *db = bench_output(&b, TENSOR_FLOAT, VP);
    Tensor *logits = bench_output(&b, TENSOR_FLOAT, N * V);
    double *zeros = bench_doubles(&b, VP * C);
    Tensor *dw2 = bench_values(&b, TENSOR_FLOAT, zeros, VP * C);
    Tensor *db2 = bench_values(&b, TENSOR_FLOAT, zeros, VP);
    const ClassifierArgs a = {N, C, V, VP, tensor_act(w), tensor_act(bias), 0};
    op_classifier_logits(b.be, tensor_float(logits), tensor_act(x), &a);
    op_classifier_train(b.be, tensor_float(loss), tensor_act(dx), tensor_float(dw),
        tensor_float(db), 0, class_grad_scale, tensor_act(x), b.ids, &a);
    op_classifier_train(b.be, tensor_float(loss), tensor_act(dx), tensor_float(dw2),
        tensor_float(db2), 1, class_grad_scale, tensor_act(x), b.ids, &a);
    RefClassifier ref = {N, C, V, w->in, bias->in, 0};
    ClassifierWant want = classifier_want(&b, &ref, x->in);
    RefClassifierTol tol = {bench_doubles(&b, N * V), bench_doubles(&b, N),
        bench_doubles(&b, N * C), bench_doubles(&b, V * C), bench_doubles(&b, V), ACT_U};
    ref_classifier_bound(&tol, (double)class_grad_scale, x->in, b.host_ids, &ref);
    bench_compare(&b, "logits", logits, want.logits, tol.logits);
    bench_compare(&b, "losses", loss, want.losses, tol.losses);
    bench_compare(&b, "dx", dx, want.dx, tol.dx);
    check_no_gradient(&b, dw, V * C, true), check_no_gradient(&b, db, V, true);
    check_no_gradient(&b, dw2, V * C, false), check_no_gradient(&b, db2, V, false);
    dw->n = dw2->n = V * C, db->n = db2->n = V; /* what is not padding */
    bench_compare(&b, "dw", dw, want.dw, tol.dw), bench_compare(&b, "dw2", dw2, want.dw, tol.dw);
    bench_compare(&b, "db", db, want.db, tol.dbias),
        bench_compare(&b, "db2", db2, want.db, tol.dbias);
    dw->n = dw2->n = VP * C, db->n = db2->n = VP;
    ref.V = VP; /* planted */
    want = classifier_want(&b, &ref, x->in);
    bench_compare_planted(&b, "padding in loss", loss, want.losses, tol.losses);
    bench_close(&b);
}

static void linear_equals(Test *t) {
    BENCH_EACH_CASE(t, linear);
}
static void classifier_equals(Test *t) {
    BENCH_EACH_CASE(t, classifier);
}

static void same_bits_again(Test *t) {
    static const int two[3] = {2, 2, 2};
    BENCH_EACH_SAME_BITS(t, linear, two);
    BENCH_EACH_SAME_BITS(t, classifier, two);
}

static void same_bits_any_threads(Test *t) {
    static const int one_and_two[3] = {1, 2, 1};
    if (bench_threads_cut_sums()) SKIP(t, BENCH_THREADS_CUT_SUMS);
    BENCH_EACH_SAME_BITS(t, linear, one_and_two);
    BENCH_EACH_SAME_BITS(t, classifier, one_and_two);
}

const TestCase *test_products(int *count) {
    static const TestCase cases[] = {
        {"products: linear layer and activation equal the oracle", linear_equals},
        {"products: classifier equals the oracle", classifier_equals},
        {"products: more tokens than logits fit into memory at once", chunks_add_up},
        {"products: rows that pad the vocabulary get no probability and no gradient",
            padded_vocabulary},
        {"products: the same bits every time", same_bits_again},
        {"products: 1 and 2 threads give the same bits", same_bits_any_threads},
    };
    return TEST_TABLE(cases, count);
}
