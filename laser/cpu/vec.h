/* vec.h: one SIMD vector of floats, as wide as the target has them, by the compilers' vector
 * extensions (intrinsics only where gcc makes poor code of those), and exp, log and tanh on it.
 * Knows nothing of what is computed with it. No function touches memory outside the lanes it names;
 * NaN in, NaN out; right with or without fused multiply-add. */
#ifndef LASER_CPU_VEC_H
#define LASER_CPU_VEC_H

#include <float.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { VL = 16 }; /* lanes of a vector */
#elif defined(__AVX2__)
enum { VL = 8 };
#else
enum { VL = 4 };
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
/* the same in memory: any alignment */
typedef float vf_mem __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef float vf_quad __attribute__((vector_size(16)));

static inline vf vf_load(const float *p) {
    return *(const vf_mem *)p;
}
static inline void vf_store(float *p, vf v) {
    *(vf_mem *)p = v;
}
/* x - 0 and not x + 0: the latter turns -0 into 0, and costs an addition */
static inline vf vf_set1(float x) {
    return x - (vf){0};
}
static inline vi vi_set1(int32_t x) {
    return x - (vi){0};
}

static inline vf vf_fma(vf a, vf b, vf c) {
    return a * b + c;
}
/* mask: all bits of a lane set or clear, as comparisons give them. What is not selected may be
 * anything. */
static inline vf vf_select(vi mask, vf yes, vf no) {
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}
static inline vf vf_abs(vf a) {
    return (vf)((vi)a & 0x7fffffff);
}

/* vf_max: a where a > b, else b (so NaN in b stays).
 * vf_load_n, vf_store_n: the first n lanes (0 <= n <= VL); the others are 0, or untouched in
 * memory. */
#if defined(__AVX512F__)
static inline vf vf_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
static inline vf vf_load_n(const float *p, int n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void vf_store_n(float *p, vf v, int n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
}
#elif defined(__AVX2__)
static inline vf vf_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
static inline vi vi_first(int n) {
    return (vi){0, 1, 2, 3, 4, 5, 6, 7} < n;
}
static inline vf vf_load_n(const float *p, int n) {
    return _mm256_maskload_ps(p, (__m256i)vi_first(n));
}
static inline void vf_store_n(float *p, vf v, int n) {
    _mm256_maskstore_ps(p, (__m256i)vi_first(n), v);
}
#else
static inline vf vf_max(vf a, vf b) {
    return vf_select(a > b, a, b);
}
static inline vf vf_load_n(const float *p, int n) {
    vf v = {0};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
}
static inline void vf_store_n(float *p, vf v, int n) {
    for (int i = 0; i < n; i++) p[i] = v[i];
}
#endif

/* Over all lanes, in a fixed order. */
static inline float vf_sum(vf v) {
    vf_quad q[VL / 4];
    memcpy(q, &v, sizeof q);
    for (int i = 1; i < VL / 4; i++) q[0] += q[i];
    return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
}
static inline float vf_hmax(vf v) {
    float a[VL];
    memcpy(a, &v, sizeof a);
    for (int i = 0; i < 4; i++)
        for (int j = i + 4; j < VL; j += 4) a[i] = a[i] > a[j] ? a[i] : a[j];
    a[0] = a[0] > a[2] ? a[0] : a[2];
    a[1] = a[1] > a[3] ? a[1] : a[3];
    return a[0] > a[1] ? a[0] : a[1];
}

/* e^x, error below 1.1 ulp; 0 below -87.33 (the result would be subnormal), +inf above 88.72. */
static inline vf vf_exp(vf x) {
    const vf magic = vf_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to integer */
    vf t = x * 1.44269504f + magic, n = t - magic;
    /* ln 2 in two parts, the first with so few bits that n times it is exact without fma */
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = vf_set1(1.39337539e-3f);
    p = p * r + 8.36324917e-3f;
    p = p * r + 4.16664640e-2f;
    p = p * r + 1.66665766e-1f;
    p = p * r + 5.00000001e-1f;
    p = (p * r) * r + r + 1.0f;
    vf y = (vf)((vu)p + (((vu)t - (vu)magic) << 23));
    y = vf_select(x <= 88.7228394f, y, x + __builtin_inff());
    return (vf)((vi)y & ~(x < -87.3365479f));
}

/* ln x for x >= 0, error below 1 ulp; subnormals count as 0 and give -inf. */
static inline vf vf_log(vf x) {
    const vi half = vi_set1(0x3f3504f3); /* sqrt(1/2): mantissas from [sqrt(1/2), sqrt(2)) */
    vi d = (vi)((vu)x - (vu)half);
    vf e = __builtin_convertvector(d >> 23, vf);
    vf f = (vf)((d & 0x007fffff) + half) - 1.0f, q = f * f;
    vf p = vf_set1(-8.10316817e-2f);
    p = p * f + 1.27140185e-1f;
    p = p * f - 1.29724353e-1f;
    p = p * f + 1.42019910e-1f;
    p = p * f - 1.66422186e-1f;
    p = p * f + 2.00014735e-1f;
    p = p * f - 2.50002971e-1f;
    p = p * f + 3.33333286e-1f;
    vf y = (f * q) * p + e * -2.12194440e-4f;
    y = (y - 0.5f * q) + f + e * 0.693359375f;
    y = vf_select(x < FLT_MIN, vf_set1(-__builtin_inff()), y);
    return vf_select(x <= FLT_MAX, y, x);
}

/* tanh x, error below 2 ulp, near 0 too. */
static inline vf vf_tanh(vf x) {
    vf a = vf_abs(x), z = x * x;
    vf p = vf_set1(2.27270491e-3f);
    p = p * z - 8.32640232e-3f;
    p = p * z + 2.17636337e-2f;
    p = p * z - 5.39586242e-2f;
    p = p * z + 1.33333010e-1f;
    p = p * z - 3.33333332e-1f;
    vf small = (z * x) * p + x;
    vf large = 1.0f - 2.0f / (vf_exp(a + a) + 1.0f);
    large = (vf)((vi)large | ((vi)x & INT32_MIN));
    return vf_select(a < 0.625f, small, large);
}

#endif
