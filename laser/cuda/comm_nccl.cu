/* cuda/comm_nccl.cu: collectives on the GPU's memory, by NCCL, on a stream of its own beside the
 * backend's: events order the two, the host waits for neither. Who the processes are, and what
 * moves in the host's memory, is another file's (comm_mpi.c, comm_env.c). Knows nothing of the
 * model. */
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "laser/comm.h"
#include "laser/cuda/backend.cuh"
#include "laser/devices.h"
#include "laser/watch.h"

static_assert(NCCL_VERSION_CODE >= NCCL_VERSION(2, 18, 0), "NCCL 2.18 or newer");

enum {
    /* Blocks that NCCL's kernels may take, each a multiprocessor that the pass beside them lacks: 8
     * of an H100's 132 are 6 %. The environment's NCCL_MAX_CTAS wins. Not yet measured. */
    MAX_CTAS = 8,
    EVENTS = 256,         /* tickets whose own end can be waited for; older ones wait for a later */
    LEVELS = 12,          /* of the tree that sums what the ranks sent: 2^12 ranks at most */
    LOST_SECONDS = 5,     /* in which a process that is no more is noticed, and named */
    ALLOCATIONS = 64,     /* of comm_alloc */
    STAGE_LEAST = 1 << 16 /* elements for each rank */
};
static const size_t STAGE_BYTES = (size_t)64 << 20;
static const size_t NCCL_BYTES = (size_t)512 << 20; /* what it takes by itself: assumed */

