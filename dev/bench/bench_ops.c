/* bench_ops.c: how fast each operation of the seam is, at the shapes of a model, beside what the
 * machine can do: matrix products and attention against its FLOP/s, the rest against its memory.
 * Takes the trainer's own options, and --bandwidth GB/S for the data sheet's; runs the calls of
 * forward.c and backward.c on one layer with weights and activations of a real step, many times in
 * a row between two synchronisations. What repeats finds its input in the caches as far as it fits
 * there: true of a step too, as most operations read what the one before has written.
 *
 * The last column adds up to a step: calls x time, the optimizer's by the share of parameters. May
 * not know which backend it runs on, but for printing its name. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/optim.h"
#include "laser/passes.h"
#include "laser/rng.h"

enum { MAX_OPS = 32, MAX_RUNS = 1 << 16, ROUNDS = 3, LINE = 256 };
static const double ROUND_SECONDS = 0.05, LONG_SECONDS = 1.0;
static const size_t ZERO_BYTES = (size_t)1 << 30;

typedef struct Bench {
    Config config;
    ModelConfig shape; /* of the whole model; the one below has one layer of it */
    Backend *be;
    Model model;
    Optim optim;
    AdamArgs adam;
    double *loss;              /* (1) of a step, in backend memory */
    int32_t *tokens, *targets; /* (B, T) on the host */
    act_t *dqkv, *dout;        /* (B, T, 3, H, HD), (B, T, H, HD): of attention's backward pass */
    int B, T, N, A;
    double bandwidth, peak; /* bytes/s, FLOP/s */
    const char *bandwidth_of;
    void *zeroed; /* (ZERO_BYTES) while the bandwidth is measured */
} Bench;

typedef struct Op {
    const char *name;
    void (*run)(Bench *b);
    double calls; /* in a step */
    double flops; /* the model's: what is computed twice counts once */
    double bytes; /* least that must move, each array once, where flops is 0 */
} Op;

/* ---- the operations, as forward.c and backward.c call them ----------------------------------- */

static float *gradient(const Bench *b, ParamId id, int layer) {
    return param_float(&b->model.table, b->model.grads, id, layer);
}

static NormArgs norm_args(Bench *b) {
    LayerActs *l = &b->model.layer[0];
    return pass_norm(&b->model, b->N, P_ln2w, P_ln2b, 0, l->ln2_mean, l->ln2_rstd);
}

static void send(Bench *b) {
    backend_send(b->be, b->model.tokens, b->tokens, (size_t)b->N);
}

static void embed_fwd(Bench *b) {
    Model *m = &b->model;
    const int shape[3] = {b->B, b->T, m->config.C};
    const act_t *wpe = param_act(&m->table, m->params, P_wpe, -1);
    op_embed_fwd(b->be, m->delta, m->tokens, param_act(&m->table, m->params, P_wte, -1),
        wpe ? wpe : m->pos, pass_embed_scale(&m->config), shape);
}

static void embed_bwd(Bench *b) {
    Model *m = &b->model;
    const int shape[3] = {b->B, b->T, m->config.C};
    op_embed_bwd(b->be, gradient(b, P_wte, -1), gradient(b, P_wpe, -1), 0.0f, m->dx, m->tokens,
        pass_embed_scale(&m->config), shape);
}

static void norm_fwd(Bench *b) {
    const NormArgs a = norm_args(b);
    LayerActs *l = &b->model.layer[0];
    op_residual_norm_fwd(b->be, l->x2, l->ln2, l->x, b->model.delta, &a);
}

static void norm_bwd(Bench *b) {
    const NormArgs a = norm_args(b);
    Model *m = &b->model;
    op_norm_bwd(b->be, m->dx, gradient(b, P_ln2w, 0), gradient(b, P_ln2b, 0), 0.0f, m->dbuf2,
        m->layer[0].x2, &a);
}

