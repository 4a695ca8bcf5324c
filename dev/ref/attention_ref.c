/* attention_ref.c: the oracle's attention, standard and LASER, and how far fp32 may be from it. One
 * head at a time, with the T x T matrix of log probabilities in memory; LASER in log space, so that
 * no size of v can overflow.
 *
 * With p = softmax(scores) and w[i,j,c] = p[i,j] exp(v[j,c] - out[i,c]), which sums to 1 over j:
 *   standard  out = sum_j p v        dv[j] = sum_i p dout[i]          dP[i,j] = sum_c dout[i,c]
 * v[j,c] LASER     out = log sum_j p e^v  dv[j] = sum_i w[i,j] dout[i]     p dP[i,j] = sum_c
 * dout[i,c] w[i,j,c] both      D_i = sum_j p dP       dS = p (dP - D) * slope of the cap */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/ops_ref.h"
#include "laser/base.h"

/* One head of one sequence. Row t of q, k, v lies at t * step; q and k begin at channel k0. */
typedef struct Head {
    const RefAttention *a;
    int step, out_step;
    const double *q, *k, *v;
    double *logp;  /* (T, T), -inf where masked */
    double *slope; /* (T, T) derivative of the cap */
    double *lse;   /* (T) */
    double *out;   /* (T, HD) */
    double *top; /* (T, HD) LASER: the largest v that the row sees, and out - top: apart, because */
    double *rest; /* their sum would lose the digits of the small one where v is large */
} Head;

static double *doubles(size_t n) {
    return xcalloc(n, sizeof(double));
}

static bool visible(const RefAttention *a, int i, int j) {
    if (a->plant == PLANT_DROP_KEY && j == a->T / 2 && i > j) return false;
    if (a->plant == PLANT_MASK_MINUS && i == j && i > 0) return false;
    if (a->plant == PLANT_MASK_PLUS && j == i + 1) return true;
    return j <= i;
}

