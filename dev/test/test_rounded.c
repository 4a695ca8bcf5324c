/* test_rounded.c: that simulated rounding (dev/ref/rounded.h) costs what it must: half a unit of
 * the last place for the output alone, and on random values what DESIGN's table says of each form.
 * Coarser rounding raises every error. */
#include <math.h>
#include <stdlib.h>

#include "dev/ref/rounded.h"
#include "dev/test/test.h"
#include "laser/base.h"
#include "laser/rng.h"

enum { T = 1024, HD = 64 };

/* One head: scores of standard deviation 2, values of std. */
static RoundedErrors random_errors(double std, int bits) {
    const size_t n = (size_t)T * HD;
    float *x = (float *)xcalloc(3 * n, sizeof *x);
    for (size_t i = 0; i < 3 * n; i++) /* q and k: sqrt 2 each */
        x[i] = (float)((i < 2 * n ? 1.4142135623730951 : std) * rng_normal(9, RNG_TEST, i));
    const RoundedHead h = {.q = x,
        .k = x + n,
        .v = x + 2 * n,
        .ld = HD,
        .T = T,
        .DK = HD,
        .HD = HD,
        .scale = 1 / sqrt((double)HD),
        .bits = bits};
    RoundedErrors e;
    rounded_errors(&h, &e);
    free(x);
    return e;
}

static void rounds_to_even(Test *t) {
    const struct {
        float x;
        int bits;
        float want;
    } table[] = {{1.00390625f, 8, 1.0f}, {1.01171875f, 8, 1.015625f}, {-1.00390625f, 8, -1.0f},
        {1.0039064f, 8, 1.0078125f}, {1.99609375f, 8, 2.0f}, {5.0f, 2, 4.0f}, {0, 8, 0},
        {INFINITY, 8, INFINITY}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        CHECK(t, round_to_bits(table[i].x, table[i].bits) == table[i].want, "%.9g to %d bits: %.9g",
            (double)table[i].x, table[i].bits, (double)round_to_bits(table[i].x, table[i].bits));
    CHECK(t, isnan(round_to_bits(NAN, 8)), "NaN becomes a number");
}

/* DESIGN section 3, P and the value matrix rounded. kappa = 0 there with the core's output rounded
 * as well; centred both ways. */
static void errors_as_in_the_design(Test *t) {
    const struct {
        double std, standard, shifted, centred, centred_core;
    } table[] = {{.02, .0019, .24, .0025, .0030}, {.07, .0019, .079, .0024, .0030},
        {1, .0019, .0037, .0019, .0023}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const RoundedErrors e = random_errors(table[i].std, BF16_BITS);
        const double near = 0.2;
        CHECK_NEAR(t, e.std, table[i].std, 0.02 * table[i].std);
        CHECK_NEAR(
            t, e.error[FORM_STANDARD][ROUND_OPERANDS], table[i].standard, near * table[i].standard);
        CHECK_NEAR(t, e.error[FORM_SHIFTED][ROUND_CORE], table[i].shifted, near * table[i].shifted);
        CHECK_NEAR(
            t, e.error[FORM_CENTRED][ROUND_OPERANDS], table[i].centred, near * table[i].centred);
        CHECK_NEAR(t, e.error[FORM_CENTRED][ROUND_CORE], table[i].centred_core,
            near * table[i].centred_core);
    }
}

/* Between 1 and 2 numbers of 8 bits lie 2^-7 apart, and rounding to nearest is off by
 * 2^-7 / sqrt(12) in the root mean square: so much of a value at 1, half of it of one at 2. */
static void output_alone_costs_half_a_place(Test *t) {
    const double high = ldexp(1, 1 - BF16_BITS) / sqrt(12), low = high / 2;
    const RoundedErrors e = random_errors(.07, BF16_BITS);
    for (int f = 0; f < FORM_COUNT; f++) {
        const double got = e.error[f][ROUND_OUTPUT];
        CHECK(t, low <= got && got <= high, "form %d: %g, expected %g .. %g", f, got, low, high);
    }
}

static void coarser_is_worse(Test *t) {
    const RoundedErrors fine = random_errors(.25, BF16_BITS), coarse = random_errors(.25, 6);
    for (int f = 0; f < FORM_COUNT; f++)
        for (int r = 0; r < ROUND_COUNT; r++) /* two bits: four times, but for saturation */
            CHECK(t, coarse.error[f][r] > 3 * fine.error[f][r], "form %d, rounding %d: %g, %g", f,
                r, fine.error[f][r], coarse.error[f][r]);
}

/* exp(100) is beyond fp32; a shift or a sum that reaches there must not pass unseen. */
static void overflow_shows(Test *t) {
    const RoundedErrors e = random_errors(30, BF16_BITS);
    CHECK(t, !isfinite(e.error[FORM_VANILLA][ROUND_OUTPUT]), "exp overflows and the error is %g",
        e.error[FORM_VANILLA][ROUND_OUTPUT]);
    CHECK(t, e.error[FORM_STANDARD][ROUND_OUTPUT] < .003, "standard attention: %g",
        e.error[FORM_STANDARD][ROUND_OUTPUT]);
}

const TestCase *test_rounded(int *count) {
    static const TestCase cases[] = {
        {"rounded: to so many bits, ties to even", rounds_to_even},
        {"rounded: errors of each form as the design has them", errors_as_in_the_design},
        {"rounded: the output alone costs half a unit of the last place",
            output_alone_costs_half_a_place},
        {"rounded: coarser rounding raises every error", coarser_is_worse},
        {"rounded: an overflow shows in the error", overflow_shows},
    };
    return TEST_TABLE(cases, count);
}
