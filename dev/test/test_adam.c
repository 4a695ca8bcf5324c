/* test_adam.c: one update by AdamW or LAMB on the linked backend against the oracle. Knows the seam
 * alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/cases.h"
#include "dev/test/optim_cases.h"
#include "laser/rng.h"

static const BackendLimits limits = {1, 1, 1, 1, 1, 1, 1, 2, false};

enum { ADAM_PARAMS = 0, ADAM_MASTER, ADAM_M, ADAM_V, ADAM_GRADS };

typedef struct AdamRun {
    const AdamCase *c;
    const OptRange *ranges; /* (count) */
    int count;
    size_t n;
    double mean; /* of weights and gradients */
    double std;  /* of weights */
    bool skip, zero_gradients;
} AdamRun;

/* Tensors with holes between them, the last in two blocks: what lies outside the ranges must not
 * change. */
static AdamRun small_run(const AdamCase *c) {
    static const OptRange ranges[] = {
        {.offset = 0, .count = 37, .decay = 1},
        {.offset = 48, .count = 1, .center = 1},
        {.offset = 64, .count = 2901, .decay = 1, .center = 1},
        {.offset = 2976, .count = 3001, .decay = 1},
    };
    return (AdamRun){
        .c = c, .ranges = ranges, .count = COUNT(ranges), .n = 2 * OPT_BLOCK, .std = 0.5};
}

static AdamArgs adam_args(const AdamCase *c) {
    AdamArgs a = {.lr = (float)c->lr,
        .beta1 = (float)c->beta1,
        .beta2 = (float)c->beta2,
        .eps = (float)c->eps,
        .weight_decay = (float)c->weight_decay,
        .grad_clip = (float)c->grad_clip,
        .update_clip = (float)c->update_clip,
        .lamb = c->lamb};
    return a;
}

static void adam_fill(Bench *b, const AdamRun *run) {
    const AdamCase *c = run->c;
    const bool fresh = c->updates == 0;
    const size_t n = run->n;
    double *squares = bench_doubles(b, n);
    for (size_t i = 0; i < n; i++) {
        squares[i] = fresh ? 0 : pow(c->grad_std * rng_normal(b->seed, RNG_TEST, i), 2);
        if (i % 5 == 2) squares[i] = 0; /* never had a gradient */
    }
    bench_output(b, TENSOR_ACT, n);
    bench_random(b, TENSOR_FLOAT, n, run->std, run->mean);
    bench_random(b, TENSOR_FLOAT, n, fresh ? 0 : c->grad_std, 0);
    bench_values(b, TENSOR_FLOAT, squares, n);
    bench_random(b, TENSOR_FLOAT, n, run->zero_gradients ? 0 : c->grad_std, run->mean);
}

/* The state after the update. */
static StepState adam_run(Bench *b, const AdamRun *run) {
    const Tensor *at = b->tensors;
    const StepState before = {.updates = run->c->updates};
    const AdamArgs a = adam_args(run->c);
    Tables tables;
    backend_reserve(b->be, &limits);
    adam_fill(b, run);
    tables_open(b, &tables, run->ranges, run->count, run->n);
    tables.x.params = tensor_act(&at[ADAM_PARAMS]);
    tables.x.master = tensor_float(&at[ADAM_MASTER]);
    tables.x.m = tensor_float(&at[ADAM_M]), tables.x.v = tensor_float(&at[ADAM_V]);
    tables.x.grads = tensor_float(&at[ADAM_GRADS]);
    backend_upload(b->be, tables.state, &before, sizeof before);
    tables_decide(b, &tables);
    StepState decided = state_read(b, tables.state);
    decided.skipped = run->skip;
    backend_upload(b->be, tables.state, &decided, sizeof decided);
    tables_update(b, &tables, &a);
    decided = state_read(b, tables.state);
    tables_close(b, &tables);
    return decided;
}

typedef struct AdamWant {
    double *master, *m, *v, *master_tol, *m_tol, *v_tol;
} AdamWant;

static AdamWant adam_want(
    Bench *b, const AdamRun *run, const RefAdam *base, double center, double decay) {
    Tensor *at = b->tensors;
    AdamWant want = {tensor_copy(b, &at[ADAM_MASTER]), tensor_copy(b, &at[ADAM_M]),
        tensor_copy(b, &at[ADAM_V]), bench_doubles(b, run->n), bench_doubles(b, run->n),
        bench_doubles(b, run->n)};
    for (int r = 0; r < run->count; r++) {
        RefAdam a = *base;
        const size_t o = run->ranges[r].offset, n = run->ranges[r].count;
        a.decay = decay * (double)run->ranges[r].decay;
        a.center = center * (double)run->ranges[r].center;
        double *tol = xcalloc(3 * n, sizeof *tol);
        ref_adamw(want.master + o, want.m + o, want.v + o, tol, at[ADAM_GRADS].in + o, n, &a);
        memcpy(want.master_tol + o, tol, n * sizeof *tol);
        memcpy(want.m_tol + o, tol + n, n * sizeof *tol);
        memcpy(want.v_tol + o, tol + 2 * n, n * sizeof *tol);
        free(tol);
    }
    return want;
}

