/* cases.h: one table of cases per operation, the same for every backend: shapes that divide
 * nothing, single tokens and sequences, every head size of the presets and odd ones, lengths on
 * both sides of any block size, values from tiny to extreme. Data only; dev/test runs them. */
#ifndef DEV_REF_CASES_H
#define DEV_REF_CASES_H

#include <stdbool.h>

#include "dev/ref/ops_ref.h"

typedef struct EmbedCase {
    const char *label;
    int B, T, C, V;
    bool pos;
    double scale;
} EmbedCase;

static const EmbedCase embed_cases[] = {
    {"one token, one channel", 1, 1, 1, 2, true, 1},
    {"no positions, scaled", 2, 5, 7, 3, false, 2.6457513},
    {"many repeats of few tokens", 3, 37, 33, 5, true, 1},
    {"each token about once", 2, 67, 130, 1009, true, 11.401754},
    {"wide", 1, 9, 1030, 11, true, 32.09361},
    {"few tokens, each very often", 2, 2300, 16, 3, true, 1},
    {"often and rarely, wide", 3, 100, 520, 9, true, 4},
};

typedef struct NormCase {
    const char *label;
    int N, C;
    double eps, std, mean; /* of x */
    bool delta, alias;     /* alias: x is x_in */
} NormCase;

static const NormCase norm_cases[] = {
    {"one value: variance 0", 1, 1, 1e-5, 1, 0, true, false},
    {"two channels, no delta", 3, 2, 1e-5, 1, 0, false, false},
    {"odd shape, alias", 7, 33, 1e-6, 1, 0, true, true},
    {"variance as small as eps", 5, 40, 1e-5, 0.003, 0, true, false},
    {"mean much larger than the deviation", 6, 100, 1e-5, 1, 300, true, false},
    {"many tokens", 301, 17, 1e-5, 2, -1, true, true},
    {"wide, no delta", 4, 1027, 1e-6, 3, 1, false, false},
    {"width 2048", 5, 2048, 1e-5, 1, 0.5, true, false},
    {"width 3440", 6, 3440, 1e-6, 1, 0.5, true, true},
    {"width 4104", 5, 4104, 1e-6, 1, 0, true, true},
    {"more tokens than are summed at a time", 2100, 8, 1e-6, 1, 0, true, true},
    {"constant rows: only eps keeps it finite", 3, 48, 1e-6, 0, 2, false, false},
};

typedef struct LinearCase {
    const char *label;
    int N, OC, IC;
    RefAct act;
    bool bias;
} LinearCase;

static const LinearCase linear_cases[] = {
    {"one by one", 1, 1, 1, REF_NONE, true},
    {"one token", 1, 37, 53, REF_GELU, true},
    {"one input", 19, 5, 1, REF_RELU, true},
    {"one output, no bias", 23, 1, 67, REF_NONE, false},
    {"gelu", 65, 67, 43, REF_GELU, true},
    {"gelu, no bias", 13, 129, 31, REF_GELU, false},
    {"relu", 33, 97, 70, REF_RELU, true},
    {"more tokens than a block", 301, 29, 41, REF_NONE, true},
    {"long sums", 9, 11, 1543, REF_RELU, false},
    {"wide", 17, 1031, 35, REF_NONE, true},
    {"multiples of everything", 64, 128, 256, REF_GELU, true},
};

typedef struct ClassifierCase {
    const char *label;
    int N, C, V;
    bool bias;
    double softcap, logit_std;
} ClassifierCase;

static const ClassifierCase classifier_cases[] = {
    {"one token of two", 1, 1, 2, false, 0, 1},
    {"odd, bias", 7, 19, 101, true, 0, 1},
    {"soft cap, bias", 11, 33, 130, true, 5, 4},
    {"more tokens than a chunk of a small backend", 137, 24, 257, false, 30, 3},
    {"multiple of 128", 16, 64, 384, true, 0, 2},
    {"large vocabulary", 3, 16, 5003, true, 0, 1},
    {"larger, odd, soft cap", 3, 16, 9001, true, 30, 3},
    {"larger, soft cap", 3, 16, 9008, true, 30, 3},
    {"confident: other probabilities underflow", 5, 32, 97, false, 0, 60},
};

