/* test_model.c: the whole model on the linked backend: against PyTorch (the fixtures), against
 * itself (micro-batches, recomputation, threads, causality), and that it learns. Knows the model,
 * not the backend. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/ops_ref.h"
#include "dev/test/fixture.h"
#include "dev/test/tensor.h"
#include "laser/rng.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

static const char *const fixtures[] = {"gpt2", "paper", "rope"};

/* The error of fp32, relative to the largest value of a tensor. The forward pass is a chain of 10
 * operations a layer and 3 around them; norms hold the scale, so that errors add: each operation
 * brings at most gamma(longest sum). The backward pass is a chain as long again, on top of the
 * forward's error. */
static double relative_error(const ModelConfig *c, bool backward) {
    const int sums[] = {c->C, c->F, c->H * c->HD, c->T, backward ? c->V : 1};
    int longest = 1;
    for (int i = 0; i < COUNT(sums); i++) longest = sums[i] > longest ? sums[i] : longest;
    return (10 * c->L + 3) * (backward ? 2 : 1) * ref_gamma(longest);
}

/* The largest difference, as a fraction of the largest value; infinite where something is not
 * finite. */
static double difference(const float *got, const float *want, size_t n) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - (double)want[i]);
        worst = d >= worst || !isfinite(d) ? d : worst;
        largest = fmax(largest, fabs((double)want[i]));
        if (!isfinite(d)) return INFINITY;
    }
    return worst / largest;
}

/* ---- against PyTorch ------------------------------------------------------------------------- */

static double fixture_logits_error(const Fixture *f, const ModelConfig *c) {
    Rig r;
    size_t n;
    rig_open(&r, c, f->B, 1);
    fixture_load_weights(f, &r);
    model_forward(&r.m, f->inputs, f->B, c->T);
    float *got = rig_logits(&r, f->B * c->T), *want = fixture_result(f, "logits", &n);
    const double error = difference(got, want, n);
    free(got), free(want);
    rig_close(&r);
    return error;
}

static void logits_equal(Test *t) {
    for (int i = 0; i < COUNT(fixtures); i++) {
        Fixture f;
        fixture_open(&f, fixtures[i]);
        const double tol = relative_error(&f.config, false);
        const double error = fixture_logits_error(&f, &f.config);
        CHECK(t, error <= tol, "%s: logits are off by %.3g, %.3g allowed", fixtures[i], error, tol);
        /* planted: each changes the model a little; none may pass */
        ModelConfig wrong[6];
        for (int k = 0; k < COUNT(wrong); k++) wrong[k] = f.config;
        wrong[0].norm_eps += 1e-3f;
        wrong[1].embed_scale = !wrong[1].embed_scale;
        wrong[2].attn_cap = wrong[2].attn_cap > 0 ? 0 : 30;
        wrong[3].logit_cap = wrong[3].logit_cap > 0 ? 0 : 30;
        wrong[4].act = wrong[4].act == ACT_GELU ? ACT_RELU : ACT_GELU;
        wrong[5].pos = wrong[5].pos == POS_SINUSOID ? POS_NONE : POS_SINUSOID;
        for (int k = 0; k < COUNT(wrong); k++) {
            if (k == 5 && f.config.pos == POS_LEARNED) continue; /* its table would be missing */
            const double wrong_error = fixture_logits_error(&f, &wrong[k]);
            CHECK(t, wrong_error > tol, "%s: planted error %d passes with %.3g", fixtures[i], k,
                wrong_error);
        }
        fixture_close(&f);
    }
}