/* ---- what not every NCCL has ---- */

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
/* The same memory of all ranks, at the same place in each: symmetric kernels. All ranks call it. */
typedef ncclWindow_t Registration;
static ncclResult_t nccl_enrol(ncclComm_t comm, void *p, size_t bytes, Registration *r) {
    return ncclCommWindowRegister(comm, p, bytes, r, NCCL_WIN_COLL_SYMMETRIC);
}
static ncclResult_t nccl_strike_off(ncclComm_t comm, Registration r) {
    return r ? ncclCommWindowDeregister(comm, r) : ncclSuccess; /* NULL: cannot be had here */
}
#elif NCCL_VERSION_CODE >= NCCL_VERSION(2, 19, 0)
typedef void *Registration;
static ncclResult_t nccl_enrol(ncclComm_t comm, void *p, size_t bytes, Registration *r) {
    return ncclCommRegister(comm, p, bytes, r);
}
static ncclResult_t nccl_strike_off(ncclComm_t comm, Registration r) {
    return ncclCommDeregister(comm, r);
}
#else
typedef void *Registration;
static ncclResult_t nccl_enrol(ncclComm_t, void *, size_t, Registration *r) {
    *r = NULL;
    return ncclSuccess;
}
static ncclResult_t nccl_strike_off(ncclComm_t, Registration) {
    return ncclSuccess;
}
#endif

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 19, 0)
static ncclResult_t nccl_take(void **p, size_t bytes) {
    return ncclMemAlloc(p, bytes);
}
static ncclResult_t nccl_give_back(void *p) {
    return ncclMemFree(p);
}
#else
static ncclResult_t nccl_take(void **p, size_t bytes) {
    return cudaMalloc(p, bytes) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
static ncclResult_t nccl_give_back(void *p) {
    return cudaFree(p) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
#endif

typedef struct Allocation {
    void *p; /* NULL: none */
    Registration registration;
} Allocation;

struct CommDevice {
    Backend *be;
    ncclComm_t nccl;
    cudaStream_t stream;
    cudaEvent_t called;       /* where the backend's operations were when one of these was called */
    cudaEvent_t done[EVENTS]; /* by ticket modulo EVENTS */
    CommTicket last;          /* 0: none yet */
    Allocation memory[ALLOCATIONS];
    uint16_t *sent, *received; /* (world, stage) bfloat16, where gradients travel so */
    size_t stage;
    char illness[512]; /* for the thread that watches */
};

/* ---- errors ---- */

static const char *last_words(ncclComm_t comm) {
    const char *text = ncclGetLastError(comm);
    return text && text[0] ? text : "no more is said";
}

static void check(const CommDevice *d, ncclResult_t status, const char *what) {
    if (status == ncclSuccess) return;
    /* perhaps another process is no more: who watches over it can name it */
    if (status == ncclRemoteError || status == ncclSystemError) sleep(LOST_SECONDS);
    die(EXIT_PROCESS,
        "%s failed: %s (%s). NCCL_DEBUG=INFO tells more; the same command goes on from the newest "
        "checkpoint",
        what, ncclGetErrorString(status), last_words(d->nccl));
}
#define NCCL_CHECK(d, call) check((d), (call), #call)

/* In the watching thread. */
static const char *find_illness(void *user) {
    CommDevice *d = (CommDevice *)user;
    ncclResult_t found = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(d->nccl, &found);
    if (asked != ncclSuccess) found = asked;
    if (found == ncclSuccess || found == ncclInProgress) return NULL;
    snprintf(d->illness, sizeof d->illness,
        "NCCL: %s (%s): the network or a GPU failed, or another process. NCCL_DEBUG=INFO tells "
        "more; the same command goes on from the newest checkpoint",
        ncclGetErrorString(found), last_words(d->nccl));
    return d->illness;
}

/* ---- opening and closing ---- */

static void open_nccl(Comm *c, CommDevice *d) {
    ncclUniqueId id = {};
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    config.maxCTAs = MAX_CTAS;
    if (c->rank == 0) NCCL_CHECK(d, ncclGetUniqueId(&id));
    comm_broadcast(c, &id, sizeof id, 0);
    watch_enter(c->watch);
    NCCL_CHECK(d, ncclCommInitRankConfig(&d->nccl, c->world, id, c->rank, &config));
    watch_leave(c->watch);
}

static void open_stream(CommDevice *d) {
    int least = 0, greatest = 0;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    /* before the passes: others wait for what is sent here */
    CUDA_CHECK(cudaStreamCreateWithPriority(&d->stream, cudaStreamNonBlocking, greatest));
    CUDA_CHECK(cudaEventCreateWithFlags(&d->called, cudaEventDisableTiming));
    for (cudaEvent_t &event : d->done)
        CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
}

/* From 2.30 on NCCL can be told to, and calls it experimental. */
static bool may_share_gpu(bool asked) {
    int version = 0;
    const char *sharing = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    if (!asked || !sharing || strcmp(sharing, "1") != 0) return false;
    return ncclGetVersion(&version) == ncclSuccess && version >= NCCL_VERSION(2, 30, 0);
}

/* Elements of each rank in a staging buffer. */
static size_t stage_of(int world, size_t most) {
    const size_t n = STAGE_BYTES / sizeof(uint16_t) / (size_t)world;
    const size_t needed = n < most ? n : most;
    return needed > (size_t)STAGE_LEAST ? needed : (size_t)STAGE_LEAST;
}

size_t comm_device_bytes(int world, size_t most, CommWire wire) {
    if (world == 1) return 0;
    const size_t stages = 2 * (size_t)world * stage_of(world, most) * sizeof(uint16_t);
    return NCCL_BYTES + (wire == COMM_BF16 ? stages : 0);
}

static void open_stage(Comm *c) {
    CommDevice *d = c->device;
    const size_t bytes = size_mul((size_t)c->world, d->stage * sizeof(uint16_t));
    d->sent = (uint16_t *)comm_alloc(c, d->be, bytes);
    d->received = (uint16_t *)comm_alloc(c, d->be, bytes);
}

void comm_attach(Comm *c, Backend *be, size_t most, CommWire wire, bool share_gpu) {
    if (c->world == 1) return;
    REQUIRE(c->world <= 1 << LEVELS, "%d processes", c->world);
    devices_require_own(c, be, may_share_gpu(share_gpu),
        share_gpu ? "NCCL needs one for each. --share-gpu is for builds with NCCL=0 MPI=1, and "
                    "for NCCL 2.30 or newer with NCCL_MULTI_RANK_GPU_ENABLE=1"
                  : "NCCL needs one for each: start one process a GPU (CUDA_VISIBLE_DEVICES, where "
                    "a launcher sets it, must differ)");
    CommDevice *d = (CommDevice *)xcalloc(1, sizeof *d);
    d->be = be;
    d->stage = stage_of(c->world, most);
    open_nccl(c, d);
    open_stream(d);
    watch_set_health(c->watch, find_illness, d);
    c->device = d;
    if (wire == COMM_BF16) open_stage(c);
}

void comm_detach(Comm *c) {
    CommDevice *d = c->device;
    if (!d) return;
    comm_free(c, d->be, d->sent);
    comm_free(c, d->be, d->received);
    for (const Allocation &a : d->memory)
        REQUIRE(!a.p, "%p of comm_alloc is to be freed before", a.p);
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    watch_set_health(c->watch, NULL, NULL);
    watch_enter(c->watch);
    NCCL_CHECK(d, ncclCommDestroy(d->nccl));
    watch_leave(c->watch);
    for (cudaEvent_t &event : d->done) CUDA_CHECK(cudaEventDestroy(event));
    CUDA_CHECK(cudaEventDestroy(d->called));
    CUDA_CHECK(cudaStreamDestroy(d->stream));
    free(d);
    c->device = NULL;
}

/* ---- memory ---- */

static Allocation *find_allocation(CommDevice *d, const void *p) {
    for (Allocation &a : d->memory)
        if (a.p == p) return &a;
    return NULL;
}

void *comm_alloc(Comm *c, Backend *be, size_t bytes) {
    CommDevice *d = c->device;
    if (!d) return backend_alloc(be, bytes);
    Allocation *a = find_allocation(d, NULL);
    REQUIRE(a, "%d allocations of comm_alloc", ALLOCATIONS);
    be->allocations++;
    if (nccl_take(&a->p, bytes ? bytes : 1) != ncclSuccess)
        die(EXIT_IO,
            "out of GPU memory: cannot allocate %.1f MiB; a smaller --batch or --recompute needs "
            "less",
            (double)bytes / 1048576.0);
    backend_zero(be, a->p, bytes);
    watch_enter(c->watch);
    NCCL_CHECK(d, nccl_enrol(d->nccl, a->p, bytes ? bytes : 1, &a->registration));
    watch_leave(c->watch);
    return a->p;
}

void comm_free(Comm *c, Backend *be, void *p) {
    CommDevice *d = c->device;
    Allocation *a = d && p ? find_allocation(d, p) : NULL;
    if (!a) {
        backend_free(be, p);
        return;
    }
    CUDA_CHECK(cudaStreamSynchronize(d->stream));
    backend_synchronize(be);
    comm_barrier(c); /* others may be reading it */
    NCCL_CHECK(d, nccl_strike_off(d->nccl, a->registration));
    NCCL_CHECK(d, nccl_give_back(p));
    a->p = NULL;
}

/* ---- order ---- */

/* What follows on d->stream runs when the operations called so far have. */
static void begin(const Comm *c) {
    CommDevice *d = c->device;
    watch_enter(c->watch);
    CUDA_CHECK(cudaEventRecord(d->called, d->be->stream));
    CUDA_CHECK(cudaStreamWaitEvent(d->stream, d->called, 0));
}

static CommTicket end(const Comm *c) {
    CommDevice *d = c->device;
    const CommTicket ticket = ++d->last;
    CUDA_CHECK(cudaEventRecord(d->done[ticket % EVENTS], d->stream));
    watch_leave(c->watch);
    return ticket;
}

void comm_wait(const Comm *c, CommTicket t) {
    CommDevice *d = c->device;
    if (!d || t == 0) return;
    REQUIRE(t > 0 && t <= d->last, "ticket %lld of %lld", (long long)t, (long long)d->last);
    CUDA_CHECK(cudaStreamWaitEvent(d->be->stream, d->done[t % EVENTS], 0));
}

/* ---- collectives ---- */

static size_t share_rest(const Comm *c, CommShare s) {
    REQUIRE(s.each <= s.n / (size_t)c->world, "%zu of %zu elements for each", s.each, s.n);
    return s.n - s.each * (size_t)c->world;
}

static void reduce_scatter_fp32(const Comm *c, float *x, CommShare s) {
    const CommDevice *d = c->device;
    const size_t rest = share_rest(c, s);
    float *tail = x + (s.n - rest);
    NCCL_CHECK(d, ncclGroupStart());
    if (s.each)
        NCCL_CHECK(d, ncclReduceScatter(x, x + (size_t)c->rank * s.each, s.each, ncclFloat, ncclSum,
                          d->nccl, d->stream));
    if (rest)
        NCCL_CHECK(
            d, ncclReduce(tail, tail, rest, ncclFloat, ncclSum, c->world - 1, d->nccl, d->stream));
    NCCL_CHECK(d, ncclGroupEnd());
}

/* How many elements of [from, from + most) of its share a rank has. */
__host__ __device__ static inline size_t cut(
    CommShare s, int rank, int world, size_t from, size_t most) {
    const size_t n = rank + 1 < world ? s.each : s.n - s.each * (size_t)rank;
    const size_t left = from < n ? n - from : 0;
    return left < most ? left : most;
}

/* to (world, most): elements [from, from + most) of each rank's share; a rank is a row of blocks */
__global__ static void round_shares_kernel(
    uint16_t *to, const float *x, CommShare s, size_t from, size_t most) {
    const int rank = (int)blockIdx.y, world = (int)gridDim.y;
    const size_t n = cut(s, rank, world, from, most);
    const float *share = x + (size_t)rank * s.each + from;
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        to[(size_t)rank * most + i] = bf16_bits(share[i]);
}

/* out[i] = the sum of the rows' elements i: (0 + 1) + (2 + 3) ..., as comm_host.c */
__global__ static void sum_rows_kernel(float *out /* (n) */,
    const uint16_t *rows /* (world, most) */, int world, size_t most, size_t n) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        float sums[LEVELS + 1]; /* [l]: of 2^l rows, where the count of rows so far has that bit */
        for (int r = 0; r < world; r++) {
            float sum = __uint_as_float((uint32_t)rows[(size_t)r * most + i] << 16);
            bool kept = false;
#pragma unroll
            for (int l = 0; l <= LEVELS; l++) {
                const bool full = r >> l & 1;
                if (!kept && full) sum = sums[l] + sum;
                if (!kept && !full) sums[l] = sum, kept = true;
            }
        }
        float total = 0;
        bool some = false;
#pragma unroll
        for (int l = 0; l <= LEVELS; l++)
            if (world >> l & 1) total = some ? sums[l] + total : sums[l], some = true;
        out[i] = total;
    }
}

