/* cuda/query_key.cu: what happens to queries and keys before their scores: LayerNorm over each head
 * and the scale per dimension of queries, in place, one pass each way. Knows no attention.
 *
 * With xhat the normalised x of a head, or x itself without norm, and s = 1.44 softplus(p):
 *   fwd:  q = xhat qw s,  k = xhat kw
 *   bwd:  dx = (g - mean(g) - xhat mean(g xhat)) / sigma,  g = dout qw s   (without norm: g)
 *         S = sum dout xhat  over all rows;  dqw = s S,  dkw = S of k,  dp = s' qw S
 * so that one sum a channel serves both parameters of q. Without norm x is q / s, and dp is
 * s' / s times the sum of dout q.
 *
 * Bytes per element of q and k (bf16), which is also the least: fwd 6, of which 2 are `raw`, that
 * backward needs and nothing else keeps; bwd 6. Mean and deviation are computed again, which costs
 * less than reading them. Without norm, q alone: 4 and 6. */
#include "laser/cuda/heads.cuh"

#define LOG2_E 1.442695041f

/* log(1 + e^p) without overflow, and exact in float where e^p is small. */
__device__ static inline float softplus(float p) {
    return fmaxf(p, 0.0f) + log1pf(expf(-fabsf(p)));
}
__device__ static inline float sigmoid(float p) {
    const float e = expf(-fabsf(p));
    return (p < 0 ? e : 1.0f) / (1.0f + e);
}
/* sigmoid / softplus: 1 in float, and not 0 / 0, where p is far below 0 */
__device__ static inline float softplus_log_slope(float p) {
    return p < -20.0f ? 1.0f : sigmoid(p) / softplus(p);
}

/* Element of a row in a tensor (N, tensors, H, HD), in which q is 0 and k is 1. */
__device__ static inline int64_t row_at(const QueryKeyArgs &a, int row, int which, int tensors) {
    const int64_t rows_before = ((int64_t)(row / a.H) * (tensors - 1) + which) * a.H;
    return (rows_before + row) * a.HD;
}

/* factor (HD): what xhat is multiplied by. Ends with a barrier. */
__device__ static inline void fill_factors(float *factor, const QueryKeyArgs &a, int which) {
    const act_t *w = which ? a.kw : a.qw;
    for (int c = threadIdx.x; c < a.HD; c += blockDim.x) {
        float f = w ? to_float(w[c]) : 1.0f;
        if (which == 0 && a.p) f *= LOG2_E * softplus(to_float(a.p[c]));
        factor[c] = f;
    }
    __syncthreads();
}

typedef struct RowStats {
    float mean, rstd;
} RowStats;

/* Of a row at x; a thread without a row (not live) calls it, too. */
template <int VEC>
__device__ static inline RowStats row_stats(
    const act_t *x, bool live, const HeadLane &l, const HeadRows &r, float eps) {
    float sum = 0, squares = 0;
    for (int c = l.first; live && c < r.HD; c += l.step) {
        float v[VEC];
        load_vec<VEC>(v, x + c);
#pragma unroll
        for (int i = 0; i < VEC; i++) sum += v[i];
    }
    const float mean = lanes_sum(sum, r.lanes) / (float)r.HD;
    for (int c = l.first; live && c < r.HD; c += l.step) {
        float v[VEC];
        load_vec<VEC>(v, x + c);
#pragma unroll
        for (int i = 0; i < VEC; i++) squares += (v[i] - mean) * (v[i] - mean);
    }
    return RowStats{mean, 1.0f / sqrtf(lanes_sum(squares, r.lanes) / (float)r.HD + eps)};
}

