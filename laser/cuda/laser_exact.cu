/* cuda/laser_exact.cu: LASER attention by log-sum-exp, for the few elements (row, channel) whose
 * sum L vanishes beside the reference of its channel, see laser.cuh. Slow and never wrong: every
 * score is computed again in float from q and k. Knows no core.
 *
 * With top the largest V that the row sees: out = top + log sum_j exp(s_j + (V_j - top)) - lse, and
 * w_j = exp(s_j + V_j - out - lse) sums to 1: dV_j += dout w_j, ds_j += dout (w_j - P_j). V - top
 * comes first: a large V would swallow the score. */
#include "laser/cuda/laser.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP, FWD_BLOCKS = 256, BWD_BLOCKS = 16 };

typedef struct Exact { /* what a kernel gets; W = H * HD */
    const act_t *qkv;
    int T, H, HD, DK, k0; /* channels [k0, k0 + DK) of q and k make the scores */
    float scale, softcap;
    const int *exact; /* (B, H, T) */
    int64_t rows;     /* B * H * T */
    LaserSaved s;
} Exact;

static Exact exact_of(const AttentionArgs *a, const act_t *qkv, const int *exact, LaserSaved s) {
    return Exact{qkv, a->T, a->H, a->HD, a->DK, a->k0, a->scale, a->softcap, exact,
        (int64_t)a->B * a->H * a->T, s};
}

static size_t fwd_floats(int T) {
    return (size_t)T;
}
static size_t bwd_floats(int T, int HD) { /* scores, ds, three numbers a channel, dq, dk, dv */
    return 2 * (size_t)T + 3 * (size_t)HD + 3 * (size_t)T * (size_t)HD;
}

size_t laser_exact_bytes(int T, int HD) {
    const size_t fwd = FWD_BLOCKS * fwd_floats(T), bwd = BWD_BLOCKS * bwd_floats(T, HD);
    return (fwd > bwd ? fwd : bwd) * sizeof(float);
}

/* Token t of pair, in q (which 0), k (1) or v (2). */
__device__ static inline int64_t token_at(const Exact &x, int pair, int t, int which) {
    const int64_t W = (int64_t)x.H * x.HD;
    return (((int64_t)(pair / x.H) * x.T + t) * 3 + which) * W + (int64_t)(pair % x.H) * x.HD;
}

__device__ static inline int64_t out_at(const Exact &x, int pair, int t) {
    return (((int64_t)(pair / x.H) * x.T + t) * x.H + pair % x.H) * x.HD;
}

/* scores[j], j <= i, as capped; returns their log sum exp. All threads of the block. */
__device__ static float exact_scores(
    const Exact &x, int pair, int i, float *scores, float *shared) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const act_t *q = x.qkv + token_at(x, pair, i, 0) + x.k0;
    float high = -INFINITY, sum = 0;
    for (int j = warp; j <= i; j += WARPS) {
        const act_t *k = x.qkv + token_at(x, pair, j, 1) + x.k0;
        float s = 0;
        for (int c = lane; c < x.DK; c += WARP) s += to_float(q[c]) * to_float(k[c]);
        s = warp_sum(s) * x.scale;
        if (x.softcap > 0) s = x.softcap * tanhf(s / x.softcap);
        if (lane == 0) scores[j] = s;
    }
    __syncthreads();
    for (int j = threadIdx.x; j <= i; j += THREADS) high = fmaxf(high, scores[j]);
    high = block_max(high, shared);
    for (int j = threadIdx.x; j <= i; j += THREADS) sum += expf(scores[j] - high);
    return high + logf(block_sum(sum, shared));
}

typedef struct ExactSums {
    float top, high, sum;
} ExactSums;

/* Of channel c of row i: top the largest V, high the largest score + (V - top), sum of
 * exp(score + (V - top) - high); partial sums of 64 terms. */
