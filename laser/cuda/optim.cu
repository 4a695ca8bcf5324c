/* cuda/optim.cu: what happens once a step: the loss and the norm of the gradient, whether the step
 * counts, and AdamW and LAMB. Bound by memory. The host neither knows nor waits for what is
 * decided: kernels read the step's state and the table of tensors themselves. */
#include "laser/cuda/backend.cuh"

#include <math.h>

enum { THREADS = 256, WARPS = THREADS / WARP, ONE_BLOCK = 1024, VEC = FLOAT_VEC };

/* ---- sums ------------------------------------------------------------------------------------ */

/* Everything in double: squares of small gradients would vanish in float, and sums over millions
 * lose their last digits. */

/* Of all threads of a block of ONE_BLOCK, which all call it; shared: as of block_sum. */
template <typename X>
__device__ static inline double sum_by_block(const X *x, int64_t n, double *shared) {
    double sum = 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += ONE_BLOCK) sum += (double)x[i];
    return block_sum(sum, shared);
}

/* One block; bytes per element: a float. */
__global__ static void loss_add_kernel(double *to, const float *losses, int64_t n) {
    SHARED_ARRAY(double, shared, WARP);
    const double sum = sum_by_block(losses, n, shared);
    if (threadIdx.x == 0) *to += sum;
}

/* Bytes per element: x read and written, y read. */
template <int N> __global__ static void add_kernel(float *x, const float *y, int64_t n) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + (int)threadIdx.x) * N;
    if (i + N > n) {
        for (; i < n; i++) x[i] += y[i];
        return;
    }
    float a[N], b[N];
    load_vec<N>(a, x + i);
    load_vec<N>(b, y + i);
#pragma unroll
    for (int k = 0; k < N; k++) a[k] += b[k];
    store_vec<N>(x + i, a);
}

/* A warp to each block of elements, so that nothing waits for others. Bytes per element: a float.
 */
__global__ static void __launch_bounds__(THREADS)
    square_blocks_kernel(double *squares /* (blocks) */, const float *x, int blocks) {
    static_assert(OPT_BLOCK % (WARP * VEC) == 0, "a warp takes whole rounds");
    const int block = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (block >= blocks) return;
    const float *from = x + (int64_t)block * OPT_BLOCK + lane * VEC;
    double sum = 0;
#pragma unroll 8
    for (int i = 0; i < OPT_BLOCK; i += WARP * VEC) {
        float g[VEC];
        load_vec<VEC>(g, from + i);
#pragma unroll
        for (int k = 0; k < VEC; k++) sum += (double)g[k] * (double)g[k];
    }
    sum = warp_sum(sum);
    if (lane == 0) squares[block] = sum;
}

void op_loss_add(Backend *be, double *sum, const float *losses, size_t n) {
    LAUNCH(loss_add_kernel, 1, ONE_BLOCK, 0, be->stream, sum, losses, (int64_t)n);
}

void op_add(Backend *be, float *x, const float *y, size_t n) {
    const int64_t all = (int64_t)n;
    if (rows_aligned(0, sizeof(float), x, y))
        LAUNCH(add_kernel<VEC>, ceil_div(all, THREADS * VEC), THREADS, 0, be->stream, x, y, all);
    else
        LAUNCH(add_kernel<1>, ceil_div(all, THREADS), THREADS, 0, be->stream, x, y, all);
}

