/* params.c: what the parameters are: their table, by name, place and kind, and what they start
 * from. Knows nothing of what is computed with them. */
#include "laser/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/rng.h"

/* ---- the table ---- */

typedef struct ParamSpec {
    bool present, per_layer, transposed;
    ParamKind kind;
    int64_t rows, cols; /* cols 0: vector */
    const char *name;
} ParamSpec;

#define H_(s) "transformer.h.%d." s

/* What attention's modifiers learn: one set a layer, shared by its heads. */
static ParamSpec modifier_spec(const ModelConfig *c, ParamId id) {
    const int64_t HD = c->HD, DK = model_score_channels(c), half = HD / 2;
    switch (id) {
    case P_qnormw:
        return (ParamSpec){c->qk_norm, 1, 0, KIND_NORM_SCALE, DK, 0, H_("attn.q_norm.weight")};
    case P_knormw:
        return (ParamSpec){c->qk_norm, 1, 0, KIND_NORM_SCALE, DK, 0, H_("attn.k_norm.weight")};
    case P_perdim:
        return (ParamSpec){c->per_dim_scale, 1, 0, KIND_BIAS, DK, 0, H_("attn.per_dim_scale")};
    case P_lq1:
        return (ParamSpec){c->diff, 1, 0, KIND_BIAS, half, 0, H_("attn.lambda_q1")};
    case P_lk1:
        return (ParamSpec){c->diff, 1, 0, KIND_BIAS, half, 0, H_("attn.lambda_k1")};
    case P_lq2:
        return (ParamSpec){c->diff, 1, 0, KIND_BIAS, half, 0, H_("attn.lambda_q2")};
    case P_lk2:
        return (ParamSpec){c->diff, 1, 0, KIND_BIAS, half, 0, H_("attn.lambda_k2")};
    case P_diffw:
        return (ParamSpec){
            c->diff && !c->diff_plain, 1, 0, KIND_NORM_SCALE, HD, 0, H_("attn.diff_norm.weight")};
    default:
        break;
    }
    REQUIRE(false, "parameter id %d", (int)id);
    return (ParamSpec){0, 0, 0, KIND_MATRIX, 0, 0, NULL};
}

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
    default:
        return modifier_spec(c, id);
    }
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

static void end_bucket(ParamTable *t) {
    t->elements = size_add(t->elements, PARAM_GRAIN - 1) / PARAM_GRAIN * PARAM_GRAIN;
    t->bucket[++t->buckets] = t->elements;
}

void param_table_build(ParamTable *t, const ModelConfig *c) {
    memset(t, 0, sizeof *t);
    for (int i = 0; i < PARAM_COUNT; i++) t->offset_of[i] = (size_t)-1;
    t->rows = (ParamInfo *)xcalloc(size_mul((size_t)c->L + 2, PARAM_COUNT), sizeof *t->rows);
    t->bucket = (size_t *)xcalloc((size_t)c->L + 3, sizeof *t->bucket);
    param_add(t, c, P_wte, -1);
    param_add(t, c, P_wpe, -1);
    end_bucket(t);
    for (int l = 0; l < c->L; l++) {
        for (int id = P_ln1w; id < PARAM_COUNT; id++)
            if (id <= P_fc2b || id >= P_qnormw) param_add(t, c, (ParamId)id, l);
        end_bucket(t);
    }
    param_add(t, c, P_lnfw, -1);
    param_add(t, c, P_lnfb, -1);
    param_add(t, c, P_headb, -1);
    end_bucket(t);
}

void param_table_free(ParamTable *t) {
    free(t->rows);
    free(t->bucket);
    memset(t, 0, sizeof *t);
}

size_t param_largest_tensor(const ParamTable *t) {
    size_t most = 0;
    for (int i = 0; i < t->count; i++)
        if (t->rows[i].count > most) most = t->rows[i].count;
    return most;
}

size_t param_largest_bucket(const ParamTable *t) {
    size_t most = 0;
    for (int b = 0; b < t->buckets; b++)
        if (t->bucket[b + 1] - t->bucket[b] > most) most = t->bucket[b + 1] - t->bucket[b];
    return most;
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

/* ---- initial weights ---- */

typedef struct InitLaw {
    bool uniform;
    double scale;
} InitLaw; /* limit, or standard deviation */

static bool is_lambda(ParamId id) {
    return id >= P_lq1 && id <= P_lk2;
}

/* pax: Xavier uniform with the fans its layers compute (the fused QKV's and the projection's fans
 * see the size of one head, not of all), embeddings of standard deviation 1/sqrt(C). gpt2: N(0,
 * 0.02), the two projections into the residual stream divided by sqrt(2 L). The vectors that make
 * differential attention's lambda: N(0, 0.1) with either, as its authors have it. */
static InitLaw init_law(const ModelConfig *c, ParamId id) {
    const double C = c->C, HD = c->HD;
    if (is_lambda(id)) return (InitLaw){false, 0.1};
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
    if (p->kind != KIND_MATRIX && !is_lambda(p->id)) return;
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

void model_init_tensor(const Model *m, uint64_t seed, int i, float *host) {
    init_tensor(&m->config, &m->table.rows[i], seed, host);
}

static bool params_are_master(const Model *m) {
    return (void *)m->master == (void *)m->params;
}

void model_init(Model *m, uint64_t seed) {
    float *host = (float *)xcalloc(param_largest_tensor(&m->table), sizeof *host);
    for (int i = 0; i < m->table.count; i++) {
        const ParamInfo *p = &m->table.rows[i];
        made_progress();
        init_tensor(&m->config, p, seed, host);
        backend_upload(m->be, m->master + p->offset, host, p->count * sizeof *host);
        if (!params_are_master(m)) backend_upload_act(m->be, m->params + p->offset, host, p->count);
    }
    free(host);
}

/* By tensor: all of a large model would double what it takes of the host. */
void model_sync_params(Model *m) {
    if (params_are_master(m)) return;
    float *host = (float *)xcalloc(param_largest_tensor(&m->table), sizeof *host);
    for (int i = 0; i < m->table.count; i++) {
        const ParamInfo *p = &m->table.rows[i];
        backend_download(m->be, host, m->master + p->offset, p->count * sizeof *host);
        backend_upload_act(m->be, m->params + p->offset, host, p->count);
    }
    free(host);
}
