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
} AttentionCase;

static const AttentionCase attention_cases[] = {
    {"one token", 1, 1, 1, 1, 0, 1, EXTREME_NONE},
    {"two tokens, head size 1", 2, 2, 3, 1, 0, 1, EXTREME_NONE},
    {"head size 3", 2, 19, 2, 3, 0, 1, EXTREME_NONE},
    {"head size 40", 1, 67, 3, 40, 0, 1, EXTREME_NONE},
    {"head size 64", 2, 64, 2, 64, 0, 0.07, EXTREME_NONE},
    {"head size 128", 1, 129, 2, 128, 0, 0.25, EXTREME_NONE},
    {"head size 256", 1, 70, 1, 256, 0, 1, EXTREME_NONE},
    {"head size 512", 1, 37, 2, 512, 0, 1, EXTREME_NONE},
    {"head size 720", 1, 67, 1, 720, 0, 1, EXTREME_NONE},
    {"T 129", 2, 129, 1, 16, 0, 1, EXTREME_NONE},
    {"T 200", 1, 200, 2, 24, 0, 1, EXTREME_NONE},
    {"T 300", 1, 300, 1, 64, 0, 1, EXTREME_NONE},
    {"soft cap 50", 2, 67, 2, 32, 50, 1, EXTREME_NONE},
    {"soft cap that bites", 1, 130, 2, 20, 1.5, 1, EXTREME_NONE},
    {"std of v 0.005", 1, 67, 2, 32, 0, 0.005, EXTREME_NONE},
    {"std of v 3", 1, 129, 1, 32, 0, 3, EXTREME_NONE},
    {"std of v 10", 1, 129, 1, 32, 0, 10, EXTREME_NONE},
    {"std of v 30", 2, 67, 2, 32, 0, 30, EXTREME_NONE},
    {"v 1e4", 1, 67, 2, 16, 0, 1, EXTREME_LARGE},
    {"v 1e4 at the last token", 2, 67, 1, 16, 0, 1, EXTREME_LAST},
    {"v 1e4 at the last token of a block", 1, 64, 1, 16, 0, 1, EXTREME_LAST},
    {"v alternates +-1e4", 1, 131, 1, 16, 0, 1, EXTREME_ALTERNATING},
    {"largest v at probability e^-60", 1, 67, 1, 16, 0, 1, EXTREME_UNDERFLOW},
    {"largest v at probability e^-200", 1, 67, 1, 16, 0, 1, EXTREME_LOST},
    {"first v 88 above, at e^-200", 1, 67, 1, 16, 0, 1, EXTREME_FIRST_88},
    {"first v 100 above, at e^-200", 1, 67, 2, 16, 0, 1, EXTREME_FIRST_100},
    {"v +-3e38", 1, 67, 1, 16, 0, 1, EXTREME_FLOAT_MAX},
    {"v 300 +- 0.1", 1, 67, 2, 32, 0, 0.1, EXTREME_OFFSET},
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

typedef struct AdamCase {
    const char *label;
    double lr, beta1, beta2, eps, weight_decay, grad_clip, update_clip;
    double grad_std;
    int updates; /* before this one */
} AdamCase;

static const AdamCase adam_cases[] = {
    {"first step", 1e-3, 0.9, 0.99, 1e-8, 0.1, 0, 0, 0.1, 0},
    {"second step, clipped", 1e-3, 0.9, 0.99, 1e-8, 0.1, 1, 0, 0.1, 1},
    {"late, beta2 0.999, no decay", 3e-4, 0.9, 0.999, 1e-8, 0, 1, 0, 0.001, 5000},
    {"beta1 0: no first moment", 1e-2, 0, 0.95, 1e-6, 0.01, 0, 0, 1, 3},
    {"update clipping", 1e-2, 0.9, 0.99, 1e-8, 0.1, 0, 0.05, 0.1, 2},
    {"gradients as small as eps", 1e-3, 0.9, 0.99, 1e-8, 0, 0, 0, 1e-8, 0},
    {"eps 1e-24", 1e-3, 0.9, 0.99, 1e-24, 0.1, 5, 1, 1e-6, 7},
};

#endif
