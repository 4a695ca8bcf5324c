/* test_optim.c: loss sum, gradient norm, the decision to skip a step, and AdamW, on the linked
 * backend against the oracle. Knows the seam alone. */
#include <math.h>
#include <string.h>

#include "dev/ref/cases.h"
#include "dev/test/tensor.h"
#include "laser/rng.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

static const BackendLimits limits = {1, 1, 1, 1, 1, 1, 1, 2, false};

static StepState *state_new(Bench *b, StepState s) {
    StepState *p = backend_alloc(b->be, sizeof s);
    backend_upload(b->be, p, &s, sizeof s);
    return p;
}

static StepState state_read(Bench *b, const StepState *p) {
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

/* ---- AdamW ----------------------------------------------------------------------------------- */

/* Three tensors with holes between them: what lies outside the ranges must not change. */
enum { ADAM_N = 3000, ADAM_PARAMS = 0, ADAM_MASTER, ADAM_M, ADAM_V, ADAM_GRADS };
static const OptRange ranges[] = {{0, 37, 1, 0}, {48, 1, 0, 1}, {64, 2901, 1, 1}};

typedef struct AdamRun {
    const AdamCase *c;
    bool skip, zero_gradients;
} AdamRun;

static AdamArgs adam_args(const AdamCase *c) {
    AdamArgs a = {.lr = (float)c->lr,
        .beta1 = (float)c->beta1,
        .beta2 = (float)c->beta2,
        .eps = (float)c->eps,
        .weight_decay = (float)c->weight_decay,
        .grad_clip = (float)c->grad_clip,
        .update_clip = (float)c->update_clip};
    return a;
}

static void adam_run(Bench *b, const AdamRun *run) {
    const AdamCase *c = run->c;
    const bool fresh = c->updates == 0;
    double squares[ADAM_N];
    for (size_t i = 0; i < ADAM_N; i++) {
        squares[i] = fresh ? 0 : pow(c->grad_std * rng_normal(b->seed, RNG_TEST, i), 2);
        if (i % 5 == 2) squares[i] = 0; /* never had a gradient */
    }
    backend_reserve(b->be, &limits);
    act_t *params = tensor_act(bench_output(b, TENSOR_ACT, ADAM_N));
    Tensor *master = bench_random(b, TENSOR_FLOAT, ADAM_N, 0.5, 0);
    float *m = tensor_float(bench_random(b, TENSOR_FLOAT, ADAM_N, fresh ? 0 : c->grad_std, 0));
    float *v = tensor_float(bench_values(b, TENSOR_FLOAT, squares, ADAM_N));
    double std = run->zero_gradients ? 0 : c->grad_std;
    float *grads = tensor_float(bench_random(b, TENSOR_FLOAT, ADAM_N, std, 0));
    StepState *s = state_new(b, (StepState){.updates = c->updates});
    op_grad_norm(b->be, s, grads, ADAM_N);
    op_step_decide(b->be, s);
    StepState decided = state_read(b, s);
    decided.skipped = run->skip;
    backend_upload(b->be, s, &decided, sizeof decided);
    AdamArgs a = adam_args(c);
    OptRange *held = backend_alloc(b->be, sizeof ranges);
    backend_upload(b->be, held, ranges, sizeof ranges);
    double *work = backend_alloc(b->be, COUNT(ranges) * OPT_WORK * sizeof *work);
    const OptTensors x = {params, tensor_float(master), m, v, grads, held, COUNT(ranges), work,
        ADAM_N};
    op_adamw(b->be, &x, &a, s);
    backend_free(b->be, held);
    backend_free(b->be, work);
    backend_free(b->be, s);
}

typedef struct AdamWant {
    double *master, *m, *v, *tol; /* tol (3, ADAM_N): of master, m, v */
} AdamWant;

static AdamWant adam_want(Bench *b, const RefAdam *base, double center, double decay) {
    Tensor *at = b->tensors;
    AdamWant want = {tensor_copy(b, &at[ADAM_MASTER]), tensor_copy(b, &at[ADAM_M]),
        tensor_copy(b, &at[ADAM_V]), bench_doubles(b, 3 * ADAM_N)};
    for (int r = 0; r < COUNT(ranges); r++) {
        RefAdam a = *base;
        const size_t o = ranges[r].offset, n = ranges[r].count;
        a.decay = decay * (double)ranges[r].decay, a.center = center * (double)ranges[r].center;
        double tol[3 * ADAM_N];
        ref_adamw(want.master + o, want.m + o, want.v + o, tol, at[ADAM_GRADS].in + o, n, &a);
        for (size_t k = 0; k < 3; k++) {
            memcpy(want.tol + k * ADAM_N + o, tol + k * n, n * sizeof *tol);
        }
    }
    return want;
}

static RefAdam ref_of(Bench *b, const AdamCase *c) {
    RefAdam a = {.lr = float_value(c->lr),
        .beta1 = float_value(c->beta1),
        .beta2 = float_value(c->beta2),
        .eps = float_value(c->eps),
        .weight_decay = float_value(c->weight_decay),
        .grad_clip = float_value(c->grad_clip),
        .update_clip = float_value(c->update_clip)};
    const double *g = b->tensors[ADAM_GRADS].in;
    for (size_t i = 0; i < ADAM_N; i++) a.grad_sumsq += g[i] * g[i];
    a.t = c->updates + 1;
    return a;
}

static void adam_planted(Bench *b, const AdamCase *c, const RefAdam *right, const AdamWant *tol) {
    Tensor *master = &b->tensors[ADAM_MASTER];
    RefAdam wrong = *right;
    wrong.t++;
    AdamWant want = adam_want(b, &wrong, 1, 1);
    if (c->updates < 100) {
        bench_compare_planted(b, "bias correction one step on", master, want.master, tol->tol);
    }
    wrong = *right, wrong.lr *= 1.001;
    want = adam_want(b, &wrong, 1, 1);
    bench_compare_planted(b, "rate larger by 1e-3", master, want.master, tol->tol);
    if (c->grad_clip > 0 && sqrt(right->grad_sumsq) > c->grad_clip) {
        wrong = *right, wrong.grad_clip = 0;
        want = adam_want(b, &wrong, 1, 1);
        bench_compare_planted(b, "not clipped", &b->tensors[ADAM_M], want.m, tol->tol + ADAM_N);
    }
    if (c->update_clip > 0) {
        wrong = *right, wrong.update_clip = 0;
        want = adam_want(b, &wrong, 1, 1);
        bench_compare_planted(b, "update not clipped", master, want.master, tol->tol);
    }
    if (c->weight_decay > 0) {
        want = adam_want(b, right, 0, 1);
        bench_compare_planted(b, "decay of norm scales towards 0", master, want.master, tol->tol);
        want = adam_want(b, right, 1, 0);
        bench_compare_planted(b, "no decay", master, want.master, tol->tol);
    }
    if (c->eps >= c->grad_std) {
        wrong = *right, wrong.eps = 0;
        want = adam_want(b, &wrong, 1, 1);
        bench_compare_planted(b, "epsilon ignored", master, want.master, tol->tol);
    }
}

static void adam_check(Bench *b, const AdamCase *c) {
    Tensor *at = b->tensors;
    RefAdam a = ref_of(b, c);
    AdamWant want = adam_want(b, &a, 1, 1);
    bench_compare(b, "m", &at[ADAM_M], want.m, want.tol + ADAM_N);
    bench_compare(b, "v", &at[ADAM_V], want.v, want.tol + 2 * ADAM_N);
    bench_compare(b, "master", &at[ADAM_MASTER], want.master, want.tol);
    const double *params = tensor_read(b, &at[ADAM_PARAMS]);
    const double *master = tensor_read(b, &at[ADAM_MASTER]);
    for (int r = 0; r < COUNT(ranges); r++) {
        for (size_t i = ranges[r].offset; i < ranges[r].offset + ranges[r].count; i++) {
            CHECK_NEAR(b->t, params[i], master[i], ACT_U * fabs(master[i]));
        }
    }
    adam_planted(b, c, &a, &want);
}

static void adam_equals(Test *t) {
    for (int i = 0; i < COUNT(adam_cases); i++) {
        AdamRun run = {.c = &adam_cases[i]};
        Bench b, one;
        bench_open(&b, t, adam_cases[i].label, NULL, 2);
        adam_run(&b, &run);
        adam_check(&b, &adam_cases[i]);
        bench_open(&one, t, adam_cases[i].label, NULL, 1);
        adam_run(&one, &run);
        for (int k = 0; k < b.count; k++) {
            const size_t bytes = tensor_bytes(&b.tensors[k]);
            CHECK(t,
                memcmp(tensor_bits(&b, &b.tensors[k]), tensor_bits(&one, &one.tensors[k]), bytes) ==
                    0,
                "%s: tensor %d: 1 and 2 threads differ", b.label, k);
        }
        bench_close(&one);
        bench_close(&b);
    }
}

static void skipped_step(Test *t) {
    AdamRun run = {.c = &adam_cases[1], .skip = true};
    Bench b, untouched;
    bench_open(&b, t, "skipped", NULL, 1);
    adam_run(&b, &run);
    for (int k = ADAM_MASTER; k <= ADAM_V; k++) {
        const Tensor *x = &b.tensors[k];
        CHECK(t, memcmp(tensor_read(&b, x), x->in, x->n * sizeof *x->in) == 0, "tensor %d changed",
            k);
    }
    bench_close(&b);
    run.skip = false;
    bench_open(&untouched, t, "not skipped", NULL, 1);
    adam_run(&untouched, &run);
    const Tensor *x = &untouched.tensors[ADAM_MASTER];
    CHECK(t, memcmp(tensor_read(&untouched, x), x->in, x->n * sizeof *x->in) != 0,
        "a step that is not skipped changed nothing either (%zu)", x->n);
    bench_close(&untouched);
}

/* A parameter that never had a gradient stays where it is, whatever eps is; so does one whose
 * squared gradient is below the smallest float. */
static void zero_gradients(Test *t) {
    AdamCase c = {"zero gradients", 1e-2, 0.9, 0.99, 1e-24, 0, 1, 0, 1, 0};
    for (int i = 0; i < 2; i++) {
        c.grad_std = i ? 1e-24 : 1;
        AdamRun run = {.c = &c, .zero_gradients = i == 0};
        Bench b;
        bench_open(&b, t, c.label, NULL, 1);
        adam_run(&b, &run);
        const Tensor *x = &b.tensors[ADAM_MASTER];
        CHECK(t, memcmp(tensor_read(&b, x), x->in, x->n * sizeof *x->in) == 0,
            "gradients of %g moved the parameters", i ? 1e-24 : 0.0);
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
        {"optim: AdamW equals the oracle, any threads the same bits", adam_equals},
        {"optim: a skipped step changes nothing", skipped_step},
        {"optim: parameters without gradient do not move at eps 1e-24", zero_gradients},
    };
    return TEST_TABLE(cases, count);
}