static void rope_fwd(Bench *b) {
    const RopeArgs a = pass_rope(&b->shape, (Span){b->B, b->T, 0});
    op_rope(b->be, b->dqkv, +1, &a);
}

static void rope_bwd(Bench *b) {
    const RopeArgs a = pass_rope(&b->shape, (Span){b->B, b->T, 0});
    op_rope(b->be, b->dqkv, -1, &a);
}

static void query_key_fwd(Bench *b) {
    const QueryKeyArgs a = pass_query_key(&b->model, b->N, 0);
    op_query_key_fwd(b->be, b->dqkv, &a);
}

static void query_key_bwd(Bench *b) {
    const QueryKeyArgs a = pass_query_key(&b->model, b->N, 0);
    op_query_key_bwd(b->be, b->dqkv, gradient(b, P_qnormw, 0), gradient(b, P_knormw, 0),
        gradient(b, P_perdim, 0), 0.0f, b->model.layer[0].qkv, &a);
}

static void diff_fwd(Bench *b) {
    LayerActs *l = &b->model.layer[0];
    const DiffArgs a = pass_diff(&b->model, b->N, 0);
    op_diff_fwd(b->be, l->attn, l->map[0].out, l->map[1].out, &a);
}

static void diff_bwd(Bench *b) {
    LayerActs *l = &b->model.layer[0];
    const DiffArgs a = pass_diff(&b->model, b->N, 0);
    const DiffGrads g = {.lq1 = gradient(b, P_lq1, 0),
        .lk1 = gradient(b, P_lk1, 0),
        .lq2 = gradient(b, P_lq2, 0),
        .lk2 = gradient(b, P_lk2, 0),
        .w = gradient(b, P_diffw, 0)};
    op_diff_bwd(
        b->be, b->model.dbuf2, b->model.dmap, &g, b->dout, l->map[0].out, l->map[1].out, &a);
}

static void attention_fwd(Bench *b) {
    LayerActs *l = &b->model.layer[0];
    const AttentionArgs a = pass_attention(&b->model, b->B, b->T, l, 0);
    op_attention_fwd(b->be, l->map[0].out, l->qkv, &a);
}

static void attention_bwd(Bench *b) {
    LayerActs *l = &b->model.layer[0];
    const AttentionArgs a = pass_attention(&b->model, b->B, b->T, l, 0);
    op_attention_bwd(b->be, b->dqkv, b->dout, l->qkv, l->map[0].out, &a);
}

static void qkv_fwd(Bench *b) {
    LayerActs *l = &b->model.layer[0];
    const LinearArgs a = pass_linear(&b->model, b->N, P_qkvw, P_qkvb, 0);
    op_linear_fwd(b->be, l->qkv, l->ln1, &a);
}

static void proj_fwd(Bench *b) {
    const LinearArgs a = pass_linear(&b->model, b->N, P_projw, P_projb, 0);
    op_linear_fwd(b->be, b->model.delta, b->model.layer[0].attn, &a);
}

static void fc1_fwd(Bench *b) {
    LayerActs *l = &b->model.layer[0];
    LinearArgs a = pass_linear(&b->model, b->N, P_fc1w, P_fc1b, 0);
    a.act = b->shape.act;
    a.pre = l->pre;
    op_linear_fwd(b->be, l->h, l->ln2, &a);
}

static void fc2_fwd(Bench *b) {
    const LinearArgs a = pass_linear(&b->model, b->N, P_fc2w, P_fc2b, 0);
    op_linear_fwd(b->be, b->model.delta, b->model.layer[0].h, &a);
}

static void linear_bwd(Bench *b, ParamId w, ParamId bias, const act_t *dy, const act_t *x) {
    LinearArgs a = pass_linear(&b->model, b->N, w, bias, 0);
    if (w == P_fc2w) a.act = b->shape.act, a.pre = b->model.layer[0].pre;
    op_linear_bwd(b->be, b->model.dbuf, gradient(b, w, 0), gradient(b, bias, 0), 0.0f, dy, x, &a);
}