static void gradients_equal(Test *t) {
    for (int i = 0; i < COUNT(fixtures); i++) {
        Fixture f;
        Rig r;
        size_t n;
        fixture_open(&f, fixtures[i]);
        rig_open(&r, &f.config, f.B, 1);
        fixture_load_weights(&f, &r);
        const double loss = rig_gradients(&r, f.inputs, f.targets, f.B, f.config.T, f.B);
        const double tol = relative_error(&f.config, true);
        float *losses = fixture_result(&f, "loss", &n);
        CHECK_NEAR(t, loss, (double)losses[0], relative_error(&f.config, false) * loss);
        float *grads = rig_floats(&r, r.m.grads, r.m.table.elements);
        for (int p = 0; p < r.m.table.count; p++) {
            const ParamInfo *info = &r.m.table.rows[p];
            float *want = fixture_param(&f, "grad.", info), *got = grads + info->offset;
            const double error = difference(got, want, info->logical);
            CHECK(t, error <= tol, "%s: gradient of %s, layer %d, is off by %.3g, %.3g allowed",
                fixtures[i], info->name, info->layer, error, tol);
            got[info->logical / 2] += 0.001f * fabsf(want[info->logical / 2]) + 2e-4f; /* planted */
            CHECK(t, difference(got, want, info->logical) > tol, "%s: a planted error passes",
                info->name);
            free(want);
        }
        free(losses), free(grads);
        rig_close(&r);
        fixture_close(&f);
    }
}

/* |got - want| over |want - start|, both over a whole tensor: the error of how far it moved. */
static double displacement_error(
    const float *got, const float *want, const float *start, size_t n) {
    double off = 0, moved = 0;
    for (size_t i = 0; i < n; i++) {
        off += pow((double)got[i] - (double)want[i], 2);
        moved += pow((double)want[i] - (double)start[i], 2);
    }
    return sqrt(off / moved);
}

/* Trains for f->steps; losses and norms (steps) are written; returns the worst displacement error.
 */
static double train_fixture(const Fixture *f, double *losses, double *norms) {
    Rig r;
    double worst = 0;
    const int BT = f->B * f->config.T;
    rig_open(&r, &f->config, f->B, 1);
    fixture_load_weights(f, &r);
    for (int s = 0; s < f->steps; s++) {
        const int32_t *inputs = f->inputs + s * BT, *targets = f->targets + s * BT;
        AdamArgs a = f->adam;
        a.lr = (float)schedule_lr(&f->schedule, s);
        losses[s] = rig_gradients(&r, inputs, targets, f->B, f->config.T, f->B);
        optim_step(&r.o, &r.m, &a);
        norms[s] = sqrt(optim_read(&r.o, r.be).grad_sumsq);
    }
    for (int p = 0; p < r.m.table.count; p++) {
        const ParamInfo *info = &r.m.table.rows[p];
        float *got = rig_floats(&r, r.m.master + info->offset, info->logical);
        float *want = fixture_param(f, "final.", info), *start = fixture_param(f, "init.", info);
        worst = fmax(worst, displacement_error(got, want, start, info->logical));
        free(got), free(want), free(start);
    }
    rig_close(&r);
    return worst;
}

/* An update is a ratio of moments of the gradient, so its relative error is that of the gradient;
 * ten steps add ten. */
static void ten_steps_equal(Test *t) {
    enum { MOST = 16 };
    for (int i = 0; i < COUNT(fixtures); i++) {
        Fixture f;
        size_t n;
        double losses[MOST], norms[MOST], ignored[MOST];
        fixture_open(&f, fixtures[i]);
        REQUIRE(f.steps <= MOST, "%d steps", f.steps);
        const double tol = f.steps * relative_error(&f.config, true);
        const double error = train_fixture(&f, losses, norms);
        CHECK(
            t, error <= tol, "%s: displacement off by %.3g, %.3g allowed", fixtures[i], error, tol);
        float *want = fixture_result(&f, "loss", &n);
        float *want_norms = fixture_result(&f, "grad_norm", &n);
        for (int s = 0; s < f.steps; s++) {
            CHECK_NEAR(t, losses[s], (double)want[s], tol * losses[s]);
            CHECK_NEAR(t, norms[s], (double)want_norms[s], tol * norms[s]);
        }
        Fixture wrong[5];
        for (int k = 0; k < COUNT(wrong); k++) wrong[k] = f;
        wrong[0].adam.weight_decay = 0;
        wrong[1].adam.grad_clip = 0;
        wrong[2].adam.beta2 = 0.999f;
        wrong[3].schedule.kind = SCHEDULE_LINEAR;
        wrong[4].adam.eps = 1e-8f;
        for (int k = 0; k < COUNT(wrong); k++) {
            const double wrong_error = train_fixture(&wrong[k], ignored, ignored);
            CHECK(t, wrong_error > tol, "%s: planted error %d passes with %.3g", fixtures[i], k,
                wrong_error);
        }
        free(want), free(want_norms);
        fixture_close(&f);
    }
}

