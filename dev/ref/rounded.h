/* rounded.h: what reduced precision costs attention, simulated: causal attention of one head in
 * four forms, computed in fp32 with chosen results rounded to few bits, against the same function
 * in double. Says what the arithmetic of a form can reach, whatever the kernel. */
#ifndef DEV_REF_ROUNDED_H
#define DEV_REF_ROUNDED_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum Form {
    FORM_STANDARD, /* P V */
    FORM_VANILLA,  /* log(P exp V): LASER without a shift */
    FORM_SHIFTED,  /* log(P exp(V - m)) + m, m the maximum of a channel: log-weighted-sum-exp */
    FORM_CENTRED,  /* log(kappa + P (exp(V - m) - kappa)) + m, kappa = exp(mean V - m) where the
                      values of a channel span less than 8, else 0 */
    FORM_COUNT
} Form;

typedef enum Rounding {
    ROUND_OUTPUT,   /* what a head gives, and nothing else */
    ROUND_OPERANDS, /* P, before it is divided by its sum, and the matrix it weighs: what tensor
                       cores read; and the output */
    ROUND_CORE,     /* those, and the product with P before LASER's logarithm */
    ROUND_COUNT
} Rounding;

enum { BF16_BITS = 8 }; /* of a significand, the leading one included */

/* To so many bits, 2 to 23, to nearest, ties to even. */
float round_to_bits(float x, int bits);

typedef struct RoundedHead {
    const float *q, *k; /* (T, DK), rows ld apart */
    const float *v;     /* (T, HD), rows ld apart */
    size_t ld;
    int T, DK, HD;
    double scale, softcap; /* as AttentionArgs has them */
    int bits;              /* of what is rounded inside; q, k and v are rounded to bf16 first */
} RoundedHead;

typedef struct RoundedErrors {
    double error[FORM_COUNT][ROUND_COUNT]; /* |out - exact| / |exact|, Frobenius; not finite where
                                              the form overflows */
    double std;                            /* of V about the mean of its channel */
} RoundedErrors;

void rounded_errors(const RoundedHead *h, RoundedErrors *out);

#ifdef __cplusplus
}
#endif
#endif
