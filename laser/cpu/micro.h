/* micro.h: the inner kernel of every matrix product, and the packing that feeds it. A tile of C (MR
 * rows, NR columns) lives in registers while the kernel runs down K. Knows nothing of blocking,
 * threads or what the matrices mean.
 *
 * Packed A: panels of MR rows, panel p at a + p*MR*K, element (row i, depth k) of it at [k*MR + i].
 * Packed B: panels of NR columns, panel p at b + p*NR*K, element (depth k, column j) at
 * [k*NR + j]. What a panel has beyond the last row or column is zero. Each element of C is summed
 * in the order of k, by itself: its bits depend on its row of A and its column of B only, not on
 * where in a tile it lies. */
#ifndef LASER_CPU_MICRO_H
#define LASER_CPU_MICRO_H

#include <stdbool.h>
#include <stddef.h>

#include "laser/cpu/vec.h"

#if defined(__AVX512F__)
enum { MR = 8, NV = 3 }; /* rows and vectors: 24 accumulators of 32 registers */
#elif defined(__AVX2__)
enum { MR = 6, NV = 2 }; /* 12 of 16 */
#else
enum { MR = 4, NV = 2 }; /* 8 of 16; without fused multiply-add a product takes one more */
#endif
enum { NR = NV * VL };

/* Loops over registers must vanish. clang takes a count as a wish to unroll even before R and N are
 * known. */
#if defined(__clang__)
#define MICRO_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MICRO_UNROLL _Pragma("GCC unroll 16")
#endif
#define MICRO_BODY static inline __attribute__((always_inline)) void
#define MICRO_FN static __attribute__((noinline, unused)) void

typedef struct Tile {
    float *c;
    ptrdiff_t ldc; /* floats from row to row */
    int m, n;      /* valid rows 1..MR and columns 1..NR; nothing else of C is touched */
    bool add;      /* C += A B; else C = A B, and C is not read */
} Tile;

/* Separate, so that the registers above need no addresses. */
MICRO_FN micro_store_edge(const float *edge /* (., NR) */, const Tile *t) {
    for (int i = 0; i < t->m; i++, edge += NR) {
        float *c = t->c + i * t->ldc;
        for (int j = 0; j < t->n; j += VL) {
            int lanes = t->n - j < VL ? t->n - j : VL;
            vf v = vf_load(edge + j);
            vf_store_n(c + j, t->add ? vf_load_n(c + j, lanes) + v : v, lanes);
        }
    }
}

/* R, N: rows and vectors computed, constants after inlining, so that acc is registers. */
MICRO_BODY micro_body(
    const int R, const int N, int K, const float *a, const float *b, const Tile *t) {
    vf acc[MR][NV];
    MICRO_UNROLL for (int i = 0; i < R; i++) {
        MICRO_UNROLL for (int j = 0; j < N; j++) acc[i][j] = (vf){0};
    }
    for (int k = 0; k < K; k++, a += MR, b += NR) {
        vf v[NV];
        MICRO_UNROLL for (int j = 0; j < N; j++) v[j] = vf_load(b + j * VL);
        MICRO_UNROLL for (int i = 0; i < R; i++) {
            vf x = vf_set1(a[i]);
            MICRO_UNROLL for (int j = 0; j < N; j++) acc[i][j] = vf_fma(x, v[j], acc[i][j]);
        }
    }
    const Tile to = *t; /* a copy: stores to C could change *t, for all the compiler knows */
    if (to.m == R && to.n == N * VL) {
        MICRO_UNROLL for (int i = 0; i < R; i++) {
            float *c = to.c + i * to.ldc;
            if (to.add) MICRO_UNROLL for (int j = 0; j < N; j++) acc[i][j] += vf_load(c + j * VL);
            MICRO_UNROLL for (int j = 0; j < N; j++) vf_store(c + j * VL, acc[i][j]);
        }
        return;
    }
    float edge[MR * NR];
    MICRO_UNROLL for (int i = 0; i < R; i++) {
        MICRO_UNROLL for (int j = 0; j < N; j++) vf_store(edge + i * NR + j * VL, acc[i][j]);
    }
    micro_store_edge(edge, t);
}

#define MICRO_VECTORS(R)                                                                           \
    MICRO_FN micro_rows_##R(int K, const float *a, const float *b, const Tile *t) {                \
        switch ((t->n + VL - 1) / VL) {                                                            \
        case 1:                                                                                    \
            micro_body(R, 1, K, a, b, t);                                                          \
            break;                                                                                 \
        case 2:                                                                                    \
            micro_body(R, 2, K, a, b, t);                                                          \
            break;                                                                                 \
        default:                                                                                   \
            micro_body(R, NV, K, a, b, t);                                                         \
            break;                                                                                 \
        }                                                                                          \
    }
MICRO_VECTORS(1)
MICRO_VECTORS(2)
MICRO_VECTORS(4)
#if defined(__AVX2__)
MICRO_VECTORS(6)
#endif
#if defined(__AVX512F__)
MICRO_VECTORS(8)
#define MICRO_ROWS_FULL micro_rows_8
#elif defined(__AVX2__)
#define MICRO_ROWS_FULL micro_rows_6
#else
#define MICRO_ROWS_FULL micro_rows_4
#endif

/* C (m, n) = or += A B from one packed panel of each, over K. b may also point at a later lane of a
 * panel (n then ends with the panel), to leave out its first columns. Few rows cost little more
 * than their share. */
