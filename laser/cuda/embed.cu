/* cuda/embed.cu: token and position embedding, and rotary positions. The gradient of the embedding
 * sums the rows of each token in a fixed order: tokens are put into buckets by their number on the
 * device, by integers alone. Knows nothing of what reads the embedding. */
#include "laser/cuda/backend.cuh"

enum {
    WARPS = 8,
    THREADS = WARPS * WARP,
    CHUNK = 4096,         /* tokens that are ranked among themselves */
    ORDER_THREADS = 1024, /* of the one block that puts tokens in order */
    SCAN = 8,             /* counts that a thread of it adds up at a time */
    ROWS = 4,             /* rows that a thread has in flight */
    LONG = 64             /* rows of one token that are worth a whole block */
};

/* ---- forward --------------------------------------------------------------------------------- */

typedef struct EmbedShape {
    int N, T, C, V;
    float scale;
} EmbedShape;

/* A warp takes a row. Bytes per element: an act_t of wte, one of pos (mostly from the cache), one
 * of x. */
template <int VEC>
__global__ static void embed_fwd_kernel(
    act_t *x, const int32_t *tokens, const act_t *wte, const act_t *pos, EmbedShape s) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int n = blockIdx.x * WARPS + warp;
    if (n >= s.N) return;
    const int token = tokens[n];
    const bool known = token >= 0 && token < s.V;
    /* an unknown token must reach the loss, where the step is given up */
    const float scale = known ? s.scale : NAN;
    const act_t *row = wte + (int64_t)(known ? token : 0) * s.C;
    const act_t *place = pos ? pos + (int64_t)(n % s.T) * s.C : NULL;
    act_t *to = x + (int64_t)n * s.C;
#pragma unroll 4
    for (int c = lane * VEC; c < s.C; c += WARP * VEC) {
        float e[VEC], p[VEC] = {};
        load_vec<VEC>(e, row + c);
        if (place) load_vec<VEC>(p, place + c);
#pragma unroll
        for (int i = 0; i < VEC; i++) e[i] = fmaf(scale, e[i], p[i]);
        store_vec<VEC>(to + c, e);
    }
}

void op_embed_fwd(Backend *be, act_t *x, const int32_t *tokens, const act_t *wte, const act_t *pos,
    float scale, const int *BTC) {
    require_scratch(be);
    const EmbedShape s = {BTC[0] * BTC[1], BTC[1], BTC[2], be->limits.V, scale};
    REQUIRE(s.N > 0 && s.C > 0, "B=%d T=%d C=%d", BTC[0], s.T, s.C);
    const int blocks = ceil_div(s.N, WARPS);
    if (rows_aligned(s.C, sizeof(act_t), x, wte, pos))
        LAUNCH(embed_fwd_kernel<ACT_VEC>, blocks, THREADS, 0, be->stream, x, tokens, wte, pos, s);
    else
        LAUNCH(embed_fwd_kernel<1>, blocks, THREADS, 0, be->stream, x, tokens, wte, pos, s);
}

/* ---- buckets --------------------------------------------------------------------------------- */

/* Of the tokens in one chunk, for each: 2 * (how many before it are the same) + (none after it is).
 * The last of its kind adds their number to the counts. N * CHUNK comparisons, from shared memory.
 */
__global__ static void embed_rank_kernel(int32_t *rank /* (N) */, int32_t *counts /* (V), zeroed */,
    const int32_t *tokens, int N, int V) {
    const int chunk = blockIdx.x * THREADS / CHUNK * CHUNK; /* its first token */
    const int block = blockIdx.x * THREADS - chunk, mine = block + threadIdx.x;
    SHARED_ARRAY(int32_t, ids, CHUNK);
    for (int i = threadIdx.x; i < CHUNK; i += THREADS)
        ids[i] = chunk + i < N ? tokens[chunk + i] : -1;
    __syncthreads();
    const int id = ids[mine];
    int before = 0, after = 0;
    const int4 *four = reinterpret_cast<const int4 *>(ids);
#pragma unroll 4
    for (int i = 0; i < block / 4; i++) {
        const int4 other = four[i];
        before += (other.x == id) + (other.y == id) + (other.z == id) + (other.w == id);
    }
    for (int i = block; i < block + THREADS; i++) {
        before += ids[i] == id && i < mine;
        after += ids[i] == id && i > mine;
    }
#pragma unroll 4
    for (int i = (block + THREADS) / 4; i < CHUNK / 4; i++) {
        const int4 other = four[i];
        after += (other.x == id) + (other.y == id) + (other.z == id) + (other.w == id);
    }
    if (chunk + mine >= N) return;
    rank[chunk + mine] = 2 * before + (after == 0);
    if (after == 0 && id >= 0 && id < V) atomicAdd(&counts[id], before + 1);
}

