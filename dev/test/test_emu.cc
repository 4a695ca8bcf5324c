/* test_emu.cc: the emulator: that sound kernels give what CUDA would give, in every order of the
 * threads, and that planted errors show in the results. test_emu_ends.cc: errors that end the
 * program. Knows nothing of the kernels in laser/cuda. */
#include <cuda_launch.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "dev/emu/emu.h"
#include "dev/test/test.h"

enum { THREADS = 128, WARP = 32, BLOCKS = 3, N = THREADS * BLOCKS };
static const unsigned ALL = 0xffffffffu;
static const char *const ORDERS[] = {"forward", "reverse", "random:7", "random:8", "warps:9"};
enum { ORDER_COUNT = sizeof ORDERS / sizeof *ORDERS };

/* ---- running --------------------------------------------------------------------------------- */

static float *device_floats(size_t n) {
    float *p = NULL;
    CUDA_CHECK(cudaMalloc(&p, n * sizeof(float)));
    return p;
}

/* Bits, so that NaN can be compared. */
typedef struct Result {
    uint32_t x[N];
} Result;
static float at(const Result &r, int i) {
    float x;
    memcpy(&x, &r.x[i], sizeof x);
    return x;
}

typedef void (*Launcher)(float *out /* (N) */);
static Result run(Launcher launch, const char *order) {
    Result r;
    float *out = device_floats(N);
    emu_set_order(order);
    launch(out);
    emu_set_order(NULL);
    CUDA_CHECK(cudaMemcpy(r.x, out, sizeof r, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaFree(out));
    return r;
}

/* How many of ORDERS give the bits of the first. */
static int agreeing_orders(Launcher launch) {
    const Result first = run(launch, ORDERS[0]);
    int same = 1;
    for (int i = 1; i < ORDER_COUNT; i++) {
        const Result r = run(launch, ORDERS[i]);
        same += !memcmp(r.x, first.x, sizeof r.x);
    }
    return same;
}

#if defined(__SANITIZE_THREAD__)
#define RACES_END 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RACES_END 1
#endif
#endif
#ifndef RACES_END
#define RACES_END 0
#endif

static void run_race(void *launch) {
    run(*(Launcher *)launch, ORDERS[0]);
}
/* That it shows: two orders differ, or the program ends where accesses are watched. */
static void check_race(Test *t, Launcher launch) {
    if (RACES_END)
        EXPECT_EXIT(t, -SIGABRT, "a race: this thread", run_race, &launch);
    else
        CHECK(t, agreeing_orders(launch) < ORDER_COUNT, "%s", "no order shows it");
}

/* A kernel of (float *out, int n), on BLOCKS blocks. */
#define LAUNCHER(name, n)                                                                          \
    static void name(float *out) {                                                                 \
        LAUNCH(name##_kernel, BLOCKS, THREADS, 0, NULL, out, n);                                   \
    }

/* ---- sound kernels --------------------------------------------------------------------------- */

__device__ static int global_thread(void) {
    return (int)(blockIdx.x * blockDim.x + threadIdx.x);
}

__global__ static void places_kernel(int *seen, dim3 size) {
    const dim3 p(blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,
        blockIdx.z * blockDim.z + threadIdx.z);
    const unsigned i = (p.z * size.y + p.y) * size.x + p.x;
    if (blockDim.x * gridDim.x == size.x) atomicAdd(&seen[i], 1);
}

static void test_places(Test *t) {
    const dim3 grid(2, 3, 4), block(5, 2, 3), size(10, 6, 12);
    int *seen, host[720];
    CUDA_CHECK(cudaMalloc(&seen, sizeof host));
    for (int k = 0; k < ORDER_COUNT; k++) {
        int once = 0;
        emu_set_order(ORDERS[k]);
        CUDA_CHECK(cudaMemset(seen, 0, sizeof host));
        LAUNCH(places_kernel, grid, block, 0, NULL, seen, size);
        CUDA_CHECK(cudaMemcpy(host, seen, sizeof host, cudaMemcpyDeviceToHost));
        for (int i = 0; i < 720; i++) once += host[i] == 1;
        CHECK_INT(t, once, 720);
    }
    emu_set_order(NULL);
    CUDA_CHECK(cudaFree(seen));
}

/* Sum of the block through shared memory, the slow way, then shifted. */
__global__ static void reduce_kernel(float *out, int n) {
    SHARED_ARRAY(float, sums, THREADS);
    const int i = (int)threadIdx.x;
    for (int round = 0; round < n; round++) {
        sums[i] = (float)(i + round);
        for (int half = THREADS / 2; half > 0; half /= 2) {
            __syncthreads();
            if (i < half) sums[i] += sums[i + half];
        }
        __syncthreads();
        out[global_thread()] = sums[0] + (float)i;
        __syncthreads();
    }
}
LAUNCHER(reduce, 3);

static void test_barriers(Test *t) {
    const Result r = run(reduce, "forward");
    for (int i = 0; i < N; i++)
        CHECK_INT(t, at(r, i), THREADS * (THREADS - 1) / 2 + 2 * THREADS + i % THREADS);
    CHECK_INT(t, agreeing_orders(reduce), ORDER_COUNT);
}

__global__ static void warp_kernel(float *out, int n) {
    const int lane = (int)threadIdx.x % WARP;
    float x = (float)(lane * lane);
    int errors = 0;
    errors += __shfl_sync(ALL, lane, 5) != 5;
    errors += __shfl_sync(ALL, lane, 9, 8) != (lane & ~7) + 1;
    errors += __shfl_up_sync(ALL, lane, 3, 16) != (lane % 16 < 3 ? lane : lane - 3);
    errors += __shfl_down_sync(ALL, lane, 3) != (lane > 28 ? lane : lane + 3);
    errors += __shfl_xor_sync(ALL, (double)lane, 4) != (double)(lane ^ 4);
    errors += __shfl_xor_sync(ALL, (long long)lane << 40, 1) != (long long)(lane ^ 1) << 40;
    errors += __shfl_xor_sync(ALL, lane, 8, 8) != (lane % 16 < 8 ? lane : lane ^ 8);
    errors += __ballot_sync(ALL, lane % 3 == 0) != 0x49249249u;
    errors += __any_sync(ALL, lane == 31) != 1 || __all_sync(ALL, lane < 31) != 0;
    errors += __any_sync(ALL, lane > 31) != 0 || __all_sync(ALL, lane < 32) != 1;
    if (lane < n) /* half a warp */
        errors += __shfl_xor_sync(0xffffu, lane, 15) != (lane ^ 15);
    else
        errors += __ballot_sync(0xffff0000u, 1) != 0xffff0000u;
    __syncwarp();
    for (int d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(ALL, x, d);
    out[global_thread()] = errors ? -(float)errors : x;
}
LAUNCHER(warp, 16);

static void test_warps(Test *t) {
    const Result r = run(warp, "forward");
    for (int i = 0; i < N; i++) CHECK_INT(t, at(r, i), 10416);
    CHECK_INT(t, agreeing_orders(warp), ORDER_COUNT);
}

__global__ static void votes_kernel(float *out, int n) {
    const int i = (int)threadIdx.x;
    int errors = 0;
    for (int k = 0; k < n; k++) {
        errors += (__syncthreads_or(i == k) != 0) != true;
        errors += (__syncthreads_or(0) != 0) != false;
        errors += (__syncthreads_and(i >= 0) != 0) != true;
        errors += (__syncthreads_and(i != k) != 0) != false;
        errors += __syncthreads_count(i % 4 == k) != THREADS / 4;
    }
    out[global_thread()] = (float)errors;
}
LAUNCHER(votes, 4);

__global__ static void atomics_kernel(float *out, int *i, unsigned long long *u) {
    atomicAdd(&i[0], 2);
    atomicMax(&i[1], global_thread());
    atomicMin(&i[2], -global_thread());
    if (atomicCAS(&i[3], 0, 1) == 0) atomicExch(&i[4], 7);
    atomicAdd(u, 1ull << 33);
    out[global_thread()] = 0;
}
static void atomics(float *out) {
    int *i, host[5];
    unsigned long long *u, sum;
    CUDA_CHECK(cudaMalloc(&i, sizeof host));
    CUDA_CHECK(cudaMalloc(&u, sizeof *u));
    CUDA_CHECK(cudaMemset(i, 0, sizeof host));
    CUDA_CHECK(cudaMemset(u, 0, sizeof *u));
    LAUNCH(atomics_kernel, BLOCKS, THREADS, 0, NULL, out, i, u);
    CUDA_CHECK(cudaMemcpy(host, i, sizeof host, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemcpy(&sum, u, sizeof sum, cudaMemcpyDeviceToHost));
    const bool right = host[0] == 2 * N && host[1] == N - 1 && host[2] == 1 - N && host[3] == 1 &&
                       host[4] == 7 && sum == (unsigned long long)N << 33;
    REQUIRE(right, "%d %d %d %d %d %llu", host[0], host[1], host[2], host[3], host[4], sum);
    CUDA_CHECK(cudaFree(i));
    CUDA_CHECK(cudaFree(u));
}

template <typename T> static char adds_atomically(decltype(atomicAdd((T *)0, (T)0)) *);
template <typename T> static long adds_atomically(...);

static void test_votes(Test *t) {
    const Result r = run(votes, "random:3");
    for (int i = 0; i < N; i++) CHECK_INT(t, at(r, i), 0);
    CHECK_INT(t, agreeing_orders(votes), ORDER_COUNT);
    CHECK_INT(t, agreeing_orders(atomics), ORDER_COUNT);
    CHECK_INT(t, sizeof adds_atomically<int>(0), sizeof(char));
    CHECK_INT(t, sizeof adds_atomically<float>(0), sizeof(long)); /* does not compile */
    CHECK_INT(t, sizeof adds_atomically<double>(0), sizeof(long));
}

typedef struct Numbers {
    const float *in;
    int64_t large;
    float factor;
} Numbers;
template <int VEC, bool TWICE>
__global__ static void arguments_kernel(float *out, Numbers x, double d, const float *none) {
    DYN_SMEM(float, held);
    const int i = global_thread();
    held[threadIdx.x] = x.in[i] * x.factor * VEC;
    __syncthreads();
    const float y = held[THREADS - 1 - threadIdx.x];
    out[i] = (TWICE ? 2 * y : y) + (float)d + (none ? 1.0f : 0.0f) + (float)(x.large >> 40);
}

static void test_arguments(Test *t) {
    float host[N];
    float *out = device_floats(N), *in = device_floats(N);
    for (int i = 0; i < N; i++) host[i] = (float)i;
    CUDA_CHECK(cudaMemcpy(in, host, sizeof host, cudaMemcpyHostToDevice));
    const Numbers x = {in, (int64_t)3 << 40, 0.5f};
    LAUNCH((arguments_kernel<4, true>), BLOCKS, THREADS, THREADS * sizeof(float), NULL, out, x, 1,
        NULL);
    CUDA_CHECK(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost));
    for (int i = 0; i < N; i++)
        CHECK_INT(t, host[i], 4 * (i / THREADS * THREADS + THREADS - 1 - i % THREADS) + 4);
    CUDA_CHECK(cudaFree(out));
    CUDA_CHECK(cudaFree(in));
}

/* Every block sees shared memory afresh. */
__global__ static void fresh_kernel(float *out, int n) {
    DYN_SMEM(float, dynamic);
    SHARED_ARRAY(float, fixed, THREADS);
    const int i = (int)threadIdx.x;
    out[global_thread()] = isnan(fixed[i]) && isnan(dynamic[i]) ? (float)n : -1;
    fixed[i] = dynamic[i] = 0;
}
static void fresh(float *out) {
    LAUNCH(fresh_kernel, BLOCKS, THREADS, THREADS * sizeof(float), NULL, out, 1);
}
__global__ static void nothing_kernel(float *out, int n) {
    if (n < 0) out[0] = 0;
}
LAUNCHER(nothing, 0);

static void test_fresh(Test *t) {
    const Result r = run(fresh, "forward"), untouched = run(nothing, "forward");
    for (int i = 0; i < N; i++) CHECK_INT(t, at(r, i), 1);
    for (int i = 0; i < N; i++) CHECK(t, isnan(at(untouched, i)), "%d: %g", i, at(untouched, i));
}

static void test_bf16(Test *t) {
    static const float x[] = {1.0f, -2.5f, 0.0f, 1.00390625f, 1.01171875f, INFINITY, 3.4e38f};
    static const int bits[] = {0x3f80, 0xc020, 0, 0x3f80, 0x3f82, 0x7f80, 0x7f80};
    for (int i = 0; i < 7; i++) CHECK_INT(t, bf16_bits(x[i]), bits[i]);
    CHECK_INT(t, bf16_bits(NAN), 0x7fff);
}

static void test_runtime(Test *t) {
    cudaStream_t stream;
    cudaEvent_t start, stop, untimed;
    void *pinned, *device;
    size_t available, total;
    float ms = -1;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&stop));
    CUDA_CHECK(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming));
    CUDA_CHECK(cudaMallocHost(&pinned, 100));
    memset(pinned, 1, 100);
    CUDA_CHECK(cudaFreeHost(pinned));
    CHECK_INT(t, cudaEventElapsedTime(&ms, start, stop), cudaErrorInvalidResourceHandle);
    CHECK_INT(t, cudaGetLastError(), cudaErrorInvalidResourceHandle);
    CHECK_INT(t, cudaGetLastError(), cudaSuccess);
    CUDA_CHECK(cudaEventRecord(start, stream));
    CUDA_CHECK(cudaEventRecord(stop, stream));
    CUDA_CHECK(cudaStreamWaitEvent(stream, stop, 0));
    CUDA_CHECK(cudaEventQuery(stop));
    CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
    CHECK(t, ms >= 0 && ms < 1000, "%g ms", (double)ms);
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    CHECK_INT(t, cudaMalloc(&device, total + 1), cudaErrorMemoryAllocation);
    CHECK(t, !device && available <= total, "%p %zu %zu", device, available, total);
    cudaGetLastError();
    CHECK_INT(t, cudaSetDevice(1), cudaErrorInvalidDevice);
    CHECK_INT(t, cudaGetLastError(), cudaErrorInvalidDevice);
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(stop));
    CUDA_CHECK(cudaEventDestroy(untimed));
    CUDA_CHECK(cudaStreamDestroy(stream));
}