/* ---- against itself -------------------------------------------------------------------------- */

static int32_t *random_tokens(size_t n, int V, uint64_t seed) {
    int32_t *x = xcalloc(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (int32_t)(rng_u64(seed, RNG_TEST, i) % (uint64_t)V);
    return x;
}

static void learns(Test *t) {
    const ModelConfig c = rig_small_config();
    enum { B = 4, STEPS = 300 };
    const size_t BT = (size_t)(B * c.T);
    int32_t *tokens = random_tokens(BT, c.V, 1), *targets = random_tokens(BT, c.V, 2);
    Rig r;
    rig_open(&r, &c, B, 1);
    model_init(&r.m, 1);
    AdamArgs a = {.lr = 3e-3f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .grad_clip = 1};
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
    const double tol = relative_error(&c, true);
    const double whole = rig_gradients(&r, tokens, targets, B, c.T, B);
    float *want = rig_floats(&r, r.m.grads, n);
    const double parts = rig_gradients(&r, tokens, targets, B, c.T, 1);
    float *got = rig_floats(&r, r.m.grads, n);
    CHECK_NEAR(t, parts, whole, relative_error(&c, false) * whole);
    CHECK(t, difference(got, want, n) <= tol, "4 x 1 and 1 x 4 differ by %g",
        difference(got, want, n));
    free(got);
    rig_gradients(&r, tokens, targets, B, c.T, B);
    got = rig_floats(&r, r.m.grads, n);
    CHECK(t, memcmp(got, want, n * sizeof *got) == 0, "the same step twice differs by %g",
        difference(got, want, n));
    free(got);
    rig_gradients(&r, tokens, targets, B - 1, c.T, 1); /* planted: one sequence forgotten */
    got = rig_floats(&r, r.m.grads, n);
    CHECK(t, difference(got, want, n) > tol, "a forgotten sequence passes: %g",
        difference(got, want, n));
    free(got), free(want), free(tokens), free(targets);
    rig_close(&r);
}

/* Gradients of one step with other settings: every bit must be the same. */
static void check_same_gradients(
    Test *t, const ModelConfig *a, const ModelConfig *b, int threads, const char *what) {
    enum { B = 3 };
    const size_t BT = (size_t)(B * a->T);
    int32_t *tokens = random_tokens(BT, a->V, 1), *targets = random_tokens(BT, a->V, 2);
    const ModelConfig *configs[2] = {a, b};
    float *grads[2];
    double losses[2];
    size_t n = 0;
    for (int k = 0; k < 2; k++) {
        Rig r;
        rig_open(&r, configs[k], B, k ? threads : 1);
        model_init(&r.m, 5);
        losses[k] = rig_gradients(&r, tokens, targets, B, a->T, B);
        n = r.m.table.elements;
        grads[k] = rig_floats(&r, r.m.grads, n);
        rig_close(&r);
    }
    CHECK(t, losses[0] == losses[1], "%s: losses %.17g and %.17g", what, losses[0], losses[1]);
    CHECK(t, memcmp(grads[0], grads[1], n * sizeof(float)) == 0, "%s: gradients differ by %g", what,
        difference(grads[1], grads[0], n));
    free(grads[0]), free(grads[1]), free(tokens), free(targets);
}

static void recomputation(Test *t) {
    for (int act = ACT_NONE; act <= ACT_GELU; act++) {
        for (int pos = POS_SINUSOID; pos <= POS_NONE; pos++) {
            ModelConfig c = rig_small_config(), light, block;
            c.L = 3;
            c.act = (Act)act, c.pos = (Positions)pos;
            light = block = c;
            light.recompute = RECOMPUTE_LIGHT, block.recompute = RECOMPUTE_BLOCK;
            check_same_gradients(t, &c, &light, 1, "light");
            check_same_gradients(t, &c, &block, 1, "block");
        }
    }
}

static void threads_do_not_matter(Test *t) {
    if (bench_threads_cut_sums()) SKIP(t, BENCH_THREADS_CUT_SUMS);
    ModelConfig c = rig_small_config();
    c.C = 160, c.F = 400, c.V = 500, c.Vp = 512, c.T = 70;
    check_same_gradients(t, &c, &c, 2, "1 and 2 threads");
}

static void causality(Test *t) {
    ModelConfig c = rig_small_config();
    c.T = 133;
    const int changed[] = {1, 31, 32, 64, 65, 100, 132};
    int32_t *tokens = random_tokens((size_t)c.T, c.V, 1);
    Rig r;
    rig_open(&r, &c, 1, 1);
    model_init(&r.m, 1);
    model_forward(&r.m, tokens, 1, c.T);
    float *before = rig_logits(&r, c.T);
    const size_t row = (size_t)c.V * sizeof *before;
    for (int k = 0; k < COUNT(changed); k++) {
        const int at = changed[k];
        int32_t *other = random_tokens((size_t)c.T, c.V, 1);
        for (int i = at; i < c.T; i++) other[i] = (tokens[i] + 1) % c.V;
        model_forward(&r.m, other, 1, c.T);
        float *after = rig_logits(&r, c.T);
        CHECK(t, memcmp(before, after, (size_t)at * row) == 0,
            "tokens from %d on changed logits before", at);
        CHECK(t, memcmp(before + at * c.V, after + at * c.V, row) != 0,
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

/* A NaN anywhere in the weights reaches the loss or the norm, so that the step is given up. */
static void nan_weights(Test *t) {
    for (int act = ACT_RELU; act <= ACT_GELU; act++) {
        ModelConfig c = rig_small_config();
        c.act = (Act)act, c.bias_attn = true;
        int32_t *tokens = random_tokens((size_t)c.T, c.V, 1);
        Rig r;
        rig_open(&r, &c, 1, 1);
        for (int i = 0; i < r.m.table.count; i++) {
            const ParamInfo *p = &r.m.table.rows[i];
            const float bad = NAN;
            model_init(&r.m, 1);
            backend_upload(r.be, r.m.master + p->offset + p->logical - 1, &bad, sizeof bad);
            model_sync_params(&r.m);
            rig_gradients(&r, tokens, tokens, 1, c.T, 1);
            op_grad_norm(r.be, r.o.state, r.m.grads, r.m.table.elements);
            op_step_decide(r.be, r.o.state);
            CHECK(t, optim_read(&r.o, r.be).skipped, "a NaN in %s, layer %d, goes unnoticed",
                p->name, p->layer);
        }
        free(tokens);
        rig_close(&r);
    }
}

const TestCase *test_model(int *count) {
    static const TestCase cases[] = {
        {"model: logits equal PyTorch's, planted errors are found", logits_equal},
        {"model: loss and every gradient equal PyTorch's", gradients_equal},
        {"model: losses, norms and weights of ten AdamW steps equal PyTorch's", ten_steps_equal},
        {"model: a batch is learned by heart, the vocabulary's padding stays 0", learns},
        {"model: micro-batch 1 x 4 equals 4 x 1 within rounding", micro_batches},
        {"model: recomputing norms or blocks gives the same bits", recomputation},
        {"model: 1 and 2 threads give the same bits", threads_do_not_matter},
        {"model: changed tokens change no bit of earlier logits", causality},
        {"model: the second step allocates nothing", second_step_allocates_nothing},
        {"model: a step with a gradient that is not finite changes nothing", nan_step},
        {"model: a NaN in any weight is noticed", nan_weights},
    };
    return TEST_TABLE(cases, count);
}
