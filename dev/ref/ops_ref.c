/* ops_ref.c: the oracle's embedding, LayerNorm, linear layer, rotary positions, classifier,
 * AdamW and LAMB. Naive loops in double, in the order of the formulas. Attention: attention_ref.c.
 * Knows no backend. */
#include "dev/ref/ops_ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"

double ref_gamma(double n) {
    return fmin(n, 6 * sqrt(n)) * REF_U;
}

static double *doubles(size_t n) {
    return xcalloc(n, sizeof(double));
}

/* ---- embedding ------------------------------------------------------------------------------- */

void ref_embed_fwd(double *x, const double *wte, const double *pos, const RefEmbed *a) {
    for (int n = 0; n < a->B * a->T; n++) {
        for (int c = 0; c < a->C; c++) {
            double p = pos ? pos[(n % a->T) * a->C + c] : 0;
            x[n * a->C + c] = a->scale * wte[a->tokens[n] * a->C + c] + p;
        }
    }
}

void ref_embed_bwd(double *dwte, double *dpos, double beta, const double *dx, const RefEmbed *a) {
    for (int i = 0; dpos && i < a->T * a->C; i++) dpos[i] = beta == 0 ? 0 : beta * dpos[i];
    for (int n = 0; n < a->B * a->T; n++) {
        for (int c = 0; c < a->C; c++) {
            dwte[a->tokens[n] * a->C + c] += a->scale * dx[n * a->C + c];
            if (dpos) dpos[(n % a->T) * a->C + c] += dx[n * a->C + c];
        }
    }
}

/* ---- LayerNorm ------------------------------------------------------------------------------- */

static void moments(double *mean, double *rstd, const double *x, int C, double eps) {
    double sum = 0, squares = 0;
    for (int c = 0; c < C; c++) sum += x[c];
    *mean = sum / C;
    for (int c = 0; c < C; c++) squares += (x[c] - *mean) * (x[c] - *mean);
    *rstd = 1 / sqrt(squares / C + eps);
}

void ref_norm_fwd(double *x, double *out, double *mean, double *rstd, const double *x_in,
    const double *delta, const RefNorm *a) {
    for (int n = 0; n < a->N; n++) {
        double *row = x + n * a->C, mu, r;
        for (int c = 0; c < a->C; c++) {
            row[c] = x_in[n * a->C + c] + (delta ? delta[n * a->C + c] : 0);
        }
        moments(&mu, &r, row, a->C, a->eps);
        for (int c = 0; c < a->C; c++) {
            out[n * a->C + c] = (row[c] - mu) * r * a->w[c] + a->b[c];
        }
        if (mean) mean[n] = mu;
        if (rstd) rstd[n] = r;
    }
}

void ref_norm_bwd(double *dx, double *dw, double *db, double beta, const double *dout,
    const double *x, const RefNorm *a) {
    for (int c = 0; c < a->C; c++) {
        dw[c] = beta == 0 ? 0 : beta * dw[c];
        db[c] = beta == 0 ? 0 : beta * db[c];
    }
    for (int n = 0; n < a->N; n++) {
        const double *row = x + n * a->C, *g = dout + n * a->C;
        double mu, r, mean_g = 0, mean_gx = 0;
        moments(&mu, &r, row, a->C, a->eps);
        for (int c = 0; c < a->C; c++) {
            double hat = (row[c] - mu) * r;
            mean_g += g[c] * a->w[c] / a->C;
            mean_gx += g[c] * a->w[c] * hat / a->C;
            dw[c] += g[c] * hat;
            db[c] += g[c];
        }
        for (int c = 0; c < a->C; c++) {
            double hat = (row[c] - mu) * r;
            dx[n * a->C + c] += r * (g[c] * a->w[c] - mean_g - hat * mean_gx);
        }
    }
}

/* ---- linear layer and activation ------------------------------------------------------------- */

#define GELU_A 0.79788456080286535588 /* sqrt(2 / pi) */
#define GELU_B 0.044715

double ref_act(double x, RefAct act) {
    if (act == REF_RELU) return x > 0 ? x : 0;
    if (act == REF_GELU) return 0.5 * x * (1 + tanh(GELU_A * (x + GELU_B * x * x * x)));
    return x;
}

double ref_act_grad(double x, RefAct act) {
    if (act == REF_RELU) return x > 0;
    if (act == REF_GELU) {
        double t = tanh(GELU_A * (x + GELU_B * x * x * x));
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU_A * (1 + 3 * GELU_B * x * x);
    }
    return 1;
}