static void qkv_bwd(Bench *b) {
    linear_bwd(b, P_qkvw, P_qkvb, b->dqkv, b->model.layer[0].ln1);
}
static void proj_bwd(Bench *b) {
    linear_bwd(b, P_projw, P_projb, b->model.dx, b->model.layer[0].attn);
}
static void fc2_bwd(Bench *b) {
    linear_bwd(b, P_fc2w, P_fc2b, b->model.dx, b->model.layer[0].h);
}
/* dy: any (N, F); the activations themselves are one */
static void fc1_bwd(Bench *b) {
    linear_bwd(b, P_fc1w, P_fc1b, b->model.layer[0].h, b->model.layer[0].ln2);
}

static void act_fwd(Bench *b) {
    LayerActs *l = &b->model.layer[0];
    op_act_fwd(b->be, l->h, l->pre, b->shape.act, (size_t)b->N * (size_t)b->shape.F);
}

static void classifier_train(Bench *b) {
    Model *m = &b->model;
    const ClassifierArgs head = pass_classifier(m, b->N);
    op_classifier_train(b->be, m->losses, m->dbuf2, gradient(b, P_wte, -1),
        gradient(b, P_headb, -1), 0.0f, 1.0f / (float)b->N, m->lnf, m->targets, &head);
}

static void classifier_loss(Bench *b) {
    Model *m = &b->model;
    const ClassifierArgs head = pass_classifier(m, b->N);
    op_classifier_loss(b->be, m->losses, m->lnf, m->targets, &head);
}

static void loss_add(Bench *b) {
    op_loss_add(b->be, b->loss, b->model.losses, (size_t)b->N);
}

static void zero_dx(Bench *b) {
    backend_zero(b->be, b->model.dx, (size_t)b->N * (size_t)b->shape.C * sizeof(act_t));
}

static void grad_norm(Bench *b) {
    optim_measure(&b->optim, &b->model);
}

static void decide(Bench *b) {
    optim_decide(&b->optim, &b->model, b->loss, 1);
}

/* What optim_step does beside the norm and the decision. */
static void adamw(Bench *b) {
    if (optim_needs_norms(&b->adam)) optim_sums(&b->optim, &b->model, &b->adam);
    optim_apply(&b->optim, &b->model, &b->adam);
}

/* ---- what they must compute and move --------------------------------------------------------- */

/* Rows of the embedding that N random tokens touch. */
static double rows_touched(const Bench *b) {
    return b->shape.V * (1.0 - exp(-(double)b->N / b->shape.V));
}

static double whole_elements(const Bench *b) {
    ParamTable t;
    param_table_build(&t, &b->shape);
    const double n = (double)t.elements;
    param_table_free(&t);
    return n;
}

/* a: bytes of a stored number; NC, NA, NF: those of (N, C), (N, H*HD), (N, F). Parameters of a
 * norm and other vectors of one row are left out. Returns how many operations there are. */