__device__ static ExactSums exact_sums(
    const Exact &x, int pair, int i, int c, const float *scores) {
    const act_t *v = x.qkv + token_at(x, pair, 0, 2) + c;
    const int64_t step = 3 * (int64_t)x.H * x.HD;
    ExactSums s = {-INFINITY, -INFINITY, 0};
    for (int j = 0; j <= i; j++) s.top = fmaxf(s.top, to_float(v[j * step]));
    for (int j = 0; j <= i; j++) s.high = fmaxf(s.high, to_float(v[j * step]) - s.top + scores[j]);
    for (int j = 0; j <= i; j += 64) {
        const int end = j + 64 <= i + 1 ? j + 64 : i + 1;
        float part = 0;
        for (int k = j; k < end; k++)
            part += expf(to_float(v[k * step]) - s.top + scores[k] - s.high);
        s.sum += part;
    }
    return s;
}

__device__ static inline bool channel_is_exact(const Exact &x, int pair, int i, int c) {
    const int64_t at = (int64_t)pair * x.HD + c;
    const float o = to_float(x.s.o[out_at(x, pair, i) + c]);
    return laser_is_exact(x.s.kappa[at], o, x.s.jump[at], i);
}

/* A block looks at THREADS rows at a time and works on those that are marked, one after another. */
__global__ static void laser_exact_fwd_kernel(Exact x, act_t *out, float *work) {
    SHARED_ARRAY(float, shared, WARP);
    SHARED_ARRAY(int, marked, THREADS);
    float *scores = work + (int64_t)blockIdx.x * x.T;
    for (int64_t first = (int64_t)blockIdx.x * THREADS; first < x.rows;
         first += (int64_t)gridDim.x * THREADS) {
        const int64_t mine = first + threadIdx.x;
        marked[threadIdx.x] = mine < x.rows ? x.exact[mine] : 0;
        if (!__syncthreads_or(marked[threadIdx.x])) continue;
        for (int k = 0; k < THREADS; k++) {
            if (!marked[k]) continue;
            const int pair = (int)((first + k) / x.T), i = (int)((first + k) % x.T);
            const float lse = exact_scores(x, pair, i, scores, shared);
            for (int c = threadIdx.x; c < x.HD; c += THREADS) {
                if (!channel_is_exact(x, pair, i, c)) continue;
                const ExactSums s = exact_sums(x, pair, i, c, scores);
                store(out + out_at(x, pair, i) + c, s.top + (s.high + (logf(s.sum) - lse)));
            }
            __syncthreads();
        }
        __syncthreads();
    }
}

void laser_exact_fwd(Backend *be, act_t *out, const act_t *qkv, const int *exact, char *work,
    LaserSaved s, const AttentionArgs *a) {
    const Exact x = exact_of(a, qkv, exact, s);
    const int blocks = ceil_div(x.rows, THREADS);
    LAUNCH(laser_exact_fwd_kernel, blocks < FWD_BLOCKS ? blocks : FWD_BLOCKS, THREADS, 0,
        be->stream, x, out, (float *)work);
}

/* ---- backward -------------------------------------------------------------------------------- */

typedef struct ExactWork {     /* of a block */
    float *scores, *ds;        /* (T) */
    float *top, *high, *share; /* (HD); share: dout / sum, 0 where the channel is not exact */
    float *dq, *dk;            /* (T, DK) */
    float *dv;                 /* (T, HD), behind them */
} ExactWork;

__device__ static inline ExactWork exact_work(float *p, int T, int HD, int DK) {
    ExactWork w = {
        p, p + T, p + 2 * T, p + 2 * T + HD, p + 2 * T + 2 * HD, p + 2 * T + 3 * HD, 0, 0};
    w.dk = w.dq + (int64_t)T * DK;
    w.dv = w.dk + (int64_t)T * DK;
    return w;
}

/* Adds the gradients of the exact elements of row i to the block's dq, dk, dv. Key j belongs to
 * warp j mod WARPS, which alone writes its rows of dk and dv. */
