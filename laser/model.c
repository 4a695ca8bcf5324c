/* model.c: the table of parameters, counts, memory, initial weights. What is computed with them is
 * in forward.c and backward.c. */
#include "laser/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/rng.h"

/* ---- parameters ---- */

typedef struct ParamSpec {
    bool present, per_layer, transposed;
    ParamKind kind;
    int64_t rows, cols; /* cols 0: vector */
    const char *name;
} ParamSpec;

#define H_(s) "transformer.h.%d." s

static ParamSpec param_spec(const ModelConfig *c, ParamId id) {
    const int64_t C = c->C, F = c->F, A = (int64_t)c->H * c->HD;
    switch (id) {
    case P_wte:
        return (ParamSpec){1, 0, 0, KIND_MATRIX, c->V, C, "transformer.wte.weight"};
    case P_wpe:
        return (ParamSpec){
            c->pos == POS_LEARNED, 0, 0, KIND_MATRIX, c->T, C, "transformer.wpe.weight"};
    case P_ln1w:
        return (ParamSpec){1, 1, 0, KIND_NORM_SCALE, C, 0, H_("ln_1.weight")};
    case P_ln1b:
        return (ParamSpec){1, 1, 0, KIND_NORM_BIAS, C, 0, H_("ln_1.bias")};
    case P_qkvw:
        return (ParamSpec){1, 1, 1, KIND_MATRIX, 3 * A, C, H_("attn.c_attn.weight")};
    case P_qkvb:
        return (ParamSpec){c->bias_attn, 1, 0, KIND_BIAS, 3 * A, 0, H_("attn.c_attn.bias")};
    case P_projw:
        return (ParamSpec){1, 1, 1, KIND_MATRIX, C, A, H_("attn.c_proj.weight")};
    case P_projb:
        return (ParamSpec){c->bias_attn, 1, 0, KIND_BIAS, C, 0, H_("attn.c_proj.bias")};
    case P_ln2w:
        return (ParamSpec){1, 1, 0, KIND_NORM_SCALE, C, 0, H_("ln_2.weight")};
    case P_ln2b:
        return (ParamSpec){1, 1, 0, KIND_NORM_BIAS, C, 0, H_("ln_2.bias")};
    case P_fc1w:
        return (ParamSpec){1, 1, 1, KIND_MATRIX, F, C, H_("mlp.c_fc.weight")};
    case P_fc1b:
        return (ParamSpec){c->bias_mlp, 1, 0, KIND_BIAS, F, 0, H_("mlp.c_fc.bias")};
    case P_fc2w:
        return (ParamSpec){1, 1, 1, KIND_MATRIX, C, F, H_("mlp.c_proj.weight")};
    case P_fc2b:
        return (ParamSpec){c->bias_mlp, 1, 0, KIND_BIAS, C, 0, H_("mlp.c_proj.bias")};
    case P_lnfw:
        return (ParamSpec){1, 0, 0, KIND_NORM_SCALE, C, 0, "transformer.ln_f.weight"};
    case P_lnfb:
        return (ParamSpec){1, 0, 0, KIND_NORM_BIAS, C, 0, "transformer.ln_f.bias"};
    case P_headb:
        return (ParamSpec){c->bias_logits, 0, 0, KIND_BIAS, c->V, 0, "lm_head.bias"};
    case PARAM_COUNT:
        break;
    }
    REQUIRE(false, "parameter id %d", (int)id);
    return (ParamSpec){0, 0, 0, KIND_MATRIX, 0, 0, NULL};
}

static void param_add(ParamTable *t, const ModelConfig *c, ParamId id, int layer) {
    ParamSpec s = param_spec(c, id);
    if (!s.present) return;
    ParamInfo *p = &t->rows[t->count++];
    size_t cols = s.cols ? (size_t)s.cols : 1;
    size_t held = id == P_wte || id == P_headb ? (size_t)c->Vp : (size_t)s.rows;
    *p = (ParamInfo){.id = id,
        .layer = s.per_layer ? layer : -1,
        .kind = s.kind,
        .name = s.name,
        .rows = s.rows,
        .cols = s.cols,
        .transposed = s.transposed,
        .offset = t->elements,
        .count = size_mul(held, cols),
        .logical = size_mul((size_t)s.rows, cols),
        .center = s.kind == KIND_NORM_SCALE ? 1.0f : 0.0f};
    if (layer <= 0) t->offset_of[id] = p->offset;
    if (layer == 1) t->stride_of[id] = p->offset - t->offset_of[id];
    t->elements = size_add(t->elements, (p->count + 15) & ~(size_t)15); /* 64 bytes */
}

