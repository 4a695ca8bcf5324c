/* model.c: counts, memory, opening and closing. The parameters are in params.c; what is computed
 * with them is in forward.c and backward.c. */
#include "laser/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"

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

int model_maps(const ModelConfig *c) {
    return c->diff ? 2 : 1;
}

int model_score_heads(const ModelConfig *c) {
    return c->H * model_maps(c);
}

int model_score_channels(const ModelConfig *c) {
    return c->HD / model_maps(c);
}

double model_flops_per_token(const ModelConfig *c, int T) {
    const double square = 3.0 * c->L * (double)c->H * c->HD * T; /* 6, half of it causal */
    const double attention = square + square * model_maps(c);    /* scores; values of each map */
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
        if (c->diff) ARENA_ADD(a, l->attn, N * A);
    }
    if (gelu ? keep_light : keep_block)
        ARENA_ADD(a, l->h, N * F); /* relu: from itself, nothing saved */
    if (!keep_block) return;
    ARENA_ADD(a, l->ln1_mean, N);
    ARENA_ADD(a, l->ln1_rstd, N);
    ARENA_ADD(a, l->qkv, N * 3 * A);
    if (c->qk_norm) ARENA_ADD(a, l->raw, N * 2 * A);
    for (int i = 0; i < model_maps(c); i++) {
        ARENA_ADD(a, l->map[i].out, N * A);
        ARENA_ADD(a, l->map[i].lse, N * (size_t)c->H);
        if (laser) ARENA_ADD(a, l->map[i].laser, laser);
    }
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
    SHARE(raw);
    for (int i = 0; i < 2; i++) {
        SHARE(map[i].out);
        SHARE(map[i].lse);
        SHARE(map[i].laser);
    }
    SHARE(attn);
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
    if (c->diff) ARENA_ADD(a, m->dmap, N * A);
}

BackendLimits model_limits(const ModelConfig *c, int B) {
    return (BackendLimits){.B = B,
        .T = c->T,
        .C = c->C,
        .F = c->F,
        .H = c->H,
        .HD = c->HD,
        .DK = model_score_channels(c),
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
        .gradients = n * sizeof(float),
        .activations = m.acts_plan.bytes,
        .scratch = backend_scratch_bytes(&limits, options),
        .overhead = backend_overhead_bytes(NULL)};
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

static void *take(Model *m, size_t bytes) {
    return m->memory ? m->memory->take(m->memory->user, bytes) : backend_alloc(m->be, bytes);
}

static void give_back(Model *m, void *p) {
    if (m->memory)
        m->memory->give_back(m->memory->user, p);
    else
        backend_free(m->be, p);
}

void model_open(Model *m, Backend *be, const ModelConfig *c, int B, ModelUse use,
    const ModelMemory *memory) {
    const bool training = use != MODEL_INFERENCE;
    memset(m, 0, sizeof *m);
    m->config = *c;
    m->B = B;
    m->be = be;
    m->memory = memory;
    param_table_build(&m->table, c);
    const size_t n = m->table.elements;
    m->params = (act_t *)take(m, size_mul(n, sizeof(act_t)));
    if (sizeof(act_t) == sizeof(float))
        m->master = (float *)(void *)m->params;
    else if (use != MODEL_DEALT_OUT)
        m->master = (float *)backend_alloc(be, size_mul(n, sizeof(float)));
    if (training) m->grads = (float *)take(m, size_mul(n, sizeof(float)));
    m->layer = (LayerActs *)xcalloc((size_t)c->L, sizeof *m->layer);
    plan_activations(m, training);
    m->acts_block = backend_alloc(be, m->acts_plan.bytes);
    arena_bind(&m->acts_plan, m->acts_block);
    for (int l = 1; l < c->L; l++) share_with_first(&m->layer[l], &m->layer[0]);
    for (int l = 0; l < c->L && !c->diff; l++) m->layer[l].attn = m->layer[l].map[0].out;
    if (m->pos) upload_sinusoids(m);
}

void model_close(Model *m) {
    if (sizeof(act_t) != sizeof(float)) backend_free(m->be, m->master);
    give_back(m, m->params);
    give_back(m, m->grads);
    backend_free(m->be, m->acts_block);
    arena_free(&m->acts_plan);
    param_table_free(&m->table);
    free(m->layer);
    memset(m, 0, sizeof *m);
}
