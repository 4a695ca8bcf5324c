/* cuda/gemm_plan.cu: makes the plan of a product: describes it to the library, asks for algorithms,
 * times them. Only algorithms that give the same bits every time are let in. Knows nothing of who
 * multiplies. */
#include "laser/cuda/gemm_plan.cuh"

#include <stdlib.h>
#include <string.h>

/* ---- describing the product ------------------------------------------------------------------ */

static void check(const GemmPlan *plan, const char *what, cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) gemm_fail(&plan->key, what, status);
}

template <typename X>
static void set_op(GemmPlan *plan, cublasLtMatmulDescAttributes_t which, X value) {
    check(plan, "setting an attribute of the product",
        cublasLtMatmulDescSetAttribute(plan->op, which, &value, sizeof value));
}

static cublasLtMatrixLayout_t make_layout(const GemmPlan *plan, cudaDataType_t type, int64_t rows,
    int64_t cols, int64_t ld, int64_t stride) {
    cublasLtMatrixLayout_t layout = NULL;
    check(plan, "describing a matrix",
        cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)rows, (uint64_t)cols, ld));
    const int32_t batch = (int32_t)plan->key.batch;
    if (batch == 1) return layout;
    check(plan, "setting the size of a batch",
        cublasLtMatrixLayoutSetAttribute(
            layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch));
    check(plan, "setting the stride of a batch",
        cublasLtMatrixLayoutSetAttribute(
            layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride));
    return layout;
}

/* Row-major here is column-major there: see gemm.cu. */
static void describe(GemmPlan *plan) {
    const GemmKey *k = &plan->key;
    const cudaDataType_t type = k->flags & GEMM_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const cudaDataType_t out = k->flags & GEMM_C_FLOAT ? CUDA_R_32F : type;
    const bool trans_a = k->flags & GEMM_TRANS_A, trans_b = k->flags & GEMM_TRANS_B;
    check(plan, "describing the product",
        cublasLtMatmulDescCreate(&plan->op,
            k->flags & GEMM_TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set_op(plan, CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(trans_b ? CUBLAS_OP_T : CUBLAS_OP_N));
    set_op(plan, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(trans_a ? CUBLAS_OP_T : CUBLAS_OP_N));
    plan->first =
        make_layout(plan, type, trans_b ? k->K : k->N, trans_b ? k->N : k->K, k->ldb, k->strideB);
    plan->second =
        make_layout(plan, type, trans_a ? k->M : k->K, trans_a ? k->K : k->M, k->lda, k->strideA);
    plan->out = make_layout(plan, out, k->N, k->M, k->ldc, k->strideC);
}

static void set_fused(GemmPlan *plan, bool fused, const Gemm *g) {
    const bool bias = fused && g->bias, relu = fused && g->relu;
    const cublasLtEpilogue_t epilogue = bias && relu ? CUBLASLT_EPILOGUE_RELU_BIAS
                                        : bias       ? CUBLASLT_EPILOGUE_BIAS
                                        : relu       ? CUBLASLT_EPILOGUE_RELU
                                                     : CUBLASLT_EPILOGUE_DEFAULT;
    plan->fused = fused;
    set_op(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)epilogue);
    if (!bias) return;
    const cudaDataType_t type = plan->key.flags & GEMM_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    set_op(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)type);
    /* the heuristics look at its alignment */
    set_op(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)g->bias);
}

void gemm_plan_free(GemmPlan *plan) {
    cublasLtMatmulDescDestroy(plan->op);
    cublasLtMatrixLayoutDestroy(plan->first);
    cublasLtMatrixLayoutDestroy(plan->second);
    cublasLtMatrixLayoutDestroy(plan->out);
    free(plan);
}

/* ---- asking for algorithms ------------------------------------------------------------------- */