/* Replaces counts by the sums of those before them; all threads of the block. */
__device__ static void exclusive_scan(int32_t *counts, int V, int32_t *sums /* (WARP) shared */) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int total = 0; /* of the tiles so far */
    for (int tile = 0; tile < V; tile += ORDER_THREADS * SCAN) {
        const int at = tile + threadIdx.x * SCAN;
        int own[SCAN], sum = 0;
#pragma unroll
        for (int i = 0; i < SCAN; i++) own[i] = at + i < V ? counts[at + i] : 0;
#pragma unroll
        for (int i = 0; i < SCAN; i++) sum += own[i];
        int upto = sum; /* of the lanes up to this one */
#pragma unroll
        for (int d = 1; d < WARP; d *= 2) {
            const int other = __shfl_up_sync(0xffffffffu, upto, d);
            if (lane >= d) upto += other;
        }
        if (lane == WARP - 1) sums[warp] = upto;
        __syncthreads();
        int before = total + upto - sum;
        for (int w = 0; w < ORDER_THREADS / WARP; w++) {
            before += w < warp ? sums[w] : 0;
            total += sums[w];
        }
#pragma unroll
        for (int i = 0; i < SCAN; i++) {
            if (at + i < V) counts[at + i] = before;
            before += own[i];
        }
        __syncthreads();
    }
}

/* order: tokens by id, those of one id ascending. counts becomes the end of each bucket. One block
 * goes through the chunks one after another. */
__global__ static void embed_order_kernel(int32_t *order /* (N) */, int32_t *counts /* (V) */,
    const int32_t *rank, const int32_t *tokens, int N, int V) {
    constexpr int EACH = CHUNK / ORDER_THREADS;
    SHARED_ARRAY(int32_t, sums, WARP);
    exclusive_scan(counts, V, sums);
    for (int chunk = 0; chunk < N; chunk += CHUNK) {
        int id[EACH], end[EACH]; /* end: of its bucket so far, where this token is the last; or 0 */
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int n = chunk + i * ORDER_THREADS + threadIdx.x;
            id[i] = n < N ? tokens[n] : -1;
            end[i] = 0;
            if (id[i] < 0 || id[i] >= V) continue;
            const int r = rank[n], at = counts[id[i]] + r / 2;
            order[at] = n;
            if (r % 2) end[i] = at + 1;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (end[i]) counts[id[i]] = end[i];
        __syncthreads();
    }
}

/* ---- backward -------------------------------------------------------------------------------- */

/* sum += rows order[from..to) of dx at one lane's channels. All lanes of a warp call; inside:
 * whether there are channels for this lane. */
template <int VEC>
__device__ static void add_rows(
    float *sum, const act_t *dx, const int32_t *order, int from, int to, int64_t C, bool inside) {
    const int lane = threadIdx.x % WARP;
    const int index = from + lane < to ? order[from + lane] : 0;
    for (int r = 0; r < to - from; r += ROWS) {
        float x[ROWS][VEC] = {};
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            const int n = __shfl_sync(0xffffffffu, index, r + k);
            if (inside && r + k < to - from) load_vec<VEC>(x[k], dx + n * C);
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++)
#pragma unroll
            for (int i = 0; i < VEC; i++) sum[i] += x[k][i];
    }
}

template <int VEC>
__device__ static inline void add_scaled(float *to, const float *sum, float scale) {
    float old[VEC];
    load_vec<VEC>(old, to);
#pragma unroll
    for (int i = 0; i < VEC; i++) old[i] = fmaf(scale, sum[i], old[i]);
    store_vec<VEC>(to, old);
}

