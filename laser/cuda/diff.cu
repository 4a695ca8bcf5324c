/* cuda/diff.cu: two attention maps into one, as differential attention combines them: a difference,
 * and a norm over each head. One pass each way. Knows no attention.
 *
 * With f = 1 - lambda_init and r = 1 / sqrt(mean(y^2) + eps) of a head:
 *   fwd:  y = o1 - lambda o2,  out = f y r w   (without norm: y)
 *   bwd:  dy = f r (dout w - y r^2 mean(dout w y))   (without norm: dout),
 *         do1 = dy,  do2 = -lambda dy,  dlambda = -sum dy o2,  dw = f sum dout y r.
 * Bytes per element (bf16): fwd 6, bwd 10: each tensor once, which is the least. y and r are
 * computed again rather than kept. */
#include "laser/cuda/heads.cuh"

typedef struct Lambda {
    float value, first, second; /* exp(lq1.lk1), exp(lq2.lk2) */
} Lambda;

/* Every warp for itself: less than waiting for a kernel that writes one number. All lanes call. */
__device__ static inline Lambda diff_lambda(const DiffArgs &a) {
    float dot1 = 0, dot2 = 0;
    for (int i = threadIdx.x % WARP; i < a.HD / 2; i += WARP) {
        dot1 += to_float(a.lq1[i]) * to_float(a.lk1[i]);
        dot2 += to_float(a.lq2[i]) * to_float(a.lk2[i]);
    }
    const float first = expf(warp_sum(dot1)), second = expf(warp_sum(dot2));
    return Lambda{first - second + a.lambda_init, first, second};
}

typedef struct DiffRows { /* (N, H, HD) each */
    act_t *out;           /* fwd */
    const act_t *o1, *o2;
    const act_t *dout; /* bwd */
    act_t *do1, *do2;
} DiffRows;

template <int VEC>
__device__ static inline void load_difference(
    float *y, float *o2, const DiffRows &x, int64_t at, float lambda) {
    load_vec<VEC>(y, x.o1 + at);
    load_vec<VEC>(o2, x.o2 + at);
#pragma unroll
    for (int i = 0; i < VEC; i++) y[i] -= lambda * o2[i];
}

/* A block per cut of the rows. */
template <int VEC, bool NORM>
__global__ static void diff_fwd_kernel(DiffRows x, DiffArgs a, HeadRows r) {
    const HeadLane l = head_lane(r, VEC);
    const int from = blockIdx.x * r.cut_rows, to = min(r.rows, from + r.cut_rows);
    const float lambda = diff_lambda(a).value;
    for (int base = from; base < to; base += l.groups) {
        const int row = base + l.group;
        const bool live = row < to;
        const int64_t at = (int64_t)row * r.HD;
        float factor = 1, squares = 0;
        if (NORM) {
            for (int c = l.first; live && c < r.HD; c += l.step) {
                float y[VEC], o2[VEC];
                load_difference<VEC>(y, o2, x, at + c, lambda);
#pragma unroll
                for (int i = 0; i < VEC; i++) squares += y[i] * y[i];
            }
            squares = lanes_sum(squares, r.lanes);
            factor = (1.0f - a.lambda_init) / sqrtf(squares / (float)r.HD + a.eps);
        }
        for (int c = l.first; live && c < r.HD; c += l.step) {
            float y[VEC], o2[VEC], w[VEC];
            load_difference<VEC>(y, o2, x, at + c, lambda);
            if (NORM) {
                load_vec<VEC>(w, a.w + c);
#pragma unroll
                for (int i = 0; i < VEC; i++) y[i] *= factor * w[i];
            }
            store_vec<VEC>(x.out + at + c, y);
        }
    }
}

/* Columns of what a cut leaves behind: dlambda, then dw. */
static int sums_columns(const DiffArgs *a) {
    return a->w ? 1 + a->HD : 1;
}

/* The same blocks. do1 may be dout: a lane reads its channels before it writes them. */
template <int VEC, bool NORM>
__global__ static void diff_bwd_kernel(
    DiffRows x, float *partial /* (cuts, 1 + HD, or 1) */, DiffArgs a, HeadRows r) {
    DYN_SMEM(float, tables); /* (groups, HD) sums of dout y r */
    SHARED_ARRAY(float, shared, WARP);
    const HeadLane l = head_lane(r, VEC);
    float *own = tables + l.group * r.HD;
    const int from = blockIdx.x * r.cut_rows, to = min(r.rows, from + r.cut_rows);
    const float lambda = diff_lambda(a).value, f = NORM ? 1.0f - a.lambda_init : 1.0f;
    float dlambda = 0;
    for (int c = l.first; NORM && c < r.HD; c += l.step)
#pragma unroll
        for (int i = 0; i < VEC; i++) own[c + i] = 0;
    for (int base = from; base < to; base += l.groups) {
        const int row = base + l.group;
        const bool live = row < to;
        const int64_t at = (int64_t)row * r.HD;
        float squares = 0, gy = 0, rstd = 1;
        if (NORM) {
            for (int c = l.first; live && c < r.HD; c += l.step) {
                float y[VEC], o2[VEC], g[VEC], w[VEC];
                load_difference<VEC>(y, o2, x, at + c, lambda);
                load_vec<VEC>(g, x.dout + at + c);
                load_vec<VEC>(w, a.w + c);
#pragma unroll
                for (int i = 0; i < VEC; i++) {
                    squares += y[i] * y[i];
                    gy += g[i] * w[i] * y[i];
                }
            }
            rstd = 1.0f / sqrtf(lanes_sum(squares, r.lanes) / (float)r.HD + a.eps);
            gy = lanes_sum(gy, r.lanes) / (float)r.HD * rstd * rstd;
        }
        for (int c = l.first; live && c < r.HD; c += l.step) {
            float y[VEC], o2[VEC], g[VEC], second[VEC];
            load_difference<VEC>(y, o2, x, at + c, lambda);
            load_vec<VEC>(g, x.dout + at + c);
            if (NORM) {
                float w[VEC], sum[VEC];
                load_vec<VEC>(w, a.w + c);
                load_vec<VEC>(sum, own + c);
#pragma unroll
                for (int i = 0; i < VEC; i++) {
                    sum[i] += g[i] * (y[i] * rstd);
                    g[i] = f * rstd * (g[i] * w[i] - y[i] * gy);
                }
                store_vec<VEC>(own + c, sum);
            }
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                dlambda -= g[i] * o2[i];
                second[i] = -lambda * g[i];
            }
            store_vec<VEC>(x.do1 + at + c, g);
            store_vec<VEC>(x.do2 + at + c, second);
        }
    }
    partial += (int64_t)blockIdx.x * (NORM ? 1 + r.HD : 1);
    dlambda = block_sum(dlambda, shared);
    if (threadIdx.x == 0) partial[0] = dlambda;
    if (NORM) head_block_sums(partial + 1, tables, l.groups, r);
}

