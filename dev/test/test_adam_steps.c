/* test_adam_steps.c: ten steps of AdamW and LAMB on the linked backend against numpy, by the
 * fixture of dev/ref/optim_ref.py; and which elements of a model share a norm. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/ops_ref.h"
#include "dev/test/fixture.h"
#include "dev/test/optim_cases.h"
#include "laser/config.h"
#include "laser/rng.h"

static const BackendLimits limits = {1, 1, 1, 1, 1, 1, 1, 2, false};
static const char *const cases[] = {
    "adamw", "adamw_clipped", "lamb", "lamb_matrices", "lamb_no_decay", "lamb_clipped"};

enum { MOST = 16 }; /* tensors */
typedef struct Problem {
    StFile file;
    int tensors, steps;
    size_t n; /* elements of the arena in which they lie, whole blocks */
    OptRange ranges[MOST];
    bool matrix[MOST];
    float *rates, *init, *grads; /* (steps), (n), (steps, n) */
} Problem;

static void *problem_read(const Problem *p, const char *name, StType type, size_t *count) {
    const StTensor *t = st_find(&p->file, name);
    REQUIRE(t && t->type == type, "%s in %s", name, p->file.path);
    void *x = xcalloc(t->end - t->begin, 1);
    st_read(&p->file, t, x);
    *count = (t->end - t->begin) / st_type_bytes(type);
    return x;
}

/* The tensors of `rows` arrays, which a file has one behind the other, at their places in as many
 * arenas; frees packed. */
static float *spread(const Problem *p, float *packed, size_t rows) {
    float *arenas = xcalloc(rows * p->n, sizeof *arenas), *from = packed;
    for (size_t r = 0; r < rows; r++)
        for (int i = 0; i < p->tensors; i++) {
            const OptRange *x = &p->ranges[i];
            memcpy(arenas + r * p->n + x->offset, from, x->count * sizeof *from);
            from += x->count;
        }
    free(packed);
    return arenas;
}

static void problem_open(Problem *p) {
    size_t count, total, all = 0;
    memset(p, 0, sizeof *p);
    st_open(&p->file, "dev/ref/fixtures/optim.safetensors");
    int64_t *table = problem_read(p, "tensors", ST_I64, &count);
    p->tensors = (int)count / 3;
    REQUIRE(p->tensors <= MOST, "%d tensors", p->tensors);
    for (int i = 0; i < p->tensors; i++) {
        const size_t n = (size_t)table[3 * i];
        p->ranges[i] =
            (OptRange){.offset = p->n, .count = n, .decay = 1, .center = (float)table[3 * i + 2]};
        p->matrix[i] = table[3 * i + 1] != 0;
        p->n += (n + 15) / 16 * 16, all += n;
    }
    p->n = (p->n + OPT_BLOCK - 1) / OPT_BLOCK * OPT_BLOCK;
    free(table);
    p->rates = problem_read(p, "rates", ST_F32, &count);
    p->steps = (int)count;
    p->init = problem_read(p, "init", ST_F32, &count);
    p->grads = problem_read(p, "grads", ST_F32, &total);
    REQUIRE(count == all && total == count * (size_t)p->steps, "%zu, %zu", count, total);
    p->init = spread(p, p->init, 1);
    p->grads = spread(p, p->grads, (size_t)p->steps);
}

static void problem_close(Problem *p) {
    st_close(&p->file);
    free(p->rates), free(p->init), free(p->grads);
}

/* Options of a case; the ranges' decay is set. */
static AdamArgs case_open(Problem *p, const char *name) {
    char full[64];
    size_t count;
    format(full, sizeof full, "%s.options", name);
    float *x = problem_read(p, full, ST_F32, &count);
    REQUIRE(count == 8, "%zu options", count);
    AdamArgs a = {.beta1 = x[0], .beta2 = x[1], .eps = x[2], .weight_decay = x[3]};
    a.grad_clip = x[4], a.update_clip = x[5], a.lamb = x[6] != 0;
    for (int i = 0; i < p->tensors; i++) p->ranges[i].decay = x[7] != 0 || p->matrix[i];
    free(x);
    return a;
}

