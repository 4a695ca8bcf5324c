/* optim.c: the optimizer's state and one update of all parameters, by AdamW or LAMB. */
#include "laser/optim.h"

#include <stdlib.h>
#include <string.h>

#include "laser/base.h"

AdamArgs optim_args(const Config *c) {
    AdamArgs a = {.beta1 = (float)c->beta1,
        .beta2 = (float)c->beta2,
        .eps = (float)c->eps,
        .weight_decay = (float)c->weight_decay,
        .grad_clip = (float)c->grad_clip,
        .update_clip = (float)c->update_clip,
        .lamb = c->optimizer == OPTIMIZER_LAMB};
    return a;
}

Schedule optim_schedule(const Config *c) {
    Schedule s = {.kind = (ScheduleKind)c->schedule,
        .peak = c->lr,
        .min_ratio = c->min_lr_ratio,
        .decay_fraction = c->decay_fraction,
        .warmup = c->warmup,
        .steps = c->steps};
    return s;
}

bool optim_needs_norms(const AdamArgs *a) {
    return a->lamb || a->update_clip > 0;
}

size_t optim_slots(const Optim *o) {
    return o->blocks + (size_t)o->tensor_count;
}

size_t optim_measures(const Optim *o) {
    return o->blocks + 1;
}

/* ---- life ---- */

static void *upload(Backend *be, const void *host, size_t bytes) {
    void *p = backend_alloc(be, bytes);
    backend_upload(be, p, host, bytes);
    return p;
}

/* Those that are not empty, of the shard or of one that holds everything. */
static void open_slices(Optim *o, const ParamTable *t, const OptShard *shard) {
    const OptSlice all = {0, t->elements};
    const OptShard whole = {&all, 1}, *s = shard ? shard : &whole;
    size_t last = 0;
    o->slices = (OptSlice *)xcalloc((size_t)s->count + 1, sizeof *o->slices);
    for (int i = 0; i < s->count; i++) {
        const OptSlice x = s->slices[i];
        if (x.count == 0) continue;
        REQUIRE(x.begin % PARAM_GRAIN == 0 && x.count % PARAM_GRAIN == 0, "slice %d: %zu, %zu", i,
            x.begin, x.count);
        REQUIRE(x.begin >= last && x.count <= t->elements - x.begin,
            "slice %d: %zu elements from %zu, after %zu of %zu", i, x.count, x.begin, last,
            t->elements);
        last = x.begin + x.count;
        o->slices[o->slice_count++] = x;
        o->held += x.count;
    }
}

/* Without padding, which would count in a mean; it stays 0, having no gradient. */
static OptTensor tensor_of(const ParamInfo *p, bool decay_all) {
    const bool decay = decay_all || p->kind == KIND_MATRIX;
    return (OptTensor){p->offset, p->logical, decay ? 1.0f : 0.0f};
}

/* Both lists are ascending: what lies in a slice and a tensor, in the order of the arena. */
static void open_ranges(Optim *o, const Model *m, bool decay_all) {
    const ParamTable *t = &m->table;
    const size_t most = (size_t)(t->count + o->slice_count);
    OptTensor *tensors = (OptTensor *)xcalloc((size_t)t->count, sizeof *tensors);
    OptRange *ranges = (OptRange *)xcalloc(most, sizeof *ranges);
    for (int i = 0; i < t->count; i++) tensors[i] = tensor_of(&t->rows[i], decay_all);
    size_t held = 0; /* in front of slice s */
    for (int s = 0, i = 0; s < o->slice_count; s++) {
        const size_t begin = o->slices[s].begin, end = begin + o->slices[s].count;
        while (i < t->count && tensors[i].offset + tensors[i].count <= begin) i++;
        for (; i < t->count && tensors[i].offset < end; i++) {
            const size_t first = tensors[i].offset, behind = first + tensors[i].count;
            const size_t from = first > begin ? first : begin, to = behind < end ? behind : end;
            ranges[o->count++] = (OptRange){
                from, to - from, held + (from - begin), i, tensors[i].decay, t->rows[i].center};
            if (behind > end) break; /* the rest may lie in the next slice */
        }
        held += end - begin;
    }
    o->tensor_count = t->count;
    o->tensors = (OptTensor *)upload(m->be, tensors, (size_t)t->count * sizeof *tensors);
    o->ranges = (OptRange *)upload(m->be, ranges, (size_t)o->count * sizeof *ranges);
    free(tensors);
    free(ranges);
}

