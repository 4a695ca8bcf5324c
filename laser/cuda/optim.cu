/* cuda/optim.cu: what happens once a step: the loss and the norm of the gradient, whether the step
 * counts, and AdamW and LAMB. Bound by memory. The host neither knows nor waits for what is
 * decided: kernels read the step's state and the table of tensors themselves. */
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

__device__ static uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

/* sums[block] = of the elements that this thread's block takes in turns; whole numbers, so in any
 * order. Bytes per element: a float. */
__global__ static void checksum_cuts_kernel(uint64_t *sums, const float *x, int64_t n) {
    SHARED_ARRAY(uint64_t, shared, THREADS);
    uint64_t sum = 0;
#pragma unroll 4
    for (int64_t i = (int64_t)blockIdx.x * THREADS + (int)threadIdx.x; i < n;
         i += (int64_t)gridDim.x * THREADS)
        sum += mixed(__float_as_uint(x[i]) ^ (uint64_t)i * 0x9e3779b97f4a7c15);
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int k = 1; k < THREADS; k++) sum += shared[k];
    sums[blockIdx.x] = sum;
}

__global__ static void checksum_total_kernel(uint64_t *sum, const uint64_t *sums, int cuts) {
    uint64_t total = 0;
    for (int i = 0; i < cuts; i++) total += sums[i];
    *sum = total;
}

void op_checksum(Backend *be, uint64_t *sum, const float *x, size_t n) {
    require_scratch(be);
    static_assert(sizeof(uint64_t) == sizeof *be->sums, "they share the scratch");
    const int all = ceil_div((int64_t)n, THREADS), cuts = all < SUM_CUTS ? all : SUM_CUTS;
    uint64_t *sums = (uint64_t *)be->sums;
    LAUNCH(checksum_cuts_kernel, cuts, THREADS, 0, be->stream, sums, x, (int64_t)n);
    LAUNCH(checksum_total_kernel, 1, 1, 0, be->stream, sum, (const uint64_t *)sums, cuts);
}

__global__ static void step_decide_kernel(StepState *s) {
    s->skipped = s->bad_weights || !isfinite(s->loss_sum) || !isfinite(s->grad_sumsq);
    s->updates += !s->skipped;
}

void op_step_decide(Backend *be, StepState *s) {
    LAUNCH(step_decide_kernel, 1, 1, 0, be->stream, s);
}

/* ---- AdamW and LAMB -------------------------------------------------------------------------- */

/* What is computed once for all elements; lies in be->sums. */
typedef struct AdamStep {
    float clip;             /* factor of the gradient */
    float m_scale, v_scale; /* 1 / (1 - beta^t) */
    int32_t skipped;
    int64_t span; /* elements up to the end of the last range */
} AdamStep;

/* A range moves by -lr * (direction * u + decay * (master - center)). */
typedef struct AdamFactors {
    float direction, decay;
} AdamFactors;

/* Sums over elements, q being master - center: they give the norm of any combination of u and q.
 * Where u and decay cancel, doubles lose less than u has lost as a float. */
typedef struct AdamSums {
    double uu, uq, qq;
} AdamSums;

/* Where norms of ranges are needed: a block takes `piece` elements of a range and leaves their sums
 * in a slot of x.work, behind the factors of the ranges. Cut i of range r has slot
 * offset / piece + r + i. No two have the same: the slots of the next range begin at least
 * count / piece + 1 later, which is no less than the number of cuts. So any cut finds its range by
 * itself, and blocks have equal work whatever the sizes of the tensors. */
enum { SLOTS = 21 }; /* for each range */
static_assert(sizeof(AdamFactors) + SLOTS * sizeof(AdamSums) == OPT_WORK * sizeof(double),
    "factors and slots are what a range has in work");

typedef struct Adam {
    OptTensors x;
    AdamArgs a;
    float rest1, rest2; /* 1 - beta */
    const AdamStep *step;
    int32_t *bad_weights; /* becomes 1 */
    int64_t piece;
    AdamFactors *factors; /* (count) in x.work */
    AdamSums *slots;      /* (elements / piece + count) behind them */
} Adam;

__device__ static inline int64_t first_slot(const Adam &k, int range) {
    return (int64_t)k.x.ranges[range].offset / k.piece + range;
}

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