static int blocks_for(const CommDevice *d, size_t n) {
    const size_t blocks = (n + 255) / 256, most = (size_t)(2 * d->be->sms);
    return (int)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

/* What each rank holds of the others' shares is rounded and sent to them; each sums what it got. */
static void exchange_piece(const Comm *c, float *x, CommShare s, size_t from) {
    const CommDevice *d = c->device;
    const size_t most = d->stage, mine = cut(s, c->rank, c->world, from, most);
    LAUNCH(round_shares_kernel, dim3((unsigned)blocks_for(d, most), (unsigned)c->world), 256, 0,
        d->stream, d->sent, x, s, from, most);
    NCCL_CHECK(d, ncclGroupStart());
    for (int r = 0; r < c->world; r++) {
        const size_t theirs = cut(s, r, c->world, from, most);
        if (theirs)
            NCCL_CHECK(d, ncclSend(d->sent + (size_t)r * most, theirs * sizeof(uint16_t), ncclInt8,
                              r, d->nccl, d->stream));
        if (mine)
            NCCL_CHECK(d, ncclRecv(d->received + (size_t)r * most, mine * sizeof(uint16_t),
                              ncclInt8, r, d->nccl, d->stream));
    }
    NCCL_CHECK(d, ncclGroupEnd());
    if (mine)
        LAUNCH(sum_rows_kernel, blocks_for(d, mine), 256, 0, d->stream,
            x + (size_t)c->rank * s.each + from, d->received, c->world, most, mine);
}

CommTicket comm_reduce_scatter(const Comm *c, float *x, CommShare s, CommWire wire) {
    if (!c->device) return 0;
    const size_t longest = s.each + share_rest(c, s);
    REQUIRE(wire == COMM_FP32 || c->device->sent, "%s", "attached for another wire");
    begin(c);
    if (wire == COMM_FP32)
        reduce_scatter_fp32(c, x, s);
    else
        for (size_t from = 0; from < longest; from += c->device->stage)
            exchange_piece(c, x, s, from);
    return end(c);
}

CommTicket comm_all_gather(const Comm *c, void *x, CommShare s, size_t elem) {
    CommDevice *d = c->device;
    if (!d) return 0;
    const size_t rest = share_rest(c, s) * elem, each = s.each * elem;
    char *bytes = (char *)x, *tail = bytes + (s.n * elem - rest);
    begin(c);
    NCCL_CHECK(d, ncclGroupStart());
    if (each)
        NCCL_CHECK(d, ncclAllGather(bytes + (size_t)c->rank * each, bytes, each, ncclInt8, d->nccl,
                          d->stream));
    if (rest)
        NCCL_CHECK(d, ncclBroadcast(tail, tail, rest, ncclInt8, c->world - 1, d->nccl, d->stream));
    NCCL_CHECK(d, ncclGroupEnd());
    return end(c);
}

CommTicket comm_add_double(const Comm *c, double *x, size_t n) {
    CommDevice *d = c->device;
    if (!d) return 0;
    begin(c);
    NCCL_CHECK(d, ncclAllReduce(x, x, n, ncclDouble, ncclSum, d->nccl, d->stream));
    return end(c);
}

const char *comm_device_name(void) {
    return "nccl";
}
