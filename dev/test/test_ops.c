/* test_ops.c: embedding, LayerNorm and rope on the linked backend, against the oracle, over the
 * cases of dev/ref/cases.h. Each operation has a run (tensors and calls), a check (oracle,
 * tolerance, planted errors), and is run again with other threads, where every bit must be the
 * same. Knows the seam alone. */
#include <math.h>
#include <string.h>

#include "dev/ref/cases.h"
#include "dev/test/tensor.h"

/* ---- embedding ------------------------------------------------------------------------------- */

enum { EMBED_WTE, EMBED_POS, EMBED_X, EMBED_DX, EMBED_DWTE, EMBED_DPOS, EMBED_DPOS_ADDED };

static void embed_run(Bench *b, const void *opaque) {
    const EmbedCase *c = opaque;
    const size_t weights = product(c->V, c->C), table = product(c->T, c->C);
    const int BTC[3] = {c->B, c->T, c->C};
    backend_reserve(b->be, &(BackendLimits){c->B, c->T, c->C, 1, 1, 1, 1, c->V, false});
    bench_ids(b, c->B * c->T, c->V);
    const act_t *wte = tensor_act(bench_random(b, TENSOR_ACT, weights, 1, 0));
    const act_t *pos = tensor_act(bench_random(b, TENSOR_ACT, table, 1, 0));
    act_t *x = tensor_act(bench_output(b, TENSOR_ACT, table * (size_t)c->B));
    const act_t *dx = tensor_act(bench_random(b, TENSOR_ACT, table * (size_t)c->B, 1, 0));
    float *dwte = tensor_float(bench_random(b, TENSOR_FLOAT, weights, 1, 0));
    float *dpos = tensor_float(bench_output(b, TENSOR_FLOAT, table));
    float *added = tensor_float(bench_random(b, TENSOR_FLOAT, table, 1, 0));
    const float scale = (float)c->scale;
    op_embed_fwd(b->be, x, b->ids, wte, c->pos ? pos : NULL, scale, BTC);
    op_embed_bwd(b->be, dwte, dpos, 0, dx, b->ids, scale, BTC);
    /* again, into copies that are not looked at: only the added positions are */
    float *dwte2 = tensor_float(bench_random(b, TENSOR_FLOAT, weights, 1, 0));
    op_embed_bwd(b->be, dwte2, added, 1, dx, b->ids, scale, BTC);
    op_embed_bwd(b->be, dwte2, NULL, 1, dx, b->ids, scale, BTC);
}

/* x: one product, one sum. dwte, dpos: sums of at most B T or B rounded products and what was
 * there. */
static void embed_check(Bench *b, const EmbedCase *c) {
    Tensor *at = b->tensors;
    const size_t weights = at[EMBED_WTE].n, table = at[EMBED_POS].n, N = product(c->B, c->T);
    RefEmbed a = {c->B, c->T, c->C, float_value(c->scale), b->host_ids};
    const double *wte = at[EMBED_WTE].in, *dx = at[EMBED_DX].in;
    const double *pos = c->pos ? at[EMBED_POS].in : NULL;
    double *x = bench_doubles(b, at[EMBED_X].n), *tol = bench_doubles(b, at[EMBED_X].n);
    ref_embed_fwd(x, wte, pos, &a);
    ref_embed_fwd(
        tol, bench_absolute(b, wte, weights), pos ? bench_absolute(b, pos, table) : NULL, &a);
    scaled(tol, at[EMBED_X].n, 2 * REF_U);
    bench_compare(b, "x", &at[EMBED_X], x, tol);

    double *dwte = tensor_copy(b, &at[EMBED_DWTE]), *dpos = bench_doubles(b, table);
    double *dwte_tol = bench_absolute(b, dwte, weights), *dpos_tol = bench_doubles(b, table);
    double *dx_abs = bench_absolute(b, dx, at[EMBED_DX].n);
    ref_embed_bwd(dwte, dpos, 0, dx, &a);
    ref_embed_bwd(dwte_tol, dpos_tol, 0, dx_abs, &a);
    scaled(dwte_tol, weights, ref_gamma((double)N + 2));
    scaled(dpos_tol, table, ref_gamma(c->B + 1));
    bench_compare(b, "dwte", &at[EMBED_DWTE], dwte, dwte_tol);
    bench_compare(b, "dpos", &at[EMBED_DPOS], dpos, dpos_tol);

    double *added = tensor_copy(b, &at[EMBED_DPOS_ADDED]), *unused = bench_doubles(b, weights);
    double *added_tol = bench_absolute(b, added, table);
    ref_embed_bwd(unused, added, 1, dx, &a);
    ref_embed_bwd(unused, added_tol, 1, dx_abs, &a);
    bench_compare(b, "dpos added", &at[EMBED_DPOS_ADDED], added,
        scaled(added_tol, table, ref_gamma(c->B + 2)));

    RefEmbed wrong = a;
    wrong.scale *= 1.001 + 8 * ACT_U; /* what storage rounds must be small beside it */
    ref_embed_fwd(x, wte, pos, &wrong);
    bench_compare_planted(b, "scale larger", &at[EMBED_X], x, tol);
    wrong = a, wrong.B = c->B - 1; /* the last sequence is forgotten */
    dwte = tensor_copy(b, &at[EMBED_DWTE]);
    ref_embed_bwd(dwte, dpos, 0, dx, &wrong);
    bench_compare_planted(b, "last sequence missing", &at[EMBED_DWTE], dwte, dwte_tol);
    bench_compare_planted(b, "last sequence missing", &at[EMBED_DPOS], dpos, dpos_tol);
}