static inline void micro_kernel(int K, const float *a, const float *b, const Tile *t) {
    if (t->m > 4)
        MICRO_ROWS_FULL(K, a, b, t);
    else if (t->m > 2)
        micro_rows_4(K, a, b, t);
    else if (t->m == 2)
        micro_rows_2(K, a, b, t);
    else
        micro_rows_1(K, a, b, t);
}

/* ---- packing: W is MR or NR; W * K * ceil(n / W) floats are written, zero beyond n ---- */

/* Source with the panel's dimension contiguous: element (j, depth k) at src[k * ld + j], j < n. */
static inline void pack_copy(
    const int W, float *dst, const float *src, ptrdiff_t ld, int n, int K) {
    enum { CHUNK_ROWS = 16 }; /* source rows at a time, so that their lines are fetched once */
    for (int k0 = 0; k0 < K; k0 += CHUNK_ROWS) {
        int k1 = K - k0 < CHUNK_ROWS ? K : k0 + CHUNK_ROWS;
        for (int p = 0; p < n; p += W)
            for (int k = k0; k < k1; k++) {
                float *d = dst + (ptrdiff_t)p * K + (ptrdiff_t)k * W;
                const float *s = src + k * ld + p;
                if (n - p >= W) {
                    memcpy(d, s, (size_t)W * sizeof *d);
                    continue;
                }
                for (int j = 0; j < W; j++) d[j] = j < n - p ? s[j] : 0.0f;
            }
    }
}

/* d[k * W + j] = s[j * ld + k] for j < w, k < K */
static inline void pack_slow(const int W, float *d, const float *s, ptrdiff_t ld, int w, int K) {
    for (int k = 0; k < K; k++)
        for (int j = 0; j < w; j++) d[(ptrdiff_t)k * W + j] = s[j * ld + k];
}

#if defined(__SSE2__)
#include <emmintrin.h>
/* The same for w == 4, or 2 with half, and K a multiple of 4, as 4 x 4 transposes. */
static inline void pack_quads(
    const int W, float *d, const float *s, ptrdiff_t ld, bool half, int K) {
    for (int k = 0; k < K; k += 4, s += 4, d += 4 * W) {
        __m128 r0 = _mm_loadu_ps(s), r1 = _mm_loadu_ps(s + ld);
        __m128 r2 = half ? r0 : _mm_loadu_ps(s + 2 * ld), r3 = half ? r1 : _mm_loadu_ps(s + 3 * ld);
        _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
        if (half) {
            _mm_storel_pi((__m64 *)d, r0), _mm_storel_pi((__m64 *)(d + W), r1);
            _mm_storel_pi((__m64 *)(d + 2 * W), r2), _mm_storel_pi((__m64 *)(d + 3 * W), r3);
        } else {
            _mm_storeu_ps(d, r0), _mm_storeu_ps(d + W, r1);
            _mm_storeu_ps(d + 2 * W, r2), _mm_storeu_ps(d + 3 * W, r3);
        }
    }
}
#else
static inline void pack_quads(
    const int W, float *d, const float *s, ptrdiff_t ld, bool half, int K) {
    pack_slow(W, d, s, ld, half ? 2 : 4, K);
}
#endif

/* One panel of w <= W columns: groups of four (of two, where W is 6) by transposes, the rest one by
 * one. */
static inline void pack_panel(
    const int W, float *dst, const float *src, ptrdiff_t ld, int w, int K) {
    if (w < W) memset(dst, 0, (size_t)W * (size_t)K * sizeof *dst);
    for (int j = 0; j < w; j += 4) {
        const float *s = src + j * ld;
        int width = W - j < 4 ? W - j : 4, have = w - j < width ? w - j : width;
        int bulk = have == width ? K / 4 * 4 : 0;
        pack_quads(W, dst + j, s, ld, width == 2, bulk);
        pack_slow(W, dst + j + (ptrdiff_t)bulk * W, s + bulk, ld, have, K - bulk);
    }
}

/* Source with the depth contiguous: element (j, depth k) at src[j * ld + k], j < n. */
static inline void pack_transpose(
    const int W, float *dst, const float *src, ptrdiff_t ld, int n, int K) {
    enum { CHUNK = 64 }; /* depths at a time, so that the written part stays in L1 */
    for (int p = 0; p < n; p += W, src += W * ld)
        for (int k = 0; k < K; k += CHUNK) {
            int depth = K - k < CHUNK ? K - k : CHUNK;
            pack_panel(W, dst, src + k, ld, n - p < W ? n - p : W, depth);
            dst += (ptrdiff_t)depth * W;
        }
}

/* A from (rows, K) row-major, from its transpose (K, rows); B from (K, columns), from (columns, K).
 */
MICRO_FN pack_a(float *dst, const float *src, ptrdiff_t ld, int rows, int K) {
    pack_transpose(MR, dst, src, ld, rows, K);
}
MICRO_FN pack_a_t(float *dst, const float *src, ptrdiff_t ld, int rows, int K) {
    pack_copy(MR, dst, src, ld, rows, K);
}
MICRO_FN pack_b(float *dst, const float *src, ptrdiff_t ld, int columns, int K) {
    pack_copy(NR, dst, src, ld, columns, K);
}
MICRO_FN pack_b_t(float *dst, const float *src, ptrdiff_t ld, int columns, int K) {
    pack_transpose(NR, dst, src, ld, columns, K);
}
/* Floats that a packed matrix of n rows or columns takes. */
static inline size_t packed_floats(int W, int n, int K) {
    return (size_t)((n + W - 1) / W) * (size_t)W * (size_t)K;
}

#endif
