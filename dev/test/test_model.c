/* test_model.c: the whole model on the linked backend against itself: micro-batches, recomputation,
 * threads, causality, steps that are given up, and that it learns. Knows the model, not the
 * backend.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/test/fixture.h"
#include "dev/test/tensor.h"
#include "laser/rng.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

static int32_t *random_tokens(size_t n, int V, uint64_t seed) {
    int32_t *x = xcalloc(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (int32_t)(rng_u64(seed, RNG_TEST, i) % (uint64_t)V);
    return x;
}

static void learns(Test *t) {
    const ModelConfig c = rig_small_config();
    enum { STEPS = 300 };
    const int B = bench_emulated() ? 2 : 4;
    const size_t BT = (size_t)(B * c.T);
    int32_t *tokens = random_tokens(BT, c.V, 1), *targets = random_tokens(BT, c.V, 2);
    Rig r;
    rig_open(&r, &c, B, 1);
    model_init(&r.m, 1);
    AdamArgs a = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .grad_clip = 1};
    double first = 0, loss = INFINITY;
    int steps = 0;
    for (; steps < STEPS && loss > 0.05; steps++) {
        loss = rig_gradients(&r, tokens, targets, B, c.T, B);
        if (steps == 0) first = loss;
        optim_step(&r.o, &r.m, &a);
    }
    CHECK(t, fabs(first - log(c.V)) < 0.5, "first loss %g, ln V is %g", first, log(c.V));
    CHECK(t, loss <= 0.05, "loss %g after %d steps", loss, steps);
    /* the rows that pad the vocabulary are still 0 */
    const float *wte = param_float(&r.m.table, r.m.master, P_wte, -1) + c.V * c.C;
    float *padding = rig_floats(&r, wte, (size_t)((c.Vp - c.V) * c.C));
    for (int i = 0; i < (c.Vp - c.V) * c.C; i++) {
        CHECK(t, padding[i] == 0, "padding row %d holds %g", c.V + i / c.C, (double)padding[i]);
    }
    free(padding), free(tokens), free(targets);
    rig_close(&r);
}

static void micro_batches(Test *t) {
    const ModelConfig c = rig_small_config();
    enum { B = 4 };
    const size_t BT = (size_t)(B * c.T);
    int32_t *tokens = random_tokens(BT, c.V, 1), *targets = random_tokens(BT, c.V, 2);
    Rig r;
    rig_open(&r, &c, B, 1);
    model_init(&r.m, 1);
    const size_t n = r.m.table.elements;
    const double tol = rig_error(&c, true);
    const double whole = rig_gradients(&r, tokens, targets, B, c.T, B);
    float *want = rig_floats(&r, r.m.grads, n);
    const double parts = rig_gradients(&r, tokens, targets, B, c.T, 1);
    float *got = rig_floats(&r, r.m.grads, n);
    CHECK_NEAR(t, parts, whole, rig_error(&c, false) * whole);
    CHECK(t, rig_difference(got, want, n) <= tol, "4 x 1 and 1 x 4 differ by %g",
        rig_difference(got, want, n));
    free(got);
    rig_gradients(&r, tokens, targets, B, c.T, B);
    got = rig_floats(&r, r.m.grads, n);
    CHECK(t, memcmp(got, want, n * sizeof *got) == 0, "the same step twice differs by %g",
        rig_difference(got, want, n));
    free(got);
    rig_gradients(&r, tokens, targets, B - 1, c.T, 1); /* planted: one sequence forgotten */
    got = rig_floats(&r, r.m.grads, n);
    CHECK(t, rig_difference(got, want, n) > tol, "a forgotten sequence passes: %g",
        rig_difference(got, want, n));
    free(got), free(want), free(tokens), free(targets);
    rig_close(&r);
}

/* One step: its loss and gradients. */
typedef struct Step {
    double loss;
    float *grads; /* (n), malloced */
    size_t n;
} Step;

static Step step_new(const ModelConfig *c, int threads) {
    enum { B = 3 };
    const size_t BT = (size_t)(B * c->T);
    int32_t *tokens = random_tokens(BT, c->V, 1), *targets = random_tokens(BT, c->V, 2);
    Step s;
    Rig r;
    rig_open(&r, c, B, threads);
    model_init(&r.m, 5);
    s.loss = rig_gradients(&r, tokens, targets, B, c->T, B);
    s.n = r.m.table.elements;
    s.grads = rig_floats(&r, r.m.grads, s.n);
    rig_close(&r);
    free(tokens), free(targets);
    return s;
}

