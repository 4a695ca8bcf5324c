/* attention_laser.c: what LASER adds to causal attention: references for exp(V), and the exact
 * path, in double, for the few elements whose sum L vanishes or whose reference lies too far below.
 * Knows one head at a time. */
#include "laser/cpu/attention.h"

#include <limits.h>
#include <math.h>

enum { VD = VL / 2 }; /* lanes of a vector of doubles */
typedef double vd __attribute__((vector_size(8 * VD)));
typedef int64_t vl __attribute__((vector_size(8 * VD)));
typedef uint64_t vul __attribute__((vector_size(8 * VD)));
typedef float vh __attribute__((vector_size(4 * VD)));

static inline int least(int a, int b) {
    return a < b ? a : b;
}

void laser_carve_refs(Carve *c, LaserRefs *r, int T, int HD) {
    size_t chunks = (size_t)((T + CHUNK - 1) / CHUNK), n = chunks * (size_t)HD;
    r->first = carve(c, n * sizeof *r->first);
    r->past = carve(c, n * sizeof *r->past);
    r->jump = carve(c, n * sizeof *r->jump);
    r->jumps = carve(c, chunks * sizeof *r->jumps);
}

/* run = max(run, V) over tokens j0 .. j1 */
static void raise_maximum(const Head *h, float *run, int j0, int j1) {
    for (int j = j0; j < j1; j++)
        for (int c = 0; c < h->HD; c += VL) {
            int n = least(VL, h->HD - c);
            vf_store_n(
                run + c, vf_max(vf_load_n(h->v + j * h->ld + c, n), vf_load_n(run + c, n)), n);
        }
}

/* first and last: running maxima before and after the chunk's other tokens; last becomes r->past.
 */
static void find_jumps(const Head *h, LaserRefs *r, int chunk) {
    ptrdiff_t at = (ptrdiff_t)chunk * h->HD;
    int end = least(h->T, (chunk + 1) * CHUNK);
    r->jumps[chunk] = false;
    for (int c = 0; c < h->HD; c++) {
        float first = r->first[at + c];
        r->jump[at + c] = INT_MAX;
        if (!(r->past[at + c] - first > LASER_JUMP)) {
            r->past[at + c] = first;
            continue;
        }
        int j = chunk * CHUNK;
        while (j < end && !(h->v[j * h->ld + c] - first > LASER_JUMP)) j++;
        r->jump[at + c] = j;
        r->jumps[chunk] = true;
    }
}

void laser_find_refs(const Head *h, LaserRefs *r) {
    size_t row = (size_t)h->HD * sizeof(float);
    memcpy(r->first, h->v, row);
    for (int chunk = 0; chunk * CHUNK < h->T; chunk++) {
        float *first = r->first + (ptrdiff_t)chunk * h->HD,
              *past = r->past + (ptrdiff_t)chunk * h->HD;
        int j0 = chunk * CHUNK, end = j0 + CHUNK;
        raise_maximum(h, first, j0, j0 + 1);
        memcpy(past, first, row);
        raise_maximum(h, past, j0 + 1, least(end, h->T));
        if (end < h->T) memcpy(first + h->HD, past, row);
        find_jumps(h, r, chunk);
    }
}

void laser_exp_values(const Head *h, float *dst, int j0, int n, const float *ref) {
    for (int j = j0; j < j0 + n; j++, dst += h->HD)
        for (int c = 0; c < h->HD; c += VL) {
            int lanes = least(VL, h->HD - c);
            vf x = vf_load_n(h->v + j * h->ld + c, lanes) - vf_load_n(ref + c, lanes);
            vf_store_n(dst + c, (vf)((vi)vf_exp(x) & ~(x > LASER_JUMP)), lanes);
        }
}

void laser_ref_factors(float *dst, const float *from, const float *to, int HD) {
    for (int c = 0; c < HD; c += VL) {
        int n = least(VL, HD - c);
        vf_store_n(dst + c, vf_exp(vf_load_n(from + c, n) - vf_load_n(to + c, n)), n);
    }
}

bool laser_row_is_exact(const Head *h, int i) {
    for (int c = 0; c < h->HD; c++)
        if (h->sums[i * h->ldo + c] == 0.0f) return true;
    return false;
}

/* ---- the exact path
 * --------------------------------------------------------------------------------- */

/* e^x for x <= 0: Taylor's series on [-ln 2 / 2, ln 2 / 2], 0 below -700 */
static inline vd vd_exp(vd x) {
    const vd magic = (vd){0} + 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to integer */
    static const double inverse_factorials[] = {1.0 / 6227020800.0, 1.0 / 479001600.0,
        1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0,
        1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0};
    vd t = x * 1.4426950408889634 + magic, n = t - magic;
    vd r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    vd p = (vd){0} + inverse_factorials[0];
    for (int i = 1; i < 14; i++) p = p * r + inverse_factorials[i];
    vd y = (vd)((vul)p + (((vul)t - (vul)magic) << 52));
    return (vd)((vl)y & ~(x < -700.0));
}

