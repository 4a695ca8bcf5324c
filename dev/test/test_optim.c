/* test_optim.c: loss sum, gradient norm, the decision to skip a step, on the linked backend against
 * the oracle, and what does not wait; updates are in test_adam.c and test_adam_steps.c. Knows the
 * seam alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/ops_ref.h"
#include "dev/test/optim_cases.h"
#include "dev/test/tensor.h"

static const BackendLimits limits = {1, 1, 1, 1, 1, 1, 1, 2, false};

StepState *state_new(Bench *b, StepState s) {
    StepState *p = backend_alloc(b->be, sizeof s);
    backend_upload(b->be, p, &s, sizeof s);
    return p;
}

StepState state_read(Bench *b, const StepState *p) {
    StepState s;
    backend_download(b->be, &s, p, sizeof s);
    return s;
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* Sums of n terms; in double or in float, no worse than gamma(n) of the absolute sum. */
static void sums_equal(Test *t) {
    const int sizes[] = {1, 15, 16, 17, 1000, 70003};
    for (int i = 0; i < COUNT(sizes); i++) {
        const size_t n = (size_t)sizes[i];
        Bench b;
        bench_open(&b, t, "sums", &limits, 1);
        Tensor *x = bench_random(&b, TENSOR_FLOAT, n, 3, 1);
        StepState *s = state_new(&b, (StepState){.loss_sum = 10.5, .grad_sumsq = 3});
        double sum = 10.5, sum_abs = 10.5, squares = 0;
        for (size_t k = 0; k < n; k++) {
            sum += x->in[k], sum_abs += fabs(x->in[k]), squares += x->in[k] * x->in[k];
        }
        op_loss_add(b.be, s, tensor_float(x), n);
        op_grad_norm(b.be, s, tensor_float(x), n);
        StepState got = state_read(&b, s);
        const double gamma = ref_gamma((double)n + 1);
        CHECK_NEAR(t, got.loss_sum, sum, gamma * sum_abs);
        CHECK_NEAR(t, got.grad_sumsq, squares, gamma * squares);
        double rest = 0; /* planted: the last 64th is forgotten */
        for (size_t k = 0; k < n - (n + 63) / 64; k++) rest += x->in[k] * x->in[k];
        CHECK(
            t, fabs(got.grad_sumsq - rest) > gamma * squares, "n %zu: a missing end would pass", n);
        op_loss_add(b.be, s, tensor_float(x), n);
        op_grad_norm(b.be, s, tensor_float(x), n);
        StepState again = state_read(&b, s);
        CHECK(t, again.grad_sumsq == got.grad_sumsq, "%.17g, then %.17g", got.grad_sumsq,
            again.grad_sumsq);
        CHECK_NEAR(t, again.loss_sum, 2 * sum - 10.5, 2 * gamma * sum_abs);
        backend_free(b.be, s);
        bench_close(&b);
    }
}

static void tiny_and_huge_norms(Test *t) {
    /* squares that a float cannot hold */
    const double values[] = {1e-25, 1e25};
    for (int i = 0; i < 2; i++) {
        Bench b;
        bench_open(&b, t, "norm", &limits, 1);
        const double x[3] = {values[i], -values[i], values[i]};
        Tensor *g = bench_values(&b, TENSOR_FLOAT, x, 3);
        StepState *s = state_new(&b, (StepState){0});
        op_grad_norm(b.be, s, tensor_float(g), 3);
        const double want = 3 * values[i] * values[i];
        CHECK_NEAR(t, state_read(&b, s).grad_sumsq, want, 1e-6 * want);
        backend_free(b.be, s);
        bench_close(&b);
    }
}

static void decision(Test *t) {
    const struct {
        double loss, sumsq;
        int skipped;
    } rows[] = {{1, 2, 0}, {NAN, 2, 1}, {1, NAN, 1}, {INFINITY, 1, 1}, {1, INFINITY, 1}, {0, 0, 0},
        {-INFINITY, 0, 1}, {3, 1e300, 0}};
    Bench b;
    bench_open(&b, t, "decision", &limits, 1);
    StepState *s = state_new(&b, (StepState){0});
    int64_t updates = 41;
    for (int i = 0; i < COUNT(rows); i++) {
        StepState now = state_read(&b, s);
        now.loss_sum = rows[i].loss, now.grad_sumsq = rows[i].sumsq;
        if (i == 0) now.updates = updates;
        backend_upload(b.be, s, &now, sizeof now);
        op_step_decide(b.be, s);
        updates += !rows[i].skipped;
        CHECK_INT(t, state_read(&b, s).skipped, rows[i].skipped);
        CHECK_INT(t, state_read(&b, s).updates, updates);
    }
    backend_free(b.be, s);
    bench_close(&b);
}

/* ---- without waiting ------------------------------------------------------------------------- */

/* A read gives what was there when it began, in whatever order the reads end. */
static void reads_keep_their_place(Test *t) {
    Bench b;
    bench_open(&b, t, "reads", &limits, 1);
    const double ones[4] = {1, 1, 1, 1};
    float *x = tensor_float(bench_values(&b, TENSOR_FLOAT, ones, 4));
    StepState *s = state_new(&b, (StepState){.loss_sum = 100});
    for (int turn = 0; turn < 3; turn++) {
        for (int slot = 0; slot < BACKEND_READ_SLOTS; slot++) {
            op_loss_add(b.be, s, x, (size_t)slot + 1);
            backend_read_begin(b.be, slot, s, sizeof *s);
        }
        op_loss_add(b.be, s, x, 4); /* not seen by any of the reads */
        double want[BACKEND_READ_SLOTS], sum = 100 + 14 * turn;
        for (int slot = 0; slot < BACKEND_READ_SLOTS; slot++) want[slot] = sum += slot + 1;
        for (int i = 0; i < BACKEND_READ_SLOTS; i++) {
            const int slot = (3 * i + turn) % BACKEND_READ_SLOTS; /* 3: every slot once */
            StepState got;
            backend_read_end(b.be, slot, &got);
            CHECK_NEAR(t, got.loss_sum, want[slot], 0);
        }
        CHECK_NEAR(t, state_read(&b, s).loss_sum, sum + 4, 0);
    }
    backend_free(b.be, s);
    bench_close(&b);
}

