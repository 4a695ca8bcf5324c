/* test_shards.c: an optimizer dealt out over processes, which one process plays in turn, against
 * one that holds everything. Knows model and optimizer, and no communication: what processes add
 * up is added up here. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/test/fixture.h"
#include "dev/test/optim_cases.h"
#include "laser/rng.h"

enum { MOST = 5, STEPS = 3, SPOILED = 1 /* the step that has a gradient of NaN */ };

typedef struct ShardCase {
    const char *label;
    AdamArgs args;
} ShardCase;

static const ShardCase cases[] = {
    {"AdamW", {.lr = 1e-2f,
                  .beta1 = 0.9f,
                  .beta2 = 0.99f,
                  .eps = 1e-8f,
                  .weight_decay = 0.1f,
                  .grad_clip = 1}},
    {"LAMB", {.lr = 1e-2f,
                 .beta1 = 0.9f,
                 .beta2 = 0.99f,
                 .eps = 1e-3f,
                 .weight_decay = 0.1f,
                 .grad_clip = 1,
                 .lamb = true}},
    {"AdamW, updates clipped", {.lr = 1e-2f,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.99f,
                                   .eps = 1e-3f,
                                   .weight_decay = 0.1f,
                                   .update_clip = 0.3f}},
    {"LAMB, updates clipped", {.lr = 1e-2f,
                                  .beta1 = 0.9f,
                                  .beta2 = 0.99f,
                                  .eps = 1e-3f,
                                  .grad_clip = 2,
                                  .update_clip = 0.3f,
                                  .lamb = true}},
};

/* What the processes fail to tell each other. */
typedef enum Plant { RIGHT, SQUARES_KEPT, SUMS_KEPT, BAD_KEPT } Plant;

/* All of them on one model, whose weights and gradients are those of every process. */
typedef struct World {
    Backend *be;
    Model m;
    Optim ranks[MOST];
    int world;
    double *loss; /* (1) in backend memory */
} World;

/* Of grain g. With five, one process has nothing. */
static int owner(size_t g, int world) {
    const int rank = (int)(rng_u64(11, RNG_TEST, g) % (uint64_t)world);
    return world == MOST && rank == 3 ? 0 : rank;
}

/* Runs of grains, and an empty slice at each that is another's. */
static int slices_of(OptSlice *slices, const ParamTable *t, int rank, int world) {
    int count = 0;
    for (size_t at = 0; at < t->elements; at += PARAM_GRAIN) {
        const size_t mine = owner(at / PARAM_GRAIN, world) == rank ? PARAM_GRAIN : 0;
        OptSlice *last = count ? &slices[count - 1] : NULL;
        if (mine && last && last->count && last->begin + last->count == at)
            last->count += mine;
        else
            slices[count++] = (OptSlice){at, mine};
    }
    return count;
}

static void put(World *w, float *dst, const float *arena, const Optim *o) {
    for (int i = 0; i < o->slice_count; i++) {
        const OptSlice s = o->slices[i];
        backend_upload(w->be, dst, arena + s.begin, s.count * sizeof *dst);
        dst += s.count;
    }
}

static void world_open(World *w, const ModelConfig *c, int world, const float *start) {
    memset(w, 0, sizeof *w);
    const BackendOptions options = bench_options(world == 2 ? 2 : 1);
    const BackendLimits limits = model_limits(c, 1);
    w->be = backend_open(&options);
    w->world = world;
    backend_reserve(w->be, &limits);
    model_open(&w->m, w->be, c, 1, MODEL_DEALT_OUT, NULL);
    const ParamTable *t = &w->m.table;
    backend_upload_act(w->be, w->m.params, start, t->elements);
    w->loss = backend_alloc(w->be, sizeof *w->loss);
    OptSlice *slices = xcalloc(t->elements / PARAM_GRAIN, sizeof *slices);
    for (int r = 0; r < world; r++) {
        Optim *o = &w->ranks[r];
        const OptShard shard = {slices, slices_of(slices, t, r, world)};
        optim_open(o, &w->m, &(OptimOptions){.shard = &shard, .norms = true});
        if ((void *)o->master != (void *)w->m.params) put(w, o->master, start, o);
    }
    free(slices);
}

static void world_close(World *w) {
    for (int r = 0; r < w->world; r++) optim_close(&w->ranks[r], &w->m);
    backend_free(w->be, w->loss);
    model_close(&w->m);
    backend_close(w->be);
}