/* The first `steps` steps; b->tensors are then weights, master, m, v and the last gradients. */
static void steps_run(Bench *b, const Problem *p, const AdamArgs *args, int steps) {
    enum { PARAMS, MASTER, M, V, GRADS };
    const size_t n = p->n;
    Tables tables;
    double *zeros = bench_doubles(b, n), *init = bench_doubles(b, n);
    for (size_t i = 0; i < n; i++) init[i] = (double)p->init[i];
    bench_output(b, TENSOR_ACT, n);
    bench_values(b, TENSOR_FLOAT, init, n);
    for (int i = M; i <= GRADS; i++) bench_values(b, TENSOR_FLOAT, zeros, n);
    const Tensor *at = b->tensors;
    float *grads = tensor_float(&at[GRADS]);
    tables_open(b, &tables, p->ranges, p->tensors, n);
    tables.x.params = tensor_act(&at[PARAMS]);
    tables.x.master = tensor_float(&at[MASTER]);
    tables.x.m = tensor_float(&at[M]), tables.x.v = tensor_float(&at[V]);
    tables.x.grads = grads;
    for (int k = 0; k < steps; k++) {
        AdamArgs a = *args;
        a.lr = p->rates[k];
        backend_upload(b->be, grads, p->grads + (size_t)k * n, n * sizeof *grads);
        tables_decide(b, &tables);
        tables_update(b, &tables, &a);
    }
    CHECK_INT(b->t, state_read(b, tables.state).updates, steps);
    tables_close(b, &tables);
}

/* ---- the oracle, rightly and with planted errors --------------------------------------------- */

typedef enum Plant {
    RIGHT,
    ARENA_TRUST,   /* one trust ratio for all tensors */
    CLIPPED_TRUST, /* at most 10, as You et al. have it */
    OUTSIDE_DECAY, /* decay is added after the update was scaled */
    ZERO_TRUST,    /* a tensor that is 0 stays 0 */
    NO_TRUST,      /* always 1 */
    WHOLE_TRUST,   /* the norm of master counts, not that of master - center */
    ARENA_SHRINK,  /* one root mean square for all tensors */
    NO_SHRINK,     /* updates are not clipped */
    PLANTS
} Plant;
static const char *const plant_names[] = {"none", "one trust ratio for all tensors",
    "trust ratio of at most 10", "decay outside of the trust ratio",
    "trust ratio 0 of a zero tensor", "no trust ratio", "trust ratio by the norm of 1 + w",
    "one mean square for all tensors", "updates not clipped"};

typedef struct Norms {
    double held, moved, elements; /* squares of master - center, of the update; how many */
} Norms;

/* One tensor of the oracle's state; tol as in ref_adamw, NULL where nobody asks. */
typedef struct Part {
    double *master, *m, *v, *tol;
    const double *grads;
    size_t n;
} Part;

/* What the next step would move it by if the rate and all ratios were 1, without changing it. */
static Norms probe(const Part *x, const RefAdam *rule) {
    const size_t bytes = x->n * sizeof(double);
    RefAdam a = *rule;
    Norms norms = {0, 0, (double)x->n};
    double *master = xcalloc(3 * x->n, sizeof *master), *m = master + x->n, *v = m + x->n;
    memcpy(master, x->master, bytes), memcpy(m, x->m, bytes), memcpy(v, x->v, bytes);
    a.lr = 1, a.trust = 1;
    ref_adamw(master, m, v, NULL, x->grads, x->n, &a);
    for (size_t i = 0; i < x->n; i++) {
        norms.moved += pow(x->master[i] - master[i], 2);
        norms.held += pow(x->master[i] - a.center, 2);
    }
    free(master);
    return norms;
}

