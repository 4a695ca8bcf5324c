/* op_times.c: wrappers around the operations of the seam, and around the matrix product below it.
 * With --wrap=f the linker turns calls of f into calls of __wrap_f, and __real_f is f itself. The
 * counters are global because a wrapper has no argument to find them by. For the CPU backend: on a
 * GPU, operations return before they are done (op_times_none.c). */
#include "dev/bench/op_times.h"

#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/cpu/gemm.h"

/* Matrix products are told apart by what they multiply; the others of an operation are its rest. */
enum { FWD, DX, DW, REST, PARTS };
typedef enum Kind {
    QKV,
    PROJ,
    FC1,
    FC2,
    CLASSIFIER,
    ATTENTION,
    MODIFIERS,
    NORM,
    EMBED,
    GRAD_NORM,
    ADAMW,
    OTHER,
    KINDS
} Kind;

static const char *const NAMES[KINDS][PARTS] = {
    [QKV] = {"qkv fwd", "qkv bwd dx", "qkv bwd dw", "qkv bias gradient"},
    [PROJ] = {"proj fwd", "proj bwd dx", "proj bwd dw", "proj bias gradient"},
    [FC1] = {"fc1 fwd + activation", "fc1 bwd dx", "fc1 bwd dw", "fc1 bias gradient"},
    [FC2] = {"fc2 fwd", "fc2 bwd dx + activation", "fc2 bwd dw", "fc2 bias gradient"},
    [CLASSIFIER] = {"logits", "logits bwd dx", "logits bwd dw", "softmax, cross-entropy"},
    [ATTENTION] = {"attention fwd", "attention bwd"},
    [MODIFIERS] = {"modifiers fwd", "modifiers bwd"},
    [NORM] = {"residual + norm fwd", "norm bwd"},
    [EMBED] = {"embedding fwd", "embedding bwd"},
    [GRAD_NORM] = {"gradient norm"},
    [ADAMW] = {"AdamW"},
    [OTHER] = {"zeroing", NULL, NULL, "all else"},
};

typedef struct Counter {          /* of one step */
    double seconds, flops, bytes; /* flops: the model's, without what is recomputed */
    int calls;
} Counter;

static struct OpTimes {
    const Model *model;
    Counter counters[KINDS][PARTS];             /* of the step that is running */
    double seconds[KINDS][PARTS][OP_TIMES_MAX]; /* of the steps that were taken */
    double step_seconds[OP_TIMES_MAX];
    int steps;
    bool in_step;
    Kind running;  /* kind of the operation that is running now */
    double nested; /* seconds of the matrix products inside it */
} times;

static void count(Kind kind, int part, double seconds, double flops, double bytes) {
    if (!times.in_step) return;
    Counter *c = &times.counters[kind][part];
    c->seconds += seconds;
    c->flops += flops;
    c->bytes += bytes;
    c->calls++;
}

void op_times_begin(const Model *m) {
    times.model = m;
    times.steps = 0;
}

void op_times_step_begin(void) {
    memset(times.counters, 0, sizeof times.counters);
    times.in_step = true;
}

void op_times_step_done(double seconds) {
    times.in_step = false;
    if (times.steps == OP_TIMES_MAX) return;
    Counter *rest = &times.counters[OTHER][REST];
    rest->seconds = seconds;
    for (int i = 0; i < KINDS * PARTS; i++) {
        Counter *c = &times.counters[i / PARTS][i % PARTS];
        if (c != rest) rest->seconds -= c->seconds;
    }
    for (int i = 0; i < KINDS * PARTS; i++)
        times.seconds[i / PARTS][i % PARTS][times.steps] =
            times.counters[i / PARTS][i % PARTS].seconds;
    times.step_seconds[times.steps++] = seconds;
}

/* ---- the wrappers ------------------------------------------------------------------------------
 */

#define TIMED(function, parameters, arguments, kind, part, flops, bytes)                           \
    void __real_##function parameters;                                                             \
    void __wrap_##function parameters;                                                             \
    void __wrap_##function parameters {                                                            \
        const double start = now_seconds();                                                        \
        __real_##function arguments;                                                               \
        count(kind, part, now_seconds() - start, flops, bytes);                                    \
    }

/* The same around matrix products, which are counted by themselves. */
#define TIMED_AROUND(function, parameters, arguments, kind)                                        \
    void __real_##function parameters;                                                             \
    void __wrap_##function parameters;                                                             \
    void __wrap_##function parameters {                                                            \
        times.running = kind;                                                                      \
        times.nested = 0;                                                                          \
        const double start = now_seconds();                                                        \
        __real_##function arguments;                                                               \
        const Kind was = times.running;                                                            \
        times.running = OTHER;                                                                     \
        count(was, REST, now_seconds() - start - times.nested, 0, 0);                              \
    }

