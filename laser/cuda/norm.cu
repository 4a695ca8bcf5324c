/* cuda/norm.cu: LayerNorm and the residual addition before it. A row is read once: it stays in
 * registers, or in shared memory where it is wide, while its mean, then its variance around the
 * mean, then its output are computed. The gradients of scale and bias are summed over ranges of
 * rows, then over the ranges, in an order that the shape decides. Knows nothing of the model. */
#include "laser/cuda/backend.cuh"

enum {
    WARPS = 8,
    THREADS = WARPS * WARP,
    ROWS = 4,           /* of the backward pass: rows that a team works at together */
    TEAM_THREADS = 512, /* largest team */
    LEAST_ROWS = 16     /* of a cut */
};

/* ---- forward --------------------------------------------------------------------------------- */

typedef struct NormRows {
    act_t *x, *out;            /* (N, C); x may be x_in, and is not written without delta */
    const act_t *x_in, *delta; /* (N, C); delta may be NULL */
} NormRows;

template <int VEC>
__device__ static inline void norm_out(
    act_t *out, const float *x, const NormArgs &a, int c, float mean, float rstd) {
    float w[VEC], b[VEC], y[VEC];
    load_vec<VEC>(w, a.w + c);
    load_vec<VEC>(b, a.b + c);
#pragma unroll
    for (int i = 0; i < VEC; i++) y[i] = (x[i] - mean) * rstd * w[i] + b[i];
    store_vec<VEC>(out + c, y);
}

/* A warp takes a row of at most WARP * STEPS * VEC channels. The norm is of x as it is stored.
 * Bytes per element: an act_t of x_in, delta, x and out each; w and b come from the cache. */
template <int VEC, int STEPS> __global__ static void norm_fwd_kernel(NormRows r, NormArgs a) {
    const int lane = threadIdx.x % WARP, n = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (n >= a.N) return;
    const int64_t row = (int64_t)n * a.C;
    float x[STEPS][VEC] = {};
    /* all loads before the first store: x may be x_in, so the compiler may not move them */
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int c = (s * WARP + lane) * VEC;
        if (c < a.C) load_vec<VEC>(x[s], r.x_in + row + c);
    }
    if (r.delta) {
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            const int c = (s * WARP + lane) * VEC;
            float d[VEC] = {};
            if (c < a.C) load_vec<VEC>(d, r.delta + row + c);
#pragma unroll
            for (int i = 0; i < VEC; i++) x[s][i] = rounded(x[s][i] + d[i]);
        }
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            const int c = (s * WARP + lane) * VEC;
            if (c < a.C) store_vec<VEC>(r.x + row + c, x[s]);
        }
    }
    float sum = 0, squares = 0;
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int i = 0; i < VEC; i++) sum += x[s][i];
    const float mean = warp_sum(sum) / (float)a.C;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        if ((s * WARP + lane) * VEC >= a.C) continue;
#pragma unroll
        for (int i = 0; i < VEC; i++) squares += (x[s][i] - mean) * (x[s][i] - mean);
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / (float)a.C + a.eps);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int c = (s * WARP + lane) * VEC;
        if (c < a.C) norm_out<VEC>(r.out + row, x[s], a, c, mean, rstd);
    }
    if (lane == 0) a.mean[n] = mean, a.rstd[n] = rstd;
}

/* The same, a block for a row of any width; each thread reads back what it has put into shared
 * memory itself. */
