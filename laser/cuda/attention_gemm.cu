/* cuda/attention_gemm.cu: the attention core of matrix products, for any head size. Works on chunks
 * of (sequence, head) pairs, copied into (pairs, T, HD) so that one batched product serves all of
 * them; scores are made for strips of rows, in causal blocks of 256 keys, and become probabilities
 * (backward: the gradients of the scores) in place. Of q and k only the channels that make the
 * scores are copied, so that products are as narrow and as aligned with any k0 and DK. Knows no
 * variant: F is whatever laser.cu made.
 *
 * forward, a strip of rows:            backward:
 *   S  = scale q k^T   (float)           S again, dP = dO F^T   (float)
 *   P  = softmax(S)    (act_t)           P = exp(S - lse), dS = scale P (dP - D)   (act_t)
 *   O  = P F           (float)           dq = dS k,  dk += dS^T q,  dF += P^T dO */
#include "laser/cuda/gemm.cuh"
#include "laser/cuda/laser.cuh"

enum {
    BLOCK = 256, /* rows and keys of a causal block */
    THREADS = 256,
    FULL_PAIRS = 16, /* strips are cut when fewer pairs than this would fit with all their rows */
    WIDE = sizeof(float) / sizeof(act_t)
};

typedef struct Heads { /* (pairs, T, width) */
    act_t *p;
    int width;
} Heads;

typedef struct Chunk {
    int first, pairs;  /* of b * H + h */
    int T, HD, HDp;    /* HDp: head size padded to 16 bytes and more */
    int DK, DKp;       /* the same of the channels that make the scores */
    int64_t ld;        /* floats from row to row of scores */
    int rows;          /* of a strip */
    Heads q, k, f, dO; /* DKp or HDp wide, as are their gradients */
    act_t *dq;
    void *dk, *df; /* act_t, or float where strips add up */
    float *S, *dP; /* (pairs, rows, ld); P and dS take their places */
    float *O;      /* (pairs, rows, HDp), where dP is in the backward pass */
} Chunk;

static int padded_head(int HD) {
    return (HD + 7) / 8 * 8;
}
static int64_t padded_row(int T) {
    return (T + 7) / 8 * 8;
}

static size_t aligned(size_t bytes) {
    return size_add(bytes, 255) & ~(size_t)255;
}

static size_t chunk_bytes(size_t pairs, int rows, int T, int HD) {
    const size_t HDp = (size_t)padded_head(HD), ld = (size_t)padded_row(T);
    const size_t heads = size_mul(pairs, (size_t)T * HDp), R = (size_t)rows;
    const size_t second = R * (ld > HDp ? ld : HDp);
    size_t total = 5 * aligned(size_mul(heads, sizeof(act_t)));
    total = size_add(total, 2 * aligned(size_mul(heads, sizeof(float))));
    total = size_add(total, aligned(size_mul(size_mul(pairs, R * ld), sizeof(float))));
    return size_add(total, aligned(size_mul(size_mul(pairs, second), sizeof(float))));
}

GemmCorePlan gemm_core_plan(int B, int T, int H, int HD, size_t budget) {
    const size_t total = size_mul((size_t)B, (size_t)H);
    const size_t wanted = total < (size_t)FULL_PAIRS ? total : (size_t)FULL_PAIRS;
    int blocks = ceil_div(T, BLOCK), rows = T;
    while (blocks > 1 && chunk_bytes(wanted, rows, T, HD) > budget) {
        blocks = (blocks + 1) / 2;
        rows = blocks * BLOCK;
    }
    size_t pairs = total;
    while (pairs > 1 && chunk_bytes(pairs, rows, T, HD) > budget) pairs--;
    const size_t chunks = (total + pairs - 1) / pairs;
    pairs = (total + chunks - 1) / chunks; /* chunks of about the same size */
    return GemmCorePlan{(int)pairs, rows, chunk_bytes(pairs, rows, T, HD)};
}

static char *take(char **at, size_t bytes) {
    char *p = *at;
    *at += aligned(bytes);
    return p;
}

