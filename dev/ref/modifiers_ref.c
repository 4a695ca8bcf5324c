/* modifiers_ref.c: the oracle of what may be done to queries and keys before the scores, and of
 * differential attention's two maps into one, naive and in double; and how far float may be from
 * it. Knows no backend. */
#include <math.h>
#include <stdlib.h>

#include "dev/ref/ops_ref.h"
#include "laser/base.h"

static double *doubles(size_t n) {
    return xcalloc(n, sizeof(double));
}

static double mean_product(const double *x, const double *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * y[i];
    return sum / n;
}

static void start_sum(double *x, double beta, int n) {
    for (int i = 0; x && i < n; i++) x[i] = beta == 0 ? 0 : beta * x[i];
}

/* ---- queries and keys ------------------------------------------------------------------------ */

#define LOG2_E 1.442695041

static double softplus(double p) {
    return fmax(p, 0) + log1p(exp(-fabs(p)));
}

double ref_per_dim_factor(double p) {
    return LOG2_E * softplus(p);
}

static double factor_slope(double p) {
    return LOG2_E / (1 + exp(-p));
}

/* One head of one token: x as it came, hat normalised (or x where there is no norm), y = hat * w,
 * which q's factor multiplies. */
typedef struct Row {
    double *hat, *y;
    double rstd;
} Row;

static void row_fwd(Row *r, const double *x, const double *w, const RefQueryKey *a) {
    double mean = 0, squares = 0;
    for (int c = 0; c < a->HD; c++) mean += x[c] / a->HD;
    for (int c = 0; c < a->HD; c++) squares += (x[c] - mean) * (x[c] - mean) / a->HD;
    r->rstd = 1 / sqrt(squares + a->eps);
    for (int c = 0; c < a->HD; c++) {
        r->hat[c] = w ? (x[c] - mean) * r->rstd : x[c];
        r->y[c] = w ? r->hat[c] * w[c] : x[c];
    }
}

/* Head `head` of q (which 0) or k (which 1) of token n in an array (N, 3, H, HD). */
static size_t row_at(const RefQueryKey *a, int n, int which, int head) {
    return (size_t)((n * 3 + which) * a->H + head) * (size_t)a->HD;
}

static Row row_new(const RefQueryKey *a) {
    return (Row){doubles((size_t)a->HD), doubles((size_t)a->HD), 0};
}

static void row_free(Row *r) {
    free(r->hat), free(r->y);
}

void ref_query_key_fwd(double *qkv, const RefQueryKey *a) {
    Row r = row_new(a);
    for (int i = 0; i < a->N * 2 * a->H; i++) {
        const int which = i / a->H % 2;
        double *x = qkv + row_at(a, i / (2 * a->H), which, i % a->H);
        row_fwd(&r, x, which ? a->kw : a->qw, a);
        for (int c = 0; c < a->HD; c++)
            x[c] = !which && a->p ? r.y[c] * ref_per_dim_factor(a->p[c]) : r.y[c];
    }
    row_free(&r);
}

/* g: gradient of y, becomes that of x; dw += */
static void row_bwd(double *g, double *dw, const Row *r, const double *w, const RefQueryKey *a) {
    if (!w) return;
    double mean = 0, mean_hat = 0;
    for (int c = 0; c < a->HD; c++) {
        dw[c] += g[c] * r->hat[c];
        g[c] *= w[c];
        mean += g[c] / a->HD;
    }
    mean_hat = mean_product(g, r->hat, a->HD);
    for (int c = 0; c < a->HD; c++) g[c] = r->rstd * (g[c] - mean - r->hat[c] * mean_hat);
}

void ref_query_key_bwd(
    double *dqkv, const RefQueryKeyGrads *g, const double *raw, const RefQueryKey *a) {
    Row r = row_new(a);
    start_sum(g->qw, g->beta, a->HD);
    start_sum(g->kw, g->beta, a->HD);
    start_sum(g->p, g->beta, a->HD);
    for (int i = 0; i < a->N * 2 * a->H; i++) {
        const int which = i / a->H % 2;
        const size_t at = row_at(a, i / (2 * a->H), which, i % a->H);
        double *dx = dqkv + at;
        row_fwd(&r, raw + at, which ? a->kw : a->qw, a);
        for (int c = 0; c < a->HD && !which && a->p; c++) {
            g->p[c] += dx[c] * r.y[c] * factor_slope(a->p[c]);
            dx[c] *= ref_per_dim_factor(a->p[c]);
        }
        row_bwd(dx, which ? g->kw : g->qw, &r, which ? a->kw : a->qw, a);
    }
    row_free(&r);
}

