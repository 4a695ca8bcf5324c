/* test_torch.c: the whole model on the linked backend against PyTorch, by the fixtures of
 * dev/ref/model_ref.py: logits, loss, gradients, ten steps of training. Knows the model, not the
 * backend. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/test/fixture.h"
#include "dev/test/tensor.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

static const char *const fixtures[] = {
    "gpt2", "paper", "rope", "scale", "qknorm", "diff", "plain", "all"};

static double fixture_logits_error(const Fixture *f, const ModelConfig *c) {
    Rig r;
    size_t n;
    rig_open(&r, c, f->B, 1);
    fixture_load_weights(f, &r);
    model_forward(&r.m, f->inputs, f->B, c->T);
    float *got = rig_logits(&r, f->B * c->T), *want = fixture_result(f, "logits", &n);
    const double error = rig_difference(got, want, n);
    free(got), free(want);
    rig_close(&r);
    return error;
}

/* Planted: each changes the model, more where narrow activations hide what is little. */
enum { WRONG_MODELS = 10 };
static ModelConfig wrong_model(const ModelConfig *right, int which) {
    const bool narrow = ACT_U > 0;
    ModelConfig c = *right;
    switch (which) {
    case 0:
        c.norm_eps += narrow ? 1.0f : 1e-3f;
        break;
    case 1:
        c.embed_scale = !c.embed_scale;
        break;
    case 2:
        c.attn_cap = narrow ? 1.0f : c.attn_cap > 0 ? 0 : 30;
        break;
    case 3:
        c.logit_cap = narrow ? 2.0f : c.logit_cap > 0 ? 0 : 30;
        break;
    case 4:
        c.act = c.act == ACT_GELU ? ACT_RELU : ACT_GELU;
        break;
    case 5:
        c.pos = c.pos == POS_SINUSOID ? POS_NONE : POS_SINUSOID;
        break;
    case 6:
        c.temperature *= narrow ? 3 : 1.01f;
        break;
    case 7:
        c.qk_norm = false;
        break;
    case 8:
        c.per_dim_scale = false;
        break;
    case 9: /* one step down */
        c.diff = c.diff && !c.diff_plain, c.diff_plain = c.diff;
        break;
    }
    return c;
}

/* A learned table would be missing; what is off cannot be left out. */
static bool may_be_wrong(const ModelConfig *c, int which) {
    if (which == 5) return c->pos != POS_LEARNED;
    if (which == 7) return c->qk_norm;
    if (which == 8) return c->per_dim_scale;
    return which != 9 || c->diff;
}

static void logits_equal(Test *t) {
    for (int i = 0; i < COUNT(fixtures); i++) {
        Fixture f;
        fixture_open(&f, fixtures[i]);
        const double tol = rig_error(&f.config, false);
        const double error = fixture_logits_error(&f, &f.config);
        CHECK(t, error <= tol, "%s: logits are off by %.3g, %.3g allowed", fixtures[i], error, tol);
        for (int k = 0; k < WRONG_MODELS; k++) {
            if (!may_be_wrong(&f.config, k)) continue;
            const ModelConfig wrong = wrong_model(&f.config, k);
            const double wrong_error = fixture_logits_error(&f, &wrong);
            CHECK(t, wrong_error > tol, "%s: planted error %d passes with %.3g", fixtures[i], k,
                wrong_error);
        }
        fixture_close(&f);
    }
}

/* Of a gradient. Narrow, with relu: where rounding changes the sign of its argument, the gradient
 * of one unit and token comes or goes. An argument that is off by e of its size does so with
 * probability e / pi; of m arguments f = m e / pi, or three deviations of that number more. Half of
 * the m hold a gradient: the squares of the errors are f / (m / 2) of all squares. */
static double gradient_error(const ModelConfig *c, int tokens) {
    const double e = rig_error(c, true), m = (double)tokens * c->F;
    if (ACT_U == 0 || c->act != ACT_RELU) return e;
    const double flips = m * rig_error(c, false) / M_PI;
    return sqrt(e * e + (flips + 3 * sqrt(flips)) / (m / 2));
}

/* Float: one element is wrong. Narrow: the second half is missing. */
static void plant_gradient(float *got, const float *want, size_t n) {
    if (ACT_U > 0)
        memset(got + n / 2, 0, (n - n / 2) * sizeof *got);
    else
        got[n / 2] += 0.001f * fabsf(want[n / 2]) + 2e-4f;
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
        const double tol = gradient_error(&f.config, f.B * f.config.T);
        float *losses = fixture_result(&f, "loss", &n);
        CHECK_NEAR(t, loss, (double)losses[0], rig_error(&f.config, false) * loss);
        float *grads = rig_floats(&r, r.m.grads, r.m.table.elements);
        for (int p = 0; p < r.m.table.count; p++) {
            const ParamInfo *info = &r.m.table.rows[p];
            float *want = fixture_param(&f, "grad.", info), *got = grads + info->offset;
            const double error = rig_difference(got, want, info->logical);
            CHECK(t, error <= tol, "%s: gradient of %s, layer %d, is off by %.3g, %.3g allowed",
                fixtures[i], info->name, info->layer, error, tol);
            plant_gradient(got, want, info->logical);
            CHECK(t, rig_difference(got, want, info->logical) > tol, "%s: a planted error passes",
                info->name);
            free(want);
        }
        free(losses), free(grads);
        rig_close(&r);
        fixture_close(&f);
    }
}