static double trust_of(Norms x) {
    return x.held > 0 && x.moved > 0 ? sqrt(x.held / x.moved) : 1;
}

static double shrink_of(Norms x, double clip) {
    return 1 / fmax(1, sqrt(x.moved / x.elements) / clip);
}

/* The rule that a planted error makes of the right one. all: norms over all tensors, of the update
 * with decay for trust ratios, without for clipping. */
static RefAdam planted(Plant plant, const RefAdam *right, const Part *x, Norms all) {
    RefAdam a = *right, bare = *right;
    bare.weight_decay = 0;
    Norms own = probe(x, right);
    switch (plant) {
    case ARENA_TRUST:
        a.trust = trust_of(all);
        break;
    case CLIPPED_TRUST:
        a.trust = fmin(trust_of(own), 10);
        break;
    case OUTSIDE_DECAY:
        a.trust = trust_of(probe(x, &bare));
        a.decay /= a.trust;
        break;
    case ZERO_TRUST:
        if (own.held <= 0) a.trust = 1e-300; /* 0 would be the right one */
        break;
    case NO_TRUST:
        a.trust = 1;
        break;
    case WHOLE_TRUST:
        own.held = 0;
        for (size_t i = 0; i < x->n; i++) own.held += x->master[i] * x->master[i];
        a.trust = trust_of(own);
        break;
    case ARENA_SHRINK:
        a.shrink = shrink_of(all, a.update_clip);
        break;
    case NO_SHRINK:
        a.shrink = 1;
        break;
    case RIGHT:
    case PLANTS:
        break;
    }
    return a;
}

typedef struct Oracle {
    double *master, *m, *v, *grads, *tol; /* (n), tol (3, count) for each tensor in turn */
} Oracle;

static Part part_of(const Oracle *o, const OptRange *r) {
    return (Part){o->master + r->offset, o->m + r->offset, o->v + r->offset, o->tol + 3 * r->offset,
        o->grads + r->offset, r->count};
}

static void oracle_step(const Oracle *o, const Problem *p, const RefAdam *base, Plant plant) {
    RefAdam rules[MOST];
    Norms all = {0, 0, 0};
    for (int i = 0; i < p->tensors; i++) {
        const Part x = part_of(o, &p->ranges[i]);
        RefAdam a = *base;
        a.decay = (double)p->ranges[i].decay, a.center = (double)p->ranges[i].center;
        rules[i] = a;
        if (plant == ARENA_SHRINK) a.weight_decay = a.update_clip = 0;
        const Norms own = probe(&x, &a);
        all.held += own.held, all.moved += own.moved, all.elements += own.elements;
    }
    for (int i = 0; i < p->tensors; i++) {
        const Part x = part_of(o, &p->ranges[i]);
        const RefAdam a = planted(plant, &rules[i], &x, all);
        ref_adamw(x.master, x.m, x.v, x.tol, x.grads, x.n, &a);
    }
}

/* master (n) after `steps` steps, and how far a backend's may be off; of b. */
static double *oracle_run(
    Bench *b, const Problem *p, const AdamArgs *a, int steps, Plant plant, double **tol) {
    const size_t n = p->n;
    const Oracle o = {bench_doubles(b, n), bench_doubles(b, n), bench_doubles(b, n),
        bench_doubles(b, n), bench_doubles(b, 3 * n)};
    for (size_t i = 0; i < n; i++) o.master[i] = (double)p->init[i];
    RefAdam rule = {.beta1 = (double)a->beta1, .beta2 = (double)a->beta2, .eps = (double)a->eps};
    rule.weight_decay = (double)a->weight_decay, rule.grad_clip = (double)a->grad_clip;
    rule.update_clip = (double)a->update_clip, rule.lamb = a->lamb;
    for (int k = 0; k < steps; k++) {
        rule.t = k + 1, rule.lr = (double)p->rates[k], rule.grad_sumsq = 0;
        for (size_t i = 0; i < n; i++) {
            o.grads[i] = (double)p->grads[(size_t)k * n + i];
            rule.grad_sumsq += o.grads[i] * o.grads[i];
        }
        oracle_step(&o, p, &rule, plant);
    }
    *tol = bench_doubles(b, n);
    for (int i = 0; i < p->tensors; i++) {
        const OptRange *r = &p->ranges[i];
        memcpy(*tol + r->offset, o.tol + 3 * r->offset, r->count * sizeof **tol);
    }
    return o.master;
}