/* of[rank] (n) in backend memory becomes the sum over the ranks; left as it is from `kept` on. */
static void add_up(World *w, double *const *of, size_t n, size_t kept) {
    double *sum = xcalloc(n, sizeof *sum), *one = xcalloc(n, sizeof *one);
    for (int r = 0; r < w->world; r++) {
        backend_download(w->be, one, of[r], n * sizeof *one);
        for (size_t i = 0; i < n; i++) sum[i] += one[i];
    }
    for (int r = 0; r < w->world; r++) backend_upload(w->be, of[r], sum, kept * sizeof *sum);
    free(sum), free(one);
}

static void world_step(World *w, const float *grads, const AdamArgs *a, Plant plant) {
    const size_t n = w->m.table.elements;
    const Optim *any = &w->ranks[0];
    double *measures[MOST], *sums[MOST];
    backend_upload(w->be, w->m.grads, grads, n * sizeof *grads);
    for (int r = 0; r < w->world; r++) {
        measures[r] = w->ranks[r].squares, sums[r] = (double *)w->ranks[r].sums;
        optim_measure(&w->ranks[r], &w->m);
    }
    const size_t all = optim_measures(any);
    add_up(w, measures, all, plant == SQUARES_KEPT ? 0 : plant == BAD_KEPT ? all - 1 : all);
    for (int r = 0; r < w->world; r++) optim_decide(&w->ranks[r], &w->m, w->loss, 1);
    for (int r = 0; r < w->world && optim_needs_norms(a); r++) optim_sums(&w->ranks[r], &w->m, a);
    const size_t doubles = optim_slots(any) * sizeof(OptSums) / sizeof(double);
    if (optim_needs_norms(a)) add_up(w, sums, doubles, plant == SUMS_KEPT ? 0 : doubles);
    for (int r = 0; r < w->world; r++) optim_apply(&w->ranks[r], &w->m, a);
}

/* ---- against one process --------------------------------------------------------------------- */

/* What is trained; the gradients are of a size that any of the clips meets, 0 in the padding. */
typedef struct Problem {
    ModelConfig config;
    size_t n; /* elements of the arena */
    float *grads[STEPS];
} Problem;

static void problem_open(Problem *p, const ModelConfig *c) {
    ParamTable t;
    param_table_build(&t, c);
    p->config = *c, p->n = t.elements;
    for (int step = 0; step < STEPS; step++) {
        float *g = p->grads[step] = xcalloc(p->n, sizeof *g);
        for (int i = 0; i < t.count; i++) {
            const ParamInfo *of = &t.rows[i];
            const uint64_t stream = (uint64_t)(1 + step * t.count + i) << 32;
            for (size_t k = 0; k < of->logical; k++)
                g[of->offset + k] = (float)(3e-2 * rng_normal(9, RNG_TEST, stream | k));
        }
    }
    p->grads[SPOILED][t.rows[t.count - 1].offset] = NAN;
    param_table_free(&t);
}

static void problem_close(Problem *p) {
    for (int step = 0; step < STEPS; step++) free(p->grads[step]);
}

/* What one process starts from and arrives at: (n) each. */
typedef struct Arenas {
    float *start, *master, *m, *v;
    act_t *params;
    StepState state;
} Arenas;

static Arenas whole_run(const Problem *p, const AdamArgs *a) {
    Rig r;
    Arenas x;
    rig_open(&r, &p->config, 1, 1);
    model_init(&r.m, 5);
    x.start = rig_floats(&r, r.m.master, p->n);
    for (int step = 0; step < STEPS; step++) {
        backend_upload(r.be, r.m.grads, p->grads[step], p->n * sizeof(float));
        rig_step(&r, a);
    }
    x.master = rig_floats(&r, r.m.master, p->n);
    x.m = rig_floats(&r, r.o.m, p->n), x.v = rig_floats(&r, r.o.v, p->n);
    x.params = xcalloc(p->n, sizeof *x.params);
    backend_download(r.be, x.params, r.m.params, p->n * sizeof *x.params);
    x.state = optim_read(&r.o, r.be);
    rig_close(&r);
    return x;
}

static void arenas_free(Arenas *x) {
    free(x->start), free(x->master), free(x->m), free(x->v), free(x->params);
}