void ref_linear_fwd(double *y, double *pre, const double *x, const RefLinear *a) {
    for (int n = 0; n < a->N; n++) {
        for (int o = 0; o < a->OC; o++) {
            double sum = a->bias ? a->bias[o] : 0;
            for (int i = 0; i < a->IC; i++) sum += x[n * a->IC + i] * a->w[o * a->IC + i];
            if (pre) pre[n * a->OC + o] = sum;
            y[n * a->OC + o] = ref_act(sum, a->act);
        }
    }
}

void ref_linear_bwd(double *dx, double *dw, double *dbias, double beta, const double *dy,
    const double *x, const double *pre, const RefLinear *a) {
    for (int i = 0; i < a->OC * a->IC; i++) dw[i] = beta == 0 ? 0 : beta * dw[i];
    for (int o = 0; dbias && o < a->OC; o++) dbias[o] = beta == 0 ? 0 : beta * dbias[o];
    if (dx) memset(dx, 0, sizeof(double) * (size_t)a->N * (size_t)a->IC);
    for (int n = 0; n < a->N; n++) {
        for (int o = 0; o < a->OC; o++) {
            double g = dy[n * a->OC + o];
            if (dbias) dbias[o] += g;
            for (int i = 0; i < a->IC; i++) {
                dw[o * a->IC + i] += g * x[n * a->IC + i];
                if (dx) dx[n * a->IC + i] += g * a->w[o * a->IC + i];
            }
        }
    }
    for (int i = 0; dx && a->act != REF_NONE && i < a->N * a->IC; i++) {
        dx[i] *= ref_act_grad(pre[i], a->act);
    }
}

/* ---- rotary positions ------------------------------------------------------------------------ */

void ref_rope(double *qkv, int sign, int B, int T, int H, int HD) {
    for (int n = 0; n < B * T; n++) {
        for (int h = 0; h < 2 * H; h++) { /* the heads of q, then those of k */
            double *x = qkv + (n * 3 * H + h) * HD;
            for (int i = 0; i < HD / 2; i++) {
                double angle = sign * (n % T) * pow(1e4, -2.0 * i / HD);
                double even = x[i], odd = x[i + HD / 2];
                x[i] = even * cos(angle) - odd * sin(angle);
                x[i + HD / 2] = odd * cos(angle) + even * sin(angle);
            }
        }
    }
}

/* ---- classifier ------------------------------------------------------------------------------ */

static double capped(double logit, double cap) {
    return cap > 0 ? cap * tanh(logit / cap) : logit;
}

void ref_classifier_logits(double *logits, const double *x, const RefClassifier *a) {
    for (int n = 0; n < a->N; n++) {
        for (int v = 0; v < a->V; v++) {
            double sum = a->bias ? a->bias[v] : 0;
            for (int c = 0; c < a->C; c++) sum += x[n * a->C + c] * a->w[v * a->C + c];
            logits[n * a->V + v] = capped(sum, a->softcap);
        }
    }
}

