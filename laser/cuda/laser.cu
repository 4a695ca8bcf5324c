/* cuda/laser.cu: what stands before and after an attention core, see laser.cuh. Memory-bound: every
 * kernel passes over its tensors once, 16 bytes at a time where head sizes allow. Knows no core. */
#include "laser/cuda/laser.cuh"

#include <limits.h>

LaserSaved laser_saved(float *block, int B, int T, int H, int HD) {
    const size_t n = (size_t)B * (size_t)H * (size_t)HD;
    (void)T;
    return LaserSaved{block, block + n, (int *)(block + 2 * n), (act_t *)(block + 3 * n)};
}

/* ---- rows and the threads that share them ---- */

enum { THREADS = 256 };

/* lanes (a power of two, at most a warp) that walk over one row of `vectors`. */
static int row_lanes(int vectors) {
    int lanes = 1;
    while (lanes < vectors && lanes < WARP) lanes *= 2;
    return lanes;
}

/* Row of this thread, or -1 behind the last. */
__device__ static inline int64_t my_row(const Rows &r, int lanes) {
    const int64_t row = (int64_t)blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes;
    return row < (int64_t)r.pairs * r.rows ? row : -1;
}

static int row_blocks(const Rows *r, int lanes) {
    return ceil_div((int64_t)r->pairs * r->rows, THREADS / lanes);
}

template <typename E> static bool view_aligned(const View<E> &v) {
    const int64_t strides = v.seq | v.head | v.tok | v.origin;
    return (uintptr_t)v.base % (sizeof(E) * ACT_VEC) == 0 && strides % ACT_VEC == 0;
}

/* ---- copies ---- */

template <int VEC, bool ADD, typename D, typename S>
__global__ static void copy_rows_kernel(View<D> dst, View<S> src, Rows r, int lanes) {
    const int64_t row = my_row(r, lanes);
    if (row < 0) return;
    const int pair = r.first + (int)(row / r.rows), t = r.t0 + (int)(row % r.rows);
    const S *from = view_row(src, pair, r.H, t);
    D *to = view_row(dst, pair, r.H, t);
    for (int c = (threadIdx.x % lanes) * VEC; c < r.HDp; c += lanes * VEC) {
        float x[VEC] = {}, old[VEC] = {};
        if (c < r.HD) load_vec<VEC>(x, from + c);
        if (ADD) {
            load_vec<VEC>(old, to + c);
#pragma unroll
            for (int i = 0; i < VEC; i++) x[i] += old[i];
        }
        store_vec<VEC>(to + c, x);
    }
}

template <bool ADD, typename D, typename S>
static void launch_copy(Backend *be, View<D> dst, View<S> src, const Rows *r) {
    if (r->HD % ACT_VEC == 0 && view_aligned(dst) && view_aligned(src)) {
        const int lanes = row_lanes(r->HDp / ACT_VEC);
        LAUNCH((copy_rows_kernel<ACT_VEC, ADD, D, S>), row_blocks(r, lanes), THREADS, 0, be->stream,
            dst, src, *r, lanes);
    } else {
        const int lanes = row_lanes(r->HDp);
        LAUNCH((copy_rows_kernel<1, ADD, D, S>), row_blocks(r, lanes), THREADS, 0, be->stream, dst,
            src, *r, lanes);
    }
}

template <typename D, typename S>
void copy_rows(Backend *be, View<D> dst, View<S> src, const Rows *r) {
    launch_copy<false>(be, dst, src, r);
}
template <typename D, typename S>
void add_rows(Backend *be, View<D> dst, View<S> src, const Rows *r) {
    REQUIRE(r->HDp == r->HD, "rows of %d, padded to %d", r->HD, r->HDp);
    launch_copy<true>(be, dst, src, r);
}
template void copy_rows(Backend *, View<act_t>, View<const act_t>, const Rows *);
template void add_rows(Backend *, View<act_t>, View<const act_t>, const Rows *);
#ifdef LASER_BF16
template void copy_rows(Backend *, View<act_t>, View<const float>, const Rows *);
template void add_rows(Backend *, View<act_t>, View<const float>, const Rows *);
#endif

