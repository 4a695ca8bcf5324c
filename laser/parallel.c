/* parallel.c: one model, trained by all processes. */
#include "laser/parallel.h"

#include <stdlib.h>
#include <string.h>

#include "laser/base.h"

static const bool params_are_floats = sizeof(act_t) == sizeof(float);

ParallelOptions parallel_options(const Config *c, int micro_steps) {
    const AdamArgs adam = optim_args(c);
    return (ParallelOptions){.micro_steps = micro_steps,
        .zero = c->zero != 0,
        .reproducible = c->reproducible != 0,
        .share_gpu = c->share_gpu != 0,
        .wire = (CommWire)c->reduce_in,
        .decay_all = c->decay_all != 0,
        .norms = optim_needs_norms(&adam)};
}

/* ---- who holds what ---- */

/* Whole grains, the same number for each; the last rank has what is left over. */
static CommShare share_of(size_t n, int world) {
    return (CommShare){n, n / PARAM_GRAIN / (size_t)world * PARAM_GRAIN};
}

static OptSlice slice_of(const ParamTable *t, int bucket, int rank, int world) {
    const size_t offset = t->bucket[bucket], n = t->bucket[bucket + 1] - offset;
    const CommShare s = share_of(n, world);
    const size_t begin = (size_t)rank * s.each, end = rank + 1 < world ? begin + s.each : n;
    return (OptSlice){offset + begin, end - begin};
}

static bool is_dealt_out(int world, const ParallelOptions *o) {
    return o->zero && world > 1;
}

static int levels_of(const ParallelOptions *o) {
    int levels = 0;
    while (o->reproducible && 2 << levels <= o->micro_steps) levels++;
    return levels;
}

void parallel_plan(
    const ParamTable *t, int rank, int world, const ParallelOptions *o, MemoryPlan *p) {
    size_t held = t->elements;
    if (is_dealt_out(world, o)) {
        held = 0;
        for (int b = 0; b < t->buckets; b++) held += slice_of(t, b, rank, world).count;
    }
    const size_t partial = (size_t)levels_of(o) * t->elements * sizeof(float);
    p->master = params_are_floats ? 0 : held * sizeof(float);
    p->optimizer = optim_bytes(t, held, o->norms) + partial;
    p->network = comm_device_bytes(world, param_largest_bucket(t), o->wire);
}

/* ---- life ---- */

static void add_up(Parallel *p, Bucket *b) {
    float *x = p->model->grads + b->offset;
    b->reduced = comm_reduce_scatter(p->comm, x, b->share, p->options.wire);
    if (!p->dealt_out) b->reduced = comm_all_gather(p->comm, x, b->share, sizeof *x);
}

/* As early as a bucket's gradients are there: beside the backward pass of the layers below. */
static void on_gradients(void *user, int bucket) {
    Parallel *p = (Parallel *)user;
    if (p->options.reproducible || p->micro_step + 1 < p->options.micro_steps) return;
    add_up(p, &p->buckets[bucket]);
}

/* As late as a bucket's weights are read: they were sent beside what was computed before. */
static void on_weights(void *user, int bucket) {
    Parallel *p = (Parallel *)user;
    comm_wait(p->comm, p->buckets[bucket].gathered);
}

/* Returns the elements of the largest. */
static size_t open_buckets(Parallel *p, const ModelConfig *shape) {
    ParamTable t;
    param_table_build(&t, shape);
    p->count = t.buckets;
    p->buckets = (Bucket *)xcalloc((size_t)p->count, sizeof *p->buckets);
    for (int b = 0; b < p->count; b++) {
        p->buckets[b].offset = t.bucket[b];
        p->buckets[b].share = share_of(t.bucket[b + 1] - t.bucket[b], p->comm->world);
    }
    const size_t most = param_largest_bucket(&t);
    param_table_free(&t);
    return most;
}

static void *take(void *user, size_t bytes) {
    const Parallel *p = (const Parallel *)user;
    return comm_alloc(p->comm, p->be, bytes);
}

static void give_back(void *user, void *x) {
    const Parallel *p = (const Parallel *)user;
    comm_free(p->comm, p->be, x);
}