/* The same step with other settings: every bit must be the same. */
static void check_same_step(
    Test *t, const Step *want, const ModelConfig *c, int threads, const char *what) {
    const Step got = step_new(c, threads);
    CHECK(t, got.loss == want->loss, "%s: losses %.17g and %.17g", what, want->loss, got.loss);
    CHECK(t, memcmp(got.grads, want->grads, got.n * sizeof *got.grads) == 0,
        "%s: gradients differ by %g", what, rig_difference(got.grads, want->grads, got.n));
    free(got.grads);
}

static void recomputation(Test *t) {
    for (int act = ACT_NONE; act <= ACT_GELU; act++) {
        for (int pos = POS_SINUSOID; pos <= POS_NONE; pos++) {
            if (bench_emulated() && pos != POS_SINUSOID && pos != POS_ROPE) continue;
            ModelConfig c = rig_small_config();
            c.L = 3;
            c.act = (Act)act, c.pos = (Positions)pos;
            const Step want = step_new(&c, 1);
            c.recompute = RECOMPUTE_LIGHT;
            check_same_step(t, &want, &c, 1, "light");
            c.recompute = RECOMPUTE_BLOCK;
            check_same_step(t, &want, &c, 1, "block");
            free(want.grads);
        }
    }
}

static void threads_do_not_matter(Test *t) {
    if (bench_threads_cut_sums()) SKIP(t, BENCH_THREADS_CUT_SUMS);
    ModelConfig c = rig_small_config();
    c.C = 160, c.F = 400, c.V = 500, c.Vp = 512, c.T = 70;
    const Step want = step_new(&c, 1);
    check_same_step(t, &want, &c, 2, "1 and 2 threads");
    free(want.grads);
}

/* LASER with narrow activations takes its reference from the whole sequence: what comes later may
 * change how earlier rows are rounded, and no more. All else keeps every bit. */
static void causality(Test *t) {
    ModelConfig c = rig_small_config();
    c.T = 133;
    const double tol = rig_error(&c, false);
    const bool by_rounding = ACT_U > 0 && strcmp(backend_attention(), "laser") == 0;
    const int changed[] = {1, 31, 32, 64, 65, 100, 132};
    int32_t *tokens = random_tokens((size_t)c.T, c.V, 1);
    Rig r;
    rig_open(&r, &c, 1, 1);
    model_init(&r.m, 1);
    model_forward(&r.m, tokens, 1, c.T);
    float *before = rig_logits(&r, c.T);
    for (int k = 0; k < COUNT(changed); k++) {
        const int at = changed[k];
        int32_t *other = random_tokens((size_t)c.T, c.V, 1);
        for (int i = at; i < c.T; i++) other[i] = (tokens[i] + 1) % c.V;
        model_forward(&r.m, other, 1, c.T);
        float *after = rig_logits(&r, c.T);
        const size_t earlier = (size_t)(at * c.V);
        if (by_rounding) {
            CHECK(t, rig_difference(after, before, earlier) <= tol,
                "tokens from %d on changed logits before by %g, %g allowed", at,
                rig_difference(after, before, earlier), tol);
        } else {
            CHECK(t, memcmp(before, after, earlier * sizeof *before) == 0,
                "tokens from %d on changed logits before", at);
        }
        CHECK(t, rig_difference(after + earlier, before + earlier, (size_t)c.V) > tol,
            "token %d does not change its own logits", at);
        free(other), free(after);
    }
    free(before), free(tokens);
    rig_close(&r);
}

static void second_step_allocates_nothing(Test *t) {
    const ModelConfig c = rig_small_config();
    int32_t *tokens = random_tokens((size_t)(2 * c.T), c.V, 1);
    AdamArgs a = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .grad_clip = 1};
    Rig r;
    rig_open(&r, &c, 2, 1);
    model_init(&r.m, 1);
    int64_t allocations = 0;
    for (int step = 0; step < 3; step++) {
        rig_gradients(&r, tokens, tokens, 2, c.T, 1);
        optim_step(&r.o, &r.m, &a);
        model_forward(&r.m, tokens, 1, c.T);
        free(rig_logits(&r, 3));
        if (step == 0) allocations = backend_allocations(r.be);
    }
    CHECK_INT(t, backend_allocations(r.be), allocations);
    CHECK(t, allocations > 0, "%lld allocations at all", (long long)allocations);
    free(tokens);
    rig_close(&r);
}