static int list_ops(const Bench *b, Op *ops) {
    const ModelConfig *c = &b->shape;
    const double a = sizeof(act_t), N = b->N, C = c->C, F = c->F, A = b->A, L = c->L;
    const double NC = a * N * C, NA = a * N * A, NF = a * N * F, TC = a * b->T * C;
    const double dTC = c->pos == POS_LEARNED ? 4.0 * b->T * C : 0;
    const bool pos = c->pos == POS_LEARNED || c->pos == POS_SINUSOID;
    const bool light = c->recompute == RECOMPUTE_LIGHT;
    const double again = c->recompute == RECOMPUTE_BLOCK ? 2 : 1; /* times a block runs forward */
    const double norms = 2 * L * (light ? 2 : again) + 1;
    const double n = (double)b->model.table.elements, share = whole_elements(b) / n;
    const double maps = model_maps(c), scored = (double)model_score_channels(c) / c->HD;
    /* a map: two products, half of them */
    const double cores = (1 + scored) * b->B * (double)b->T * b->T * A;
    /* q and k, or q alone; forward keeps what it normalises, backward reads two and writes one */
    const double queries = pass_has_query_key(c) ? L : 0, QK = (c->qk_norm ? 2 : 1) * NA;
    const double adam_again = b->adam.lamb ? 12 : b->adam.update_clip > 0 ? 8 : 0; /* for norms */
    const double adam_bytes = adam_again + (sizeof(act_t) == sizeof(float) ? 28 : 28 + a);
    const Op all[] = {{"send tokens", send, 2, 0, 4 * N},
        {"embedding fwd", embed_fwd, 1, 0, 2 * NC + 4 * N + (pos ? TC : 0)},
        {"residual + norm fwd", norm_fwd, norms, 0, 4 * NC + 8 * N},
        {"qkv fwd", qkv_fwd, L * again, 6 * N * C * A, 0},
        {"rope fwd", rope_fwd, c->pos == POS_ROPE ? L * again : 0, 0, 4 * NA},
        {"query, key fwd", pass_has_query_key(c) ? query_key_fwd : NULL, queries * again, 0,
            (c->qk_norm ? 3 : 2) * QK},
        {"attention fwd", attention_fwd, L * again * maps, cores, 0},
        {"two maps fwd", c->diff ? diff_fwd : NULL, L * again, 0, 3 * NA},
        {"proj fwd", proj_fwd, L * again, 2 * N * C * A, 0},
        {"fc1 fwd + activation", fc1_fwd, L * again, 2 * N * C * F, 0},
        {"fc2 fwd", fc2_fwd, L, 2 * N * C * F, 0},
        {"activation fwd", b->model.layer[0].pre ? act_fwd : NULL, light ? L : 0, 0, 2 * NF},
        {"classifier loss", classifier_loss, 0, 2 * N * C * c->V, 0},
        {"classifier fwd + bwd", classifier_train, 1, 6 * N * C * c->V, 0},
        {"loss sum", loss_add, 1, 0, 4 * N}, {"zero dx", zero_dx, 1, 0, NC},
        {"norm bwd", norm_bwd, 2 * L + 1, 0, 4 * NC + 8 * N},
        {"fc2 bwd + activation", fc2_bwd, L, 4 * N * C * F, 0},
        {"fc1 bwd", fc1_bwd, L, 4 * N * C * F, 0}, {"proj bwd", proj_bwd, L, 4 * N * C * A, 0},
        {"two maps bwd", c->diff ? diff_bwd : NULL, L, 0, 5 * NA},
        {"attention bwd", attention_bwd, L * maps, 2 * cores, 0},
        {"query, key bwd", pass_has_query_key(c) ? query_key_bwd : NULL, queries, 0, 3 * QK},
        {"rope bwd", rope_bwd, c->pos == POS_ROPE ? L : 0, 0, 4 * NA},
        {"qkv bwd", qkv_bwd, L, 12 * N * C * A, 0},
        {"embedding bwd", embed_bwd, 1, 0, NC + 4 * N + 8 * C * rows_touched(b) + dTC},
        {"gradient norm", grad_norm, share, 0, 4 * n}, {"step decision", decide, 1, 0, 0},
        {b->adam.lamb ? "LAMB" : "AdamW", adamw, share, 0, adam_bytes * n}};
    int count = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].run) ops[count++] = all[i];
    return count;
}

/* ---- timing ---------------------------------------------------------------------------------- */

static double seconds_of(Bench *b, void run(Bench *), int runs) {
    backend_synchronize(b->be);
    const double start = now_seconds();
    for (int i = 0; i < runs; i++) run(b);
    backend_synchronize(b->be);
    return now_seconds() - start;
}

