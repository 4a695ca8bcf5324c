/* product.cc: a matrix product on the CPU for the emulator's twins of libraries: both operands are
 * packed into panels of floats, and a tile of the output stays in registers. */
#include "dev/emu/product.h"

#include <stdlib.h>
#include <string.h>

/* A tile is MR x NR: as many vectors as the registers hold. */
#if defined(__AVX512F__)
constexpr int MR = 16, NR = 8;
#elif defined(__AVX2__)
constexpr int MR = 8, NR = 8;
#else
constexpr int MR = 8, NR = 4;
#endif
typedef float Column __attribute__((vector_size(MR * sizeof(float))));

uint16_t product_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (x != x) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static float bits_float(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* 10 bits of the mantissa, to nearest, ties away from zero. */
static float tf32_rounded(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (u & 0x7f800000u) == 0x7f800000u ? x : bits_float((u + 0x1000u) & ~0x1fffu);
}

float product_load(const ProductMatrix *x, int64_t i, int64_t j) {
    const int64_t at = i * x->row + j * x->col;
    if (x->bf16) return bits_float((uint32_t)((const uint16_t *)x->p)[at] << 16);
    const float value = ((const float *)x->p)[at];
    return x->tf32 ? tf32_rounded(value) : value;
}

/* Panels of `width` rows: panel[l, r] = x[first + r, l], rows past the last one 0. In C order where
 * the matrix is, so that memory is read along its rows. */
static void pack(float *panel, const ProductMatrix *x, int64_t rows, int64_t depth, int width) {
    for (int64_t first = 0; first < rows; first += width, panel += depth * width) {
        const int64_t count = rows - first < width ? rows - first : width;
        if (x->row == 1) {
            for (int64_t l = 0; l < depth; l++)
                for (int64_t r = 0; r < count; r++)
                    panel[l * width + r] = product_load(x, first + r, l);
        } else {
            for (int64_t r = 0; r < count; r++)
                for (int64_t l = 0; l < depth; l++)
                    panel[l * width + r] = product_load(x, first + r, l);
        }
    }
}

static void multiply_tile(float *tile /* (NR, MR) */, const float *a, const float *b, int64_t k) {
    Column sum[NR] = {};
    for (int64_t l = 0; l < k; l++) {
        Column x;
        memcpy(&x, a + l * MR, sizeof x);
#pragma GCC unroll 8
        for (int j = 0; j < NR; j++) sum[j] += x * b[l * NR + j];
    }
    memcpy(tile, sum, sizeof sum);
}

static void multiply(float *out, const float *a, const float *b, int64_t m, int64_t n, int64_t k) {
    float tile[NR * MR];
    for (int64_t j = 0; j < n; j += NR) {
        const int64_t cols = n - j < NR ? n - j : NR;
        for (int64_t i = 0; i < m; i += MR) {
            const int64_t rows = m - i < MR ? m - i : MR;
            multiply_tile(tile, a + i * k, b + j * k, k);
            for (int64_t c = 0; c < cols; c++)
                memcpy(out + (j + c) * m + i, tile + c * MR, (size_t)rows * sizeof(float));
        }
    }
}

static int64_t round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

bool product(
    float *out, const ProductMatrix *a, const ProductMatrix *b, int64_t m, int64_t n, int64_t k) {
    const ProductMatrix b_rows = {b->p, b->bf16, b->tf32, b->col, b->row};
    float *packed_a = (float *)calloc((size_t)(round_up(m, MR) * k), sizeof(float));
    float *packed_b = (float *)calloc((size_t)(round_up(n, NR) * k), sizeof(float));
    if (packed_a && packed_b) {
        pack(packed_a, a, m, k, MR);
        pack(packed_b, &b_rows, n, k, NR);
        multiply(out, packed_a, packed_b, m, n, k);
    }
    const bool done = packed_a && packed_b;
    free(packed_a);
    free(packed_b);
    return done;
}
