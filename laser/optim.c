/* optim.c: the optimizer's state and one update of all parameters. */
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
        .update_clip = (float)c->update_clip};
    return a;
}

void optim_open(Optim *o, const Model *m, bool decay_all) {
    const ParamTable *t = &m->table;
    memset(o, 0, sizeof *o);
    o->m = (float *)backend_alloc(m->be, size_mul(t->elements, sizeof(float)));
    o->v = (float *)backend_alloc(m->be, size_mul(t->elements, sizeof(float)));
    o->state = (StepState *)backend_alloc(m->be, sizeof(StepState));
    o->ranges = (OptRange *)xcalloc((size_t)t->count, sizeof *o->ranges);
    o->count = t->count;
    for (int i = 0; i < t->count; i++) {
        const ParamInfo *p = &t->rows[i];
        bool decay = decay_all || p->kind == KIND_MATRIX;
        OptRange r = {p->offset, p->count, decay ? 1.0f : 0.0f, p->center};
        o->ranges[i] = r;
    }
}

void optim_close(Optim *o, Backend *be) {
    backend_free(be, o->m);
    backend_free(be, o->v);
    backend_free(be, o->state);
    free(o->ranges);
    memset(o, 0, sizeof *o);
}

void optim_begin(Optim *o, Backend *be) {
    backend_zero(be, &o->state->loss_sum, sizeof o->state->loss_sum);
}

void optim_step(Optim *o, Model *m, const AdamArgs *a) {
    op_grad_norm(m->be, o->state, m->grads, m->table.elements);
    op_step_decide(m->be, o->state);
    op_adamw(m->be, m->params, m->master, o->m, o->v, m->grads, o->ranges, o->count, a, o->state);
}

StepState optim_read(const Optim *o, Backend *be) {
    StepState s;
    backend_download(be, &s, o->state, sizeof s);
    return s;
}

void optim_set_updates(Optim *o, Backend *be, int64_t updates) {
    StepState s = {0, 0, updates, 0, 0};
    backend_upload(be, o->state, &s, sizeof s);
}
