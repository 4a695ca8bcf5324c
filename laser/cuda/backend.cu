/* cuda/backend.cu: opening and closing, memory, scratch, transfers that do not wait, and what the
 * device is. Computes nothing itself. Knows neither the model nor what is made of the operations.
 */
#include "laser/cuda/backend.cuh"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "laser/cuda/attention.cuh"
#include "laser/cuda/gemm.cuh"

void cuda_check(cudaError_t status, const char *what, const char *file, int line) {
    if (status == cudaSuccess) return;
    if (status == cudaErrorMemoryAllocation)
        die(EXIT_IO, "out of GPU memory in %s; a smaller --batch or --recompute needs less", what);
    die(EXIT_IO, "%s failed: %s (%s:%d)", what, cudaGetErrorString(status), file, line);
}

const char *backend_name(void) {
    return CUDA_BACKEND_NAME;
}
const char *backend_attention(void) {
    return LASER ? "laser" : "standard";
}
const char *backend_precision(void) {
    return BF16 ? "bf16" : "fp32";
}
bool backend_memory_is_host(void) {
    return CUDA_MEMORY_IS_HOST;
}

/* ---- the device ------------------------------------------------------------------------------ */

enum { OLDEST_MAJOR = 8 }; /* bfloat16 */

static void require_driver(void) {
    int driver = 0, runtime = 0, devices = 0;
    const cudaError_t found = cudaDriverGetVersion(&driver);
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    if (found != cudaSuccess || driver == 0)
        die(EXIT_IO,
            "no NVIDIA driver is loaded on this machine: this program was built for a GPU. Build "
            "with BACKEND=cpu to train on the CPU");
    if (driver / 1000 < runtime / 1000)
        die(EXIT_IO,
            "the NVIDIA driver is too old: it serves CUDA %d.%d, this program was built with "
            "%d.%d. "
            "Update the driver, or build with that toolkit",
            driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0)
        die(EXIT_IO, "no GPU is found (%s). nvidia-smi and CUDA_VISIBLE_DEVICES may tell more",
            cudaGetErrorString(status));
}

static int device_attribute(const Backend *be, cudaDeviceAttr attribute) {
    int value = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, be->device));
    return value;
}

/* Rates of the data sheets, dense, at boost clock. */
typedef struct DeviceRates {
    const char *name; /* part of the device's name; the first that fits counts */
    double bf16, fp32, tf32, bandwidth;
} DeviceRates;

static const DeviceRates device_rates[] = {
    {"H200", 989.4e12, 66.9e12, 494.7e12, 4.8e12},
    {"GH200", 989.4e12, 66.9e12, 494.7e12, 4.0e12},
    {"H100 PCIe", 756e12, 51e12, 378e12, 2.0e12},
    {"H100 NVL", 835e12, 60e12, 417e12, 3.9e12},
    {"H100", 989.4e12, 66.9e12, 494.7e12, 3.35e12},
    {"A100-SXM4-80GB", 312e12, 19.5e12, 156e12, 2.039e12},
    {"A100 80GB", 312e12, 19.5e12, 156e12, 1.935e12},
    {"A100", 312e12, 19.5e12, 156e12, 1.555e12},
};

static void find_rates(Backend *be, const char *name) {
    for (size_t i = 0; i < sizeof device_rates / sizeof *device_rates; i++) {
        const DeviceRates *r = &device_rates[i];
        if (!strstr(name, r->name)) continue;
        be->peak_flops = BF16 ? r->bf16 : be->options.tf32 ? r->tf32 : r->fp32;
        be->bandwidth = r->bandwidth;
        return;
    }
}

__global__ static void probe_kernel(void) {}

/* Which of the GPUs that this process sees; -1: there are too few. A launcher may show each process
 * one of its own; whether it is, comm_attach() finds out. */
int cuda_choose_device(int local_rank, int devices, bool share_gpu, bool one_was_chosen) {
    if (local_rank < devices) return local_rank;
    if (share_gpu) return local_rank % devices;
    return devices == 1 && one_was_chosen ? 0 : -1;
}

