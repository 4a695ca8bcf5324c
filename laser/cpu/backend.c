/* cpu/backend.c: opening and closing, memory, scratch, and what the machine is. Computes nothing
 * itself, except the matrix products that tell this build's rate. */
#include "laser/cpu/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "laser/base.h"
#include "laser/cpu/attention.h"
#include "laser/cpu/gemm.h"

#if defined(__AVX512F__)
#define ISA_NAME "AVX-512"
#elif defined(__AVX2__)
#define ISA_NAME "AVX2"
#elif defined(__SSE2__)
#define ISA_NAME "SSE2"
#else
#define ISA_NAME "128-bit vectors"
#endif

/* Subnormal numbers cost an x86 core more than a hundred cycles each, and a softmax tail or the
 * decaying moments of an unused embedding row are full of them. They count as 0 here. Threads
 * inherit the mode from their creator. */
#ifdef __SSE2__
#include <immintrin.h>
static unsigned float_mode_get(void) {
    return _mm_getcsr();
}
static void float_mode_set(unsigned mode) {
    _mm_setcsr(mode);
}
static unsigned float_mode_flushing(unsigned mode) {
    return mode | 0x8040; /* FTZ, DAZ */
}
#else
static unsigned float_mode_get(void) {
    return 0;
}
static void float_mode_set(unsigned mode) {
    (void)mode;
}
static unsigned float_mode_flushing(unsigned mode) {
    return mode;
}
#endif

static void float_mode_set_team(Backend *be, unsigned mode) {
    (void)be;
#pragma omp parallel num_threads(be->threads)
    float_mode_set(mode);
}

/* The launcher binds processes to cores: local_rank is not looked at. */
Backend *backend_open(const BackendOptions *options) {
    REQUIRE(options->threads >= 0, "threads=%d", options->threads);
    Backend *be = xcalloc(1, sizeof *be);
    be->threads = options->threads ? options->threads : cpu_all_threads();
    be->float_mode = float_mode_get();
    float_mode_set_team(be, float_mode_flushing(be->float_mode));
    gemm_open(be);
    return be;
}

void backend_close(Backend *be) {
    if (!be) return;
    float_mode_set_team(be, be->float_mode);
    free(be->scratch);
    free(be);
}

const char *backend_name(void) {
    return "cpu";
}
const char *backend_attention(void) {
    return LASER_ATTENTION ? "laser" : "standard";
}
const char *backend_precision(void) {
    return "fp32";
}

static void cpu_model_name(char *name, size_t capacity) {
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[512];
    snprintf(name, capacity, "CPU");
    while (f && fgets(line, sizeof line, f)) {
        char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !value) continue;
        value += 1 + (value[1] == ' ');
        value[strcspn(value, "\n")] = 0;
        snprintf(name, capacity, "%s", value);
        break;
    }
    if (f) fclose(f);
}

void backend_describe(Backend *be, char *text, size_t capacity) {
    char cpu[256], blas[128];
    cpu_model_name(cpu, sizeof cpu);
    gemm_describe(blas, sizeof blas);
    snprintf(text, capacity, "%s, " ISA_NAME ", %d thread%s, %s", cpu, be->threads,
        be->threads == 1 ? "" : "s", blas);
}

double backend_peak_flops(Backend *be) {
    enum { SIDE = 1024 };
    const size_t n = (size_t)SIDE * SIDE;
    float *block = cpu_alloc(3 * n * sizeof *block);
    for (size_t i = 0; i < 3 * n; i++) block[i] = (float)(i % 31) - 15.0f;
    GemmArgs a = {.M = SIDE,
        .N = SIDE,
        .K = SIDE,
        .A = block,
        .B = block + n,
        .C = block + 2 * n,
        .lda = SIDE,
        .ldb = SIDE,
        .ldc = SIDE,
        .transB = true};
    /* the best of what fits into 0.3 s, and of all calls: other programs can only slow it down */
    double start = now_seconds();
    for (int i = 0; i < 3 || now_seconds() - start < 0.3; i++) {
        double before = now_seconds();
        gemm(be, &a);
        double rate = 2.0 * (double)SIDE * (double)n / (now_seconds() - before);
        if (rate > be->peak_flops) be->peak_flops = rate;
    }
    free(block);
    return be->peak_flops;
}

