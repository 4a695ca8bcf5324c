/* test_optim.c: loss sum, gradient norm, the decision to skip a step, on the linked backend against
 * the oracle, and what does not wait; updates are in test_adam.c and test_adam_steps.c. Knows the
 * seam alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/ops_ref.h"
#include "dev/test/optim_cases.h"
#include "dev/test/tensor.h"
#include "laser/rng.h"

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

void tables_open(Bench *b, Tables *t, const OptRange *ranges, int count, size_t n) {
    const size_t many = (size_t)count, blocks = n / OPT_BLOCK;
    REQUIRE(n % OPT_BLOCK == 0, "%zu elements", n);
    OptRange *held = xcalloc(many, sizeof *held);
    OptTensor *tensors = xcalloc(many, sizeof *tensors);
    for (int i = 0; i < count; i++) {
        held[i] = ranges[i];
        held[i].held = ranges[i].offset, held[i].tensor = i;
        tensors[i] = (OptTensor){ranges[i].offset, ranges[i].count, ranges[i].decay};
    }
    OptRange *device_ranges = backend_alloc(b->be, many * sizeof *held);
    OptTensor *device_tensors = backend_alloc(b->be, many * sizeof *tensors);
    backend_upload(b->be, device_ranges, held, many * sizeof *held);
    backend_upload(b->be, device_tensors, tensors, many * sizeof *tensors);
    free(held), free(tensors);
    *t = (Tables){.x = {.ranges = device_ranges,
                      .count = count,
                      .held = n,
                      .tensors = device_tensors,
                      .tensor_count = count,
                      .blocks = blocks}};
    t->x.sums = backend_alloc(b->be, (blocks + many) * sizeof *t->x.sums);
    t->x.factors = backend_alloc(b->be, 2 * many * sizeof *t->x.factors);
    t->measures = backend_alloc(b->be, (blocks + 1) * sizeof *t->measures);
    t->losses = backend_alloc(b->be, sizeof *t->losses);
    t->state = state_new(b, (StepState){0});
}

void tables_close(Bench *b, Tables *t) {
    backend_free(b->be, (void *)t->x.ranges), backend_free(b->be, (void *)t->x.tensors);
    backend_free(b->be, t->x.sums), backend_free(b->be, t->x.factors);
    backend_free(b->be, t->measures), backend_free(b->be, t->losses);
    backend_free(b->be, t->state);
}

void tables_decide(Bench *b, Tables *t) {
    const size_t blocks = t->x.blocks;
    op_square_blocks(b->be, t->measures, t->x.grads, blocks * OPT_BLOCK);
    op_bad_weights(b->be, t->measures + blocks, t->state);
    op_step_decide(
        b->be, t->state, &(StepSums){t->losses, t->measures, t->measures + blocks, 1, blocks});
}

void tables_update(Bench *b, Tables *t, const AdamArgs *a) {
    if (!a->lamb && !(a->update_clip > 0)) {
        op_adamw(b->be, &t->x, a, t->state);
        return;
    }
    op_adam_sums(b->be, &t->x, a, t->state);
    op_adam_apply(b->be, &t->x, a, t->state);
}

/* ---- sums ------------------------------------------------------------------------------------ */

static double *doubles_new(Bench *b, const double *host, size_t n) {
    double *p = backend_alloc(b->be, n * sizeof *p);
    backend_upload(b->be, p, host, n * sizeof *p);
    return p;
}

static double double_read(Bench *b, const double *p) {
    double x;
    backend_download(b->be, &x, p, sizeof x);
    return x;
}

/* Sums of n terms; in double or in float, no worse than gamma(n) of the absolute sum. */
static void loss_sums(Test *t) {
    const int sizes[] = {1, 15, 16, 17, 1000, 70003};
    for (int i = 0; i < COUNT(sizes); i++) {
        const size_t n = (size_t)sizes[i];
        Bench b;
        bench_open(&b, t, "sums", &limits, 1);
        Tensor *x = bench_random(&b, TENSOR_FLOAT, n, 3, 1);
        double before = 10.5, sum = before, sum_abs = before, rest = before;
        double *p = doubles_new(&b, &before, 1);
        for (size_t k = 0; k < n; k++) {
            sum += x->in[k], sum_abs += fabs(x->in[k]);
            if (k < n - (n + 63) / 64) rest += x->in[k];
        }
        op_loss_add(b.be, p, tensor_float(x), n);
        const double tol = ref_gamma((double)n + 1) * sum_abs, got = double_read(&b, p);
        CHECK_NEAR(t, got, sum, tol);
        /* planted: the last 64th is forgotten */
        CHECK(t, fabs(got - rest) > tol, "n %zu: a missing end would pass", n);
        op_loss_add(b.be, p, tensor_float(x), n);
        CHECK_NEAR(t, double_read(&b, p), 2 * sum - before, 2 * tol);
        backend_free(b.be, p);
        bench_close(&b);
    }
}