static void open_device(Backend *be) {
    cudaDeviceProp properties;
    int devices = 0;
    CUDA_CHECK(cudaGetDeviceCount(&devices));
    const char *chosen = getenv("CUDA_VISIBLE_DEVICES");
    be->device = cuda_choose_device(
        be->options.local_rank, devices, be->options.share_gpu, chosen && chosen[0]);
    if (be->device < 0)
        die(EXIT_USAGE,
            "%d or more processes on this machine, %d GPU%s: start one process a GPU, or let "
            "several share one with --share-gpu",
            be->options.local_rank + 1, devices, devices == 1 ? "" : "s");
    CUDA_CHECK(cudaSetDevice(be->device));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, be->device));
    be->major = properties.major, be->minor = properties.minor;
    be->sms = properties.multiProcessorCount;
    be->smem_optin = (size_t)device_attribute(be, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    if (be->major < OLDEST_MAJOR)
        die(EXIT_IO, "%s has compute capability %d.%d; bfloat16 needs 8.0 or newer (A100, H100)",
            properties.name, be->major, be->minor);
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, probe_kernel) != cudaSuccess)
        die(EXIT_IO,
            "this program holds no code for %s (compute capability %d.%d): build it with "
            "GPU_ARCH=%d%d",
            properties.name, be->major, be->minor, be->major, be->minor);
    find_rates(be, properties.name);
}

/* What a context, the kernels and cuBLASLt take of the device before the first allocation; seen
 * from outside as used memory. */
static const size_t CONTEXT_BYTES = (size_t)500 << 20;

static size_t free_bytes(void) {
    size_t available = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    return available;
}

Backend *backend_open(const BackendOptions *options) {
    require_driver();
    Backend *be = (Backend *)xcalloc(1, sizeof *be);
    be->options = *options;
    open_device(be);
    const size_t before = free_bytes();
    CUDA_CHECK(cudaStreamCreateWithFlags(&be->stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreateWithFlags(&be->copy, cudaStreamNonBlocking));
    CUDA_CHECK(cudaMallocHost((void **)&be->read_host, BACKEND_READ_SLOTS * BACKEND_READ_BYTES));
    for (int i = 0; i < BACKEND_READ_SLOTS; i++)
        CUDA_CHECK(cudaEventCreateWithFlags(&be->read_done[i], cudaEventDisableTiming));
    gemm_open(be);
    const size_t after = free_bytes();
    be->overhead = CONTEXT_BYTES + (before > after ? before - after : 0);
    return be;
}

static void close_send(Backend *be) {
    if (!be->send_host) return;
    for (int i = 0; i < SEND_SLOTS; i++) {
        CUDA_CHECK(cudaEventDestroy(be->sent[i]));
        CUDA_CHECK(cudaEventDestroy(be->taken[i]));
    }
    CUDA_CHECK(cudaFreeHost(be->send_host));
}

void backend_close(Backend *be) {
    if (!be) return;
    backend_synchronize(be);
    gemm_close(be);
    cudnn_attention_close(be);
    close_send(be);
    if (be->scratch) CUDA_CHECK(cudaFree(be->scratch));
    for (int i = 0; i < BACKEND_READ_SLOTS; i++) CUDA_CHECK(cudaEventDestroy(be->read_done[i]));
    CUDA_CHECK(cudaFreeHost(be->read_host));
    CUDA_CHECK(cudaStreamDestroy(be->copy));
    CUDA_CHECK(cudaStreamDestroy(be->stream));
    free(be);
}

void backend_describe(Backend *be, char *text, size_t capacity) {
    cudaDeviceProp properties;
    char products[128], cudnn[64], core[160] = "";
    CUDA_CHECK(cudaGetDeviceProperties(&properties, be->device));
    gemm_describe(be, products, sizeof products);
    cudnn_attention_describe(cudnn, sizeof cudnn);
    if (be->scratch) attention_describe(be, core, sizeof core);
    snprintf(text, capacity, "%s (%d.%d), %.0f GiB, %s, %s%s", properties.name, be->major,
        be->minor, (double)properties.totalGlobalMem / 1073741824.0, products, cudnn, core);
}

bool backend_device_id(const Backend *be, char *text, size_t capacity) {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, be->device));
    size_t used = (size_t)snprintf(text, capacity, "GPU");
    for (int i = 0; i < 16 && used < capacity; i++) {
        const bool group = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;
        used += (size_t)snprintf(text + used, capacity - used, "%s%02x", group ? "-" : "",
            (unsigned)(uint8_t)properties.uuid.bytes[i]);
    }
    return true;
}

