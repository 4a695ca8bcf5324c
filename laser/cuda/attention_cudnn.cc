/* cuda/attention_cudnn.cc: causal attention by cuDNN's fused kernels, through its header-only C++
 * library cudnn_frontend. The one file of this directory in that library's C++ (STL, classes), and
 * compiled by the host's compiler alone. A plan, the compiled form of a graph, is kept for each
 * shape. Knows no variant of attention, and nothing of the Backend but its stream. */
#include "laser/cuda/attention_cudnn.cuh"

#include <stdio.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#define CUDNN_FRONTEND_SKIP_JSON_LIB /* plans are not written to files */
#include <cudnn_frontend.h>

#if CUDNN_FRONTEND_VERSION < 11401
#error "cudnn_frontend 1.14.1 or newer is needed: scripts/setup.sh gpu gets it"
#endif

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Pointwise_attributes;
using fe::graph::Tensor_attributes;
using Tensor = std::shared_ptr<Tensor_attributes>;

static const size_t OLDEST = 91501;    /* older ones cap no scores where T is not whole tiles */
static const int64_t ALIGNED = 16;     /* bytes; cuDNN loads that much at a time */
static const int64_t SLACK = 1 << 20;  /* workspace beside the parts that grow with the shape */
static const int64_t SCORES = 1 << 30; /* bytes of scores for which a backward call may ask */

/* Names of the tensors in a graph. */
enum { Q = 1, K, F, O, LSE, DO, DQ, DK, DF, SCALE, CAP };

/* What a plan is made for. */
typedef struct Shape {
    bool bwd, capped;
    int64_t B, T, H, HD;
    int64_t qkv_seq, qkv_tok, f_seq, f_tok;
} Shape;

typedef struct Plan {
    Shape shape;
    std::shared_ptr<Graph> graph;
    int64_t workspace; /* bytes */
} Plan;

struct CudnnPlans {
    cudnnHandle_t handle;
    std::vector<Plan> plans;
};

static Shape shape_of(const CudnnAttention *a, bool bwd, int sequences) {
    Shape s = {};
    s.bwd = bwd, s.capped = a->softcap > 0;
    s.B = sequences, s.T = a->T, s.H = a->H, s.HD = a->HD;
    s.qkv_seq = a->qkv_seq, s.qkv_tok = a->qkv_tok, s.f_seq = a->f_seq, s.f_tok = a->f_tok;
    return s;
}

static bool same_shape(const Shape &a, const Shape &b) {
    return a.bwd == b.bwd && a.capped == b.capped && a.B == b.B && a.T == b.T && a.H == b.H &&
           a.HD == b.HD && a.qkv_seq == b.qkv_seq && a.qkv_tok == b.qkv_tok && a.f_seq == b.f_seq &&
           a.f_tok == b.f_tok;
}

/* ---- errors ---------------------------------------------------------------------------------- */

NORETURN static void fail(const char *what, const char *why, const Shape &s) {
    char version[64];
    cudnn_attention_describe(version, sizeof version);
    die(EXIT_IO,
        "%s: %s fails for the %s pass of attention, B %d T %d, %d heads of %d%s: %s. Use "
        "--attn-core gemm",
        version, what, s.bwd ? "backward" : "forward", (int)s.B, (int)s.T, (int)s.H, (int)s.HD,
        s.capped ? ", soft-capped" : "", why);
}

static void check(fe::error_t status, const char *what, const Shape &s) {
    if (!status.is_good()) fail(what, status.get_message().c_str(), s);
}

static void check(cudnnStatus_t status, const char *what, const Shape &s) {
    if (status != CUDNN_STATUS_SUCCESS) fail(what, cudnnGetErrorString(status), s);
}

/* ---- graphs ---------------------------------------------------------------------------------- */

static Tensor_attributes named(const char *name, int64_t uid) {
    return Tensor_attributes().set_name(name).set_uid(uid);
}

/* cuDNN orders the dimensions of a tensor (B, H, T, HD); strides say how it lies. */
static void lay(Tensor x, const Shape &s, int64_t seq, int64_t tok) {
    x->set_dim({s.B, s.H, s.T, s.HD}).set_stride({seq, s.HD, tok, 1});
}

