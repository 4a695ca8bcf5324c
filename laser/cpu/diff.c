/* cpu/diff.c: differential attention's two maps into one: their difference, and the norm of each
 * head of it. */
#include "laser/cpu/backend.h"

#include <math.h>

#include "laser/base.h"
#include "laser/cpu/vec.h"

typedef struct Lambda {
    double e1, e2; /* exp of the two dot products */
    float value;
} Lambda;

static double dot(const float *x, const float *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

static Lambda lambda_of(const DiffArgs *a) {
    const int half = a->HD / 2;
    Lambda l = {exp(dot(a->lq1, a->lk1, half)), exp(dot(a->lq2, a->lk2, half)), 0};
    l.value = (float)(l.e1 - l.e2 + (double)a->lambda_init);
    return l;
}

static void check(const Backend *be, const DiffArgs *a) {
    REQUIRE(
        a->N > 0 && a->H > 0 && a->HD > 0 && a->HD % 2 == 0, "N=%d H=%d HD=%d", a->N, a->H, a->HD);
    REQUIRE(be->scratch && a->HD <= be->limits.HD, "HD=%d, reserved %d", a->HD, be->limits.HD);
}

static inline int lanes_left(int HD, int c) {
    return HD - c < VL ? HD - c : VL;
}

/* 1 / sqrt(mean(y^2) + eps) of y = o1 - lambda o2 */
static float head_rrms(const float *o1, const float *o2, float lambda, const DiffArgs *a) {
    vf squares = {0};
    for (int c = 0; c < a->HD; c += VL) {
        const int n = lanes_left(a->HD, c);
        const vf y = vf_load_n(o1 + c, n) - lambda * vf_load_n(o2 + c, n);
        squares += y * y;
    }
    return 1.0f / sqrtf(vf_sum(squares) / (float)a->HD + a->eps);
}

void op_diff_fwd(Backend *be, act_t *out, const act_t *o1, const act_t *o2, const DiffArgs *a) {
    check(be, a);
    const float lambda = lambda_of(a).value, keep = 1.0f - a->lambda_init;
    CPU_PARALLEL_FOR
    for (int i = 0; i < a->N * a->H; i++) {
        const size_t at = (size_t)i * (size_t)a->HD;
        const float *x = o1 + at, *z = o2 + at;
        const float s = a->w ? keep * head_rrms(x, z, lambda, a) : 1.0f;
        for (int c = 0; c < a->HD; c++) {
            const float y = x[c] - lambda * z[c];
            out[at + (size_t)c] = a->w ? y * s * a->w[c] : y;
        }
    }
}

/* One head of one token. dw +=; returns the sum of dy o2. do1 may be dout: an element is read
 * before it is written. */
static float head_bwd(float *do1, float *do2, float *dw, const float *dout, const float *o1,
    const float *o2, float lambda, const DiffArgs *a) {
    const float keep = 1.0f - a->lambda_init, s = a->w ? head_rrms(o1, o2, lambda, a) : 1.0f;
    vf sum = {0}, against = {0};
    for (int c = 0; a->w && c < a->HD; c += VL) {
        const int n = lanes_left(a->HD, c);
        const vf hat = (vf_load_n(o1 + c, n) - lambda * vf_load_n(o2 + c, n)) * s;
        const vf g = vf_load_n(dout + c, n) * keep;
        vf_store_n(dw + c, vf_load_n(dw + c, n) + g * hat, n);
        sum += g * vf_load_n(a->w + c, n) * hat;
    }
    const float mean = vf_sum(sum) / (float)a->HD;
    for (int c = 0; c < a->HD; c += VL) {
        const int n = lanes_left(a->HD, c);
        const vf z = vf_load_n(o2 + c, n), hat = (vf_load_n(o1 + c, n) - lambda * z) * s;
        vf dy = vf_load_n(dout + c, n);
        if (a->w) dy = s * (dy * keep * vf_load_n(a->w + c, n) - hat * mean);
        against += dy * z;
        vf_store_n(do1 + c, dy, n);
        vf_store_n(do2 + c, dy * -lambda, n);
    }
    return vf_sum(against);
}

/* g = beta g + x y */
static void product_out(float *g, float beta, double x, const float *y, int n) {
    for (int i = 0; i < n; i++) {
        const double kept = beta == 0.0f ? 0.0 : (double)beta * (double)g[i];
        g[i] = (float)(kept + x * (double)y[i]);
    }
}

void op_diff_bwd(Backend *be, act_t *do1, act_t *do2, const DiffGrads *g, const act_t *dout,
    const act_t *o1, const act_t *o2, const DiffArgs *a) {
    check(be, a);
    const Lambda lambda = lambda_of(a);
    const int N = a->N * a->H, HD = a->HD, half = HD / 2;
    const int rows = (N + CPU_NORM_CUTS - 1) / CPU_NORM_CUTS, cuts = (N + rows - 1) / rows;
    CPU_PARALLEL_FOR
    for (int cut = 0; cut < cuts; cut++) {
        float *dw = be->norm_partials + (size_t)cut * (size_t)HD;
        const int end = (cut + 1) * rows < N ? (cut + 1) * rows : N;
        double against = 0;
        memset(dw, 0, (size_t)HD * sizeof *dw);
        for (int i = cut * rows; i < end; i++) {
            const size_t at = (size_t)i * (size_t)HD;
            against += (double)head_bwd(
                do1 + at, do2 + at, dw, dout + at, o1 + at, o2 + at, lambda.value, a);
        }
        be->sum_partials[cut] = against;
    }
    double dlambda = 0;
    for (int cut = 0; cut < cuts; cut++) dlambda -= be->sum_partials[cut];
    product_out(g->lq1, g->beta, dlambda * lambda.e1, a->lk1, half);
    product_out(g->lk1, g->beta, dlambda * lambda.e1, a->lq1, half);
    product_out(g->lq2, g->beta, -dlambda * lambda.e2, a->lk2, half);
    product_out(g->lk2, g->beta, -dlambda * lambda.e2, a->lq2, half);
    if (a->w) cpu_column_sums(be, g->w, g->beta, be->norm_partials, cuts, HD, HD);
}