static void ready_reads(Test *t) {
    Bench b;
    bench_open(&b, t, "ready", &limits, 1);
    StepState *s = state_new(&b, (StepState){.updates = 3}), got;
    backend_read_begin(b.be, 1, s, sizeof *s);
    backend_synchronize(b.be);
    CHECK(t, backend_read_ready(b.be, 1), "after backend_synchronize, a read is not %s", "ready");
    backend_read_end(b.be, 1, &got);
    CHECK_INT(t, got.updates, 3);
    backend_free(b.be, s);
    bench_close(&b);
}

/* What is sent lies in the order of operations, and the sender's memory is free at once. */
static void sends_keep_their_place(Test *t) {
    enum { N = BACKEND_READ_BYTES / sizeof(int32_t), TURNS = 40 };
    Bench b;
    bench_open(&b, t, "send", &(BackendLimits){4, N / 4, 1, 1, 1, 1, 1, 2, false}, 1);
    int32_t *x = backend_alloc(b.be, N * sizeof *x), host[N], got[N];
    for (int turn = 0; turn <= TURNS; turn++) {
        const int count = turn % 2 ? N : N - 3;
        for (int i = 0; i < N; i++) host[i] = 1000 * turn + i;
        if (turn < TURNS) backend_send(b.be, x, host, (size_t)count);
        memset(host, 0x55, sizeof host);
        if (turn > 0) {
            backend_read_end(b.be, (turn - 1) % BACKEND_READ_SLOTS, got);
            for (int i = 0; i < N - 3; i++) CHECK_INT(t, got[i], 1000 * (turn - 1) + i);
        }
        if (turn < TURNS) backend_read_begin(b.be, turn % BACKEND_READ_SLOTS, x, sizeof got);
    }
    backend_free(b.be, x);
    bench_close(&b);
}

/* ---- checksum -------------------------------------------------------------------------------- */

/* As backend.h has it, written again. */
static uint64_t checksum(const float *x, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        uint64_t z = bits ^ i * 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        sum += z ^ z >> 31;
    }
    return sum;
}

static uint64_t device_checksum(Bench *b, const float *x, size_t n) {
    uint64_t sum = 1, *out = backend_alloc(b->be, sizeof sum);
    op_checksum(b->be, out, x, n);
    backend_download(b->be, &sum, out, sizeof sum);
    backend_free(b->be, out);
    return sum;
}

/* Changes that a sum of values, or of bits, would not see. */
static void checksums(Test *t) {
    const size_t sizes[] = {1, 255, 256, 257, 300001};
    for (int i = 0; i < COUNT(sizes); i++) {
        const size_t n = sizes[i], last = n - 1;
        Bench b;
        bench_open(&b, t, "checksum", &limits, 1 + i);
        Tensor *x = bench_random(&b, TENSOR_FLOAT, n, 3, 1);
        float *host = xcalloc(n, sizeof *host), swap;
        backend_download(b.be, host, tensor_float(x), n * sizeof *host);
        const uint64_t want = checksum(host, n);
        CHECK(t, device_checksum(&b, tensor_float(x), n) == want, "n %zu: another sum", n);
        CHECK(t, device_checksum(&b, tensor_float(x), n) == want, "n %zu: not the same again", n);
        for (int change = 0; change < 3; change++) {
            float *other = xcalloc(n, sizeof *other);
            memcpy(other, host, n * sizeof *other);
            if (change == 0) other[last] = -other[last];
            if (change == 1) swap = other[0], other[0] = other[last], other[last] = swap;
            if (change == 2) other[last] = nextafterf(other[last], 9);
            backend_upload(b.be, tensor_float(x), other, n * sizeof *other);
            CHECK(t, (change == 1 && n == 1) || device_checksum(&b, tensor_float(x), n) != want,
                "n %zu: change %d is not seen", n, change);
            free(other);
        }
        free(host);
        bench_close(&b);
    }
}

const TestCase *test_optim(int *count) {
    static const TestCase cases[] = {
        {"optim: loss sum and gradient norm equal the oracle", sums_equal},
        {"optim: the norm holds squares that a float cannot", tiny_and_huge_norms},
        {"optim: a step is skipped where loss or norm is not finite", decision},
        {"seam: a read that does not wait gives what was there at its place",
            reads_keep_their_place},
        {"seam: a read is ready once all operations are done", ready_reads},
        {"seam: what is sent lies in the order of operations", sends_keep_their_place},
        {"optim: AdamW and LAMB equal the oracle, any threads the same bits", test_adam_equals},
        {"optim: norms of a large tensor are not summed in float", test_adam_large},
        {"optim: a skipped step changes nothing", test_adam_skips},
        {"optim: parameters without gradient do not move at eps 1e-24", test_adam_no_gradient},
        {"optim: after an update of a weight that is not finite no step is applied",
            test_adam_bad_weights},
        {"optim: the checksum is as documented and sees every change of one element", checksums},
        {"optim: ten steps of AdamW and LAMB equal numpy's, planted errors are found",
            test_adam_ten_steps},
        {"optim: clipping and trust ratios are per tensor and layer of the model",
            test_adam_per_tensor},
    };
    return TEST_TABLE(cases, count);
}