static Kind linear_kind(const act_t *w) {
    static const struct {
        ParamId id;
        Kind kind;
    } known[] = {{P_qkvw, QKV}, {P_projw, PROJ}, {P_fc1w, FC1}, {P_fc2w, FC2}};
    const Model *m = times.model;
    for (size_t i = 0; m && i < sizeof known / sizeof *known; i++)
        for (int layer = 0; layer < m->config.L; layer++)
            if (param_act(&m->table, m->params, known[i].id, layer) == w) return known[i].kind;
    return OTHER; /* the product that measures the machine */
}

/* Bytes of n arrays of N x C activations. */
static double act_bytes(double n, int N, int C) {
    return n * N * C * (double)sizeof(act_t);
}

/* Model FLOPs of causal attention, half of the square: two products forward, four backward, half of
 * them over the channels of the scores, half over those of the values. */
static double attention_flops(const AttentionArgs *a, double products) {
    return products * a->B * a->H * (double)a->T * a->T * (a->DK + a->HD) / 2;
}

/* Bytes of the queries, and of the keys where they change, too. */
static double query_key_bytes(double n, const QueryKeyArgs *a) {
    return act_bytes(a->qw ? 2 * n : n, a->N, a->H * a->HD);
}

TIMED(op_query_key_fwd, (Backend * be, act_t *qkv, const QueryKeyArgs *a), (be, qkv, a), MODIFIERS,
    FWD, 0, query_key_bytes(a->qw ? 3 : 2, a))
TIMED(op_query_key_bwd,
    (Backend * be, act_t *dqkv, float *dqw, float *dkw, float *dp, float beta, const act_t *qkv,
        const QueryKeyArgs *a),
    (be, dqkv, dqw, dkw, dp, beta, qkv, a), MODIFIERS, DX, 0, query_key_bytes(3, a))
TIMED(op_diff_fwd, (Backend * be, act_t *out, const act_t *o1, const act_t *o2, const DiffArgs *a),
    (be, out, o1, o2, a), MODIFIERS, FWD, 0, act_bytes(3, a->N, a->H * a->HD))
TIMED(op_diff_bwd,
    (Backend * be, act_t *do1, act_t *do2, const DiffGrads *g, const act_t *dout, const act_t *o1,
        const act_t *o2, const DiffArgs *a),
    (be, do1, do2, g, dout, o1, o2, a), MODIFIERS, DX, 0, act_bytes(5, a->N, a->H * a->HD))

void __real_gemm(Backend *be, const GemmArgs *a);
void __wrap_gemm(Backend *be, const GemmArgs *a);
void __wrap_gemm(Backend *be, const GemmArgs *a) {
    const double start = now_seconds();
    __real_gemm(be, a);
    const double took = now_seconds() - start;
    times.nested += took;
    count(times.running,
        a->transB   ? FWD
        : a->transA ? DW
                    : DX,
        took, 2.0 * a->M * (double)a->N * a->K, 0);
}

void __real_op_linear_fwd(Backend *be, act_t *y, const act_t *x, const LinearArgs *a);
void __wrap_op_linear_fwd(Backend *be, act_t *y, const act_t *x, const LinearArgs *a);
void __wrap_op_linear_fwd(Backend *be, act_t *y, const act_t *x, const LinearArgs *a) {
    times.running = linear_kind(a->w); /* bias and activation are part of the product */
    __real_op_linear_fwd(be, y, x, a);
    times.running = OTHER;
}

TIMED_AROUND(op_linear_bwd,
    (Backend * be, act_t *dx, float *dw, float *dbias, float beta, const act_t *dy, const act_t *x,
        const LinearArgs *a),
    (be, dx, dw, dbias, beta, dy, x, a), linear_kind(a->w))
TIMED_AROUND(op_classifier_train,
    (Backend * be, float *losses, act_t *dx, float *dw, float *dbias, float beta, float grad_scale,
        const act_t *x, const int32_t *targets, const ClassifierArgs *a),
    (be, losses, dx, dw, dbias, beta, grad_scale, x, targets, a), CLASSIFIER)
TIMED(op_attention_fwd, (Backend * be, act_t *out, const act_t *qkv, const AttentionArgs *a),
    (be, out, qkv, a), ATTENTION, FWD, attention_flops(a, 2), 0)