/* dwte[id] += scale * sum of the rows of id. A block takes WARP * VEC channels and WARPS ids: a
 * warp sums one id, but where there are many rows all warps do, each some. The ids of a block lie
 * gridDim.x apart, because vocabularies begin with the frequent ones. Bytes per element: an act_t
 * of dx; and two floats of dwte, of the rows that occur. */
template <int VEC>
__global__ static void embed_sum_kernel(float *dwte, const act_t *dx, const int32_t *order,
    const int32_t *ends /* (V) */, EmbedShape s) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int first = blockIdx.y * WARP * VEC, c = first + lane * VEC;
    const bool inside = c < s.C;
    const int own = blockIdx.x + warp * gridDim.x;
    const int from = own > 0 && own < s.V ? ends[own - 1] : 0, to = own < s.V ? ends[own] : 0;
    if (from < to && to - from <= LONG) {
        float sum[VEC] = {};
        for (int r = from; r < to; r += WARP)
            add_rows<VEC>(sum, dx + c, order, r, min(to, r + WARP), s.C, inside);
        if (inside) add_scaled<VEC>(dwte + (int64_t)own * s.C + c, sum, s.scale);
    }
    SHARED_ARRAY(float, sums, WARPS *WARP *VEC);
    SHARED_ARRAY(int, buckets, WARPS * 2);
    if (lane == 0) buckets[2 * warp] = from, buckets[2 * warp + 1] = to;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        const int begin = buckets[2 * w], end = buckets[2 * w + 1];
        if (end - begin <= LONG) continue;
        float sum[VEC] = {};
        for (int r = begin + warp * WARP; r < end; r += THREADS)
            add_rows<VEC>(sum, dx + c, order, r, min(end, r + WARP), s.C, inside);
        store_vec<VEC>(&sums[threadIdx.x * VEC], sum);
        __syncthreads();
        const int64_t id = blockIdx.x + w * gridDim.x;
        for (int j = threadIdx.x; j < WARP * VEC && first + j < s.C; j += THREADS) {
            float total = 0;
#pragma unroll
            for (int k = 0; k < WARPS; k++) total += sums[k * WARP * VEC + j];
            add_scaled<1>(dwte + id * s.C + first + j, &total, s.scale);
        }
        __syncthreads();
    }
}

/* dpos = beta * dpos + sum over the sequences. Bytes per element: an act_t of dx, and a float or
 * two of dpos per sequence. */
template <int VEC>
__global__ static void embed_positions_kernel(
    float *dpos, float beta, const act_t *dx, int B, int64_t TC) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (i >= TC) return;
    float sum[VEC] = {}, old[VEC] = {};
#pragma unroll 4
    for (int b = 0; b < B; b++) {
        float x[VEC];
        load_vec<VEC>(x, dx + b * TC + i);
#pragma unroll
        for (int k = 0; k < VEC; k++) sum[k] += x[k];
    }
    if (beta != 0.0f) load_vec<VEC>(old, dpos + i);
#pragma unroll
    for (int k = 0; k < VEC; k++) sum[k] = fmaf(beta, old[k], sum[k]);
    store_vec<VEC>(dpos + i, sum);
}

static void bucket_tokens(Backend *be, const int32_t *tokens, int N) {
    const int V = be->limits.V;
    int32_t *counts = be->buckets, *order = counts + V + 1, *rank = order + N;
    backend_zero(be, counts, (size_t)V * sizeof *counts);
    LAUNCH(embed_rank_kernel, ceil_div(N, THREADS), THREADS, 0, be->stream, rank, counts, tokens, N,
        V);
    LAUNCH(embed_order_kernel, 1, ORDER_THREADS, 0, be->stream, order, counts,
        (const int32_t *)rank, tokens, N, V);
}

template <int VEC>
static void launch_sum(Backend *be, float *dwte, const act_t *dx, const EmbedShape &s) {
    const int32_t *ends = be->buckets, *order = ends + s.V + 1;
    const dim3 grid(ceil_div(s.V, WARPS), ceil_div(s.C, WARP * VEC));
    LAUNCH(embed_sum_kernel<VEC>, grid, THREADS, 0, be->stream, dwte, dx, order, ends, s);
}

