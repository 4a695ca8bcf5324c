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

/* Emulated, they take their time: without modifiers and with all. */
static bool variant_applies(int which) {
    return !bench_emulated() || which == 0 || which == 3;
}

static void check_learns(Test *t, const ModelConfig *model) {
    const ModelConfig c = *model;
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
        rig_step(&r, &a);
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

static void learns(Test *t) {
    const ModelConfig plain = rig_small_config(), modified = rig_variant(3);
    check_learns(t, &plain);
    check_learns(t, &modified);
}

static void check_micro_batches(Test *t, const ModelConfig *model) {
    const ModelConfig c = *model;
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

static void micro_batches(Test *t) {
    for (int i = 0; i < RIG_VARIANTS; i++) {
        const ModelConfig c = rig_variant(i);
        if (variant_applies(i)) check_micro_batches(t, &c);
    }
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

static void check_recomputation(Test *t, const ModelConfig *model) {
    ModelConfig c = *model;
    c.L = 3;
    const Step want = step_new(&c, 1);
    c.recompute = RECOMPUTE_LIGHT;
    check_same_step(t, &want, &c, 1, "light");
    c.recompute = RECOMPUTE_BLOCK;
    check_same_step(t, &want, &c, 1, "block");
    free(want.grads);
}

static void recomputation(Test *t) {
    for (int i = 1; i < RIG_VARIANTS; i++) {
        const ModelConfig c = rig_variant(i);
        if (variant_applies(i)) check_recomputation(t, &c);
    }
    for (int act = ACT_NONE; act <= ACT_GELU; act++) {
        for (int pos = POS_SINUSOID; pos <= POS_NONE; pos++) {
            if (bench_emulated() && pos != POS_SINUSOID && pos != POS_ROPE) continue;
            ModelConfig c = rig_small_config();
            c.act = (Act)act, c.pos = (Positions)pos;
            check_recomputation(t, &c);
        }
    }
}

static void threads_do_not_matter(Test *t) {
    if (bench_threads_cut_sums()) SKIP(t, BENCH_THREADS_CUT_SUMS);
    for (int i = 0; i < RIG_VARIANTS; i++) {
        ModelConfig c = rig_variant(i);
        if (!variant_applies(i)) continue;
        c.C = 160, c.F = 400, c.V = 500, c.Vp = 512, c.T = 70;
        const Step want = step_new(&c, 1);
        check_same_step(t, &want, &c, 2, "1 and 2 threads");
        free(want.grads);
    }
}

/* LASER with narrow activations takes its reference from the whole sequence: what comes later may
 * change how earlier rows are rounded, and no more. All else keeps every bit. */
static void check_causality(Test *t, const ModelConfig *model) {
    ModelConfig c = *model;
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

static void causality(Test *t) {
    for (int i = 0; i < RIG_VARIANTS; i++) {
        const ModelConfig c = rig_variant(i);
        if (variant_applies(i)) check_causality(t, &c);
    }
}

static void second_step_allocates_nothing(Test *t) {
    const ModelConfig c = rig_variant(3);
    int32_t *tokens = random_tokens((size_t)(2 * c.T), c.V, 1);
    AdamArgs a = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .grad_clip = 1};
    Rig r;
    rig_open(&r, &c, 2, 1);
    model_init(&r.m, 1);
    int64_t allocations = 0;
    for (int step = 0; step < 3; step++) {
        rig_gradients(&r, tokens, tokens, 2, c.T, 1);
        rig_step(&r, &a);
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
        rig_step(&r, &a);
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
        rig_step(r, &a);
    }
    return optim_read(&r->o, r->be).skipped;
}

/* A NaN anywhere in the weights reaches the loss or the norm, or is met by the first update where a
 * relu hides it, so that training does not go on. */
static void nan_weights(Test *t) {
    for (int act = ACT_RELU; act <= ACT_GELU; act++) {
        ModelConfig c = act == ACT_RELU ? rig_small_config() : rig_variant(3);
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

/* ---- modifiers that change nothing ----------------------------------------------------------- */

/* Initial weights are so small that attention adds little: here it adds 20 times that. */
static void enlarge_attention(Rig *r) {
    for (int l = 0; l < r->m.config.L; l++) {
        float *w = param_float(&r->m.table, r->m.master, P_projw, l);
        const size_t n = product(r->m.config.C, r->m.config.H * r->m.config.HD);
        float *host = rig_floats(r, w, n);
        for (size_t i = 0; i < n; i++) host[i] *= 20;
        backend_upload(r->be, w, host, n * sizeof *host);
        free(host);
    }
}

/* Logits of weights from one seed, in which `set`, or none, may change some. */
static float *logits_of(const ModelConfig *c, void (*set)(Rig *r)) {
    int32_t *tokens = random_tokens((size_t)c->T, c->V, 1);
    Rig r;
    rig_open(&r, c, 1, 1);
    model_init(&r.m, 3);
    enlarge_attention(&r);
    if (set) set(&r);
    model_sync_params(&r.m);
    model_forward(&r.m, tokens, 1, c->T);
    float *logits = rig_logits(&r, c->T);
    rig_close(&r);
    free(tokens);
    return logits;
}

static void check_same_logits(
    Test *t, const ModelConfig *c, const float *got, const float *want, const char *what) {
    const size_t n = (size_t)(c->T * c->V);
    const double off = rig_difference(got, want, n), tol = rig_error(c, false);
    CHECK(t, off <= tol, "%s: logits differ by %.3g, %.3g allowed", what, off, tol);
}

static void write_vector(Rig *r, ParamId id, int layer, float first) {
    float *x = param_float(&r->m.table, r->m.master, id, layer);
    const size_t n = (size_t)r->m.config.HD / 2;
    float *host = xcalloc(n, sizeof *host);
    host[0] = first;
    backend_upload(r->be, x, host, n * sizeof *host);
    free(host);
}

/* lambda = exp(0) - exp(x * x) + lambda_init */
static void set_lambda_to_zero(Rig *r) {
    for (int l = 0; l < r->m.config.L; l++) {
        const double lambda_init = 0.8 - 0.6 * exp(-0.3 * l);
        const float x = (float)sqrt(log(1 + lambda_init));
        write_vector(r, P_lq1, l, 0);
        write_vector(r, P_lk1, l, 0);
        write_vector(r, P_lq2, l, x);
        write_vector(r, P_lk2, l, x);
    }
}

/* The second half of each query is 0. */
static void set_second_half_to_zero(Rig *r) {
    const ModelConfig *c = &r->m.config;
    const size_t half = (size_t)c->HD / 2, n = half * (size_t)c->C;
    float *zero = xcalloc(n, sizeof *zero);
    for (int l = 0; l < c->L; l++) {
        float *w = param_float(&r->m.table, r->m.master, P_qkvw, l);
        for (size_t h = 0; h < (size_t)c->H; h++)
            backend_upload(r->be, w + (2 * h + 1) * n, zero, n * sizeof *zero);
    }
    free(zero);
}

/* In float the factor of p = 0 is 1 to the bit, where it is computed in double. */
static void per_dim_scale_starts_neutral(Test *t) {
    const ModelConfig plain = rig_small_config();
    ModelConfig c = plain;
    c.per_dim_scale = true;
    float *want = logits_of(&plain, NULL), *got = logits_of(&c, NULL);
    check_same_logits(t, &c, got, want, "per-dimension scale");
    if (strcmp(backend_name(), "cpu") == 0)
        CHECK(t, memcmp(got, want, (size_t)(c.T * c.V) * sizeof *got) == 0, "%s", "bits differ");
    c.temperature = 1.3f; /* planted */
    float *other = logits_of(&c, NULL);
    CHECK(t, rig_difference(other, want, (size_t)(c.T * c.V)) > 0, "%s", "temperature: no effect");
    free(want), free(got), free(other);
}

/* The plain form, lambda 0: attention of the first halves alone, whose scores are divided by
 * sqrt(HD/2): as with all channels at a temperature of sqrt(1/2), where the others are 0. */
static void diff_without_second_map(Test *t) {
    ModelConfig c = rig_small_config(), first = c;
    c.diff = c.diff_plain = true;
    first.temperature = (float)sqrt(0.5);
    float *want = logits_of(&first, set_second_half_to_zero);
    float *got = logits_of(&c, set_lambda_to_zero), *planted = logits_of(&c, NULL);
    check_same_logits(t, &c, got, want, "first map alone");
    CHECK(t, rig_difference(planted, want, (size_t)(c.T * c.V)) > rig_error(&c, false), "%s",
        "lambda's start passes as 0");
    free(want), free(got), free(planted);
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
        {"model: the per-dimension scale starts as if it were not there",
            per_dim_scale_starts_neutral},
        {"model: two maps with lambda 0 are attention of the first halves",
            diff_without_second_map},
    };
    return TEST_TABLE(cases, count);
}