/* Seconds of one run, the least of ROUNDS averages: other programs can only slow it down. */
static double time_op(Bench *b, void run(Bench *)) {
    int runs = 1;
    double took = seconds_of(b, run, 1); /* chooses kernels, loads them */
    if (took < LONG_SECONDS) took = seconds_of(b, run, 1);
    while (took < ROUND_SECONDS && runs < MAX_RUNS) {
        const double wanted = 1.1 * ROUND_SECONDS / (took / runs + 1e-9);
        runs = wanted > 8.0 * runs ? 8 * runs : (int)wanted + 1;
        took = seconds_of(b, run, runs);
    }
    double best = took / runs;
    for (int i = 1; i < ROUNDS && best < LONG_SECONDS; i++) {
        took = seconds_of(b, run, runs) / runs;
        if (took < best) best = took;
    }
    return best;
}

static void zero_large(Bench *b) {
    backend_zero(b->be, b->zeroed, ZERO_BYTES);
}

static void find_roofs(Bench *b, double bandwidth) {
    b->peak = backend_peak_flops(b->be);
    b->bandwidth = bandwidth;
    b->bandwidth_of = "as given";
    if (bandwidth > 0) return;
    b->zeroed = backend_alloc(b->be, ZERO_BYTES);
    b->bandwidth = (double)ZERO_BYTES / time_op(b, zero_large);
    b->bandwidth_of = "1 GiB zeroed";
    backend_free(b->be, b->zeroed);
}

static void print_flops(const Bench *b, double rate) {
    const bool tera = b->peak > 1e13;
    printf("%10.1f %cFLOP/s %6.1f", rate / (tera ? 1e12 : 1e9), tera ? 'T' : 'G',
        100 * rate / b->peak);
}

static void print_op(const Bench *b, const Op *op, double seconds) {
    printf("  %-22s %8.1f %12.2f ", op->name, op->calls, 1e6 * seconds);
    if (op->flops > 0)
        print_flops(b, op->flops / seconds);
    else
        printf("%10.1f GB/s    %6.1f", op->bytes / seconds / 1e9,
            100 * op->bytes / seconds / b->bandwidth);
    printf(" %12.3f\n", 1e3 * op->calls * seconds);
    fflush(stdout);
}

static void report(Bench *b, const char *only) {
    Op ops[MAX_OPS];
    char device[LINE];
    const int count = list_ops(b, ops);
    double step = 0, flops = 0;
    backend_describe(b->be, device, sizeof device);
    printf("%s attention, %s, %s, batch %d x %d tokens\n%s\n"
           "roofs: %.3f TFLOP/s, %.1f GB/s (%s)\n"
           "  %-22s %8s %12s %18s %6s %12s\n",
        backend_attention(), b->config.model, backend_precision(), b->B, b->T, device,
        b->peak / 1e12, b->bandwidth / 1e9, b->bandwidth_of, "operation", "calls", "us", "rate",
        "%", "ms in a step");
    for (int i = 0; i < count; i++) {
        if (only && !strstr(ops[i].name, only)) continue;
        const double seconds = time_op(b, ops[i].run);
        print_op(b, &ops[i], seconds);
        step += ops[i].calls * seconds;
        flops += ops[i].calls * ops[i].flops;
    }
    printf("  %-22s %8s %12s ", "all of a step", "", "");
    print_flops(b, flops / step);
    printf(" %12.3f\n\n", 1e3 * step);
}

/* ---- opening: one step, so that every array holds what a step leaves in it -------------------*/

static void take_step(Bench *b) {
    Model *m = &b->model;
    backend_zero(b->be, b->loss, sizeof *b->loss);
    model_forward(m, b->tokens, b->B, b->T);
    model_backward(m, b->targets, b->B, b->T, 1.0f / (float)b->N, 0.0f, b->loss);
    optim_step(&b->optim, m, &b->adam, b->loss, 1);
    const StepState s = optim_read(&b->optim, b->be);
    REQUIRE(!s.skipped, "loss %g, squared gradient norm %g", s.loss_sum, s.grad_sumsq);
}

