/* tensor.c: backend memory for tests: guards, NaN-filled outputs, comparison with the oracle. */
#include "dev/test/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/ops_ref.h"
#include "laser/rng.h"

BackendOptions bench_options(int threads) {
    return (BackendOptions){.threads = threads, .untuned = true};
}

void bench_open_with(Bench *b, Test *t, const char *label, const BackendLimits *limits,
    const BackendOptions *options) {
    memset(b, 0, sizeof *b);
    b->t = t;
    b->label = label;
    b->be = backend_open(options);
    if (limits) backend_reserve(b->be, limits);
}

void bench_open(Bench *b, Test *t, const char *label, const BackendLimits *limits, int threads) {
    const BackendOptions options = bench_options(threads);
    bench_open_with(b, t, label, limits, &options);
}

static size_t element_bytes(const Tensor *x) {
    return x->type == TENSOR_ACT ? sizeof(act_t) : sizeof(float);
}

size_t tensor_bytes(const Tensor *x) {
    return x->n * element_bytes(x);
}

void bench_close(Bench *b) {
    char guard[GUARD_BYTES];
    for (int i = 0; i < b->count; i++) {
        const Tensor *x = &b->tensors[i];
        backend_download(b->be, guard, (char *)x->p + tensor_bytes(x), GUARD_BYTES);
        int64_t at = guard_broken(guard, GUARD_BYTES);
        CHECK(b->t, at < 0, "%s: tensor %d was written %lld bytes past its end", b->label, i,
            (long long)at);
        backend_free(b->be, x->p);
    }
    for (int i = 0; i < b->hosts; i++) free(b->host[i]);
    backend_free(b->be, b->ids);
    backend_close(b->be);
    memset(b, 0, sizeof *b);
}

static void *bench_host(Bench *b, size_t bytes) {
    REQUIRE(b->hosts < 4 * BENCH_TENSORS, "%d host blocks", b->hosts);
    return b->host[b->hosts++] = xcalloc(bytes ? bytes : 1, 1);
}

double *bench_doubles(Bench *b, size_t n) {
    return bench_host(b, n * sizeof(double));
}

static Tensor *bench_tensor(Bench *b, TensorType type, size_t n) {
    REQUIRE(b->count < BENCH_TENSORS, "%d tensors", b->count);
    Tensor *x = &b->tensors[b->count++];
    *x = (Tensor){.n = n, .type = type};
    x->p = backend_alloc(b->be, tensor_bytes(x) + GUARD_BYTES);
    char guard[GUARD_BYTES];
    guard_fill(guard, GUARD_BYTES);
    backend_upload(b->be, (char *)x->p + tensor_bytes(x), guard, GUARD_BYTES);
    return x;
}

static void tensor_write(Bench *b, Tensor *x, const float *host) {
    if (x->type == TENSOR_ACT) {
        backend_upload_act(b->be, x->p, host, x->n);
    } else {
        backend_upload(b->be, x->p, host, x->n * sizeof *host);
    }
}

double *tensor_read(Bench *b, const Tensor *x) {
    float *host = xcalloc(x->n, sizeof *host);
    if (x->type == TENSOR_ACT) {
        backend_download_act(b->be, host, x->p, x->n);
    } else {
        backend_download(b->be, host, x->p, x->n * sizeof *host);
    }
    double *values = bench_doubles(b, x->n);
    for (size_t i = 0; i < x->n; i++) values[i] = (double)host[i];
    free(host);
    return values;
}

double *tensor_copy(Bench *b, const Tensor *x) {
    double *values = bench_doubles(b, x->n);
    memcpy(values, x->in, x->n * sizeof *values);
    return values;
}

void *tensor_bits(Bench *b, const Tensor *x) {
    void *bits = bench_host(b, tensor_bytes(x));
    backend_download(b->be, bits, x->p, tensor_bytes(x));
    return bits;
}

Tensor *bench_values(Bench *b, TensorType type, const double *values, size_t n) {
    Tensor *x = bench_tensor(b, type, n);
    float *host = xcalloc(n, sizeof *host);
    for (size_t i = 0; i < n; i++) host[i] = (float)values[i];
    tensor_write(b, x, host);
    free(host);
    x->in = tensor_read(b, x);
    return x;
}

Tensor *bench_random(Bench *b, TensorType type, size_t n, double std, double mean) {
    double *values = xcalloc(n, sizeof *values);
    uint64_t stream = RNG_TEST + ((uint64_t)(b->count + 1) << 8);
    for (size_t i = 0; i < n; i++) values[i] = mean + std * rng_normal(b->seed, stream, i);
    Tensor *x = bench_values(b, type, values, n);
    free(values);
    return x;
}