/* Whether an error in how norms are used shows in this case. */
static bool shows(Plant plant, const AdamArgs *a) {
    if (plant == ARENA_SHRINK || plant == NO_SHRINK) return a->update_clip > 0;
    if (plant == CLIPPED_TRUST) return a->lamb && a->weight_decay * 10 < 1; /* trust < 1 / decay */
    return a->lamb && (plant != OUTSIDE_DECAY || a->weight_decay > 0);
}

static void check_steps(Test *t, Problem *p, const char *name, int steps) {
    char full[64];
    size_t count;
    Bench b;
    bench_open(&b, t, name, &limits, 2);
    const AdamArgs a = case_open(p, name);
    steps_run(&b, p, &a, steps);
    format(full, sizeof full, "%s.%s", name, steps == 1 ? "first" : "final");
    float *numpy = spread(p, problem_read(p, full, ST_F32, &count), 1);
    double *tol, *ignored, *oracle = oracle_run(&b, p, &a, steps, RIGHT, &tol);
    double *want = bench_doubles(&b, p->n);
    for (size_t i = 0; i < p->n; i++) {
        want[i] = (double)numpy[i];
        /* two programs in float64, one of which was rounded to float */
        CHECK_NEAR(t, oracle[i], want[i], REF_U * fabs(want[i]) + 1e-12);
    }
    const Tensor *master = &b.tensors[1];
    bench_compare(&b, full, master, want, tol);
    for (Plant plant = RIGHT + 1; steps > 1 && plant < PLANTS; plant++) {
        if (!shows(plant, &a)) continue;
        const double *wrong = oracle_run(&b, p, &a, steps, plant, &ignored);
        bench_compare_planted(&b, plant_names[plant], master, wrong, tol);
    }
    free(numpy);
    bench_close(&b);
}

void test_adam_ten_steps(Test *t) {
    Problem p;
    problem_open(&p);
    for (int i = 0; i < COUNT(cases); i++) {
        check_steps(t, &p, cases[i], 1);
        check_steps(t, &p, cases[i], p.steps);
    }
    problem_close(&p);
}

/* ---- a model's tensors ----------------------------------------------------------------------- */

static AdamArgs args_of(const char *optimizer, const char *clip) {
    const char *argv[] = {"train", "--plan", "--optimizer", optimizer, "--update-clip", clip,
        "--eps", "1e-3", "--grad-clip", "0", "--weight-decay", "0", "--lr", "0.01"};
    Config c;
    config_parse(&c, COUNT(argv), (char **)argv);
    AdamArgs a = optim_args(&c);
    a.lr = (float)c.lr;
    free(c.command_line);
    return a;
}

/* Gradients whose size grows from tensor to tensor and is about eps, where updates have a size of
 * their own; 0 in the padding. */
static float *graded_gradients(const ParamTable *t, float eps) {
    float *g = xcalloc(t->elements, sizeof *g);
    for (int r = 0; r < t->count; r++) {
        const ParamInfo *p = &t->rows[r];
        const double std = (double)eps * (0.2 + 0.3 * r);
        for (size_t i = 0; i < p->logical; i++)
            g[p->offset + i] = (float)(std * rng_normal(9, RNG_TEST, (uint64_t)r << 32 | i));
    }
    return g;
}

/* Of one tensor and the first step: root mean squares of what it was (less its center), of the
 * update as Adam has it, and of how far it moved, over the rate. */
typedef struct Moved {
    double held, adam, moved, tol; /* tol: of moved */
} Moved;

