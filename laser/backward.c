/* backward.c: forward.c reversed. m->dx carries the gradient of the residual stream from the loss
 * to the embedding; what a sublayer adds to the stream receives the same gradient as the stream
 * itself. */
#include "laser/model.h"

#include "laser/base.h"
#include "laser/passes.h"

static float *grad(const Model *m, ParamId id, int layer) {
    return param_float(&m->table, m->grads, id, layer);
}

static DiffGrads diff_grads(const Model *m, int layer, float beta) {
    DiffGrads g = {.lq1 = grad(m, P_lq1, layer),
        .lk1 = grad(m, P_lk1, layer),
        .lq2 = grad(m, P_lq2, layer),
        .lk2 = grad(m, P_lk2, layer),
        .w = grad(m, P_diffw, layer),
        .beta = beta};
    return g;
}

static void backward_mlp(Model *m, int layer, int N, float beta) {
    LayerActs *l = &m->layer[layer];
    NormArgs ln2 = pass_norm(m, N, P_ln2w, P_ln2b, layer, l->ln2_mean, l->ln2_rstd);
    LinearArgs fc1 = pass_linear(m, N, P_fc1w, P_fc1b, layer);
    LinearArgs fc2 = pass_linear(m, N, P_fc2w, P_fc2b, layer);
    fc2.act =
        m->config.act; /* of the layer before: its derivative is applied to what fc2 hands down */
    fc2.pre = l->pre;
    act_t *dpre = m->dbuf, *dln2 = m->dbuf2;

    op_linear_bwd(
        m->be, dpre, grad(m, P_fc2w, layer), grad(m, P_fc2b, layer), beta, m->dx, l->h, &fc2);
    op_linear_bwd(
        m->be, dln2, grad(m, P_fc1w, layer), grad(m, P_fc1b, layer), beta, dpre, l->ln2, &fc1);
    op_norm_bwd(
        m->be, m->dx, grad(m, P_ln2w, layer), grad(m, P_ln2b, layer), beta, dln2, l->x2, &ln2);
}

/* m->dbuf2, the gradient of what is projected, becomes that of the first map. */
static void backward_maps(Model *m, int layer, int B, int T, float beta) {
    LayerActs *l = &m->layer[layer];
    DiffArgs diff = pass_diff(m, B * T, layer);
    DiffGrads ddiff = diff_grads(m, layer, beta);
    act_t *dmap[2] = {m->dbuf2, m->dmap}, *dqkv = m->dbuf;

    if (m->config.diff)
        op_diff_bwd(m->be, dmap[0], dmap[1], &ddiff, dmap[0], l->map[0].out, l->map[1].out, &diff);
    for (int i = 0; i < model_maps(&m->config); i++) {
        AttentionArgs map = pass_attention(m, B, T, l, i);
        op_attention_bwd(m->be, dqkv, dmap[i], l->qkv, l->map[i].out, &map);
    }
}

static void backward_attention(Model *m, int layer, int B, int T, float beta) {
    const ModelConfig *c = &m->config;
    LayerActs *l = &m->layer[layer];
    const int N = B * T;
    NormArgs ln1 = pass_norm(m, N, P_ln1w, P_ln1b, layer, l->ln1_mean, l->ln1_rstd);
    LinearArgs qkv = pass_linear(m, N, P_qkvw, P_qkvb, layer);
    RopeArgs rope = pass_rope(c, (Span){B, T, 0});
    QueryKeyArgs query_key = pass_query_key(m, N, layer);
    LinearArgs proj = pass_linear(m, N, P_projw, P_projb, layer);
    act_t *dattn = m->dbuf2, *dqkv = m->dbuf,
          *dln1 = m->dbuf2; /* dattn is read before dln1 is written */

    op_linear_bwd(m->be, dattn, grad(m, P_projw, layer), grad(m, P_projb, layer), beta, m->dx,
        l->attn, &proj);
    backward_maps(m, layer, B, T, beta);
    if (pass_has_query_key(c))
        op_query_key_bwd(m->be, dqkv, grad(m, P_qnormw, layer), grad(m, P_knormw, layer),
            grad(m, P_perdim, layer), beta, l->qkv, &query_key);
    if (c->pos == POS_ROPE) op_rope(m->be, dqkv, -1, &rope);
    op_linear_bwd(
        m->be, dln1, grad(m, P_qkvw, layer), grad(m, P_qkvb, layer), beta, dqkv, l->ln1, &qkv);
    op_norm_bwd(
        m->be, m->dx, grad(m, P_ln1w, layer), grad(m, P_ln1b, layer), beta, dln1, l->x, &ln1);
}

