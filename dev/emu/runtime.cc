/* runtime.cc: the calls of cuda_runtime.h that allocate no device memory: the device, copies,
 * streams, events. All work is done when a call returns. As strict as CUDA is: a handle that was
 * destroyed, a pointer of the wrong side, ends the program. Knows nothing of kernels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "dev/emu/internal.h"

struct CUstream_st {
    uint64_t magic;
};
struct CUevent_st {
    uint64_t magic;
    unsigned flags;
    bool recorded;
    double seconds;
};
static const uint64_t STREAM = 0x73747265616d2121u, EVENT = 0x6576656e74212121u;

typedef struct Pinned {
    char *p;
    size_t bytes;
} Pinned;
typedef struct Runtime {
    cudaError_t last;
    Pinned *pinned;
    int count;
    int device;
} Runtime;
static Runtime runtime;

static cudaError_t keep(cudaError_t error) {
    if (error != cudaSuccess) runtime.last = error;
    return error;
}

/* ---- errors ---------------------------------------------------------------------------------- */

typedef struct ErrorText {
    cudaError_t error;
    const char *name, *text;
} ErrorText;
static const ErrorText error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
        "invalid configuration argument"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
};

static const ErrorText *error_text(cudaError_t error) {
    static const ErrorText unknown = {cudaSuccess, "unknown", "unrecognized error code"};
    for (const ErrorText &e : error_texts)
        if (e.error == error) return &e;
    return &unknown;
}
const char *cudaGetErrorString(cudaError_t error) {
    return error_text(error)->text;
}
const char *cudaGetErrorName(cudaError_t error) {
    return error_text(error)->name;
}
cudaError_t cudaPeekAtLastError(void) {
    return runtime.last;
}
cudaError_t cudaGetLastError(void) {
    const cudaError_t error = runtime.last;
    runtime.last = cudaSuccess;
    return error;
}

/* ---- the device ------------------------------------------------------------------------------ */

cudaError_t cudaGetDeviceCount(int *count) {
    const char *gpus = getenv("EMU_GPUS");
    *count = gpus && atoi(gpus) > 0 ? atoi(gpus) : 1;
    return cudaSuccess;
}
static bool is_device(int device) {
    int count;
    cudaGetDeviceCount(&count);
    return device >= 0 && device < count;
}
cudaError_t cudaGetDevice(int *device) {
    *device = runtime.device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (!is_device(device)) return keep(cudaErrorInvalidDevice);
    runtime.device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    size_t available;
    if (!is_device(device)) return keep(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated GPU");
    p->uuid.bytes[15] = (char)(device + 1);
    cudaMemGetInfo(&available, &p->totalGlobalMem);
    p->major = 9;
    p->multiProcessorCount = EMU_SMS;
    p->maxThreadsPerBlock = EMU_MAX_THREADS;
    p->warpSize = EMU_WARP;
    p->sharedMemPerBlock = EMU_SHARED_STATIC;
    p->sharedMemPerBlockOptin = EMU_SHARED_BLOCK;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, device) != cudaSuccess) return cudaErrorInvalidDevice;
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        return cudaSuccess;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        return cudaSuccess;
    }
    return keep(cudaErrorInvalidValue);
}

/* What the machine could give: free pages and what it would drop from its caches. */
static size_t available_bytes(size_t fallback) {
    char line[128];
    unsigned long long kib;
    size_t bytes = fallback;
    FILE *f = fopen("/proc/meminfo", "r");
    if (!f) return fallback;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu", &kib) == 1) bytes = (size_t)kib * 1024;
    fclose(f);
    return bytes;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    *available = available_bytes(*total);
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    emu_host_call("cudaDeviceSynchronize");
    return cudaSuccess;
}

cudaError_t emu_function_attributes(cudaFuncAttributes *attributes) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = EMU_MAX_THREADS;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}
cudaError_t emu_function_set(cudaFuncAttribute attribute, int value) {
    const bool size = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize;
    return keep(size && value > EMU_SHARED_BLOCK ? cudaErrorInvalidValue : cudaSuccess);
}

/* ---- copies ---------------------------------------------------------------------------------- */

static void require_side(const char *call, const void *p, size_t bytes, bool device) {
    char what[256];
    if (emu_memory_reserved(p) == device && (!device || emu_memory_holds(p, bytes))) return;
    emu_memory_describe(p, what, sizeof what);
    emu_fail("%s: %zu bytes at %p: %s", call, bytes, p, what);
}