typedef enum Extreme {
    EXTREME_NONE,
    EXTREME_LARGE,       /* v = 1e4 in whole channels */
    EXTREME_LAST,        /* the last token's v is 1e4, far above all that earlier rows see */
    EXTREME_ALTERNATING, /* v = +-1e4 */
    EXTREME_UNDERFLOW,   /* the largest v lies at a key whose probability is about e^-60 */
    EXTREME_LOST,        /* the same at e^-200: fp32 cannot hold that probability */
    EXTREME_FIRST_88,  /* the first v is 88 above the others, at e^-200: their terms turn subnormal
                        */
    EXTREME_FIRST_100, /* 100 above: they vanish */
    EXTREME_FLOAT_MAX, /* +-3e38; LASER only: sums of products with v overflow in standard attention
                        */
    EXTREME_OFFSET,    /* v = 300 + small: constants go through LASER, variations must not drown */
} Extreme;

typedef struct AttentionCase {
    const char *label;
    int B, T, H, HD;
    double softcap, v_std;
    Extreme extreme;
    int DK, k0;  /* channels that make the scores */
    bool add_dv; /* a second map over the same v */
} AttentionCase;
#define ALL_CHANNELS(HD) HD, 0, false

static const AttentionCase attention_cases[] = {
    {"one token", 1, 1, 1, 1, 0, 1, EXTREME_NONE, ALL_CHANNELS(1)},
    {"two tokens, head size 1", 2, 2, 3, 1, 0, 1, EXTREME_NONE, ALL_CHANNELS(1)},
    {"head size 3", 2, 19, 2, 3, 0, 1, EXTREME_NONE, ALL_CHANNELS(3)},
    {"head size 40", 1, 67, 3, 40, 0, 1, EXTREME_NONE, ALL_CHANNELS(40)},
    {"head size 64", 2, 64, 2, 64, 0, 0.07, EXTREME_NONE, ALL_CHANNELS(64)},
    {"head size 128", 1, 129, 2, 128, 0, 0.25, EXTREME_NONE, ALL_CHANNELS(128)},
    {"head size 256", 1, 70, 1, 256, 0, 1, EXTREME_NONE, ALL_CHANNELS(256)},
    {"head size 512", 1, 37, 2, 512, 0, 1, EXTREME_NONE, ALL_CHANNELS(512)},
    {"head size 720", 1, 67, 1, 720, 0, 1, EXTREME_NONE, ALL_CHANNELS(720)},
    {"T 129", 2, 129, 1, 16, 0, 1, EXTREME_NONE, ALL_CHANNELS(16)},
    {"T 200", 1, 200, 2, 24, 0, 1, EXTREME_NONE, ALL_CHANNELS(24)},
    {"T 300", 1, 300, 1, 64, 0, 1, EXTREME_NONE, ALL_CHANNELS(64)},
    {"soft cap 50", 2, 67, 2, 32, 50, 1, EXTREME_NONE, ALL_CHANNELS(32)},
    {"soft cap that bites", 1, 130, 2, 20, 1.5, 1, EXTREME_NONE, ALL_CHANNELS(20)},
    {"std of v 0.005", 1, 67, 2, 32, 0, 0.005, EXTREME_NONE, ALL_CHANNELS(32)},
    {"std of v 3", 1, 129, 1, 32, 0, 3, EXTREME_NONE, ALL_CHANNELS(32)},
    {"std of v 10", 1, 129, 1, 32, 0, 10, EXTREME_NONE, ALL_CHANNELS(32)},
    {"std of v 30", 2, 67, 2, 32, 0, 30, EXTREME_NONE, ALL_CHANNELS(32)},
    {"v 1e4", 1, 67, 2, 16, 0, 1, EXTREME_LARGE, ALL_CHANNELS(16)},
    {"v 1e4 at the last token", 2, 67, 1, 16, 0, 1, EXTREME_LAST, ALL_CHANNELS(16)},
    {"v 1e4 at the last token of a block", 1, 64, 1, 16, 0, 1, EXTREME_LAST, ALL_CHANNELS(16)},
    {"v alternates +-1e4", 1, 131, 1, 16, 0, 1, EXTREME_ALTERNATING, ALL_CHANNELS(16)},
    {"largest v at probability e^-60", 1, 67, 1, 16, 0, 1, EXTREME_UNDERFLOW, ALL_CHANNELS(16)},
    {"largest v at probability e^-200", 1, 67, 1, 16, 0, 1, EXTREME_LOST, ALL_CHANNELS(16)},
    {"first v 88 above, at e^-200", 1, 67, 1, 16, 0, 1, EXTREME_FIRST_88, ALL_CHANNELS(16)},
    {"first v 100 above, at e^-200", 1, 67, 2, 16, 0, 1, EXTREME_FIRST_100, ALL_CHANNELS(16)},
    {"v +-3e38", 1, 67, 1, 16, 0, 1, EXTREME_FLOAT_MAX, ALL_CHANNELS(16)},
    {"v 300 +- 0.1", 1, 67, 2, 32, 0, 0.1, EXTREME_OFFSET, ALL_CHANNELS(32)},
    /* differential attention: q and k by halves */
    {"first of 2 x 1", 2, 5, 3, 2, 0, 1, EXTREME_NONE, 1, 0, false},
    {"second of 2 x 1, added", 2, 5, 3, 2, 0, 1, EXTREME_NONE, 1, 1, true},
    {"first of 2 x 3", 2, 19, 2, 6, 0, 1, EXTREME_NONE, 3, 0, false},
    {"second of 2 x 3, added", 2, 19, 2, 6, 0, 1, EXTREME_NONE, 3, 3, true},
    {"first of 2 x 11, soft cap, added", 1, 67, 2, 22, 1.5, 1, EXTREME_NONE, 11, 0, true},
    {"second of 2 x 11", 2, 67, 1, 22, 0, 1, EXTREME_NONE, 11, 11, false},
    {"first of 2 x 16", 2, 129, 2, 32, 0, 0.25, EXTREME_NONE, 16, 0, false},
    {"second of 2 x 16, added", 2, 129, 2, 32, 0, 0.25, EXTREME_NONE, 16, 16, true},
    {"first of 2 x 32, T 300", 1, 300, 1, 64, 0, 1, EXTREME_NONE, 32, 0, false},
    {"second of 2 x 32, T 300, added", 1, 300, 1, 64, 0, 1, EXTREME_NONE, 32, 32, true},
    {"first of 2 x 64, added", 1, 70, 2, 128, 0, 1, EXTREME_NONE, 64, 0, true},
    {"second of 2 x 64, soft cap 50", 1, 70, 2, 128, 50, 1, EXTREME_NONE, 64, 64, false},
    {"first of 2 x 256", 1, 37, 1, 512, 0, 1, EXTREME_NONE, 256, 0, false},
    {"second of 2 x 256, added", 1, 37, 1, 512, 0, 1, EXTREME_NONE, 256, 256, true},
    {"first of 2 x 360", 1, 35, 1, 720, 0, 1, EXTREME_NONE, 360, 0, false},
    {"second of 2 x 360, added", 1, 35, 1, 720, 0, 1, EXTREME_NONE, 360, 360, true},
    {"halves, v 1e4 at the last token", 2, 67, 1, 16, 0, 1, EXTREME_LAST, 8, 8, true},
    {"halves, largest v at e^-60", 1, 67, 2, 16, 0, 1, EXTREME_UNDERFLOW, 8, 0, false},
    {"halves, largest v at e^-200", 1, 67, 2, 16, 0, 1, EXTREME_LOST, 8, 8, true},
};