__device__ static void exact_row_bwd(
    const Exact &x, const ExactWork &w, const act_t *dout, int pair, int i, float *shared) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, HD = x.HD;
    const float lse = exact_scores(x, pair, i, w.scores, shared);
    float total = 0;
    for (int c = threadIdx.x; c < HD; c += THREADS) {
        w.share[c] = w.top[c] = w.high[c] = 0;
        if (!channel_is_exact(x, pair, i, c)) continue;
        const ExactSums s = exact_sums(x, pair, i, c, w.scores);
        const float g = to_float(dout[out_at(x, pair, i) + c]);
        w.top[c] = s.top, w.high[c] = s.high, w.share[c] = g / s.sum;
        total += g;
    }
    total = block_sum(total, shared);
    const act_t *q = x.qkv + token_at(x, pair, i, 0) + x.k0;
    for (int j = warp; j <= i; j += WARPS) {
        const act_t *v = x.qkv + token_at(x, pair, j, 2);
        float ds = 0;
        for (int c = lane; c < HD; c += WARP) {
            if (w.share[c] == 0) continue;
            const float e = expf(to_float(v[c]) - w.top[c] + w.scores[j] - w.high[c]);
            w.dv[(int64_t)j * HD + c] += w.share[c] * e;
            ds += w.share[c] * e;
        }
        ds = warp_sum(ds) - total * expf(w.scores[j] - lse);
        const float t = x.softcap > 0 ? w.scores[j] / x.softcap : 0.0f;
        ds *= x.scale * (1.0f - t * t);
        for (int c = lane; c < x.DK; c += WARP) w.dk[(int64_t)j * x.DK + c] += ds * to_float(q[c]);
        if (lane == 0) w.ds[j] = ds;
    }
    __syncthreads();
    const act_t *k = x.qkv + x.k0;
    for (int c = threadIdx.x; c < x.DK; c += THREADS) {
        float sum = 0;
        for (int j = 0; j <= i; j++) sum += w.ds[j] * to_float(k[token_at(x, pair, j, 1) + c]);
        w.dq[(int64_t)i * x.DK + c] = sum;
    }
    __syncthreads();
}

/* dqkv's q (which 0), k (1) or v (2) from channel `first` on += sums (T, width) of a block. */
__device__ static void exact_add(
    const Exact &x, act_t *dqkv, const float *sums, int pair, int which, int first, int width) {
    for (int64_t k = threadIdx.x; k < (int64_t)x.T * width; k += THREADS) {
        act_t *to = dqkv + token_at(x, pair, (int)(k / width), which) + first + k % width;
        store(to, to_float(*to) + sums[k]);
    }
}

/* A block works on whole (sequence, head) pairs that have a marked row. */
__global__ static void laser_exact_bwd_kernel(
    Exact x, act_t *dqkv, const act_t *dout, float *work, int64_t block_floats) {
    SHARED_ARRAY(float, shared, WARP);
    const ExactWork w = exact_work(work + blockIdx.x * block_floats, x.T, x.HD, x.DK);
    const int64_t sums = (int64_t)x.T * (2 * x.DK + x.HD);
    for (int pair = blockIdx.x; pair < (int)(x.rows / x.T); pair += gridDim.x) {
        const int *marked = x.exact + (int64_t)pair * x.T;
        int any = 0;
        for (int t = threadIdx.x; t < x.T; t += THREADS) any |= marked[t];
        if (!__syncthreads_or(any)) continue;
        for (int64_t k = threadIdx.x; k < sums; k += THREADS) w.dq[k] = 0;
        __syncthreads();
        for (int i = 0; i < x.T; i++)
            if (marked[i]) exact_row_bwd(x, w, dout, pair, i, shared);
        exact_add(x, dqkv, w.dq, pair, 0, x.k0, x.DK);
        exact_add(x, dqkv, w.dk, pair, 1, x.k0, x.DK);
        exact_add(x, dqkv, w.dv, pair, 2, 0, x.HD);
        __syncthreads();
    }
}

void laser_exact_bwd(Backend *be, const ExactBwd *b, LaserSaved s, const AttentionArgs *a) {
    const Exact x = exact_of(a, b->qkv, b->exact, s);
    const int pairs = a->B * a->H;
    LAUNCH(laser_exact_bwd_kernel, pairs < BWD_BLOCKS ? pairs : BWD_BLOCKS, THREADS, 0, be->stream,
        x, b->dqkv, b->dout, (float *)b->work, (int64_t)bwd_floats(a->T, a->HD));
}