/* The plan has room for DK as large as HD. */
static Chunk chunk_new(const GemmCoreArgs *x, int first, int pairs) {
    const int T = x->a->T, HD = x->a->HD, DK = x->a->DK;
    Chunk c = {};
    c.first = first, c.pairs = pairs, c.T = T, c.HD = HD, c.DK = DK;
    c.HDp = padded_head(HD), c.DKp = padded_head(DK), c.ld = padded_row(T);
    c.rows = x->plan.rows < T ? x->plan.rows : T;
    char *at = x->work;
    const size_t heads = (size_t)pairs * (size_t)T * (size_t)c.HDp;
    const size_t scores = (size_t)pairs * (size_t)c.rows * (size_t)c.ld;
    c.q.width = c.k.width = c.DKp;
    c.f.width = c.dO.width = c.HDp;
    act_t **acts[] = {&c.q.p, &c.k.p, &c.f.p, &c.dO.p, &c.dq};
    for (act_t **p : acts) *p = (act_t *)take(&at, heads * sizeof(act_t));
    c.dk = take(&at, heads * sizeof(float));
    c.df = take(&at, heads * sizeof(float));
    c.S = (float *)take(&at, scores * sizeof(float));
    c.dP = c.O = (float *)at;
    return c;
}

static Rows chunk_rows(const Chunk *c, int H, int t0, int rows) {
    return Rows{c->first, c->pairs, H, t0, rows, c->HD, c->HDp};
}
static Rows chunk_scored(const Chunk *c, int H) { /* of q and k, all tokens */
    return Rows{c->first, c->pairs, H, 0, c->T, c->DK, c->DKp};
}
/* q (0) or k (1): the channels that make the scores */
template <typename E> static View<E> scored_view(E *qkv, int which, const AttentionArgs *a) {
    return qkv_view(qkv + a->k0, which, a->T, a->H, a->HD);
}

/* ---- products -------------------------------------------------------------------------------- */

static int least(int a, int b) {
    return a < b ? a : b;
}

/* Rows i0 .. i1 of a block in a strip that begins at r0, and the keys they may see. */
typedef struct Block {
    int i0, i1, r0;
} Block;

/* out (rows of the strip, keys) = alpha * a (rows) b (keys)^T */
static void scores_product(
    Backend *be, const Chunk *c, Block b, float *out, Heads A, Heads B, float alpha) {
    Gemm g = {};
    g.M = b.i1 - b.i0, g.N = b.i1, g.K = A.width;
    g.A = A.p + (int64_t)b.i0 * A.width, g.lda = A.width, g.strideA = (int64_t)c->T * A.width;
    g.B = B.p, g.ldb = B.width, g.strideB = g.strideA, g.transB = true;
    g.C = out + (b.i0 - b.r0) * c->ld, g.ldc = c->ld, g.strideC = c->rows * c->ld;
    g.c_float = true, g.alpha = alpha, g.batch = c->pairs;
    gemm(be, &g);
}

/* out (rows) = weights (rows, keys) b (keys); weights took the place of floats. out: row i0 of it,
 * its pairs stride apart. */
static void rows_product(Backend *be, const Chunk *c, Block b, void *out, int64_t stride,
    bool out_float, const float *weights, Heads B) {
    Gemm g = {};
    g.M = b.i1 - b.i0, g.N = B.width, g.K = b.i1;
    g.A = (const act_t *)weights + (b.i0 - b.r0) * c->ld * WIDE;
    g.lda = c->ld * WIDE, g.strideA = c->rows * c->ld * WIDE;
    g.B = B.p, g.ldb = B.width, g.strideB = (int64_t)c->T * B.width;
    g.C = out, g.ldc = B.width, g.strideC = stride;
    g.c_float = out_float, g.alpha = 1, g.batch = c->pairs;
    gemm(be, &g);
}