/* ---- values ---- */

enum { GROUP = 32 }; /* channels of a block */

typedef struct ValuesStats { /* of VEC channels, over the rows of one thread */
    float high, low, sum;
    int jump;
} ValuesStats;

__device__ static inline ValuesStats stats_joined(ValuesStats a, ValuesStats b) {
    return ValuesStats{fmaxf(a.high, b.high), fminf(a.low, b.low), a.sum + b.sum,
        a.jump < b.jump ? a.jump : b.jump};
}

__device__ static inline ValuesStats stats_from_lane(ValuesStats s, int distance) {
    return ValuesStats{__shfl_xor_sync(0xffffffffu, s.high, distance),
        __shfl_xor_sync(0xffffffffu, s.low, distance),
        __shfl_xor_sync(0xffffffffu, s.sum, distance),
        __shfl_xor_sync(0xffffffffu, s.jump, distance)};
}

__device__ static inline float value_to_f(float x, float m, float kappa) {
    return x - m > LASER_JUMP ? 0.0f : expf(x - m) - kappa;
}

/* A block per (pair, GROUP channels). Reads V once, into shared memory where the whole sequence
 * fits (HOLD), and writes F: 4 bytes an element in bf16, as a copy would. */
template <int VEC, bool HOLD>
__global__ static void laser_values_kernel(
    View<act_t> f, View<const act_t> v, LaserSaved s, Rows r) {
    constexpr int ACROSS = GROUP / VEC, DOWN = THREADS / ACROSS, WARPS = THREADS / WARP;
    DYN_SMEM(act_t, held);
    SHARED_ARRAY(ValuesStats, partial, WARPS * GROUP);
    SHARED_ARRAY(float, reference, 2 * GROUP);
    const int pair = r.first + blockIdx.y, first = blockIdx.x * GROUP;
    const int tx = threadIdx.x % ACROSS, ty = threadIdx.x / ACROSS, c = first + tx * VEC;
    const bool inside = c < r.HD;
    float v0[VEC] = {};
    ValuesStats stats[VEC];
    if (!BF16 && inside) load_vec<VEC>(v0, view_row(v, pair, r.H, 0) + c);
#pragma unroll
    for (int i = 0; i < VEC; i++) stats[i] = ValuesStats{-INFINITY, INFINITY, 0, INT_MAX};
    for (int t = ty; t < r.rows; t += DOWN) {
        float x[VEC] = {};
        if (inside) load_vec<VEC>(x, view_row(v, pair, r.H, t) + c);
        if (HOLD) store_vec<VEC>(held + t * GROUP + tx * VEC, x);
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            const int jump = !BF16 && x[i] - v0[i] > LASER_JUMP ? t : INT_MAX;
            stats[i] = stats_joined(stats[i], ValuesStats{x[i], x[i], x[i], jump});
        }
    }
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        for (int d = ACROSS; d < WARP; d *= 2)
            stats[i] = stats_joined(stats[i], stats_from_lane(stats[i], d));
        if (threadIdx.x % WARP < ACROSS)
            partial[threadIdx.x / WARP * GROUP + tx * VEC + i] = stats[i];
    }
    __syncthreads();
    if (threadIdx.x < GROUP && first + (int)threadIdx.x < r.HD) {
        const int channel = threadIdx.x;
        const int64_t at = (int64_t)pair * r.HD + first + channel;
        ValuesStats all = partial[channel];
        for (int w = 1; w < WARPS; w++) all = stats_joined(all, partial[w * GROUP + channel]);
        const bool centred = BF16 && all.high - all.low < LASER_CENTRED;
        const float m = BF16 ? all.high : to_float(view_row(v, pair, r.H, 0)[first + channel]);
        const float kappa = centred ? expf(all.sum / (float)r.rows - m) : 0.0f;
        s.m[at] = reference[channel] = m;
        s.kappa[at] = reference[GROUP + channel] = kappa;
        s.jump[at] = all.jump;
    }
    __syncthreads();
    if (c >= r.HDp) return;
    for (int t = ty; t < r.rows; t += DOWN) {
        float x[VEC] = {};
        if (inside) {
            if (HOLD)
                load_vec<VEC>(x, held + t * GROUP + tx * VEC);
            else
                load_vec<VEC>(x, view_row(v, pair, r.H, t) + c);
#pragma unroll
            for (int i = 0; i < VEC; i++)
                x[i] = value_to_f(x[i], reference[tx * VEC + i], reference[GROUP + tx * VEC + i]);
        }
        store_vec<VEC>(view_row(f, pair, r.H, t) + c, x);
    }
}