/* ---- LayerNorm ------------------------------------------------------------------------------- */

enum {
    NORM_X_IN,
    NORM_DELTA,
    NORM_W,
    NORM_B,
    NORM_X,
    NORM_OUT,
    NORM_MEAN,
    NORM_RSTD,
    NORM_DOUT,
    NORM_DX,
    NORM_DW,
    NORM_DB,
    NORM_DX2,
    NORM_DW_ADDED,
    NORM_DB_ADDED
};

static void norm_run(Bench *b, const void *opaque) {
    const NormCase *c = opaque;
    const size_t n = product(c->N, c->C), C = (size_t)c->C, N = (size_t)c->N;
    backend_reserve(b->be, &(BackendLimits){1, c->N, c->C, 1, 1, 1, 1, 2, false});
    act_t *x_in = tensor_act(bench_random(b, TENSOR_ACT, n, c->std, c->mean));
    act_t *delta = tensor_act(bench_random(b, TENSOR_ACT, n, c->std, 0));
    act_t *w = tensor_act(bench_random(b, TENSOR_ACT, C, 0.5, 1));
    act_t *bias = tensor_act(bench_random(b, TENSOR_ACT, C, 1, 0));
    act_t *x = tensor_act(bench_output(b, TENSOR_ACT, n));
    act_t *out = tensor_act(bench_output(b, TENSOR_ACT, n));
    float *mean = tensor_float(bench_output(b, TENSOR_FLOAT, N));
    float *rstd = tensor_float(bench_output(b, TENSOR_FLOAT, N));
    NormArgs a = {c->N, c->C, (float)c->eps, w, bias, mean, rstd};
    act_t *sum = c->alias ? x_in : x;
    op_residual_norm_fwd(b->be, sum, out, x_in, c->delta ? delta : NULL, &a);

    const act_t *dout = tensor_act(bench_random(b, TENSOR_ACT, n, 1, 0));
    act_t *dx = tensor_act(bench_random(b, TENSOR_ACT, n, 1, 0));
    float *dw = tensor_float(bench_output(b, TENSOR_FLOAT, C));
    float *db = tensor_float(bench_output(b, TENSOR_FLOAT, C));
    act_t *dx2 = tensor_act(bench_random(b, TENSOR_ACT, n, 1, 0));
    float *dw2 = tensor_float(bench_random(b, TENSOR_FLOAT, C, 1, 0));
    float *db2 = tensor_float(bench_random(b, TENSOR_FLOAT, C, 1, 0));
    const act_t *input = c->delta ? sum : x_in;
    op_norm_bwd(b->be, dx, dw, db, 0, dout, input, &a);
    op_norm_bwd(b->be, dx2, dw2, db2, 1, dout, input, &a);
}

/* How far xhat, out and the gradients may be. The mean is off by d = gamma(C) mean|x|, which enters
 * the variance only squared when it is summed around the mean; each x - mean is off by u|x| + d,
 * and rstd by gamma(C) + 4u of itself plus rstd^2 d^2. x itself was rounded once: that shifts xhat
 * like u|x|. */
typedef struct NormTol {
    double *xhat, *mean, *rstd, *out, *dx, *dw, *db;
} NormTol;

