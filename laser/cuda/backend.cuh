/* cuda/backend.cuh: what the files of this directory share: the Backend, its streams and scratch,
 * 16-byte accesses, reductions. The same files are compiled by nvcc, and by a C++ compiler for the
 * emulator (dev/emu). Private to laser/cuda; knows nothing of the model.
 *
 * Results are the same bits every time: no atomics on floats, sums in an order that the shape
 * alone decides. */
#ifndef LASER_CUDA_BACKEND_CUH
#define LASER_CUDA_BACKEND_CUH

#include <cuda_launch.h>

#include "laser/backend.h"
#include "laser/base.h"

#ifdef LASER_BF16
constexpr bool BF16 = true;
#else
constexpr bool BF16 = false;
#endif

enum {
    WARP = 32,
    NORM_CUTS = 256, /* ranges of tokens whose gradients of norms and biases are summed apart */
    SUM_CUTS = 1024, /* ranges of a vector that are summed apart */
    SEND_SLOTS = 8,  /* batches that may be on their way at once */
};

/* What backend_reserve lays out in one block; a pure function of limits, options and architecture.
 */
typedef struct ScratchPlan {
    size_t gemm, logits, partials, sums, rope, buckets, send, attention; /* offsets, bytes */
    size_t gemm_bytes, attention_bytes, total;
    int logits_rows;
    int64_t logits_ld; /* floats from row to row, a multiple of 128 */
} ScratchPlan;

typedef struct GemmPlans GemmPlans;   /* gemm.cu */
typedef struct CudnnPlans CudnnPlans; /* attention_cudnn.cc */

struct Backend {
    BackendOptions options;
    int device, sms, major, minor;
    size_t smem_optin; /* bytes of shared memory that a block may ask for */
    double peak_flops; /* of the data sheet, for this precision; 0: unknown device */
    double bandwidth;  /* bytes/s of the data sheet; 0: unknown */
    size_t overhead;   /* bytes that the context and the libraries took */
    int64_t allocations;
    cudaStream_t stream; /* all operations, in the order of the calls */
    cudaStream_t copy;   /* batches on their way up */

    BackendLimits limits;
    ScratchPlan plan;
    char *scratch;        /* one block, NULL before backend_reserve; the following lie in it */
    void *gemm_workspace; /* plan.gemm_bytes */
    float *logits;        /* (plan.logits_rows, plan.logits_ld) */
    float *partials;      /* (NORM_CUTS, 2, max(C, F, 3 H HD, V)) */
    double *sums;         /* (SUM_CUTS) */
    float *rope;          /* (T, 2, DK/2) cosines, sines; filled by backend_reserve */
    int32_t *buckets;     /* (V + 1 + 2 B T) tokens by id, for the gradient of the embedding */
    char *attention;      /* plan.attention_bytes */

    int32_t *send_host;   /* (SEND_SLOTS, B*T) pinned */
    int32_t *send_device; /* (SEND_SLOTS, B*T) */
    cudaEvent_t sent[SEND_SLOTS], taken[SEND_SLOTS];
    int send_next;
    char *read_host; /* (BACKEND_READ_SLOTS, BACKEND_READ_BYTES) pinned */
    cudaEvent_t read_done[BACKEND_READ_SLOTS];
    size_t read_bytes[BACKEND_READ_SLOTS];

    GemmPlans *gemm;
    CudnnPlans *cudnn;
};

/* A GPU of this process, or -1; see backend.cu. */
int cuda_choose_device(int local_rank, int devices, bool share_gpu, bool one_was_chosen);

static inline void require_scratch(const Backend *be) {
    REQUIRE(be->scratch != NULL, "%s", "backend_reserve comes first");
}

/* Counts a piece of a block, 256-byte aligned; its offset. */
static inline size_t scratch_take(size_t *total, size_t bytes) {
    const size_t offset = *total;
    *total = size_add(offset, size_add(bytes, 255) & ~(size_t)255);
    return offset;
}

static inline int ceil_div(int64_t a, int64_t b) {
    return (int)((a + b - 1) / b);
}

/* ---- act_t on the device ---- */

__device__ static inline float to_float(float x) {
    return x;
}
__device__ static inline void store(float *p, float x) {
    *p = x;
}
#ifdef LASER_BF16
__device__ static inline float to_float(act_t x) {
    return __uint_as_float((uint32_t)x.bits << 16);
}
__device__ static inline void store(act_t *p, float x) {
    p->bits = bf16_bits(x);
}
#endif
/* x as it will be read back after storing it */
__device__ static inline float rounded(float x) {
    return BF16 ? __uint_as_float((uint32_t)(BF16 ? bf16_bits(x) : 0) << 16) : x;
}

/* ---- n consecutive elements in one access ---- */

/* VEC elements at p, as floats; p aligned to their size, or to 16 bytes where they are more. */
template <typename E, int VEC> struct __align__(sizeof(E) * VEC) Pack {
    E e[VEC];
};
template <typename E, int VEC>
constexpr int PACK = sizeof(E) * VEC > 16 ? 16 / (int)sizeof(E) : VEC; /* elements of an access */
template <int VEC, typename E>
__device__ static inline void load_vec(float *x /* (VEC) */, const E *p) {
    constexpr int PART = PACK<E, VEC>;
#pragma unroll
    for (int j = 0; j < VEC; j += PART) {
        const Pack<E, PART> pack = *reinterpret_cast<const Pack<E, PART> *>(p + j);
#pragma unroll
        for (int i = 0; i < PART; i++) x[j + i] = to_float(pack.e[i]);
    }
}
template <int VEC, typename E>
__device__ static inline void store_vec(E *p, const float *x /* (VEC) */) {
    constexpr int PART = PACK<E, VEC>;
#pragma unroll
    for (int j = 0; j < VEC; j += PART) {
        Pack<E, PART> pack;
#pragma unroll
        for (int i = 0; i < PART; i++) store(&pack.e[i], x[j + i]);
        *reinterpret_cast<Pack<E, PART> *>(p + j) = pack;
    }
}

enum { ACT_VEC = 16 / sizeof(act_t), FLOAT_VEC = 4 };

/* Whether rows of n elements of `size` bytes at each of the pointers can be read 16 bytes at a
 * time; NULL pointers do not count. */
static inline bool rows_aligned(int64_t n, size_t size, const void *a, const void *b = NULL,
    const void *c = NULL, const void *d = NULL) {
    const uintptr_t all = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d;
    return all % 16 == 0 && (size_t)n * size % 16 == 0;
}

/* ---- reductions: every thread gets the result; all threads of the warp or block must call ---- */

__device__ static inline float warp_sum(float x) {
#pragma unroll
    for (int d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
__device__ static inline float warp_max(float x) {
#pragma unroll
    for (int d = WARP / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}
__device__ static inline double warp_sum(double x) {
#pragma unroll
    for (int d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
/* shared: (32) of the block, free again after the call; blockDim.x a multiple of 32 */
template <typename X> __device__ static inline X block_sum(X x, X *shared) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? shared[lane] : (X)0);
    __syncthreads();
    return x;
}
__device__ static inline float block_max(float x, float *shared) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    x = warp_max(lane < warps ? shared[lane] : -INFINITY);
    __syncthreads();
    return x;
}

/* out[j] = beta * out[j] + sum over the rows of x[:, j], rows ld apart; in a fixed order
 * (reduce.cu) */
template <typename E>
void column_sums(
    Backend *be, float *out /* (cols) */, float beta, const E *x, int rows, int cols, int64_t ld);

#endif
