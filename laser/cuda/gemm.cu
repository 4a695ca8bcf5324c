/* cuda/gemm.cu: the matrix product: checks, finds the plan for the shape, runs it. How a plan is
 * made is in gemm_plan.cu.
 *
 * The library's matrices are column-major: ours, read so, are their transposes. So it computes
 * C^T = op(B)^T op(A)^T: our B is its first operand, and a row of ours is a column of its. */
#include "laser/cuda/gemm.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "laser/cuda/gemm_plan.cuh"

static void form_text(const GemmKey *k, char *text, size_t capacity) {
    format(text, capacity, "%c%c%s%s%s%s%s", k->flags & GEMM_TRANS_A ? 't' : 'n',
        k->flags & GEMM_TRANS_B ? 't' : 'n', k->flags & GEMM_BF16 ? " bf16" : "",
        k->flags & GEMM_C_FLOAT && k->flags & GEMM_BF16 ? ">f32" : "",
        k->flags & GEMM_BIAS ? " bias" : "", k->flags & GEMM_RELU ? " relu" : "",
        k->flags & GEMM_ADDS ? " +=" : "");
}

void gemm_fail(const GemmKey *k, const char *what, cublasStatus_t status) {
    char form[48];
    form_text(k, form, sizeof form);
    die(EXIT_IO,
        "cuBLASLt %zu: %s: %s (%d). M %lld N %lld K %lld, rows %lld %lld %lld apart, %lld at "
        "strides %lld %lld %lld, %s, alignments %lld, workspace %lld",
        cublasLtGetVersion(), what, cublasLtGetStatusName(status), (int)status, (long long)k->M,
        (long long)k->N, (long long)k->K, (long long)k->lda, (long long)k->ldb, (long long)k->ldc,
        (long long)k->batch, (long long)k->strideA, (long long)k->strideB, (long long)k->strideC,
        form, (long long)k->alignment, (long long)k->workspace);
}

/* ---- opening --------------------------------------------------------------------------------- */

void gemm_open(Backend *be) {
    enum { SLOTS = 256 };
    GemmPlans *p = (GemmPlans *)xcalloc(1, sizeof *p);
    const cublasStatus_t status = cublasLtCreate(&p->lt);
    if (status != CUBLAS_STATUS_SUCCESS)
        die(EXIT_IO, "cuBLASLt cannot be opened: %s (%d)", cublasLtGetStatusName(status),
            (int)status);
    CUDA_CHECK(cudaEventCreate(&p->start));
    CUDA_CHECK(cudaEventCreate(&p->stop));
    p->slots = SLOTS;
    p->table = (int *)xcalloc(SLOTS, sizeof *p->table);
    be->gemm = p;
    gemm_cache_open(be);
}

void gemm_close(Backend *be) {
    GemmPlans *p = be->gemm;
    if (!p) return;
    gemm_cache_close(&p->cache);
    for (int i = 0; i < p->count; i++) gemm_plan_free(p->plans[i]);
    CUDA_CHECK(cudaEventDestroy(p->start));
    CUDA_CHECK(cudaEventDestroy(p->stop));
    cublasLtDestroy(p->lt);
    free(p->plans);
    free(p->table);
    free(p);
    be->gemm = NULL;
}

/* What NVIDIA advises for Hopper, where the fastest algorithms ask for more; half of it before. */
size_t gemm_workspace_bytes(int major) {
    return major >= 9 ? (size_t)32 << 20 : (size_t)16 << 20;
}

void gemm_describe(const Backend *be, char *text, size_t capacity) {
    const size_t v = cublasLtGetVersion();
    format(text, capacity, "cuBLASLt %zu.%zu.%zu%s%s", v / 10000, v / 100 % 100, v % 100,
        be->options.untuned ? "" : " tuned", be->options.tf32 && !BF16 ? " TF32" : "");
}

/* ---- the table of plans ---------------------------------------------------------------------- */