TIMED(op_attention_bwd,
    (Backend * be, act_t *dqkv, const act_t *dout, const act_t *qkv, const act_t *out,
        const AttentionArgs *a),
    (be, dqkv, dout, qkv, out, a), ATTENTION, DX, attention_flops(a, 4), 0)
TIMED(op_residual_norm_fwd,
    (Backend * be, act_t *x, act_t *out, const act_t *x_in, const act_t *delta, const NormArgs *a),
    (be, x, out, x_in, delta, a), NORM, FWD, 0, act_bytes(delta ? 4 : 2, a->N, a->C))
TIMED(op_norm_bwd,
    (Backend * be, act_t *dx, float *dw, float *db, float beta, const act_t *dout, const act_t *x,
        const NormArgs *a),
    (be, dx, dw, db, beta, dout, x, a), NORM, DX, 0, act_bytes(4, a->N, a->C))
TIMED(op_embed_fwd,
    (Backend * be, act_t *x, const int32_t *tokens, const act_t *wte, const act_t *pos, float scale,
        const int *BTC),
    (be, x, tokens, wte, pos, scale, BTC), EMBED, FWD, 0,
    act_bytes(pos ? 3 : 2, BTC[0] * BTC[1], BTC[2]))
TIMED(op_embed_bwd,
    (Backend * be, float *dwte, float *dpos, float beta, const act_t *dx, const int32_t *tokens,
        float scale, const int *BTC),
    (be, dwte, dpos, beta, dx, tokens, scale, BTC), EMBED, DX, 0,
    act_bytes(dpos ? 5 : 3, BTC[0] * BTC[1], BTC[2]))
TIMED(op_rope, (Backend * be, act_t *qkv, int sign, const RopeArgs *a), (be, qkv, sign, a), EMBED,
    sign > 0 ? FWD : DX, 0, act_bytes(4, a->B * a->T, a->H * a->HD))
TIMED(op_square_blocks, (Backend * be, double *squares, const float *x, size_t n),
    (be, squares, x, n), GRAD_NORM, FWD, 0, (double)(n * sizeof *x))
TIMED(op_adamw, (Backend * be, const OptTensors *x, const AdamArgs *a, StepState *s), (be, x, a, s),
    ADAMW, FWD, 0, 28.0 * (double)x->held)
TIMED(op_adam_sums, (Backend * be, const OptTensors *x, const AdamArgs *a, StepState *s),
    (be, x, a, s), ADAMW, FWD, 0, (a->lamb ? 24.0 : 20.0) * (double)x->held)
TIMED(op_adam_apply, (Backend * be, const OptTensors *x, const AdamArgs *a, StepState *s),
    (be, x, a, s), ADAMW, FWD, 0, 16.0 * (double)x->held)
TIMED(backend_zero, (Backend * be, void *p, size_t bytes), (be, p, bytes), OTHER, FWD, 0,
    (double)bytes)

/* ---- the table ----------------------------------------------------------------------------------
 */

/* c: the last step's, its seconds replaced by the median of all steps */
static void print_row(FILE *out, const char *name, const Counter *c, double step, double peak) {
    const double lost = c->seconds - c->flops / peak;
    fprintf(out, "  %-26s %5d %10.3f %6.1f ", name, c->calls, 1e3 * c->seconds,
        100 * c->seconds / step);
    if (c->flops > 0)
        fprintf(out, "%8.1f GFLOP/s", c->flops / c->seconds / 1e9);
    else if (c->bytes > 0)
        fprintf(out, "%8.1f GB/s   ", c->bytes / c->seconds / 1e9);
    else
        fprintf(out, "%16s", "");
    fprintf(out, " %10.2f %6.1f\n", 1e3 * lost, 100 * lost / step);
}

void op_times_print(FILE *out, double peak_flops) {
    if (times.steps == 0) return;
    const double step = median(times.step_seconds, times.steps);
    Counter all = {.calls = 1, .seconds = step};
    fprintf(out,
        "\n  %-26s %5s %10s %6s %16s   beyond sgemm\n"
        "  %-26s %5s %10s %6s %16s %10s %6s\n",
        "operation", "calls", "ms", "%", "rate", "(medians of the steps)", "", "", "", "", "ms",
        "%");
    for (int k = 0; k < KINDS; k++)
        for (int p = 0; p < PARTS; p++) {
            Counter c = times.counters[k][p];
            c.seconds = median(times.seconds[k][p], times.steps);
            all.flops += c.flops;
            if (c.seconds > 2e-4 * step) print_row(out, NAMES[k][p], &c, step, peak_flops);
        }
    print_row(out, "the step", &all, step, peak_flops);
}