/* A block takes WARP columns; the first has dlambda and makes the gradients of lambda's vectors. */
__global__ static void diff_total_kernel(
    DiffGrads g, const float *partial, int cuts, int columns, DiffArgs a) {
    const int lane = threadIdx.x % WARP, column = blockIdx.x * WARP + lane;
    const float sum = head_total(partial, cuts, columns);
    if (threadIdx.x >= WARP) return;
    if (column > 0 && column < columns)
        beta_store(&g.w[column - 1], g.beta, (1.0f - a.lambda_init) * sum);
    if (blockIdx.x > 0) return;
    const Lambda lambda = diff_lambda(a);
    const float dlambda = __shfl_sync(0xffffffffu, sum, 0);
    const float dfirst = dlambda * lambda.first, dsecond = -dlambda * lambda.second;
    for (int i = lane; i < a.HD / 2; i += WARP) {
        beta_store(&g.lq1[i], g.beta, dfirst * to_float(a.lk1[i]));
        beta_store(&g.lk1[i], g.beta, dfirst * to_float(a.lq1[i]));
        beta_store(&g.lq2[i], g.beta, dsecond * to_float(a.lk2[i]));
        beta_store(&g.lk2[i], g.beta, dsecond * to_float(a.lq2[i]));
    }
}

/* ---- the operations -------------------------------------------------------------------------- */

static void check_args(const Backend *be, const DiffArgs *a) {
    require_heads(be, a->N, a->H, a->HD);
    REQUIRE(a->HD % 2 == 0, "head size %d is odd", a->HD);
}

template <int VEC> static void launch_fwd(Backend *be, const DiffRows &x, const DiffArgs *a) {
    const HeadRows r = head_rows(a->N, a->H, a->HD, VEC, 1);
    if (a->w)
        LAUNCH((diff_fwd_kernel<VEC, true>), r.cuts, r.threads, 0, be->stream, x, *a, r);
    else
        LAUNCH((diff_fwd_kernel<VEC, false>), r.cuts, r.threads, 0, be->stream, x, *a, r);
}

void op_diff_fwd(Backend *be, act_t *out, const act_t *o1, const act_t *o2, const DiffArgs *a) {
    check_args(be, a);
    const DiffRows x = {out, o1, o2, NULL, NULL, NULL};
    if (rows_aligned(a->HD, sizeof(act_t), out, o1, o2, a->w))
        launch_fwd<ACT_VEC>(be, x, a);
    else
        launch_fwd<1>(be, x, a);
}

/* Returns the number of cuts. */
template <int VEC> static int launch_bwd(Backend *be, const DiffRows &x, const DiffArgs *a) {
    const HeadRows r = head_rows(a->N, a->H, a->HD, VEC, 1);
    if (a->w)
        LAUNCH((diff_bwd_kernel<VEC, true>), r.cuts, r.threads, head_table_bytes(r, head_groups(r)),
            be->stream, x, be->partials, *a, r);
    else
        LAUNCH((diff_bwd_kernel<VEC, false>), r.cuts, r.threads, 0, be->stream, x, be->partials, *a,
            r);
    return r.cuts;
}

void op_diff_bwd(Backend *be, act_t *do1, act_t *do2, const DiffGrads *g, const act_t *dout,
    const act_t *o1, const act_t *o2, const DiffArgs *a) {
    check_args(be, a);
    REQUIRE(!a->w == !g->w, "%s", "a gradient for each parameter and no other");
    const DiffRows x = {NULL, o1, o2, dout, do1, do2};
    const bool wide = rows_aligned(a->HD, sizeof(act_t), o1, o2, dout, a->w) &&
                      rows_aligned(a->HD, sizeof(act_t), do1, do2);
    const int cuts = wide ? launch_bwd<ACT_VEC>(be, x, a) : launch_bwd<1>(be, x, a);
    const int columns = sums_columns(a);
    LAUNCH(diff_total_kernel, ceil_div(columns, WARP), HEAD_TOTAL_THREADS, 0, be->stream, *g,
        (const float *)be->partials, cuts, columns, *a);
}