template <typename X>
static void set_preference(const GemmPlan *plan, cublasLtMatmulPreference_t preference,
    cublasLtMatmulPreferenceAttributes_t which, X value) {
    check(plan, "setting a preference",
        cublasLtMatmulPreferenceSetAttribute(preference, which, &value, sizeof value));
}

/* Sums of parts of K are added in a step of their own and in fp32. In place, their order would be a
 * matter of chance, and in the output's type they would be rounded on the way. */
static cublasLtMatmulPreference_t make_preference(const GemmPlan *plan) {
    const GemmKey *k = &plan->key;
    const uint32_t align_a = (uint32_t)(k->alignment % 1000);
    const uint32_t align_b = (uint32_t)(k->alignment / 1000 % 1000);
    const uint32_t align_c = (uint32_t)(k->alignment / 1000000 % 1000);
    cublasLtMatmulPreference_t p = NULL;
    check(plan, "making preferences", cublasLtMatmulPreferenceCreate(&p));
    set_preference(plan, p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)k->workspace);
    set_preference(plan, p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    set_preference(plan, p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_b);
    set_preference(plan, p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_a);
    set_preference(plan, p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_c);
    set_preference(plan, p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_c);
    return p;
}

static bool same_bits_every_time(const cublasLtMatmulAlgo_t *algo) {
    uint32_t scheme = 0;
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
            sizeof scheme, &written) != CUBLAS_STATUS_SUCCESS)
        return true; /* an algorithm without the notion does not split K */
    return (scheme & CUBLASLT_REDUCTION_SCHEME_INPLACE) == 0;
}

/* Fills plan->algos with what the library offers, its favourite first. */
static void query(GemmPlans *p, GemmPlan *plan) {
    cublasLtMatmulHeuristicResult_t found[GEMM_CANDIDATES];
    int count = 0;
    plan->count = 0;
    memset(found, 0, sizeof found);
    cublasLtMatmulPreference_t preference = make_preference(plan);
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(p->lt, plan->op, plan->first,
        plan->second, plan->out, plan->out, preference, GEMM_CANDIDATES, found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    p->queries++;
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return;
    check(plan, "asking for algorithms", status);
    for (int i = 0; i < count; i++) {
        const cublasLtMatmulHeuristicResult_t *r = &found[i];
        if (r->state != CUBLAS_STATUS_SUCCESS) continue;
        if (r->workspaceSize > (size_t)plan->key.workspace) continue;
        if (!same_bits_every_time(&r->algo)) continue;
        const GemmAlgo algo = {r->algo, r->workspaceSize, i, 0};
        plan->algos[plan->count++] = algo;
    }
}

/* ---- timing ---------------------------------------------------------------------------------- */

enum { ROUNDS = 5, FEWEST_ROUNDS = 3, MOST_RUNS = 16 };
static const float SAMPLE_MS = 0.1f; /* events resolve about a microsecond */
static const float TIE = 1.02f;      /* below this an order is a matter of chance */
static const double ENOUGH_SECONDS = 0.2, MOST_SECONDS = 2;

static uintptr_t matrix_end(
    const void *p, int64_t rows, int64_t cols, int64_t ld, int64_t extra, size_t size) {
    return (uintptr_t)p + (size_t)(extra + (rows - 1) * ld + cols) * size;
}

static bool overlap(const void *a, uintptr_t a_end, const void *b, uintptr_t b_end) {
    return (uintptr_t)a < b_end && (uintptr_t)b < a_end;
}

static uintptr_t output_end(const GemmKey *k, const Gemm *g) {
    const size_t size = k->flags & GEMM_C_FLOAT ? sizeof(float) : sizeof(act_t);
    return matrix_end(g->C, k->M, k->N, k->ldc, (k->batch - 1) * k->strideC, size);
}

/* Whether the product may run into its own output more than once: the last run leaves what one
 * would. */
static bool repeatable(const GemmKey *k, const Gemm *g) {
    const size_t size = sizeof(act_t);
    const uintptr_t c_end = output_end(k, g);
    const uintptr_t a_end = matrix_end(g->A, g->transA ? k->K : k->M, g->transA ? k->M : k->K,
        k->lda, (k->batch - 1) * k->strideA, size);
    const uintptr_t b_end = matrix_end(g->B, g->transB ? k->N : k->K, g->transB ? k->K : k->N,
        k->ldb, (k->batch - 1) * k->strideB, size);
    return g->beta == 0.0f && !overlap(g->C, c_end, g->A, a_end) &&
           !overlap(g->C, c_end, g->B, b_end);
}

/* Memory of its own for the output while products are timed, zeroed; NULL where there is none. */
static void *take_output(Backend *be, size_t bytes) {
    const size_t spare = (size_t)64 << 20;
    size_t available = 0, total = 0;
    void *p = NULL;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    if (bytes + spare > available) return NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
        cudaGetLastError(); /* forgotten: the first choice will do */
        return NULL;
    }
    CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, be->stream));
    return p;
}