/* The data sheet's rate; of a device that the table does not hold, what its own products reach. */
double backend_peak_flops(Backend *be) {
    enum { SIDE = 2048, ROUNDS = 10 };
    if (be->peak_flops > 0) return be->peak_flops;
    const int side = be->sms < 16 ? SIDE / 16 : SIDE;
    const size_t n = (size_t)side * (size_t)side;
    act_t *block = (act_t *)backend_alloc(be, 3 * n * sizeof(act_t));
    Gemm g = {};
    g.M = g.N = g.K = side;
    g.A = block, g.B = block + n, g.C = block + 2 * n;
    g.lda = g.ldb = g.ldc = side;
    g.transB = true;
    g.alpha = 1;
    double best = 0;
    for (int i = 0; i < ROUNDS; i++) {
        gemm(be, &g);
        backend_synchronize(be);
        const double before = now_seconds();
        gemm(be, &g);
        backend_synchronize(be);
        const double rate = 2.0 * side * (double)n / (now_seconds() - before);
        if (rate > best) best = rate;
    }
    backend_free(be, block);
    return be->peak_flops = best;
}

/* ---- scratch --------------------------------------------------------------------------------- */

static const size_t LOGITS_BUDGET = (size_t)512 << 20;
enum { LOGITS_MIN_ROWS = 64, ASSUMED_MAJOR = 9 };

static int largest(int a, int b, int c, int d) {
    const int x = a > b ? a : b, y = c > d ? c : d;
    return x > y ? x : y;
}

static ScratchPlan scratch_plan(const BackendLimits *l, const BackendOptions *options, int major) {
    ScratchPlan p = {};
    const size_t tokens = size_mul((size_t)l->B, (size_t)l->T);
    const size_t budget = options->logits_budget ? options->logits_budget : LOGITS_BUDGET;
    const int widest = largest(l->C, l->F, 3 * l->H * l->HD, l->V);
    p.logits_ld = ((int64_t)l->V + 127) / 128 * 128;
    size_t rows = budget / ((size_t)p.logits_ld * sizeof(float));
    if (rows < LOGITS_MIN_ROWS) rows = LOGITS_MIN_ROWS;
    if (rows > tokens) rows = tokens;
    p.logits_rows = (int)rows;
    p.gemm_bytes = gemm_workspace_bytes(major);
    p.attention_bytes = attention_scratch_bytes(l, options, major);
    p.gemm = scratch_take(&p.total, p.gemm_bytes);
    p.logits = scratch_take(&p.total, size_mul(rows, (size_t)p.logits_ld * sizeof(float)));
    p.partials = scratch_take(&p.total, size_mul(2 * NORM_CUTS, (size_t)widest * sizeof(float)));
    p.sums = scratch_take(&p.total, SUM_CUTS * sizeof(double));
    p.rope = scratch_take(&p.total, size_mul((size_t)l->T, (size_t)l->HD * sizeof(float)));
    p.buckets = scratch_take(&p.total, size_mul((size_t)l->V + 1 + 2 * tokens, sizeof(int32_t)));
    p.send = scratch_take(&p.total, size_mul(SEND_SLOTS * tokens, sizeof(int32_t)));
    p.attention = scratch_take(&p.total, p.attention_bytes);
    return p;
}

/* The architecture of the first GPU; without one, that of the machines this program is made for. */
static int planned_major(void) {
    int devices = 0, major = ASSUMED_MAJOR;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return ASSUMED_MAJOR;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess)
        return ASSUMED_MAJOR;
    return major;
}

size_t backend_scratch_bytes(const BackendLimits *limits, const BackendOptions *options) {
    return scratch_plan(limits, options, planned_major()).total;
}

size_t backend_overhead_bytes(const Backend *be) {
    return be ? be->overhead : CONTEXT_BYTES;
}

