/* cuda/attention.cu: causal attention: which core, its memory, and the steps around it. The parts
 * are in laser.cu (before and after), attention_gemm.cu and attention_cudnn.cc (cores), and
 * laser_exact.cu. */
#include "laser/cuda/attention.cuh"

#include <stdio.h>

#include "laser/cuda/laser.cuh"

static const size_t ATTENTION_BUDGET = (size_t)512 << 20;

/* Where things lie in be->attention. */
typedef struct AttentionPlan {
    size_t exact, D, work, core; /* offsets */
    size_t core_bytes, total;
    GemmCorePlan gemm;
} AttentionPlan;

/* LASER's F and dO for the cuDNN core, (B, T, H, HD) each, and the core's own workspace. */
static size_t cudnn_acts_bytes(int B, int T, int H, int HD) {
    const size_t n = size_mul((size_t)B * (size_t)T, (size_t)H * (size_t)HD);
    return LASER ? 2 * (size_add(size_mul(n, sizeof(act_t)), 255) & ~(size_t)255) : 0;
}

/* all: bytes that there are, 0 before anything is reserved; then the gemm core gets the budget. */
static AttentionPlan attention_plan(
    int B, int T, int H, int HD, size_t budget, size_t cudnn_bytes, size_t all) {
    AttentionPlan p = {};
    const size_t rows = size_mul((size_t)B * (size_t)T, (size_t)H);
    p.exact = scratch_take(&p.total, LASER ? rows * sizeof(int) : 0);
    p.D = scratch_take(&p.total, rows * sizeof(float));
    p.work = scratch_take(&p.total, LASER ? laser_exact_bytes(T, HD) : 0);
    if (all > p.total) budget = all - p.total;
    p.gemm = gemm_core_plan(B, T, H, HD, budget);
    p.core_bytes = cudnn_bytes > p.gemm.bytes ? cudnn_bytes : p.gemm.bytes;
    p.core = scratch_take(&p.total, p.core_bytes);
    return p;
}

static bool may_use_cudnn(const BackendLimits *l, const BackendOptions *options, int major) {
    const AttnShape s = {l->HD, l->DK, l->T, major, l->capped, BF16, cudnn_attention_available()};
    return attn_choose(&s, options->attn_core).core == ATTN_CORE_CUDNN;
}

size_t attention_scratch_bytes(const BackendLimits *l, const BackendOptions *options, int major) {
    size_t cudnn = 0;
    if (may_use_cudnn(l, options, major))
        cudnn = size_add(cudnn_acts_bytes(l->B, l->T, l->H, l->HD),
            cudnn_attention_workspace(l->B, l->T, l->H, l->HD));
    const size_t budget = options->attn_budget ? options->attn_budget : ATTENTION_BUDGET;
    return attention_plan(l->B, l->T, l->H, l->HD, budget, cudnn, 0).total;
}

AttnChoice attention_core(const Backend *be, int HD, int DK, int T, bool softcap) {
    const AttnShape s = {HD, DK, T, be->major, softcap, BF16, cudnn_attention_available()};
    const AttnChoice choice = attn_choose(&s, be->options.attn_core);
    if (choice.core == ATTN_CORE_AUTO)
        die(EXIT_USAGE, "--attn-core: this core cannot serve head size %d: %s", HD, choice.why);
    return choice;
}

void attention_describe(const Backend *be, char *text, size_t capacity) {
    const BackendLimits *l = &be->limits;
    const AttnChoice choice = attention_core(be, l->HD, l->DK, l->T, l->capped);
    snprintf(text, capacity, ", attention by %s: %s",
        choice.core == ATTN_CORE_CUDNN ? "cuDNN" : "products", choice.why);
}

cudaStream_t cudnn_stream_of(const Backend *be) {
    return be->stream;
}

CudnnPlans **cudnn_plans_of(Backend *be) {
    return &be->cudnn;
}

