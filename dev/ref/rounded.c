/* rounded.c: see rounded.h. Rows are taken ROWS at a time, so that the matrices they weigh come out
 * of the cache once for all of them. */
#include "dev/ref/rounded.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"

enum { ROWS = 4 };
#define CENTRE_SPAN 8.0f

typedef struct Work {
    int T, DK, HD;
    float *q, *k_t, *v; /* (T, DK), (DK, T), (T, HD): rounded to bf16 */
    float *matrix[FORM_COUNT], *rounded[FORM_COUNT]; /* (T, HD) what P weighs */
    float *shift[FORM_COUNT], *centre[FORM_COUNT];   /* (HD) m and kappa; 0 where a form has none */
    double *exact_matrix, *exact_shift;              /* (T, HD), (HD) of LASER */
    double *exact_v;                                 /* (T, HD) */
    float *p, *p_rounded, *sum;                      /* (ROWS, T), (ROWS, T), (ROWS) */
    double *exact_p;                                 /* (ROWS, T) */
    float *acc;                                      /* (ROWS, HD) */
    double *exact[2];                                /* (ROWS, HD) of standard, of LASER */
    double wrong[FORM_COUNT][ROUND_COUNT], size[2];  /* squared norms */
} Work;

float round_to_bits(float x, int bits) {
    uint32_t u;
    const int drop = 24 - bits;
    if (!isfinite(x)) return x;
    memcpy(&u, &x, sizeof u);
    u += (1u << (drop - 1)) - 1 + (u >> drop & 1);
    u &= ~((1u << drop) - 1);
    memcpy(&x, &u, sizeof x);
    return x;
}

static float *floats(size_t n) {
    return (float *)xcalloc(n, sizeof(float));
}
static double *doubles(size_t n) {
    return (double *)xcalloc(n, sizeof(double));
}

static void work_open(Work *w, const RoundedHead *h) {
    const size_t T = (size_t)h->T, DK = (size_t)h->DK, HD = (size_t)h->HD;
    *w = (Work){.T = h->T, .DK = h->DK, .HD = h->HD};
    w->q = floats(T * DK), w->k_t = floats(DK * T), w->v = floats(T * HD);
    for (int f = 0; f < FORM_COUNT; f++) {
        w->matrix[f] = floats(T * HD), w->rounded[f] = floats(T * HD);
        w->shift[f] = floats(HD), w->centre[f] = floats(HD);
    }
    w->exact_matrix = doubles(T * HD), w->exact_shift = doubles(HD), w->exact_v = doubles(T * HD);
    w->p = floats(ROWS * T), w->p_rounded = floats(ROWS * T), w->sum = floats(ROWS);
    w->exact_p = doubles(ROWS * T), w->acc = floats(ROWS * HD);
    w->exact[0] = doubles(ROWS * HD), w->exact[1] = doubles(ROWS * HD);
}

static void work_close(Work *w) {
    for (int f = 0; f < FORM_COUNT; f++) {
        free(w->matrix[f]), free(w->rounded[f]), free(w->shift[f]), free(w->centre[f]);
    }
    free(w->q), free(w->k_t), free(w->v), free(w->exact_matrix), free(w->exact_shift);
    free(w->exact_v), free(w->p), free(w->p_rounded), free(w->sum), free(w->exact_p), free(w->acc);
    free(w->exact[0]), free(w->exact[1]);
}

static void read_inputs(Work *w, const RoundedHead *h) {
    for (int t = 0; t < w->T; t++) {
        const size_t row = (size_t)t * h->ld;
        for (int c = 0; c < w->DK; c++) {
            w->q[t * w->DK + c] = round_to_bits(h->q[row + (size_t)c], BF16_BITS);
            w->k_t[c * w->T + t] = round_to_bits(h->k[row + (size_t)c], BF16_BITS);
        }
        for (int c = 0; c < w->HD; c++) {
            w->v[t * w->HD + c] = round_to_bits(h->v[row + (size_t)c], BF16_BITS);
            w->exact_v[t * w->HD + c] = (double)w->v[t * w->HD + c];
        }
    }
}

/* Shift and centre of a channel in each form, and LASER's matrix in double. Returns the sum of
 * squares about the channel's mean. */
static double prepare_channel(Work *w, int c) {
    const float *v = w->v + c;
    float low = v[0], high = v[0];
    double mean = 0, squares = 0;
    for (int t = 0; t < w->T; t++) {
        const float x = v[t * w->HD];
        low = fminf(low, x), high = fmaxf(high, x), mean += (double)x / w->T;
    }
    for (int t = 0; t < w->T; t++) {
        const double x = (double)v[t * w->HD];
        squares += (x - mean) * (x - mean);
        w->exact_matrix[t * w->HD + c] = exp(x - (double)high);
    }
    w->exact_shift[c] = (double)high;
    w->shift[FORM_SHIFTED][c] = w->shift[FORM_CENTRED][c] = high;
    if (high - low < CENTRE_SPAN) w->centre[FORM_CENTRED][c] = expf((float)mean - high);
    return squares;
}

static double prepare_values(Work *w, int bits) {
    double squares = 0;
    for (int c = 0; c < w->HD; c++) squares += prepare_channel(w, c);
    for (int f = 0; f < FORM_COUNT; f++)
        for (int i = 0; i < w->T * w->HD; i++) {
            const int c = i % w->HD;
            const float x = w->v[i];
            const float e = expf(x - w->shift[f][c]) - w->centre[f][c];
            w->matrix[f][i] = f == FORM_STANDARD ? x : e;
            w->rounded[f][i] = round_to_bits(w->matrix[f][i], bits);
        }
    return sqrt(squares / w->T / w->HD);
}