size_t backend_memory_limit(const Backend *be, int processes) {
    int devices = 1;
    CUDA_CHECK(cudaGetDeviceCount(&devices));
    const int sharing = be->options.share_gpu ? ceil_div(processes, devices) : 1;
    return (size_t)(0.98 * (double)free_bytes() / sharing) + be->overhead;
}

/* In double: an angle of a thousand turns has no digits left in float. */
static void fill_rope(Backend *be) {
    const int T = be->limits.T, HD = be->limits.DK, half = HD / 2;
    float *table = (float *)xcalloc(size_mul((size_t)T, (size_t)HD), sizeof *table);
    for (int i = 0; i < half; i++) {
        const double frequency = pow(1e4, -2.0 * i / HD);
        for (int t = 0; t < T; t++) {
            float *row = table + (size_t)t * (size_t)(2 * half);
            row[i] = (float)cos(t * frequency);
            row[half + i] = (float)sin(t * frequency);
        }
    }
    backend_upload(be, be->rope, table, (size_t)T * (size_t)(2 * half) * sizeof *table);
    free(table);
}

static void open_send(Backend *be) {
    const size_t tokens = (size_t)be->limits.B * (size_t)be->limits.T;
    CUDA_CHECK(cudaMallocHost((void **)&be->send_host, SEND_SLOTS * tokens * sizeof(int32_t)));
    for (int i = 0; i < SEND_SLOTS; i++) {
        CUDA_CHECK(cudaEventCreateWithFlags(&be->sent[i], cudaEventDisableTiming));
        CUDA_CHECK(cudaEventCreateWithFlags(&be->taken[i], cudaEventDisableTiming));
    }
}

void backend_reserve(Backend *be, const BackendLimits *l) {
    REQUIRE(!be->scratch, "%s", "scratch is reserved twice");
    REQUIRE(l->B > 0 && l->T > 0 && l->C > 0 && l->F > 0 && l->H > 0 && l->HD > 0 && l->V > 0,
        "B=%d T=%d C=%d F=%d H=%d HD=%d V=%d", l->B, l->T, l->C, l->F, l->H, l->HD, l->V);
    REQUIRE(l->DK > 0 && l->DK <= l->HD, "DK=%d HD=%d", l->DK, l->HD);
    be->limits = *l;
    be->plan = scratch_plan(l, &be->options, be->major);
    const ScratchPlan *p = &be->plan;
    CUDA_CHECK(cudaMalloc((void **)&be->scratch, p->total));
    be->gemm_workspace = be->scratch + p->gemm;
    be->logits = (float *)(be->scratch + p->logits);
    be->partials = (float *)(be->scratch + p->partials);
    be->sums = (double *)(be->scratch + p->sums);
    be->rope = (float *)(be->scratch + p->rope);
    be->buckets = (int32_t *)(be->scratch + p->buckets);
    be->send_device = (int32_t *)(be->scratch + p->send);
    be->attention = be->scratch + p->attention;
    fill_rope(be);
    open_send(be);
    attention_reserve(be);
}

/* ---- memory ---------------------------------------------------------------------------------- */

void *backend_alloc(Backend *be, size_t bytes) {
    void *p = NULL;
    be->allocations++;
    if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess)
        die(EXIT_IO,
            "out of GPU memory: cannot allocate %.1f MiB, %.1f MiB are free; a smaller --batch or "
            "--recompute needs less",
            (double)bytes / 1048576.0, (double)free_bytes() / 1048576.0);
    backend_zero(be, p, bytes);
    return p;
}

void backend_free(Backend *be, void *p) {
    if (!p) return;
    backend_synchronize(be);
    CUDA_CHECK(cudaFree(p));
}

int64_t backend_allocations(const Backend *be) {
    return be->allocations;
}

void backend_zero(Backend *be, void *p, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, be->stream));
}

void backend_copy(Backend *be, void *dst, const void *src, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, be->stream));
}

void backend_synchronize(Backend *be) {
    CUDA_CHECK(cudaStreamSynchronize(be->stream));
}

void backend_upload(Backend *be, void *dst, const void *host, size_t bytes) {
    if (!bytes) return;
    CUDA_CHECK(cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, be->stream));
    backend_synchronize(be);
}

void backend_download(Backend *be, void *host, const void *src, size_t bytes) {
    if (!bytes) return;
    CUDA_CHECK(cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, be->stream));
    backend_synchronize(be);
}

