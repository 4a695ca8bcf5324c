/* cuda/laser.cuh: what stands before and after an attention core: copies between layouts, and
 * LASER's values, logarithm, gradients and exact path. Knows no core. Private to laser/cuda.
 *
 * With m and kappa per (sequence, head, channel), E = exp(V - m), F = E - kappa:
 *   O = softmax(scores) F by a core,  L = kappa + O,  out = log L + m,
 *   dO = dout / L,  dF by the core,  dV = dF * E.
 * bf16: m = max V over the sequence, kappa = exp(mean V - m) where max V - min V < LASER_CENTRED,
 * else 0. fp32: m = V of the first token, which every row sees, and kappa = 0, so that no bit of a
 * row depends on a later token.
 * An element (row, channel) is exact, computed by log-sum-exp apart from the core, where L is below
 * LASER_SMALLEST (its terms may have been lost) or, in fp32, from the first token on whose V lies
 * more than LASER_JUMP above m. The core's part of its gradient is 0. */
#ifndef LASER_CUDA_LASER_CUH
#define LASER_CUDA_LASER_CUH

#include "laser/cuda/attention.cuh"

#define LASER_CENTRED 8.0f
#define LASER_JUMP 20.0f               /* e^20: as far as a value may rise above m */
#define LASER_SMALLEST 8.67361738e-19f /* 2^-60 */

/* A tensor with one row of channels per (sequence b, head h, token t):
 * element c of it at base[b * seq + h * head + t * tok + c - origin]. */
template <typename E> struct View {
    E *base;
    int64_t seq, head, tok, origin;
};

template <typename E>
__device__ static inline E *view_row(const View<E> &v, int pair, int H, int t) {
    return v.base + ((pair / H) * v.seq + (pair % H) * v.head + t * v.tok - v.origin);
}

/* Rows (pair, t) for pairs first .. first + pairs of b * H + h and tokens t0 .. t0 + rows. */
typedef struct Rows {
    int first, pairs, H, t0, rows;
    int HD, HDp; /* channels; the same padded: a copy writes zeros there, where it is larger */
} Rows;

template <typename E>
static inline View<E> dense_view(E *base, int T, int H, int HD) { /* (B, T, H, HD) */
    return View<E>{base, (int64_t)T * H * HD, HD, (int64_t)H * HD, 0};
}
template <typename E>
static inline View<E> qkv_view(E *base, int which, int T, int H, int HD) { /* (B, T, 3, H, HD) */
    const int64_t W = (int64_t)H * HD;
    return View<E>{base + which * W, T * 3 * W, HD, 3 * W, 0};
}
/* (pairs, rows, HDp): the rows of some pairs, packed */
template <typename E> static inline View<E> packed_view(E *base, const Rows *r) {
    const int64_t size = (int64_t)r->rows * r->HDp;
    return View<E>{base, size * r->H, size, r->HDp, size * r->first + (int64_t)r->t0 * r->HDp};
}

/* What LASER's backward needs of the forward, in AttentionArgs.laser. */
typedef struct LaserSaved {
    float *m, *kappa; /* (B, H, HD) */
    int *jump;        /* (B, H, HD) first token that is exact whatever L is; INT_MAX: none */
    act_t *o;         /* (B, T, H, HD) the core's output, rounded */
} LaserSaved;
LaserSaved laser_saved(float *block, int B, int T, int H, int HD);

/* dst = src, row by row; HDp > HD: zeros behind. */
template <typename D, typename S>
void copy_rows(Backend *be, View<D> dst, View<S> src, const Rows *r);
template <typename D, typename S> /* dst += src, as long as HDp is HD */
void add_rows(Backend *be, View<D> dst, View<S> src, const Rows *r);

/* m, kappa, jump of the pairs, and F; r covers whole sequences. */
void laser_values(Backend *be, View<act_t> f, View<const act_t> v, LaserSaved s, const Rows *r);
/* F again, from m and kappa that are there. */
void laser_values_again(
    Backend *be, View<act_t> f, View<const act_t> v, LaserSaved s, const Rows *r);
/* out = log(kappa + O) + m, saved.o = O rounded; exact[pair * T + t] = whether the row has exact
 * elements, whose out is not written. standard: out = O. O may be the same memory as saved.o. */
template <typename E>
void attention_post(
    Backend *be, View<act_t> out, View<const E> o, LaserSaved s, int *exact, int T, const Rows *r);
/* LASER: dO = dout / L, 0 where exact; standard: dO = dout (not written when dO.base is NULL).
 * D[pair * T + t] = sum over channels of dO * O, where D is not NULL. out: standard's O. */
void attention_dout(Backend *be, View<act_t> dO, float *D, int *exact, View<const act_t> dout,
    View<const act_t> out, LaserSaved s, int T, const Rows *r);
/* dv = df * (F + kappa), or dv += that; df and dv may be the same memory where nothing is added. */
template <typename E>
void laser_dv(Backend *be, View<act_t> dv, View<const E> df, View<const act_t> f, LaserSaved s,
    bool add, const Rows *r);

/* The exact path (laser_exact.cu). work: laser_exact_bytes(T, HD). */
size_t laser_exact_bytes(int T, int HD);
void laser_exact_fwd(Backend *be, act_t *out, const act_t *qkv, const int *exact, char *work,
    LaserSaved s, const AttentionArgs *a);
/* dqkv += the gradients of exact elements */
typedef struct ExactBwd {
    act_t *dqkv;
    const act_t *dout, *qkv;
    const int *exact;
    char *work;
} ExactBwd;
void laser_exact_bwd(Backend *be, const ExactBwd *x, LaserSaved s, const AttentionArgs *a);

__device__ static inline bool laser_is_exact(float kappa, float o_rounded, int jump, int t) {
    return t >= jump || !(kappa + o_rounded >= LASER_SMALLEST);
}

/* ---- the gemm core (attention_gemm.cu) ---- */

/* Pairs and rows of scores that are held at once, within a budget. */
typedef struct GemmCorePlan {
    int pairs, rows; /* (b, h) pairs of a chunk; rows of a strip: T, or a multiple of 256 */
    size_t bytes;    /* of its memory */
} GemmCorePlan;
GemmCorePlan gemm_core_plan(int B, int T, int H, int HD, size_t budget);

typedef struct GemmCoreArgs {
    const AttentionArgs *a;
    GemmCorePlan plan;
    char *work; /* plan.bytes */
    LaserSaved saved;
    int *exact; /* (B, H, T) */
    float *D;   /* (B, H, T) */
} GemmCoreArgs;
void gemm_core_fwd(Backend *be, act_t *out, const act_t *qkv, const GemmCoreArgs *x);
void gemm_core_bwd(Backend *be, act_t *dqkv, const act_t *dout, const act_t *qkv, const act_t *out,
    const GemmCoreArgs *x);

#endif
