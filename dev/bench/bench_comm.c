/* bench_comm.c: the collectives of laser/comm.h on backend memory: whether they are right, bit for
 * bit, and how fast. Started as a run is, one process a GPU:
 *
 *   mpirun -np 8 bench_comm [--check] [--share-gpu] [MIB of the largest, 1024]
 *   torchrun --nproc-per-node 8 --no-python bench_comm ...              (MPI=0 NCCL=1)
 *
 * --share-gpu: processes may share one, which says nothing about speed.
 *
 * algbw is the bytes of the whole array over the time, busbw what a link of a ring must carry for
 * that, as https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md defines them: times
 * (n - 1) / n to reduce and scatter or to gather, twice that for both, n processes. In bf16 they
 * count the bytes that travel. Exit code 0: right; 1: not. */
#include <stdlib.h>
#include <string.h>

#include "dev/bench/op_times.h" /* median */
#include "laser/backend.h"
#include "laser/base.h"
#include "laser/comm.h"

enum { GRAIN = 4096, ROUNDS = 5, CALLS = 10, WARM_UP = 2, LEAST_BYTES = 1 << 20 };

typedef struct Bench {
    Comm comm;
    Backend *be;
    size_t most;  /* elements */
    float *x;     /* (most) in backend memory */
    float *host;  /* (most) */
    double *sums; /* (world) in backend memory */
    int wrong;
} Bench;

static CommShare share_of(const Bench *b, size_t n) {
    const size_t world = (size_t)b->comm.world;
    return (CommShare){n, n / GRAIN / world * GRAIN};
}

/* ---- are they right? ---- */

/* No sum of a few of these is exact in fp32, nor one of them in bf16. */
static float value(int rank, size_t i) {
    return (float)((i * 2654435761u + (size_t)rank * 40503u) % 1000003) / 997.0f;
}

static float rounded(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* In the order of a binary tree. exact: the sum is to be these bits; else within the rounding of
 * any order, (world - 1) halves of an ulp of the largest partial sum. */
static float expected(const Bench *b, size_t i, CommWire wire, float *bound) {
    enum { MOST = 64 };
    float x[MOST], total = 0;
    const int world = b->comm.world;
    REQUIRE(world <= MOST, "%d processes", world);
    for (int r = 0; r < world; r++) {
        x[r] = wire == COMM_BF16 ? rounded(value(r, i)) : value(r, i);
        total += x[r];
    }
    for (int step = 1; step < world; step *= 2)
        for (int r = 0; r + step < world; r += 2 * step) x[r] += x[r + step];
    *bound = wire == COMM_BF16 || world <= 2 ? 0 : (float)(world - 1) * total * 0x1p-24f;
    return x[0];
}

static void complain(Bench *b, const char *what, size_t i, double got, double want) {
    if (b->wrong++ < 5)
        warn("%s: element %zu of rank %d is %.9g, want %.9g", what, i, b->comm.rank, got, want);
}

static void fill(Bench *b, size_t n) {
    for (size_t i = 0; i < n; i++) b->host[i] = value(b->comm.rank, i);
    backend_upload(b->be, b->x, b->host, n * sizeof *b->x);
}

static void check_sums(Bench *b, const char *what, size_t begin, size_t end, CommWire wire) {
    float bound;
    for (size_t i = begin; i < end; i++) {
        const float want = expected(b, i, wire, &bound), got = b->host[i];
        if (!(got - want <= bound && want - got <= bound))
            complain(b, what, i, (double)got, (double)want);
    }
}

static void check_length(Bench *b, size_t n, CommWire wire) {
    const CommShare s = share_of(b, n);
    const int rank = b->comm.rank, last = b->comm.world - 1;
    const size_t begin = (size_t)rank * s.each, end = rank < last ? begin + s.each : n;
    fill(b, n);
    comm_wait(&b->comm, comm_reduce_scatter(&b->comm, b->x, s, wire));
    backend_download(b->be, b->host, b->x, n * sizeof *b->x);
    check_sums(b, "comm_reduce_scatter", begin, end, wire);
    comm_wait(&b->comm, comm_all_gather(&b->comm, b->x, s, sizeof *b->x));
    backend_download(b->be, b->host, b->x, n * sizeof *b->x);
    check_sums(b, "comm_all_gather", 0, n, wire);
}

/* Each rank gives one number that no other has: nothing is rounded. */
static void check_doubles(Bench *b) {
    const size_t world = (size_t)b->comm.world;
    double *x = (double *)xcalloc(world, sizeof *x);
    x[b->comm.rank] = 1.0 / (3 + b->comm.rank);
    backend_upload(b->be, b->sums, x, world * sizeof *x);
    comm_wait(&b->comm, comm_add_double(&b->comm, b->sums, world));
    backend_download(b->be, x, b->sums, world * sizeof *x);
    for (size_t r = 0; r < world; r++)
        if (x[r] != 1.0 / (3 + (double)r))
            complain(b, "comm_add_double", r, x[r], 1.0 / (3 + (double)r));
    free(x);
}

static void check_all(Bench *b) {
    const size_t lengths[] = {1, GRAIN - 1, GRAIN, 3 * GRAIN, 7 * GRAIN + 5, 64 * GRAIN + 1};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        if (lengths[i] > b->most) continue;
        check_length(b, lengths[i], COMM_FP32);
        check_length(b, lengths[i], COMM_BF16);
    }
    check_doubles(b);
    int wrong = b->wrong;
    comm_max_int(&b->comm, &wrong, 1);
    if (b->comm.rank == 0)
        printf("comm %s+%s, %d processes: %s\n", comm_name(), comm_device_name(), b->comm.world,
            wrong ? "WRONG" : "right");
}