/* The shape of a call: q and k as they lie in qkv, and so standard's values; LASER's F dense. */
static CudnnAttention cudnn_shape(int B, int T, int H, int HD) {
    const int64_t W = (int64_t)H * HD;
    CudnnAttention c = {};
    c.B = B, c.T = T, c.H = H, c.HD = HD;
    c.qkv_seq = (int64_t)T * 3 * W, c.qkv_tok = 3 * W;
    c.f_seq = LASER ? (int64_t)T * W : c.qkv_seq, c.f_tok = LASER ? W : c.qkv_tok;
    return c;
}

void attention_reserve(Backend *be) {
    const BackendLimits *l = &be->limits;
    if (attention_core(be, l->HD, l->DK, l->T, l->capped).core != ATTN_CORE_CUDNN) return;
    CudnnAttention c = cudnn_shape(l->B, l->T, l->H, l->HD);
    c.softcap = l->capped ? 1.0f : 0.0f; /* whether there is one is all that a plan knows */
    cudnn_attention_build(be, &c);
}

/* ---- the operations -------------------------------------------------------------------------- */

size_t op_attention_laser_floats(int B, int T, int H, int HD) {
    if (!LASER) return 0;
    const size_t n = size_mul((size_t)B * (size_t)H, (size_t)HD);
    const size_t o = size_mul(size_mul(n, (size_t)T), sizeof(act_t));
    return size_add(3 * n, (o + sizeof(float) - 1) / sizeof(float));
}

typedef struct Attention { /* one call */
    const AttentionArgs *a;
    AttentionPlan plan;
    LaserSaved saved;
    int *exact;
    float *D;
    char *work, *core;
    bool cudnn;
} Attention;

static Attention attention_open(Backend *be, const AttentionArgs *a) {
    require_scratch(be);
    REQUIRE(a->B > 0 && a->T > 0 && a->H > 0 && a->HD > 0, "B %d T %d H %d HD %d", a->B, a->T, a->H,
        a->HD);
    REQUIRE(a->DK > 0 && a->k0 >= 0 && a->k0 + a->DK <= a->HD, "channels %d to %d of %d", a->k0,
        a->k0 + a->DK, a->HD);
    REQUIRE(!LASER || a->laser, "%s", "LASER needs what its backward reads");
    REQUIRE(a->from == 0 || (a->B == 1 && a->from > 0 && a->from < a->T), "from %d of %d, B %d",
        a->from, a->T, a->B);
    Attention x = {};
    x.a = a;
    const bool capped = a->softcap > 0 || be->limits.capped; /* as reserved */
    /* cuDNN would plan for each length anew */
    x.cudnn = a->from == 0 &&
              attention_core(be, a->HD, a->DK, a->T, capped).core == ATTN_CORE_CUDNN;
    x.plan = attention_plan(a->B, a->T, a->H, a->HD, 0, 0, be->plan.attention_bytes);
    REQUIRE(x.plan.total <= be->plan.attention_bytes, "B %d T %d H %d HD %d: more than reserved",
        a->B, a->T, a->H, a->HD);
    if (LASER) x.saved = laser_saved(a->laser, a->B, a->T, a->H, a->HD);
    x.exact = (int *)(be->attention + x.plan.exact);
    x.D = (float *)(be->attention + x.plan.D);
    x.work = be->attention + x.plan.work;
    x.core = be->attention + x.plan.core;
    return x;
}

static GemmCoreArgs gemm_args(const Attention *x) {
    return GemmCoreArgs{x->a, x->plan.gemm, x->core, x->saved, x->exact, x->D};
}

static Rows all_rows(const AttentionArgs *a) {
    return Rows{0, a->B * a->H, a->H, 0, a->T, a->HD, a->HD};
}

