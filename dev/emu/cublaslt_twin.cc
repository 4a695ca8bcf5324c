/* cublaslt_twin.cc: cuBLASLt's interface (dev/emu/include/cublasLt.h) on a CPU, for the emulator:
 * the product from column-major layouts, summed in fp32. It is as strict as the library may be, and
 * its list of algorithms holds what a careless caller would fall for. All algorithms give the same
 * bits, so that what timing chooses changes no result. Knows nothing of who multiplies. */
#include <cublasLt.h>

#include <stdlib.h>
#include <string.h>

#include "dev/emu/emu.h"
#include "dev/emu/product.h"

struct cublasLtContext {
    uint64_t magic;
};
struct cublasLtTwinLayout {
    cudaDataType type;
    int64_t rows, cols, ld, stride;
    int32_t batch;
};
struct cublasLtTwinDesc {
    cublasComputeType_t compute;
    cudaDataType scale;
    int32_t trans_a, trans_b, bias_type;
    uint32_t epilogue;
    const void *bias;
};
struct cublasLtTwinPreference {
    uint64_t workspace;
    uint32_t schemes, align[4]; /* A, B, C, D */
};

static const uint64_t MAGIC = 0x6c617365722e6331u;

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    if (!handle) return CUBLAS_STATUS_INVALID_VALUE;
    *handle = (cublasLtHandle_t)calloc(1, sizeof **handle);
    if (!*handle) return CUBLAS_STATUS_ALLOC_FAILED;
    (*handle)->magic = MAGIC;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusName(cublasStatus_t status) {
#define NAME(status)                                                                               \
    case status:                                                                                   \
        return #status
    switch (status) {
        NAME(CUBLAS_STATUS_SUCCESS);
        NAME(CUBLAS_STATUS_NOT_INITIALIZED);
        NAME(CUBLAS_STATUS_ALLOC_FAILED);
        NAME(CUBLAS_STATUS_INVALID_VALUE);
        NAME(CUBLAS_STATUS_ARCH_MISMATCH);
        NAME(CUBLAS_STATUS_EXECUTION_FAILED);
        NAME(CUBLAS_STATUS_INTERNAL_ERROR);
        NAME(CUBLAS_STATUS_NOT_SUPPORTED);
    }
#undef NAME
    return "an unknown status";
}

size_t cublasLtGetVersion(void) {
    return 130100;
}

/* ---- descriptors ----------------------------------------------------------------------------- */