/* ---- how fast? ---- */

typedef enum Operation {
    REDUCE_FP32,
    REDUCE_BF16,
    GATHER_FP32,
    GATHER_ACT,
    BOTH_FP32,
    OPERATIONS
} Operation;
static const char *const NAMES[OPERATIONS] = {"reduce-scatter fp32", "reduce-scatter bf16",
    "all-gather fp32", "all-gather bf16", "both, fp32"};

static void call(const Bench *b, Operation o, size_t n) {
    const CommShare s = share_of(b, n);
    CommTicket t = 0;
    if (o == REDUCE_FP32 || o == BOTH_FP32) t = comm_reduce_scatter(&b->comm, b->x, s, COMM_FP32);
    if (o == REDUCE_BF16) t = comm_reduce_scatter(&b->comm, b->x, s, COMM_BF16);
    if (o == GATHER_FP32 || o == BOTH_FP32) t = comm_all_gather(&b->comm, b->x, s, sizeof(float));
    if (o == GATHER_ACT) t = comm_all_gather(&b->comm, b->x, s, sizeof(uint16_t));
    comm_wait(&b->comm, t);
}

/* Seconds of one call, the median of ROUNDS. */
static double time_calls(const Bench *b, Operation o, size_t n) {
    double seconds[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < WARM_UP && round == 0; i++) call(b, o, n);
        backend_synchronize(b->be);
        comm_barrier(&b->comm);
        const double begin = now_seconds();
        for (int i = 0; i < CALLS; i++) call(b, o, n);
        backend_synchronize(b->be);
        seconds[round] = (now_seconds() - begin) / CALLS;
    }
    return median(seconds, ROUNDS);
}

static void measure(const Bench *b) {
    const double world = b->comm.world;
    if (b->comm.rank == 0)
        printf("%-20s %10s %12s %12s %12s\n", "", "MiB", "time us", "algbw GB/s", "busbw GB/s");
    for (int o = 0; o < OPERATIONS; o++)
        for (size_t n = LEAST_BYTES / sizeof(float); n <= b->most; n *= 4) {
            const double size = o == REDUCE_BF16 || o == GATHER_ACT ? 2 : 4;
            const double s = time_calls(b, (Operation)o, n), algbw = size * (double)n / s * 1e-9;
            const double ring = (o == BOTH_FP32 ? 2 : 1) * (world - 1) / world;
            if (b->comm.rank == 0)
                printf("%-20s %10.1f %12.1f %12.2f %12.2f\n", NAMES[o], size * (double)n / 1048576,
                    1e6 * s, algbw, algbw * ring);
        }
}

int main(int argc, char **argv) {
    Bench b;
    bool check = false, share = false;
    size_t mib = 1024;
    memset(&b, 0, sizeof b);
    comm_open(&b.comm, &argc, &argv);
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--check") == 0)
            check = true;
        else if (strcmp(argv[i], "--share-gpu") == 0)
            share = true;
        else if (strncmp(argv[i], "--", 2) != 0)
            mib = (size_t)atoi(argv[i]);
    if (b.comm.world == 1) {
        printf("bench_comm needs two processes or more, and a GPU for each\n");
        comm_close(&b.comm);
        return 0;
    }
    const BackendOptions options = {
        .local_rank = b.comm.local_rank, .share_gpu = share, .untuned = true};
    b.be = backend_open(&options);
    b.most = mib * 1048576 / sizeof(float);
    comm_attach(&b.comm, b.be, b.most, COMM_BF16, share);
    b.x = (float *)comm_alloc(&b.comm, b.be, b.most * sizeof *b.x);
    b.host = (float *)xcalloc(b.most, sizeof *b.host);
    b.sums = (double *)backend_alloc(b.be, (size_t)b.comm.world * sizeof *b.sums);
    check_all(&b);
    if (!check) measure(&b);
    comm_free(&b.comm, b.be, b.x);
    comm_detach(&b.comm);
    backend_free(b.be, b.sums);
    backend_close(b.be);
    free(b.host);
    comm_close(&b.comm);
    return b.wrong ? 1 : 0;
}