void param_table_build(ParamTable *t, const ModelConfig *c) {
    memset(t, 0, sizeof *t);
    for (int i = 0; i < PARAM_COUNT; i++) t->offset_of[i] = (size_t)-1;
    t->rows = (ParamInfo *)xcalloc(size_mul((size_t)c->L + 2, PARAM_COUNT), sizeof *t->rows);
    param_add(t, c, P_wte, -1);
    param_add(t, c, P_wpe, -1);
    for (int l = 0; l < c->L; l++)
        for (int id = P_ln1w; id <= P_fc2b; id++) param_add(t, c, (ParamId)id, l);
    param_add(t, c, P_lnfw, -1);
    param_add(t, c, P_lnfb, -1);
    param_add(t, c, P_headb, -1);
}

void param_table_free(ParamTable *t) {
    free(t->rows);
    memset(t, 0, sizeof *t);
}

static size_t param_offset(const ParamTable *t, ParamId id, int layer) {
    if (t->offset_of[id] == (size_t)-1) return (size_t)-1;
    return t->offset_of[id] + (layer > 0 ? (size_t)layer * t->stride_of[id] : 0);
}

act_t *param_act(const ParamTable *t, act_t *base, ParamId id, int layer) {
    size_t o = param_offset(t, id, layer);
    return o == (size_t)-1 ? NULL : base + o;
}

float *param_float(const ParamTable *t, float *base, ParamId id, int layer) {
    size_t o = param_offset(t, id, layer);
    return o == (size_t)-1 ? NULL : base + o;
}

/* ---- counts ---- */

int64_t model_parameters(const ModelConfig *c) {
    ParamTable t;
    int64_t n = 0;
    param_table_build(&t, c);
    for (int i = 0; i < t.count; i++) n += (int64_t)t.rows[i].logical;
    param_table_free(&t);
    return n;
}

int64_t model_parameters_bare(const ModelConfig *c) {
    const int64_t A = (int64_t)c->H * c->HD;
    return c->L * (4 * c->C * A + 2 * (int64_t)c->C * c->F) + (int64_t)c->V * c->C;
}

double model_flops_per_token(const ModelConfig *c, int T) {
    double attention =
        6.0 * c->L * (double)c->H * c->HD * T; /* 12 for the square, half of it causal */
    return 6.0 * (double)model_parameters_bare(c) + attention;
}

/* ---- memory ---- */

static size_t widest(size_t a, size_t b, size_t c) {
    size_t m = a > b ? a : b;
    return m > c ? m : c;
}

/* One layer's tensors. A shared tensor exists once, in the first layer: the backward pass computes
 * it again. */
static void plan_layer(Arena *a, const ModelConfig *c, int B, LayerActs *l, bool first) {
    const size_t N = (size_t)B * (size_t)c->T, C = (size_t)c->C, F = (size_t)c->F;
    const size_t A = (size_t)c->H * (size_t)c->HD;
    const size_t laser = op_attention_laser_floats(B, c->T, c->H, c->HD);
    const bool gelu = c->act == ACT_GELU;
    const bool keep_block = first || c->recompute != RECOMPUTE_BLOCK;
    const bool keep_light = first || c->recompute == RECOMPUTE_NONE;
    ARENA_ADD(a, l->x, N * C);
    if (keep_light) {
        ARENA_ADD(a, l->ln1, N * C);
        ARENA_ADD(a, l->ln2, N * C);
    }
    if (gelu ? keep_light : keep_block)
        ARENA_ADD(a, l->h, N * F); /* relu: from itself, nothing saved */
    if (!keep_block) return;
    ARENA_ADD(a, l->ln1_mean, N);
    ARENA_ADD(a, l->ln1_rstd, N);
    ARENA_ADD(a, l->qkv, N * 3 * A);
    ARENA_ADD(a, l->attn, N * A);
    ARENA_ADD(a, l->lse, N * (size_t)c->H);
    if (laser) ARENA_ADD(a, l->laser, laser);
    ARENA_ADD(a, l->x2, N * C);
    ARENA_ADD(a, l->ln2_mean, N);
    ARENA_ADD(a, l->ln2_rstd, N);
    if (gelu) ARENA_ADD(a, l->pre, N * F);
}