Tensor *bench_output(Bench *b, TensorType type, size_t n) {
    Tensor *x = bench_tensor(b, type, n);
    float *host = xcalloc(n, sizeof *host);
    for (size_t i = 0; i < n; i++) host[i] = NAN;
    tensor_write(b, x, host);
    free(host);
    return x;
}

void bench_ids(Bench *b, int n, int V) {
    const size_t bytes = (size_t)n * sizeof(int32_t);
    REQUIRE(b->ids == NULL, "ids twice");
    b->host_ids = bench_host(b, bytes);
    for (int i = 0; i < n; i++) {
        b->host_ids[i] = (int32_t)(rng_u64(b->seed, RNG_TEST, (uint64_t)i) % (uint64_t)V);
    }
    b->ids = backend_alloc(b->be, bytes);
    backend_upload(b->be, b->ids, b->host_ids, bytes);
}

double float_value(double x) {
    volatile float rounded = (float)x;
    return (double)rounded;
}

/* ---- comparison ------------------------------------------------------------------------------ */

typedef struct Misses {
    size_t count, worst;
    double ratio; /* of error to tolerance, at the worst element */
} Misses;

static Misses find_misses(
    const Tensor *x, const double *got, const double *want, const double *tol) {
    /* half a unit in the last place */
    const double rounding = x->type == TENSOR_ACT && ACT_U > 0 ? ACT_U : REF_U;
    Misses m = {0};
    for (size_t i = 0; i < x->n; i++) {
        double allowed = tol[i] + rounding * fabs(want[i]) + REF_TINY;
        double error = fabs(got[i] - want[i]);
        if (error <= allowed && isfinite(got[i])) continue;
        double ratio = isfinite(error) ? error / allowed : INFINITY;
        if (m.count++ == 0 || ratio > m.ratio) m.worst = i, m.ratio = ratio;
    }
    return m;
}

void bench_compare(
    Bench *b, const char *what, const Tensor *x, const double *want, const double *tol) {
    double *got = tensor_read(b, x);
    Misses m = find_misses(x, got, want, tol);
    size_t i = m.worst;
    CHECK(b->t, m.count == 0,
        "%s: %s: %zu of %zu elements are off, worst [%zu] is %.9g, want %.9g within %.3g (%.2f "
        "times)",
        b->label, what, m.count, x->n, i, got[i], want[i], tol[i], m.ratio);
}

size_t bench_misses(Bench *b, const Tensor *x, const double *want, const double *tol) {
    return find_misses(x, tensor_read(b, x), want, tol).count;
}

void bench_compare_planted(
    Bench *b, const char *what, const Tensor *x, const double *wrong, const double *tol) {
    CHECK(b->t, bench_misses(b, x, wrong, tol) > 0,
        "%s: the planted error \"%s\" passed the comparison", b->label, what);
}

/* ---- helpers of the tests of operations ------------------------------------------------------ */

double *bench_absolute(Bench *b, const double *x, size_t n) {
    double *y = bench_doubles(b, n);
    for (size_t i = 0; i < n; i++) y[i] = fabs(x[i]);
    return y;
}

double *bench_copied(Bench *b, const double *x, size_t n) {
    double *y = bench_doubles(b, n);
    memcpy(y, x, n * sizeof *y);
    return y;
}

double *scaled(double *sums, size_t n, double factor) {
    for (size_t i = 0; i < n; i++) sums[i] *= factor;
    return sums;
}

void bench_same_bits(Test *t, OpRun *run, const void *c, const char *label, const int *threads) {
    Bench first, again;
    bench_open(&first, t, label, NULL, threads[0]);
    run(&first, c);
    for (int k = 1; k < (bench_emulated() ? 2 : 3); k++) {
        bench_open(&again, t, label, NULL, threads[k]);
        run(&again, c);
        for (int i = 0; i < first.count; i++) {
            const Tensor *x = &first.tensors[i], *y = &again.tensors[i];
            const void *bits = tensor_bits(&first, x), *others = tensor_bits(&again, y);
            CHECK(t, memcmp(bits, others, tensor_bytes(x)) == 0,
                "%s: tensor %d differs, %d and %d threads", label, i, threads[0], threads[k]);
        }
        bench_close(&again);
    }
    bench_close(&first);
}

bool bench_emulated(void) {
    return strcmp(backend_name(), "emu") == 0;
}

bool bench_threads_cut_sums(void) {
    char text[512];
    const BackendOptions options = bench_options(1);
    Backend *be = backend_open(&options);
    backend_describe(be, text, sizeof text);
    backend_close(be);
    return strstr(text, "OpenBLAS") != NULL;
}
