/* cuda/reduce.cu: sums of the columns of a matrix, in two stages: ranges of rows, then the ranges.
 * How the rows are cut follows from their number alone, so the bits are the same on every device.
 * Knows nothing of what is summed. */
#include "laser/cuda/backend.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP, LEAST_ROWS = 64 };

/* partial[cut, j] = sum of the rows of a cut. A block takes WARP * VEC columns of one cut; its
 * warps take turns at the rows. */
template <int VEC, typename E>
__global__ static void column_cuts_kernel(
    float *partial /* (cuts, cols) */, const E *x, int rows, int cols, int64_t ld, int cut_rows) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, cut = blockIdx.y;
    const int first = blockIdx.x * WARP * VEC, column = first + lane * VEC;
    const int from = cut * cut_rows, to = min(rows, from + cut_rows);
    float sum[VEC] = {};
    if (column < cols) {
#pragma unroll 4
        for (int r = from + warp; r < to; r += WARPS) {
            float v[VEC];
            load_vec<VEC>(v, x + r * ld + column);
#pragma unroll
            for (int i = 0; i < VEC; i++) sum[i] += v[i];
        }
    }
    /* rows of WARP and a rest that spreads the reads below over the banks */
    constexpr int PITCH = WARP + WARP / VEC;
    SHARED_ARRAY(float, sums, WARPS *VEC *PITCH);
#pragma unroll
    for (int i = 0; i < VEC; i++) sums[(warp * VEC + i) * PITCH + lane] = sum[i];
    __syncthreads();
    for (int j = threadIdx.x; j < WARP * VEC && first + j < cols; j += THREADS) {
        float total = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) total += sums[(w * VEC + j % VEC) * PITCH + j / VEC];
        partial[(int64_t)cut * cols + first + j] = total;
    }
}

/* out[j] = beta * out[j] + sum of the cuts. A block takes WARP columns. */
__global__ static void column_total_kernel(
    float *out, float beta, const float *partial, int cuts, int cols) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int column = blockIdx.x * WARP + lane;
    float sum = 0;
    if (column < cols) {
#pragma unroll 4
        for (int cut = warp; cut < cuts; cut += WARPS) sum += partial[(int64_t)cut * cols + column];
    }
    SHARED_ARRAY(float, sums, WARPS *WARP);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0 || column >= cols) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += sums[w * WARP + lane];
    out[column] = beta == 0.0f ? total : fmaf(beta, out[column], total);
}

typedef struct Cuts {
    int rows, count; /* of a cut; how many cuts */
} Cuts;

static Cuts cut_rows(int rows) {
    const int even = ceil_div(rows, NORM_CUTS), each = even < LEAST_ROWS ? LEAST_ROWS : even;
    const Cuts c = {each, ceil_div(rows, each)};
    return c;
}

/* Floats that be->partials holds. */
static int64_t partial_floats(const BackendLimits *l) {
    const int widths[] = {l->C, l->F, 3 * l->H * l->HD, l->V};
    int widest = 0;
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        widest = widths[i] > widest ? widths[i] : widest;
    return (int64_t)2 * NORM_CUTS * widest;
}

template <typename E>
void column_sums(Backend *be, float *out, float beta, const E *x, int rows, int cols, int64_t ld) {
    require_scratch(be);
    REQUIRE(
        rows > 0 && cols > 0 && ld >= cols, "rows=%d cols=%d ld=%lld", rows, cols, (long long)ld);
    constexpr int VEC = 16 / sizeof(E);
    const Cuts c = cut_rows(rows);
    REQUIRE((int64_t)c.count * cols <= partial_floats(&be->limits),
        "%d columns, more than the limits that scratch was reserved for", cols);
    if (cols % VEC == 0 && rows_aligned(ld, sizeof(E), x))
        LAUNCH((column_cuts_kernel<VEC, E>), dim3(ceil_div(cols, WARP * VEC), c.count), THREADS, 0,
            be->stream, be->partials, x, rows, cols, ld, c.rows);
    else
        LAUNCH((column_cuts_kernel<1, E>), dim3(ceil_div(cols, WARP), c.count), THREADS, 0,
            be->stream, be->partials, x, rows, cols, ld, c.rows);
    LAUNCH(column_total_kernel, ceil_div(cols, WARP), THREADS, 0, be->stream, out, beta,
        (const float *)be->partials, c.count, cols);
}
template void column_sums(Backend *, float *, float, const float *, int, int, int64_t);
#ifdef LASER_BF16
template void column_sums(Backend *, float *, float, const act_t *, int, int, int64_t);
#endif
