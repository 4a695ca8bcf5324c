/* probe.c: recomputes the attention probabilities of one sequence on the host, in double, from the
 * queries and keys that the forward pass left. Slow and independent of the backends' own cores. */
#include "laser/probe.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/passes.h"

static int bin_of(double p) {
    if (p < 1e-12) return 0;
    const int bin = (int)floor(2.0 * (log10(p) + 12.0));
    return bin < PROBE_BINS ? bin : PROBE_BINS - 1;
}

/* Scores of row i against keys 0..i become probabilities. */
static void row_probabilities(const ProbeMap *map, int i, double *p) {
    const float *q = map->q + (size_t)i * map->ld;
    double max = -INFINITY, sum = 0;
    for (int j = 0; j <= i; j++) {
        const float *k = map->k + (size_t)j * map->ld;
        double s = 0;
        for (int c = 0; c < map->DK; c++) s += (double)q[c] * (double)k[c];
        s *= map->scale;
        p[j] = map->softcap > 0 ? map->softcap * tanh(s / map->softcap) : s;
        max = fmax(max, p[j]);
    }
    for (int j = 0; j <= i; j++) sum += p[j] = exp(p[j] - max);
    for (int j = 0; j <= i; j++) p[j] /= sum;
}

/* |diag(p) - p p^T|^2 = sum p^2 - 2 sum p^3 + (sum p^2)^2 */
static double jacobian_norm(const double *p, int n) {
    double squares = 0, cubes = 0;
    for (int j = 0; j < n; j++) {
        squares += p[j] * p[j];
        cubes += p[j] * p[j] * p[j];
    }
    return sqrt(fmax(0, squares - 2 * cubes + squares * squares));
}

/* |d out_c / d scores|^2 of one channel: with weights w_j = p_j e_jc / l_c that is |w - p|^2 for
 * LASER, |p (v - out)|^2 for standard attention. */
static double channel_slope(const ProbeMap *map, const double *p, int n, int c) {
    const float *v = map->v + c;
    double top = v[0], sum = 0, squares = 0;
    for (int j = 1; j < n; j++) top = fmax(top, (double)v[(size_t)j * map->ld]);
    for (int j = 0; j < n; j++) {
        const double value = v[(size_t)j * map->ld];
        sum += p[j] * (map->laser ? exp(value - top) : value);
    }
    for (int j = 0; j < n; j++) {
        const double value = v[(size_t)j * map->ld];
        const double d = p[j] * (map->laser ? exp(value - top) / sum - 1 : value - sum);
        squares += d * d;
    }
    return squares;
}

static double row_slope(const ProbeMap *map, const double *p, int n) {
    double squares = 0;
    for (int c = 0; c < map->HD; c++) squares += channel_slope(map, p, n, c);
    return sqrt(squares / map->HD);
}

void probe_map(const ProbeMap *map, ProbeLayer *out) {
    double *p = (double *)xcalloc((size_t)map->T, sizeof *p);
    for (int i = 0; i < map->T; i++) {
        row_probabilities(map, i, p);
        made_progress(); /* other processes wait meanwhile */
        for (int j = 0; j <= i; j++) {
            out->below_1e3 += p[j] < 1e-3;
            out->below_1e7 += p[j] < 1e-7;
            out->bins[bin_of(p[j])]++;
        }
        out->probabilities += i + 1;
        out->jacobian += jacobian_norm(p, i + 1);
        out->slope += row_slope(map, p, i + 1);
    }
    out->rows += map->T;
    free(p);
}

static double host_norm(Backend *be, const float *src, float *host, size_t n) {
    double sum = 0;
    backend_download(be, host, src, n * sizeof *host);
    for (size_t i = 0; i < n; i++) sum += (double)host[i] * (double)host[i];
    return sqrt(sum);
}

static void probe_gradients(const Model *m, int layer, ProbeLayer *out) {
    const size_t third = size_mul((size_t)m->config.H * (size_t)m->config.HD, (size_t)m->config.C);
    const float *grad = param_float(&m->table, m->grads, P_qkvw, layer);
    float *host = (float *)xcalloc(third, sizeof *host);
    out->grad_q = host_norm(m->be, grad, host, third);
    out->grad_k = host_norm(m->be, grad + third, host, third);
    out->grad_v = host_norm(m->be, grad + 2 * third, host, third);
    free(host);
}

void probe_layer(const Model *m, int layer, int T, ProbeLayer *out) {
    const ModelConfig *c = &m->config;
    const AttentionArgs a = pass_attention(m, 1, T, &m->layer[layer], 0);
    const size_t A = (size_t)c->H * (size_t)c->HD, n = size_mul((size_t)T, 3 * A);
    REQUIRE(c->recompute != RECOMPUTE_BLOCK, "layer %d: queries and keys are not kept", layer);
    float *qkv = (float *)xcalloc(n, sizeof *qkv);
    backend_download_act(m->be, qkv, m->layer[layer].qkv, n);
    *out = (ProbeLayer){0};
    const bool laser = strcmp(backend_attention(), "laser") == 0;
    for (int h = 0; h < c->H; h++)
        for (int k0 = 0; k0 + a.DK <= c->HD; k0 += a.DK) {
            const float *q = qkv + (size_t)h * (size_t)c->HD;
            const ProbeMap map = {.q = q + k0,
                .k = q + A + k0,
                .v = q + 2 * A,
                .ld = 3 * A,
                .T = T,
                .DK = a.DK,
                .HD = c->HD,
                .scale = (double)a.scale,
                .softcap = (double)a.softcap,
                .laser = laser};
            probe_map(&map, out);
        }
    probe_gradients(m, layer, out);
    free(qkv);
}

void probe_json(Text *t, const ProbeLayer *layer) {
    const struct {
        const char *name;
        double value;
    } numbers[] = {
        {"below_1e-3", (double)layer->below_1e3 / (double)layer->probabilities},
        {"below_1e-7", (double)layer->below_1e7 / (double)layer->probabilities},
        {"jacobian", layer->jacobian / (double)layer->rows},
        {"slope", layer->slope / (double)layer->rows},
        {"grad_q", layer->grad_q},
        {"grad_k", layer->grad_k},
        {"grad_v", layer->grad_v},
    };
    text_add(t, "{");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        text_add(t, "\"%s\":", numbers[i].name);
        text_add_json_number(t, numbers[i].value, 6);
        text_add(t, ",");
    }
    text_add(t, "\"bins\":[");
    for (int b = 0; b < PROBE_BINS; b++) text_add(t, "%s%" PRId64, b ? "," : "", layer->bins[b]);
    text_add(t, "]}");
}
