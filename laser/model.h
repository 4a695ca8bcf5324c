/* model.h: the transformer's shape, parameters and activations; counts, memory and FLOPs without
 * allocating. Forward in forward.c, backward in backward.c. Knows the seam, not the backend; knows
 * neither data nor runs. */
#ifndef LASER_MODEL_H
#define LASER_MODEL_H

#include "laser/arena.h"
#include "laser/backend.h"
#include "laser/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A tensor's number enters its initial weights: new ones come last, or old models would start from
 * others. Pointers into one parameter-shaped arena: weights (act_t), or master, gradients, m, v
 * (float). Tensors of a layer that do not exist in this model are NULL. Per-layer tensors are
 * indexed [layer]. */
#define PARAM_FIELDS(X)                                                                            \
    X(wte)                                                                                         \
    X(wpe)                                                                                         \
    X(ln1w) X(ln1b) X(qkvw) X(qkvb) X(projw) X(projb) X(ln2w) X(ln2b) X(fc1w) X(fc1b) X(fc2w)      \
        X(fc2b) X(lnfw) X(lnfb) X(headb) X(qnormw) X(knormw) X(perdim) X(lq1) X(lk1) X(lq2) X(lk2) \
            X(diffw)

typedef enum ParamId {
#define X(f) P_##f,
    PARAM_FIELDS(X)
#undef X
        PARAM_COUNT
} ParamId;

typedef enum ParamKind { KIND_MATRIX, KIND_BIAS, KIND_NORM_SCALE, KIND_NORM_BIAS } ParamKind;

/* One row per (tensor, layer): where it lies in a parameter arena and what it is called on disk. */
typedef struct ParamInfo {
    ParamId id;
    int layer; /* -1 for tensors outside the layers */
    ParamKind kind;
    const char *name; /* printf pattern with one %d for the layer; Hugging Face GPT-2 names */
    int64_t rows,
        cols;        /* logical shape; cols 0 for vectors; rows of wte are V, its padding follows */
    bool transposed; /* stored on disk as (cols, rows): GPT-2's Conv1D */
    size_t offset;   /* elements, multiple of 16 */
    size_t count;    /* elements held, padding rows included */
    size_t logical;  /* elements without padding */
    float center;    /* value it starts from and decays towards: 1 for norm scales, else 0 */
} ParamInfo;

/* The arena's tensors in buckets that begin at multiples of PARAM_GRAIN elements: the embeddings,
 * each layer, what follows the last. */
enum { PARAM_GRAIN = 4096 };

typedef struct ParamTable {
    ParamInfo *rows;
    int count;
    size_t elements;               /* of the arena, padding included */
    size_t *bucket;                /* (buckets + 1) first elements, and the arena's end */
    int buckets;                   /* L + 2 */
    size_t offset_of[PARAM_COUNT]; /* layer 0; (size_t)-1 when absent */
    size_t stride_of[PARAM_COUNT]; /* to the next layer */
} ParamTable;

void param_table_build(ParamTable *t, const ModelConfig *c);
void param_table_free(ParamTable *t);
/* Elements of the largest tensor, padding included, and of the largest bucket. */
size_t param_largest_tensor(const ParamTable *t);
size_t param_largest_bucket(const ParamTable *t);
/* NULL when the tensor is absent */
act_t *param_act(const ParamTable *t, act_t *base, ParamId id, int layer);
float *param_float(const ParamTable *t, float *base, ParamId id, int layer);

/* One map of attention over the values of a head; differential attention has two. */
typedef struct MapActs {
    act_t *out; /* (B, T, H, HD) */
    float *lse, *laser;
} MapActs;

typedef struct LayerActs {
    act_t *x;   /* (N, C) residual stream entering the block's first norm */
    act_t *ln1; /* (N, C) */
    float *ln1_mean, *ln1_rstd;
    act_t *qkv; /* (B, T, 3, H, HD) */
    act_t *raw; /* (B, T, 2, H, HD) queries and keys before their norms; NULL without */
    MapActs map[2];
    act_t *attn; /* (B, T, H, HD) what is projected: of both maps, or map[0].out */
    act_t *x2;   /* (N, C) residual stream entering the second norm */
    act_t *ln2;
    float *ln2_mean, *ln2_rstd;
    act_t *pre; /* (N, F) before the activation; NULL for relu */
    act_t *h;   /* (N, F) */
} LayerActs;

/* What the passes tell of a bucket: its weights are about to be read for the first time in a pass;
 * its gradients are what this backward pass gives. */
typedef struct ModelHooks {
    void (*weights)(void *user, int bucket);
    void (*gradients)(void *user, int bucket);
    void *user;
} ModelHooks;