template <int VEC>
static void launch_values(
    Backend *be, View<act_t> f, View<const act_t> v, LaserSaved s, const Rows *r) {
    const dim3 grid(ceil_div(r->HDp, GROUP), r->pairs);
    const size_t bytes = (size_t)r->rows * GROUP * sizeof(act_t);
    const size_t fixed = (size_t)THREADS / WARP * GROUP * sizeof(ValuesStats) + 1024;
    if (bytes + fixed <= be->smem_optin)
        LAUNCH((laser_values_kernel<VEC, true>), grid, THREADS, bytes, be->stream, f, v, s, *r);
    else
        LAUNCH((laser_values_kernel<VEC, false>), grid, THREADS, 0, be->stream, f, v, s, *r);
}

void laser_values(Backend *be, View<act_t> f, View<const act_t> v, LaserSaved s, const Rows *r) {
    if (r->HD % ACT_VEC == 0 && view_aligned(f) && view_aligned(v))
        launch_values<ACT_VEC>(be, f, v, s, r);
    else
        launch_values<1>(be, f, v, s, r);
}

/* 4 bytes an element in bf16. */
template <int VEC>
__global__ static void laser_values_again_kernel(
    View<act_t> f, View<const act_t> v, LaserSaved s, Rows r, int lanes) {
    const int64_t row = my_row(r, lanes);
    if (row < 0) return;
    const int pair = r.first + (int)(row / r.rows), t = r.t0 + (int)(row % r.rows);
    const act_t *from = view_row(v, pair, r.H, t);
    const int64_t at = (int64_t)pair * r.HD;
    act_t *to = view_row(f, pair, r.H, t);
    for (int c = (threadIdx.x % lanes) * VEC; c < r.HDp; c += lanes * VEC) {
        float x[VEC] = {};
        if (c < r.HD) {
            load_vec<VEC>(x, from + c);
#pragma unroll
            for (int i = 0; i < VEC; i++)
                x[i] = value_to_f(x[i], s.m[at + c + i], s.kappa[at + c + i]);
        }
        store_vec<VEC>(to + c, x);
    }
}

void laser_values_again(
    Backend *be, View<act_t> f, View<const act_t> v, LaserSaved s, const Rows *r) {
    if (r->HD % ACT_VEC == 0 && view_aligned(f) && view_aligned(v)) {
        const int lanes = row_lanes(r->HDp / ACT_VEC);
        LAUNCH((laser_values_again_kernel<ACT_VEC>), row_blocks(r, lanes), THREADS, 0, be->stream,
            f, v, s, *r, lanes);
    } else {
        const int lanes = row_lanes(r->HDp);
        LAUNCH((laser_values_again_kernel<1>), row_blocks(r, lanes), THREADS, 0, be->stream, f, v,
            s, *r, lanes);
    }
}

/* ---- after the core ---- */

/* Any of the lanes that share a row; all threads of the warp call it. */
__device__ static inline bool row_any(bool x, int lanes) {
    int any = x;
    for (int d = lanes / 2; d > 0; d /= 2) any |= __shfl_xor_sync(0xffffffffu, any, d);
    return any != 0;
}