static Tensor input(
    Graph *g, const char *name, int64_t uid, const Shape &s, int64_t seq, int64_t tok) {
    Tensor x = g->tensor(named(name, uid));
    lay(x, s, seq, tok);
    return x;
}

static void output(Tensor x, int64_t uid, const Shape &s, int64_t seq, int64_t tok) {
    x->set_output(true).set_uid(uid);
    lay(x, s, seq, tok);
}

/* A float whose value is given with each call. */
static Tensor number(Graph *g, const char *name, int64_t uid) {
    return g->tensor(named(name, uid)
                         .set_dim({1, 1, 1, 1})
                         .set_stride({1, 1, 1, 1})
                         .set_is_pass_by_value(true)
                         .set_data_type(fe::DataType_t::FLOAT));
}

static void lay_lse(Tensor x, const Shape &s) {
    x->set_dim({s.B, s.H, s.T, 1}).set_stride({s.H * s.T, s.T, 1, 1});
    x->set_data_type(fe::DataType_t::FLOAT);
}

/* The soft cap: scores, already divided by it, become cap * tanh of them, then the causal mask,
 * which cuDNN does not add itself beside a change of scores. */
struct Softcap {
    Tensor cap, tanh;

    static Tensor two(Graph *g, Tensor a, Tensor b, fe::PointwiseMode_t mode) {
        return g->pointwise(a, b, Pointwise_attributes().set_mode(mode));
    }
    Tensor fwd(std::shared_ptr<Graph> g, Tensor scores) {
        tanh = g->pointwise(scores, Pointwise_attributes().set_mode(fe::PointwiseMode_t::TANH_FWD));
        return fe::graph::attn::score_modifiers::causal_mask(
            g, two(g.get(), tanh, cap, fe::PointwiseMode_t::MUL));
    }
    /* d * cap * (1 - tanh^2): cuDNN's own derivative of tanh is not there on Ampere. Masked scores
     * need nothing: their probability is 0, and d with it. */
    Tensor bwd(std::shared_ptr<Graph> g, Tensor d) {
        const Tensor square = two(g.get(), tanh, tanh, fe::PointwiseMode_t::MUL);
        const Tensor scaled = two(g.get(), d, cap, fe::PointwiseMode_t::MUL);
        const Tensor lost = two(g.get(), scaled, square, fe::PointwiseMode_t::MUL);
        return two(g.get(), scaled, lost, fe::PointwiseMode_t::SUB);
    }
};

static std::shared_ptr<Softcap> softcap_of(Graph *g) {
    const std::shared_ptr<Softcap> cap = std::make_shared<Softcap>();
    cap->cap = number(g, "cap", CAP);
    return cap;
}

template <typename Options> static void mask_or_cap(Options *options, std::shared_ptr<Softcap> c) {
    if (c)
        options->set_score_mod(
            [c](std::shared_ptr<Graph> g, Tensor scores) { return c->fwd(g, scores); });
    else /* no key behind the query: causal */
        options->set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
            .set_diagonal_band_right_bound(0);
}

static void add_fwd(Graph *g, const Shape &s) {
    fe::graph::SDPA_attributes options;
    options.set_name("attention_fwd").set_generate_stats(true);
    options.set_attn_scale(number(g, "scale", SCALE));
    mask_or_cap(&options, s.capped ? softcap_of(g) : nullptr);
    const Tensor q = input(g, "q", Q, s, s.qkv_seq, s.qkv_tok);
    const Tensor k = input(g, "k", K, s, s.qkv_seq, s.qkv_tok);
    const Tensor f = input(g, "f", F, s, s.f_seq, s.f_tok);
    const auto out = g->sdpa(q, k, f, options);
    output(out[0], O, s, s.T * s.H * s.HD, s.H * s.HD);
    out[1]->set_output(true).set_uid(LSE);
    lay_lse(out[1], s);
}

