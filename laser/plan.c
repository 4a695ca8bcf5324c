/* plan.c: what a run will need, before it starts. */
#include "laser/plan.h"

#include <inttypes.h>

#include "laser/base.h"
#include "laser/checkpoint.h"
#include "laser/json.h"

static void print_size(const char *what, double bytes) {
    if (bytes < 1e9)
        printf("  %-34s %12.2f MiB\n", what, bytes / 1048576.0);
    else
        printf("  %-34s %12.2f GiB\n", what, bytes / 1073741824.0);
}

static void print_parameters(const ModelConfig *m) {
    const int64_t bare = model_parameters_bare(m), all = model_parameters(m);
    printf("Model: %d layers, width %d, MLP %d, %d heads x %d, vocabulary %d (held as %d), "
           "sequence %d%s\n",
        m->L, m->C, m->F, m->H, m->HD, m->V, m->Vp, m->T,
        m->diff ? ", differential attention" : "");
    printf("\nParameters\n  %-34s %12" PRId64 "  (%.2f M)\n", "bare: embedding and matrices", bare,
        (double)bare / 1e6);
    printf("  %-34s %12" PRId64 "  (%.2f M)\n", "with biases, norms, positions", all,
        (double)all / 1e6);
}

size_t plan_memory(const PlanShape *s, MemoryPlan *p) {
    ParamTable t;
    model_plan(s->model, s->batch, s->options, p);
    param_table_build(&t, s->model);
    /* the last has what is left over */
    parallel_plan(&t, s->world - 1, s->world, s->parallel, p);
    param_table_free(&t);
    return p->weights + p->master + p->gradients + p->optimizer + p->activations + p->scratch +
           p->network + p->overhead;
}

void plan_print(const Config *c, const PlanShape *s) {
    MemoryPlan p;
    const ModelConfig *m = s->model;
    const int world = s->world;
    const size_t total = plan_memory(s, &p);
    print_parameters(m);
    printf("\nMemory per process (%s, batch %d x %d tokens)\n", backend_precision(), (int)c->batch,
        m->T);
    print_size("weights", (double)p.weights);
    if (p.master) print_size("master weights (fp32)", (double)p.master);
    print_size("gradients", (double)p.gradients);
    print_size("optimizer (two moments)", (double)p.optimizer);
    print_size("activations", (double)p.activations);
    print_size("scratch", (double)p.scratch);
    if (p.network) print_size("between processes", (double)p.network);
    if (p.overhead) print_size("context and libraries", (double)p.overhead);
    print_size("total", (double)total);

    const double checkpoint = (double)checkpoint_bytes(m);
    printf("\nDisk\n");
    print_size("one checkpoint", checkpoint);
    print_size("while saving (keep + 1)", checkpoint * (double)(c->keep + 1));

    const double flops = model_flops_per_token(m, m->T);
    const int64_t step = c->total_batch == AUTO ? c->batch * m->T * world : c->total_batch;
    printf("\nFLOPs (6 x bare parameters + causal attention)\n  %-34s %12.4g\n", "a token", flops);
    printf("  %-34s %12.4g  (%" PRId64 " tokens)\n", "a step", flops * (double)step, step);
    if (c->steps != AUTO)
        printf("  %-34s %12.4g  (%.4g tokens)\n", "the run",
            flops * (double)step * (double)c->steps, (double)step * (double)c->steps);
    else
        printf("  %-34s %12s  (give --steps)\n", "the run", "-");
}

/* ---- does it fit ---- */

static double gib(size_t bytes) {
    return (double)bytes / 1073741824.0;
}

typedef struct Fit {
    const Backend *be;
    size_t have; /* bytes */
} Fit;

/* Bytes of the whole run. Once a backend is open, it knows what it holds. */
static size_t need(const Fit *f, const PlanShape *s) {
    MemoryPlan p;
    const size_t total = plan_memory(s, &p);
    return total - p.overhead + backend_overhead_bytes(f->be);
}

static size_t need_other(const Fit *f, const PlanShape *s, int batch, Recompute recompute) {
    ModelConfig model = *s->model;
    PlanShape other = *s;
    model.recompute = recompute;
    other.model = &model;
    other.batch = batch;
    return need(f, &other);
}

/* "--batch 4 (3.1 GiB)", "--recompute light (3.4 GiB)", ...: each alone is enough. */
static void add_remedies(Text *t, const Fit *f, const PlanShape *s) {
    static const char *const names[] = {"none", "light", "block"};
    const Recompute now = s->model->recompute;
    int fewer = s->batch / 2;
    while (fewer > 0 && need_other(f, s, fewer, now) > f->have) fewer /= 2;
    if (fewer > 0)
        text_add(t, "--batch %d (%.1f GiB)", fewer, gib(need_other(f, s, fewer, now)));
    for (int r = (int)now + 1; r <= RECOMPUTE_BLOCK; r++) {
        const size_t bytes = need_other(f, s, s->batch, (Recompute)r);
        if (bytes > f->have) continue;
        text_add(
            t, "%s--recompute %s (%.1f GiB)", t->size ? ", or with " : "", names[r], gib(bytes));
    }
    if (t->size) return;
    const size_t least = need_other(f, s, 1, RECOMPUTE_BLOCK);
    if (least <= f->have) text_add(t, "--batch 1 --recompute block (%.1f GiB)", gib(least));
}

void plan_require_memory(const Backend *be, const PlanShape *s, int processes_here) {
    const Fit f = {be, backend_memory_limit(be, processes_here)};
    const size_t bytes = need(&f, s);
    if (bytes <= f.have) return;
    Text remedies = {NULL, 0, 0};
    add_remedies(&remedies, &f, s);
    if (remedies.size)
        die(EXIT_IO,
            "this run does not fit into memory: a process needs %.1f GiB and may take %.1f GiB. "
            "It fits with %s",
            gib(bytes), gib(f.have), remedies.data);
    die(EXIT_IO,
        "this model needs %.1f GiB even with --batch 1 --recompute block, a process may take %.1f "
        "GiB: choose a smaller --model%s",
        gib(need_other(&f, s, 1, RECOMPUTE_BLOCK)), gib(f.have),
        s->world > 1 && !s->parallel->zero ? ", or --zero 1" : "");
}