/* A block per cut of the rows, of q where blockIdx.y is 0, of k where it is 1. */
template <int VEC, bool NORM>
__global__ static void query_key_fwd_kernel(act_t *qkv, QueryKeyArgs a, HeadRows r) {
    DYN_SMEM(float, factor); /* (HD) */
    const HeadLane l = head_lane(r, VEC);
    const int which = blockIdx.y;
    const int from = blockIdx.x * r.cut_rows, to = min(r.rows, from + r.cut_rows);
    fill_factors(factor, a, which);
    for (int base = from; base < to; base += l.groups) {
        const int row = base + l.group;
        const bool live = row < to;
        act_t *x = qkv + row_at(a, row, which, 3);
        RowStats s = {0, 1};
        if (NORM) s = row_stats<VEC>(x, live, l, r, a.eps);
        for (int c = l.first; live && c < r.HD; c += l.step) {
            float v[VEC], f[VEC];
            load_vec<VEC>(v, x + c);
            load_vec<VEC>(f, factor + c);
            if (NORM) store_vec<VEC>(a.raw + row_at(a, row, which, 2) + c, v);
#pragma unroll
            for (int i = 0; i < VEC; i++) v[i] = (v[i] - s.mean) * s.rstd * f[i];
            store_vec<VEC>(x + c, v);
        }
    }
}

/* The same blocks; each leaves S of its rows in partial (cuts, q and k or q, HD). */
template <int VEC, bool NORM>
__global__ static void query_key_bwd_kernel(
    act_t *dqkv, const act_t *qkv, float *partial, QueryKeyArgs a, HeadRows r) {
    DYN_SMEM(float, factor); /* (HD) */
    const HeadLane l = head_lane(r, VEC);
    float *tables = factor + r.HD, *own = tables + l.group * r.HD; /* (groups, HD) S */
    const int which = blockIdx.y;
    const int from = blockIdx.x * r.cut_rows, to = min(r.rows, from + r.cut_rows);
    fill_factors(factor, a, which);
    for (int c = l.first; c < r.HD; c += l.step)
#pragma unroll
        for (int i = 0; i < VEC; i++) own[c + i] = 0;
    for (int base = from; base < to; base += l.groups) {
        const int row = base + l.group;
        const bool live = row < to;
        act_t *grad = dqkv + row_at(a, row, which, 3);
        const act_t *x = NORM ? a.raw + row_at(a, row, which, 2) : qkv + row_at(a, row, which, 3);
        RowStats s = {0, 1};
        float g_mean = 0, gx_mean = 0;
        if (NORM) {
            s = row_stats<VEC>(x, live, l, r, a.eps);
            for (int c = l.first; live && c < r.HD; c += l.step) {
                float g[VEC], v[VEC], f[VEC];
                load_vec<VEC>(g, grad + c);
                load_vec<VEC>(v, x + c);
                load_vec<VEC>(f, factor + c);
#pragma unroll
                for (int i = 0; i < VEC; i++) {
                    g_mean += g[i] * f[i];
                    gx_mean += g[i] * f[i] * ((v[i] - s.mean) * s.rstd);
                }
            }
            g_mean = lanes_sum(g_mean, r.lanes) / (float)r.HD;
            gx_mean = lanes_sum(gx_mean, r.lanes) / (float)r.HD;
        }
        for (int c = l.first; live && c < r.HD; c += l.step) {
            float g[VEC], v[VEC], f[VEC], sum[VEC];
            load_vec<VEC>(g, grad + c);
            load_vec<VEC>(v, x + c);
            load_vec<VEC>(f, factor + c);
            load_vec<VEC>(sum, own + c);
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                const float xhat = (v[i] - s.mean) * s.rstd;
                sum[i] += g[i] * xhat;
                g[i] = (g[i] * f[i] - g_mean - xhat * gx_mean) * s.rstd;
            }
            store_vec<VEC>(own + c, sum);
            store_vec<VEC>(grad + c, g);
        }
    }
    head_block_sums(
        partial + ((int64_t)blockIdx.x * gridDim.y + which) * r.HD, tables, l.groups, r);
}

typedef struct QueryKeyGrads {
    float *dqw, *dkw, *dp; /* (HD) each, or NULL */
    float beta;
} QueryKeyGrads;