/* Each block against the oracle; and the same bits where the blocks are computed in two calls. */
static void squares_of_blocks(Test *t) {
    const size_t counts[] = {1, 2, 9, 67};
    const double unwritten = -7;
    for (int i = 0; i < COUNT(counts); i++) {
        const size_t blocks = counts[i], half = blocks / 2, n = blocks * OPT_BLOCK;
        Bench b;
        bench_open(&b, t, "squares", &limits, 2);
        Tensor *x = bench_random(&b, TENSOR_FLOAT, n, 3, 1);
        double *got = bench_doubles(&b, blocks + 1), *parts = bench_doubles(&b, blocks);
        double *p = backend_alloc(b.be, (blocks + 1) * sizeof *p);
        backend_upload(b.be, p + blocks, &unwritten, sizeof *p);
        op_square_blocks(b.be, p, tensor_float(x), n);
        backend_download(b.be, got, p, (blocks + 1) * sizeof *p);
        CHECK_NEAR(t, got[blocks], unwritten, 0);
        for (size_t k = 0; k < blocks; k++) {
            double want = 0, most = 0;
            const double *in = x->in + k * OPT_BLOCK;
            for (size_t j = 0; j < OPT_BLOCK; j++) {
                want += in[j] * in[j];
                if (j < OPT_BLOCK - 64) most = want;
            }
            const double tol = ref_gamma(OPT_BLOCK) * want;
            CHECK_NEAR(t, got[k], want, tol);
            /* planted: the last 64th is forgotten */
            CHECK(t, fabs(got[k] - most) > tol, "block %zu: a missing end would pass", k);
        }
        op_square_blocks(b.be, p + half, tensor_float(x) + half * OPT_BLOCK, n - half * OPT_BLOCK);
        if (half) op_square_blocks(b.be, p, tensor_float(x), half * OPT_BLOCK);
        backend_download(b.be, parts, p, blocks * sizeof *p);
        CHECK(t, memcmp(got, parts, blocks * sizeof *p) == 0, "%zu blocks, other bits in two calls",
            blocks);
        backend_free(b.be, p);
        bench_close(&b);
    }
}

static void tiny_and_huge_norms(Test *t) {
    /* squares that a float cannot hold */
    const double values[] = {1e-25, 1e25};
    for (int i = 0; i < 2; i++) {
        Bench b;
        bench_open(&b, t, "norm", &limits, 1);
        double *x = bench_doubles(&b, OPT_BLOCK), zero = 0;
        x[0] = values[i], x[1000] = -values[i], x[OPT_BLOCK - 1] = values[i];
        Tensor *g = bench_values(&b, TENSOR_FLOAT, x, OPT_BLOCK);
        double *p = doubles_new(&b, &zero, 1);
        op_square_blocks(b.be, p, tensor_float(g), OPT_BLOCK);
        const double want = 3 * values[i] * values[i];
        CHECK_NEAR(t, double_read(&b, p), want, 1e-6 * want);
        backend_free(b.be, p);
        bench_close(&b);
    }
}

static void sums_of_vectors(Test *t) {
    const int sizes[] = {1, 3, 16, 1000, 140003};
    for (int i = 0; i < COUNT(sizes); i++) {
        const size_t n = (size_t)sizes[i];
        Bench b;
        bench_open(&b, t, "x += y", &limits, 2);
        Tensor *x = bench_random(&b, TENSOR_FLOAT, n, 3, 1);
        Tensor *y = bench_random(&b, TENSOR_FLOAT, n, 3, 1);
        op_add(b.be, tensor_float(x), tensor_float(y), n);
        const double *got = tensor_read(&b, x), *other = tensor_read(&b, y);
        size_t wrong = 0, unchanged = 0;
        for (size_t k = 0; k < n; k++) {
            wrong += got[k] != float_value(x->in[k] + y->in[k]) || other[k] != y->in[k];
            unchanged += got[k] == x->in[k];
        }
        CHECK(t, wrong == 0 && unchanged == 0, "%zu of %zu sums are wrong, %zu as before", wrong, n,
            unchanged);
        bench_close(&b);
    }
}

/* ---- the decision ---- */

typedef struct Decision {
    double loss, square; /* added to one of each */
    double bad;
    int skipped;
} Decision;