#ifdef LASER_BF16
/* Round to nearest even; a NaN stays one. */
static uint16_t host_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (x != x) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

void backend_upload_act(Backend *be, act_t *dst, const float *host, size_t n) {
    act_t *x = (act_t *)xcalloc(n ? n : 1, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i].bits = host_bf16(host[i]);
    backend_upload(be, dst, x, n * sizeof *x);
    free(x);
}

void backend_download_act(Backend *be, float *host, const act_t *src, size_t n) {
    act_t *x = (act_t *)xcalloc(n ? n : 1, sizeof *x);
    backend_download(be, x, src, n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        const uint32_t u = (uint32_t)x[i].bits << 16;
        memcpy(&host[i], &u, sizeof u);
    }
    free(x);
}
#else
void backend_upload_act(Backend *be, act_t *dst, const float *host, size_t n) {
    backend_upload(be, dst, host, n * sizeof *host);
}
void backend_download_act(Backend *be, float *host, const act_t *src, size_t n) {
    backend_download(be, host, src, n * sizeof *host);
}
#endif

/* ---- transfers that do not wait -------------------------------------------------------------- */

/* A batch goes to pinned memory, from there by the copy stream to a place of its own on the device,
 * and from there, in the order of the operations, to dst. The host waits only when it is
 * SEND_SLOTS batches ahead. */
void backend_send(Backend *be, int32_t *dst, const int32_t *host, size_t count) {
    const size_t tokens = (size_t)be->limits.B * (size_t)be->limits.T;
    require_scratch(be);
    REQUIRE(count <= tokens, "%zu numbers, reserved for %zu", count, tokens);
    const int slot = be->send_next;
    be->send_next = (slot + 1) % SEND_SLOTS;
    int32_t *pinned = be->send_host + (size_t)slot * tokens;
    int32_t *staged = be->send_device + (size_t)slot * tokens;
    const size_t bytes = count * sizeof *host;
    CUDA_CHECK(cudaEventSynchronize(be->sent[slot])); /* done at once where nothing was recorded */
    memcpy(pinned, host, bytes);
    CUDA_CHECK(cudaStreamWaitEvent(be->copy, be->taken[slot], 0));
    CUDA_CHECK(cudaMemcpyAsync(staged, pinned, bytes, cudaMemcpyHostToDevice, be->copy));
    CUDA_CHECK(cudaEventRecord(be->sent[slot], be->copy));
    CUDA_CHECK(cudaStreamWaitEvent(be->stream, be->sent[slot], 0));
    CUDA_CHECK(cudaMemcpyAsync(dst, staged, bytes, cudaMemcpyDeviceToDevice, be->stream));
    CUDA_CHECK(cudaEventRecord(be->taken[slot], be->stream));
}

void backend_read_begin(Backend *be, int slot, const void *src, size_t bytes) {
    REQUIRE(slot >= 0 && slot < BACKEND_READ_SLOTS && bytes <= BACKEND_READ_BYTES,
        "slot %d, %zu bytes", slot, bytes);
    REQUIRE(be->read_bytes[slot] == 0, "slot %d holds a read that was not ended", slot);
    char *pinned = be->read_host + slot * BACKEND_READ_BYTES;
    be->read_bytes[slot] = bytes;
    CUDA_CHECK(cudaMemcpyAsync(pinned, src, bytes, cudaMemcpyDeviceToHost, be->stream));
    CUDA_CHECK(cudaEventRecord(be->read_done[slot], be->stream));
}

bool backend_read_ready(Backend *be, int slot) {
    const cudaError_t status = cudaEventQuery(be->read_done[slot]);
    if (status == cudaErrorNotReady) return false;
    CUDA_CHECK(status);
    return true;
}

void backend_read_end(Backend *be, int slot, void *host) {
    REQUIRE(be->read_bytes[slot] > 0, "slot %d holds nothing", slot);
    CUDA_CHECK(cudaEventSynchronize(be->read_done[slot]));
    memcpy(host, be->read_host + slot * BACKEND_READ_BYTES, be->read_bytes[slot]);
    be->read_bytes[slot] = 0;
}