void op_embed_bwd(Backend *be, float *dwte, float *dpos, float beta, const act_t *dx,
    const int32_t *tokens, float scale, const int *BTC) {
    require_scratch(be);
    const EmbedShape s = {BTC[0] * BTC[1], BTC[1], BTC[2], be->limits.V, scale};
    REQUIRE(s.N > 0 && s.C > 0, "B=%d T=%d C=%d", BTC[0], s.T, s.C);
    REQUIRE((int64_t)s.N <= (int64_t)be->limits.B * be->limits.T,
        "%d tokens, reserved for %d of %d", s.N, be->limits.B, be->limits.T);
    bucket_tokens(be, tokens, s.N);
    if (rows_aligned(s.C, sizeof(act_t), dwte, dx))
        launch_sum<ACT_VEC>(be, dwte, dx, s);
    else
        launch_sum<1>(be, dwte, dx, s);
    if (!dpos) return;
    const int64_t TC = (int64_t)s.T * s.C;
    if (rows_aligned(TC, sizeof(act_t), dpos, dx))
        LAUNCH(embed_positions_kernel<ACT_VEC>, ceil_div(TC, THREADS * ACT_VEC), THREADS, 0,
            be->stream, dpos, beta, dx, BTC[0], TC);
    else
        LAUNCH(embed_positions_kernel<1>, ceil_div(TC, THREADS), THREADS, 0, be->stream, dpos, beta,
            dx, BTC[0], TC);
}

/* ---- rotary positions ------------------------------------------------------------------------ */

typedef struct RopeShape {
    int T, H, half, first; /* half: of a head; first: position of a sequence's first row */
    float sign;
} RopeShape;

/* A block takes a token: the heads of q, then of k. Bytes per element of q and k: an act_t read,
 * one written; the table comes from the cache. */
template <int VEC>
__global__ static void rope_kernel(
    act_t *qkv, const float *table /* (T, 2, half) */, RopeShape s) {
    const int n = blockIdx.x, vecs = s.half / VEC;
    const float *cosines = table + (int64_t)(s.first + n % s.T) * 2 * s.half;
    const float *sines = cosines + s.half;
    act_t *token = qkv + (int64_t)n * 6 * s.H * s.half;
#pragma unroll 2
    for (int j = threadIdx.x; j < 2 * s.H * vecs; j += blockDim.x) {
        const int head = j / vecs, i = (j - head * vecs) * VEC;
        act_t *lo = token + (int64_t)head * 2 * s.half + i, *hi = lo + s.half;
        float a[VEC], b[VEC], cosine[VEC], sine[VEC], turned[VEC];
        load_vec<VEC>(a, lo);
        load_vec<VEC>(b, hi);
        load_vec<VEC>(cosine, cosines + i);
        load_vec<VEC>(sine, sines + i);
#pragma unroll
        for (int k = 0; k < VEC; k++) turned[k] = a[k] * cosine[k] - b[k] * (s.sign * sine[k]);
        store_vec<VEC>(lo, turned);
#pragma unroll
        for (int k = 0; k < VEC; k++) turned[k] = b[k] * cosine[k] + a[k] * (s.sign * sine[k]);
        store_vec<VEC>(hi, turned);
    }
}

void op_rope(Backend *be, act_t *qkv, int sign, const RopeArgs *a) {
    require_scratch(be);
    const int N = a->B * a->T, HD = a->HD;
    const RopeShape s = {a->T, a->H, HD / 2, a->first, sign < 0 ? -1.0f : 1.0f};
    REQUIRE(HD % 2 == 0, "rotary positions turn pairs: head size %d is odd", HD);
    REQUIRE(a->first + s.T <= be->limits.T && HD == be->limits.DK,
        "T=%d + %d HD=%d, reserved %d %d", a->first, s.T, HD, be->limits.T, be->limits.DK);
    const bool wide = rows_aligned(s.half, sizeof(act_t), qkv);
    const int pairs = 2 * s.H * s.half / (wide ? ACT_VEC : 1);
    const int threads = pairs >= THREADS ? THREADS : ceil_div(pairs, WARP) * WARP;
    if (wide)
        LAUNCH(rope_kernel<ACT_VEC>, N, threads, 0, be->stream, qkv, (const float *)be->rope, s);
    else
        LAUNCH(rope_kernel<1>, N, threads, 0, be->stream, qkv, (const float *)be->rope, s);
}
