/* cuda/heads.cuh: operations on the heads of tokens, row by row: how threads share rows, and how
 * gradients of parameters are summed over all rows, those of a block first, then those sums, in an
 * order that the shape alone decides. Private to laser/cuda; knows no operation.
 *
 * A row is the HD channels of one head of one token. Some lanes of a warp share it, each with
 * channels of its own, and pass over it as often as they need: it comes from memory once, then from
 * the L1 cache, which holds what a block works at (16 bytes a thread and tensor, up to heads of 256
 * in bf16) many times over. */
#ifndef LASER_CUDA_HEADS_CUH
#define LASER_CUDA_HEADS_CUH

#include "laser/cuda/backend.cuh"

enum {
    HEAD_THREADS = 256,
    HEAD_CUTS = 512,           /* ranges of rows, a block each: an H100 runs all at a time */
    HEAD_LEAST_ROWS = 64,      /* of a cut */
    HEAD_SMEM = 96 * 1024,     /* bytes that a block may have on any device */
    HEAD_TOTAL_THREADS = 1024, /* of a block that sums the cuts */
};

typedef struct HeadRows {
    int rows, HD;
    int lanes, threads; /* that share a row, a power of two; of a block */
    int cut_rows, cuts;
} HeadRows;

/* vec: channels that a lane takes at a time; parts: tensors that are cut alike, at the same time. A
 * block has fewer threads where a sum for each channel of each of its rows would not fit. */
static inline HeadRows head_rows(int N, int H, int HD, int vec, int parts) {
    HeadRows r = {N * H, HD, 1, HEAD_THREADS, 0, 0};
    while (r.lanes * vec < HD && r.lanes < WARP) r.lanes *= 2;
    const int even = ceil_div(r.rows, HEAD_CUTS / parts);
    r.cut_rows = even < HEAD_LEAST_ROWS ? HEAD_LEAST_ROWS : even;
    r.cuts = ceil_div(r.rows, r.cut_rows);
    const size_t each = (size_t)HD * sizeof(float);
    while (r.threads > WARP && (size_t)(r.threads / r.lanes + 1) * each > HEAD_SMEM) r.threads /= 2;
    return r;
}

/* Bytes of `tables` that hold a number for each channel. */
static inline size_t head_table_bytes(const HeadRows &r, int tables) {
    return (size_t)tables * (size_t)r.HD * sizeof(float);
}
static inline int head_groups(const HeadRows &r) { /* rows that a block has at a time */
    return r.threads / r.lanes;
}

static_assert(HEAD_CUTS <= 3 * NORM_CUTS, "be->partials holds what all cuts leave behind");
/* Then be->partials, which has at least 6 NORM_CUTS floats for each channel of all heads, holds two
 * for each channel of a head and each cut. */
static inline void require_heads(const Backend *be, int N, int H, int HD) {
    const BackendLimits *l = &be->limits;
    require_scratch(be);
    REQUIRE(N > 0 && H > 0 && HD > 0 && (int64_t)N * H <= 1 << 30, "N=%d H=%d HD=%d", N, H, HD);
    REQUIRE(
        (int64_t)H * HD <= (int64_t)l->H * l->HD, "H=%d HD=%d, reserved %d %d", H, HD, l->H, l->HD);
    REQUIRE(2 * (size_t)HD * sizeof(float) <= HEAD_SMEM, "head size %d: at most %d", HD,
        HEAD_SMEM / 2 / (int)sizeof(float));
}

/* ---- threads --------------------------------------------------------------------------------- */

/* Where a thread stands in its block: group `group` of `groups` has a row, of which this lane has
 * the channels first, first + step ... and vec - 1 behind each. */
typedef struct HeadLane {
    int groups, group, first, step;
} HeadLane;

__device__ static inline HeadLane head_lane(const HeadRows &r, int vec) {
    const int thread = threadIdx.x;
    return HeadLane{
        (int)blockDim.x / r.lanes, thread / r.lanes, thread % r.lanes * vec, r.lanes * vec};
}

/* Over the lanes that share a row; all threads of the warp call it. */
__device__ static inline float lanes_sum(float x, int lanes) {
    for (int d = lanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

/* ---- sums over rows -------------------------------------------------------------------------- */

/* out (HD) = the sum of the block's tables (groups, HD), which other threads wrote. */
__device__ static inline void head_block_sums(
    float *out, const float *tables, int groups, const HeadRows &r) {
    __syncthreads();
    for (int c = threadIdx.x; c < r.HD; c += blockDim.x) {
        float sum = 0;
        for (int g = 0; g < groups; g++) sum += tables[g * r.HD + c];
        out[c] = sum;
    }
}

/* The sum of column blockIdx.x * WARP + lane over the cuts, for warp 0; 0 behind the last column.
 * All HEAD_TOTAL_THREADS threads of the block call it, once. */
__device__ static inline float head_total(
    const float *partial /* (cuts, columns) */, int cuts, int columns) {
    constexpr int WARPS = HEAD_TOTAL_THREADS / WARP;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int column = blockIdx.x * WARP + lane;
    SHARED_ARRAY(float, sums, HEAD_TOTAL_THREADS);
    float sum = 0;
    if (column < columns) {
#pragma unroll 4
        for (int cut = warp; cut < cuts; cut += WARPS)
            sum += partial[(int64_t)cut * columns + column];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0) return 0;
    float total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += sums[w * WARP + lane];
    return total;
}

/* A beta output, see backend.h. */
__device__ static inline void beta_store(float *to, float beta, float x) {
    *to = beta == 0.0f ? x : fmaf(beta, *to, x);
}

#endif