void op_square_blocks(Backend *be, double *squares, const float *x, size_t n) {
    REQUIRE(n % OPT_BLOCK == 0, "%zu elements are not whole blocks", n);
    REQUIRE(rows_aligned(0, sizeof(float), x), "%s", "elements are read 16 bytes at a time");
    const int blocks = (int)(n / OPT_BLOCK);
    LAUNCH(
        square_blocks_kernel, ceil_div(blocks, WARPS), THREADS, 0, be->stream, squares, x, blocks);
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

__global__ static void bad_weights_kernel(double *bad, const StepState *s) {
    *bad = s->bad_weights;
}

void op_bad_weights(Backend *be, double *bad, const StepState *s) {
    LAUNCH(bad_weights_kernel, 1, 1, 0, be->stream, bad, s);
}

/* One block. */
__global__ static void step_decide_kernel(StepState *s, StepSums sums) {
    SHARED_ARRAY(double, shared, WARP);
    const double loss = sum_by_block(sums.losses, (int64_t)sums.micro_steps, shared);
    const double squares = sum_by_block(sums.squares, (int64_t)sums.blocks, shared);
    if (threadIdx.x > 0) return;
    s->loss_sum = loss;
    s->grad_sumsq = squares;
    s->bad_weights = *sums.bad != 0.0;
    s->skipped = s->bad_weights || !isfinite(loss) || !isfinite(squares);
    s->updates += !s->skipped;
}

void op_step_decide(Backend *be, StepState *s, const StepSums *sums) {
    LAUNCH(step_decide_kernel, 1, ONE_BLOCK, 0, be->stream, s, *sums);
}

/* ---- AdamW and LAMB -------------------------------------------------------------------------- */

/* What is computed once for all elements; lies in be->sums. */
typedef struct AdamStep {
    float clip;             /* factor of the gradient */
    float m_scale, v_scale; /* 1 / (1 - beta^t) */
    int32_t skipped;
} AdamStep;

/* A tensor moves by -lr * (direction * u + decay * (master - center)). */
typedef struct AdamFactors {
    float direction, decay;
} AdamFactors;

typedef struct Adam {
    OptTensors x;
    AdamArgs a;
    float rest1, rest2; /* 1 - beta */
    bool in_place;      /* params is master */
    const AdamStep *step;
    int32_t *bad_weights; /* becomes 1 */
} Adam;

__global__ static void adam_prepare_kernel(AdamStep *to, Adam k, const StepState *s) {
    const double t = (double)s->updates, norm = sqrt(s->grad_sumsq), limit = (double)k.a.grad_clip;
    AdamStep step;
    step.clip = limit > 0 && norm + 1e-6 > limit ? (float)(limit / (norm + 1e-6)) : 1.0f;
    step.m_scale = (float)(1.0 / (1.0 - pow((double)k.a.beta1, t)));
    step.v_scale = (float)(1.0 / (1.0 - pow((double)k.a.beta2, t)));
    step.skipped = s->skipped;
    *to = step;
}

/* All at once, or moments first, with the sums that clipping (SQUARES: uu alone) or LAMB (NORMS)
 * must know of a whole tensor before any of it is moved (APPLY). */
typedef enum AdamPart { ADAM_ALL, ADAM_SQUARES, ADAM_NORMS, ADAM_APPLY } AdamPart;

/* Elements [h, h + N) of what is held, all of range r. by: with ADAM_ALL and ADAM_APPLY; sums:
 * added to with the others. uu, uq and qq give the norm of any combination of u and q; where u and
 * decay cancel, doubles lose less than u has lost as a float. */
template <AdamPart PART, int N>
__device__ static inline void adam_elements(
    const Adam &k, const AdamStep &s, const OptRange &r, AdamFactors by, OptSums *sums, int64_t h) {
    constexpr bool MOMENTS = PART != ADAM_APPLY, MOVES = PART == ADAM_ALL || PART == ADAM_APPLY;
    const int64_t e = h + ((int64_t)r.offset - (int64_t)r.held); /* in the parameter arena */
    float *master = k.x.master + (k.in_place ? e : h);
    float g[N], m[N], v[N], p[N], u[N];
    /* all loads before the first store: the compiler may not move them */
    load_vec<N>(m, k.x.m + h);
    load_vec<N>(v, k.x.v + h);
    if constexpr (MOMENTS) load_vec<N>(g, k.x.grads + e);
    if constexpr (PART != ADAM_SQUARES) load_vec<N>(p, master);
    if constexpr (MOMENTS) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            g[i] *= s.clip;
            m[i] = k.a.beta1 * m[i] + k.rest1 * g[i];
            v[i] = k.a.beta2 * v[i] + k.rest2 * (g[i] * g[i]);
        }
        store_vec<N>(k.x.m + h, m);
        store_vec<N>(k.x.v + h, v);
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
        store_vec<N>(master, p);
        if (!k.in_place) store_vec<N>(k.x.params + e, p);
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

/* Up to VEC of them: those before `end`. h and all ranges begin at multiples of VEC. */
template <AdamPart PART>
__device__ static inline void adam_vector(const Adam &k, const AdamStep &s, const OptRange &r,
    AdamFactors by, OptSums *sums, int64_t h, int64_t end) {
    if (h + VEC <= end)
        adam_elements<PART, VEC>(k, s, r, by, sums, h);
    else
        for (; h < end; h++) adam_elements<PART, 1>(k, s, r, by, sums, h);
}

/* The last range that begins at or before element h of what is held; -1 where there is none. */
__device__ static inline int find_range(const Adam &k, int64_t h) {
    int low = 0, high = k.x.count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if ((int64_t)k.x.ranges[middle].held <= h)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

/* Bytes per element. ADAM_ALL: floats of the gradient, and of m, v and master read and written; an
 * act_t written: 30 with bfloat16, 28 where params is master. ADAM_APPLY, which reads m and v and
 * no gradient: 18 and 16. */
template <AdamPart PART> __global__ static void __launch_bounds__(THREADS) adam_kernel(Adam k) {
    const AdamStep s = *k.step;
    if (s.skipped) return;
    const int64_t stride = (int64_t)gridDim.x * THREADS * VEC, held = (int64_t)k.x.held;
    for (int64_t h = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * VEC; h < held; h += stride) {
        const int at = find_range(k, h);
        if (at < 0) continue;
        const OptRange r = k.x.ranges[at];
        AdamFactors by = {1.0f, k.a.weight_decay * r.decay};
        if constexpr (PART == ADAM_APPLY)
            by = {k.x.factors[2 * r.tensor], k.x.factors[2 * r.tensor + 1]};
        adam_vector<PART>(k, s, r, by, NULL, h, (int64_t)(r.held + r.count));
    }
}

/* A block to each OPT_BLOCK elements of what is held, tensor by tensor. Bytes per element: 20 with
 * ADAM_SQUARES, 24 with ADAM_NORMS. */
template <AdamPart PART>
__global__ static void __launch_bounds__(THREADS) adam_sums_kernel(Adam k) {
    SHARED_ARRAY(double, shared, WARP);
    const AdamStep s = *k.step;
    if (s.skipped) return;
    const int64_t first = (int64_t)blockIdx.x * OPT_BLOCK, last = first + OPT_BLOCK;
    for (int at = max(find_range(k, first), 0); at < k.x.count; at++) {
        const OptRange r = k.x.ranges[at];
        if ((int64_t)r.held >= last) break;
        const int64_t begin = max(first, (int64_t)r.held);
        const int64_t end = min(last, (int64_t)(r.held + r.count));
        if (begin >= end) continue; /* it lies before, and padding behind it */
        OptSums sums = {0, 0, 0};
        for (int64_t h = begin + (int)threadIdx.x * VEC; h < end; h += THREADS * VEC)
            adam_vector<PART>(k, s, r, {}, &sums, h, end);
        sums.uu = block_sum(sums.uu, shared);
        if constexpr (PART == ADAM_NORMS) {
            sums.uq = block_sum(sums.uq, shared);
            sums.qq = block_sum(sums.qq, shared);
        }
        const int64_t block = (int64_t)(r.offset - r.held + (size_t)first) / OPT_BLOCK;
        if (threadIdx.x == 0) k.x.sums[block + r.tensor] = sums;
    }
}

/* A block to each tensor. */
__global__ static void __launch_bounds__(THREADS) adam_factors_kernel(Adam k) {
    SHARED_ARRAY(double, shared, WARP);
    const int tensor = (int)blockIdx.x;
    const OptTensor t = k.x.tensors[tensor];
    const OptSums *slots = k.x.sums + t.offset / OPT_BLOCK + tensor;
    const int blocks = (int)((t.offset % OPT_BLOCK + t.count + OPT_BLOCK - 1) / OPT_BLOCK);
    if (k.step->skipped) return;
    OptSums all = {0, 0, 0};
    for (int i = threadIdx.x; i < blocks; i += THREADS)
        all.uu += slots[i].uu, all.uq += slots[i].uq, all.qq += slots[i].qq;
    all.uu = block_sum(all.uu, shared);
    all.uq = block_sum(all.uq, shared);
    all.qq = block_sum(all.qq, shared);
    if (threadIdx.x > 0) return;
    const double decay = (double)(k.a.weight_decay * t.decay), limit = (double)k.a.update_clip;
    double shrink = 1, trust = 1;
    if (limit > 0) shrink = 1 / fmax(1.0, sqrt(all.uu / (double)t.count) / limit);
    if (k.a.lamb) {
        const double squares =
            shrink * shrink * all.uu + 2 * shrink * decay * all.uq + decay * decay * all.qq;
        if (squares > 0 && all.qq > 0) trust = sqrt(all.qq / squares);
    }
    k.x.factors[2 * tensor] = (float)(trust * shrink);
    k.x.factors[2 * tensor + 1] = (float)(trust * decay);
}

static Adam prepare(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    require_scratch(be);
    REQUIRE(rows_aligned(0, sizeof(float), x->master, x->m, x->v, x->grads) &&
                rows_aligned(0, sizeof(act_t), x->params),
        "%s", "elements are moved 16 bytes at a time");
    AdamStep *step = (AdamStep *)be->sums;
    Adam k = {};
    k.x = *x, k.a = *a;
    k.rest1 = (float)(1.0 - (double)a->beta1);
    k.rest2 = (float)(1.0 - (double)a->beta2);
    k.in_place = (const void *)x->params == (const void *)x->master;
    k.step = step, k.bad_weights = &s->bad_weights;
    LAUNCH(adam_prepare_kernel, 1, 1, 0, be->stream, step, k, (const StepState *)s);
    return k;
}

template <AdamPart PART> static void launch_adam(Backend *be, const Adam &k) {
    /* of a multiprocessor: several rounds of them, so that none is left alone */
    enum { BLOCKS = 32 };
    const int64_t needed = ceil_div((int64_t)k.x.held, THREADS * VEC);
    const int64_t most = (int64_t)be->sms * BLOCKS;
    const int blocks = (int)(needed < most ? needed : most);
    if (k.x.count > 0) LAUNCH(adam_kernel<PART>, blocks, THREADS, 0, be->stream, k);
}

void op_adamw(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    REQUIRE(!a->lamb && !(a->update_clip > 0.0f), "%s", "norms of tensors are asked for");
    launch_adam<ADAM_ALL>(be, prepare(be, x, a, s));
}

void op_adam_sums(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    const Adam k = prepare(be, x, a, s);
    const int blocks = ceil_div((int64_t)x->held, OPT_BLOCK);
    backend_zero(be, x->sums, (x->blocks + (size_t)x->tensor_count) * sizeof *x->sums);
    if (x->count == 0) return;
    if (a->lamb)
        LAUNCH(adam_sums_kernel<ADAM_NORMS>, blocks, THREADS, 0, be->stream, k);
    else
        LAUNCH(adam_sums_kernel<ADAM_SQUARES>, blocks, THREADS, 0, be->stream, k);
}

void op_adam_apply(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s) {
    const Adam k = prepare(be, x, a, s);
    LAUNCH(adam_factors_kernel, x->tensor_count, THREADS, 0, be->stream, k);
    launch_adam<ADAM_APPLY>(be, k);
}