typedef struct RopeCase {
    const char *label;
    int B, T, H, HD;
} RopeCase;

static const RopeCase rope_cases[] = {
    {"head size 2", 2, 5, 3, 2},
    {"head size 40", 2, 67, 1, 40},
    {"head size 64", 1, 129, 2, 64},
    {"head size 720", 1, 3, 2, 720},
};

typedef struct QueryKeyCase {
    const char *label;
    int N, H, HD;
    double eps, std, mean; /* of q and k */
    bool norm;
    double p_std; /* of the per-dimension scale; 0: none */
} QueryKeyCase;

static const QueryKeyCase query_key_cases[] = {
    {"one head of one channel, scaled", 1, 1, 1, 1e-6, 1, 0, false, 1},
    {"two channels, both", 3, 2, 2, 1e-5, 1, 0, true, 1},
    {"head size 3, norm", 19, 5, 3, 1e-6, 1, 0, true, 0},
    {"head size 11, both", 70, 2, 11, 1e-6, 2, 0.5, true, 0.5},
    {"2 x 16, norm", 33, 4, 16, 1e-6, 1, 0, true, 0},
    {"2 x 16, scaled", 33, 4, 16, 1e-6, 1, 0, false, 0.5},
    {"head size 64, scaled far: p 30 either way", 17, 3, 64, 1e-6, 1, 0, false, 15},
    {"head size 72, variance as small as eps", 5, 2, 72, 1e-5, 0.003, 0, true, 1},
    {"head size 128, both", 130, 2, 128, 1e-6, 1, 0, true, 1},
    {"head size 130, mean much larger than the deviation", 9, 1, 130, 1e-5, 1, 100, true, 1},
    {"head size 256, norm", 9, 3, 256, 1e-6, 3, 0, true, 0},
    {"head size 360, both", 7, 2, 360, 1e-6, 1, 0, true, 1},
    {"head size 512, scaled", 5, 1, 512, 1e-6, 1, 0, false, 1},
    {"head size 720, both", 3, 2, 720, 1e-6, 1, 0, true, 1},
    {"head size 4104, both", 70, 1, 4104, 1e-6, 1, 0, true, 1},
    {"more tokens than are summed at a time", 2100, 2, 8, 1e-6, 1, 0, true, 1},
    {"many times more", 13001, 2, 2, 1e-6, 1, 0, true, 1},
};