static void add_bwd(Graph *g, const Shape &s) {
    fe::graph::SDPA_backward_attributes options;
    options.set_name("attention_bwd").set_deterministic_algorithm(true);
    options.set_attn_scale(number(g, "scale", SCALE));
    const std::shared_ptr<Softcap> cap = s.capped ? softcap_of(g) : nullptr;
    mask_or_cap(&options, cap);
    if (cap)
        options.set_score_mod_bprop(
            [cap](std::shared_ptr<Graph> sub, Tensor d) { return cap->bwd(sub, d); });
    const int64_t seq = s.T * s.H * s.HD, tok = s.H * s.HD;
    const Tensor q = input(g, "q", Q, s, s.qkv_seq, s.qkv_tok);
    const Tensor k = input(g, "k", K, s, s.qkv_seq, s.qkv_tok);
    const Tensor f = input(g, "f", F, s, s.f_seq, s.f_tok);
    const Tensor o = input(g, "o", O, s, seq, tok);
    const Tensor d = input(g, "dO", DO, s, seq, tok);
    const Tensor lse = g->tensor(named("lse", LSE));
    lay_lse(lse, s);
    const auto out = g->sdpa_backward(q, k, f, o, d, lse, options);
    for (int i = 0; i < 3; i++) output(out[(size_t)i], DQ + i, s, s.qkv_seq, s.qkv_tok);
}

/* The graph of a shape, not built yet. */
static std::shared_ptr<Graph> graph_of(const Shape &s) {
    const std::shared_ptr<Graph> g = std::make_shared<Graph>();
    g->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    if (s.bwd)
        add_bwd(g.get(), s);
    else
        add_fwd(g.get(), s);
    return g;
}

/* ---- workspace ------------------------------------------------------------------------------- */

/* A deterministic backward pass keeps the gradient of all scores, in bf16 and in whole tiles, or
 * its sums for dq, in fp32; and a few numbers a row. */
static int64_t bound(int64_t B, int64_t T, int64_t H, int64_t HD) {
    const int64_t tiled = (T + 127) / 128 * 128;
    const int64_t scores = 2 * tiled * tiled, sums = 4 * tiled * HD, rows = 8 * tiled;
    return B * H * ((scores > sums ? scores : sums) + rows) + SLACK;
}

/* Sequences in a call of the backward pass, so that long ones do not ask for B times the gradient
 * of all their scores. */
static int sequences_at_once(int B, int T, int H, int HD) {
    const int64_t fit = SCORES / (bound(1, T, H, HD) - SLACK);
    const int64_t calls = fit >= B ? 1 : fit < 1 ? B : (B + fit - 1) / fit;
    return (int)((B + calls - 1) / calls);
}

size_t cudnn_attention_workspace(int B, int T, int H, int HD) {
    const int64_t longest = bound(1, T, H, HD) - SLACK;
    const int64_t all = B * longest;
    return (size_t)((all < SCORES ? all : longest > SCORES ? longest : SCORES) + SLACK);
}

/* ---- plans ----------------------------------------------------------------------------------- */

static void build(Graph *g, cudnnHandle_t handle, const Shape &s) {
    check(g->validate(), "the graph", s);
    check(g->build_operation_graph(handle), "the operation graph", s);
    check(g->create_execution_plans({fe::HeurMode_t::A}), "the search for plans", s);
    g->deselect_workspace_greater_than(s.bwd ? bound(s.B, s.T, s.H, s.HD) : SLACK);
    check(g->check_support(), "the choice of a plan", s);
    check(g->build_plans(), "the compilation", s);
}

static CudnnPlans *opened(Backend *be, const Shape &s) {
    CudnnPlans **plans = cudnn_plans_of(be);
    if (!*plans) {
        *plans = new CudnnPlans();
        check(cudnnCreate(&(*plans)->handle), "opening the library", s);
        check(cudnnSetStream((*plans)->handle, cudnn_stream_of(be)), "the stream", s);
    }
    return *plans;
}

static const Plan *plan_of(CudnnPlans *p, const Shape &s) {
    for (const Plan &plan : p->plans)
        if (same_shape(plan.shape, s)) return &plan;
    Plan plan = {s, graph_of(s), 0};
    build(plan.graph.get(), p->handle, s);
    check(plan.graph->get_workspace_size(plan.workspace), "the size of the workspace", s);
    p->plans.push_back(plan);
    return &p->plans.back();
}