static void open_bench(Bench *b) {
    const Config *c = &b->config;
    b->shape = config_model(c, 0);
    ModelConfig one = b->shape;
    one.L = 1;
    b->B = (int)c->batch, b->T = one.T, b->N = b->B * b->T, b->A = one.H * one.HD;
    const BackendLimits limits = model_limits(&one, b->B);
    const BackendOptions options = config_backend(c, 0);
    const size_t n = (size_t)b->N;
    b->be = backend_open(&options);
    backend_reserve(b->be, &limits);
    model_open(&b->model, b->be, &one, b->B, MODEL_TRAINING, NULL);
    model_init(&b->model, (uint64_t)c->seed);
    b->adam = optim_args(c);
    optim_open(&b->optim, &b->model, &(OptimOptions){.norms = optim_needs_norms(&b->adam)});
    b->loss = (double *)backend_alloc(b->be, sizeof *b->loss);
    b->adam.lr = 1e-6f; /* thousands of updates on one gradient follow */
    b->dqkv = (act_t *)backend_alloc(b->be, 3 * n * (size_t)b->A * sizeof(act_t));
    b->dout = (act_t *)backend_alloc(b->be, n * (size_t)b->A * sizeof(act_t));
    b->tokens = (int32_t *)xcalloc(n, sizeof *b->tokens);
    b->targets = (int32_t *)xcalloc(n, sizeof *b->targets);
    for (size_t i = 0; i < n; i++) {
        b->tokens[i] = (int32_t)(rng_u64(1, RNG_TEST, i) % (uint64_t)one.V);
        b->targets[i] = (int32_t)(rng_u64(1, RNG_TEST, n + i) % (uint64_t)one.V);
    }
    float *host = (float *)xcalloc(n * (size_t)b->A, sizeof *host);
    for (size_t i = 0; i < n * (size_t)b->A; i++)
        host[i] = (float)(rng_uniform(1, RNG_TEST, i) - 0.5) / (float)b->N;
    backend_upload_act(b->be, b->dout, host, n * (size_t)b->A);
    free(host);
    take_step(b);
    attention_bwd(b);
}

static void close_bench(Bench *b) {
    backend_free(b->be, b->dqkv);
    backend_free(b->be, b->dout);
    backend_free(b->be, b->loss);
    optim_close(&b->optim, &b->model);
    model_close(&b->model);
    backend_close(b->be);
    free(b->tokens);
    free(b->targets);
    free(b->config.command_line);
}

/* Removes "NAME VALUE", which the trainer does not have; NULL where it is not given. */
static const char *take_option(int *argc, char **argv, const char *name) {
    for (int i = 1; i + 1 < *argc; i++) {
        if (strcmp(argv[i], name) != 0) continue;
        const char *value = argv[i + 1];
        memmove(argv + i, argv + i + 2, (size_t)(*argc - i - 1) * sizeof *argv);
        *argc -= 2;
        return value;
    }
    return NULL;
}

int main(int argc, char **argv) {
    char plan[] = "--plan"; /* the one way to say that no data are needed */
    Bench b;
    char *all[64] = {argv[0], plan};
    const char *bandwidth = take_option(&argc, argv, "--bandwidth");
    const char *only = take_option(&argc, argv, "--only");
    if (argc > 62) die(EXIT_USAGE, "%d arguments are too many", argc);
    for (int i = 1; i < argc; i++) all[i + 1] = argv[i];
    memset(&b, 0, sizeof b);
    config_parse(&b.config, argc + 1, all);
    open_bench(&b);
    find_roofs(&b, bandwidth ? 1e9 * strtod(bandwidth, NULL) : 0);
    report(&b, only);
    close_bench(&b);
    return 0;
}