cudaError_t cudaMemcpyAsync(
    void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    emu_host_call("cudaMemcpy");
    emu_require_stream(stream);
    if (!bytes) return cudaSuccess;
    const bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    require_side(
        "cudaMemcpy to", dst, bytes, kind == cudaMemcpyDefault ? emu_memory_reserved(dst) : to);
    require_side(
        "cudaMemcpy from", src, bytes, kind == cudaMemcpyDefault ? emu_memory_reserved(src) : from);
    emu_device_begin();
    emu_memory_open(dst);
    emu_memory_open(src);
    memcpy(dst, src, bytes);
    emu_device_end();
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(dst, src, bytes, kind, NULL);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    emu_host_call("cudaMemset");
    emu_require_stream(stream);
    if (!bytes) return cudaSuccess;
    require_side("cudaMemset", p, bytes, true);
    emu_device_begin();
    emu_memory_open(p);
    memset(p, value, bytes);
    emu_device_end();
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    return cudaMemsetAsync(p, value, bytes, NULL);
}

/* ---- pinned memory: host memory that a kernel may read --------------------------------------- */

cudaError_t cudaMallocHost(void **p, size_t bytes) {
    emu_host_call("cudaMallocHost");
    const size_t room = (size_t)(runtime.count + 1) * sizeof *runtime.pinned;
    *p = malloc(bytes ? bytes : 1);
    Pinned *list = (Pinned *)realloc(runtime.pinned, room);
    if (list) runtime.pinned = list;
    if (!*p || !list) return keep(cudaErrorMemoryAllocation);
    memset(*p, 0xff, bytes);
    runtime.pinned[runtime.count++] = {(char *)*p, bytes};
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p) {
    emu_host_call("cudaFreeHost");
    if (!p) return cudaSuccess;
    for (int i = 0; i < runtime.count; i++) {
        if (runtime.pinned[i].p != p) continue;
        runtime.pinned[i] = runtime.pinned[--runtime.count];
        free(p);
        if (runtime.count == 0) free(runtime.pinned), runtime.pinned = NULL;
        return cudaSuccess;
    }
    emu_fail("cudaFreeHost(%p): not of cudaMallocHost", p);
}

/* Where a program and its heaps lie; numbers that are none seldom fall there. */
bool emu_is_host(const void *p) {
    const uintptr_t low = (uintptr_t)0x500000000000, end = (uintptr_t)0x800000000000;
    const uintptr_t at = (uintptr_t)p, page = (uintptr_t)sysconf(_SC_PAGESIZE);
    unsigned char resident;
    if (at < low || at >= end || emu_memory_reserved(p)) return false;
    for (int i = 0; i < runtime.count; i++)
        if ((size_t)((const char *)p - runtime.pinned[i].p) <= runtime.pinned[i].bytes)
            return false;
    return mincore((void *)(at / page * page), 1, &resident) == 0;
}

/* ---- streams and events ---------------------------------------------------------------------- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void emu_require_stream(cudaStream_t stream) {
    if (stream && stream->magic != STREAM) emu_fail("%p is no stream", (void *)stream);
}
static void require_event(cudaEvent_t event) {
    if (!event || event->magic != EVENT) emu_fail("%p is no event", (void *)event);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    (void)flags;
    *stream = (cudaStream_t)calloc(1, sizeof **stream);
    if (!*stream) return keep(cudaErrorMemoryAllocation);
    (*stream)->magic = STREAM;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    (void)priority;
    return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream) return keep(cudaErrorInvalidResourceHandle);
    emu_require_stream(stream);
    stream->magic = 0;
    free(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    emu_host_call("cudaStreamSynchronize");
    emu_require_stream(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return cudaStreamSynchronize(stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    (void)flags;
    emu_require_stream(stream);
    require_event(event);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = (cudaEvent_t)calloc(1, sizeof **event);
    if (!*event) return keep(cudaErrorMemoryAllocation);
    (*event)->magic = EVENT;
    (*event)->flags = flags;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    require_event(event);
    event->magic = 0;
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    require_event(event);
    emu_require_stream(stream);
    event->recorded = true;
    event->seconds = now();
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    require_event(event);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    require_event(event);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t stop) {
    require_event(start);
    require_event(stop);
    const bool timed = !((start->flags | stop->flags) & cudaEventDisableTiming);
    if (!timed || !start->recorded || !stop->recorded) return keep(cudaErrorInvalidResourceHandle);
    *ms = (float)(1e3 * (stop->seconds - start->seconds));
    return cudaSuccess;
}