template <int VEC> __global__ static void norm_fwd_wide_kernel(NormRows r, NormArgs a) {
    DYN_SMEM(float, held); /* (C) */
    SHARED_ARRAY(float, shared, WARP);
    const int n = blockIdx.x, first = threadIdx.x * VEC;
    const int64_t row = (int64_t)n * a.C;
    float sum = 0, squares = 0;
#pragma unroll 2
    for (int c = first; c < a.C; c += THREADS * VEC) {
        float x[VEC], d[VEC];
        load_vec<VEC>(x, r.x_in + row + c);
        if (r.delta) {
            load_vec<VEC>(d, r.delta + row + c);
#pragma unroll
            for (int i = 0; i < VEC; i++) x[i] = rounded(x[i] + d[i]);
            store_vec<VEC>(r.x + row + c, x);
        }
        store_vec<VEC>(held + c, x);
#pragma unroll
        for (int i = 0; i < VEC; i++) sum += x[i];
    }
    const float mean = block_sum(sum, shared) / (float)a.C;
    for (int c = first; c < a.C; c += THREADS * VEC) {
        float x[VEC];
        load_vec<VEC>(x, held + c);
#pragma unroll
        for (int i = 0; i < VEC; i++) squares += (x[i] - mean) * (x[i] - mean);
    }
    const float rstd = 1.0f / sqrtf(block_sum(squares, shared) / (float)a.C + a.eps);
    for (int c = first; c < a.C; c += THREADS * VEC) {
        float x[VEC];
        load_vec<VEC>(x, held + c);
        norm_out<VEC>(r.out + row, x, a, c, mean, rstd);
    }
    if (threadIdx.x == 0) a.mean[n] = mean, a.rstd[n] = rstd;
}

template <int VEC> static void launch_fwd(Backend *be, const NormRows &r, const NormArgs &a) {
    const int blocks = ceil_div(a.N, WARPS);
    if (a.C <= 4 * WARP * VEC)
        LAUNCH((norm_fwd_kernel<VEC, 4>), blocks, THREADS, 0, be->stream, r, a);
    else if (a.C <= 8 * WARP * VEC)
        LAUNCH((norm_fwd_kernel<VEC, 8>), blocks, THREADS, 0, be->stream, r, a);
    else
        LAUNCH(
            norm_fwd_wide_kernel<VEC>, a.N, THREADS, (size_t)a.C * sizeof(float), be->stream, r, a);
}

static void check_shape(const Backend *be, const NormArgs *a) {
    require_scratch(be);
    REQUIRE(a->N > 0 && a->C > 0 && a->C <= be->limits.C, "N=%d C=%d, reserved C %d", a->N, a->C,
        be->limits.C);
    REQUIRE(2 * (size_t)a->C * sizeof(float) + 1024 <= be->smem_optin,
        "C=%d: a block of this device has %zu bytes of shared memory", a->C, be->smem_optin);
}

void op_residual_norm_fwd(
    Backend *be, act_t *x, act_t *out, const act_t *x_in, const act_t *delta, const NormArgs *a) {
    check_shape(be, a);
    const NormRows r = {x, out, x_in, delta};
    if (rows_aligned(a->C, sizeof(act_t), delta ? x : NULL, out, x_in, delta) &&
        rows_aligned(a->C, sizeof(act_t), a->w, a->b))
        launch_fwd<ACT_VEC>(be, r, *a);
    else
        launch_fwd<1>(be, r, *a);
}

/* ---- backward -------------------------------------------------------------------------------- */

typedef struct NormGrads {
    act_t *dx;             /* (N, C) += */
    const act_t *dout, *x; /* (N, C) */
    float *partial;        /* (cuts, 2, C) of dw, db */
    int cut_rows;
} NormGrads;

/* VEC elements as they lie in memory: as floats, or one by one, they would take more registers. */
template <int VEC> using Held = Pack<uint32_t, (VEC * (int)sizeof(act_t) + 3) / 4>;
template <int VEC> __device__ static inline Held<VEC> hold(const act_t *p) {
    if constexpr (VEC == 1 && BF16) return {__float_as_uint(to_float(*p)) >> 16};
    return *reinterpret_cast<const Held<VEC> *>(p);
}
template <int VEC> __device__ static inline float held_float(const Held<VEC> &h, int i) {
    if constexpr (!BF16) return __uint_as_float(h.e[i]);
    return __uint_as_float(i % 2 ? h.e[i / 2] & 0xffff0000u : h.e[i / 2] << 16);
}

/* A block takes a cut of the rows; its teams (threadIdx.y) take turns at ROWS of them, VEC channels
 * a thread. With g = dout * w and xhat the normalised x,
 *   dx += (g - mean(g) - xhat mean(g xhat)) * rstd,  dw += dout xhat,  db += dout.
 * Bytes per element: an act_t of dout and x, dx read and written. */