/* The norm: as norm_tolerances in test_ops.c has it: the mean is off by d = gamma(HD) mean |x|, an
 * x - mean by u |x| + d, rstd by gamma(HD) + rstd^2 d^2 of itself; `hat` is the absolute error of
 * the normalised value. The factor: exp, log and products, of an argument that exp makes relative:
 * off by 4 FN + 4u + 2u |p| of itself, and so is its derivative. */
typedef struct RowTol {
    double *hat;
    double rstd; /* relative */
} RowTol;

static double factor_error(double p) {
    return 4 * REF_FN + 4 * REF_U + 2 * REF_U * fabs(p);
}

static void row_tol(RowTol *t, const Row *r, const double *x, bool norm, const RefQueryKey *a) {
    const double gamma = ref_gamma(a->HD) + 8 * REF_U;
    double size = 0;
    for (int c = 0; c < a->HD; c++) size += fabs(x[c]) / a->HD;
    const double d = gamma * size, s = r->rstd;
    t->rstd = gamma + s * s * (d + 2 * REF_U * size) * (d + REF_U * size);
    for (int c = 0; c < a->HD; c++) {
        const double moved = s * (2 * REF_U * fabs(x[c]) + d);
        t->hat[c] = norm ? moved + fabs(r->hat[c]) * t->rstd : 0;
    }
}

/* Gradients of a row: g is the gradient of y, off by `relative`; dx_tol, dw_tol += */
static void row_bwd_tol(double *dx_tol, double *dw_tol, const double *g, const double *relative,
    const Row *r, const RowTol *t, const double *w, const RefQueryKey *a) {
    const double gamma = ref_gamma(a->HD) + 8 * REF_U, sum = ref_gamma(a->N * a->H + 1);
    double size = 0, hat_size = 0, hat_error = 0, error = 0, hat_given = 0;
    for (int c = 0; c < a->HD; c++) {
        const double gw = fabs(g[c] * w[c]) / a->HD, hat = fabs(r->hat[c]);
        size += gw, hat_size += gw * hat, hat_error += gw * t->hat[c];
        error += gw * relative[c], hat_given += gw * hat * relative[c];
        dw_tol[c] += fabs(g[c]) * (hat * (sum + relative[c]) + t->hat[c]);
    }
    for (int c = 0; c < a->HD; c++) {
        const double gw = fabs(g[c] * w[c]), hat = fabs(r->hat[c]);
        const double parts = gw + size + hat * hat_size;
        dx_tol[c] += r->rstd * ((gamma + t->rstd) * parts + hat * hat_error + t->hat[c] * hat_size);
        dx_tol[c] += r->rstd * (gw * relative[c] + error + hat * hat_given);
    }
}

/* Where there is no norm, dp is made of what fwd left, rounded to an activation. */
static void query_bound(double *x_tol, double *dx_tol, double *dp_tol, double *g, double *relative,
    const Row *r, const RowTol *t, const RefQueryKey *a) {
    for (int c = 0; c < a->HD; c++) {
        const double f = ref_per_dim_factor(a->p[c]), e = factor_error(a->p[c]);
        const double slope = factor_slope(a->p[c]), size = fabs(g[c] * r->y[c]) * slope;
        const double w = a->qw ? fabs(a->qw[c]) : 1;
        dp_tol[c] += size * (ref_gamma(a->N * a->H + 1) + 2 * e + (a->qw ? 0 : a->act_u));
        dp_tol[c] += fabs(g[c]) * slope * w * t->hat[c];
        x_tol[c] = f * (x_tol[c] + fabs(r->y[c]) * e);
        g[c] *= f;
        relative[c] = e;
        dx_tol[c] += a->qw ? 0 : fabs(g[c]) * e;
    }
}

void ref_query_key_bound(double *qkv_tol, double *dqkv_tol, const RefQueryKeyGrads *tol,
    const double *dqkv, const double *raw, const RefQueryKey *a) {
    const size_t HD = (size_t)a->HD;
    double *block = doubles(4 * HD), *g = block, *relative = g + HD, *x_tol = relative + HD;
    Row r = row_new(a);
    RowTol t = {.hat = x_tol + HD};
    for (int i = 0; i < a->N * 2 * a->H; i++) {
        const int which = i / a->H % 2;
        const size_t at = row_at(a, i / (2 * a->H), which, i % a->H);
        const double *w = which ? a->kw : a->qw;
        row_fwd(&r, raw + at, w, a);
        row_tol(&t, &r, raw + at, w, a);
        for (int c = 0; c < a->HD; c++) {
            g[c] = dqkv[at + (size_t)c];
            relative[c] = 0;
            x_tol[c] = w ? fabs(w[c]) * t.hat[c] + 4 * REF_U * fabs(r.y[c]) : 0;
        }
        if (!which && a->p) query_bound(x_tol, dqkv_tol + at, tol->p, g, relative, &r, &t, a);
        for (int c = 0; c < a->HD; c++) qkv_tol[at + (size_t)c] += x_tol[c];
        if (w) row_bwd_tol(dqkv_tol + at, which ? tol->kw : tol->qw, g, relative, &r, &t, w, a);
    }
    row_free(&r);
    free(block);
}