/* Sums of the squares of got - want, and of how far the weights moved, want - start. */
typedef struct Displacement {
    double off, moved;
} Displacement;

static Displacement displacement(
    const float *got, const float *want, const float *start, size_t n) {
    Displacement d = {0, 0};
    for (size_t i = 0; i < n; i++) {
        d.off += pow((double)got[i] - (double)want[i], 2);
        d.moved += pow((double)want[i] - (double)start[i], 2);
    }
    return d;
}

/* Trains for f->steps; losses and norms (steps) are written; returns the error of how far the
 * weights moved, of the worst tensor; narrow: of all of them together. */
static double train_fixture(const Fixture *f, double *losses, double *norms) {
    Rig r;
    double worst = 0;
    Displacement all = {0, 0};
    const int BT = f->B * f->config.T;
    rig_open(&r, &f->config, f->B, 1);
    fixture_load_weights(f, &r);
    for (int s = 0; s < f->steps; s++) {
        const int32_t *inputs = f->inputs + s * BT, *targets = f->targets + s * BT;
        AdamArgs a = f->adam;
        a.lr = (float)schedule_lr(&f->schedule, s);
        losses[s] = rig_gradients(&r, inputs, targets, f->B, f->config.T, f->B);
        rig_step(&r, &a);
        norms[s] = sqrt(optim_read(&r.o, r.be).grad_sumsq);
    }
    for (int p = 0; p < r.m.table.count; p++) {
        const ParamInfo *info = &r.m.table.rows[p];
        float *got = rig_floats(&r, r.m.master + info->offset, info->logical);
        float *want = fixture_param(f, "final.", info), *start = fixture_param(f, "init.", info);
        const Displacement d = displacement(got, want, start, info->logical);
        worst = fmax(worst, sqrt(d.off / d.moved));
        all.off += d.off, all.moved += d.moved;
        free(got), free(want), free(start);
    }
    rig_close(&r);
    return ACT_U > 0 ? sqrt(all.off / all.moved) : worst;
}

/* Float: an update is a ratio of moments of the gradient, so its relative error is that of the
 * gradient; ten steps add ten. Narrow: Adam's first update is the sign of the gradient. Of
 * gradients that are off by e, a share of e / pi has the wrong sign, and an update that is off by
 * 2: squares of 4 e / pi in all. Later updates, ratios of means, are off by less. */
static double training_error(const Fixture *f) {
    const double e = rig_error(&f->config, true);
    return ACT_U > 0 ? sqrt(4 * e / M_PI) : f->steps * e;
}

/* Planted: more where narrow activations hide what is little. */
enum { WRONG_TRAININGS = 5 };
static Fixture wrong_training(const Fixture *right, int which) {
    const bool narrow = ACT_U > 0;
    Fixture f = *right;
    switch (which) {
    case 0:
        f.adam.weight_decay = narrow ? 1 : 0;
        break;
    case 1:
        f.adam.grad_clip = narrow ? 0.01f : 0;
        break;
    case 2:
        f.adam.beta2 = narrow ? 0.25f : 0.999f;
        break;
    case 3:
        f.schedule.kind = narrow ? SCHEDULE_CONSTANT : SCHEDULE_LINEAR;
        f.schedule.peak *= narrow ? 1.5 : 1;
        break;
    case 4:
        f.adam.eps = narrow ? 1e-2f : 1e-8f;
        break;
    }
    return f;
}

static void ten_steps_equal(Test *t) {
    enum { MOST = 16 };
    for (int i = 0; i < COUNT(fixtures); i++) {
        Fixture f;
        size_t n;
        double losses[MOST], norms[MOST], ignored[MOST];
        fixture_open(&f, fixtures[i]);
        REQUIRE(f.steps <= MOST, "%d steps", f.steps);
        const double tol = training_error(&f);
        const double loss_tol = ACT_U > 0 ? rig_error(&f.config, false) : tol;
        const double norm_tol = ACT_U > 0 ? rig_error(&f.config, true) : tol;
        const double error = train_fixture(&f, losses, norms);
        CHECK(
            t, error <= tol, "%s: displacement off by %.3g, %.3g allowed", fixtures[i], error, tol);
        float *want = fixture_result(&f, "loss", &n);
        float *want_norms = fixture_result(&f, "grad_norm", &n);
        for (int s = 0; s < f.steps; s++) {
            CHECK_NEAR(t, losses[s], (double)want[s], loss_tol * losses[s]);
            CHECK_NEAR(t, norms[s], (double)want_norms[s], norm_tol * norms[s]);
        }
        for (int k = 0; k < WRONG_TRAININGS; k++) {
            if (bench_emulated() && k % COUNT(fixtures) != i) continue; /* each once */
            const Fixture wrong = wrong_training(&f, k);
            const double wrong_error = train_fixture(&wrong, ignored, ignored);
            CHECK(t, wrong_error > tol, "%s: planted error %d passes with %.3g", fixtures[i], k,
                wrong_error);
        }
        free(want), free(want_norms);
        fixture_close(&f);
    }
}

const TestCase *test_torch(int *count) {
    static const TestCase cases[] = {
        {"model: logits equal PyTorch's, planted errors are found", logits_equal},
        {"model: loss and every gradient equal PyTorch's", gradients_equal},
        {"model: losses, norms and weights of ten AdamW steps equal PyTorch's", ten_steps_equal},
    };
    return TEST_TABLE(cases, count);
}
