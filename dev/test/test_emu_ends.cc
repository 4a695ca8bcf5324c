/* test_emu_ends.cc: errors in kernels, and in the host code around them, that the emulator promises
 * to find: each is planted and must end the program with a report. Knows nothing of the kernels in
 * laser/cuda. */
#include <cuda_launch.h>
#include <signal.h>

#include "dev/emu/emu.h"
#include "dev/test/test.h"

enum { THREADS = 128, WARP = 32 };
static const unsigned ALL = 0xffffffffu;

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static float *device_floats(size_t n) {
    float *p = NULL;
    CUDA_CHECK(cudaMalloc(&p, n * sizeof(float)));
    return p;
}

/* A test that the program ends with code and says so on stderr; what it does follows. */
#define PLANTED_CODE(name, code, says)                                                             \
    static void plant_##name(void *unused);                                                        \
    static void test_##name(Test *t) {                                                             \
        EXPECT_EXIT(t, code, says, plant_##name, NULL);                                            \
    }                                                                                              \
    static void plant_##name(void *)
#define PLANTED(name, says) PLANTED_CODE(name, -SIGABRT, says)
/* ASan reports these first. */
#define PLANTED_ACCESS(name, says)                                                                 \
    PLANTED_CODE(name, SANITIZED ? 1 : -SIGABRT, SANITIZED ? "ERROR: AddressSanitizer" : says)

__global__ static void nothing_kernel(float *out, int n) {
    if (n < 0) out[0] = 0;
}

/* ---- global memory ------------------------------------------------------------------------ */

__global__ static void write_at_kernel(float *out, int i) {
    if (threadIdx.x == 5) out[i] = 1;
}
static void write_at(size_t n, int i) {
    LAUNCH(write_at_kernel, 1, WARP, 0, NULL, device_floats(n), i);
}
PLANTED_ACCESS(past_end, "a write 0 bytes past the end of the allocation of 400 bytes") {
    write_at(100, 100);
}
PLANTED_ACCESS(before, "a write 4 bytes before the allocation") {
    write_at(100, -1);
}
/* where the pages end with the allocation, the access itself is caught */
PLANTED(past_page, "0 bytes past the end of the allocation of 4096 bytes") {
    write_at(1024, 1024);
}
PLANTED(past_large, "0 bytes past the end of the allocation of 4194304 bytes") {
    write_at(1 << 20, 1 << 20);
}
PLANTED(far, "in no allocation of device memory, by kernel write_at_kernel") {
    write_at(4, 1 << 20);
}
PLANTED_CODE(null, SANITIZED ? 1 : -SIGABRT,
    SANITIZED ? "null pointer" : "access to (nil), not device memory, by kernel write_at_kernel") {
    LAUNCH(write_at_kernel, 1, WARP, 0, NULL, NULL, 0);
}

__global__ static void read_kernel(const float *in, float *out, int n) {
    for (int i = 0; i <= n; i++) out[0] += in[i];
}
PLANTED(read_past, "thread (0, 0, 0)") {
    LAUNCH(read_kernel, 1, 1, 0, NULL, device_floats(64), device_floats(1), 64);
}

PLANTED(freed, "freed allocation") {
    float *p = device_floats(9);
    CUDA_CHECK(cudaFree(p));
    LAUNCH(nothing_kernel, 1, 1, 0, NULL, p, 0);
}
PLANTED(freed_twice, "freed allocation") {
    float *p = device_floats(9);
    CUDA_CHECK(cudaFree(p));
    cudaFree(p);
}
PLANTED(copy_past, "cudaMemset: 17 bytes") {
    cudaMemset(device_floats(4), 0, 17);
}
PLANTED(copy_from_host, "cudaMemcpy from: 4 bytes") {
    float x = 0;
    cudaMemcpy(device_floats(4), &x, sizeof x, cudaMemcpyDeviceToDevice);
}

/* ---- host code and host memory ------------------------------------------------------------ */

