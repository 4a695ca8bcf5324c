/* passes.h: what forward.c and backward.c share: the arguments of each operation, built once for
 * both directions, and the parts of the forward pass that the backward pass may compute again.
 * Private to the model. */
#ifndef LASER_PASSES_H
#define LASER_PASSES_H

#include "laser/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows from .. T of each of B sequences; those before, with B 1, were computed by earlier calls. */
typedef struct Span {
    int B, T, from;
} Span;

LinearArgs pass_linear(const Model *m, int N, ParamId w, ParamId bias, int layer);
NormArgs pass_norm(
    const Model *m, int N, ParamId w, ParamId b, int layer, float *mean, float *rstd);
AttentionArgs pass_attention(const Model *m, int B, int T, const LayerActs *l, int map);
RopeArgs pass_rope(const ModelConfig *c, Span s);
QueryKeyArgs pass_query_key(const Model *m, int N, int layer);
bool pass_has_query_key(const ModelConfig *c); /* else they stay as they are */
DiffArgs pass_diff(const Model *m, int N, int layer);
ClassifierArgs pass_classifier(const Model *m, int N);
float pass_embed_scale(const ModelConfig *c);

/* x = x_in + delta, norm, attention; leaves the sublayer's output in m->delta. Queries, keys and
 * values stay in their rows of qkv, the cache of later calls; all else of the span begins at row 0,
 * but for what the maps of attention write. */
void forward_attention(Model *m, int layer, const act_t *x_in, const act_t *delta, Span s);
/* x2 = x + m->delta, norm, first layer of the MLP; leaves h */
void forward_mlp(Model *m, int layer, int N);

#ifdef __cplusplus
}
#endif
#endif