/* All at once, or moments first, with the sums that clipping (SQUARES: uu alone) or LAMB (NORMS)
 * must know of a whole range before any of it is moved (APPLY). */
typedef enum AdamPart { ADAM_ALL, ADAM_SQUARES, ADAM_NORMS, ADAM_APPLY } AdamPart;

/* Elements [e, e + N) of range r. by: with ADAM_ALL and ADAM_APPLY; sums: added to with the
 * others. */
template <AdamPart PART, int N>
__device__ static inline void adam_elements(const Adam &k, const AdamStep &s, const OptRange &r,
    AdamFactors by, AdamSums *sums, int64_t e) {
    constexpr bool MOMENTS = PART != ADAM_APPLY, MOVES = PART == ADAM_ALL || PART == ADAM_APPLY;
    float g[N], m[N], v[N], p[N], u[N];
    /* all loads before the first store: the compiler may not move them */
    load_vec<N>(m, k.x.m + e);
    load_vec<N>(v, k.x.v + e);
    if constexpr (MOMENTS) load_vec<N>(g, k.x.grads + e);
    if constexpr (PART != ADAM_SQUARES) load_vec<N>(p, k.x.master + e);
    if constexpr (MOMENTS) {
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
    if constexpr (MOVES) {
        bool finite = true;
#pragma unroll
        for (int i = 0; i < N; i++) {
            p[i] -= k.a.lr * (u[i] * by.direction + by.decay * (p[i] - r.center));
            finite = finite && isfinite(p[i]);
        }
        if (!finite) atomicExch(k.bad_weights, 1); /* several threads may */
        store_vec<N>(k.x.master + e, p);
        if ((const void *)k.x.params != (const void *)k.x.master) store_vec<N>(k.x.params + e, p);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const double du = (double)u[i];
            sums->uu += du * du;
            if constexpr (PART == ADAM_NORMS) {
                const double q = (double)p[i] - (double)r.center;
                sums->uq += du * q;
                sums->qq += q * q;
            }
        }
    }
}