/* ---- scratch --------------------------------------------------------------------------------- */

typedef struct ScratchPlan {
    size_t threads, gemm, logits, norm, sums, channels, rope, total; /* offsets, bytes in all */
    size_t thread_bytes;
    int logits_rows;
    long logits_ld;
} ScratchPlan;

/* Logits are made for as many tokens at a time as fit into this: few enough to stay near the
 * cores, many enough that the weights and their gradients, which are passed over once for each
 * chunk, do not dominate. */
static const size_t LOGITS_BYTES = (size_t)64 << 20;
enum { LOGITS_MIN_ROWS = 64 };

static size_t take(size_t *total, size_t bytes) {
    size_t offset = *total;
    *total = size_add(offset, size_add(bytes, 63) & ~(size_t)63);
    return offset;
}

static ScratchPlan scratch_plan(const BackendLimits *l, int threads) {
    ScratchPlan p = {0};
    size_t tokens = size_mul((size_t)l->B, (size_t)l->T), vocab = ((size_t)l->V + 15) & ~(size_t)15;
    size_t rows = LOGITS_BYTES / (vocab * sizeof(float));
    if (rows < LOGITS_MIN_ROWS) rows = LOGITS_MIN_ROWS;
    if (rows > tokens) rows = tokens;
    p.logits_rows = (int)rows;
    p.logits_ld = (long)vocab;
    p.thread_bytes = (cpu_attention_scratch_bytes(l) + 63) & ~(size_t)63;
    p.threads = take(&p.total, size_mul((size_t)threads, p.thread_bytes));
    p.gemm = take(&p.total, gemm_scratch_bytes(threads));
    p.logits = take(&p.total, size_mul(rows, vocab * sizeof(float)));
    const size_t C = (size_t)l->C, HD = (size_t)l->HD, sums = 2 * C > 3 * HD ? 2 * C : 3 * HD;
    p.norm = take(&p.total, size_mul(CPU_NORM_CUTS, sums * sizeof(float)));
    p.sums = take(&p.total, CPU_NORM_CUTS * sizeof(double));
    p.channels = take(&p.total, 2 * HD * sizeof(float));
    p.rope = take(&p.total, size_mul((size_t)l->T, HD * sizeof(float)));
    return p;
}

size_t backend_scratch_bytes(const BackendLimits *limits, const BackendOptions *options) {
    return scratch_plan(limits, options->threads ? options->threads : cpu_all_threads()).total;
}

size_t backend_overhead_bytes(const Backend *be) {
    (void)be;
    return 0;
}

size_t backend_memory_limit(const Backend *be, int processes) {
    (void)be;
    REQUIRE(processes >= 1, "%d processes", processes);
    const double all = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    return (size_t)(0.95 * all / processes); /* the rest: the system's, and the data's */
}

void backend_reserve(Backend *be, const BackendLimits *l) {
    REQUIRE(!be->scratch, "scratch is reserved twice");
    REQUIRE(l->B > 0 && l->T > 0 && l->C > 0 && l->F > 0 && l->H > 0 && l->HD > 0 && l->V > 0,
        "B=%d T=%d C=%d F=%d H=%d HD=%d V=%d", l->B, l->T, l->C, l->F, l->H, l->HD, l->V);
    REQUIRE(l->DK > 0 && l->DK <= l->HD, "DK=%d HD=%d", l->DK, l->HD);
    ScratchPlan p = scratch_plan(l, be->threads);
    be->limits = *l;
    be->scratch = cpu_alloc(p.total);
    be->thread_scratch = be->scratch + p.threads;
    be->thread_bytes = p.thread_bytes;
    be->gemm = be->scratch + p.gemm;
    be->logits = (float *)(void *)(be->scratch + p.logits);
    be->logits_rows = p.logits_rows;
    be->logits_ld = p.logits_ld;
    be->norm_partials = (float *)(void *)(be->scratch + p.norm);
    be->sum_partials = (double *)(void *)(be->scratch + p.sums);
    be->channels = (float *)(void *)(be->scratch + p.channels);
    be->rope = (float *)(void *)(be->scratch + p.rope);
}