static uint64_t key_hash(const GemmKey *key) {
    uint64_t word[GEMM_KEY_WORDS], h = 0;
    memcpy(word, key, sizeof word);
    for (int i = 0; i < GEMM_KEY_WORDS; i++) {
        h = (h ^ word[i]) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    return h;
}

/* The slot of the key, or the empty one where it belongs. */
static int *find_slot(const GemmPlans *p, const GemmKey *key) {
    const uint64_t mask = (uint64_t)p->slots - 1;
    for (uint64_t i = key_hash(key) & mask;; i = (i + 1) & mask) {
        int *slot = &p->table[i];
        if (*slot == 0 || memcmp(&p->plans[*slot - 1]->key, key, sizeof *key) == 0) return slot;
    }
}

static void add_plan(GemmPlans *p, GemmPlan *plan) {
    if (p->count == p->capacity) {
        const int capacity = p->capacity ? 2 * p->capacity : 64;
        GemmPlan **plans = (GemmPlan **)xcalloc((size_t)capacity, sizeof(GemmPlan *));
        if (p->count) memcpy(plans, p->plans, (size_t)p->count * sizeof(GemmPlan *));
        free(p->plans);
        p->plans = plans;
        p->capacity = capacity;
    }
    p->plans[p->count++] = plan;
    if (2 * p->count >= p->slots) {
        free(p->table);
        p->slots *= 2;
        p->table = (int *)xcalloc((size_t)p->slots, sizeof *p->table);
        for (int i = 0; i < p->count; i++) *find_slot(p, &p->plans[i]->key) = i + 1;
    } else {
        *find_slot(p, &plan->key) = p->count;
    }
}

/* The largest power of two up to 256 that divides the address of each matrix of a batch. */
static int64_t alignment(const void *p, int64_t stride, int batch, size_t size) {
    uint64_t x = (uint64_t)(uintptr_t)p | 256u;
    if (batch > 1) x |= (uint64_t)stride * size;
    return (int64_t)(x & (~x + 1));
}

static GemmKey make_key(const Backend *be, const Gemm *g) {
    const int batch = g->batch > 1 ? g->batch : 1;
    const size_t size = sizeof(act_t), c_size = g->c_float ? sizeof(float) : sizeof(act_t);
    GemmKey k = {};
    k.M = g->M, k.N = g->N, k.K = g->K;
    k.lda = g->lda, k.ldb = g->ldb, k.ldc = g->ldc;
    k.batch = batch;
    if (batch > 1) k.strideA = g->strideA, k.strideB = g->strideB, k.strideC = g->strideC;
    k.flags = (g->transA ? GEMM_TRANS_A : 0) | (g->transB ? GEMM_TRANS_B : 0) |
              (g->c_float ? GEMM_C_FLOAT : 0) | (g->bias ? GEMM_BIAS : 0) |
              (g->relu ? GEMM_RELU : 0) | (g->beta != 0.0f ? GEMM_ADDS : 0) |
              (be->options.tf32 && !BF16 ? GEMM_TF32 : 0) | (BF16 ? GEMM_BF16 : 0);
    k.alignment = alignment(g->A, g->strideA, batch, size) +
                  1000 * alignment(g->B, g->strideB, batch, size) +
                  1000000 * alignment(g->C, g->strideC, batch, c_size) +
                  1000000000 * (g->bias ? alignment(g->bias, 0, 1, size) : 0);
    k.workspace = be->gemm_workspace ? (int64_t)be->plan.gemm_bytes : 0;
    return k;
}

/* ---- running --------------------------------------------------------------------------------- */

static void check_gemm(const Gemm *g) {
    REQUIRE(g->M > 0 && g->N > 0 && g->K > 0, "M=%d N=%d K=%d", g->M, g->N, g->K);
    REQUIRE(g->A && g->B && g->C, "A=%p B=%p C=%p", (const void *)g->A, (const void *)g->B, g->C);
    REQUIRE(g->lda >= (g->transA ? g->M : g->K) && g->ldb >= (g->transB ? g->K : g->N) &&
                g->ldc >= g->N,
        "lda=%lld ldb=%lld ldc=%lld for M=%d N=%d K=%d%s%s", (long long)g->lda, (long long)g->ldb,
        (long long)g->ldc, g->M, g->N, g->K, g->transA ? " A^T" : "", g->transB ? " B^T" : "");
    REQUIRE(g->alpha != 0.0f, "alpha=%g", (double)g->alpha);
    const bool fuses = g->bias || g->relu;
    REQUIRE(!fuses || ((!g->c_float || !BF16) && g->beta == 0.0f && g->batch <= 1),
        "bias or ReLU with c_float=%d beta=%g batch=%d", g->c_float, (double)g->beta, g->batch);
    REQUIRE(g->batch <= 1 || g->strideC != 0, "batch=%d strideC=0", g->batch);
}

/* Where the library cannot add the bias, C holds it before the product is added to it: nothing is
 * rounded twice. */
__global__ static void bias_rows_kernel(act_t *C, const act_t *bias, int M, int N, int64_t ldc) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)M * N) return;
    C[i / N * ldc + i % N] = bias[i % N];
}
__global__ static void relu_rows_kernel(act_t *C, int M, int N, int64_t ldc) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)M * N) return;
    const float x = to_float(C[i / N * ldc + i % N]);
    store(&C[i / N * ldc + i % N], x < 0.0f ? 0.0f : x);
}