/* ---- differential attention ------------------------------------------------------------------ */

static double half_dot(const double *x, const double *y, const RefDiff *a) {
    return mean_product(x, y, a->HD / 2) * (a->HD / 2);
}

double ref_diff_lambda(const RefDiff *a) {
    return exp(half_dot(a->lq1, a->lk1, a)) - exp(half_dot(a->lq2, a->lk2, a)) + a->lambda_init;
}

/* y of one head of one token; returns the factor that the norm gives it, 1 without norm. */
static double diff_row(double *y, const double *o1, const double *o2, const RefDiff *a) {
    const double lambda = ref_diff_lambda(a);
    for (int c = 0; c < a->HD; c++) y[c] = o1[c] - lambda * o2[c];
    return a->w ? 1 / sqrt(mean_product(y, y, a->HD) + a->eps) : 1;
}

void ref_diff_fwd(double *out, const double *o1, const double *o2, const RefDiff *a) {
    for (int i = 0; i < a->N * a->H; i++) {
        double *y = out + i * a->HD;
        const double s = diff_row(y, o1 + i * a->HD, o2 + i * a->HD, a);
        for (int c = 0; c < a->HD; c++) y[c] *= a->w ? (1 - a->lambda_init) * s * a->w[c] : 1;
    }
}

/* Of y, given dout: dy, and for the norm dw +=. */
static void diff_row_bwd(
    double *dy, double *dw, const double *dout, const double *y, double s, const RefDiff *a) {
    double mean = 0;
    for (int c = 0; c < a->HD; c++) {
        dy[c] = dout[c];
        if (!a->w) continue;
        dw[c] += dout[c] * (1 - a->lambda_init) * s * y[c];
        dy[c] = dout[c] * (1 - a->lambda_init) * a->w[c];
        mean += dy[c] * s * y[c] / a->HD;
    }
    for (int c = 0; c < a->HD && a->w; c++) dy[c] = s * (dy[c] - mean * s * y[c]);
}

void ref_diff_bwd(double *do1, double *do2, const RefDiffGrads *g, const double *dout,
    const double *o1, const double *o2, const RefDiff *a) {
    const double lambda = ref_diff_lambda(a);
    const double e1 = exp(half_dot(a->lq1, a->lk1, a)), e2 = exp(half_dot(a->lq2, a->lk2, a));
    double *y = doubles((size_t)a->HD), dlambda = 0;
    start_sum(g->w, g->beta, a->HD);
    for (int i = 0; i < a->N * a->H; i++) {
        const int at = i * a->HD;
        const double s = diff_row(y, o1 + at, o2 + at, a);
        diff_row_bwd(do1 + at, g->w, dout + at, y, s, a);
        for (int c = at; c < at + a->HD; c++) {
            dlambda -= do1[c] * o2[c];
            do2[c] = -lambda * do1[c];
        }
    }
    double *const of[4] = {g->lq1, g->lk1, g->lq2, g->lk2};
    for (int i = 0; i < 4; i++) start_sum(of[i], g->beta, a->HD / 2);
    for (int c = 0; c < a->HD / 2; c++) {
        g->lq1[c] += dlambda * e1 * a->lk1[c];
        g->lk1[c] += dlambda * e1 * a->lq1[c];
        g->lq2[c] -= dlambda * e2 * a->lk2[c];
        g->lk2[c] -= dlambda * e2 * a->lq2[c];
    }
    free(y);
}

/* lambda: a dot product d of HD/2 terms is off by gamma(HD/2) sum |q k|, its exp by that, FN and
 * u |d| of itself. y is off by lambda's error times |o2| and 2u of its parts. With the norm s is
 * off by s^2 mean(|y| err) + gamma(HD) of itself, and dy is a difference whose parts bring theirs
 * as in any norm. dlambda sums N H HD products of dy and o2. */
typedef struct DiffTol {
    double e1, e2;         /* relative */
    double lambda;         /* absolute */
    double dlambda;        /* absolute */
    double *y, *dy, *size; /* (HD) of a row: errors, and the sum of the parts of dy */
} DiffTol;

static double exp_error(const double *q, const double *k, const RefDiff *a) {
    double sum = 0;
    for (int c = 0; c < a->HD / 2; c++) sum += fabs(q[c] * k[c]);
    return ref_gamma(a->HD / 2) * sum + REF_FN + REF_U * fabs(half_dot(q, k, a));
}