static double dot(const double *x, const double *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

static void head_rows(Head *h, int i) {
    const RefAttention *a = h->a;
    int query = a->plant == PLANT_STALE_ROW && i == a->T - 1 && i > 0 ? i - 1 : i;
    double *row = h->logp + i * a->T, max = -INFINITY, sum = 0;
    for (int j = 0; j < a->T; j++) {
        row[j] = -INFINITY;
        if (!visible(a, i, j)) continue;
        double s = dot(h->q + query * h->step, h->k + j * h->step, a->DK);
        s *= a->scale * (a->plant == PLANT_SCALE ? (a->act_u > 0 ? 1.1 : 1.001) : 1);
        double t = a->softcap > 0 ? tanh(s / a->softcap) : 0;
        row[j] = a->softcap > 0 ? a->softcap * t : s;
        h->slope[i * a->T + j] = 1 - t * t;
        max = fmax(max, row[j]);
    }
    for (int j = 0; j < a->T; j++) sum += exp(row[j] - max);
    h->lse[i] = max + log(sum);
    for (int j = 0; j < a->T; j++) row[j] -= h->lse[i];
}

/* log sum_j exp(log p[i,j] + v[j,c]) = top + rest */
static void head_log_mean(const Head *h, int i, int c) {
    const double *row = h->logp + i * h->a->T, *v = h->v + c;
    double top = -INFINITY, max = -INFINITY, sum = 0;
    for (int j = 0; j < h->a->T; j++) {
        if (row[j] > -INFINITY) top = fmax(top, v[j * h->step]);
    }
    for (int j = 0; j < h->a->T; j++) max = fmax(max, row[j] + (v[j * h->step] - top));
    for (int j = 0; j < h->a->T; j++) {
        if (row[j] > -INFINITY) sum += exp(row[j] + (v[j * h->step] - top) - max);
    }
    const int at = i * h->a->HD + c;
    h->top[at] = top;
    h->rest[at] = max + log(sum);
    h->out[at] = top + h->rest[at];
}

static double head_mean(const Head *h, int i, int c) {
    double sum = 0;
    for (int j = 0; j < h->a->T; j++) {
        double p = exp(h->logp[i * h->a->T + j]);
        if (p > 0) sum += p * h->v[j * h->step + c];
    }
    return sum;
}

static void head_open(Head *h, const double *qkv, int b, int head, const RefAttention *a) {
    size_t T = (size_t)a->T, HD = (size_t)a->HD;
    int width = a->H * a->HD;
    *h = (Head){.a = a, .step = 3 * width, .out_step = width};
    h->q = qkv + b * a->T * h->step + head * a->HD + a->k0;
    h->k = h->q + width;
    h->v = h->k + width - a->k0;
    h->logp = doubles(T * T);
    h->slope = doubles(T * T);
    h->lse = doubles(T);
    h->out = doubles(T * HD);
    h->top = doubles(T * HD);
    h->rest = doubles(T * HD);
    for (int i = 0; i < a->T; i++) {
        head_rows(h, i);
        for (int c = 0; c < a->HD; c++) {
            if (a->laser) {
                head_log_mean(h, i, c);
            } else {
                h->out[i * a->HD + c] = head_mean(h, i, c);
            }
        }
    }
}

static void head_close(Head *h) {
    free(h->logp), free(h->slope), free(h->lse);
    free(h->out), free(h->top), free(h->rest);
}

/* Where row 0 of head `head` of sequence b lies in an array (B, T, H, HD). */
static int out_offset(const RefAttention *a, int b, int head) {
    return (b * a->T * a->H + head) * a->HD;
}

void ref_attention_fwd(double *out, double *lse, const double *qkv, const RefAttention *a) {
    for (int bh = 0; bh < a->B * a->H; bh++) {
        Head h;
        head_open(&h, qkv, bh / a->H, bh % a->H, a);
        double *dst = out + out_offset(a, bh / a->H, bh % a->H);
        for (int i = 0; i < a->T; i++) {
            memcpy(dst + i * h.out_step, h.out + i * a->HD, sizeof(double) * (size_t)a->HD);
            if (lse) lse[bh * a->T + i] = h.lse[i];
        }
        head_close(&h);
    }
}

void ref_attention_paper_fwd(double *out, const double *qkv, const RefAttention *a) {
    for (int bh = 0; bh < a->B * a->H; bh++) {
        Head h;
        head_open(&h, qkv, bh / a->H, bh % a->H, a);
        double *dst = out + out_offset(a, bh / a->H, bh % a->H);
        for (int c = 0; c < a->HD; c++) {
            double m = -INFINITY;
            for (int j = 0; j < a->T; j++) m = fmax(m, h.v[j * h.step + c]);
            for (int i = 0; i < a->T; i++) {
                double sum = 0;
                for (int j = 0; j <= i; j++) {
                    sum += exp(h.logp[i * a->T + j]) * exp(h.v[j * h.step + c] - m);
                }
                dst[i * h.out_step + c] = log(sum) + m;
            }
        }
        head_close(&h);
    }
}

/* ---- backward -------------------------------------------------------------------------------- */

/* What the value of key j in channel c contributes to row i: dout * p for dv, and to p dP. */
static double value_weight(const Head *h, int i, int j, int c) {
    double logp = h->logp[i * h->a->T + j];
    if (!h->a->laser) return exp(logp);
    const int at = i * h->a->HD + c;
    return exp(logp + (h->v[j * h->step + c] - h->top[at]) - h->rest[at]);
}

/* Row i: dv += , and ds[j] = gradient of the scaled score before the cap. */
static void head_bwd_row(const Head *h, double *ds, double *dv, const double *dout, int i) {
    const RefAttention *a = h->a;
    double d = 0;
    for (int j = 0; j < a->T; j++) {
        ds[j] = 0;
        if (h->logp[i * a->T + j] == -INFINITY) continue;
        double p = exp(h->logp[i * a->T + j]);
        for (int c = 0; c < a->HD; c++) {
            double g = dout[c], w = value_weight(h, i, j, c);
            dv[j * h->step + c] += w * g;
            ds[j] += a->laser ? w * g : p * g * h->v[j * h->step + c];
        }
        d += ds[j];
    }
    for (int j = 0; j < a->T; j++) {
        if (h->logp[i * a->T + j] == -INFINITY) continue;
        if (a->plant != PLANT_NO_D) ds[j] -= exp(h->logp[i * a->T + j]) * d;
        ds[j] *= h->slope[i * a->T + j];
    }
}

/* Zero where the backward pass will add up what it writes. */
static void clear_gradients(double *dq, double *dk, double *dv, const Head *h) {
    for (int t = 0; t < h->a->T; t++) {
        for (int c = 0; c < h->a->DK; c++) dq[t * h->step + c] = dk[t * h->step + c] = 0;
        for (int c = 0; c < h->a->HD && !h->a->add_dv; c++) dv[t * h->step + c] = 0;
    }
}

void ref_attention_bwd(double *dqkv, const double *dout, const double *qkv, const RefAttention *a) {
    size_t width = (size_t)a->H * (size_t)a->HD;
    double *ds = doubles((size_t)a->T);
    for (int bh = 0; bh < a->B * a->H; bh++) {
        Head h;
        head_open(&h, qkv, bh / a->H, bh % a->H, a);
        double *dq = dqkv + (h.q - qkv), *dk = dq + width, *dv = dqkv + (h.v - qkv);
        clear_gradients(dq, dk, dv, &h);
        const double *g = dout + out_offset(a, bh / a->H, bh % a->H);
        for (int i = 0; i < a->T; i++) {
            head_bwd_row(&h, ds, dv, g + i * h.out_step, i);
            for (int j = 0; j < a->T; j++) {
                for (int c = 0; c < a->DK && ds[j] != 0; c++) {
                    dq[i * h.step + c] += a->scale * ds[j] * h.k[j * h.step + c];
                    dk[j * h.step + c] += a->scale * ds[j] * h.q[i * h.step + c];
                }
            }
        }
        head_close(&h);
    }
    free(ds);
}

/* ---- how far fp32 may be --------------------------------------------------------------------- */

/* Score: tau[j] = gamma(DK) scale sum|q k| + rounding of s. Probability, relative: eps[j] = tau[j]
 * + mean of tau + gamma(T) for the denominator + a few evaluations of exp, of arguments as large as
 * the scores.
 * LASER: a term p exp(v - top), top the largest v that the row sees, is off by eps + FN +
 * 2u |v - top|, relative. rho is that, weighted by w, + gamma(T): the relative error of the sum L,
 * hence the absolute error of log L; out rounds top and log L. Terms that underflow are no excuse:
 * where they are all that a row has, a backend must find another way. */
typedef struct Bound {
    double *tau, *eps;       /* (T) of row i */
    double *rho;             /* (HD) of row i */
    double *ds_tol, *ds_abs; /* (T) error and absolute value of the gradient of a score */
    double *centre;          /* (HD) LASER, narrow: log kappa + m, or -inf */
    double *narrow;          /* (HD) of row i: relative error of dO that narrow rounding brings */
} Bound;

/* ---- narrow activations ----
 * Beside float's errors, what a core rounds to act_u = u: P, LASER's F = E - kappa, dO = dout / L,
 * the saved O = L - kappa, dF, dS (and out, dq, dk, dv, which a comparison allows by itself). With
 * f = |F| / L and o = |O| / L:
 *   out   u (sum_j p |v|), LASER u (2 sum_j p f + o): P and F, and O where a core gives it narrow
 *   dO    LASER, relative: n = the error of L, + u for itself
 *   dv    terms p g: u of P + u of dF + n + u |F| / E
 *   dS    u |dS|; LASER p sum_c g (f + o) (u + n)
 * kappa is mean V where a channel's values span less than 8, else 0 (laser/cuda/laser.cuh). */
static void bound_centres(const Head *h, Bound *b) {
    for (int c = 0; c < h->a->HD; c++) {
        double high = -INFINITY, low = INFINITY, sum = 0;
        for (int j = 0; j < h->a->T; j++) {
            const double v = h->v[j * h->step + c];
            high = fmax(high, v), low = fmin(low, v), sum += v;
        }
        b->centre[c] = high - low < 8 ? sum / h->a->T : -INFINITY;
    }
}

/* exp(v - out) as the oracle keeps it */
static double over_sum(const Head *h, int i, int c, double v) {
    const int at = i * h->a->HD + c;
    return exp((v - h->top[at]) - h->rest[at]);
}

static double narrow_f(const Head *h, const Bound *b, int i, int j, int c) {
    const double v = h->v[j * h->step + c];
    return h->a->laser ? fabs(over_sum(h, i, c, v) - over_sum(h, i, c, b->centre[c])) : fabs(v);
}

static double narrow_o(const Head *h, const Bound *b, int i, int c) {
    return h->a->laser ? fabs(1 - over_sum(h, i, c, b->centre[c])) : 0;
}

/* out_tol += ; narrow of row i */
static void narrow_out(const Head *h, Bound *b, double *out_tol, int i) {
    const RefAttention *a = h->a;
    for (int c = 0; c < a->HD; c++) {
        double sum = 0;
        for (int j = 0; j <= i; j++) sum += exp(h->logp[i * a->T + j]) * narrow_f(h, b, i, j, c);
        const double error = a->act_u * ((a->laser ? 2 : 1) * sum + narrow_o(h, b, i, c));
        out_tol[c] += error;
        b->narrow[c] = a->laser ? error + a->act_u : 0;
    }
}

/* dv_tol += ; ds_tol += of row i */
static void narrow_bwd(const Head *h, Bound *b, double *dv_tol, const double *dout, int i) {
    const RefAttention *a = h->a;
    double d = 0;
    for (int c = 0; c < a->HD && !a->laser; c++)
        d += fabs(dout[c] * h->out[i * a->HD + c]) * a->act_u; /* D is made of the rounded out */
    for (int j = 0; j <= i; j++) {
        const double p = exp(h->logp[i * a->T + j]), slope = h->slope[i * a->T + j];
        double error = d, size = 0;
        for (int c = 0; c < a->HD; c++) {
            const double g = fabs(dout[c]), f = narrow_f(h, b, i, j, c);
            const double o = a->laser ? narrow_o(h, b, i, c) : fabs(h->out[i * a->HD + c]);
            const double w = value_weight(h, i, j, c);
            dv_tol[j * h->step + c] += g * (w * (2 * a->act_u + b->narrow[c]));
            if (a->laser) dv_tol[j * h->step + c] += g * p * a->act_u * f;
            if (a->laser) error += g * (f + o) * (a->act_u + b->narrow[c]);
            size += g * (f + o);
        }
        b->ds_tol[j] += p * slope * (error + a->act_u * size);
    }
}

static void bound_row(const Head *h, Bound *b, double *lse_tol, int i) {
    const RefAttention *a = h->a;
    double mean = 0, largest = 0;
    for (int j = 0; j <= i; j++) {
        double sum = 0, s = h->logp[i * a->T + j] + h->lse[i];
        for (int c = 0; c < a->DK; c++) {
            sum += fabs(h->q[i * h->step + c] * h->k[j * h->step + c]);
        }
        b->tau[j] = (ref_gamma(a->DK) + 2 * REF_U) * fabs(a->scale) * sum + REF_FN * fabs(s);
        mean += exp(h->logp[i * a->T + j]) * b->tau[j];
        largest = fmax(largest, fabs(s));
    }
    double common = mean + ref_gamma(i + 1) + 4 * REF_FN + 2 * REF_U * largest;
    for (int j = 0; j <= i; j++) b->eps[j] = b->tau[j] + common;
    *lse_tol = common + REF_FN * fabs(h->lse[i]);
}

/* Relative error of the term (j, c) of row i of a LASER sum. */
static double term_error(const Head *h, const Bound *b, int i, int j, int c) {
    double below = h->v[j * h->step + c] - h->top[i * h->a->HD + c];
    return b->eps[j] + 2 * REF_FN + 2 * REF_U * fabs(below);
}

static void bound_out(const Head *h, Bound *b, double *out_tol, int i) {
    const RefAttention *a = h->a;
    for (int c = 0; c < a->HD; c++) {
        double out = h->out[i * a->HD + c], sum = 0, error = 0;
        for (int j = 0; j <= i; j++) {
            double w = value_weight(h, i, j, c), v = fabs(h->v[j * h->step + c]);
            error += a->laser ? w * term_error(h, b, i, j, c) : w * v * b->eps[j];
            sum += w * v;
        }
        if (!a->laser) {
            out_tol[c] = error + ref_gamma(i + 1) * sum + 1e-37;
            continue;
        }
        double top = h->top[i * a->HD + c], log_sum = h->rest[i * a->HD + c];
        b->rho[c] = error + ref_gamma(i + 1);
        out_tol[c] = b->rho[c] + 2 * REF_FN * fabs(log_sum) + 2 * REF_U * (fabs(top) + fabs(out));
        b->rho[c] += 2 * REF_FN * fabs(log_sum);
    }
}

/* A product that is flushed to 0 before another factor, up to 2^60, would have raised it. */
#define FLUSHED (REF_TINY * 0x1p60)

/* dv_tol +=; ds_tol, ds_abs of row i. p (dP - D) is a difference: both parts bring their errors. */
static void bound_bwd_row(
    const Head *h, Bound *b, double *dv_tol, const double *dout, const double *out_tol, int i) {
    const RefAttention *a = h->a;
    double d_abs = 0, d_err = 0, gamma = ref_gamma(a->HD) + 4 * REF_U;
    for (int c = 0; c < a->HD; c++) {
        d_abs += fabs(dout[c]) * (a->laser ? 1 : fabs(h->out[i * a->HD + c]));
        d_err += a->laser ? 0 : fabs(dout[c]) * out_tol[c];
    }
    for (int j = 0; j <= i; j++) {
        double p = exp(h->logp[i * a->T + j]), abs_sum = 0, error = 0;
        for (int c = 0; c < a->HD; c++) {
            double w = value_weight(h, i, j, c), g = fabs(dout[c]);
            double relative = a->laser ? term_error(h, b, i, j, c) + b->rho[c] : b->eps[j];
            double part = a->laser ? w * g : w * g * fabs(h->v[j * h->step + c]);
            dv_tol[j * h->step + c] += w * g * (relative + ref_gamma(a->T) + REF_FN) + g * FLUSHED;
            abs_sum += part;
            error += part * relative + g * FLUSHED;
        }
        b->ds_abs[j] = (abs_sum + p * d_abs) * h->slope[i * a->T + j];
        b->ds_tol[j] = (error + p * (b->eps[j] * d_abs + d_err)) * h->slope[i * a->T + j];
        b->ds_tol[j] += gamma * b->ds_abs[j];
        if (a->softcap > 0) {
            double slope_error = 2 * b->tau[j] / a->softcap + REF_FN;
            b->ds_tol[j] += slope_error * (abs_sum + p * d_abs);
        }
    }
}

static void bound_head(
    const Head *h, Bound *b, double *out_tol, double *lse_tol, double *dq_tol, const double *dout) {
    const RefAttention *a = h->a;
    double *dk_tol = dout ? dq_tol + h->out_step : NULL;
    double *dv_tol = dout ? dk_tol + h->out_step - a->k0 : NULL;
    double gamma = ref_gamma(a->T) + 2 * REF_U;
    for (int i = 0; i < a->T; i++) {
        bound_row(h, b, lse_tol + i, i);
        bound_out(h, b, out_tol + i * h->out_step, i);
        if (a->act_u > 0) narrow_out(h, b, out_tol + i * h->out_step, i);
        if (!dout) continue;
        bound_bwd_row(h, b, dv_tol, dout + i * h->out_step, out_tol + i * h->out_step, i);
        if (a->act_u > 0) narrow_bwd(h, b, dv_tol, dout + i * h->out_step, i);
        for (int j = 0; j <= i; j++) {
            double tol = fabs(a->scale) * (b->ds_tol[j] + gamma * b->ds_abs[j]);
            for (int c = 0; c < a->DK; c++) {
                dq_tol[i * h->step + c] += tol * fabs(h->k[j * h->step + c]);
                dk_tol[j * h->step + c] += tol * fabs(h->q[i * h->step + c]);
            }
        }
    }
}

void ref_attention_bound(double *out_tol, double *lse_tol, double *dqkv_tol, const double *dout,
    const double *qkv, const RefAttention *a) {
    size_t T = (size_t)a->T, HD = (size_t)a->HD;
    double *block = doubles(4 * T + 3 * HD);
    Bound b = {.tau = block,
        .eps = block + T,
        .ds_tol = block + 2 * T,
        .ds_abs = block + 3 * T,
        .rho = block + 4 * T,
        .centre = block + 4 * T + HD,
        .narrow = block + 4 * T + 2 * HD};
    for (int bh = 0; bh < a->B * a->H; bh++) {
        Head h;
        head_open(&h, qkv, bh / a->H, bh % a->H, a);
        int at = out_offset(a, bh / a->H, bh % a->H);
        if (a->act_u > 0) bound_centres(&h, &b);
        bound_head(&h, &b, out_tol + at, lse_tol + bh * a->T,
            dqkv_tol ? dqkv_tol + (h.q - qkv) : NULL, dqkv_tol ? dout + at : NULL);
        head_close(&h);
    }
    free(block);
}
