/* attention.h: what the files of causal attention share: one head of one sequence, the sizes of
 * blocks, and what LASER adds. Private to laser/cpu.
 *
 * Rows (tokens) are cut into chunks. LASER exponentiates the values of a chunk against a reference
 * per channel, the maximum over all tokens up to the chunk's first: no row of the chunk sees a
 * later token through it, so changing a token changes no bit of an earlier row. */
#ifndef LASER_CPU_ATTENTION_H
#define LASER_CPU_ATTENTION_H

#include "laser/backend.h"
#include "laser/cpu/micro.h"

#ifndef LASER_ATTENTION
#error "build with -DLASER_ATTENTION=1 (LASER) or 0 (standard)"
#endif
enum { LASER = LASER_ATTENTION };

enum {
    CHUNK = 192, /* tokens: keys of a forward pass, queries of a backward one; one reference */
    KEYS = 96    /* keys of a backward pass */
};
_Static_assert(CHUNK % KEYS == 0 && KEYS % NR == 0 && KEYS % MR == 0, "blocks are whole panels");

typedef struct Head {
    int T, HD, DK;
    int from;              /* first row that is wanted, fwd */
    ptrdiff_t ld;          /* floats from token to token in q, k, v and their gradients */
    ptrdiff_t ldo;         /* in out, dout, sums */
    const float *q, *k;    /* (T, DK): the channels that make the scores */
    const float *v;        /* (T, HD) */
    float *out;            /* (T, HD), fwd */
    const float *o, *dout; /* (T, HD), bwd: out of fwd, and its gradient */
    float *dq, *dk;        /* (T, DK), bwd */
    float *dv;             /* (T, HD), bwd */
    bool add_dv;           /* dv += */
    float *lse;            /* (T) */
    float *sums;           /* (T, HD), LASER: L = softmax(scores) E; 0 marks an exact element */
    float scale, softcap;
} Head;

/* A block of memory handed out piece by piece; with base NULL it only counts. */
typedef struct Carve {
    char *base;
    size_t used;
} Carve;
void *carve(Carve *c, size_t bytes);

/* Bytes of scratch that one thread needs. */
size_t cpu_attention_scratch_bytes(const BackendLimits *limits);

void attention_head_fwd(const Head *h, Carve *scratch);
void attention_head_bwd(const Head *h, Carve *scratch);
void attention_carve_fwd(Carve *c, int T, int HD);
void attention_carve_bwd(Carve *c, int T, int HD);

/* dst (j, i) = src (i, j) for i < rows, j < columns: columns of a panel become rows of a tensor. */
void attention_store_transposed(
    float *dst, ptrdiff_t ldd, const float *src, ptrdiff_t lds, int rows, int columns);

/* Asks for the lines of rows that will be written when a block is done: their latency hides behind
 * it. */
void attention_prefetch_rows(float *dst, ptrdiff_t ld, int rows, int columns);

/* ---- LASER ---- */

#define LASER_JUMP 20.0f               /* e^20: as far as a value may rise above its reference */
#define LASER_SMALLEST 8.67361738e-19f /* 2^-60: below this L may have lost terms that matter */

typedef struct LaserRefs {
    float *first; /* (chunks, HD) running maximum of V up to the chunk's first token */
    float *past;  /* (chunks, HD) what later chunks use: first, or the maximum up to the last token
                     in channels that jump inside the chunk */
    int *jump;    /* (chunks, HD) first token above first + LASER_JUMP; INT_MAX: none */
    bool *jumps;  /* (chunks) any */
} LaserRefs;

void laser_carve_refs(Carve *c, LaserRefs *r, int T, int HD);
void laser_find_refs(const Head *h, LaserRefs *r);
/* dst (n, HD) = exp(V - ref) for tokens j0.., 0 above the jump: finite always */
void laser_exp_values(const Head *h, float *dst, int j0, int n, const float *ref);
/* dst = exp(from - to), at most 1 as from <= to */
void laser_ref_factors(float *dst, const float *from, const float *to, int HD);

/* Rows with exact elements (sums == 0), in double from q, k, v. */
void laser_exact_fwd(const Head *h, int i, double *scores /* (T), workspace */);
/* adds to dq, dk, dv */
void laser_exact_bwd(const Head *h, int i, double *scores /* (2, T), workspace */);
bool laser_row_is_exact(const Head *h, int i);

#endif