/* out (keys j0 .. j1) (+)= weights (rows, keys)^T b (rows), over the rows i0 .. i1 of the strip */
static void keys_product(Backend *be, const Chunk *c, Block b, int j0, int j1, void *out,
    const float *weights, Heads B) {
    const bool strips = c->rows < c->T;
    const int64_t at = (int64_t)j0 * B.width;
    Gemm g = {};
    g.M = j1 - j0, g.N = B.width, g.K = b.i1 - b.i0;
    g.A = (const act_t *)weights + (b.i0 - b.r0) * c->ld * WIDE + j0;
    g.lda = c->ld * WIDE, g.strideA = c->rows * c->ld * WIDE, g.transA = true;
    g.B = B.p + (int64_t)b.i0 * B.width, g.ldb = B.width, g.strideB = (int64_t)c->T * B.width;
    g.C = strips ? (void *)((float *)out + at) : (void *)((act_t *)out + at);
    g.ldc = B.width, g.strideC = g.strideB;
    g.c_float = strips, g.alpha = 1, g.beta = j0 < b.r0 ? 1.0f : 0.0f, g.batch = c->pairs;
    gemm(be, &g);
}

/* ---- softmax --------------------------------------------------------------------------------- */

/* A strip of scores, rows t0 .. t0 + rows of `pairs` pairs; keys behind a row's own, up to the end
 * of its block, become 0. */
typedef struct Scores {
    float *S, *dP;
    int64_t ld;
    int first, pairs, t0, rows, T; /* rows: held for each pair; the last strip has fewer */
    float scale, softcap;
    float *lse;     /* (B, H, T) */
    const float *D; /* (B, H, T) */
} Scores;

enum { TILE = WARP * 4 }; /* scores that a warp reads at a time */

/* Four floats of a row that begins at s; those at end and beyond are given as `outside`. */
__device__ static inline void load_scores(float *x, const float *s, int j, int end, float outside) {
    load_vec<4>(x, s + j);
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = j + i < end ? x[i] : outside;
}

__device__ static inline float capped(float s, float softcap) {
    return softcap > 0 ? softcap * tanhf(s / softcap) : s;
}

/* A warp per row; reads the scores twice (4 + 4 bytes, the second time from the cache), writes
 * probabilities over them (2). A tile is read by all lanes before any of it is overwritten. */
__global__ static void softmax_kernel(Scores x) {
    const int lane = threadIdx.x % WARP;
    const int64_t row = (int64_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    const int pair = (int)(row / x.rows), t = x.t0 + (int)(row % x.rows);
    if (pair >= x.pairs || t >= x.T) return;
    float *s = x.S + row * x.ld;
    act_t *p = (act_t *)s;
    const int seen = t + 1, end = (t / BLOCK + 1) * BLOCK < x.T ? (t / BLOCK + 1) * BLOCK : x.T;
    float high = -INFINITY, sum = 0;
    for (int j = lane * 4; j < seen; j += TILE) {
        float v[4];
        load_scores(v, s, j, seen, -INFINITY);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = j + i < seen ? capped(v[i], x.softcap) : -INFINITY;
        const float top = fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3]));
        const float above = fmaxf(high, top);
        sum = sum * expf(high - above) + (expf(v[0] - above) + expf(v[1] - above)) +
              (expf(v[2] - above) + expf(v[3] - above));
        high = above;
    }
    const float all = warp_max(high);
    sum = warp_sum(high == -INFINITY ? 0.0f : sum * expf(high - all));
    if (lane == 0) x.lse[(int64_t)(x.first + pair) * x.T + t] = all + logf(sum);
    const float share = 1.0f / sum;
    for (int j0 = 0; j0 < end; j0 += TILE) {
        const int j = j0 + lane * 4;
        float v[4] = {};
        if (j < end) load_scores(v, s, j, seen, 0);
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = j + i < seen ? expf(capped(v[i], x.softcap) - all) * share : 0.0f;
        __syncwarp();
        if (j < end) store_vec<4>(p + j, v);
    }
}