static RefAdam ref_of(Bench *b, const AdamRun *run) {
    const AdamCase *c = run->c;
    RefAdam a = {.lr = float_value(c->lr),
        .beta1 = float_value(c->beta1),
        .beta2 = float_value(c->beta2),
        .eps = float_value(c->eps),
        .weight_decay = float_value(c->weight_decay),
        .grad_clip = float_value(c->grad_clip),
        .update_clip = float_value(c->update_clip),
        .lamb = c->lamb};
    const double *g = b->tensors[ADAM_GRADS].in;
    for (size_t i = 0; i < run->n; i++) a.grad_sumsq += g[i] * g[i];
    a.t = c->updates + 1;
    return a;
}

/* The comparison of master must fail against what the wrong rule gives. */
static void plant(
    Bench *b, const AdamRun *run, const char *what, const RefAdam *wrong, const AdamWant *right) {
    const AdamWant want = adam_want(b, run, wrong, 1, 1);
    bench_compare_planted(b, what, &b->tensors[ADAM_MASTER], want.master, right->master_tol);
}

static void adam_planted(Bench *b, const AdamRun *run, const RefAdam *right, const AdamWant *want) {
    const AdamCase *c = run->c;
    Tensor *master = &b->tensors[ADAM_MASTER];
    RefAdam wrong = *right;
    wrong.t++;
    if (c->updates < 100 && !c->lamb) plant(b, run, "bias correction one step on", &wrong, want);
    wrong = *right, wrong.lr *= 1.001;
    plant(b, run, "rate larger by 1e-3", &wrong, want);
    wrong = *right, wrong.grad_clip = 0;
    if (c->grad_clip > 0 && sqrt(right->grad_sumsq) > c->grad_clip) {
        const AdamWant m = adam_want(b, run, &wrong, 1, 1);
        bench_compare_planted(b, "not clipped", &b->tensors[ADAM_M], m.m, want->m_tol);
    }
    wrong = *right, wrong.update_clip = 0;
    if (c->update_clip > 0) plant(b, run, "update not clipped", &wrong, want);
    wrong = *right, wrong.eps = 0;
    if (c->eps >= c->grad_std) plant(b, run, "epsilon ignored", &wrong, want);
    wrong = *right, wrong.lamb = !c->lamb;
    plant(b, run, c->lamb ? "no trust ratio" : "a trust ratio", &wrong, want);
    if (c->weight_decay > 0) {
        const AdamWant towards_0 = adam_want(b, run, right, 0, 1);
        bench_compare_planted(
            b, "decay of norm scales towards 0", master, towards_0.master, want->master_tol);
        const AdamWant none = adam_want(b, run, right, 1, 0);
        bench_compare_planted(b, "no decay", master, none.master, want->master_tol);
    }
}

static AdamWant adam_check(Bench *b, const AdamRun *run) {
    Tensor *at = b->tensors;
    RefAdam a = ref_of(b, run);
    AdamWant want = adam_want(b, run, &a, 1, 1);
    bench_compare(b, "m", &at[ADAM_M], want.m, want.m_tol);
    bench_compare(b, "v", &at[ADAM_V], want.v, want.v_tol);
    bench_compare(b, "master", &at[ADAM_MASTER], want.master, want.master_tol);
    const double *params = tensor_read(b, &at[ADAM_PARAMS]);
    const double *master = tensor_read(b, &at[ADAM_MASTER]);
    for (int r = 0; r < run->count; r++) {
        const OptRange *range = &run->ranges[r];
        for (size_t i = range->offset; i < range->offset + range->count; i++) {
            CHECK_NEAR(b->t, params[i], master[i], ACT_U * fabs(master[i]));
        }
    }
    return want;
}