/* out_tol +=; returns the relative error of s. */
static double diff_row_tol(DiffTol *t, double *out_tol, const double *y, double s, const double *o1,
    const double *o2, const RefDiff *a) {
    const double lambda = ref_diff_lambda(a), k = a->w ? 1 - a->lambda_init : 1;
    double moved = 0;
    for (int c = 0; c < a->HD; c++) {
        t->y[c] = t->lambda * fabs(o2[c]) + 2 * REF_U * (fabs(o1[c]) + fabs(lambda * o2[c]));
        moved += fabs(y[c]) * t->y[c] / a->HD;
    }
    const double error = a->w ? s * s * moved + ref_gamma(a->HD) + 4 * REF_U : 0;
    for (int c = 0; c < a->HD; c++) {
        const double w = a->w ? fabs(a->w[c]) : 1;
        out_tol[c] += k * w * s * (t->y[c] + fabs(y[c]) * (error + (a->w ? 4 * REF_U : 0)));
    }
    return error;
}

static void diff_row_bwd_tol(DiffTol *t, double *dw_tol, const double *dout, const double *y,
    double s, double s_error, const RefDiff *a) {
    const double k = 1 - a->lambda_init, gamma = ref_gamma(a->HD) + 8 * REF_U;
    double mean = 0, error = 0;
    for (int c = 0; c < a->HD; c++) {
        t->dy[c] = 0, t->size[c] = fabs(dout[c]);
        if (!a->w) continue;
        const double hat = fabs(s * y[c]), off = s * t->y[c] + hat * s_error;
        const double g = fabs(dout[c]) * k;
        mean += g * fabs(a->w[c]) * hat / a->HD;
        error += g * fabs(a->w[c]) * off / a->HD;
        dw_tol[c] += g * (hat * (ref_gamma(a->N * a->H + 1) + 4 * REF_U) + off);
    }
    for (int c = 0; c < a->HD && a->w; c++) {
        const double hat = fabs(s * y[c]), off = s * t->y[c] + hat * s_error;
        t->size[c] = s * (fabs(dout[c] * a->w[c]) * k + hat * mean);
        t->dy[c] = (gamma + s_error) * t->size[c] + s * (off * mean + hat * error);
    }
}

static DiffTol diff_tol_new(double *block, const RefDiff *a) {
    const double e1 = exp(half_dot(a->lq1, a->lk1, a)), e2 = exp(half_dot(a->lq2, a->lk2, a));
    DiffTol t = {.e1 = exp_error(a->lq1, a->lk1, a), .e2 = exp_error(a->lq2, a->lk2, a)};
    t.lambda = e1 * t.e1 + e2 * t.e2 + 2 * REF_U * (e1 + e2 + fabs(a->lambda_init));
    t.y = block, t.dy = block + a->HD, t.size = block + 2 * a->HD;
    return t;
}

void ref_diff_bound(const RefDiffTol *tol, const double *dout, const double *o1, const double *o2,
    const RefDiff *a) {
    const double lambda = ref_diff_lambda(a);
    double *block = doubles(5 * (size_t)a->HD), *y = block, *dy = y + a->HD;
    double *unused = doubles((size_t)a->HD), dlambda = 0;
    DiffTol t = diff_tol_new(dy + a->HD, a);
    for (int i = 0; i < a->N * a->H; i++) {
        const int at = i * a->HD;
        const double s = diff_row(y, o1 + at, o2 + at, a);
        const double error = diff_row_tol(&t, tol->out + at, y, s, o1 + at, o2 + at, a);
        diff_row_bwd(dy, unused, dout + at, y, s, a);
        diff_row_bwd_tol(&t, tol->grads.w, dout + at, y, s, error, a);
        for (int c = 0; c < a->HD; c++) {
            tol->do1[at + c] += t.dy[c];
            tol->do2[at + c] += fabs(lambda) * t.dy[c] + fabs(dy[c]) * (t.lambda + 2 * REF_U);
            t.dlambda += fabs(o2[at + c]) * t.dy[c];
            t.dlambda += fabs(dy[c] * o2[at + c]) * ref_gamma((double)a->N * a->H * a->HD);
            dlambda -= dy[c] * o2[at + c];
        }
    }
    const double e1 = exp(half_dot(a->lq1, a->lk1, a)), e2 = exp(half_dot(a->lq2, a->lk2, a));
    const double d1 = e1 * (t.dlambda + fabs(dlambda) * (t.e1 + 4 * REF_U));
    const double d2 = e2 * (t.dlambda + fabs(dlambda) * (t.e2 + 4 * REF_U));
    for (int c = 0; c < a->HD / 2; c++) {
        tol->grads.lq1[c] += d1 * fabs(a->lk1[c]), tol->grads.lk1[c] += d1 * fabs(a->lq1[c]);
        tol->grads.lq2[c] += d2 * fabs(a->lk2[c]), tol->grads.lk2[c] += d2 * fabs(a->lq2[c]);
    }
    free(block), free(unused);
}