/* Where weights and gradients come from, when not from the backend: what they travel through may
 * want memory of its own. Zeroed. */
typedef struct ModelMemory {
    void *(*take)(void *user, size_t bytes);
    void (*give_back)(void *user, void *p);
    void *user;
} ModelMemory;

typedef struct Model {
    ModelConfig config;
    int B;
    Backend *be;
    ParamTable table;
    act_t *params;
    float *master; /* == params in fp32; NULL where it is dealt out over processes */
    float *grads;  /* NULL: inference only */
    const ModelHooks *hooks; /* NULL: none */
    const ModelMemory *memory;
    /* activations, one arena */
    Arena acts_plan;
    void *acts_block;
    LayerActs *layer; /* (L) */
    act_t *delta;     /* (N, C) what the last sublayer adds to the residual stream */
    act_t *x_final, *lnf;
    float *lnf_mean, *lnf_rstd;
    float *losses; /* (N) */
    float *logits; /* room for model_logits */
    size_t logits_capacity;
    act_t *pos;                /* (T, C) sinusoid table or NULL */
    int32_t *tokens, *targets; /* (N) in backend memory */
    /* backward: one set for all layers */
    act_t *dx;    /* (N, C) gradient of the residual stream */
    act_t *dbuf;  /* (N, max(C, 3*H*HD, F)) */
    act_t *dbuf2; /* (N, max(C, H*HD)) */
    act_t *dmap;  /* (N, H*HD) gradient of the second map; NULL without one */
} Model;

/* Bytes by category, without allocating. */
typedef struct MemoryPlan {
    size_t weights, gradients, activations, scratch;
    size_t overhead;          /* what the backend's context and libraries hold */
    size_t master, optimizer, network; /* left 0 by model_plan: see parallel_plan */
} MemoryPlan;

void model_plan(const ModelConfig *c, int B, const BackendOptions *options, MemoryPlan *out);
/* What B sequences of this model ask of a backend. */
BackendLimits model_limits(const ModelConfig *c, int B);
int64_t model_parameters(const ModelConfig *c);      /* all, without vocabulary padding */
int64_t model_parameters_bare(const ModelConfig *c); /* matrices and embedding only */
/* Heads and their channels as the scores see them: twice as many of half the size with
 * differential attention. */
int model_score_heads(const ModelConfig *c);
int model_score_channels(const ModelConfig *c);
int model_maps(const ModelConfig *c); /* of attention in a layer: 1 or 2 */
/* Training FLOPs a token: 6 * (bare parameters) + causal attention, 6 * L * H*HD * T (half of the
 * square), and half as much again where two maps weigh the values. */
double model_flops_per_token(const ModelConfig *c, int T);

typedef enum ModelUse {
    MODEL_INFERENCE,
    MODEL_TRAINING,
    MODEL_DEALT_OUT, /* training; a master copy beside params is not the model's */
} ModelUse;
/* memory: NULL: the backend's; used until model_close */
void model_open(Model *m, Backend *be, const ModelConfig *c, int B, ModelUse use,
    const ModelMemory *memory);
void model_close(Model *m);
void model_init(Model *m, uint64_t seed); /* value = f(seed, tensor, index) */
/* What tensor number i of the table starts from: (count) of it, its padding 0. */
void model_init_tensor(const Model *m, uint64_t seed, int i, float *host);
void model_sync_params(Model *m); /* params = rounded master, after loading */

/* Forward on host tokens; B <= m->B, T <= config.T. */
void model_forward(Model *m, const int32_t *tokens /* (B*T) */, int B, int T);
/* The same for tokens [from, T) of one sequence whose first `from` were in earlier calls: the bits
 * that the whole sequence would give there (fp32 on a CPU; within rounding elsewhere). What it
 * leaves, logits too, begins at row 0. from must be 0 where the model has no cache. */
void model_forward_on(Model *m, const int32_t *tokens /* (T - from) */, int from, int T);
bool model_has_cache(const ModelConfig *c); /* each layer keeps its keys and values */
/* Adds the sum of the losses of sequence b to sums[b]: (B), in backend memory. */
void model_loss(Model *m, const int32_t *targets, int B, int T, double *sums);
/* Adds the sum of all losses to *loss, in backend memory, and gives gradients of
 * grad_scale * sum(losses); beta 0 on a step's first micro-step, else 1. */
void model_backward(
    Model *m, const int32_t *targets, int B, int T, float grad_scale, float beta, double *loss);
/* Logits of rows first .. first+count of the last forward pass; count at most MODEL_LOGIT_ROWS. */
enum { MODEL_LOGIT_ROWS = 32 };
void model_logits(Model *m, float *host /* (count, V) */, int first, int count);

#ifdef __cplusplus
}
#endif
#endif