/* A warp per row; reads S and dP (4 + 4 bytes), writes P and dS over them (2 + 2). */
__global__ static void softmax_bwd_kernel(Scores x) {
    const int lane = threadIdx.x % WARP;
    const int64_t row = (int64_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    const int pair = (int)(row / x.rows), t = x.t0 + (int)(row % x.rows);
    if (pair >= x.pairs || t >= x.T) return;
    float *s = x.S + row * x.ld, *dp = x.dP + row * x.ld;
    act_t *p = (act_t *)s, *ds = (act_t *)dp;
    const int seen = t + 1, end = (t / BLOCK + 1) * BLOCK < x.T ? (t / BLOCK + 1) * BLOCK : x.T;
    const int64_t at = (int64_t)(x.first + pair) * x.T + t;
    const float lse = x.lse[at], D = x.D[at];
    for (int j0 = 0; j0 < end; j0 += TILE) {
        const int j = j0 + lane * 4;
        float v[4] = {}, g[4] = {};
        if (j < end) {
            load_scores(v, s, j, seen, 0);
            load_scores(g, dp, j, seen, 0);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float z = capped(v[i], x.softcap);
            const float slope = x.softcap > 0 ? 1.0f - z / x.softcap * (z / x.softcap) : 1.0f;
            v[i] = j + i < seen ? expf(z - lse) : 0.0f;
            g[i] = j + i < seen ? x.scale * slope * v[i] * (g[i] - D) : 0.0f;
        }
        __syncwarp();
        if (j < end) {
            store_vec<4>(p + j, v);
            store_vec<4>(ds + j, g);
        }
    }
}

static Scores chunk_scores(const Chunk *c, const GemmCoreArgs *x, int t0) {
    const AttentionArgs *a = x->a;
    return Scores{c->S, c->dP, c->ld, c->first, c->pairs, t0, c->rows, c->T, a->scale, a->softcap,
        a->lse, x->D};
}

static int scores_blocks(const Chunk *c) {
    return ceil_div((int64_t)c->pairs * c->rows, THREADS / WARP);
}

/* ---- forward --------------------------------------------------------------------------------- */

static void chunk_copy_in(Backend *be, const Chunk *c, const act_t *qkv, const AttentionArgs *a) {
    const Rows r = chunk_scored(c, a->H);
    copy_rows(be, packed_view(c->q.p, &r), scored_view(qkv, 0, a), &r);
    copy_rows(be, packed_view(c->k.p, &r), scored_view(qkv, 1, a), &r);
}

static void strip_fwd(Backend *be, act_t *out, const Chunk *c, const GemmCoreArgs *x, int r0) {
    const AttentionArgs *a = x->a;
    const int r1 = least(r0 + c->rows, c->T);
    for (int i = r0; i < r1; i += BLOCK)
        scores_product(be, c, Block{i, least(i + BLOCK, r1), r0}, c->S, c->q, c->k, a->scale);
    LAUNCH(softmax_kernel, scores_blocks(c), THREADS, 0, be->stream, chunk_scores(c, x, r0));
    const Rows r = chunk_rows(c, a->H, r0, r1 - r0);
    for (int i = r0; i < r1; i += BLOCK)
        rows_product(be, c, Block{i, least(i + BLOCK, r1), r0}, c->O + (int64_t)(i - r0) * c->HDp,
            (int64_t)r.rows * c->HDp, true, c->S, c->f);
    attention_post(be, dense_view(out, a->T, a->H, a->HD), packed_view((const float *)c->O, &r),
        x->saved, x->exact, a->T, &r);
}

void gemm_core_fwd(Backend *be, act_t *out, const act_t *qkv, const GemmCoreArgs *x) {
    const AttentionArgs *a = x->a;
    const int total = a->B * a->H;
    for (int first = 0; first < total; first += x->plan.pairs) {
        const Chunk c = chunk_new(x, first, least(x->plan.pairs, total - first));
        const Rows r = chunk_rows(&c, a->H, 0, c.T);
        const View<const act_t> v = qkv_view(qkv, 2, a->T, a->H, a->HD);
        chunk_copy_in(be, &c, qkv, a);
        if (LASER)
            laser_values(be, packed_view(c.f.p, &r), v, x->saved, &r);
        else
            copy_rows(be, packed_view(c.f.p, &r), v, &r);
        for (int r0 = a->from / BLOCK * BLOCK; r0 < c.T; r0 += c.rows)
            strip_fwd(be, out, &c, x, r0);
    }
}

/* ---- backward -------------------------------------------------------------------------------- */

static void strip_bwd(Backend *be, const Chunk *c, const GemmCoreArgs *x, int r0) {
    const int r1 = least(r0 + c->rows, c->T);
    for (int i = r0; i < r1; i += BLOCK) {
        const Block b = {i, least(i + BLOCK, r1), r0};
        scores_product(be, c, b, c->S, c->q, c->k, x->a->scale);
        scores_product(be, c, b, c->dP, c->dO, c->f, 1);
    }
    LAUNCH(softmax_bwd_kernel, scores_blocks(c), THREADS, 0, be->stream, chunk_scores(c, x, r0));
    for (int i = r0; i < r1; i += BLOCK)
        rows_product(be, c, Block{i, least(i + BLOCK, r1), r0}, c->dq + (int64_t)i * c->DKp,
            (int64_t)c->T * c->DKp, false, c->dP, c->k);
    for (int j = 0; j < r1; j += BLOCK) {
        const Block b = {j > r0 ? j : r0, r1, r0};
        keys_product(be, c, b, j, least(j + BLOCK, r1), c->dk, c->dP, c->q);
        keys_product(be, c, b, j, least(j + BLOCK, r1), c->df, c->S, c->dO);
    }
}

/* dq, dk and dF back into (B, T, 3, H, HD), with dV = dF E, or += it. */
template <typename E>
static void chunk_copy_out(Backend *be, act_t *dqkv, const Chunk *c, const GemmCoreArgs *x) {
    const AttentionArgs *a = x->a;
    Rows scored = chunk_scored(c, a->H), r = chunk_rows(c, a->H, 0, a->T);
    const View<const act_t> dq = packed_view((const act_t *)c->dq, &scored);
    const View<const E> dk = packed_view((const E *)c->dk, &scored);
    const View<const act_t> f = packed_view((const act_t *)c->f.p, &r);
    const View<const E> df = packed_view((const E *)c->df, &r);
    const View<act_t> dv = qkv_view(dqkv, 2, a->T, a->H, a->HD);
    scored.HDp = a->DK, r.HDp = a->HD; /* the padding stays behind */
    copy_rows(be, scored_view(dqkv, 0, a), dq, &scored);
    copy_rows(be, scored_view(dqkv, 1, a), dk, &scored);
    if (LASER)
        laser_dv(be, dv, df, f, x->saved, a->add_dv, &r);
    else if (a->add_dv)
        add_rows(be, dv, df, &r);
    else
        copy_rows(be, dv, df, &r);
}

void gemm_core_bwd(Backend *be, act_t *dqkv, const act_t *dout, const act_t *qkv, const act_t *out,
    const GemmCoreArgs *x) {
    const AttentionArgs *a = x->a;
    const int total = a->B * a->H, T = a->T, H = a->H, HD = a->HD;
    for (int first = 0; first < total; first += x->plan.pairs) {
        const Chunk c = chunk_new(x, first, least(x->plan.pairs, total - first));
        const Rows r = chunk_rows(&c, H, 0, T);
        const View<const act_t> v = qkv_view(qkv, 2, T, H, HD);
        chunk_copy_in(be, &c, qkv, a);
        if (LASER)
            laser_values_again(be, packed_view(c.f.p, &r), v, x->saved, &r);
        else
            copy_rows(be, packed_view(c.f.p, &r), v, &r);
        attention_dout(be, packed_view(c.dO.p, &r), x->D, x->exact, dense_view(dout, T, H, HD),
            dense_view(out, T, H, HD), x->saved, T, &r);
        for (int r0 = 0; r0 < T; r0 += c.rows) strip_bwd(be, &c, x, r0);
        if (c.rows < T)
            chunk_copy_out<float>(be, dqkv, &c, x);
        else
            chunk_copy_out<act_t>(be, dqkv, &c, x);
    }
}
