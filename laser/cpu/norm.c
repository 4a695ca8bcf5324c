/* cpu/norm.c: LayerNorm and the residual addition before it. A row stays in the first-level cache
 * while its mean, then its variance, then its output are computed. */
#include "laser/cpu/backend.h"

#include <math.h>

#include "laser/base.h"
#include "laser/cpu/vec.h"

/* Four vectors of partial sums: short sums, small error, and no wait for the addition before. */
static inline float row_sum(const float *x, int C) {
    vf s[4] = {{0}, {0}, {0}, {0}};
    int c = 0;
    for (; c + 4 * VL <= C; c += 4 * VL)
        for (int k = 0; k < 4; k++) s[k] += vf_load(x + c + k * VL);
    for (; c < C; c += VL) s[0] += vf_load_n(x + c, C - c < VL ? C - c : VL);
    return vf_sum((s[0] + s[1]) + (s[2] + s[3]));
}

static inline float row_variance_sum(const float *x, float mean, int C) {
    vf s[4] = {{0}, {0}, {0}, {0}};
    int c = 0;
    for (; c + 4 * VL <= C; c += 4 * VL)
        for (int k = 0; k < 4; k++) {
            vf d = vf_load(x + c + k * VL) - mean;
            s[k] += d * d;
        }
    float rest = 0;
    for (; c < C; c++) rest += (x[c] - mean) * (x[c] - mean);
    return vf_sum((s[0] + s[1]) + (s[2] + s[3])) + rest;
}

static inline void add_row(float *x, const float *x_in, const float *restrict delta, int C) {
    for (int c = 0; c < C; c++) x[c] = x_in[c] + delta[c];
}

void op_residual_norm_fwd(
    Backend *be, act_t *x, act_t *out, const act_t *x_in, const act_t *delta, const NormArgs *a) {
    const int C = a->C;
    const float *w = a->w, *b = a->b;
    CPU_PARALLEL_FOR
    for (int n = 0; n < a->N; n++) {
        const size_t row = (size_t)n * (size_t)C;
        const float *in = x_in + row, *xr = delta ? x + row : in;
        float *o = out + row;
        if (delta) add_row(x + row, in, delta + row, C);
        float mean = row_sum(xr, C) / (float)C;
        float rstd = 1.0f / sqrtf(row_variance_sum(xr, mean, C) / (float)C + a->eps);
        for (int c = 0; c < C; c++) o[c] = (xr[c] - mean) * rstd * w[c] + b[c];
        a->mean[n] = mean;
        a->rstd[n] = rstd;
    }
}

typedef struct NormSums {
    float g, gx;
} NormSums;

/* Of g = dout * w over a row: the sum, and the sum against the normalised x. */
static inline NormSums norm_sums(
    const float *dout, const float *w, const float *x, float mean, float rstd, int C) {
    vf s0 = {0}, s1 = {0};
    int c = 0;
    for (; c + VL <= C; c += VL) {
        vf g = vf_load(dout + c) * vf_load(w + c);
        s0 += g;
        s1 += g * (vf_load(x + c) - mean);
    }
    NormSums r = {0, 0};
    for (; c < C; c++) {
        float g = dout[c] * w[c];
        r.g += g;
        r.gx += g * (x[c] - mean);
    }
    r.g += vf_sum(s0);
    r.gx = (r.gx + vf_sum(s1)) * rstd;
    return r;
}

static void norm_bwd_row(float *restrict dx, float *restrict dw, float *restrict db,
    const float *restrict dout, const float *restrict x, const NormArgs *a, int n) {
    const int C = a->C;
    const float *restrict w = a->w;
    const float mean = a->mean[n], rstd = a->rstd[n];
    NormSums s = norm_sums(dout, w, x, mean, rstd, C);
    const float g_mean = s.g / (float)C, gx_mean = s.gx / (float)C;
    for (int c = 0; c < C; c++) {
        float xhat = (x[c] - mean) * rstd;
        dx[c] += (dout[c] * w[c] - g_mean - xhat * gx_mean) * rstd;
        dw[c] += dout[c] * xhat;
        db[c] += dout[c];
    }
}

void op_norm_bwd(Backend *be, act_t *dx, float *dw, float *db, float beta, const act_t *dout,
    const act_t *x, const NormArgs *a) {
    const int C = a->C, N = a->N;
    REQUIRE(be->scratch && C <= be->limits.C, "C=%d, reserved %d", C, be->limits.C);
    int rows = (N + CPU_NORM_CUTS - 1) / CPU_NORM_CUTS;
    if (rows < 16) rows = 16;
    const int cuts = (N + rows - 1) / rows;
    float *partials = be->norm_partials;
    CPU_PARALLEL_FOR
    for (int cut = 0; cut < cuts; cut++) {
        float *pw = partials + (size_t)cut * 2 * (size_t)C, *pb = pw + C;
        int end = (cut + 1) * rows < N ? (cut + 1) * rows : N;
        for (int c = 0; c < 2 * C; c++) pw[c] = 0;
        for (int n = cut * rows; n < end; n++) {
            const size_t row = (size_t)n * (size_t)C;
            norm_bwd_row(dx + row, pw, pb, dout + row, x + row, a, n);
        }
    }
    for (int k = 0; k < 2; k++)
        cpu_column_sums(be, k ? db : dw, beta, partials + k * C, cuts, C, 2 * (long)C);
}