/* A block takes WARP columns of S, which are q's channels, then k's. */
__global__ static void query_key_total_kernel(
    QueryKeyGrads g, const float *partial, int cuts, QueryKeyArgs a) {
    const int columns = (a.qw ? 2 : 1) * a.HD, column = blockIdx.x * WARP + threadIdx.x % WARP;
    const float S = head_total(partial, cuts, columns);
    if (threadIdx.x >= WARP || column >= columns) return;
    if (column >= a.HD) {
        beta_store(&g.dkw[column - a.HD], g.beta, S);
        return;
    }
    const float p = a.p ? to_float(a.p[column]) : 0.0f;
    if (a.qw) beta_store(&g.dqw[column], g.beta, a.p ? LOG2_E * softplus(p) * S : S);
    if (!a.p) return;
    const float slope = a.qw ? LOG2_E * sigmoid(p) * to_float(a.qw[column]) : softplus_log_slope(p);
    beta_store(&g.dp[column], g.beta, slope * S);
}

/* ---- the operations -------------------------------------------------------------------------- */

static void check_args(const Backend *be, const QueryKeyArgs *a) {
    require_heads(be, a->N, a->H, a->HD);
    REQUIRE(!a->qw == !a->kw && !a->qw == !a->raw, "%s", "qw, kw and raw belong together");
}

template <int VEC> static void launch_fwd(Backend *be, act_t *qkv, const QueryKeyArgs *a) {
    const int parts = a->qw ? 2 : 1;
    const HeadRows r = head_rows(a->N, a->H, a->HD, VEC, parts);
    const dim3 grid(r.cuts, parts);
    const size_t smem = head_table_bytes(r, 1);
    if (a->qw)
        LAUNCH((query_key_fwd_kernel<VEC, true>), grid, r.threads, smem, be->stream, qkv, *a, r);
    else
        LAUNCH((query_key_fwd_kernel<VEC, false>), grid, r.threads, smem, be->stream, qkv, *a, r);
}

void op_query_key_fwd(Backend *be, act_t *qkv, const QueryKeyArgs *a) {
    check_args(be, a);
    if (!a->qw && !a->p) return;
    if (rows_aligned(a->HD, sizeof(act_t), qkv, a->raw))
        launch_fwd<ACT_VEC>(be, qkv, a);
    else
        launch_fwd<1>(be, qkv, a);
}

/* Returns the number of cuts. */
template <int VEC>
static int launch_bwd(Backend *be, act_t *dqkv, const act_t *qkv, const QueryKeyArgs *a) {
    const int parts = a->qw ? 2 : 1;
    const HeadRows r = head_rows(a->N, a->H, a->HD, VEC, parts);
    const dim3 grid(r.cuts, parts);
    const size_t smem = head_table_bytes(r, 1 + head_groups(r));
    if (a->qw)
        LAUNCH((query_key_bwd_kernel<VEC, true>), grid, r.threads, smem, be->stream, dqkv, qkv,
            be->partials, *a, r);
    else
        LAUNCH((query_key_bwd_kernel<VEC, false>), grid, r.threads, smem, be->stream, dqkv, qkv,
            be->partials, *a, r);
    return r.cuts;
}

void op_query_key_bwd(Backend *be, act_t *dqkv, float *dqw, float *dkw, float *dp, float beta,
    const act_t *qkv, const QueryKeyArgs *a) {
    check_args(be, a);
    REQUIRE(!a->qw == !dqw && !a->kw == !dkw && !a->p == !dp, "%s",
        "a gradient for each parameter and no other");
    if (!a->qw && !a->p) return;
    const bool wide = rows_aligned(a->HD, sizeof(act_t), dqkv, a->qw ? a->raw : qkv);
    const int cuts = wide ? launch_bwd<ACT_VEC>(be, dqkv, qkv, a) : launch_bwd<1>(be, dqkv, qkv, a);
    const QueryKeyGrads g = {dqw, dkw, dp, beta};
    LAUNCH(query_key_total_kernel, ceil_div((a->qw ? 2 : 1) * a->HD, WARP), HEAD_TOTAL_THREADS, 0,
        be->stream, g, (const float *)be->partials, cuts, *a);
}