/* Elements of a rank's slices that differ in any bit. */
static size_t differing(World *w, const Optim *o, const float *held, const float *arena) {
    size_t wrong = 0;
    for (int i = 0; i < o->slice_count; i++) {
        const OptSlice s = o->slices[i];
        float *got = xcalloc(s.count, sizeof *got);
        backend_download(w->be, got, held, s.count * sizeof *got);
        for (size_t k = 0; k < s.count; k++)
            wrong += memcmp(&got[k], &arena[s.begin + k], sizeof *got) != 0;
        free(got);
        held += s.count;
    }
    return wrong;
}

static size_t all_differing(World *w, const Arenas *want) {
    const size_t n = w->m.table.elements;
    size_t wrong = 0;
    act_t *params = xcalloc(n, sizeof *params);
    backend_download(w->be, params, w->m.params, n * sizeof *params);
    for (size_t i = 0; i < n; i++)
        wrong += memcmp(&params[i], &want->params[i], sizeof *params) != 0;
    free(params);
    for (int r = 0; r < w->world; r++) {
        const Optim *o = &w->ranks[r];
        wrong += differing(w, o, o->m, want->m) + differing(w, o, o->v, want->v);
        if ((void *)o->master != (void *)w->m.params)
            wrong += differing(w, o, o->master, want->master);
    }
    return wrong;
}

/* A run of `world` processes. How many numbers differ from those of one. */
static size_t world_run(
    Test *t, const Problem *p, const AdamArgs *a, int world, const Arenas *want, Plant plant) {
    World w;
    size_t held = 0;
    world_open(&w, &p->config, world, want->start);
    for (int step = 0; step < STEPS; step++) world_step(&w, p->grads[step], a, plant);
    for (int r = 0; r < world; r++) {
        const StepState s = optim_read(&w.ranks[r], w.be);
        held += w.ranks[r].held;
        if (plant != RIGHT) continue;
        CHECK_INT(t, s.updates, STEPS - 1);
        CHECK_NEAR(t, s.grad_sumsq, want->state.grad_sumsq, 0);
    }
    CHECK_INT(t, held, p->n);
    const size_t wrong = all_differing(&w, want);
    world_close(&w);
    return wrong;
}

void test_shards_equal(Test *t) {
    static const int worlds[] = {1, 2, 3, MOST};
    const ModelConfig c = rig_variant(3);
    Problem p;
    problem_open(&p, &c);
    for (int i = 0; i < COUNT(cases); i++) {
        const AdamArgs *a = &cases[i].args;
        const char *label = cases[i].label;
        Arenas want = whole_run(&p, a);
        CHECK_INT(t, want.state.updates, STEPS - 1);
        for (int j = 0; j < COUNT(worlds); j++) {
            if (bench_emulated() && worlds[j] < 3) continue;
            const size_t wrong = world_run(t, &p, a, worlds[j], &want, RIGHT);
            CHECK(t, wrong == 0, "%s, %d processes: %zu numbers differ", label, worlds[j], wrong);
        }
        if (a->grad_clip > 0)
            CHECK(t, world_run(t, &p, a, 3, &want, SQUARES_KEPT) > 0,
                "%s: norms of what each holds would pass", label);
        if (optim_needs_norms(a))
            CHECK(t, world_run(t, &p, a, 3, &want, SUMS_KEPT) > 0,
                "%s: norms of parts of tensors would pass", label);
        arenas_free(&want);
    }
    problem_close(&p);
}

/* ---- bad weights ----------------------------------------------------------------------------- */

/* How many of three processes skip the second step, when one weight is NaN that neither loss nor
 * gradient know of. */
static int skipping(const Problem *p, const AdamArgs *a, Plant plant) {
    World w;
    int count = 0;
    float *start = xcalloc(p->n, sizeof *start);
    start[100] = NAN;
    world_open(&w, &p->config, 3, start);
    for (int step = 0; step < 2; step++) world_step(&w, p->grads[0], a, plant);
    for (int r = 0; r < w.world; r++) {
        const StepState s = optim_read(&w.ranks[r], w.be);
        count += s.skipped && s.bad_weights && s.updates == 1;
    }
    world_close(&w);
    free(start);
    return count;
}

void test_shards_bad_weights(Test *t) {
    const ModelConfig c = rig_small_config();
    Problem p;
    problem_open(&p, &c);
    for (int i = 0; i < 2; i++) { /* all at once, and after norms */
        CHECK_INT(t, skipping(&p, &cases[i].args, RIGHT), 3);
        CHECK_INT(t, skipping(&p, &cases[i].args, BAD_KEPT), 1);
    }
    problem_close(&p);
}
