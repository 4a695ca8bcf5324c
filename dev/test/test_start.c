/* test_start.c: a model before its first step: counts, memory, tables, initial weights. Knows the
 * model and its options, not the backend. */
#include <math.h>
#include <stdlib.h>

#include "dev/test/fixture.h"
#include "dev/test/tensor.h"
#include "dev/test/test.h"
#include "laser/base.h"
#include "laser/config.h"
#include "laser/plan.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

/* The formula in float, rounded to what the table is stored as. */
static void check_sinusoid(Test *t, float got, double want, double angle) {
    CHECK_NEAR(t, (double)got, want, 1e-7 * (1 + angle) + ACT_U * fabs(want));
}

static void sinusoids(Test *t) {
    const ModelConfig c = rig_small_config();
    Rig r;
    rig_open(&r, &c, 1, 1);
    float *table = xcalloc((size_t)(c.T * c.C), sizeof *table);
    backend_download_act(r.be, table, r.m.pos, (size_t)(c.T * c.C));
    for (int pos = 0; pos < c.T; pos++) {
        for (int i = 0; i < c.C / 2; i++) {
            const double angle = pos * pow(1e4, -(double)i / (c.C / 2 - 1));
            check_sinusoid(t, table[pos * c.C + i], sin(angle), angle);
            check_sinusoid(t, table[pos * c.C + c.C / 2 + i], cos(angle), angle);
        }
    }
    free(table);
    rig_close(&r);
}

static Config parse(const char *model) {
    char program[] = "train", option[] = "--model", name[32], plan[] = "--plan";
    format(name, sizeof name, "%s", model);
    char *argv[] = {program, option, name, plan, NULL};
    Config c;
    config_parse(&c, 4, argv);
    return c;
}

static void preset_counts(Test *t) {
    /* bare: matrices and the tied embedding, in parameters; whole: with biases, norms, positions */
    static const struct {
        const char *name;
        int64_t bare, whole;
    } want[] = {
        {"234M", 234094592, -1},
        {"301M", 301203456, -1},
        {"435M", 435421184, -1},
        {"1.1B", 1139277824, -1},
        {"2.2B", 2213019648, -1},
        {"7.7B", 7732899840, -1},
        {"gpt2-124M", -1, 124439808},
        {"gpt2-350M", -1, 354823168},
        {"gpt2-774M", -1, 774030080},
        {"gpt2-1558M", -1, 1557611200},
    };
    for (int i = 0; i < COUNT(want); i++) {
        Config c = parse(want[i].name);
        const ModelConfig m = config_model(&c, 0);
        if (want[i].bare >= 0) CHECK_INT(t, model_parameters_bare(&m), want[i].bare);
        if (want[i].whole >= 0) CHECK_INT(t, model_parameters(&m), want[i].whole);
        free(c.command_line);
    }
}

static void plan_is_what_is_taken(Test *t) {
    for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_BLOCK; recompute++) {
        ModelConfig c = rig_small_config();
        c.L = 4, c.recompute = (Recompute)recompute;
        MemoryPlan plan;
        Rig r;
        const BackendOptions options = bench_options(2);
        const ParallelOptions alone = {.micro_steps = 1};
        const PlanShape shape = {&c, 3, 1, &alone, &options};
        const size_t total = plan_memory(&shape, &plan);
        CHECK_INT(t, total,
            plan.weights + plan.master + plan.gradients + plan.optimizer + plan.activations +
                plan.scratch + plan.network + plan.overhead);
        rig_open(&r, &c, 3, 1);
        const size_t n = r.m.table.elements;
        CHECK_INT(t, plan.activations, r.m.acts_plan.bytes);
        CHECK_INT(t, plan.weights, n * sizeof(act_t));
        CHECK_INT(t, plan.gradients, n * sizeof(float));
        CHECK_INT(t, plan.optimizer, optim_bytes(&r.m.table, n, false));
        CHECK(t, plan.optimizer >= 2 * n * sizeof(float), "%zu for %zu", plan.optimizer, n);
        rig_close(&r);
    }
}

/* Every matrix has mean 0 and the deviation of its law, as far as a sample of its size tells (5
 * sigma). */
static void initial_weights(Test *t) {
    for (int init = INIT_PAX; init <= INIT_GPT2; init++) {
        ModelConfig c = rig_small_config();
        c.init = (Init)init;
        Rig r;
        rig_open(&r, &c, 1, 1);
        model_init(&r.m, 3);
        const double C = c.C, H = c.H, HD = c.HD, F = c.F;
        const double pax[] = {1 / sqrt(C), sqrt(2 / (3 * C * (H + HD))), sqrt(2 / (C * (H + HD))),
            sqrt(2 / (C + F)), sqrt(2 / (C + F))};
        const double gpt2[] = {0.02, 0.02, 0.02 / sqrt(2 * c.L), 0.02, 0.02 / sqrt(2 * c.L)};
        const ParamId ids[] = {P_wte, P_qkvw, P_projw, P_fc1w, P_fc2w};
        for (int i = 0; i < r.m.table.count; i++) {
            const ParamInfo *p = &r.m.table.rows[i];
            float *x = rig_floats(&r, r.m.master + p->offset, p->count);
            double sum = 0, squares = 0, std = 0;
            for (size_t k = 0; k < p->logical; k++) sum += (double)x[k];
            for (size_t k = 0; k < p->logical; k++) squares += pow((double)x[k], 2);
            for (int k = 0; k < COUNT(ids); k++) {
                if (ids[k] == p->id) std = init == INIT_PAX ? pax[k] : gpt2[k];
            }
            const double n = (double)p->logical;
            if (std > 0) {
                CHECK_NEAR(t, sum / n, 0, 5 * std / sqrt(n));
                CHECK_NEAR(t, sqrt(squares / n), std, 5 * std / sqrt(2 * n));
            } else {
                CHECK_NEAR(t, sum, n * (double)p->center, 0);
            }
            for (size_t k = p->logical; k < p->count; k++) CHECK(t, x[k] == 0, "padding %zu", k);
            free(x);
        }
        rig_close(&r);
    }
}

const TestCase *test_start(int *count) {
    static const TestCase cases[] = {
        {"start: the table of sinusoids is the formula", sinusoids},
        {"start: presets have the published numbers of parameters", preset_counts},
        {"start: the memory that is planned is the memory that is taken", plan_is_what_is_taken},
        {"start: initial weights follow their law", initial_weights},
    };
    return TEST_TABLE(cases, count);
}
