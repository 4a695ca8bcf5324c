/* product_kit.cc: matrices in device memory and products of them, with a reference in double. */
#include "dev/test/product_kit.h"

#include <math.h>
#include <stdlib.h>

static float value_of(uint32_t seed, size_t i) {
    uint32_t x = seed * 0x9e3779b9u + (uint32_t)i * 0x85ebca6bu;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    return (float)(x >> 8) * 0x1p-23f - 1.0f;
}

float *matrix_read(Backend *be, const Matrix *m) {
    float *x = (float *)xcalloc(m->n, sizeof *x);
    if (m->floats)
        backend_download(be, x, m->p, m->n * sizeof *x);
    else
        backend_download_act(be, x, (const act_t *)m->p, m->n);
    return x;
}

Matrix matrix_make(Backend *be, uint32_t seed, int rows, int cols, const Shape *s, bool floats) {
    Matrix m = {};
    m.rows = rows, m.cols = cols, m.batch = s->batch, m.floats = floats;
    m.ld = cols + s->pad;
    m.stride = rows * m.ld;
    m.n = (size_t)(m.stride * s->batch);
    const size_t size = floats ? sizeof(float) : sizeof(act_t);
    m.block = (char *)backend_alloc(be, (m.n + (size_t)s->shift) * size);
    m.p = m.block + (size_t)s->shift * size;
    float *x = (float *)xcalloc(m.n, sizeof *x);
    for (size_t i = 0; i < m.n; i++) x[i] = value_of(seed, i);
    if (floats)
        backend_upload(be, m.p, x, m.n * sizeof *x);
    else
        backend_upload_act(be, (act_t *)m.p, x, m.n);
    free(x);
    m.before = matrix_read(be, &m);
    return m;
}

void matrix_free(Backend *be, Matrix *m) {
    backend_free(be, m->block);
    free(m->before);
}

Matrix matrix_columns(const Matrix *m, int first, int stride) {
    Matrix view = *m;
    view.p = (act_t *)m->p + first;
    view.before = m->before + first;
    view.stride = stride;
    return view;
}

void product_describe(Product *p) {
    const Shape *s = p->s;
    p->g.M = s->M, p->g.N = s->N, p->g.K = s->K;
    p->g.A = (const act_t *)p->A.p, p->g.B = (const act_t *)p->B.p, p->g.C = p->C.p;
    p->g.lda = p->A.ld, p->g.ldb = p->B.ld, p->g.ldc = p->C.ld;
    p->g.transA = s->transA, p->g.transB = s->transB, p->g.c_float = s->c_float;
    p->g.alpha = s->alpha, p->g.beta = s->beta;
    p->g.bias = s->bias ? (const act_t *)p->bias.p : NULL;
    p->g.relu = s->relu;
    p->g.batch = s->batch;
    p->g.strideA = p->A.stride, p->g.strideB = p->B.stride, p->g.strideC = p->C.stride;
}

Product product_make(Backend *be, const Shape *s) {
    Product p = {};
    const Shape row = {"", 1, s->N, 1, false, false, false, 1, 0, false, false, 1, 0, s->shift};
    p.s = s;
    p.A = matrix_make(be, 1, s->transA ? s->K : s->M, s->transA ? s->M : s->K, s, false);
    p.B = matrix_make(be, 2, s->transB ? s->N : s->K, s->transB ? s->K : s->N, s, false);
    p.C = matrix_make(be, 3, s->M, s->N, s, s->c_float);
    p.bias = matrix_make(be, 4, 1, s->N, &row, false);
    product_describe(&p);
    return p;
}

void product_free(Backend *be, Product *p) {
    matrix_free(be, &p->A);
    matrix_free(be, &p->B);
    matrix_free(be, &p->C);
    matrix_free(be, &p->bias);
}

/* ---- what C should hold ---------------------------------------------------------------------- */

static const double UNIT = BF16 ? 0x1p-8 : 0x1p-23; /* of act_t */

/* K: how many terms of the sum count. tol: K + 3 operations in fp32, each off by at most 2^-23 (a
 * tensor core cuts where a processor rounds), then the rounding of the storage. */
static double wanted(const Product *p, int b, int i, int j, int K, double *tol) {
    const Shape *s = p->s;
    const float *A = p->A.before + b * p->A.stride, *B = p->B.before + b * p->B.stride;
    double sum = 0, absolute = 0;
    for (int k = 0; k < K; k++) {
        const double x = (double)(s->transA ? A[k * p->A.ld + i] : A[i * p->A.ld + k]) *
                         (double)(s->transB ? B[j * p->B.ld + k] : B[k * p->B.ld + j]);
        sum += x;
        absolute += fabs(x);
    }
    const double c = (double)s->beta * (double)p->C.before[b * p->C.stride + i * p->C.ld + j];
    const double bias = s->bias ? (double)p->bias.before[j] : 0;
    const double x = (double)s->alpha * sum + c + bias;
    absolute = absolute * fabs((double)s->alpha) + fabs(c) + fabs(bias);
    *tol = (K + 3) * 0x1p-23 * absolute + (s->c_float ? 0x1p-23 : UNIT) * fabs(x);
    return s->relu && x < 0 ? 0 : x;
}

int product_misses(const Product *p, const float *got, int K) {
    int misses = 0;
    for (int b = 0; b < p->s->batch; b++)
        for (int i = 0; i < p->s->M; i++)
            for (int j = 0; j < p->s->N; j++) {
                double tol;
                const double want = wanted(p, b, i, j, K, &tol);
                const double x = (double)got[b * p->C.stride + i * p->C.ld + j];
                misses += !(fabs(x - want) <= tol);
            }
    return misses;
}

int product_padding_changed(const Product *p, const float *got) {
    int changed = 0;
    for (size_t i = 0; i < p->C.n; i++)
        if ((int64_t)i % p->C.ld >= p->C.cols) changed += got[i] != p->C.before[i];
    return changed;
}
