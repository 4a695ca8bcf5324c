/* sample.c: text from a model, token by token: only the tokens that are new are computed, and their
 * keys and values kept for the next. Where layers share their activations (--recompute block) there
 * is nowhere to keep them, and the whole sequence is computed again. */
#include "laser/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/rng.h"

static int descending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The least of the k largest. */
static float kth_largest(const float *logits, int V, int k) {
    float *sorted = (float *)xcalloc((size_t)V, sizeof *sorted);
    memcpy(sorted, logits, (size_t)V * sizeof *sorted);
    qsort(sorted, (size_t)V, sizeof *sorted, descending);
    const float x = sorted[k - 1];
    free(sorted);
    return x;
}

/* Inverse of the cumulative distribution at coin * total; the largest logit is subtracted first. */
static int32_t draw(const float *logits, int V, const SampleRule *rule, double coin) {
    int32_t top = 0;
    for (int i = 1; i < V; i++)
        if (logits[i] > logits[top]) top = i;
    if (rule->temperature == 0) return top;
    const bool some = rule->top_k > 0 && rule->top_k < V;
    const float least = some ? kth_largest(logits, V, rule->top_k) : -INFINITY;
    double total = 0.0, *weight = (double *)xcalloc((size_t)V, sizeof *weight);
    for (int i = 0; i < V; i++) {
        if (logits[i] >= least)
            weight[i] = exp((double)(logits[i] - logits[top]) / rule->temperature);
        total += weight[i];
    }
    double left = coin * total;
    for (int32_t i = 0; i < V; i++) {
        left -= weight[i];
        if (weight[i] > 0) top = i; /* the last that may be drawn, should rounding leave a rest */
        if (left < 0.0) break;
    }
    free(weight);
    return top;
}

int32_t sample_next(Model *m, const int32_t *tokens, int from, int count, const SampleRule *rule) {
    const int V = m->config.V;
    if (!model_has_cache(&m->config)) from = 0;
    float *logits = (float *)xcalloc((size_t)V, sizeof *logits);
    model_forward_on(m, tokens + from, from, count);
    model_logits(m, logits, count - from - 1, 1);
    const double coin = rng_uniform(rule->seed, RNG_SAMPLE, (uint64_t)count - 1);
    const int32_t token = draw(logits, V, rule, coin);
    free(logits);
    return token;
}

int sample_tokens(
    Model *m, int32_t *tokens, int count, int most, int32_t eos, const SampleRule *r) {
    for (int from = 0; count < most; from = count++) {
        made_progress();
        tokens[count] = sample_next(m, tokens, from, count, r);
        if (tokens[count] == eos) break;
    }
    return count;
}