static void test_memory(Test *t) {
    const EmuCounts before = emu_counts();
    float *kept = device_floats(1000);
    for (int i = 1; i <= 3000; i++) {
        float *p = device_floats((size_t)i * 7 % 5000 + 1);
        CHECK(t, (uintptr_t)p % 256 == 0 && emu_is_device(p, 4), "%p", (void *)p);
        CUDA_CHECK(cudaMemset(p, 0, 4));
        CUDA_CHECK(cudaFree(p));
        CHECK(t, !emu_is_device(p, 4), "%p", (void *)p);
    }
    CHECK(t, emu_is_device(kept + 10, 990 * 4) && !emu_is_device(kept + 10, 991 * 4), "%p",
        (void *)kept);
    CUDA_CHECK(cudaFree(kept));
    CHECK_INT(t, emu_counts().allocations, before.allocations);
    CHECK_INT(t, emu_counts().bytes, before.bytes);
}

/* ---- planted errors that two orders show ----------------------------------------------------- */

__global__ static void no_barrier_kernel(float *out, int n) {
    SHARED_ARRAY(float, held, THREADS);
    held[threadIdx.x] = (float)threadIdx.x;
    out[global_thread()] = held[((int)threadIdx.x + n) % THREADS];
}
LAUNCHER(no_barrier, 1);
static void test_no_barrier(Test *t) {
    check_race(t, no_barrier);
    if (RACES_END) return;
    const Result r = run(no_barrier, "forward");
    CHECK(t, isnan(at(r, 0)), "%g was read before it was written", at(r, 0));
}

