/* sample.c: text from the model while it trains. The whole prefix is computed again for each token,
 * in lengths that are multiples of 32: later tokens change nothing before them, and a GPU sees few
 * shapes. */
#include "laser/sample.h"

#include <math.h>
#include <stdlib.h>

#include "laser/base.h"
#include "laser/rng.h"

enum { LENGTH_STEP = 32 };

/* Inverse of the cumulative distribution at coin * total; the largest logit is subtracted first. */
static int32_t draw(const float *logits, int V, double coin) {
    float top = logits[0];
    for (int i = 1; i < V; i++)
        if (logits[i] > top) top = logits[i];
    double total = 0.0;
    for (int i = 0; i < V; i++) total += exp((double)(logits[i] - top));
    double left = coin * total;
    for (int i = 0; i < V; i++) {
        left -= exp((double)(logits[i] - top));
        if (left < 0.0) return i;
    }
    return V - 1;
}

int sample_tokens(Model *m, int32_t *tokens, int count, int32_t first, int32_t eos, uint64_t seed) {
    const ModelConfig *c = &m->config;
    int32_t *context = (int32_t *)xcalloc((size_t)c->T, sizeof *context);
    float *logits = (float *)xcalloc((size_t)c->V, sizeof *logits);
    int n = 0;
    context[0] = first;
    while (n < count && n + 1 < c->T) {
        const int length = (n / LENGTH_STEP + 1) * LENGTH_STEP;
        model_forward(m, context, 1, length < c->T ? length : c->T);
        model_logits(m, logits, n, 1);
        tokens[n] = draw(logits, c->V, rng_uniform(seed, RNG_SAMPLE, (uint64_t)n));
        if (tokens[n] == eos) break;
        context[n + 1] = tokens[n];
        n++;
    }
    free(context);
    free(logits);
    return n;
}
