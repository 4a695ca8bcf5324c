/* rng.c: Philox-4x32-10 and what is drawn from it. */
#include "laser/rng.h"

#include <math.h>

typedef struct Philox {
    uint32_t w[4];
} Philox;

/* Constants and rounds as in Salmon et al., SC11, table 2 and section 4. Key: the seed. Counter:
 * index and stream. */
static Philox philox(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    Philox c = {
        {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)}};
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c.w[0];
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c.w[2];
        Philox n = {{(uint32_t)(p1 >> 32) ^ c.w[1] ^ k0, (uint32_t)p1,
            (uint32_t)(p0 >> 32) ^ c.w[3] ^ k1, (uint32_t)p0}};
        c = n;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

static double unit(uint32_t hi, uint32_t lo) { /* 53 bits, [0, 1) */
    return (double)(((uint64_t)hi << 32 | lo) >> 11) * 0x1p-53;
}

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    Philox c = philox(seed, stream, index);
    return (uint64_t)c.w[1] << 32 | c.w[0];
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    Philox c = philox(seed, stream, index);
    return unit(c.w[1], c.w[0]);
}

double rng_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    Philox c = philox(seed, stream, index);
    double radius = sqrt(-2.0 * log(1.0 - unit(c.w[1], c.w[0]))); /* 1 - u is in (0, 1] */
    return radius * cos(6.283185307179586 * unit(c.w[3], c.w[2]));
}

uint64_t rng_permute(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n) {
    int half = 1; /* bits of each of the two halves: 4^half >= n */
    while (half < 32 && (uint64_t)1 << (2 * half) < n) half++;
    const uint64_t mask = ((uint64_t)1 << half) - 1;
    uint64_t x = index;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t next = left ^ (rng_u64(seed, stream, round << 56 ^ right) & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= n);
    return x;
}
