/* product_kit.h: matrices in device memory and products of them, with a reference in double, for
 * tests of laser/cuda/gemm.cuh. What a product reads is known as the device holds it. */
#ifndef DEV_TEST_PRODUCT_KIT_H
#define DEV_TEST_PRODUCT_KIT_H

#include "laser/cuda/gemm.cuh"

extern "C" {
#include "dev/test/test.h"
}

typedef struct Shape {
    const char *label;
    int M, N, K;
    bool transA, transB, c_float;
    float alpha, beta;
    bool bias, relu;
    int batch;
    int pad;   /* elements behind each row */
    int shift; /* elements by which all pointers are off 256 bytes */
} Shape;

typedef struct Matrix {
    int rows, cols, batch;
    int64_t ld, stride;
    size_t n;      /* elements, padding included */
    bool floats;   /* else act_t */
    char *block;   /* device memory */
    void *p;       /* in it: the first element */
    float *before; /* (n) as the device holds it */
} Matrix;

/* rows x cols, s->pad columns more between them, s->batch of them, s->shift elements off; values in
 * [-1, 1) that seed decides. */
Matrix matrix_make(Backend *be, uint32_t seed, int rows, int cols, const Shape *s, bool floats);
float *matrix_read(Backend *be, const Matrix *m); /* (n), malloced */
void matrix_free(Backend *be, Matrix *m);
/* Columns of an act_t matrix from `first` on, as matrices `stride` columns apart; not to be
 * freed. */
Matrix matrix_columns(const Matrix *m, int first, int stride);

typedef struct Product {
    const Shape *s;
    Gemm g;
    Matrix A, B, C, bias;
} Product;

Product product_make(Backend *be, const Shape *s);
void product_describe(Product *p); /* p->g from what else p holds */
void product_free(Backend *be, Product *p);

/* Elements of C that are not the sums of K products within rounding; got is laid out like C. */
int product_misses(const Product *p, const float *got, int K);
/* Elements between the rows of C that do not hold what they held. */
int product_padding_changed(const Product *p, const float *got);

#endif
