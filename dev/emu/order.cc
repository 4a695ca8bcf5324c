/* order.cc: in which order threads and blocks take their turns. A sound kernel gives the same bits
 * in every order. Each launch begins with the same random numbers, so that a run repeats. Knows
 * nothing of kernels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/emu/internal.h"

enum Kind { FORWARD, REVERSE, RANDOM, WARPS };

typedef struct Order {
    Kind kind;
    bool known;
    uint64_t seed, state;
    uint64_t blocks, factor, offset; /* i -> (factor * i + offset) mod blocks */
    char name[64];
} Order;
static Order order;

static void set(const char *name) {
    static const char *const names[] = {"forward", "reverse", "random", "warps"};
    const size_t length = strcspn(name, ":");
    int kind = -1;
    for (int i = 0; i < 4; i++)
        if (strlen(names[i]) == length && !memcmp(names[i], name, length)) kind = i;
    char *end = NULL;
    const uint64_t seed = name[length] ? strtoull(name + length + 1, &end, 10) : 1;
    if (kind < 0 || (end && (*end || end == name + length + 1 || kind < RANDOM)))
        emu_fail("EMU_ORDER is '%s'; it may be forward, reverse, random:SEED, warps:SEED", name);
    order.kind = (Kind)kind;
    order.seed = seed;
    order.known = true;
    snprintf(order.name, sizeof order.name, "%s", name);
}

void emu_set_order(const char *name) {
    const char *said = name ? name : getenv("EMU_ORDER");
    set(said && *said ? said : "forward");
}

const char *emu_order(void) {
    if (!order.known) emu_set_order(NULL);
    return order.name;
}

/* splitmix64 */
static uint64_t next_random(void) {
    uint64_t x = order.state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t below(uint64_t n) {
    return next_random() % n;
}

static uint64_t common_divisor(uint64_t a, uint64_t b) {
    while (b) {
        const uint64_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

void emu_order_launch(uint64_t blocks) {
    if (!order.known) emu_set_order(NULL);
    order.state = order.seed;
    order.blocks = blocks;
    if (order.kind < RANDOM) return;
    order.offset = below(blocks);
    do order.factor = 1 + below(blocks < 1u << 31 ? blocks : 1u << 31);
    while (common_divisor(order.factor, blocks) != 1);
}

uint64_t emu_order_block(uint64_t i) {
    if (order.kind == FORWARD) return i;
    if (order.kind == REVERSE) return order.blocks - 1 - i;
    return (uint64_t)(((unsigned __int128)order.factor * i + order.offset) % order.blocks);
}

static void reverse(int *threads, int count) {
    for (int i = 0, j = count - 1; i < j; i++, j--) {
        const int t = threads[i];
        threads[i] = threads[j], threads[j] = t;
    }
}

static void shuffle(int *threads, int count) {
    for (int i = count - 1; i > 0; i--) {
        const int j = (int)below((uint64_t)i + 1), t = threads[i];
        threads[i] = threads[j], threads[j] = t;
    }
}

/* Whole warps at random: ascending numbers are sorted by random keys of their warps. */
static void shuffle_warps(int *threads, int count) {
    int warps[EMU_MAX_THREADS / EMU_WARP], sorted[EMU_MAX_THREADS], n = 0, out = 0;
    for (int i = 0; i < count; i++)
        if (i == 0 || threads[i] / EMU_WARP != threads[i - 1] / EMU_WARP)
            warps[n++] = threads[i] / EMU_WARP;
    if (n < 2) return;
    shuffle(warps, n);
    int first[EMU_MAX_THREADS / EMU_WARP];
    for (int i = count - 1; i >= 0; i--) first[threads[i] / EMU_WARP] = i;
    for (int w = 0; w < n; w++)
        for (int i = first[warps[w]]; i < count && threads[i] / EMU_WARP == warps[w]; i++)
            sorted[out++] = threads[i];
    memcpy(threads, sorted, (size_t)count * sizeof *threads);
}

void emu_order_threads(int *threads, int count) {
    switch (order.kind) {
    case FORWARD:
        return;
    case REVERSE:
        return reverse(threads, count);
    case RANDOM:
        return shuffle(threads, count);
    case WARPS:
        return shuffle_warps(threads, count);
    }
}

bool emu_order_first(void) {
    return order.kind == FORWARD || (order.kind >= RANDOM && next_random() >> 63);
}