static inline vd vd_max(vd a, vd b) {
    vl m = a > b;
    return (vd)((m & (vl)a) | (~m & (vl)b));
}

/* The first n <= VD lanes; the others are 0, or untouched in memory. */
static inline vd vd_load_n(const float *p, int n) {
    vh x = {0};
    if (n == VD)
        memcpy(&x, p, sizeof x);
    else
        memcpy(&x, p, (size_t)n * sizeof *p);
    return __builtin_convertvector(x, vd);
}

static inline void vd_add_n(float *p, vd x, int n) {
    for (int i = 0; i < n; i++) p[i] += (float)x[i];
}

static inline vd load_values(const Head *h, int j, int c) {
    return vd_load_n(h->v + j * h->ld + c, least(VD, h->HD - c));
}

/* scores[j], j <= i; returns their log sum exp */
static double exact_scores(const Head *h, int i, double *scores) {
    const float *q = h->q + i * h->ld;
    double max = -INFINITY, sum = 0.0, cap = (double)h->softcap;
    for (int j = 0; j <= i; j++) {
        double s = 0.0;
        for (int c = 0; c < h->DK; c++) s += (double)q[c] * (double)h->k[j * h->ld + c];
        s *= (double)h->scale;
        scores[j] = cap > 0.0 ? cap * tanh(s / cap) : s;
        max = fmax(max, scores[j]);
    }
    for (int j = 0; j <= i; j++) sum += exp(scores[j] - max);
    return max + log(sum);
}

/* VD channels from c: with top the largest V that row i sees, max the maximum over j of
 * score + (V - top), and sum that of exp(score + (V - top) - max). V - top comes first: a large V
 * would swallow the score. */
typedef struct ExactSums {
    vd top, max, sum;
} ExactSums;

static ExactSums exact_sums(const Head *h, int i, int c, const double *scores) {
    ExactSums s = {(vd){0} - INFINITY, (vd){0} - INFINITY, {0}};
    for (int j = 0; j <= i; j++) s.top = vd_max(load_values(h, j, c), s.top);
    for (int j = 0; j <= i; j++) s.max = vd_max(load_values(h, j, c) - s.top + scores[j], s.max);
    for (int j = 0; j <= i; j++) s.sum += vd_exp(load_values(h, j, c) - s.top + scores[j] - s.max);
    return s;
}

static bool exact_in_group(const Head *h, int i, int c) {
    for (int k = c; k < least(c + VD, h->HD); k++)
        if (h->sums[i * h->ldo + k] == 0.0f) return true;
    return false;
}

void laser_exact_fwd(const Head *h, int i, double *scores) {
    double lse = exact_scores(h, i, scores);
    for (int c = 0; c < h->HD; c += VD) {
        if (!exact_in_group(h, i, c)) continue;
        ExactSums s = exact_sums(h, i, c, scores);
        for (int k = 0; k < least(VD, h->HD - c); k++)
            if (h->sums[i * h->ldo + c + k] == 0.0f)
                h->out[i * h->ldo + c + k] = (float)(s.top[k] + (s.max[k] + log(s.sum[k]) - lse));
    }
}

/* The gradient ds of score (i, j), score as capped, to dq and dk. */
static void exact_score_bwd(const Head *h, int i, int j, double score, double ds) {
    double cap = (double)h->softcap, t = cap > 0.0 ? score / cap : 0.0;
    ds *= (double)h->scale * (1.0 - t * t);
    for (int c = 0; c < h->DK; c++) {
        h->dq[i * h->ld + c] += (float)(ds * (double)h->k[j * h->ld + c]);
        h->dk[j * h->ld + c] += (float)(ds * (double)h->q[i * h->ld + c]);
    }
}

/* With w_j = exp(score_j + V_j - out), which sum to 1: dV_j += dout w_j and ds_j += dout (w_j -
 * P_j). */
void laser_exact_bwd(const Head *h, int i, double *scores) {
    double lse = exact_scores(h, i, scores), *ds = scores + h->T, total = 0.0;
    for (int j = 0; j <= i; j++) ds[j] = 0.0;
    for (int c = 0; c < h->HD; c += VD) {
        if (!exact_in_group(h, i, c)) continue;
        int n = least(VD, h->HD - c);
        vl exact = vd_load_n(h->sums + i * h->ldo + c, n) == 0.0;
        vd dout = (vd)((vl)vd_load_n(h->dout + i * h->ldo + c, n) & exact);
        ExactSums s = exact_sums(h, i, c, scores);
        vd share = dout / s.sum;
        for (int k = 0; k < n; k++) total += dout[k];
        for (int j = 0; j <= i; j++) {
            vd dv = share * vd_exp(load_values(h, j, c) - s.top + scores[j] - s.max);
            vd_add_n(h->dv + j * h->ld + c, dv, n);
            for (int k = 0; k < n; k++) ds[j] += dv[k];
        }
    }
    for (int j = 0; j <= i; j++)
        exact_score_bwd(h, i, j, scores[j], ds[j] - total * exp(scores[j] - lse));
}