static Moved moved_of(const ParamInfo *p, const float *start, const float *end, const float *grads,
    const AdamArgs *a) {
    const double lr = (double)a->lr, n = (double)p->logical;
    Moved x = {0, 0, 0, 0};
    double size = 0;
    for (size_t i = p->offset; i < p->offset + p->logical; i++) {
        const double g = (double)grads[i];
        x.held += pow((double)start[i] - (double)p->center, 2) / n;
        x.adam += pow(g / (fabs(g) + (double)a->eps), 2) / n;
        x.moved += pow(((double)end[i] - (double)start[i]) / lr, 2) / n;
        size += pow(fabs((double)start[i]) + fabs((double)end[i]), 2) / n;
    }
    x.held = sqrt(x.held), x.adam = sqrt(x.adam), x.moved = sqrt(x.moved);
    x.tol = REF_U * sqrt(size) / lr + 64 * REF_U * x.moved; /* storage; arithmetic */
    return x;
}

/* What x would move by if its norms were y's. */
static double expected(Moved x, Moved y, const AdamArgs *a) {
    if (a->lamb) return y.held > 0 ? x.adam * y.held / y.adam : x.adam;
    return x.adam * fmin(1, (double)a->update_clip / y.adam);
}

static Moved together(Moved x, Moved y) {
    return (Moved){.held = hypot(x.held, y.held), .adam = hypot(x.adam, y.adam)};
}

static void check_tensors(Test *t, const AdamArgs *a, const ParamTable *table, const float *start,
    const float *end, const float *grads) {
    const size_t first = table->offset_of[P_qkvw], second = first + table->stride_of[P_qkvw];
    Moved qkv[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}}; /* of two layers */
    int clipped = 0;
    for (int r = 0; r < table->count; r++) {
        const ParamInfo *p = &table->rows[r];
        const Moved x = moved_of(p, start, end, grads, a);
        CHECK(t, fabs(x.moved - expected(x, x, a)) <= x.tol,
            "%s, layer %d, moved by %.9g, want %.9g within %.3g", p->name, p->layer, x.moved,
            expected(x, x, a), x.tol);
        clipped += x.adam > (double)a->update_clip;
        for (size_t i = p->offset + p->logical; i < p->offset + p->count; i++)
            CHECK(t, end[i] == 0, "padding of %s became %g", p->name, (double)end[i]);
        if (p->offset == first) qkv[0] = x;
        if (p->offset == second) qkv[1] = x;
    }
    CHECK(t, a->lamb || (clipped > 0 && clipped < table->count), "%d tensors of %d are clipped",
        clipped, table->count);
    /* planted: the norms of both layers together, or those of the other layer */
    CHECK(t, fabs(qkv[0].moved - expected(qkv[0], together(qkv[0], qkv[1]), a)) > qkv[0].tol,
        "norms over the layers would move layer 0 by as much, %g", qkv[0].moved);
    CHECK(t, fabs(qkv[0].moved - expected(qkv[0], qkv[1], a)) > qkv[0].tol,
        "norms of another layer would move layer 0 by as much, %g", qkv[0].moved);
}

void test_adam_per_tensor(Test *t) {
    for (int lamb = 0; lamb < 2; lamb++) {
        const AdamArgs a = args_of(lamb ? "lamb" : "adamw", lamb ? "0" : "0.2");
        const ModelConfig config = rig_small_config();
        Rig r;
        rig_open(&r, &config, 1, 2);
        model_init(&r.m, 5);
        const size_t n = r.m.table.elements;
        float *start = rig_floats(&r, r.m.master, n);
        float *grads = graded_gradients(&r.m.table, a.eps);
        backend_upload(r.be, r.m.grads, grads, n * sizeof *grads);
        rig_step(&r, &a);
        float *end = rig_floats(&r, r.m.master, n);
        check_tensors(t, &a, &r.m.table, start, end, grads);
        free(start), free(grads), free(end);
        rig_close(&r);
    }
}