/* LASER's F lies in the core's memory, the workspace behind it and dO. */
static CudnnAttention cudnn_args(Backend *be, const Attention *x, const act_t *qkv) {
    const AttentionArgs *a = x->a;
    const int64_t W = (int64_t)a->H * a->HD;
    const size_t acts = cudnn_acts_bytes(a->B, a->T, a->H, a->HD);
    CudnnAttention c = cudnn_shape(a->B, a->T, a->H, a->HD);
    c.scale = a->scale;
    c.softcap = a->softcap;
    c.q = qkv, c.k = qkv + W, c.f = LASER ? (const act_t *)x->core : qkv + 2 * W;
    c.lse = a->lse;
    c.workspace = x->core + acts;
    c.workspace_bytes = be->plan.attention_bytes - x->plan.core - acts;
    return c;
}

static void cudnn_core_fwd(Backend *be, act_t *out, const act_t *qkv, const Attention *x) {
    const AttentionArgs *a = x->a;
    CudnnAttention c = cudnn_args(be, x, qkv);
    c.o = LASER ? x->saved.o : out;
    const Rows r = all_rows(a);
    if (LASER)
        laser_values(be, dense_view((act_t *)x->core, a->T, a->H, a->HD),
            qkv_view(qkv, 2, a->T, a->H, a->HD), x->saved, &r);
    cudnn_attention_fwd(be, &c);
    if (LASER)
        attention_post(be, dense_view(out, a->T, a->H, a->HD),
            dense_view((const act_t *)x->saved.o, a->T, a->H, a->HD), x->saved, x->exact, a->T, &r);
}

static void cudnn_core_bwd(Backend *be, act_t *dqkv, const act_t *dout, const act_t *qkv,
    const act_t *out, const Attention *x) {
    const AttentionArgs *a = x->a;
    const int T = a->T, H = a->H, HD = a->HD;
    const int64_t W = (int64_t)H * HD;
    REQUIRE(!a->add_dv, "%s", "cuDNN's core adds nothing to dv");
    CudnnAttention c = cudnn_args(be, x, qkv);
    act_t *f = (act_t *)x->core;
    act_t *dO = (act_t *)(x->core + cudnn_acts_bytes(a->B, T, H, HD) / 2);
    const Rows r = all_rows(a);
    c.o = LASER ? x->saved.o : (act_t *)out;
    c.dO = LASER ? dO : dout;
    c.dq = dqkv, c.dk = dqkv + W, c.df = dqkv + 2 * W;
    if (LASER) {
        laser_values_again(be, dense_view(f, T, H, HD), qkv_view(qkv, 2, T, H, HD), x->saved, &r);
        attention_dout(be, dense_view(dO, T, H, HD), NULL, x->exact, dense_view(dout, T, H, HD),
            dense_view(out, T, H, HD), x->saved, T, &r);
    }
    cudnn_attention_bwd(be, &c);
    if (LASER)
        laser_dv(be, qkv_view(dqkv, 2, T, H, HD), qkv_view((const act_t *)dqkv, 2, T, H, HD),
            dense_view((const act_t *)f, T, H, HD), x->saved, false, &r);
}

void op_attention_fwd(Backend *be, act_t *out, const act_t *qkv, const AttentionArgs *a) {
    const Attention x = attention_open(be, a);
    const GemmCoreArgs g = gemm_args(&x);
    if (LASER && a->from) /* of rows that are left */
        backend_zero(be, x.exact, (size_t)a->H * (size_t)a->T * sizeof *x.exact);
    if (x.cudnn)
        cudnn_core_fwd(be, out, qkv, &x);
    else
        gemm_core_fwd(be, out, qkv, &g);
    if (LASER) laser_exact_fwd(be, out, qkv, x.exact, x.work, x.saved, a);
}

void op_attention_bwd(Backend *be, act_t *dqkv, const act_t *dout, const act_t *qkv,
    const act_t *out, const AttentionArgs *a) {
    const Attention x = attention_open(be, a);
    const GemmCoreArgs g = gemm_args(&x);
    if (x.cudnn)
        cudnn_core_bwd(be, dqkv, dout, qkv, out, &x);
    else
        gemm_core_bwd(be, dqkv, dout, qkv, out, &g);
    const ExactBwd e = {dqkv, dout, qkv, x.exact, x.work};
    if (LASER) laser_exact_bwd(be, &e, x.saved, a);
}