static void share_with_first(LayerActs *l, const LayerActs *first) {
#define SHARE(f)                                                                                   \
    if (!l->f) l->f = first->f
    SHARE(ln1);
    SHARE(ln2);
    SHARE(h);
    SHARE(ln1_mean);
    SHARE(ln1_rstd);
    SHARE(qkv);
    SHARE(attn);
    SHARE(lse);
    SHARE(laser);
    SHARE(x2);
    SHARE(ln2_mean);
    SHARE(ln2_rstd);
    SHARE(pre);
#undef SHARE
}

/* Everything the two passes write, declared in m->acts_plan. */
static void plan_activations(Model *m, bool training) {
    const ModelConfig *c = &m->config;
    const size_t N = (size_t)m->B * (size_t)c->T, C = (size_t)c->C,
                 A = (size_t)c->H * (size_t)c->HD;
    Arena *a = &m->acts_plan;
    for (int l = 0; l < c->L; l++) plan_layer(a, c, m->B, &m->layer[l], l == 0);
    ARENA_ADD(a, m->delta, N * C);
    ARENA_ADD(a, m->x_final, N * C);
    ARENA_ADD(a, m->lnf, N * C);
    ARENA_ADD(a, m->lnf_mean, N);
    ARENA_ADD(a, m->lnf_rstd, N);
    ARENA_ADD(a, m->losses, N);
    m->logits_capacity = size_mul(MODEL_LOGIT_ROWS, (size_t)c->V);
    ARENA_ADD(a, m->logits, m->logits_capacity);
    ARENA_ADD(a, m->tokens, N);
    ARENA_ADD(a, m->targets, N);
    if (c->pos == POS_SINUSOID) ARENA_ADD(a, m->pos, (size_t)c->T * C);
    if (!training) return;
    ARENA_ADD(a, m->dx, N * C);
    ARENA_ADD(a, m->dbuf, N * widest(C, 3 * A, (size_t)c->F));
    ARENA_ADD(a, m->dbuf2, N * (C > A ? C : A));
}

BackendLimits model_limits(const ModelConfig *c, int B) {
    return (BackendLimits){.B = B,
        .T = c->T,
        .C = c->C,
        .F = c->F,
        .H = c->H,
        .HD = c->HD,
        .DK = c->HD,
        .V = c->Vp,
        .capped = c->attn_cap > 0};
}

void model_plan(const ModelConfig *c, int B, const BackendOptions *options, MemoryPlan *out) {
    Model m = {.config = *c, .B = B};
    m.layer = (LayerActs *)xcalloc((size_t)c->L, sizeof *m.layer);
    plan_activations(&m, true);
    param_table_build(&m.table, c);
    const size_t n = m.table.elements;
    const BackendLimits limits = model_limits(c, B);
    *out = (MemoryPlan){.weights = n * sizeof(act_t),
        .master = sizeof(act_t) == sizeof(float) ? 0 : n * sizeof(float),
        .gradients = n * sizeof(float),
        .optimizer = 2 * n * sizeof(float),
        .activations = m.acts_plan.bytes,
        .scratch = backend_scratch_bytes(&limits, options),
        .overhead = backend_overhead_bytes(NULL)};
    out->total = out->weights + out->master + out->gradients + out->optimizer + out->activations +
                 out->scratch + out->overhead;
    param_table_free(&m.table);
    arena_free(&m.acts_plan);
    free(m.layer);
}

/* ---- life ---- */

/* [sin | cos] side by side, timescales 1 .. 1e4 in geometric steps (Vaswani et al. 2017, as
 * tensor2tensor lays it out); an odd last channel stays 0. */
static void upload_sinusoids(Model *m) {
    const int C = m->config.C, T = m->config.T, half = C / 2;
    float *table = (float *)xcalloc(size_mul((size_t)T, (size_t)C), sizeof *table);
    const double step = half > 1 ? log(1e4) / (half - 1) : 0.0;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < half; i++) {
            double angle = t * exp(-step * i);
            table[(size_t)t * (size_t)C + (size_t)i] = (float)sin(angle);
            table[(size_t)t * (size_t)C + (size_t)(half + i)] = (float)cos(angle);
        }
    backend_upload_act(m->be, m->pos, table, (size_t)T * (size_t)C);
    free(table);
}