static void norm_tolerances(NormTol *tol, const double *x, const double *dout, const RefNorm *a) {
    const double gamma = ref_gamma(a->C) + 8 * REF_U, gamma_n = ref_gamma(a->N + 1);
    for (int n = 0; n < a->N; n++) {
        const double *row = x + n * a->C, *g = dout + n * a->C;
        double mean = 0, mean_abs = 0, variance = 0, g_abs = 0, gx_abs = 0, gx_err = 0;
        for (int c = 0; c < a->C; c++) {
            mean += row[c] / a->C;
            mean_abs += fabs(row[c]) / a->C;
        }
        for (int c = 0; c < a->C; c++) variance += pow(row[c] - mean, 2) / a->C;
        const double r = 1 / sqrt(variance + a->eps), d = gamma * mean_abs;
        tol->mean[n] = d;
        tol->rstd[n] = r * (gamma + r * r * (d + 2 * REF_U * mean_abs) * (d + mean_abs * REF_U));
        for (int c = 0; c < a->C; c++) {
            double hat = fabs(row[c] - mean) * r, err = r * (2 * REF_U * fabs(row[c]) + d);
            err += hat * tol->rstd[n] / r;
            tol->xhat[c] = err;
            tol->out[n * a->C + c] = err * fabs(a->w[c]) + 4 * REF_U * hat * fabs(a->w[c]);
            tol->out[n * a->C + c] += 2 * REF_U * fabs(a->b[c]);
            g_abs += fabs(g[c] * a->w[c]) / a->C;
            gx_abs += fabs(g[c] * a->w[c]) * hat / a->C;
            gx_err += fabs(g[c] * a->w[c]) * err / a->C;
            tol->dw[c] += gamma_n * fabs(g[c]) * hat + fabs(g[c]) * err;
            tol->db[c] += gamma_n * fabs(g[c]);
        }
        for (int c = 0; c < a->C; c++) {
            double hat = fabs(row[c] - mean) * r, gw = fabs(g[c] * a->w[c]);
            double sum = gw + g_abs + hat * gx_abs;
            tol->dx[n * a->C + c] = r * (gamma * sum + hat * gx_err + tol->xhat[c] * gx_abs);
            tol->dx[n * a->C + c] += tol->rstd[n] * sum;
        }
    }
}

static NormTol norm_tol(Bench *b, size_t N, size_t C) {
    NormTol tol = {bench_doubles(b, C), bench_doubles(b, N), bench_doubles(b, N),
        bench_doubles(b, N * C), bench_doubles(b, N * C), bench_doubles(b, C), bench_doubles(b, C)};
    return tol;
}

static void norm_planted(
    Bench *b, const NormCase *c, const RefNorm *right, const double *x, const NormTol *tol) {
    Tensor *at = b->tensors;
    const size_t n = at[NORM_DX].n, C = (size_t)c->C;
    const double *dout = at[NORM_DOUT].in;
    double *sum = bench_doubles(b, n), *out = bench_doubles(b, n), *written = bench_doubles(b, n);
    double *dw = bench_doubles(b, C), *db = bench_doubles(b, C);
    RefNorm wrong = *right;
    wrong.eps = 0;
    ref_norm_fwd(sum, out, NULL, NULL, x, NULL, &wrong);
    if (c->std < 0.01) bench_compare_planted(b, "epsilon ignored", &at[NORM_OUT], out, tol->out);
    wrong = *right, wrong.N = c->N - 1;
    double *dx = tensor_copy(b, &at[NORM_DX]);
    ref_norm_bwd(dx, dw, db, 0, dout, x, &wrong);
    /* two channels become +1 and -1 whatever they are: what reaches dx is below narrow rounding */
    if (ACT_U == 0 || c->C > 2)
        bench_compare_planted(b, "last token missing", &at[NORM_DX], dx, tol->dx);
    bench_compare_planted(b, "last token missing", &at[NORM_DW], dw, tol->dw);
    bench_compare_planted(b, "last token missing", &at[NORM_DB], db, tol->db);
    ref_norm_bwd(written, dw, db, 0, dout, x, right);
    bench_compare_planted(b, "dx written, not added", &at[NORM_DX], written, tol->dx);
    dx = tensor_copy(b, &at[NORM_DX]);
    for (size_t i = 0; i < n; i++) dx[i] += dout[i] * right->w[i % C];
    bench_compare_planted(b, "scale and bias alone in dx", &at[NORM_DX], dx, tol->dx);
}

