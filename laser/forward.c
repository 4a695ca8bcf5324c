/* forward.c: the transformer, top to bottom. backward.c is its mirror: the same operations in
 * reverse order. */
#include "laser/model.h"

#include <math.h>

#include "laser/base.h"
#include "laser/passes.h"

LinearArgs pass_linear(const Model *m, int N, ParamId w, ParamId bias, int layer) {
    const ModelConfig *c = &m->config;
    const int A = c->H * c->HD;
    LinearArgs a = {.N = N,
        .w = param_act(&m->table, m->params, w, layer),
        .bias = param_act(&m->table, m->params, bias, layer)};
    switch (w) {
    case P_qkvw:
        a.OC = 3 * A, a.IC = c->C;
        break;
    case P_projw:
        a.OC = c->C, a.IC = A;
        break;
    case P_fc1w:
        a.OC = c->F, a.IC = c->C;
        break;
    case P_fc2w:
        a.OC = c->C, a.IC = c->F;
        break;
    default:
        REQUIRE(false, "parameter %d is not a linear layer", (int)w);
    }
    return a;
}

NormArgs pass_norm(
    const Model *m, int N, ParamId w, ParamId b, int layer, float *mean, float *rstd) {
    NormArgs a = {.N = N,
        .C = m->config.C,
        .eps = m->config.norm_eps,
        .w = param_act(&m->table, m->params, w, layer),
        .b = param_act(&m->table, m->params, b, layer),
        .mean = mean,
        .rstd = rstd};
    return a;
}

AttentionArgs pass_attention(const Model *m, int B, int T, const LayerActs *l, int map) {
    const ModelConfig *c = &m->config;
    const int DK = model_score_channels(c);
    AttentionArgs a = {.B = B,
        .T = T,
        .H = c->H,
        .HD = c->HD,
        .DK = DK,
        .k0 = map * DK,
        .scale = 1.0f / (c->temperature * sqrtf((float)DK)),
        .softcap = c->attn_cap,
        .lse = l->map[map].lse,
        .laser = l->map[map].laser,
        .add_dv = map > 0};
    return a;
}

RopeArgs pass_rope(const ModelConfig *c, Span s) {
    RopeArgs a = {.B = s.B,
        .T = s.T - s.from,
        .H = model_score_heads(c),
        .HD = model_score_channels(c),
        .first = s.from};
    return a;
}

bool pass_has_query_key(const ModelConfig *c) {
    return c->qk_norm || c->per_dim_scale;
}

QueryKeyArgs pass_query_key(const Model *m, int N, int layer) {
    QueryKeyArgs a = {.N = N,
        .H = model_score_heads(&m->config),
        .HD = model_score_channels(&m->config),
        .eps = m->config.norm_eps,
        .qw = param_act(&m->table, m->params, P_qnormw, layer),
        .kw = param_act(&m->table, m->params, P_knormw, layer),
        .p = param_act(&m->table, m->params, P_perdim, layer),
        .raw = m->layer[layer].raw};
    return a;
}

/* lambda_init and the norm's epsilon are those of the authors' code. */
DiffArgs pass_diff(const Model *m, int N, int layer) {
    DiffArgs a = {.N = N,
        .H = m->config.H,
        .HD = m->config.HD,
        .lambda_init = (float)(0.8 - 0.6 * exp(-0.3 * layer)),
        .eps = 1e-5f,
        .lq1 = param_act(&m->table, m->params, P_lq1, layer),
        .lk1 = param_act(&m->table, m->params, P_lk1, layer),
        .lq2 = param_act(&m->table, m->params, P_lq2, layer),
        .lk2 = param_act(&m->table, m->params, P_lk2, layer),
        .w = param_act(&m->table, m->params, P_diffw, layer)};
    return a;
}

ClassifierArgs pass_classifier(const Model *m, int N) {
    ClassifierArgs a = {.N = N,
        .C = m->config.C,
        .V = m->config.V,
        .Vp = m->config.Vp,
        .w = param_act(&m->table, m->params, P_wte, -1),
        .bias = param_act(&m->table, m->params, P_headb, -1),
        .softcap = m->config.logit_cap};
    return a;
}

/* One map of attention, or differential attention's two and what is made of them. */
static void forward_maps(Model *m, int layer, Span s) {
    LayerActs *l = &m->layer[layer];
    const size_t at = (size_t)s.from * (size_t)m->config.H * (size_t)m->config.HD;
    DiffArgs diff = pass_diff(m, s.B * s.T - s.from, layer);

    for (int i = 0; i < model_maps(&m->config); i++) {
        AttentionArgs map = pass_attention(m, s.B, s.T, l, i);
        map.from = s.from;
        op_attention_fwd(m->be, l->map[i].out, l->qkv, &map);
    }
    if (m->config.diff)
        op_diff_fwd(m->be, l->attn + at, l->map[0].out + at, l->map[1].out + at, &diff);
}