/* The last range whose first element, or slot, is at most `at`; -1 where there is none. */
template <bool SLOT> __device__ static inline int find_range(const Adam &k, int64_t at) {
    int low = 0, high = k.x.count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if ((SLOT ? first_slot(k, middle) : (int64_t)k.x.ranges[middle].offset) <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

/* Moves elements [e, e + N) where they lie in one range; whether they do. */
template <AdamPart PART, int N>
__device__ static inline bool adam_found(const Adam &k, const AdamStep &s, int64_t e) {
    const int at = find_range<false>(k, e);
    if (at < 0) return false;
    const OptRange r = k.x.ranges[at];
    if (e + N > (int64_t)(r.offset + r.count)) return false;
    AdamFactors by = {1.0f, k.a.weight_decay * r.decay};
    if constexpr (PART == ADAM_APPLY) by = k.factors[at];
    adam_elements<PART, N>(k, s, r, by, NULL, e);
    return true;
}

/* Bytes per element. ADAM_ALL: floats of the gradient, and of m, v and master read and written; an
 * act_t written: 30 with bfloat16, 28 where params is master. ADAM_APPLY, which reads m and v and
 * no gradient: 18 and 16. */
template <AdamPart PART, int N>
__global__ static void __launch_bounds__(THREADS) adam_kernel(Adam k) {
    const AdamStep s = *k.step;
    if (s.skipped) return;
    const int64_t stride = (int64_t)gridDim.x * THREADS * N;
    for (int64_t e = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N; e < s.span; e += stride) {
        if (adam_found<PART, N>(k, s, e) || N == 1) continue;
        for (int i = 0; i < N; i++) adam_found<PART, 1>(k, s, e + i);
    }
}

/* A block to each slot. Bytes per element: 20 with ADAM_SQUARES, 24 with ADAM_NORMS. */
template <AdamPart PART, int N>
__global__ static void __launch_bounds__(THREADS) adam_sums_kernel(Adam k) {
    SHARED_ARRAY(double, shared, WARP);
    const AdamStep s = *k.step;
    if (s.skipped) return;
    const int at = find_range<true>(k, blockIdx.x);
    if (at < 0) return;
    const OptRange r = k.x.ranges[at];
    const int64_t cut = blockIdx.x - first_slot(k, at);
    const int64_t begin = (int64_t)r.offset + cut * k.piece;
    const int64_t end = min(begin + k.piece, (int64_t)(r.offset + r.count));
    if (begin >= end) return; /* a slot between those of two ranges */
    AdamSums sums = {0, 0, 0};
    for (int64_t e = begin / N * N + (int)threadIdx.x * N; e < end; e += THREADS * N) {
        if (e >= begin && e + N <= end) {
            adam_elements<PART, N>(k, s, r, {}, &sums, e);
            continue;
        }
        for (int64_t i = max(e, begin); i < min(e + N, end); i++)
            adam_elements<PART, 1>(k, s, r, {}, &sums, i);
    }
    sums.uu = block_sum(sums.uu, shared);
    if constexpr (PART == ADAM_NORMS) {
        sums.uq = block_sum(sums.uq, shared);
        sums.qq = block_sum(sums.qq, shared);
    }
    if (threadIdx.x == 0) k.slots[blockIdx.x] = sums;
}

/* A block to each range. */
__global__ static void __launch_bounds__(THREADS) adam_factors_kernel(Adam k) {
    SHARED_ARRAY(double, shared, WARP);
    const OptRange r = k.x.ranges[blockIdx.x];
    const int64_t first = first_slot(k, (int)blockIdx.x);
    const int64_t cuts = ((int64_t)r.count + k.piece - 1) / k.piece;
    if (k.step->skipped) return;
    AdamSums all = {0, 0, 0};
    for (int64_t i = threadIdx.x; i < cuts; i += THREADS) {
        const AdamSums cut = k.slots[first + i];
        all.uu += cut.uu, all.uq += cut.uq, all.qq += cut.qq;
    }
    all.uu = block_sum(all.uu, shared);
    all.uq = block_sum(all.uq, shared);
    all.qq = block_sum(all.qq, shared);
    if (threadIdx.x > 0) return;
    const double decay = (double)(k.a.weight_decay * r.decay), limit = (double)k.a.update_clip;
    double shrink = 1, trust = 1;
    if (limit > 0) shrink = 1 / fmax(1.0, sqrt(all.uu / (double)r.count) / limit);
    if (k.a.lamb) {
        const double squares =
            shrink * shrink * all.uu + 2 * shrink * decay * all.uq + decay * decay * all.qq;
        if (squares > 0 && all.qq > 0) trust = sqrt(all.qq / squares);
    }
    k.factors[blockIdx.x] = {(float)(trust * shrink), (float)(trust * decay)};
}

template <int N> static void launch_adam(Backend *be, Adam &k) {
    enum {
        BLOCKS = 32
    }; /* of a multiprocessor: several rounds of them, so that none is left alone */
    const int64_t elements = (int64_t)k.x.elements, needed = ceil_div(elements, THREADS * N);
    const int64_t most = (int64_t)be->sms * BLOCKS;
    const int blocks = (int)(needed < most ? needed : most), count = k.x.count;
    if (!k.a.lamb && !(k.a.update_clip > 0.0f)) {
        LAUNCH((adam_kernel<ADAM_ALL, N>), blocks, THREADS, 0, be->stream, k);
        return;
    }
    const int64_t least = (elements / ((SLOTS - 1) * count) + 16) & ~(int64_t)15;
    k.piece = least > THREADS * N ? least : THREADS * N;
    k.factors = (AdamFactors *)k.x.work;
    k.slots = (AdamSums *)(k.x.work + count);
    const int slots = (int)(elements / k.piece) + count;
    REQUIRE(slots <= SLOTS * count, "%d slots for %d tensors", slots, count);
    if (k.a.lamb)
        LAUNCH((adam_sums_kernel<ADAM_NORMS, N>), slots, THREADS, 0, be->stream, k);
    else
        LAUNCH((adam_sums_kernel<ADAM_SQUARES, N>), slots, THREADS, 0, be->stream, k);
    LAUNCH(adam_factors_kernel, count, THREADS, 0, be->stream, k);
    LAUNCH((adam_kernel<ADAM_APPLY, N>), blocks, THREADS, 0, be->stream, k);
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
