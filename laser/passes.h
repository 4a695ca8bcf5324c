/* passes.h: what forward.c and backward.c share: the arguments of each operation, built once for
 * both directions, and the parts of the forward pass that the backward pass may compute again.
 * Private to the model. */
#ifndef LASER_PASSES_H
#define LASER_PASSES_H

#include "laser/model.h"

#ifdef __cplusplus
extern "C" {
#endif

LinearArgs pass_linear(const Model *m, int N, ParamId w, ParamId bias, int layer);
NormArgs pass_norm(
    const Model *m, int N, ParamId w, ParamId b, int layer, float *mean, float *rstd);
AttentionArgs pass_attention(const Model *m, int B, int T, const LayerActs *l, int map);
QueryKeyArgs pass_query_key(const Model *m, int N, int layer);
bool pass_has_query_key(const ModelConfig *c); /* else they stay as they are */
DiffArgs pass_diff(const Model *m, int N, int layer);
ClassifierArgs pass_classifier(const Model *m, int N);
float pass_embed_scale(const ModelConfig *c);

/* x = x_in + delta, norm, attention; leaves the sublayer's output in m->delta */
void forward_attention(Model *m, int layer, const act_t *x_in, const act_t *delta, int B, int T);
/* x2 = x + m->delta, norm, first layer of the MLP; leaves h */
void forward_mlp(Model *m, int layer, int B, int T);

#ifdef __cplusplus
}
#endif
#endif