bool gemm_launch(Backend *be, GemmPlan *plan, int i, const Gemm *g, void *C) {
    const GemmAlgo *a = &plan->algos[i];
    const float beta = g->bias && !plan->fused ? 1.0f : g->beta;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (g->bias && plan->fused)
        status = cublasLtMatmulDescSetAttribute(
            plan->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof g->bias);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmul(be->gemm->lt, plan->op, &g->alpha, g->B, plan->first, g->A,
            plan->second, &beta, C, plan->out, C, plan->out, &a->algo, be->gemm_workspace,
            (size_t)plan->key.workspace, be->stream);
    const bool refused = status == CUBLAS_STATUS_NOT_SUPPORTED ||
                         status == CUBLAS_STATUS_INVALID_VALUE ||
                         status == CUBLAS_STATUS_ARCH_MISMATCH;
    if (status != CUBLAS_STATUS_SUCCESS && (plan->proven || !refused))
        gemm_fail(&plan->key, "the product failed", status);
    return status == CUBLAS_STATUS_SUCCESS;
}

static void run_plan(Backend *be, GemmPlan *plan, const Gemm *g) {
    enum { THREADS = 256 };
    const int blocks = ceil_div((int64_t)g->M * g->N, THREADS);
    act_t *C = (act_t *)g->C;
    for (;;) {
        if (plan->plain) {
            gemm_plain(be, g);
            return;
        }
        if (g->bias && !plan->fused)
            LAUNCH(
                bias_rows_kernel, blocks, THREADS, 0, be->stream, C, g->bias, g->M, g->N, g->ldc);
        if (gemm_launch(be, plan, 0, g, g->C)) break;
        gemm_plan_next(be, plan, g); /* an algorithm may be refused that the library offered */
    }
    plan->proven = true;
    if (g->relu && !plan->fused)
        LAUNCH(relu_rows_kernel, blocks, THREADS, 0, be->stream, C, g->M, g->N, g->ldc);
}

void gemm(Backend *be, const Gemm *g) {
    GemmPlans *p = be->gemm;
    check_gemm(g);
    const GemmKey key = make_key(be, g);
    const int at = *find_slot(p, &key);
    GemmPlan *plan = at ? p->plans[at - 1] : gemm_plan_make(be, &key, g);
    if (!at) add_plan(p, plan);
    run_plan(be, plan, g);
    if (p->cache.changed) gemm_cache_save_old(&p->cache);
}

/* ---- what was planned ------------------------------------------------------------------------ */

int gemm_plan_count(const Backend *be) {
    return be->gemm->count;
}
int64_t gemm_query_count(const Backend *be) {
    return be->gemm->queries;
}

static int attribute(const GemmAlgo *a, cublasLtMatmulAlgoConfigAttributes_t which) {
    int32_t value = 0; /* all that are asked for have 4 bytes */
    size_t written = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoConfigGetAttribute(&a->algo, which, &value, sizeof value, &written);
    return status == CUBLAS_STATUS_SUCCESS ? value : -1;
}

GemmPlanInfo gemm_plan_info(const Backend *be, int i) {
    REQUIRE(i >= 0 && i < be->gemm->count, "plan %d of %d", i, be->gemm->count);
    const GemmPlan *p = be->gemm->plans[i];
    const GemmAlgo *a = p->plain ? NULL : &p->algos[0];
    GemmPlanInfo info = {};
    info.M = p->key.M, info.N = p->key.N, info.K = p->key.K, info.batch = p->key.batch;
    form_text(&p->key, info.form, sizeof info.form);
    info.origin = p->origin;
    info.algorithm = info.tile = info.splits = info.reduction = -1;
    info.fused = p->fused;
    if (!a) return info;
    info.candidates = p->count;
    info.chosen = a->order;
    info.ms = a->ms, info.first_ms = p->first_ms;
    info.algorithm = attribute(a, CUBLASLT_ALGO_CONFIG_ID);
    info.tile = attribute(a, CUBLASLT_ALGO_CONFIG_TILE_ID);
    info.splits = attribute(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
    info.reduction = attribute(a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
    info.workspace = a->workspace;
    return info;
}

void gemm_print_plans(const Backend *be, FILE *f) {
    fprintf(f, "products: M N K x batch, form, time, rate (the library's first choice)\n");
    for (int i = 0; i < be->gemm->count; i++) {
        const GemmPlanInfo p = gemm_plan_info(be, i);
        const double flops = 2.0 * (double)p.M * (double)p.N * (double)p.K * (double)p.batch;
        const double tera = p.ms > 0 ? flops / p.ms / 1e9 : 0;
        const double tera_first = p.first_ms > 0 ? flops / p.first_ms / 1e9 : 0;
        fprintf(f,
            "  %6lld %6lld %6lld x %-4lld %-18s %9.4f ms %6.1f (%6.1f) TFLOP/s  %s, choice %d of "
            "%d: algorithm %d tile %d splits %d scheme %d workspace %zu%s\n",
            (long long)p.M, (long long)p.N, (long long)p.K, (long long)p.batch, p.form,
            (double)p.ms, tera, tera_first, p.origin, p.chosen + 1, p.candidates, p.algorithm,
            p.tile, p.splits, p.reduction, p.workspace, p.fused ? "" : ", bias apart");
    }
}