/* Sums of so many losses and squares, one of which may be what stops the step. */
static void check_decisions(Test *t, size_t losses, size_t blocks) {
    const Decision rows[] = {{1, 2, 0, 0}, {NAN, 2, 0, 1}, {1, NAN, 0, 1}, {INFINITY, 1, 0, 1},
        {1, INFINITY, 0, 1}, {0, 0, 0, 0}, {-INFINITY, 0, 0, 1}, {3, 1e300, 0, 0}, {1, 2, 3, 1},
        {1, 2, 0, 0}};
    Bench b;
    bench_open(&b, t, "decision", &limits, 1);
    double *l = bench_doubles(&b, losses), *q = bench_doubles(&b, blocks + 1);
    int64_t updates = 41;
    StepState *s = state_new(&b, (StepState){.updates = updates});
    for (int i = 0; i < COUNT(rows); i++) {
        double loss = 0, square = 0;
        for (size_t k = 0; k < losses; k++) l[k] = 2 + rng_normal(5, RNG_TEST, k);
        for (size_t k = 0; k < blocks; k++) q[k] = exp(3 * rng_normal(6, RNG_TEST, k));
        l[losses - 1] += rows[i].loss, q[(size_t)i * 7919 % blocks] += rows[i].square;
        q[blocks] = rows[i].bad;
        for (size_t k = 0; k < losses; k++) loss += l[k];
        for (size_t k = 0; k < blocks; k++) square += q[k];
        double *lp = doubles_new(&b, l, losses), *qp = doubles_new(&b, q, blocks + 1);
        op_step_decide(b.be, s, &(StepSums){lp, qp, qp + blocks, losses, blocks});
        const StepState got = state_read(&b, s);
        updates += !rows[i].skipped;
        CHECK_INT(t, got.skipped, rows[i].skipped);
        CHECK_INT(t, got.updates, updates);
        CHECK_INT(t, got.bad_weights, rows[i].bad > 0);
        if (!rows[i].skipped) {
            /* sums of positive numbers in double, in two orders; a loss of 4 and less may be < 0 */
            const double u = 0x1p-53 * 2;
            CHECK_NEAR(t, got.loss_sum, loss, u * (double)losses * 5 * (double)losses);
            CHECK_NEAR(t, got.grad_sumsq, square, u * (double)blocks * square);
            /* planted: the last block, or one loss, is forgotten */
            CHECK(t,
                fabs(got.grad_sumsq - (square - q[blocks - 1])) > u * (double)blocks * square ||
                    square > 1e299,
                "a missing block would pass: %g of %g", q[blocks - 1], square);
        }
        backend_free(b.be, lp), backend_free(b.be, qp);
    }
    backend_free(b.be, s);
    bench_close(&b);
}

static void decision(Test *t) {
    check_decisions(t, 1, 1);
    check_decisions(t, 3, 130);
    check_decisions(t, 1500, 5003); /* more than any block of threads */
}

static void bad_weights_are_told(Test *t) {
    Bench b;
    bench_open(&b, t, "bad weights", &limits, 1);
    for (int bad = 0; bad < 2; bad++) {
        const double before = 5;
        StepState *s = state_new(&b, (StepState){.bad_weights = bad, .skipped = !bad});
        double *p = doubles_new(&b, &before, 1);
        op_bad_weights(b.be, p, s);
        CHECK_NEAR(t, double_read(&b, p), (double)bad, 0);
        backend_free(b.be, p), backend_free(b.be, s);
    }
    bench_close(&b);
}

/* ---- without waiting ------------------------------------------------------------------------- */

/* A read gives what was there when it began, in whatever order the reads end. */
static void reads_keep_their_place(Test *t) {
    Bench b;
    bench_open(&b, t, "reads", &limits, 1);
    const double ones[4] = {1, 1, 1, 1};
    float *x = tensor_float(bench_values(&b, TENSOR_FLOAT, ones, 4));
    const double start = 100;
    double *s = doubles_new(&b, &start, 1);
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
            double got;
            backend_read_end(b.be, slot, &got);
            CHECK_NEAR(t, got, want[slot], 0);
        }
        CHECK_NEAR(t, double_read(&b, s), sum + 4, 0);
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

/* What was there when the copy was called, though it is changed at once. */
static void copies_keep_their_place(Test *t) {
    const size_t sizes[] = {1, 1000, 1200001};
    for (int i = 0; i < COUNT(sizes); i++) {
        const size_t n = sizes[i];
        Bench b;
        bench_open(&b, t, "copy", &limits, 2);
        Tensor *x = bench_random(&b, TENSOR_FLOAT, n, 3, 1), *y = bench_output(&b, TENSOR_FLOAT, n);
        for (int turn = 1; turn <= 2; turn++) {
            backend_copy(b.be, tensor_float(y), tensor_float(x), n * sizeof(float));
            op_add(b.be, tensor_float(x), tensor_float(x), n);
        }
        const double *got = tensor_read(&b, y);
        size_t wrong = 0;
        for (size_t k = 0; k < n; k++) wrong += got[k] != 2 * x->in[k];
        CHECK(t, wrong == 0, "%zu of %zu are not what was there", wrong, n);
        bench_close(&b);
    }
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
        {"optim: sums of losses equal the oracle", loss_sums},
        {"optim: squares of blocks equal the oracle, in any calls the same bits",
            squares_of_blocks},
        {"optim: x += y is rounded once", sums_of_vectors},
        {"optim: the norm holds squares that a float cannot", tiny_and_huge_norms},
        {"optim: loss and norm are the totals; a step is skipped where one is not finite",
            decision},
        {"optim: an update's bad weights are told to the next decision", bad_weights_are_told},
        {"seam: a read that does not wait gives what was there at its place",
            reads_keep_their_place},
        {"seam: a read is ready once all operations are done", ready_reads},
        {"seam: what is sent lies in the order of operations", sends_keep_their_place},
        {"seam: a copy lies in the order of operations", copies_keep_their_place},
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
        {"optim: dealt out over processes, updates are the same in every bit", test_shards_equal},
        {"optim: a bad weight that one process holds stops all", test_shards_bad_weights},
    };
    return TEST_TABLE(cases, count);
}