/* The second write may come before another thread's first read. */
__global__ static void overwrite_kernel(float *out, int n) {
    SHARED_ARRAY(float, held, THREADS);
    float sum = 0;
    for (int k = 0; k < n; k++) {
        held[threadIdx.x] = (float)((int)threadIdx.x + 1000 * k);
        __syncthreads();
        sum += held[(threadIdx.x + 1) % THREADS];
    }
    out[global_thread()] = sum;
}
LAUNCHER(overwrite, 2);
static void test_overwrite(Test *t) {
    check_race(t, overwrite);
}

__global__ static void shared_race_kernel(float *out, int n) {
    SHARED_ARRAY(float, last, 1);
    if ((int)threadIdx.x < n) last[0] = (float)threadIdx.x;
    __syncthreads();
    out[global_thread()] = last[0];
}
LAUNCHER(shared_race, 40);
static void test_shared_race(Test *t) {
    check_race(t, shared_race);
}

__global__ static void block_race_kernel(float *out, int n) {
    out[threadIdx.x] = (float)blockIdx.x;
    for (int i = n; i < N; i++) out[i] = 0;
}
LAUNCHER(block_race, THREADS);
static void test_block_race(Test *t) {
    check_race(t, block_race);
}

/* The same sum in every order; lanes that meet in a shuffle order no memory. */
__global__ static void silent_race_kernel(float *out, int n) {
    SHARED_ARRAY(int, count, 1);
    if (threadIdx.x == 0) count[0] = 0;
    __syncthreads();
    for (int k = 0; k < WARP; k++) {
        if (k == (int)threadIdx.x) count[0]++;
        if (n)
            __syncwarp();
        else
            __shfl_sync(ALL, k, 0);
    }
    __syncthreads();
    out[global_thread()] = (float)count[0];
}
static void silent_race(float *out) {
    LAUNCH(silent_race_kernel, BLOCKS, THREADS, 0, NULL, out, 0);
}
static void no_race(float *out) {
    LAUNCH(silent_race_kernel, BLOCKS, THREADS, 0, NULL, out, 1);
}
static void test_silent_race(Test *t) {
    CHECK_INT(t, agreeing_orders(no_race), ORDER_COUNT);
    if (!RACES_END) SKIP(t, "%s", "accesses are watched with SANITIZE=thread");
    check_race(t, silent_race);
}