/* ---- memory ---------------------------------------------------------------------------------- */

void *cpu_alloc(size_t bytes) {
    const size_t huge = (size_t)2 << 20;
    size_t align = bytes >= 2 * huge ? huge : 64;
    size_t rounded = size_add(bytes ? bytes : 1, align - 1) & ~(align - 1);
    void *p = aligned_alloc(align, rounded);
    if (!p)
        die(EXIT_IO, "out of memory: cannot allocate %zu bytes; a smaller --batch needs less",
            bytes);
    /* a hint only: refused where the system has no transparent huge pages */
    if (align == huge) (void)madvise(p, rounded, MADV_HUGEPAGE);
    return p;
}

void *backend_alloc(Backend *be, size_t bytes) {
    be->allocations++;
    void *p = cpu_alloc(bytes);
    backend_zero(be, p, bytes);
    return p;
}

void backend_free(Backend *be, void *p) {
    (void)be;
    free(p);
}

void backend_zero(Backend *be, void *p, size_t bytes) {
    const size_t piece = (size_t)2 << 20;
    CPU_PARALLEL_FOR
    for (size_t at = 0; at < bytes; at += piece)
        memset((char *)p + at, 0, bytes - at < piece ? bytes - at : piece);
}

void backend_copy(Backend *be, void *dst, const void *src, size_t bytes) {
    const size_t piece = (size_t)2 << 20;
    CPU_PARALLEL_FOR
    for (size_t at = 0; at < bytes; at += piece)
        memcpy((char *)dst + at, (const char *)src + at, bytes - at < piece ? bytes - at : piece);
}

void backend_upload(Backend *be, void *dst, const void *host, size_t bytes) {
    (void)be;
    if (bytes) memcpy(dst, host, bytes);
}

void backend_send(Backend *be, int32_t *dst, const int32_t *host, size_t count) {
    const size_t most = size_mul((size_t)be->limits.B, (size_t)be->limits.T);
    REQUIRE(count <= most, "%zu numbers of at most %zu", count, most);
    backend_upload(be, dst, host, count * sizeof *dst);
}

void backend_download(Backend *be, void *host, const void *src, size_t bytes) {
    (void)be;
    if (bytes) memcpy(host, src, bytes);
}

void backend_upload_act(Backend *be, act_t *dst, const float *host, size_t n) {
    backend_upload(be, dst, host, size_mul(n, sizeof *dst));
}

void backend_download_act(Backend *be, float *host, const act_t *src, size_t n) {
    backend_download(be, host, src, size_mul(n, sizeof *src));
}

/* Operations have run when they return: a read is done as soon as it begins. */
void backend_read_begin(Backend *be, int slot, const void *src, size_t bytes) {
    REQUIRE(slot >= 0 && slot < BACKEND_READ_SLOTS, "slot %d", slot);
    REQUIRE(bytes > 0 && bytes <= BACKEND_READ_BYTES, "%zu bytes", bytes);
    REQUIRE(be->reads[slot].bytes == 0, "slot %d holds a read already", slot);
    be->reads[slot].bytes = bytes;
    memcpy(be->reads[slot].content, src, bytes);
}

bool backend_read_ready(Backend *be, int slot) {
    REQUIRE(slot >= 0 && slot < BACKEND_READ_SLOTS, "slot %d", slot);
    REQUIRE(be->reads[slot].bytes > 0, "slot %d holds no read", slot);
    return true;
}

void backend_read_end(Backend *be, int slot, void *host) {
    REQUIRE(backend_read_ready(be, slot), "slot %d", slot);
    memcpy(host, be->reads[slot].content, be->reads[slot].bytes);
    be->reads[slot].bytes = 0;
}

void backend_synchronize(Backend *be) {
    (void)be;
}

bool backend_device_id(const Backend *be, char *text, size_t capacity) {
    (void)be, (void)text, (void)capacity;
    return false;
}

bool backend_memory_is_host(void) {
    return true;
}

int64_t backend_allocations(const Backend *be) {
    return be->allocations;
}
