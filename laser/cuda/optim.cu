/* cuda/optim.cu: what happens once a step: the loss and the norm of the gradient, whether the step
 * counts, and AdamW. Bound by memory. The host neither knows nor waits for what is decided: kernels
 * read the step's state and the table of tensors themselves. */
#include "laser/cuda/backend.cuh"

#include <math.h>

enum { THREADS = 256, ONE_BLOCK = 1024, VEC = FLOAT_VEC };

/* ---- sums ------------------------------------------------------------------------------------ */

/* Everything in double: squares of small gradients would vanish in float, and sums over millions
 * lose their last digits. One block; bytes per element: a float. */
__global__ static void loss_add_kernel(StepState *s, const float *losses, int64_t n) {
    SHARED_ARRAY(double, shared, WARP);
    double sum = 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += ONE_BLOCK) sum += (double)losses[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) s->loss_sum += sum;
}

/* sums[cut] = squares of a cut of x, a block to each; bytes per element: a float. */
template <int V>
__global__ static void square_cuts_kernel(
    double *sums /* (SUM_CUTS) */, const float *x, int64_t n, int64_t piece /* V divides it */) {
    SHARED_ARRAY(double, shared, WARP);
    const int64_t begin = blockIdx.x * piece, end = min(n, begin + piece);
    double sum = 0;
#pragma unroll 4
    for (int64_t i = begin + (int)threadIdx.x * V; i + V <= end; i += THREADS * V) {
        float g[V];
        load_vec<V>(g, x + i);
#pragma unroll
        for (int k = 0; k < V; k++) sum += (double)g[k] * (double)g[k];
    }
    /* what V does not divide: at most at the end of x */
    const int64_t rest = begin < end ? end - (end - begin) % V + (int)threadIdx.x : end;
    if (rest < end) sum += (double)x[rest] * (double)x[rest];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ static void square_total_kernel(StepState *s, const double *sums, int cuts) {
    static_assert((int)ONE_BLOCK == (int)SUM_CUTS, "a thread for each cut");
    SHARED_ARRAY(double, shared, WARP);
    const double total = block_sum((int)threadIdx.x < cuts ? sums[threadIdx.x] : 0.0, shared);
    if (threadIdx.x == 0) s->grad_sumsq = total;
}

void op_loss_add(Backend *be, StepState *s, const float *losses, size_t n) {
    LAUNCH(loss_add_kernel, 1, ONE_BLOCK, 0, be->stream, s, losses, (int64_t)n);
}

void op_grad_norm(Backend *be, StepState *s, const float *grads, size_t n) {
    require_scratch(be);
    const int64_t even = (((int64_t)n + SUM_CUTS - 1) / SUM_CUTS + 15) & ~(int64_t)15;
    const int64_t piece = even > THREADS * VEC ? even : THREADS * VEC;
    const int cuts = ceil_div((int64_t)n, piece);
    if (rows_aligned(0, sizeof(float), grads))
        LAUNCH(square_cuts_kernel<VEC>, cuts, THREADS, 0, be->stream, be->sums, grads, (int64_t)n,
            piece);
    else
        LAUNCH(square_cuts_kernel<1>, cuts, THREADS, 0, be->stream, be->sums, grads, (int64_t)n,
            piece);
    LAUNCH(square_total_kernel, 1, ONE_BLOCK, 0, be->stream, s, (const double *)be->sums, cuts);
}

__global__ static void step_decide_kernel(StepState *s) {
    s->skipped = s->bad_weights || !isfinite(s->loss_sum) || !isfinite(s->grad_sumsq);
    s->updates += !s->skipped;
}

void op_step_decide(Backend *be, StepState *s) {
    LAUNCH(step_decide_kernel, 1, 1, 0, be->stream, s);
}

/* ---- AdamW ----------------------------------------------------------------------------------- */

/* What is computed once for all elements; lies in be->sums. */
typedef struct AdamStep {
    float clip;             /* factor of the gradient */
    float m_scale, v_scale; /* 1 / (1 - beta^t) */
    int32_t skipped;
    int64_t span; /* elements up to the end of the last range */
} AdamStep;

typedef struct Adam {
    OptTensors x;
    AdamArgs a;
    float rest1, rest2; /* 1 - beta */
    const AdamStep *step;
    int32_t *bad_weights; /* becomes 1 */
} Adam;

__global__ static void adam_prepare_kernel(AdamStep *to, Adam k, const StepState *s) {
    const double t = (double)s->updates, norm = sqrt(s->grad_sumsq), limit = (double)k.a.grad_clip;
    const OptRange *last = &k.x.ranges[k.x.count - 1];
    AdamStep step;
    step.clip = limit > 0 && norm + 1e-6 > limit ? (float)(limit / (norm + 1e-6)) : 1.0f;
    step.m_scale = (float)(1.0 / (1.0 - pow((double)k.a.beta1, t)));
    step.v_scale = (float)(1.0 / (1.0 - pow((double)k.a.beta2, t)));
    step.skipped = s->skipped;
    step.span = (int64_t)(last->offset + last->count);
    *to = step;
}

/* Without clipping of updates, all at once; with it, the mean square of the updates of a range must
 * be known before any of it is applied. */
typedef enum AdamPart { ADAM_ALL, ADAM_MOMENTS, ADAM_APPLY } AdamPart;

/* Elements [e, e + N) of range r; the update is multiplied by factor. Returns the sum of the
 * squares of the updates with ADAM_MOMENTS. */
template <AdamPart PART, int N>
__device__ static inline double adam_elements(
    const Adam &k, const AdamStep &s, const OptRange &r, float factor, int64_t e) {
    float g[N], m[N], v[N], p[N], u[N];
    /* all loads before the first store: the compiler may not move them */
    load_vec<N>(m, k.x.m + e);
    load_vec<N>(v, k.x.v + e);
    if constexpr (PART != ADAM_APPLY) load_vec<N>(g, k.x.grads + e);
    if constexpr (PART != ADAM_MOMENTS) load_vec<N>(p, k.x.master + e);
    if constexpr (PART != ADAM_APPLY) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            g[i] *= s.clip;
            m[i] = k.a.beta1 * m[i] + k.rest1 * g[i];
            v[i] = k.a.beta2 * v[i] + k.rest2 * (g[i] * g[i]);
        }
        store_vec<N>(k.x.m + e, m);
        store_vec<N>(k.x.v + e, v);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        /* where v is 0 there was never a gradient, or one whose square is below float */
        u[i] = m[i] * s.m_scale / (sqrtf(v[i] * s.v_scale) + k.a.eps);
        u[i] = v[i] > 0.0f ? u[i] : 0.0f;
    }
    double squares = 0;
    if constexpr (PART == ADAM_MOMENTS) {
#pragma unroll
        for (int i = 0; i < N; i++) squares += (double)u[i] * (double)u[i];
    } else {
        const float decay = k.a.weight_decay * r.decay;
#pragma unroll
        for (int i = 0; i < N; i++) p[i] -= k.a.lr * (u[i] * factor + decay * (p[i] - r.center));
        bool finite = true;
#pragma unroll
        for (int i = 0; i < N; i++) finite = finite && isfinite(p[i]);
        if (!finite) *k.bad_weights = 1;
        store_vec<N>(k.x.master + e, p);
        if ((const void *)k.x.params != (const void *)k.x.master) store_vec<N>(k.x.params + e, p);
    }
    return squares;
}