void forward_attention(Model *m, int layer, const act_t *x_in, const act_t *delta, Span s) {
    const ModelConfig *c = &m->config;
    LayerActs *l = &m->layer[layer];
    const int N = s.B * s.T - s.from;
    const size_t at = (size_t)s.from * (size_t)c->H * (size_t)c->HD;
    act_t *qkv = l->qkv + 3 * at;
    NormArgs ln1 = pass_norm(m, N, P_ln1w, P_ln1b, layer, l->ln1_mean, l->ln1_rstd);
    LinearArgs qkv_layer = pass_linear(m, N, P_qkvw, P_qkvb, layer);
    RopeArgs rope = pass_rope(c, s);
    QueryKeyArgs query_key = pass_query_key(m, N, layer);
    LinearArgs proj = pass_linear(m, N, P_projw, P_projb, layer);

    op_residual_norm_fwd(m->be, l->x, l->ln1, x_in, delta, &ln1);
    op_linear_fwd(m->be, qkv, l->ln1, &qkv_layer);
    if (c->pos == POS_ROPE) op_rope(m->be, qkv, +1, &rope);
    if (pass_has_query_key(c)) op_query_key_fwd(m->be, qkv, &query_key);
    forward_maps(m, layer, s);
    op_linear_fwd(m->be, m->delta, l->attn + at, &proj);
}

void forward_mlp(Model *m, int layer, int N) {
    LayerActs *l = &m->layer[layer];
    NormArgs ln2 = pass_norm(m, N, P_ln2w, P_ln2b, layer, l->ln2_mean, l->ln2_rstd);
    LinearArgs fc1 = pass_linear(m, N, P_fc1w, P_fc1b, layer);
    fc1.act = m->config.act;
    fc1.pre = l->pre;

    op_residual_norm_fwd(m->be, l->x2, l->ln2, l->x, m->delta, &ln2);
    op_linear_fwd(m->be, l->h, l->ln2, &fc1);
}

static void forward_block(Model *m, int layer, const act_t *x_in, const act_t *delta, Span s) {
    const int N = s.B * s.T - s.from;
    LinearArgs fc2 = pass_linear(m, N, P_fc2w, P_fc2b, layer);
    forward_attention(m, layer, x_in, delta, s);
    forward_mlp(m, layer, N);
    op_linear_fwd(m->be, m->delta, m->layer[layer].h, &fc2);
}

static void pass_reads_weights(const Model *m, int bucket) {
    if (m->hooks) m->hooks->weights(m->hooks->user, bucket);
}

static void forward(Model *m, const int32_t *tokens, Span s) {
    const ModelConfig *c = &m->config;
    const int N = s.B * s.T - s.from, shape[3] = {s.B, s.T - s.from, c->C};
    const act_t *pos = c->pos == POS_LEARNED ? param_act(&m->table, m->params, P_wpe, -1) : m->pos;
    NormArgs lnf = pass_norm(m, N, P_lnfw, P_lnfb, -1, m->lnf_mean, m->lnf_rstd);

    backend_send(m->be, m->tokens, tokens, (size_t)N);
    pass_reads_weights(m, 0);
    op_embed_fwd(m->be, m->layer[0].x, m->tokens, param_act(&m->table, m->params, P_wte, -1),
        pos ? pos + (size_t)s.from * (size_t)c->C : NULL, pass_embed_scale(c), shape);
    for (int layer = 0; layer < c->L; layer++) {
        const act_t *x_in = layer ? m->layer[layer - 1].x2 : m->layer[0].x;
        pass_reads_weights(m, layer + 1);
        forward_block(m, layer, x_in, layer ? m->delta : NULL, s);
    }
    pass_reads_weights(m, c->L + 1);
    op_residual_norm_fwd(m->be, m->x_final, m->lnf, m->layer[c->L - 1].x2, m->delta, &lnf);
}

void model_forward(Model *m, const int32_t *tokens, int B, int T) {
    const ModelConfig *c = &m->config;
    REQUIRE(B >= 1 && B <= m->B && T >= 1 && T <= c->T, "B=%d of %d, T=%d of %d", B, m->B, T, c->T);
    forward(m, tokens, (Span){B, T, 0});
}

bool model_has_cache(const ModelConfig *c) {
    return c->recompute != RECOMPUTE_BLOCK;
}

void model_forward_on(Model *m, const int32_t *tokens, int from, int T) {
    const ModelConfig *c = &m->config;
    REQUIRE(from >= 0 && from < T && T <= c->T, "from=%d, T=%d of %d", from, T, c->T);
    REQUIRE(from == 0 || model_has_cache(c), "from=%d: layers share one cache", from);
    forward(m, tokens, (Span){1, T, from});
}

float pass_embed_scale(const ModelConfig *c) {
    return c->embed_scale ? sqrtf((float)c->C) : 1.0f;
}

void model_loss(Model *m, const int32_t *targets, int B, int T, double *sums) {
    const int N = B * T;
    ClassifierArgs head = pass_classifier(m, N);
    backend_send(m->be, m->targets, targets, (size_t)N);
    op_classifier_loss(m->be, m->losses, m->lnf, m->targets, &head);
    for (int b = 0; b < B; b++)
        op_loss_add(m->be, sums + b, m->losses + (size_t)b * (size_t)T, (size_t)T);
}

void model_logits(Model *m, float *host, int first, int count) {
    ClassifierArgs head = pass_classifier(m, count);
    const size_t n = size_mul((size_t)count, (size_t)m->config.V);
    float *logits = m->logits;
    REQUIRE(n <= m->logits_capacity, "%d rows of logits, room for %zu values", count,
        m->logits_capacity);
    op_classifier_logits(m->be, logits, m->lnf + (size_t)first * (size_t)m->config.C, &head);
    backend_download(m->be, host, logits, n * sizeof *host);
}