__global__ static void unwritten_kernel(float *out, int n) {
    if (global_thread() < n) out[global_thread()] = 1;
}
LAUNCHER(unwritten, N - 1);
static void test_unwritten(Test *t) {
    const Result r = run(unwritten, "forward");
    CHECK_INT(t, at(r, N - 2), 1);
    CHECK(t, isnan(at(r, N - 1)), "%g was never written", at(r, N - 1));
}

static const TestCase cases[] = {
    {"emu: every thread of every block runs once, and knows its place", test_places},
    {"emu: barriers part what is before from what is behind, in every order", test_barriers},
    {"emu: warp operations give CUDA's values, also for a part of the warp, in every order",
        test_warps},
    {"emu: votes of a block, atomics on integers; none on floats", test_votes},
    {"emu: arguments convert as in a call; structs, templates, dynamic shared memory",
        test_arguments},
    {"emu: shared memory of each block and new device memory read as NaN", test_fresh},
    {"emu: bfloat16 rounds to nearest even", test_bf16},
    {"emu: streams, events and errors behave as CUDA's", test_runtime},
    {"emu: allocations come and go and leave nothing behind", test_memory},
    {"emu: planted: a missing barrier is found", test_no_barrier},
    {"emu: planted: a missing barrier before the next round is found", test_overwrite},
    {"emu: planted: a race in shared memory is found", test_shared_race},
    {"emu: planted: a race that no order shows is found", test_silent_race},
    {"emu: planted: a race of blocks is found", test_block_race},
    {"emu: planted: an output that nobody writes is found", test_unwritten},
};

const TestCase *test_emu(int *count) {
    return TEST_TABLE(cases, count);
}