/* Reads O (4 bytes from the gemm core, 2 from cuDNN), writes out (2); LASER also O rounded (2). */
template <int VEC, typename E>
__global__ static void attention_post_kernel(View<act_t> out, View<const E> o, View<act_t> saved,
    LaserSaved s, int *exact, int T, Rows r, int lanes) {
    const int64_t row = my_row(r, lanes);
    const int pair = r.first + (int)(row / r.rows), t = r.t0 + (int)(row % r.rows);
    const int64_t at = (int64_t)pair * r.HD;
    const bool save = (const void *)o.base != (const void *)saved.base;
    bool any = false;
    for (int c = (threadIdx.x % lanes) * VEC; row >= 0 && c < r.HD; c += lanes * VEC) {
        float x[VEC];
        load_vec<VEC>(x, view_row(o, pair, r.H, t) + c);
        if (LASER) {
            if (save) store_vec<VEC>(view_row(saved, pair, r.H, t) + c, x);
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                const float kappa = s.kappa[at + c + i];
                any = any || laser_is_exact(kappa, rounded(x[i]), s.jump[at + c + i], t);
                x[i] = logf(kappa + x[i]) + s.m[at + c + i];
            }
        }
        store_vec<VEC>(view_row(out, pair, r.H, t) + c, x);
    }
    if (!LASER) return;
    any = row_any(any, lanes);
    if (row >= 0 && threadIdx.x % lanes == 0) exact[(int64_t)pair * T + t] = any;
}

template <typename E>
void attention_post(
    Backend *be, View<act_t> out, View<const E> o, LaserSaved s, int *exact, int T, const Rows *r) {
    const View<act_t> saved = dense_view(s.o, T, r->H, r->HD);
    const bool aligned = view_aligned(out) && view_aligned(o) && view_aligned(saved);
    if (r->HD % ACT_VEC == 0 && aligned) {
        const int lanes = row_lanes(r->HD / ACT_VEC);
        LAUNCH((attention_post_kernel<ACT_VEC, E>), row_blocks(r, lanes), THREADS, 0, be->stream,
            out, o, saved, s, exact, T, *r, lanes);
    } else {
        const int lanes = row_lanes(r->HD);
        LAUNCH((attention_post_kernel<1, E>), row_blocks(r, lanes), THREADS, 0, be->stream, out, o,
            saved, s, exact, T, *r, lanes);
    }
}
template void attention_post(
    Backend *, View<act_t>, View<const float>, LaserSaved, int *, int, const Rows *);
#ifdef LASER_BF16
template void attention_post(
    Backend *, View<act_t>, View<const act_t>, LaserSaved, int *, int, const Rows *);
#endif

/* ---- before the core's backward ---- */

/* Reads dout and O (2 + 2), writes dO (2): nothing that standard attention does not read or write.
 */
template <int VEC>
__global__ static void attention_dout_kernel(View<act_t> dO, float *D, int *exact,
    View<const act_t> dout, View<const act_t> o, LaserSaved s, int T, Rows r, int lanes) {
    const int64_t row = my_row(r, lanes);
    const int pair = r.first + (int)(row / r.rows), t = r.t0 + (int)(row % r.rows);
    const int64_t at = (int64_t)pair * r.HD;
    float sum = 0;
    bool any = false;
    for (int c = (threadIdx.x % lanes) * VEC; row >= 0 && c < r.HDp; c += lanes * VEC) {
        float g[VEC] = {}, x[VEC] = {};
        if (c < r.HD) {
            load_vec<VEC>(g, view_row(dout, pair, r.H, t) + c);
            load_vec<VEC>(x, view_row(o, pair, r.H, t) + c);
        }
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            if (LASER && c < r.HD) {
                const float kappa = s.kappa[at + c + i];
                const bool is = laser_is_exact(kappa, x[i], s.jump[at + c + i], t);
                any = any || is;
                g[i] = is ? 0.0f : g[i] / (kappa + x[i]);
                x[i] = is ? 0.0f : x[i];
            }
            sum += rounded(g[i]) * x[i];
        }
        if (dO.base) store_vec<VEC>(view_row(dO, pair, r.H, t) + c, g);
    }
    for (int d = lanes / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    any = row_any(any, lanes);
    if (row < 0 || threadIdx.x % lanes != 0) return;
    if (D) D[(int64_t)pair * T + t] = sum;
    if (LASER) exact[(int64_t)pair * T + t] = any;
}

