/* sample.h: text from the model while it trains, to look at. */
#ifndef LASER_SAMPLE_H
#define LASER_SAMPLE_H

#include "laser/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Draws up to `count` tokens (at most T - 1) at temperature 1 after `first`, writes them to tokens
 * and returns how many there are; ends early after eos (-1: never). The same seed gives the same
 * tokens. Overwrites the activations. */
int sample_tokens(
    Model *m, int32_t *tokens /* (count) */, int count, int32_t first, int32_t eos, uint64_t seed);

#ifdef __cplusplus
}
#endif
#endif
