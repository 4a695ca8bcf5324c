/* plan.c: what a run will need, before it starts. */
#include "laser/plan.h"

#include <inttypes.h>
#include <unistd.h>

#include "laser/base.h"
#include "laser/checkpoint.h"

static void print_size(const char *what, double bytes) {
    if (bytes < 1e9)
        printf("  %-34s %12.2f MiB\n", what, bytes / 1048576.0);
    else
        printf("  %-34s %12.2f GiB\n", what, bytes / 1073741824.0);
}

static void print_parameters(const ModelConfig *m) {
    const int64_t bare = model_parameters_bare(m), all = model_parameters(m);
    printf("Model: %d layers, width %d, MLP %d, %d heads x %d, vocabulary %d (held as %d), "
           "sequence %d\n",
        m->L, m->C, m->F, m->H, m->HD, m->V, m->Vp, m->T);
    printf("\nParameters\n  %-34s %12" PRId64 "  (%.2f M)\n", "bare: embedding and matrices", bare,
        (double)bare / 1e6);
    printf("  %-34s %12" PRId64 "  (%.2f M)\n", "with biases, norms, positions", all,
        (double)all / 1e6);
}

void plan_print(const Config *c, const ModelConfig *m, int world, int threads) {
    MemoryPlan p;
    model_plan(m, (int)c->batch, threads, &p);
    print_parameters(m);
    printf("\nMemory per process (%s, batch %d x %d tokens)\n", backend_precision(), (int)c->batch,
        m->T);
    print_size("weights", (double)p.weights);
    if (p.master) print_size("master weights (fp32)", (double)p.master);
    print_size("gradients", (double)p.gradients);
    print_size("optimizer (two moments)", (double)p.optimizer);
    print_size("activations", (double)p.activations);
    print_size("scratch", (double)p.scratch);
    print_size("total", (double)p.total);

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

void plan_require_memory(const ModelConfig *m, int batch, int processes_here, int threads) {
    MemoryPlan p;
    const double have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    model_plan(m, batch, threads, &p);
    if ((double)p.total * processes_here <= 0.95 * have) return;
    const int full = batch;
    while (batch > 1 && (double)p.total * processes_here > 0.95 * have)
        model_plan(m, batch /= 2, threads, &p);
    const double need = (double)p.total * processes_here / 1073741824.0;
    if (need <= 0.95 * have / 1073741824.0)
        die(EXIT_IO,
            "this run does not fit into memory (%.1f GiB). With --batch %d instead of %d it needs "
            "%.1f GiB",
            have / 1073741824.0, batch, full, need);
    die(EXIT_IO,
        "this model needs %.1f GiB even with --batch 1, this machine has %.1f GiB: choose a "
        "smaller --model",
        need, have / 1073741824.0);
}