/* Row i: exp(score - maximum), in fp32 with its sum, and in double divided by its sum. */
static void row_probabilities(Work *w, const RoundedHead *h, int i, int r) {
    float *p = w->p + r * w->T, max = -INFINITY, sum = 0;
    double *exact = w->exact_p + r * w->T, exact_max = -INFINITY, exact_sum = 0;
    memset(p, 0, (size_t)w->T * sizeof *p);
    memset(exact, 0, (size_t)w->T * sizeof *exact);
    for (int c = 0; c < w->DK; c++) {
        const float q = w->q[i * w->DK + c], *k = w->k_t + c * w->T;
        for (int j = 0; j <= i; j++) p[j] += q * k[j];
        for (int j = 0; j <= i; j++) exact[j] += (double)q * (double)k[j];
    }
    const double cap = h->softcap;
    for (int j = 0; j <= i; j++) {
        p[j] *= (float)h->scale, exact[j] *= h->scale;
        if (cap > 0) p[j] = (float)cap * tanhf(p[j] / (float)cap);
        if (cap > 0) exact[j] = cap * tanh(exact[j] / cap);
        max = fmaxf(max, p[j]), exact_max = fmax(exact_max, exact[j]);
    }
    for (int j = 0; j <= i; j++) {
        p[j] = expf(p[j] - max), sum += p[j];
        exact[j] = exp(exact[j] - exact_max), exact_sum += exact[j];
    }
    for (int j = 0; j <= i; j++) {
        exact[j] /= exact_sum;
        w->p_rounded[r * w->T + j] = round_to_bits(p[j], h->bits);
    }
    for (int j = i + 1; j < w->T; j++) w->p_rounded[r * w->T + j] = 0;
    w->sum[r] = sum;
}

/* out (ROWS, HD) = p (ROWS, T) x (T, HD), the first n rows of x; ROWS is 4 */
#define PRODUCT(NAME, REAL)                                                                        \
    static void NAME(const Work *w, REAL *restrict out, const REAL *p, const REAL *x, int n) {     \
        const int T = w->T, HD = w->HD;                                                            \
        memset(out, 0, (size_t)(ROWS * HD) * sizeof *out);                                         \
        for (int j = 0; j < n; j++, x += HD) {                                                     \
            const REAL p0 = p[j], p1 = p[T + j], p2 = p[2 * T + j], p3 = p[3 * T + j];             \
            for (int c = 0; c < HD; c++) {                                                         \
                out[c] += p0 * x[c], out[HD + c] += p1 * x[c];                                     \
                out[2 * HD + c] += p2 * x[c], out[3 * HD + c] += p3 * x[c];                        \
            }                                                                                      \
        }                                                                                          \
    }
PRODUCT(multiply, float)
PRODUCT(multiply_exact, double)

static void exact_rows(Work *w, int rows, int n) {
    multiply_exact(w, w->exact[0], w->exact_p, w->exact_v, n);
    multiply_exact(w, w->exact[1], w->exact_p, w->exact_matrix, n);
    for (int i = 0; i < rows * w->HD; i++) {
        w->exact[1][i] = log(w->exact[1][i]) + w->exact_shift[i % w->HD];
        for (int k = 0; k < 2; k++) w->size[k] += w->exact[k][i] * w->exact[k][i];
    }
}

/* Adds the squared errors of the rows in acc. */
static void compare_rows(Work *w, Form f, Rounding r, int rows, int bits) {
    const double *exact = w->exact[f != FORM_STANDARD];
    for (int i = 0; i < rows * w->HD; i++) {
        const int c = i % w->HD;
        float x = w->acc[i] / w->sum[i / w->HD];
        if (r == ROUND_CORE) x = round_to_bits(x, bits);
        if (f != FORM_STANDARD) x = logf(w->centre[f][c] + x) + w->shift[f][c];
        const double off = (double)round_to_bits(x, bits) - exact[i];
        w->wrong[f][r] += off * off;
    }
}

void rounded_errors(const RoundedHead *h, RoundedErrors *out) {
    Work w;
    work_open(&w, h);
    read_inputs(&w, h);
    out->std = prepare_values(&w, h->bits);
    for (int i = 0; i < h->T; i += ROWS) {
        const int rows = h->T - i < ROWS ? h->T - i : ROWS, n = i + rows;
        for (int r = 0; r < rows; r++) row_probabilities(&w, h, i + r, r);
        exact_rows(&w, rows, n);
        for (int f = 0; f < FORM_COUNT; f++) {
            multiply(&w, w.acc, w.p, w.matrix[f], n);
            compare_rows(&w, (Form)f, ROUND_OUTPUT, rows, h->bits);
            multiply(&w, w.acc, w.p_rounded, w.rounded[f], n);
            compare_rows(&w, (Form)f, ROUND_OPERANDS, rows, h->bits);
            compare_rows(&w, (Form)f, ROUND_CORE, rows, h->bits);
        }
    }
    for (int f = 0; f < FORM_COUNT; f++)
        for (int r = 0; r < ROUND_COUNT; r++)
            out->error[f][r] = sqrt(w.wrong[f][r] / w.size[f != FORM_STANDARD]);
    work_close(&w);
}