/* Milliseconds a run. */
static float time_runs(Backend *be, GemmPlan *plan, int i, const Gemm *g, void *C, int runs) {
    float ms = 0;
    CUDA_CHECK(cudaEventRecord(be->gemm->start, be->stream));
    for (int r = 0; r < runs; r++)
        REQUIRE(gemm_launch(be, plan, i, g, C), "algorithm %d ran before", i);
    CUDA_CHECK(cudaEventRecord(be->gemm->stop, be->stream));
    CUDA_CHECK(cudaEventSynchronize(be->gemm->stop));
    CUDA_CHECK(cudaEventElapsedTime(&ms, be->gemm->start, be->gemm->stop));
    return ms / (float)runs;
}

static float median(float *x, int n) {
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && x[j - 1] > x[j]; j--) {
            const float swap = x[j];
            x[j] = x[j - 1];
            x[j - 1] = swap;
        }
    return x[n / 2];
}

/* Runs each once; what is refused leaves the list. Returns the shortest time after that. */
static float warm_up(Backend *be, GemmPlan *plan, const Gemm *g, void *C) {
    float least = 0;
    int kept = 0;
    for (int i = 0; i < plan->count; i++)
        if (gemm_launch(be, plan, i, g, C)) plan->algos[kept++] = plan->algos[i];
    plan->count = kept;
    for (int i = 0; i < kept; i++) {
        const float ms = time_runs(be, plan, i, g, C, 1);
        if (i == 0 || ms < least) least = ms;
    }
    return least;
}

/* All take turns, so that a change of the clock meets all. */
static void time_algorithms(Backend *be, GemmPlan *plan, const Gemm *g, void *C) {
    float samples[GEMM_CANDIDATES][ROUNDS];
    const double begin = now_seconds();
    const float least = warm_up(be, plan, g, C);
    const int runs = least * MOST_RUNS < SAMPLE_MS ? MOST_RUNS
                     : least < SAMPLE_MS           ? (int)(SAMPLE_MS / least)
                                                   : 1;
    int rounds = 0;
    while (rounds < ROUNDS) {
        for (int i = 0; i < plan->count; i++)
            samples[i][rounds] = time_runs(be, plan, i, g, C, runs);
        rounds++;
        const double spent = now_seconds() - begin;
        if (spent > MOST_SECONDS || (rounds >= FEWEST_ROUNDS && spent > ENOUGH_SECONDS)) break;
    }
    for (int i = 0; i < plan->count; i++) plan->algos[i].ms = median(samples[i], rounds);
}

/* The fastest to the front; within a tie the library's order stands. */
static void pick_fastest(GemmPlan *plan) {
    int best = 0, first = 0;
    if (plan->count == 0) return;
    plan->first_ms = plan->algos[0].ms;
    for (int i = 1; i < plan->count; i++)
        if (plan->algos[i].ms < plan->algos[best].ms) best = i;
    while (plan->algos[first].ms > TIE * plan->algos[best].ms) first++;
    const GemmAlgo winner = plan->algos[first];
    memmove(plan->algos + 1, plan->algos, (size_t)first * sizeof *plan->algos);
    plan->algos[0] = winner;
}

