/* product.h: a matrix product on the CPU for the emulator's twins of libraries. Plain memory in and
 * out; knows no library and no device. */
#ifndef DEV_EMU_PRODUCT_H
#define DEV_EMU_PRODUCT_H

#include <stddef.h>
#include <stdint.h>

/* Element (i, j) lies at i * row + j * col. */
typedef struct ProductMatrix {
    const void *p; /* float, or bfloat16 */
    bool bf16;
    bool tf32; /* floats lose the bits that TF32 has not */
    int64_t row, col;
} ProductMatrix;

/* out[j * m + i] = sum over l of a[i, l] * b[l, j], in fp32 and in the order of l. False: out of
 * memory. */
bool product(float *out /* (n, m) */, const ProductMatrix *a /* (m, k) */,
    const ProductMatrix *b /* (k, n) */, int64_t m, int64_t n, int64_t k);

float product_load(const ProductMatrix *x, int64_t i, int64_t j);
uint16_t product_bf16(float x); /* to nearest, ties to even; NaN stays */

#endif