template <int VEC>
__global__ static void __launch_bounds__(TEAM_THREADS) norm_bwd_kernel(NormGrads r, NormArgs a) {
    const int teams = blockDim.y, team = threadIdx.y, lane = threadIdx.x % WARP;
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP;
    const int c = threadIdx.x * VEC, from = blockIdx.x * r.cut_rows,
              to = min(a.N, from + r.cut_rows);
    const bool inside = c < a.C;
    float w[VEC] = {}, dw[VEC] = {}, db[VEC] = {};
    if (inside) load_vec<VEC>(w, a.w + c);
    /* two of them take turns, so that one barrier is enough */
    SHARED_ARRAY(float, sums, 2 * TEAM_THREADS / WARP * 2 * ROWS);
    int turn = 0;
    for (int base = from; base < to; base += ROWS * teams, turn = !turn) {
        Held<VEC> g[ROWS] = {}, x[ROWS] = {}, dx[ROWS] = {};
        float mean[ROWS], rstd[ROWS], part[2 * ROWS] = {}; /* of g, of g (x - mean) */
        const int first = base + team * ROWS;
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            const int64_t at = (int64_t)(first + k) * a.C + c;
            const bool live = first + k < to;
            mean[k] = live ? a.mean[first + k] : 0.0f;
            rstd[k] = live ? a.rstd[first + k] : 0.0f;
            if (!live || !inside) continue;
            g[k] = hold<VEC>(r.dout + at);
            x[k] = hold<VEC>(r.x + at);
            dx[k] = hold<VEC>(r.dx + at);
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++)
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                const float gw = held_float<VEC>(g[k], i) * w[i];
                part[k] += gw;
                part[ROWS + k] += gw * (held_float<VEC>(x[k], i) - mean[k]);
            }
        float *own = sums + (turn * teams + team) * warps * 2 * ROWS; /* (warps, 2 * ROWS) */
#pragma unroll
        for (int k = 0; k < 2 * ROWS; k++) part[k] = warp_sum(part[k]);
        if (lane == 0) store_vec<2 * ROWS>(own + warp * 2 * ROWS, part);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 2 * ROWS; k++) part[k] = 0;
#pragma unroll 1
        for (int v = 0; v < warps; v++) {
            float other[2 * ROWS];
            load_vec<2 * ROWS>(other, own + v * 2 * ROWS);
#pragma unroll
            for (int k = 0; k < 2 * ROWS; k++) part[k] += other[k];
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            if (!inside || first + k >= to) continue;
            const float g_mean = part[k] / (float)a.C;
            const float gx_mean = part[ROWS + k] * rstd[k] / (float)a.C;
            float sum[VEC];
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                const float go = held_float<VEC>(g[k], i),
                            xhat = (held_float<VEC>(x[k], i) - mean[k]) * rstd[k];
                sum[i] =
                    held_float<VEC>(dx[k], i) + (go * w[i] - g_mean - xhat * gx_mean) * rstd[k];
                dw[i] += go * xhat;
                db[i] += go;
            }
            store_vec<VEC>(r.dx + (int64_t)(first + k) * a.C + c, sum);
        }
    }
    DYN_SMEM(float, held); /* (teams, 2, channels of a team) */
    const int wide = blockDim.x * VEC;
    store_vec<VEC>(held + 2 * team * wide + c, dw);
    store_vec<VEC>(held + (2 * team + 1) * wide + c, db);
    __syncthreads();
    float *to_cut = r.partial + (int64_t)blockIdx.x * 2 * a.C;
    for (int j = team * blockDim.x + threadIdx.x; j < 2 * a.C; j += teams * blockDim.x) {
        const int which = j >= a.C, at = j - which * a.C;
        float total = 0;
        for (int t = 0; t < teams; t++) total += held[(2 * t + which) * wide + at];
        to_cut[j] = total;
    }
}

/* The same for rows of any width, a block to a row; a row is read twice, the second time mostly
 * from the cache. */