/* The last range that begins at or before element e, or -1. */
__device__ static inline int find_range(const OptRange *ranges, int count, int64_t e) {
    int low = 0, high = count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if ((int64_t)ranges[middle].offset <= e)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

/* Adam for elements [e, e + N) where they lie in one range; whether they do. */
template <int N>
__device__ static inline bool adam_found(const Adam &k, const AdamStep &s, int64_t e) {
    const int at = find_range(k.x.ranges, k.x.count, e);
    if (at < 0) return false;
    const OptRange r = k.x.ranges[at];
    if (e + N > (int64_t)(r.offset + r.count)) return false;
    adam_elements<ADAM_ALL, N>(k, s, r, 1.0f, e);
    return true;
}

/* Bytes per element: floats of the gradient, and of m, v and master read and written; an act_t
 * written: 30 with bfloat16, 28 where params is master. */
template <int N> __global__ static void __launch_bounds__(THREADS) adam_kernel(Adam k) {
    const AdamStep s = *k.step;
    if (s.skipped) return;
    const int64_t stride = (int64_t)gridDim.x * THREADS * N;
    for (int64_t e = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N; e < s.span; e += stride) {
        if (adam_found<N>(k, s, e) || N == 1) continue;
        for (int i = 0; i < N; i++) adam_found<1>(k, s, e + i);
    }
}

/* A block takes a cut (blockIdx.x) of a range (blockIdx.y). ADAM_MOMENTS leaves the squares of the
 * updates in k.x.work, ADAM_APPLY reads those of the range. Bytes per element: 20, then 18 with
 * bfloat16, 16 where params is master. */
template <AdamPart PART, int N>
__global__ static void __launch_bounds__(THREADS) adam_clipped_kernel(Adam k) {
    static_assert((int)OPT_WORK == 2 * (int)WARP, "two cuts a lane");
    SHARED_ARRAY(double, shared, WARP);
    const AdamStep s = *k.step;
    if (s.skipped) return;
    const OptRange r = k.x.ranges[blockIdx.y];
    double *work = k.x.work + (int64_t)blockIdx.y * OPT_WORK;
    const int64_t count = (int64_t)r.count, last = (int64_t)r.offset + count;
    const int64_t piece = ((count + OPT_WORK - 1) / OPT_WORK + 15) & ~(int64_t)15;
    const int64_t begin = min(last, (int64_t)r.offset + blockIdx.x * piece);
    const int64_t end = min(last, begin + piece);
    float factor = 1.0f;
    if constexpr (PART == ADAM_APPLY) {
        const int lane = threadIdx.x % WARP;
        const double rms = sqrt(warp_sum(work[lane] + work[lane + WARP]) / (double)count);
        factor = 1.0f / (float)fmax(1.0, rms / (double)k.a.update_clip);
    }
    double squares = 0;
    for (int64_t e = begin / N * N + (int)threadIdx.x * N; e < end; e += THREADS * N) {
        if (e >= begin && e + N <= end) {
            squares += adam_elements<PART, N>(k, s, r, factor, e);
            continue;
        }
        for (int64_t i = max(e, begin); i < min(e + N, end); i++)
            squares += adam_elements<PART, 1>(k, s, r, factor, i);
    }
    if constexpr (PART == ADAM_MOMENTS) {
        squares = block_sum(squares, shared);
        if (threadIdx.x == 0) work[blockIdx.x] = squares;
    }
}

template <int N> static void launch_adam(Backend *be, const Adam &k) {
    enum {
        BLOCKS = 32
    }; /* of a multiprocessor: several rounds of them, so that none is left alone */
    if (k.a.update_clip > 0.0f) {
        const dim3 grid(OPT_WORK, (unsigned)k.x.count);
        LAUNCH((adam_clipped_kernel<ADAM_MOMENTS, N>), grid, THREADS, 0, be->stream, k);
        LAUNCH((adam_clipped_kernel<ADAM_APPLY, N>), grid, THREADS, 0, be->stream, k);
    } else {
        const int64_t needed = ceil_div((int64_t)k.x.elements, THREADS * N),
                      most = be->sms * BLOCKS;
        LAUNCH(adam_kernel<N>, (int)(needed < most ? needed : most), THREADS, 0, be->stream, k);
    }
}

void op_adamw(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    require_scratch(be);
    REQUIRE(x->elements > 0, "%s", "the length of the arenas is needed");
    REQUIRE(x->count > 0 && x->count < 65536, "%d tensors", x->count);
    AdamStep *step = (AdamStep *)be->sums;
    Adam k = {};
    k.x = *x, k.a = *a;
    k.rest1 = (float)(1.0 - (double)a->beta1);
    k.rest2 = (float)(1.0 - (double)a->beta2);
    k.step = step, k.bad_weights = &s->bad_weights;
    LAUNCH(adam_prepare_kernel, 1, 1, 0, be->stream, step, k, (const StepState *)s);
    if (rows_aligned(0, sizeof(float), x->master, x->m, x->v, x->grads) &&
        rows_aligned(0, sizeof(act_t), x->params))
        launch_adam<VEC>(be, k);
    else
        launch_adam<1>(be, k);
}