/* A step whose gradient is NaN: weights and moments keep every bit, and the step does not count. */
static void nan_step(Test *t) {
    const ModelConfig c = rig_small_config();
    int32_t *tokens = random_tokens((size_t)c.T, c.V, 1);
    AdamArgs a = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .grad_clip = 1};
    Rig r;
    rig_open(&r, &c, 1, 1);
    model_init(&r.m, 1);
    const size_t n = r.m.table.elements;
    for (int step = 0; step < 4; step++) {
        float *of[3] = {r.m.master, r.o.m, r.o.v}, *before[3];
        for (int k = 0; k < 3; k++) before[k] = rig_floats(&r, of[k], n);
        rig_gradients(&r, tokens, tokens, 1, c.T, 1);
        const float bad = step == 1 ? NAN : INFINITY;
        const bool skip = step == 1 || step == 2;
        if (skip) backend_upload(r.be, r.m.grads + n / 3, &bad, sizeof bad);
        optim_step(&r.o, &r.m, &a);
        const StepState s = optim_read(&r.o, r.be);
        CHECK_INT(t, s.skipped, skip);
        CHECK_INT(t, s.updates, step < 3 ? 1 : 2);
        for (int k = 0; k < 3; k++) {
            float *after = rig_floats(&r, of[k], n);
            const bool same = memcmp(before[k], after, n * sizeof *after) == 0;
            CHECK(t, same == skip, "step %d, array %d: %s", step, k, same ? "same" : "changed");
            free(before[k]), free(after);
        }
    }
    free(tokens);
    rig_close(&r);
}

/* Whether the second of two steps is given up when the last weight of tensor i is NaN; -1: when
 * none is. */
static bool gives_up(Rig *r, const int32_t *tokens, int i) {
    const AdamArgs a = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .grad_clip = 1};
    const float bad = NAN;
    model_init(&r->m, 1);
    optim_set_updates(&r->o, r->be, 0);
    if (i >= 0) {
        const ParamInfo *p = &r->m.table.rows[i];
        backend_upload(r->be, r->m.master + p->offset + p->logical - 1, &bad, sizeof bad);
        model_sync_params(&r->m);
    }
    for (int step = 0; step < 2; step++) {
        rig_gradients(r, tokens, tokens, 1, r->m.config.T, 1);
        optim_step(&r->o, &r->m, &a);
    }
    return optim_read(&r->o, r->be).skipped;
}

/* A NaN anywhere in the weights reaches the loss or the norm, or is met by the first update where a
 * relu hides it, so that training does not go on. */
static void nan_weights(Test *t) {
    for (int act = ACT_RELU; act <= ACT_GELU; act++) {
        ModelConfig c = rig_small_config();
        c.act = (Act)act, c.bias_attn = true;
        if (bench_emulated()) c.L = 1, c.T = 5;
        int32_t *tokens = random_tokens((size_t)c.T, c.V, 1);
        Rig r;
        rig_open(&r, &c, 1, 1);
        for (int i = 0; i < r.m.table.count; i++) {
            const ParamInfo *p = &r.m.table.rows[i];
            CHECK(t, gives_up(&r, tokens, i), "a NaN in %s, layer %d, goes unnoticed", p->name,
                p->layer);
        }
        CHECK(t, !gives_up(&r, tokens, -1), "activation %d: given up without a NaN", act);
        free(tokens);
        rig_close(&r);
    }
}

const TestCase *test_model(int *count) {
    static const TestCase cases[] = {
        {"model: a batch is learned by heart, the vocabulary's padding stays 0", learns},
        {"model: micro-batch 1 x 4 equals 4 x 1 within rounding", micro_batches},
        {"model: recomputing norms or blocks gives the same bits", recomputation},
        {"model: 1 and 2 threads give the same bits", threads_do_not_matter},
        {"model: changed tokens change no bit of earlier logits; bf16 LASER: by rounding",
            causality},
        {"model: the second step allocates nothing", second_step_allocates_nothing},
        {"model: a step with a gradient that is not finite changes nothing", nan_step},
        {"model: a NaN in any weight is noticed", nan_weights},
    };
    return TEST_TABLE(cases, count);
}