template <int VEC>
__global__ static void __launch_bounds__(TEAM_THREADS)
    norm_bwd_wide_kernel(NormGrads r, NormArgs a) {
    DYN_SMEM(float, held); /* (2, C) dw, db; each thread has its own channels */
    SHARED_ARRAY(float, shared, WARP);
    const int first = threadIdx.x * VEC, step = TEAM_THREADS * VEC;
    const int from = blockIdx.x * r.cut_rows, to = min(a.N, from + r.cut_rows);
    for (int c = first; c < a.C; c += step)
#pragma unroll
        for (int i = 0; i < VEC; i++) held[c + i] = held[a.C + c + i] = 0;
    for (int n = from; n < to; n++) {
        const int64_t row = (int64_t)n * a.C;
        const float mean = a.mean[n], rstd = a.rstd[n];
        float sum = 0, sum_x = 0;
        for (int c = first; c < a.C; c += step) {
            float g[VEC], x[VEC], w[VEC];
            load_vec<VEC>(g, r.dout + row + c);
            load_vec<VEC>(x, r.x + row + c);
            load_vec<VEC>(w, a.w + c);
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                sum += g[i] * w[i];
                sum_x += g[i] * w[i] * (x[i] - mean);
            }
        }
        const float g_mean = block_sum(sum, shared) / (float)a.C;
        const float gx_mean = block_sum(sum_x, shared) * rstd / (float)a.C;
        for (int c = first; c < a.C; c += step) {
            float g[VEC], x[VEC], w[VEC], dx[VEC];
            load_vec<VEC>(g, r.dout + row + c);
            load_vec<VEC>(x, r.x + row + c);
            load_vec<VEC>(w, a.w + c);
            load_vec<VEC>(dx, r.dx + row + c);
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                const float xhat = (x[i] - mean) * rstd;
                dx[i] += (g[i] * w[i] - g_mean - xhat * gx_mean) * rstd;
                held[c + i] += g[i] * xhat;
                held[a.C + c + i] += g[i];
            }
            store_vec<VEC>(r.dx + row + c, dx);
        }
    }
    float *to_cut = r.partial + (int64_t)blockIdx.x * 2 * a.C;
    for (int c = first; c < a.C; c += step)
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            to_cut[c + i] = held[c + i];
            to_cut[a.C + c + i] = held[a.C + c + i];
        }
}

/* dw, db = beta * old + sum of the cuts. A block takes WARP columns of both. */
__global__ static void norm_total_kernel(
    float *dw, float *db, float beta, const float *partial, int cuts, int C) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int column = blockIdx.x * WARP + lane;
    float sum = 0;
    if (column < 2 * C) {
#pragma unroll 8
        for (int cut = warp; cut < cuts; cut += WARPS)
            sum += partial[(int64_t)cut * 2 * C + column];
    }
    SHARED_ARRAY(float, sums, THREADS);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0 || column >= 2 * C) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += sums[w * WARP + lane];
    float *to = column < C ? &dw[column] : &db[column - C];
    *to = beta == 0.0f ? total : fmaf(beta, *to, total);
}

template <int VEC>
static void launch_bwd(Backend *be, const NormGrads &r, const NormArgs &a, int cuts) {
    const int threads = ceil_div(a.C, WARP * VEC) * WARP; /* of a team */
    if (threads > TEAM_THREADS) {
        LAUNCH(norm_bwd_wide_kernel<VEC>, cuts, TEAM_THREADS, 2 * (size_t)a.C * sizeof(float),
            be->stream, r, a);
        return;
    }
    const int teams = threads >= THREADS ? 1 : THREADS / threads;
    const size_t smem = 2 * (size_t)(teams * threads * VEC) * sizeof(float);
    LAUNCH(norm_bwd_kernel<VEC>, cuts, dim3(threads, teams), smem, be->stream, r, a);
}

void op_norm_bwd(Backend *be, act_t *dx, float *dw, float *db, float beta, const act_t *dout,
    const act_t *x, const NormArgs *a) {
    check_shape(be, a);
    const int even = ceil_div(a->N, NORM_CUTS), rows = even < LEAST_ROWS ? LEAST_ROWS : even;
    const int cuts = ceil_div(a->N, rows);
    const NormGrads r = {dx, dout, x, be->partials, rows};
    if (rows_aligned(a->C, sizeof(act_t), dx, dout, x, a->w))
        launch_bwd<ACT_VEC>(be, r, *a, cuts);
    else
        launch_bwd<1>(be, r, *a, cuts);
    LAUNCH(norm_total_kernel, ceil_div(2 * (int64_t)a->C, WARP), THREADS, 0, be->stream, dw, db,
        beta, (const float *)be->partials, cuts, a->C);
}