static void open_optim(Parallel *p) {
    const ParamTable *t = &p->model->table;
    OptSlice *slices = (OptSlice *)xcalloc((size_t)p->count, sizeof *slices);
    for (int b = 0; b < p->count; b++)
        slices[b] = slice_of(t, b, p->comm->rank, p->comm->world);
    const OptShard shard = {slices, p->count};
    const OptimOptions options = {
        p->dealt_out ? &shard : NULL, p->options.decay_all, p->options.norms};
    optim_open(&p->optim, p->model, &options);
    free(slices);
}

static void open_tree(Parallel *p) {
    const ParallelOptions *o = &p->options;
    if (!o->reproducible) return;
    if (!backend_memory_is_host())
        die(EXIT_USAGE, "--reproducible is for CPU builds: on a GPU the order of sums over "
                        "processes is NCCL's");
    if (o->micro_steps & (o->micro_steps - 1))
        die(EXIT_USAGE,
            "--reproducible adds up gradients in a binary tree: a process must take 1, 2, 4, 8, "
            "... micro-steps, not %d; another --batch or number of processes gives that",
            o->micro_steps);
    const size_t bytes = size_mul(p->model->table.elements, sizeof(float));
    for (int i = 0; i < levels_of(o); i++)
        p->partial[i] = (float *)backend_alloc(p->model->be, bytes);
}

static size_t losses_of(const Parallel *p) {
    return size_mul((size_t)p->comm->world, (size_t)p->options.micro_steps);
}

void parallel_open(Parallel *p, Comm *c, Backend *be, Model *m, const ModelConfig *shape, int B,
    const ParallelOptions *o) {
    memset(p, 0, sizeof *p);
    p->comm = c;
    p->be = be;
    p->model = m;
    p->options = *o;
    p->dealt_out = is_dealt_out(c->world, o);
    p->memory = (ModelMemory){take, give_back, p};
    comm_attach(c, be, open_buckets(p, shape), o->wire, o->share_gpu);
    model_open(m, be, shape, B, p->dealt_out ? MODEL_DEALT_OUT : MODEL_TRAINING, &p->memory);
    p->losses = (double *)backend_alloc(be, losses_of(p) * sizeof *p->losses);
    open_optim(p);
    open_tree(p);
    p->hooks = (ModelHooks){on_weights, on_gradients, p};
    if (c->world > 1) m->hooks = &p->hooks;
}

void parallel_close(Parallel *p) {
    for (int i = 0; i < PARALLEL_LEVELS; i++) backend_free(p->be, p->partial[i]);
    backend_free(p->be, p->losses);
    optim_close(&p->optim, p->model);
    model_close(p->model);
    comm_detach(p->comm);
    free(p->buckets);
    memset(p, 0, sizeof *p);
}

/* ---- a step ---- */

void parallel_begin(Parallel *p) {
    p->micro_step = 0;
    backend_zero(p->model->be, p->losses, losses_of(p) * sizeof *p->losses);
}

/* The gradients become the sum of the last 2^k micro-steps, k the trailing ones of this one's
 * number, and wait for as many more. */
static void add_to_tree(Parallel *p) {
    Model *m = p->model;
    const size_t n = m->table.elements;
    int level = 0;
    for (int i = p->micro_step; i & 1; i >>= 1) op_add(m->be, m->grads, p->partial[level++], n);
    if (p->micro_step + 1 < p->options.micro_steps)
        backend_copy(m->be, p->partial[level], m->grads, n * sizeof(float));
}

void parallel_backward(Parallel *p, const int32_t *targets, int B, int T, float grad_scale) {
    const int i = p->micro_step, micro_steps = p->options.micro_steps;
    REQUIRE(i < micro_steps, "micro-step %d of %d", i, micro_steps);
    double *loss = p->losses + (size_t)p->comm->rank * (size_t)micro_steps + i;
    const float beta = i && !p->options.reproducible ? 1.0f : 0.0f;
    model_backward(p->model, targets, B, T, grad_scale, beta, loss);
    if (p->options.reproducible) add_to_tree(p);
    p->micro_step++;
}

static void add_double(Parallel *p, double *x, size_t n) {
    comm_wait(p->comm, comm_add_double(p->comm, x, n));
}

/* Each its share, then all are told. */
static void update_share(Parallel *p, const AdamArgs *a) {
    Model *m = p->model;
    Optim *o = &p->optim;
    optim_measure(o, m);
    add_double(p, o->squares, optim_measures(o));
    optim_decide(o, m, p->losses, losses_of(p));
    if (optim_needs_norms(a)) {
        optim_sums(o, m, a);
        add_double(p, (double *)o->sums, optim_slots(o) * sizeof(OptSums) / sizeof(double));
    }
    optim_apply(o, m, a);
    for (int i = 0; i < p->count; i++) {
        Bucket *b = &p->buckets[i];
        b->gathered = comm_all_gather(p->comm, m->params + b->offset, b->share, sizeof(act_t));
    }
}