PLANTED(host_read, "host code touched device memory") {
    float *p = device_floats(3);
    LAUNCH(nothing_kernel, 1, 1, 0, NULL, p, 1);
    const float x = *(volatile float *)p;
    (void)x;
}
PLANTED(host_write, "host code touched device memory") {
    *device_floats(3000) = 1;
}
PLANTED(host_pointer, "argument 1 is") {
    float x = 0;
    LAUNCH(nothing_kernel, 1, 1, 0, NULL, &x, 0);
}

typedef struct Source {
    float factor;
    const float *in;
} Source;
__global__ static void struct_kernel(float *out, Source x) {
    if (out) out[0] = x.factor * x.in[0];
}
static void plant_in_struct(void *) {
    float x = 0;
    const Source source = {2, &x};
    LAUNCH(struct_kernel, 1, 1, 0, NULL, NULL, source);
}
static void test_in_struct(Test *t) {
    if (EMU_PADDED) SKIP(t, "%s", "this compiler cannot tell a pointer from padding");
    EXPECT_EXIT(t, -SIGABRT, "argument 2 holds", plant_in_struct, NULL);
}
PLANTED(freed_in_struct, "argument 2 holds") {
    float *p = device_floats(1);
    const Source source = {2, p};
    CUDA_CHECK(cudaFree(p));
    LAUNCH(struct_kernel, 1, 1, 0, NULL, NULL, source);
}

__global__ static void call_kernel(int *count) {
    cudaGetDeviceCount(count);
    cudaDeviceSynchronize();
}
PLANTED(api_in_kernel, "cudaDeviceSynchronize is called in a kernel") {
    int *p;
    CUDA_CHECK(cudaMalloc(&p, sizeof *p));
    LAUNCH(call_kernel, 1, 1, 0, NULL, p);
}

/* ---- shared memory ------------------------------------------------------------------------ */

__global__ static void shared_write_kernel(int fixed, int dynamic) {
    DYN_SMEM(float, held);
    SHARED_ARRAY(float, first, THREADS);
    SHARED_ARRAY(float, last, 5);
    first[threadIdx.x] = 0;
    if (threadIdx.x) return;
    float *p = last;
    p[0] = 0;
    if (fixed >= 0) p[fixed] = 1;
    if (dynamic >= 0) held[dynamic] = 1;
}
static void shared_write(int fixed, int dynamic) {
    LAUNCH(shared_write_kernel, 1, THREADS, 40, NULL, fixed, dynamic);
}
PLANTED_ACCESS(shared_past, "0 bytes past the end of the shared array last") {
    shared_write(5, -1);
}
PLANTED_ACCESS(dynamic_past, "4 bytes past the end of the shared array DYN_SMEM (40 bytes)") {
    shared_write(-1, 11);
}
__global__ static void large_kernel(float *out) {
    SHARED_ARRAY(float, large, 12289);
    large[0] = out[0];
}
PLANTED(large_array, "49156 bytes of SHARED_ARRAY, at most 49152") {
    LAUNCH(large_kernel, 1, 1, 0, NULL, device_floats(1));
}
PLANTED(large_shared, "232449 bytes of dynamic shared memory") {
    LAUNCH(nothing_kernel, 1, 1, 227 * 1024 + 1, NULL, NULL, 0);
}
PLANTED(large_block, "a block of (1025, 1, 1) threads") {
    LAUNCH(nothing_kernel, 1, 1025, 0, NULL, NULL, 0);
}

/* ---- warps and barriers ------------------------------------------------------------------- */