/* What the forward pass did not keep, computed again by the same operations: the same bits. */
static void recompute_block(Model *m, int layer, int B, int T) {
    LayerActs *l = &m->layer[layer];
    const int N = B * T;
    if (m->config.recompute == RECOMPUTE_BLOCK) {
        forward_attention(m, layer, l->x, NULL, (Span){B, T, 0});
        forward_mlp(m, layer, N);
    } else if (m->config.recompute == RECOMPUTE_LIGHT) {
        NormArgs ln1 = pass_norm(m, N, P_ln1w, P_ln1b, layer, l->ln1_mean, l->ln1_rstd);
        NormArgs ln2 = pass_norm(m, N, P_ln2w, P_ln2b, layer, l->ln2_mean, l->ln2_rstd);
        op_residual_norm_fwd(m->be, l->x, l->ln1, l->x, NULL, &ln1);
        op_residual_norm_fwd(m->be, l->x2, l->ln2, l->x2, NULL, &ln2);
        DiffArgs diff = pass_diff(m, N, layer);
        if (m->config.diff) op_diff_fwd(m->be, l->attn, l->map[0].out, l->map[1].out, &diff);
        if (l->pre) op_act_fwd(m->be, l->h, l->pre, m->config.act, (size_t)N * (size_t)m->config.F);
    }
}

static void gave_gradients(const Model *m, int bucket) {
    if (m->hooks) m->hooks->gradients(m->hooks->user, bucket);
}

static void backward_block(Model *m, int layer, int B, int T, float beta) {
    recompute_block(m, layer, B, T);
    backward_mlp(m, layer, B * T, beta);
    backward_attention(m, layer, B, T, beta);
}

void model_backward(
    Model *m, const int32_t *targets, int B, int T, float grad_scale, float beta, double *loss) {
    const ModelConfig *c = &m->config;
    REQUIRE(m->grads != NULL, "model opened without gradients");
    REQUIRE(T == c->T || c->pos != POS_LEARNED,
        "T=%d: a learned table of %d rows needs whole sequences", T, c->T);
    const int N = B * T, shape[3] = {B, T, c->C};
    NormArgs lnf = pass_norm(m, N, P_lnfw, P_lnfb, -1, m->lnf_mean, m->lnf_rstd);
    ClassifierArgs head = pass_classifier(m, N);
    act_t *dlnf = m->dbuf2;

    backend_send(m->be, m->targets, targets, (size_t)N);
    op_classifier_train(m->be, m->losses, dlnf, grad(m, P_wte, -1), grad(m, P_headb, -1), beta,
        grad_scale, m->lnf, m->targets, &head);
    op_loss_add(m->be, loss, m->losses, (size_t)N);
    backend_zero(m->be, m->dx, (size_t)N * (size_t)c->C * sizeof *m->dx);
    op_norm_bwd(
        m->be, m->dx, grad(m, P_lnfw, -1), grad(m, P_lnfb, -1), beta, dlnf, m->x_final, &lnf);
    gave_gradients(m, c->L + 1);
    for (int layer = c->L - 1; layer >= 0; layer--) {
        backward_block(m, layer, B, T, beta);
        gave_gradients(m, layer + 1);
    }
    op_embed_bwd(m->be, grad(m, P_wte, -1), grad(m, P_wpe, -1), beta, m->dx, m->tokens,
        pass_embed_scale(c), shape);
    gave_gradients(m, 0);
}