void parallel_update(Parallel *p, const AdamArgs *a) {
    REQUIRE(p->micro_step == p->options.micro_steps, "%d of %d micro-steps", p->micro_step,
        p->options.micro_steps);
    if (p->options.reproducible)
        for (int i = p->count - 1; i >= 0; i--) add_up(p, &p->buckets[i]);
    add_double(p, p->losses, losses_of(p));
    for (int i = 0; i < p->count; i++) comm_wait(p->comm, p->buckets[i].reduced);
    if (p->dealt_out)
        update_share(p, a);
    else
        optim_step(&p->optim, p->model, a, p->losses, losses_of(p));
}

/* ---- whole tensors ---- */

void parallel_settle(Parallel *p) {
    for (int i = 0; i < p->count; i++) comm_wait(p->comm, p->buckets[i].gathered);
}

static void gather_floats(Parallel *p, float *arena) {
    for (int i = 0; i < p->count; i++) {
        const Bucket *b = &p->buckets[i];
        const CommTicket t = comm_all_gather(p->comm, arena + b->offset, b->share, sizeof *arena);
        comm_wait(p->comm, t);
    }
}

void parallel_gather_gradients(Parallel *p) {
    if (p->dealt_out) gather_floats(p, p->model->grads);
}

static float *held_of(const Parallel *p, ParallelArena which) {
    const Optim *o = &p->optim;
    return which == PARALLEL_WEIGHTS ? o->master : which == PARALLEL_M ? o->m : o->v;
}

static bool is_whole(const Parallel *p, ParallelArena which) {
    return !p->dealt_out || (which == PARALLEL_WEIGHTS && p->model->master);
}

const float *parallel_whole(Parallel *p, ParallelArena which) {
    Model *m = p->model;
    const Optim *o = &p->optim;
    const float *held = held_of(p, which);
    parallel_settle(p);
    if (is_whole(p, which)) return held;
    for (int i = 0; i < o->slice_count; i++) {
        const OptSlice *s = &o->slices[i];
        backend_copy(m->be, m->grads + s->begin, held, s->count * sizeof *held);
        held += s->count;
    }
    gather_floats(p, m->grads);
    return m->grads;
}

/* Copies what is held of [begin, begin + n) of the arena; whether anything is. host NULL: none. */
static bool put_held(const Parallel *p, float *held, size_t begin, size_t n, const float *host) {
    bool any = false;
    for (int i = 0; i < p->optim.slice_count; i++) {
        const OptSlice *s = &p->optim.slices[i];
        const size_t from = begin > s->begin ? begin : s->begin;
        const size_t last = begin + n, end = s->begin + s->count, to = last < end ? last : end;
        if (from < to) {
            any = true;
            if (host)
                backend_upload(p->model->be, held + (from - s->begin), host + (from - begin),
                    (to - from) * sizeof *host);
        }
        held += s->count;
    }
    return any;
}

bool parallel_holds(const Parallel *p, int i) {
    const ParamInfo *t = &p->model->table.rows[i];
    return put_held(p, p->optim.m, t->offset, t->logical, NULL);
}

void parallel_put(Parallel *p, ParallelArena which, int i, const float *host) {
    Model *m = p->model;
    const ParamInfo *t = &m->table.rows[i];
    float *held = held_of(p, which);
    if (is_whole(p, which))
        backend_upload(m->be, held + t->offset, host, t->logical * sizeof *host);
    else
        put_held(p, held, t->offset, t->logical, host);
    if (which == PARALLEL_WEIGHTS && !params_are_floats)
        backend_upload_act(m->be, m->params + t->offset, host, t->logical);
}

void parallel_init(Parallel *p, uint64_t seed) {
    const Model *m = p->model;
    float *host = (float *)xcalloc(param_largest_tensor(&m->table), sizeof *host);
    for (int i = 0; i < m->table.count; i++) {
        made_progress();
        model_init_tensor(m, seed, i, host);
        parallel_put(p, PARALLEL_WEIGHTS, i, host);
    }
    free(host);
}