void attention_dout(Backend *be, View<act_t> dO, float *D, int *exact, View<const act_t> dout,
    View<const act_t> out, LaserSaved s, int T, const Rows *r) {
    const View<const act_t> saved = dense_view((const act_t *)s.o, T, r->H, r->HD);
    const View<const act_t> o = LASER ? saved : out;
    if (r->HD % ACT_VEC == 0 && view_aligned(dO) && view_aligned(dout) && view_aligned(o)) {
        const int lanes = row_lanes(r->HDp / ACT_VEC);
        LAUNCH((attention_dout_kernel<ACT_VEC>), row_blocks(r, lanes), THREADS, 0, be->stream, dO,
            D, exact, dout, o, s, T, *r, lanes);
    } else {
        const int lanes = row_lanes(r->HDp);
        LAUNCH((attention_dout_kernel<1>), row_blocks(r, lanes), THREADS, 0, be->stream, dO, D,
            exact, dout, o, s, T, *r, lanes);
    }
}

/* ---- after the core's backward ---- */

/* Reads dF (2 or 4) and F (2), writes dV (2): 2 bytes more than a copy. With add it reads the old
 * dV (2). */
template <int VEC, typename E>
__global__ static void laser_dv_kernel(View<act_t> dv, View<const E> df, View<const act_t> f,
    LaserSaved s, bool add, Rows r, int lanes) {
    const int64_t row = my_row(r, lanes);
    if (row < 0) return;
    const int pair = r.first + (int)(row / r.rows), t = r.t0 + (int)(row % r.rows);
    const int64_t at = (int64_t)pair * r.HD;
    for (int c = (threadIdx.x % lanes) * VEC; c < r.HD; c += lanes * VEC) {
        float g[VEC], x[VEC], old[VEC] = {};
        act_t *to = view_row(dv, pair, r.H, t) + c;
        load_vec<VEC>(g, view_row(df, pair, r.H, t) + c);
        load_vec<VEC>(x, view_row(f, pair, r.H, t) + c);
        if (add) load_vec<VEC>(old, to);
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            g[i] *= x[i] + s.kappa[at + c + i];
            if (add) g[i] += old[i];
        }
        store_vec<VEC>(to, g);
    }
}

template <typename E>
void laser_dv(Backend *be, View<act_t> dv, View<const E> df, View<const act_t> f, LaserSaved s,
    bool add, const Rows *r) {
    if (r->HD % ACT_VEC == 0 && view_aligned(dv) && view_aligned(df) && view_aligned(f)) {
        const int lanes = row_lanes(r->HD / ACT_VEC);
        LAUNCH((laser_dv_kernel<ACT_VEC, E>), row_blocks(r, lanes), THREADS, 0, be->stream, dv, df,
            f, s, add, *r, lanes);
    } else {
        const int lanes = row_lanes(r->HD);
        LAUNCH((laser_dv_kernel<1, E>), row_blocks(r, lanes), THREADS, 0, be->stream, dv, df, f, s,
            add, *r, lanes);
    }
}
template void laser_dv(
    Backend *, View<act_t>, View<const act_t>, View<const act_t>, LaserSaved, bool, const Rows *);
#ifdef LASER_BF16
template void laser_dv(
    Backend *, View<act_t>, View<const float>, View<const act_t>, LaserSaved, bool, const Rows *);
#endif
