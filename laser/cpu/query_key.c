/* cpu/query_key.c: what may be done to queries and keys before their scores: LayerNorm over each
 * head, and the per-dimension scale of queries. Both in place, a head of a token at a time. */
#include "laser/cpu/backend.h"

#include <math.h>

#include "laser/base.h"
#include "laser/cpu/vec.h"

#define LOG2_E 1.442695041

/* The first n lanes, 0 in the others. */
static inline vf first_lanes(vf x, int n) {
    vi lane;
    for (int i = 0; i < VL; i++) lane[i] = i;
    return n >= VL ? x : (vf)((vi)x & (lane < n));
}

static inline int lanes_left(int HD, int c) {
    return HD - c < VL ? HD - c : VL;
}

typedef struct Moments {
    float mean, rstd;
} Moments;

static Moments moments(const float *x, int HD, float eps) {
    vf sum = {0}, squares = {0};
    for (int c = 0; c < HD; c += VL) sum += vf_load_n(x + c, lanes_left(HD, c));
    const float mean = vf_sum(sum) / (float)HD;
    for (int c = 0; c < HD; c += VL) {
        const int n = lanes_left(HD, c);
        const vf d = first_lanes(vf_load_n(x + c, n) - mean, n);
        squares += d * d;
    }
    return (Moments){mean, 1.0f / sqrtf(vf_sum(squares) / (float)HD + eps)};
}

/* Of each channel: the factor, and what turns the sum of dq * q (q after the norm, or without norm
 * after the factor) into the gradient of p. In double: few numbers, and p may be large either way.
 */
static void per_dim_factors(float *factor, float *slope, const QueryKeyArgs *a) {
    for (int c = 0; a->p && c < a->HD; c++) {
        const double p = (double)a->p[c];
        const double softplus = fmax(p, 0) + log1p(exp(-fabs(p)));
        const double sigmoid = 1 / (1 + exp(-p));
        factor[c] = (float)(LOG2_E * softplus);
        slope[c] = (float)(a->qw ? LOG2_E * sigmoid : sigmoid / softplus);
    }
}

static void check(const Backend *be, const QueryKeyArgs *a) {
    REQUIRE(a->N > 0 && a->H > 0 && a->HD > 0, "N=%d H=%d HD=%d", a->N, a->H, a->HD);
    REQUIRE(!a->qw == !a->kw && !a->qw == !a->raw, "%s", "a norm is of both, and keeps both");
    REQUIRE(be->scratch && a->HD <= be->limits.HD, "HD=%d, reserved %d", a->HD, be->limits.HD);
}

/* x = x * w * factor, either may be NULL; with w normalised before */
static void head_fwd(float *x, const float *w, const float *factor, const QueryKeyArgs *a) {
    Moments m = {0.0f, 1.0f};
    if (w) m = moments(x, a->HD, a->eps);
    for (int c = 0; c < a->HD; c++) {
        const float y = w ? (x[c] - m.mean) * m.rstd * w[c] : x[c];
        x[c] = factor ? y * factor[c] : y;
    }
}

void op_query_key_fwd(Backend *be, act_t *qkv, const QueryKeyArgs *a) {
    check(be, a);
    const size_t row = (size_t)a->H * (size_t)a->HD;
    float *factor = be->channels, *slope = factor + a->HD;
    per_dim_factors(factor, slope, a);
    CPU_PARALLEL_FOR
    for (int n = 0; n < a->N; n++) {
        float *x = qkv + (size_t)n * 3 * row;
        if (a->raw) memcpy(a->raw + (size_t)n * 2 * row, x, 2 * row * sizeof *x);
        for (int h = 0; h < 2 * a->H; h++, x += a->HD)
            head_fwd(x, h < a->H ? a->qw : a->kw, h < a->H && a->p ? factor : NULL, a);
    }
}

