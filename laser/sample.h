/* sample.h: text from a model, token by token. */
#ifndef LASER_SAMPLE_H
#define LASER_SAMPLE_H

#include "laser/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct SampleRule {
    double temperature; /* divides the logits; 0: always the most probable token */
    int top_k;          /* of the top_k most probable alone (and those equal to the last); 0: all */
    uint64_t seed;      /* the same seed gives the same tokens */
} SampleRule;

/* The token that follows `count` tokens of one sequence (at most T), of which earlier calls, with
 * nothing else computed in between, have seen the first `from`. Overwrites the activations. */
int32_t sample_next(
    Model *m, const int32_t *tokens /* (count) */, int from, int count, const SampleRule *rule);

/* Continues the first `count` of tokens until there are `most` (at most T) of them or eos (-1:
 * never) was drawn, and returns how many there are; the eos is not among them. */
int sample_tokens(
    Model *m, int32_t *tokens /* (most) */, int count, int most, int32_t eos, const SampleRule *r);

#ifdef __cplusplus
}
#endif
#endif
