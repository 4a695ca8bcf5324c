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

void optim_open(Optim *o, const Model *m, bool decay_all) {
    const ParamTable *t = &m->table;
    memset(o, 0, sizeof *o);
    o->m = (float *)backend_alloc(m->be, size_mul(t->elements, sizeof(float)));
    o->v = (float *)backend_alloc(m->be, size_mul(t->elements, sizeof(float)));
    o->state = (StepState *)backend_alloc(m->be, sizeof(StepState));
    o->count = t->count;
    const size_t count = (size_t)t->count, bytes = size_mul(count, sizeof(OptRange));
    o->ranges = (OptRange *)backend_alloc(m->be, bytes);
    o->work = (double *)backend_alloc(m->be, size_mul(count, OPT_WORK * sizeof(double)));
    OptRange *host = (OptRange *)xcalloc(count, sizeof *host);
    for (int i = 0; i < t->count; i++) {
        const ParamInfo *p = &t->rows[i];
        bool decay = decay_all || p->kind == KIND_MATRIX;
        /* without padding, which would count in a mean; it stays 0, having no gradient */
        OptRange r = {p->offset, p->logical, decay ? 1.0f : 0.0f, p->center};
        host[i] = r;
    }
    backend_upload(m->be, o->ranges, host, bytes);
    free(host);
}

void optim_close(Optim *o, Backend *be) {
    backend_free(be, o->m);
    backend_free(be, o->v);
    backend_free(be, o->state);
    backend_free(be, o->ranges);
    backend_free(be, o->work);
    memset(o, 0, sizeof *o);
}

void optim_begin(Optim *o, Backend *be) {
    backend_zero(be, &o->state->loss_sum, sizeof o->state->loss_sum);
}

void optim_step(Optim *o, Model *m, const AdamArgs *a) {
    op_grad_norm(m->be, o->state, m->grads, m->table.elements);
    op_step_decide(m->be, o->state);
    const OptTensors x = {m->params, m->master, o->m, o->v, m->grads, o->ranges, o->count, o->work,
        m->table.elements};
    op_adamw(m->be, &x, a, o->state);
}

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
