/* rng.h: random numbers as a pure function value = f(seed, stream, index), so that any element can
 * be drawn alone, on any device, in any order, and a run's position is one integer. Philox-4x32-10
 * (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11). */
#ifndef LASER_RNG_H
#define LASER_RNG_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Streams: one number per use, so that no two uses share values. */
enum {
    RNG_INIT = 1,    /* parameters: stream RNG_INIT + (tensor number << 8) */
    RNG_SHUFFLE = 2, /* order of the training windows */
    RNG_SAMPLE = 3,  /* text samples */
    RNG_TEST = 4,
};

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index); /* in [0, 1), 53 bits */
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index);  /* N(0, 1), Box-Muller */

/* A permutation of 0..n-1, computed and not stored: a keyed Feistel network on the next power of
 * four, walked until the value falls below n. Expected work: at most 4 rounds of the network. */
uint64_t rng_permute(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n);

#ifdef __cplusplus
}
#endif
#endif