/* Through the norm: dx = rstd (g - mean g - hat mean(g hat)) with g = dx w; dw += dx hat. */
static void norm_bwd(float *dx, float *dw, const float *x, const float *w, const QueryKeyArgs *a) {
    const Moments m = moments(x, a->HD, a->eps);
    vf sum = {0}, sum_hat = {0};
    for (int c = 0; c < a->HD; c += VL) {
        const int n = lanes_left(a->HD, c);
        const vf g = vf_load_n(dx + c, n) * vf_load_n(w + c, n);
        sum += g;
        sum_hat += g * (vf_load_n(x + c, n) - m.mean);
    }
    const float mean = vf_sum(sum) / (float)a->HD;
    const float mean_hat = vf_sum(sum_hat) * m.rstd / (float)a->HD;
    for (int c = 0; c < a->HD; c++) {
        const float hat = (x[c] - m.mean) * m.rstd, g = dx[c];
        dw[c] += g * hat;
        dx[c] = (g * w[c] - mean - hat * mean_hat) * m.rstd;
    }
}

/* Through the factor: dp += dx * y, y the query as norm_bwd's operand x makes it, or as fwd left
 * it. */
static void factor_bwd(float *dx, float *dp, const float *out, const float *x, const float *factor,
    const QueryKeyArgs *a) {
    if (a->qw) {
        const Moments m = moments(x, a->HD, a->eps);
        for (int c = 0; c < a->HD; c++) dp[c] += dx[c] * ((x[c] - m.mean) * m.rstd * a->qw[c]);
    } else {
        for (int c = 0; c < a->HD; c++) dp[c] += dx[c] * out[c];
    }
    for (int c = 0; c < a->HD; c++) dx[c] *= factor[c];
}

/* sums (3, HD): of dqw, dkw, dp */
static void token_bwd(float *dx, float *sums, const float *out, const float *raw,
    const float *factor, const QueryKeyArgs *a) {
    for (int h = 0; h < 2 * a->H; h++) {
        const bool query = h < a->H;
        const ptrdiff_t at = (ptrdiff_t)h * a->HD;
        const float *x = raw ? raw + at : NULL, *w = query ? a->qw : a->kw;
        float *dw = query ? sums : sums + a->HD;
        if (query && a->p) factor_bwd(dx + at, sums + 2 * a->HD, out + at, x, factor, a);
        if (w) norm_bwd(dx + at, dw, x, w, a);
    }
}

void op_query_key_bwd(Backend *be, act_t *dqkv, float *dqw, float *dkw, float *dp, float beta,
    const act_t *qkv, const QueryKeyArgs *a) {
    check(be, a);
    const size_t row = (size_t)a->H * (size_t)a->HD;
    const int rows = (a->N + CPU_NORM_CUTS - 1) / CPU_NORM_CUTS;
    const int cuts = (a->N + rows - 1) / rows, width = 3 * a->HD;
    float *factor = be->channels, *slope = factor + a->HD, *partials = be->norm_partials;
    per_dim_factors(factor, slope, a);
    CPU_PARALLEL_FOR
    for (int cut = 0; cut < cuts; cut++) {
        float *sums = partials + (size_t)cut * (size_t)width;
        const int end = (cut + 1) * rows < a->N ? (cut + 1) * rows : a->N;
        memset(sums, 0, (size_t)width * sizeof *sums);
        for (int n = cut * rows; n < end; n++) {
            const size_t at = (size_t)n * 3 * row;
            const float *raw = a->raw ? a->raw + (size_t)n * 2 * row : NULL;
            token_bwd(dqkv + at, sums, qkv + at, raw, factor, a);
        }
        for (int c = 0; a->p && c < a->HD; c++) sums[2 * a->HD + c] *= slope[c];
    }
    float *const of[3] = {a->qw ? dqw : NULL, a->kw ? dkw : NULL, a->p ? dp : NULL};
    for (int k = 0; k < 3; k++)
        if (of[k]) cpu_column_sums(be, of[k], beta, partials + k * a->HD, cuts, a->HD, width);
}