static void require_shape(const CudnnAttention *a) {
    REQUIRE(sizeof(act_t) == 2, "%s", "cuDNN's attention takes bf16");
    REQUIRE(a->B > 0 && a->T > 0 && a->H > 0, "B %d T %d H %d", a->B, a->T, a->H);
    REQUIRE(a->HD > 0 && a->HD % 8 == 0, "head size %d", a->HD);
    REQUIRE(a->qkv_seq % 8 == 0 && a->qkv_tok % 8 == 0 && a->f_seq % 8 == 0 && a->f_tok % 8 == 0,
        "strides %lld %lld %lld %lld", (long long)a->qkv_seq, (long long)a->qkv_tok,
        (long long)a->f_seq, (long long)a->f_tok);
}

typedef std::unordered_map<int64_t, void *> Pointers;

static void run(Backend *be, const CudnnAttention *a, const Shape &s, Pointers *pointers) {
    for (const auto &p : *pointers)
        REQUIRE((uintptr_t)p.second % ALIGNED == 0 || p.first == LSE, "tensor %d at %p",
            (int)p.first, p.second);
    CudnnPlans *plans = opened(be, s);
    const Plan *plan = plan_of(plans, s);
    if ((size_t)plan->workspace > a->workspace_bytes) {
        const std::string need = std::to_string(plan->workspace);
        const std::string have = std::to_string(a->workspace_bytes);
        fail("the workspace", (need + " bytes are needed, " + have + " reserved").c_str(), s);
    }
    float scale = s.capped ? a->scale / a->softcap : a->scale, cap = a->softcap;
    (*pointers)[SCALE] = &scale;
    if (s.capped) (*pointers)[CAP] = &cap;
    check(plan->graph->execute(plans->handle, *pointers, a->workspace), "the start", s);
}

/* ---- the core -------------------------------------------------------------------------------- */

bool cudnn_attention_available(void) {
    return cudnnGetVersion() >= OLDEST;
}

void cudnn_attention_describe(char *text, size_t capacity) {
    const size_t v = cudnnGetVersion();
    snprintf(text, capacity, "cuDNN %zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
}

void cudnn_attention_build(Backend *be, const CudnnAttention *a) {
    require_shape(a);
    const int at_once = sequences_at_once(a->B, a->T, a->H, a->HD), rest = a->B % at_once;
    const Shape fwd = shape_of(a, false, a->B);
    CudnnPlans *plans = opened(be, fwd);
    plan_of(plans, fwd);
    if (a->T == 1) return;
    plan_of(plans, shape_of(a, true, at_once));
    if (rest) plan_of(plans, shape_of(a, true, rest));
}

/* The tensors that both passes have, from a sequence on. */
static Pointers pointers_at(const CudnnAttention *a, int64_t b) {
    const int64_t dense = (int64_t)a->T * a->H * a->HD;
    return Pointers{
        {Q, (void *)(a->q + b * a->qkv_seq)},
        {K, (void *)(a->k + b * a->qkv_seq)},
        {F, (void *)(a->f + b * a->f_seq)},
        {O, a->o + b * dense},
        {LSE, a->lse + b * a->H * a->T},
    };
}

void cudnn_attention_fwd(Backend *be, const CudnnAttention *a) {
    require_shape(a);
    Pointers pointers = pointers_at(a, 0);
    run(be, a, shape_of(a, false, a->B), &pointers);
}

void cudnn_attention_bwd(Backend *be, const CudnnAttention *a) {
    require_shape(a);
    REQUIRE(a->T > 1, "T %d: cuDNN has no backward pass for it", a->T);
    const int64_t dense = (int64_t)a->T * a->H * a->HD;
    const int at_once = sequences_at_once(a->B, a->T, a->H, a->HD);
    for (int b = 0; b < a->B; b += at_once) {
        const int count = a->B - b < at_once ? a->B - b : at_once;
        Pointers pointers = pointers_at(a, b);
        pointers[DO] = (void *)(a->dO + b * dense);
        pointers[DQ] = a->dq + b * a->qkv_seq;
        pointers[DK] = a->dk + b * a->qkv_seq;
        pointers[DF] = a->df + b * a->qkv_seq;
        run(be, a, shape_of(a, true, count), &pointers);
    }
}

void cudnn_attention_close(Backend *be) {
    CudnnPlans **plans = cudnn_plans_of(be);
    if (!*plans) return;
    (*plans)->plans.clear();
    cudnnDestroy((*plans)->handle);
    delete *plans;
    *plans = NULL;
}