static void tune(Backend *be, GemmPlan *plan, const Gemm *g) {
    const bool in_place = repeatable(&plan->key, g);
    const size_t bytes = output_end(&plan->key, g) - (uintptr_t)g->C;
    void *C = in_place ? g->C : take_output(be, bytes);
    if (!C) return;
    time_algorithms(be, plan, g, C);
    if (!in_place) CUDA_CHECK(cudaFree(C));
    pick_fastest(plan);
    plan->origin = "timed";
    if (plan->count == 0) return;
    const GemmChoice choice = {
        plan->key, plan->algos[0].algo, (int64_t)plan->algos[0].workspace, plan->fused};
    gemm_cache_add(&be->gemm->cache, &choice);
}

/* ---- choosing -------------------------------------------------------------------------------- */

static void make_plain(GemmPlan *plan) {
    const double noticeable = 1e8; /* products: a millisecond */
    const GemmKey *k = &plan->key;
    plan->plain = true;
    plan->origin = "plain";
    if ((double)k->M * (double)k->N * (double)k->K * (double)k->batch < noticeable) return;
    warn("cuBLASLt has no algorithm for a product of M %lld, N %lld, K %lld, rows %lld, %lld, %lld "
         "apart: it will be slow. Sizes that are multiples of 8 help",
        (long long)k->M, (long long)k->N, (long long)k->K, (long long)k->lda, (long long)k->ldb,
        (long long)k->ldc);
}

/* Asks with bias and ReLU in the product first, then without. */
static void choose(Backend *be, GemmPlan *plan, const Gemm *g, bool fused) {
    for (;; fused = false) {
        set_fused(plan, fused, g);
        plan->origin = "first";
        query(be->gemm, plan);
        if (plan->count > 0 && !be->options.untuned) tune(be, plan, g);
        if (plan->count > 0) return;
        if (!fused || !(g->bias || g->relu)) break;
    }
    make_plain(plan);
}

static bool take_from_file(Backend *be, GemmPlan *plan, const Gemm *g) {
    const GemmChoice *c = gemm_cache_find(&be->gemm->cache, &plan->key);
    cublasLtMatmulHeuristicResult_t result;
    if (be->options.untuned || !c) return false;
    set_fused(plan, c->fused != 0, g);
    memset(&result, 0, sizeof result);
    const cublasStatus_t status = cublasLtMatmulAlgoCheck(
        be->gemm->lt, plan->op, plan->first, plan->second, plan->out, plan->out, &c->algo, &result);
    if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > (size_t)plan->key.workspace ||
        !same_bits_every_time(&c->algo))
        return false;
    const GemmAlgo algo = {c->algo, result.workspaceSize, -1, 0};
    plan->algos[0] = algo;
    plan->count = 1;
    plan->origin = "file";
    return true;
}

GemmPlan *gemm_plan_make(Backend *be, const GemmKey *key, const Gemm *g) {
    GemmPlan *plan = (GemmPlan *)xcalloc(1, sizeof *plan);
    plan->key = *key;
    describe(plan);
    if (!take_from_file(be, plan, g)) choose(be, plan, g, true);
    return plan;
}

void gemm_plan_next(Backend *be, GemmPlan *plan, const Gemm *g) {
    if (strcmp(plan->origin, "file") == 0) {
        choose(be, plan, g, true);
    } else if (plan->count > 1) {
        plan->count--;
        memmove(plan->algos, plan->algos + 1, (size_t)plan->count * sizeof *plan->algos);
    } else if (plan->fused && (g->bias || g->relu)) {
        choose(be, plan, g, false);
    } else {
        make_plain(plan);
    }
}