void model_open(Model *m, Backend *be, const ModelConfig *c, int B, bool training) {
    memset(m, 0, sizeof *m);
    m->config = *c;
    m->B = B;
    m->be = be;
    param_table_build(&m->table, c);
    const size_t n = m->table.elements;
    m->params = (act_t *)backend_alloc(be, size_mul(n, sizeof(act_t)));
    if (sizeof(act_t) == sizeof(float))
        m->master = (float *)(void *)m->params;
    else
        m->master = (float *)backend_alloc(be, size_mul(n, sizeof(float)));
    if (training) m->grads = (float *)backend_alloc(be, size_mul(n, sizeof(float)));
    m->layer = (LayerActs *)xcalloc((size_t)c->L, sizeof *m->layer);
    plan_activations(m, training);
    m->acts_block = backend_alloc(be, m->acts_plan.bytes);
    arena_bind(&m->acts_plan, m->acts_block);
    for (int l = 1; l < c->L; l++) share_with_first(&m->layer[l], &m->layer[0]);
    if (m->pos) upload_sinusoids(m);
}

static bool params_are_master(const Model *m) {
    return (void *)m->master == (void *)m->params;
}

void model_close(Model *m) {
    if (!params_are_master(m)) backend_free(m->be, m->master);
    backend_free(m->be, m->params);
    backend_free(m->be, m->grads);
    backend_free(m->be, m->acts_block);
    arena_free(&m->acts_plan);
    param_table_free(&m->table);
    free(m->layer);
    memset(m, 0, sizeof *m);
}

/* ---- initial weights ---- */

typedef struct InitLaw {
    bool uniform;
    double scale;
} InitLaw; /* limit, or standard deviation */

/* pax: Xavier uniform with the fans its layers compute (the fused QKV's and the projection's fans
 * see the size of one head, not of all), embeddings of standard deviation 1/sqrt(C). gpt2: N(0,
 * 0.02), the two projections into the residual stream divided by sqrt(2 L). */
static InitLaw init_law(const ModelConfig *c, ParamId id) {
    const double C = c->C, HD = c->HD;
    if (c->init == INIT_GPT2) {
        bool residual = id == P_projw || id == P_fc2w;
        return (InitLaw){false, residual ? 0.02 / sqrt(2.0 * c->L) : 0.02};
    }
    switch (id) {
    case P_qkvw:
        return (InitLaw){true, sqrt(6.0 / (3.0 * C * (c->H + HD)))};
    case P_projw:
        return (InitLaw){true, sqrt(6.0 / (C * (c->H + HD)))};
    case P_fc1w:
    case P_fc2w:
        return (InitLaw){true, sqrt(6.0 / (C + c->F))};
    default:
        return (InitLaw){false, 1.0 / sqrt(C)};
    }
}

static void init_tensor(const ModelConfig *c, const ParamInfo *p, uint64_t seed, float *host) {
    for (size_t i = 0; i < p->count; i++) host[i] = i < p->logical ? p->center : 0.0f;
    if (p->kind != KIND_MATRIX) return;
    const InitLaw law = init_law(c, p->id);
    const uint64_t tensor = (uint64_t)p->id << 20 | (uint64_t)(p->layer + 1);
    const uint64_t stream = RNG_INIT + (tensor << 8);
    const int64_t n = (int64_t)p->logical;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        double x = law.uniform ? 2.0 * rng_uniform(seed, stream, (uint64_t)i) - 1.0
                               : rng_normal(seed, stream, (uint64_t)i);
        host[i] = (float)(law.scale * x);
    }
}

static size_t largest_tensor(const Model *m) {
    size_t most = 0;
    for (int i = 0; i < m->table.count; i++)
        if (m->table.rows[i].count > most) most = m->table.rows[i].count;
    return most;
}

void model_init(Model *m, uint64_t seed) {
    float *host = (float *)xcalloc(largest_tensor(m), sizeof *host);
    for (int i = 0; i < m->table.count; i++) {
        const ParamInfo *p = &m->table.rows[i];
        init_tensor(&m->config, p, seed, host);
        backend_upload(m->be, m->master + p->offset, host, p->count * sizeof *host);
        if (!params_are_master(m)) backend_upload_act(m->be, m->params + p->offset, host, p->count);
    }
    free(host);
}

/* By tensor: all of a large model would double what it takes of the host. */
void model_sync_params(Model *m) {
    if (params_are_master(m)) return;
    float *host = (float *)xcalloc(largest_tensor(m), sizeof *host);
    for (int i = 0; i < m->table.count; i++) {
        const ParamInfo *p = &m->table.rows[i];
        backend_download(m->be, host, m->master + p->offset, p->count * sizeof *host);
        backend_upload_act(m->be, m->params + p->offset, host, p->count);
    }
    free(host);
}
