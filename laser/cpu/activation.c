/* cpu/activation.c: ReLU and GELU, forward and backward, alone and as what follows a matrix
 * product. */
#include "laser/cpu/gemm.h"

#include "laser/base.h"
#include "laser/cpu/vec.h"

/* GELU in its tanh form, 0.5 x (1 + tanh u), is x * sigmoid(2u): the same function without the
 * cancellation of 1 + tanh u at negative x. u = sqrt(2/pi) (x + 0.044715 x^3). */
#define GELU_A 1.5957691216057308f  /* 2 sqrt(2/pi) */
#define GELU_B 0.07135481282822772f /* 0.044715 * 2 sqrt(2/pi) */

static inline vf gelu(vf x) {
    vf two_u = x * (x * x * GELU_B + GELU_A);
    return x / (1.0f + vf_exp(-two_u));
}

static inline vf gelu_slope(vf x) {
    /* beyond 15 the slope is 0 or 1 to the last bit; x * x must not overflow */
    x = vf_max(vf_set1(-15.0f), x);
    x = vf_select(x > 15.0f, vf_set1(15.0f), x);
    vf xx = x * x;
    vf s = 1.0f / (1.0f + vf_exp(-x * (xx * GELU_B + GELU_A)));
    return s + x * s * (1.0f - s) * (xx * (3.0f * GELU_B) + GELU_A);
}

static inline vf act_value(Act act, vf x) {
    if (act == ACT_GELU) return gelu(x);
    /* NaN stays: it must reach the loss, where the step is given up */
    if (act == ACT_RELU) return vf_select(x < 0.0f, (vf){0}, x);
    return x;
}

static inline vf act_gradient(Act act, vf g, vf x) {
    if (act == ACT_GELU) return g * gelu_slope(x);
    if (act == ACT_RELU) return vf_select(x > 0.0f, g, (vf){0});
    return g;
}

/* One row of C, n columns. Constant act and presence of pointers after inlining: no branch in the
 * loop. */
static inline void act_row(float *c, const float *bias, float *pre, Act act, int n) {
    int j = 0;
    for (; j + VL <= n; j += VL) {
        vf x = vf_load(c + j);
        if (bias) x += vf_load(bias + j);
        if (pre) vf_store(pre + j, x);
        vf_store(c + j, act_value(act, x));
    }
    if (j == n) return;
    vf x = vf_load_n(c + j, n - j);
    if (bias) x += vf_load_n(bias + j, n - j);
    if (pre) vf_store_n(pre + j, x, n - j);
    vf_store_n(c + j, act_value(act, x), n - j);
}

static inline void act_bwd_row(float *c, const float *pre, Act act, int n) {
    int j = 0;
    for (; j + VL <= n; j += VL)
        vf_store(c + j, act_gradient(act, vf_load(c + j), vf_load(pre + j)));
    if (j < n)
        vf_store_n(
            c + j, act_gradient(act, vf_load_n(c + j, n - j), vf_load_n(pre + j, n - j)), n - j);
}

static void act_rows(const GemmArgs *a, Act act, int i, int j, int m, int n) {
    for (int k = i; k < i + m; k++) {
        const size_t at = (size_t)k * (size_t)a->ldc + (size_t)j;
        if (a->fusion == GEMM_ACT_BWD)
            act_bwd_row(a->C + at, a->slope_at + at, act, n);
        else
            act_row(a->C + at, a->bias ? a->bias + j : NULL, a->pre ? a->pre + at : NULL, act, n);
    }
}

void gemm_fuse(const GemmArgs *a, int i, int j, int m, int n) {
    if (a->fusion == GEMM_PLAIN) return;
    switch (a->act) {
    case ACT_NONE:
        act_rows(a, ACT_NONE, i, j, m, n);
        break;
    case ACT_RELU:
        act_rows(a, ACT_RELU, i, j, m, n);
        break;
    case ACT_GELU:
        act_rows(a, ACT_GELU, i, j, m, n);
        break;
    }
}

void op_act_fwd(Backend *be, act_t *h, const act_t *pre, Act act, size_t n) {
    const size_t piece = 16384;
    CPU_PARALLEL_FOR
    for (size_t at = 0; at < n; at += piece) {
        const size_t end = n - at < piece ? n : at + piece;
        for (size_t i = at; i < end; i += VL) {
            const int lanes = end - i < VL ? (int)(end - i) : VL;
            if (lanes == VL)
                vf_store(h + i, act_value(act, vf_load(pre + i)));
            else
                vf_store_n(h + i, act_value(act, vf_load_n(pre + i, lanes)), lanes);
        }
    }
}