void optim_open(Optim *o, const Model *m, const OptimOptions *options) {
    const ParamTable *t = &m->table;
    memset(o, 0, sizeof *o);
    REQUIRE((int)PARAM_GRAIN % (int)OPT_BLOCK == 0 && t->elements % OPT_BLOCK == 0,
        "%zu parameters are not whole blocks", t->elements);
    open_slices(o, t, options->shard);
    REQUIRE(!options->shard || !m->master || (void *)m->master == (void *)m->params, "%s",
        "a master copy beside the weights is held by slices: MODEL_DEALT_OUT");
    REQUIRE(m->master || options->shard, "%s", "nobody holds the master copy");
    open_ranges(o, m, options->decay_all);
    const size_t bytes = size_mul(o->held, sizeof(float));
    o->m = (float *)backend_alloc(m->be, bytes);
    o->v = (float *)backend_alloc(m->be, bytes);
    o->master = m->master ? m->master : (float *)backend_alloc(m->be, bytes);
    o->state = (StepState *)backend_alloc(m->be, sizeof *o->state);
    o->blocks = t->elements / OPT_BLOCK;
    o->squares = (double *)backend_alloc(m->be, size_mul(optim_measures(o), sizeof *o->squares));
    if (!options->norms) return;
    o->sums = (OptSums *)backend_alloc(m->be, size_mul(optim_slots(o), sizeof *o->sums));
    o->factors = (float *)backend_alloc(m->be, (size_t)o->tensor_count * 2 * sizeof *o->factors);
}

void optim_close(Optim *o, const Model *m) {
    backend_free(m->be, o->m);
    backend_free(m->be, o->v);
    if (o->master != m->master) backend_free(m->be, o->master);
    backend_free(m->be, o->ranges);
    backend_free(m->be, o->tensors);
    backend_free(m->be, o->squares);
    backend_free(m->be, o->sums);
    backend_free(m->be, o->factors);
    backend_free(m->be, o->state);
    free(o->slices);
    memset(o, 0, sizeof *o);
}

size_t optim_bytes(const ParamTable *t, size_t held, bool norms) {
    const size_t blocks = t->elements / OPT_BLOCK, tensors = (size_t)t->count;
    const size_t moments = size_mul(held, 2 * sizeof(float));
    const size_t tables =
        tensors * (sizeof(OptRange) + sizeof(OptTensor)) + blocks * sizeof(double);
    const size_t sums = (blocks + tensors) * sizeof(OptSums) + tensors * 2 * sizeof(float);
    return size_add(moments, tables + (norms ? sums : 0));
}

/* ---- an update ---- */

static OptTensors arrays_of(const Optim *o, const Model *m) {
    return (OptTensors){.params = m->params,
        .grads = m->grads,
        .master = o->master,
        .m = o->m,
        .v = o->v,
        .ranges = o->ranges,
        .count = o->count,
        .held = o->held,
        .tensors = o->tensors,
        .tensor_count = o->tensor_count,
        .blocks = o->blocks,
        .sums = o->sums,
        .factors = o->factors};
}

void optim_measure(Optim *o, const Model *m) {
    if (o->held < m->table.elements)
        backend_zero(m->be, o->squares, o->blocks * sizeof *o->squares);
    for (int i = 0; i < o->slice_count; i++) {
        const OptSlice s = o->slices[i];
        op_square_blocks(m->be, o->squares + s.begin / OPT_BLOCK, m->grads + s.begin, s.count);
    }
    op_bad_weights(m->be, o->squares + o->blocks, o->state);
}

void optim_decide(Optim *o, const Model *m, const double *losses, size_t micro_steps) {
    const StepSums sums = {losses, o->squares, o->squares + o->blocks, micro_steps, o->blocks};
    op_step_decide(m->be, o->state, &sums);
}

void optim_sums(Optim *o, Model *m, const AdamArgs *a) {
    const OptTensors x = arrays_of(o, m);
    REQUIRE(o->sums, "%s", "opened for updates without norms of tensors");
    op_adam_sums(m->be, &x, a, o->state);
}

void optim_apply(Optim *o, Model *m, const AdamArgs *a) {
    const OptTensors x = arrays_of(o, m);
    if (optim_needs_norms(a))
        op_adam_apply(m->be, &x, a, o->state);
    else
        op_adamw(m->be, &x, a, o->state);
}

void optim_step(Optim *o, Model *m, const AdamArgs *a, const double *losses, size_t micro_steps) {
    optim_measure(o, m);
    optim_decide(o, m, losses, micro_steps);
    if (optim_needs_norms(a)) optim_sums(o, m, a);
    optim_apply(o, m, a);
}

/* ---- what came of it ---- */

StepState optim_read(const Optim *o, Backend *be) {
    StepState s;
    backend_download(be, &s, o->state, sizeof s);
    return s;
}

void optim_read_begin(const Optim *o, Backend *be, int slot) {
    backend_read_begin(be, slot, o->state, sizeof *o->state);
}

bool optim_read_ready(const Optim *o, Backend *be, int slot) {
    (void)o;
    return backend_read_ready(be, slot);
}

StepState optim_read_end(const Optim *o, Backend *be, int slot) {
    StepState s;
    (void)o;
    backend_read_end(be, slot, &s);
    return s;
}

void optim_set_updates(Optim *o, Backend *be, int64_t updates) {
    StepState s = {0, 0, updates, 0, 0};
    backend_upload(be, o->state, &s, sizeof s);
}