/* n: lanes that come, mask: what they say */
__global__ static void mask_kernel(float *out, int n, unsigned mask, int by) {
    const int lane = (int)threadIdx.x;
    if (lane < n) out[lane] = __shfl_xor_sync(mask, (float)lane, by);
    if (by > 16) out[lane] = __shfl_sync(mask, (float)lane, by);
}
static void mask_wrong(int n, unsigned mask, int by) {
    emu_set_order("forward");
    LAUNCH(mask_kernel, 1, WARP, 0, NULL, device_floats(WARP), n, mask, by);
}
PLANTED(mask_self, "lane 16 is not in it") {
    mask_wrong(32, 0xffffu, 1);
}
PLANTED(mask_ended, "threads 16 to 31: ended") {
    mask_wrong(16, ALL, 1);
}
PLANTED(mask_source, "lane 0 reads lane 8, which is not in it") {
    mask_wrong(8, 0xffu, 8);
}
PLANTED(mask_place, "waits in __shfl_xor_sync with mask ffffffff") {
    mask_wrong(16, ALL, 17);
}

__global__ static void divergent_kernel(float *out, int n) {
    if ((int)threadIdx.x < n)
        __syncthreads();
    else
        out[0] = (float)__syncthreads_or(1);
}
PLANTED(divergent, "a barrier in divergent flow") {
    LAUNCH(divergent_kernel, 2, THREADS, 0, NULL, device_floats(1), 70);
}
__global__ static void early_kernel(int n) {
    if ((int)threadIdx.x < n) return;
    __syncthreads();
}
PLANTED(early, "threads 0 to 69: ended") {
    LAUNCH(early_kernel, 2, THREADS, 0, NULL, 70);
}

PLANTED(unknown_order, "EMU_ORDER is 'sideways'") {
    emu_set_order("sideways");
}
PLANTED(no_seed, "EMU_ORDER is 'forward:3'") {
    emu_set_order("forward:3");
}

static const TestCase cases[] = {
    {"emu_ends: planted: a store past the end of global memory is found", test_past_end},
    {"emu_ends: planted: a store before global memory is found", test_before},
    {"emu_ends: planted: a store past a page of global memory is found", test_past_page},
    {"emu_ends: planted: a store far from all allocations is found", test_far},
    {"emu_ends: planted: a load past the end of global memory is found", test_read_past},
    {"emu_ends: planted: a store past the end of a shared array is found", test_shared_past},
    {"emu_ends: planted: a store past dynamic shared memory is found", test_dynamic_past},
    {"emu_ends: planted: a mask without the lane itself is found", test_mask_self},
    {"emu_ends: planted: a mask with a lane that has ended is found", test_mask_ended},
    {"emu_ends: planted: a shuffle from outside of the mask is found", test_mask_source},
    {"emu_ends: planted: lanes at different shuffles are found", test_mask_place},
    {"emu_ends: planted: a barrier in divergent flow is found", test_divergent},
    {"emu_ends: planted: a barrier that some threads never reach is found", test_early},
    {"emu_ends: planted: host code that reads device memory is found", test_host_read},
    {"emu_ends: planted: host code that writes device memory is found", test_host_write},
    {"emu_ends: planted: a kernel's pointer to host memory is found", test_host_pointer},
    {"emu_ends: planted: a pointer to host memory in a struct is found", test_in_struct},
    {"emu_ends: planted: a kernel's pointer to freed memory is found", test_freed},
    {"emu_ends: planted: memory that is freed twice is found", test_freed_twice},
    {"emu_ends: planted: a kernel that follows NULL is found", test_null},
    {"emu_ends: planted: a call of the runtime in a kernel is found", test_api_in_kernel},
    {"emu_ends: planted: a block that is too large is found", test_large_block},
    {"emu_ends: planted: too much shared memory is found", test_large_shared},
    {"emu_ends: planted: a memset past the end is found", test_copy_past},
    {"emu_ends: an unknown order is refused", test_unknown_order},
    {"emu_ends: planted: a store past a large block of memory is found", test_past_large},
    {"emu_ends: planted: a pointer to freed memory in a struct is found", test_freed_in_struct},
    {"emu_ends: planted: a copy from the wrong side is found", test_copy_from_host},
    {"emu_ends: planted: arrays too large for shared memory are found", test_large_array},
    {"emu_ends: an order that takes no seed is refused with one", test_no_seed},
};

const TestCase *test_emu_ends(int *count) {
    return TEST_TABLE(cases, count);
}