typedef struct DiffCase {
    const char *label;
    int N, H, HD;
    double lambda_init, lambda_std; /* of lq1, lk1, lq2, lk2 */
    double eps, std;                /* of o1 and o2 */
    bool norm;
} DiffCase;

static const DiffCase diff_cases[] = {
    {"one head of two channels", 1, 1, 2, 0.2, 0.1, 1e-5, 1, true},
    {"one head of two channels, plain", 1, 1, 2, 0.2, 0.1, 1e-5, 1, false},
    {"2 x 3", 19, 5, 6, 0.35, 0.5, 1e-5, 1, true},
    {"2 x 11", 70, 2, 22, 0.8, 0.3, 1e-5, 2, true},
    {"2 x 16, plain", 33, 4, 32, 0.2, 0.5, 1e-5, 1, false},
    {"2 x 32, as small as eps", 33, 3, 64, 0.2, 0.1, 1e-5, 0.003, true},
    {"2 x 64", 130, 2, 128, 0.5, 0.1, 1e-5, 1, true},
    {"2 x 65, plain, large values", 17, 1, 130, 0.5, 0.2, 1e-5, 1e4, false},
    {"2 x 256", 9, 2, 512, 0.2, 0.1, 1e-5, 1, true},
    {"2 x 360", 7, 2, 720, 0.7, 0.1, 1e-5, 1, true},
    {"2 x 2052", 70, 1, 4104, 0.2, 0.01, 1e-5, 1, true},
    {"more tokens than are summed at a time", 2100, 2, 8, 0.2, 0.5, 1e-5, 1, true},
};

typedef struct AdamCase {
    const char *label;
    double lr, beta1, beta2, eps, weight_decay, grad_clip, update_clip;
    double grad_std;
    int updates; /* before this one */
    bool lamb;
} AdamCase;

static const AdamCase adam_cases[] = {
    {"first step", 1e-3, 0.9, 0.99, 1e-8, 0.1, 0, 0, 0.1, 0, false},
    {"second step, clipped", 1e-3, 0.9, 0.99, 1e-8, 0.1, 1, 0, 0.1, 1, false},
    {"late, beta2 0.999, no decay", 3e-4, 0.9, 0.999, 1e-8, 0, 1, 0, 0.001, 5000, false},
    {"beta1 0: no first moment", 1e-2, 0, 0.95, 1e-6, 0.01, 0, 0, 1, 3, false},
    {"update clipping", 1e-2, 0.9, 0.99, 1e-8, 0.1, 0, 0.05, 0.1, 2, false},
    {"gradients as small as eps", 1e-3, 0.9, 0.99, 1e-8, 0, 0, 0, 1e-8, 0, false},
    {"eps 1e-24", 1e-3, 0.9, 0.99, 1e-24, 0.1, 5, 1, 1e-6, 7, false},
    {"LAMB, first step", 1e-2, 0.9, 0.999, 1e-6, 0, 0, 0, 0.1, 0, true},
    {"LAMB, decay, clipped", 1e-2, 0.9, 0.999, 1e-6, 0.1, 1, 0, 0.1, 3, true},
    {"LAMB, gradients as small as eps", 1e-2, 0.9, 0.999, 1e-6, 0, 0, 0, 1e-6, 0, true},
    {"LAMB, eps 1e-24, update clipping", 1e-2, 0.9, 0.99, 1e-24, 0.3, 5, 0.05, 1e-6, 7, true},
};

#endif