static cublasStatus_t assign(void *field, size_t bytes, const void *value, size_t size) {
    if (!value || size != bytes) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(
    cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld) {
    if (!layout) return CUBLAS_STATUS_INVALID_VALUE;
    *layout = (cublasLtMatrixLayout_t)calloc(1, sizeof **layout);
    if (!*layout) return CUBLAS_STATUS_ALLOC_FAILED;
    (*layout)->type = type;
    (*layout)->rows = (int64_t)rows, (*layout)->cols = (int64_t)cols, (*layout)->ld = ld;
    (*layout)->batch = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
    cublasLtMatrixLayoutAttribute_t attribute, const void *value, size_t size) {
    if (!layout) return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        return assign(&layout->batch, sizeof layout->batch, value, size);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return assign(&layout->stride, sizeof layout->stride, value, size);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulDescCreate(
    cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale) {
    if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
    *desc = (cublasLtMatmulDesc_t)calloc(1, sizeof **desc);
    if (!*desc) return CUBLAS_STATUS_ALLOC_FAILED;
    (*desc)->compute = compute;
    (*desc)->scale = scale;
    (*desc)->bias_type = -1;
    (*desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    free(desc);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
    cublasLtMatmulDescAttributes_t attribute, const void *value, size_t size) {
    if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return assign(&desc->trans_a, sizeof desc->trans_a, value, size);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return assign(&desc->trans_b, sizeof desc->trans_b, value, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return assign(&desc->epilogue, sizeof desc->epilogue, value, size);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return assign(&desc->bias, sizeof desc->bias, value, size);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return assign(&desc->bias_type, sizeof desc->bias_type, value, size);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
    *preference = (cublasLtMatmulPreference_t)calloc(1, sizeof **preference);
    if (!*preference) return CUBLAS_STATUS_ALLOC_FAILED;
    (*preference)->schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
    for (int i = 0; i < 4; i++) (*preference)->align[i] = 256;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
    cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t size) {
    if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return assign(&preference->workspace, sizeof preference->workspace, value, size);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return assign(&preference->schemes, sizeof preference->schemes, value, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: {
        const int i = attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
        uint32_t *field = &preference->align[i];
        return assign(field, sizeof *field, value, size);
    }
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* ---- what is asked for ----------------------------------------------------------------------- */

typedef struct Problem {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
    int64_t m, n, k;
} Problem;

static int64_t bytes_of(cudaDataType type) {
    return type == CUDA_R_32F ? 4 : 2;
}

static bool layout_valid(cublasLtMatrixLayout_t x, int32_t batch) {
    const int64_t most = INT32_MAX;
    if (x->type != CUDA_R_32F && x->type != CUDA_R_16BF) return false;
    if (x->rows < 1 || x->cols < 1 || x->rows > most || x->cols > most) return false;
    return x->ld >= x->rows && x->batch == batch && x->stride >= 0;
}

static bool layouts_equal(cublasLtMatrixLayout_t x, cublasLtMatrixLayout_t y) {
    return x->type == y->type && x->rows == y->rows && x->cols == y->cols && x->ld == y->ld &&
           x->batch == y->batch && x->stride == y->stride;
}

static cublasStatus_t types_supported(const Problem *p) {
    const bool floats = p->a->type == CUDA_R_32F;
    if (p->a->type != p->b->type || (floats && p->c->type != CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p->desc->scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    /* some odd products are served by no algorithm: a caller has to do without */
    if (p->m % 2 && p->n % 2 && p->k == 31) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p->desc->compute == CUBLAS_COMPUTE_32F) return CUBLAS_STATUS_SUCCESS;
    return p->desc->compute == CUBLAS_COMPUTE_32F_FAST_TF32 && floats ? CUBLAS_STATUS_SUCCESS
                                                                      : CUBLAS_STATUS_NOT_SUPPORTED;
}

static cublasStatus_t epilogue_supported(const Problem *p) {
    const uint32_t e = p->desc->epilogue;
    if (e != CUBLASLT_EPILOGUE_DEFAULT && e != CUBLASLT_EPILOGUE_RELU &&
        e != CUBLASLT_EPILOGUE_BIAS && e != CUBLASLT_EPILOGUE_RELU_BIAS)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!(e & CUBLASLT_EPILOGUE_BIAS)) return CUBLAS_STATUS_SUCCESS;
    if (p->desc->bias_type != -1 && p->desc->bias_type != (int32_t)p->c->type)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    /* stricter than the library has been seen to be: what a caller does then has to be tried */
    return (uintptr_t)p->desc->bias % 16 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t make_problem(Problem *p, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    if (!desc || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
    const int32_t batch = d->batch;
    if (batch < 1 || !layout_valid(a, batch) || !layout_valid(b, batch) || !layout_valid(d, batch))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!layouts_equal(c, d) || (batch > 1 && d->stride == 0)) return CUBLAS_STATUS_INVALID_VALUE;
    *p = {desc, a, b, d, d->rows, d->cols, desc->trans_a ? a->rows : a->cols};
    if ((desc->trans_a ? a->cols : a->rows) != p->m ||
        (desc->trans_b ? b->cols : b->rows) != p->k || (desc->trans_b ? b->rows : b->cols) != p->n)
        return CUBLAS_STATUS_INVALID_VALUE;
    const cublasStatus_t status = types_supported(p);
    return status == CUBLAS_STATUS_SUCCESS ? epilogue_supported(p) : status;
}

/* ---- algorithms ------------------------------------------------------------------------------ */

enum {
    PLAIN = 11,
    SPLIT = 24,
    IN_PLACE = 31,
    GREEDY = 52,
    ALIGNED = 66,
    REFUSED = 77,
    BROKEN = 99
};

typedef struct Kind {
    int32_t id;
    uint32_t tile;
    int32_t splits;
    uint32_t scheme;
} Kind;

static const Kind kinds[] = {
    {REFUSED, 20, 1, CUBLASLT_REDUCTION_SCHEME_NONE}, /* offered for some shapes, never runs */
    {BROKEN, 0, 0, 0},                                /* its state says that it is none */
    {ALIGNED, 20, 1, CUBLASLT_REDUCTION_SCHEME_NONE}, /* pointers and rows in 16 bytes */
    {IN_PLACE, 15, 8, CUBLASLT_REDUCTION_SCHEME_INPLACE},
    {GREEDY, 15, 16, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE}, /* more workspace than allowed */
    {SPLIT, 15, 4, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE},
    {PLAIN, 18, 1, CUBLASLT_REDUCTION_SCHEME_NONE},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static const Kind *kind_of(const cublasLtMatmulAlgo_t *algo) {
    if (!algo || algo->data[0] != MAGIC || algo->data[7] != ~algo->data[1]) return NULL;
    for (int i = 0; i < KINDS; i++)
        if ((uint64_t)kinds[i].id == algo->data[1] && kinds[i].id != BROKEN) return &kinds[i];
    return NULL;
}

static size_t workspace_of(const Kind *kind, const Problem *p) {
    const size_t sums = (size_t)(p->m * p->n * p->c->batch) * sizeof(float);
    if (kind->id == IN_PLACE) return 4096; /* its counters */
    return kind->scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE ? (size_t)kind->splits * sums : 0;
}

static bool layout_aligned(cublasLtMatrixLayout_t x) {
    const int64_t bytes = bytes_of(x->type);
    return x->ld * bytes % 16 == 0 && (x->batch == 1 || x->stride * bytes % 16 == 0);
}

static bool kind_offered(
    const Kind *kind, const Problem *p, const struct cublasLtTwinPreference *preference) {
    if (kind->scheme && !(kind->scheme & preference->schemes)) return false;
    if (kind->id == REFUSED) return (p->m + p->n + p->k) % 3 == 0;
    if (kind->id == SPLIT) return p->k > 32 && workspace_of(kind, p) <= preference->workspace;
    if (kind->id == IN_PLACE) return workspace_of(kind, p) <= preference->workspace;
    if (kind->id != ALIGNED) return true;
    for (int i = 0; i < 4; i++)
        if (preference->align[i] < 16) return false;
    return layout_aligned(p->a) && layout_aligned(p->b) && layout_aligned(p->c);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
    cublasLtMatrixLayout_t Adesc, cublasLtMatrixLayout_t Bdesc, cublasLtMatrixLayout_t Cdesc,
    cublasLtMatrixLayout_t Ddesc, cublasLtMatmulPreference_t preference, int requested,
    cublasLtMatmulHeuristicResult_t results[], int *returned) {
    Problem p;
    if (!handle || handle->magic != MAGIC) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!preference || !results || !returned || requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
    *returned = 0;
    const cublasStatus_t status = make_problem(&p, desc, Adesc, Bdesc, Cdesc, Ddesc);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    for (int i = 0; i < KINDS && *returned < requested; i++) {
        if (!kind_offered(&kinds[i], &p, preference)) continue;
        cublasLtMatmulHeuristicResult_t *r = &results[(*returned)++];
        memset(r, 0xa5, sizeof *r);
        r->state = kinds[i].id == BROKEN ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
        if (kinds[i].id == BROKEN) continue;
        const uint64_t id = (uint64_t)kinds[i].id;
        const cublasLtMatmulAlgo_t algo = {{MAGIC, id, 0, 0, 0, 0, 0, ~id}};
        r->algo = algo;
        r->workspaceSize = workspace_of(&kinds[i], &p);
        if (kinds[i].id == GREEDY) r->workspaceSize += preference->workspace;
        r->wavesCount = 1;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
    cublasLtMatrixLayout_t Adesc, cublasLtMatrixLayout_t Bdesc, cublasLtMatrixLayout_t Cdesc,
    cublasLtMatrixLayout_t Ddesc, const cublasLtMatmulAlgo_t *algo,
    cublasLtMatmulHeuristicResult_t *result) {
    Problem p;
    if (!handle || handle->magic != MAGIC) return CUBLAS_STATUS_NOT_INITIALIZED;
    const Kind *kind = kind_of(algo);
    if (!kind || !result) return CUBLAS_STATUS_INVALID_VALUE;
    const cublasStatus_t status = make_problem(&p, desc, Adesc, Bdesc, Cdesc, Ddesc);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    result->state = CUBLAS_STATUS_SUCCESS;
    result->workspaceSize = workspace_of(kind, &p);
    result->wavesCount = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
    cublasLtMatmulAlgoConfigAttributes_t attribute, void *value, size_t size, size_t *written) {
    const Kind *kind = kind_of(algo);
    if (!kind || !value || size != sizeof(int32_t)) return CUBLAS_STATUS_INVALID_VALUE;
    if (written) *written = size;
    switch (attribute) {
    case CUBLASLT_ALGO_CONFIG_ID:
        return assign(value, size, &kind->id, sizeof kind->id);
    case CUBLASLT_ALGO_CONFIG_TILE_ID:
        return assign(value, size, &kind->tile, sizeof kind->tile);
    case CUBLASLT_ALGO_CONFIG_SPLITK_NUM:
        return assign(value, size, &kind->splits, sizeof kind->splits);
    case CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME:
        return assign(value, size, &kind->scheme, sizeof kind->scheme);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* ---- the product ----------------------------------------------------------------------------- */

typedef struct Operands {
    const void *a, *b, *c;
    void *d;
    float alpha, beta;
} Operands;

static const void *element(const void *p, cublasLtMatrixLayout_t x, int64_t at) {
    return (const char *)p + at * bytes_of(x->type);
}

static ProductMatrix operand(
    const Problem *p, const void *at, cublasLtMatrixLayout_t x, bool transposed) {
    const bool tf32 = p->desc->compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    return {at, x->type == CUDA_R_16BF, tf32, transposed ? x->ld : 1, transposed ? 1 : x->ld};
}

/* D = epilogue(alpha * sums + beta * C) of one matrix of the batch, rounded once. */
static void finish(const Problem *p, const Operands *o, const float *sums, int64_t offset) {
    const bool bf16 = p->c->type == CUDA_R_16BF, relu = p->desc->epilogue & CUBLASLT_EPILOGUE_RELU;
    const void *bias_at = p->desc->epilogue & CUBLASLT_EPILOGUE_BIAS ? p->desc->bias : NULL;
    const ProductMatrix bias = {bias_at, bf16, false, 1, 0};
    const ProductMatrix c = {
        o->beta != 0.0f ? element(o->c, p->c, offset) : NULL, bf16, false, 1, p->c->ld};
    void *d = (void *)element(o->d, p->c, offset);
    for (int64_t j = 0; j < p->n; j++) {
        for (int64_t i = 0; i < p->m; i++) {
            float x = o->alpha * sums[j * p->m + i];
            if (c.p) x += o->beta * product_load(&c, i, j);
            if (bias_at) x += product_load(&bias, i, 0);
            if (relu) x = x > 0.0f ? x : 0.0f;
            if (bf16)
                ((uint16_t *)d)[j * p->c->ld + i] = product_bf16(x);
            else
                ((float *)d)[j * p->c->ld + i] = x;
        }
    }
}

/* Partial sums go through the workspace as they would; all but the first are 0. */
static void through_workspace(
    float *sums, float *workspace, size_t count, int splits, int64_t batch, size_t whole) {
    for (int s = 0; s < splits; s++) {
        float *part = workspace + (size_t)s * whole + (size_t)batch * count;
        if (s == 0)
            memcpy(part, sums, count * sizeof(float));
        else
            memset(part, 0, count * sizeof(float));
    }
    for (size_t i = 0; i < count; i++) {
        float x = 0;
        for (int s = 0; s < splits; s++)
            x += workspace[(size_t)s * whole + (size_t)batch * count + i];
        sums[i] = x;
    }
}

static bool multiply(const Problem *p, const Operands *o, const Kind *kind, void *workspace) {
    const size_t count = (size_t)(p->m * p->n), whole = count * (size_t)p->c->batch;
    float *sums = (float *)malloc(count * sizeof(float));
    bool done = sums != NULL;
    emu_device_begin();
    for (int64_t i = 0; done && i < p->c->batch; i++) {
        const ProductMatrix a =
            operand(p, element(o->a, p->a, i * p->a->stride), p->a, p->desc->trans_a);
        const ProductMatrix b =
            operand(p, element(o->b, p->b, i * p->b->stride), p->b, p->desc->trans_b);
        done = product(sums, &a, &b, p->m, p->n, p->k);
        if (!done) break;
        if (kind->scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
            through_workspace(sums, (float *)workspace, count, kind->splits, i, whole);
        finish(p, o, sums, i * p->c->stride);
    }
    emu_device_end();
    free(sums);
    return done;
}

/* A GPU would read or write whatever is there. */
static void require_device(const char *name, const void *p, cublasLtMatrixLayout_t x) {
    const int64_t elements = (x->batch - 1) * x->stride + (x->cols - 1) * x->ld + x->rows;
    const size_t bytes = (size_t)(elements * bytes_of(x->type));
    if (!emu_is_device(p, bytes))
        emu_fail("cublasLtMatmul: %s at %p, %zu bytes, is not in one allocation of device memory",
            name, p, bytes);
}

static void require_all_device(
    const Problem *p, const Operands *o, const void *workspace, size_t workspace_bytes) {
    require_device("A", o->a, p->a);
    require_device("B", o->b, p->b);
    require_device("D", o->d, p->c);
    if (o->beta != 0.0f) require_device("C", o->c, p->c);
    const size_t bias_bytes = (size_t)(p->m * bytes_of(p->c->type));
    if (p->desc->epilogue & CUBLASLT_EPILOGUE_BIAS && !emu_is_device(p->desc->bias, bias_bytes))
        emu_fail("cublasLtMatmul: the bias at %p is not in device memory", p->desc->bias);
    if (workspace_bytes && !emu_is_device(workspace, workspace_bytes))
        emu_fail("cublasLtMatmul: the workspace at %p is not in device memory", workspace);
}

static bool aligned(const void *p, int64_t bytes) {
    return (uintptr_t)p % (uintptr_t)bytes == 0;
}

static cublasStatus_t check_operands(const Problem *p, const Operands *o, const Kind *kind) {
    if (!o->a || !o->b || !o->d || (o->beta != 0.0f && !o->c)) return CUBLAS_STATUS_INVALID_VALUE;
    if (o->d == o->a || o->d == o->b) return CUBLAS_STATUS_INVALID_VALUE;
    if (p->desc->epilogue & CUBLASLT_EPILOGUE_BIAS && !p->desc->bias)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!aligned(o->a, bytes_of(p->a->type)) || !aligned(o->b, bytes_of(p->b->type)) ||
        !aligned(o->c, bytes_of(p->c->type)) || !aligned(o->d, bytes_of(p->c->type)))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (kind->id == REFUSED) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (kind->id != ALIGNED) return CUBLAS_STATUS_SUCCESS;
    const bool all = aligned(o->a, 16) && aligned(o->b, 16) && aligned(o->c, 16) &&
                     aligned(o->d, 16) && layout_aligned(p->a) && layout_aligned(p->b) &&
                     layout_aligned(p->c);
    return all ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
    const void *A, cublasLtMatrixLayout_t Adesc, const void *B, cublasLtMatrixLayout_t Bdesc,
    const void *beta, const void *C, cublasLtMatrixLayout_t Cdesc, void *D,
    cublasLtMatrixLayout_t Ddesc, const cublasLtMatmulAlgo_t *algo, void *workspace,
    size_t workspace_bytes, cudaStream_t stream) {
    Problem p;
    (void)stream; /* what was enqueued before has run */
    if (!handle || handle->magic != MAGIC) return CUBLAS_STATUS_NOT_INITIALIZED;
    const Kind *kind = kind_of(algo);
    if (!kind || !alpha || !beta) return CUBLAS_STATUS_INVALID_VALUE;
    cublasStatus_t status = make_problem(&p, desc, Adesc, Bdesc, Cdesc, Ddesc);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    const Operands o = {A, B, C, D, *(const float *)alpha, *(const float *)beta};
    status = check_operands(&p, &o, kind);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    const size_t needed = workspace_of(kind, &p);
    if (workspace_bytes < needed || (workspace_bytes && !workspace) || !aligned(workspace, 256))
        return CUBLAS_STATUS_INVALID_VALUE;
    require_all_device(&p, &o, workspace, workspace_bytes);
    return multiply(&p, &o, kind, workspace) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