static double log_sum_exp(const double *x, int n) {
    double max = x[0], sum = 0;
    for (int i = 1; i < n; i++) max = fmax(max, x[i]);
    for (int i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

void ref_classifier_loss(
    double *losses, const double *x, const int32_t *targets, const RefClassifier *a) {
    double *logits = doubles((size_t)a->N * (size_t)a->V);
    ref_classifier_logits(logits, x, a);
    for (int n = 0; n < a->N; n++) {
        losses[n] = log_sum_exp(logits + n * a->V, a->V) - logits[n * a->V + targets[n]];
    }
    free(logits);
}

/* Turns a row of logits into gradients of the values before the cap. */
static void logits_to_gradients(
    double *row, int32_t target, double grad_scale, const RefClassifier *a) {
    double lse = log_sum_exp(row, a->V);
    for (int v = 0; v < a->V; v++) {
        double slope = a->softcap > 0 ? 1 - pow(row[v] / a->softcap, 2) : 1;
        row[v] = grad_scale * (exp(row[v] - lse) - (v == target)) * slope;
    }
}

void ref_classifier_bwd(
    const RefClassifierGrads *g, const double *x, const int32_t *targets, const RefClassifier *a) {
    double *dlogits = doubles((size_t)a->N * (size_t)a->V);
    ref_classifier_logits(dlogits, x, a);
    for (int n = 0; n < a->N; n++) {
        logits_to_gradients(dlogits + n * a->V, targets[n], g->grad_scale, a);
    }
    RefLinear layer = {.N = a->N, .OC = a->V, .IC = a->C, .w = a->w};
    ref_linear_bwd(g->dx, g->dw, g->dbias, g->beta, dlogits, x, NULL, &layer);
    free(dlogits);
}

/* A logit is a sum of C products and the bias: off by tau = gamma(C + 1) * sum of absolute values.
 * The cap does not enlarge tau. With mean tau over the softmax written tau', a probability is off
 * by the factor tau + tau' + gamma(V) + 2 FN, and so is its part in the gradient of a logit; the
 * slope of the cap, 1 - t^2, is off by 2 tau / cap + FN. Sums over V or N carry those errors
 * weighted, and their own gamma. Gradients of logits may be stored as activations are before they
 * are summed: then each is off by act_u of itself more; logits are not. */
void ref_classifier_bound(const RefClassifierTol *tol, double grad_scale, const double *x,
    const int32_t *targets, const RefClassifier *a) {
    size_t count = (size_t)a->N * (size_t)a->V;
    double *logits = doubles(count), *tau = doubles(count), *err = doubles(count);
    double *grad = doubles(count);
    ref_classifier_logits(logits, x, a);
    for (int n = 0; n < a->N; n++) {
        double *row = logits + n * a->V, *t = tau + n * a->V, mean_tau = 0, largest = 0;
        double lse = log_sum_exp(row, a->V);
        for (int v = 0; v < a->V; v++) {
            t[v] = a->bias ? fabs(a->bias[v]) : 0;
            for (int c = 0; c < a->C; c++) t[v] += fabs(x[n * a->C + c] * a->w[v * a->C + c]);
            t[v] = t[v] * ref_gamma(a->C + 1) + REF_FN * fabs(row[v]);
            mean_tau += exp(row[v] - lse) * t[v];
            largest = fmax(largest, fabs(row[v]));
        }
        double common = mean_tau + ref_gamma(a->V) + 2 * REF_FN + 2 * REF_U * largest;
        if (tol->losses) tol->losses[n] = t[targets[n]] + common + REF_FN * fabs(lse);
        for (int v = 0; v < a->V; v++) {
            double cap = a->softcap, slope = cap > 0 ? 1 - pow(row[v] / cap, 2) : 1;
            double p = exp(row[v] - lse), e = fabs(p - (v == targets[n]));
            double slope_err = cap > 0 ? 2 * t[v] / cap + REF_FN : 0;
            err[n * a->V + v] = grad_scale * (p * (t[v] + common) * slope + e * slope_err);
            err[n * a->V + v] += REF_TINY * (1 + grad_scale);
            grad[n * a->V + v] = grad_scale * e * slope;
            err[n * a->V + v] += tol->act_u * (grad[n * a->V + v] + err[n * a->V + v]);
        }
    }
    if (tol->logits) memcpy(tol->logits, tau, count * sizeof *tau);
    for (int n = 0; tol->dx && n < a->N; n++) {
        for (int v = 0; v < a->V; v++) {
            double dx_err = err[n * a->V + v] + (ref_gamma(a->V) + REF_FN) * grad[n * a->V + v];
            double dw_err = err[n * a->V + v] + (ref_gamma(a->N) + REF_FN) * grad[n * a->V + v];
            if (tol->dbias) tol->dbias[v] += dw_err;
            for (int c = 0; c < a->C; c++) {
                tol->dx[n * a->C + c] += dx_err * fabs(a->w[v * a->C + c]);
                tol->dw[v * a->C + c] += dw_err * fabs(x[n * a->C + c]);
            }
        }
    }
    free(logits), free(tau), free(err), free(grad);
}

/* ---- optimizer ------------------------------------------------------------------------------- */

/* What bias correction divides moments by. */
typedef struct AdamBias {
    double m, v;
} AdamBias;

static double adam_update(double m, double v, AdamBias by, double eps) {
    return v == 0 ? 0 : m / by.m / (sqrt(v / by.v) + eps);
}

static double norm(const double *x, size_t n) {
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += x[i] * x[i];
    return sqrt(squares);
}

/* A vector and how far each element may be off. */
typedef struct Uncertain {
    double *x, *error; /* (n) */
} Uncertain;

/* How far the norm of x may be off, as a fraction of it. */
static double norm_error(Uncertain x, size_t n) {
    const double length = norm(x.x, n);
    return length > 0 ? norm(x.error, n) / length : 0;
}

/* fp32: the moments are sums of two products, off by 4u times their absolute values; v, of squares,
 * by 8u. An update inherits the error of m over sqrt(v) and half the relative error of v, and adds
 * 28u: two bias corrections, root, quotient, clip factor, products. */
static void adam_direction(
    Uncertain u, Uncertain m, Uncertain v, const double *grads, size_t n, const RefAdam *a) {
    const double t = (double)a->t, length = sqrt(a->grad_sumsq) + 1e-6; /* as PyTorch clips */
    const AdamBias bias = {1 - pow(a->beta1, t), 1 - pow(a->beta2, t)};
    double clip = 1;
    if (a->grad_clip > 0 && length > a->grad_clip) clip = a->grad_clip / length;
    for (size_t i = 0; i < n; i++) {
        const double g = grads[i] * clip;
        m.error[i] = a->beta1 * m.error[i] +
                     4 * REF_U * (fabs(a->beta1 * m.x[i]) + fabs((1 - a->beta1) * g));
        m.x[i] = a->beta1 * m.x[i] + (1 - a->beta1) * g;
        v.x[i] = a->beta2 * v.x[i] + (1 - a->beta2) * g * g;
        v.error[i] = a->beta2 * v.error[i] + 8 * REF_U * v.x[i];
        u.x[i] = adam_update(m.x[i], v.x[i], bias, a->eps);
        u.error[i] = adam_update(m.error[i], v.x[i], bias, a->eps) + 28 * REF_U * fabs(u.x[i]);
        if (v.x[i] > 0) u.error[i] += fabs(u.x[i]) * v.error[i] / (2 * v.x[i]);
    }
}

/* A norm may be off by the norm of the errors; the ratio of two by the sum of their relative errors
 * and 4u for itself. */
static void adam_scale(Uncertain u, Uncertain master, size_t n, const RefAdam *a) {
    const double rms = norm(u.x, n) / sqrt((double)n), rate = a->weight_decay * a->decay;
    double shrink = 1, shrink_error = 0, trust = 1, trust_error = 0;
    if (a->update_clip > 0) {
        const double error = norm_error(u, n) + 4 * REF_U;
        shrink = fmin(1, a->update_clip / rms);
        if (rms * (1 + error) > a->update_clip) shrink_error = error;
    }
    if (a->shrink > 0) shrink = a->shrink;
    Uncertain q = {doubles(n), doubles(n)}; /* what decays */
    for (size_t i = 0; i < n; i++) {
        q.x[i] = master.x[i] - a->center;
        q.error[i] = master.error[i] + REF_U * fabs(q.x[i]);
        u.error[i] = shrink * (u.error[i] + (shrink_error + 3 * REF_U) * fabs(u.x[i])) +
                     rate * (q.error[i] + 3 * REF_U * fabs(q.x[i]));
        u.x[i] = shrink * u.x[i] + rate * q.x[i];
    }
    const double held = norm(q.x, n), moved = norm(u.x, n);
    if (a->lamb && held > 0 && moved > 0) {
        trust = held / moved;
        trust_error = norm_error(q, n) + norm_error(u, n) + 4 * REF_U;
    }
    if (a->trust > 0) trust = a->trust;
    for (size_t i = 0; i < n; i++) {
        u.error[i] = trust * (u.error[i] + trust_error * fabs(u.x[i]));
        u.x[i] *= trust;
    }
    free(q.x), free(q.error);
}

void ref_adamw(double *master, double *m, double *v, double *tol, const double *grads, size_t n,
    const RefAdam *a) {
    double *space = tol ? NULL : doubles(3 * n), *error = tol ? tol : space;
    const Uncertain u = {doubles(n), doubles(n)}, p = {master, error};
    adam_direction(u, (Uncertain){m, error + n}, (Uncertain){v, error + 2 * n}, grads, n, a);
    adam_scale(u, p, n, a);
    for (size_t i = 0; i < n; i++) {
        p.error[i] += a->lr * (u.error[i] + 4 * REF_U * fabs(u.x[i])) + 2 * REF_U * fabs(master[i]);
        master[i] -= a->lr * u.x[i];
    }
    free(u.x), free(u.error), free(space);
}