void test_adam_equals(Test *t) {
    for (int i = 0; i < COUNT(adam_cases); i++) {
        const AdamRun run = small_run(&adam_cases[i]);
        Bench b, one;
        bench_open(&b, t, adam_cases[i].label, NULL, 2);
        adam_run(&b, &run);
        const AdamWant want = adam_check(&b, &run);
        const RefAdam a = ref_of(&b, &run);
        adam_planted(&b, &run, &a, &want);
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

/* The norm as a fraction of what it is: added one after the other in float, which from some length
 * on loses a part of each square; or without the last 64th. */
static double lost_norm(const double *x, size_t n, bool in_float) {
    volatile float sum = 0;
    double most = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (float)(x[i] * x[i]);
        all += x[i] * x[i];
        if (i < n - n / 64) most += x[i] * x[i];
    }
    return sqrt((in_float ? (double)sum : most) / all);
}

/* Weights of nearly one size, where rounding of the terms does not average out; tensors larger than
 * any piece in which a backend takes them. */
void test_adam_large(Test *t) {
    static const AdamCase rules[] = {{"large, LAMB", 1, 0.9, 0.99, 1e-8, 0.1, 0, 0, 0.01, 0, true},
        {"large, update clipping", 1, 0.9, 0.99, 1e-8, 0, 0, 0.5, 0.01, 0, false}};
    const size_t n = (bench_emulated() ? 10 : 60) * (size_t)OPT_BLOCK, half = n / 2;
    const OptRange ranges[] = {{.offset = 16, .count = half - 27, .decay = 1},
        {.offset = half, .count = half - 3, .decay = 1, .center = 1}};
    for (int i = 0; i < COUNT(rules); i++) {
        const AdamRun run = {.c = &rules[i],
            .ranges = ranges,
            .count = COUNT(ranges),
            .n = n,
            .mean = 3.1,
            .std = 1e-3};
        Bench b;
        bench_open(&b, t, rules[i].label, NULL, 1);
        adam_run(&b, &run);
        const AdamWant want = adam_check(&b, &run);
        const RefAdam right = ref_of(&b, &run);
        const double *master = b.tensors[ADAM_MASTER].in + ranges[0].offset;
        for (int in_float = 0; rules[i].lamb && in_float < 2; in_float++) {
            if (in_float && bench_emulated()) continue; /* too short for that */
            RefAdam wrong = right;
            wrong.lr *= lost_norm(master, ranges[0].count, in_float);
            plant(&b, &run, in_float ? "a norm summed in float" : "a norm without its end", &wrong,
                &want);
        }
        bench_close(&b);
    }
}

static void skips(Test *t, const AdamCase *c) {
    AdamRun run = small_run(c);
    run.skip = true;
    Bench b, untouched;
    bench_open(&b, t, c->label, NULL, 1);
    adam_run(&b, &run);
    for (int k = ADAM_MASTER; k <= ADAM_V; k++) {
        const Tensor *x = &b.tensors[k];
        CHECK(t, memcmp(tensor_read(&b, x), x->in, x->n * sizeof *x->in) == 0, "tensor %d changed",
            k);
    }
    bench_close(&b);
    run.skip = false;
    bench_open(&untouched, t, c->label, NULL, 1);
    adam_run(&untouched, &run);
    const Tensor *x = &untouched.tensors[ADAM_MASTER];
    CHECK(t, memcmp(tensor_read(&untouched, x), x->in, x->n * sizeof *x->in) != 0,
        "a step that is not skipped changed nothing either (%zu)", x->n);
    bench_close(&untouched);
}

void test_adam_skips(Test *t) {
    for (int i = 0; i < COUNT(adam_cases); i++) skips(t, &adam_cases[i]);
}

/* A parameter that never had a gradient stays where it is, whatever eps is; so does one whose
 * squared gradient is below the smallest float. */
void test_adam_no_gradient(Test *t) {
    AdamCase c = {"zero gradients", 1e-2, 0.9, 0.99, 1e-24, 0, 1, 0, 1, 0, false};
    for (int i = 0; i < 4; i++) {
        c.grad_std = i % 2 ? 1e-24 : 1;
        c.lamb = i >= 2;
        AdamRun run = small_run(&c);
        run.zero_gradients = i % 2 == 0;
        Bench b;
        bench_open(&b, t, c.label, NULL, 1);
        adam_run(&b, &run);
        const Tensor *x = &b.tensors[ADAM_MASTER];
        CHECK(t, memcmp(tensor_read(&b, x), x->in, x->n * sizeof *x->in) == 0,
            "gradients of %g moved the parameters", i % 2 ? 1e-24 : 0.0);
        bench_close(&b);
    }
}

/* Whether all at once or after norms were taken. */
void test_adam_bad_weights(Test *t) {
    for (int i = 0; i < COUNT(adam_cases); i++) {
        AdamRun run = small_run(&adam_cases[i]);
        for (int bad = 0; bad < 2; bad++) {
            Bench b;
            if (bad) run.std = INFINITY;
            bench_open(&b, t, run.c->label, NULL, 1);
            StepState now = adam_run(&b, &run);
            CHECK_INT(t, now.bad_weights, bad);
            double *zeros = backend_alloc(b.be, 3 * sizeof *zeros);
            StepState *s = state_new(&b, now);
            op_bad_weights(b.be, zeros + 2, s);
            op_step_decide(b.be, s, &(StepSums){zeros, zeros + 1, zeros + 2, 1, 1});
            CHECK_INT(t, state_read(&b, s).skipped, bad);
            backend_free(b.be, s), backend_free(b.be, zeros);
            bench_close(&b);
        }
    }
}