static void norm_check(Bench *b, const NormCase *c) {
    Tensor *at = b->tensors;
    const size_t n = at[NORM_X_IN].n, N = (size_t)c->N, C = (size_t)c->C;
    RefNorm a = {c->N, c->C, float_value(c->eps), at[NORM_W].in, at[NORM_B].in};
    const double *delta = c->delta ? at[NORM_DELTA].in : NULL, *dout = at[NORM_DOUT].in;
    double *x = bench_doubles(b, n), *out = bench_doubles(b, n), *zero = bench_doubles(b, n);
    double *mean = bench_doubles(b, N), *rstd = bench_doubles(b, N);
    Tensor *sum = &at[c->alias ? NORM_X_IN : NORM_X];
    ref_norm_fwd(x, out, mean, rstd, at[NORM_X_IN].in, delta, &a);
    if (c->delta) {
        bench_compare(b, "x", sum, x, zero); /* one rounded addition */
        /* the norm is of the sum that was stored: its rounding is not an error of the norm */
        ref_norm_fwd(x, out, mean, rstd, tensor_read(b, sum), NULL, &a);
    }
    NormTol tol = norm_tol(b, N, C);
    norm_tolerances(&tol, x, dout, &a);
    bench_compare(b, "out", &at[NORM_OUT], out, tol.out);
    bench_compare(b, "mean", &at[NORM_MEAN], mean, tol.mean);
    bench_compare(b, "rstd", &at[NORM_RSTD], rstd, tol.rstd);

    double *dx = tensor_copy(b, &at[NORM_DX]), *dw = bench_doubles(b, C);
    double *db = bench_doubles(b, C);
    ref_norm_bwd(dx, dw, db, 0, dout, x, &a);
    bench_compare(b, "dx", &at[NORM_DX], dx, tol.dx);
    bench_compare(b, "dw", &at[NORM_DW], dw, tol.dw);
    bench_compare(b, "db", &at[NORM_DB], db, tol.db);
    double *dw2 = tensor_copy(b, &at[NORM_DW_ADDED]), *db2 = tensor_copy(b, &at[NORM_DB_ADDED]);
    double *dx2 = tensor_copy(b, &at[NORM_DX2]);
    ref_norm_bwd(dx2, dw2, db2, 1, dout, x, &a);
    bench_compare(b, "dx again", &at[NORM_DX2], dx2, tol.dx);
    bench_compare(b, "dw added", &at[NORM_DW_ADDED], dw2, tol.dw);
    bench_compare(b, "db added", &at[NORM_DB_ADDED], db2, tol.db);

    if (c->C > 1 && c->std > 0) norm_planted(b, c, &a, x, &tol); /* else only the bias comes out */
}

/* ---- rotary positions ------------------------------------------------------------------------ */

static void rope_run(Bench *b, const void *opaque) {
    const RopeCase *c = opaque;
    const RopeArgs a = {.B = c->B, .T = c->T, .H = c->H, .HD = c->HD};
    const size_t n = product(c->B, c->T) * 3 * product(c->H, c->HD);
    backend_reserve(
        b->be, &(BackendLimits){c->B, c->T, c->H * c->HD, 1, c->H, c->HD, c->HD, 2, false});
    op_rope(b->be, tensor_act(bench_random(b, TENSOR_ACT, n, 1, 0)), +1, &a);
    op_rope(b->be, tensor_act(bench_random(b, TENSOR_ACT, n, 1, 0)), -1, &a);
}

/* Two products and a sum. A backend may form the angle in float: off by 4u of itself, which turns
 * the pair. */
static void rope_check(Bench *b, const RopeCase *c) {
    const size_t n = b->tensors[0].n;
    double *tol = bench_doubles(b, n);
    for (int turn = 0; turn < 2; turn++) {
        Tensor *x = &b->tensors[turn];
        double *want = tensor_copy(b, x), *wrong = tensor_copy(b, x), largest = 0;
        for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(x->in[i]));
        for (size_t i = 0; i < n; i++) tol[i] = (4 + 4.0 * c->T) * REF_U * largest;
        ref_rope(want, turn ? -1 : +1, c->B, c->T, c->H, c->HD);
        bench_compare(b, turn ? "turned back" : "turned", x, want, tol);
        ref_rope(wrong, turn ? +1 : -1, c->B, c->T, c->H, c->HD);
        bench_compare_planted(b, "wrong sign", x, wrong, tol);
        bench_compare_planted(b, "nothing turned", x, x->in, tol);
        const double *got = tensor_read(b, x);
        for (int i = 0; i < c->B * c->T; i++) {
            const size_t v = ((size_t)i * 3 + 2) * product(c->H, c->HD);
            CHECK(b->t, memcmp(got + v, x->in + v, product(c->H, c->HD) * sizeof *got) == 0,
                "%s: v of token %d was touched", c->label, i);
        }
    }
}

/* ---- the tables ------------------------------------------------------------------------------ */

static const int one_and_two[3] = {1, 2, 1};

static void embed_equals(Test *t) {
    BENCH_EACH_CASE(t, embed);
    BENCH_EACH_SAME_BITS(t, embed, one_and_two);
}

static void norm_equals(Test *t) {
    BENCH_EACH_CASE(t, norm);
    BENCH_EACH_SAME_BITS(t, norm, one_and_two);
}

static void rope_equals(Test *t) {
    BENCH_EACH_CASE(t, rope);
    BENCH_EACH_SAME_BITS(t, rope, one_and_two);
}

const TestCase *test_ops(int *count) {
    static const TestCase cases[] = {
        {"ops: embedding equals the oracle, any threads the same bits", embed_equals},
        {"ops: LayerNorm equals the oracle, any threads the same bits", norm_equals},
        {"ops: rope equals the oracle, any threads the same bits", rope_equals},
    };
    return TEST_TABLE(cases, count);
}
