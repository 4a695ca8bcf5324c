/* backend.h: THE SEAM. Everything above it says what a transformer computes; exactly one
 * implementation below it (cpu/, cuda/) says how. Coarse, fused operations on plain pointers;
 * nothing of the model, the options or the files is known here.
 *
 * Conventions. act_t is the storage type of weights and activations (float, or bfloat16 with
 * PRECISION=bf16); gradients of parameters, statistics and losses are float. All arrays are dense,
 * row-major, in backend memory. N counts tokens (B*T). Gradients of parameters are "beta" outputs:
 * g = beta * g + new, beta 0 or 1, and with beta 0 the old content is not read. Gradients of
 * activations are written, except where "+=" is said. Operations on one backend run in the order of
 * the calls; results are the same bits every time. An operation may return before it has run: what
 * reads its result through backend_download or backend_read_end waits for it. */
#ifndef LASER_BACKEND_H
#define LASER_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef LASER_BF16
typedef struct {
    uint16_t bits;
} act_t;
#else
typedef float act_t;
#endif

typedef struct Backend Backend;

/* ---- machine ---- */

typedef enum AttnCore { ATTN_CORE_AUTO, ATTN_CORE_GEMM, ATTN_CORE_CUDNN } AttnCore;

/* How to run; what is computed is the same but for rounding. A CPU looks at threads alone. */
typedef struct BackendOptions {
    int threads;            /* of the CPU; 0: all cores */
    int local_rank;         /* which GPU, among the processes of this machine */
    bool share_gpu;         /* several processes may use one */
    AttnCore attn_core;     /* AUTO: the backend chooses by shape and architecture */
    bool tf32;              /* fp32 products in TF32 */
    bool untuned;           /* matrix products by the library's first choice, not by timing */
    const char *tune_cache; /* file for what the timings chose; NULL or "": none is kept */
    size_t logits_budget;   /* bytes that logits may take at once; 0: the backend's choice */
    size_t attn_budget;     /* the same for an attention core's scores */
} BackendOptions;

/* The largest shapes that the operations will see: scratch is taken once, from these. */
typedef struct BackendLimits {
    int B, T;    /* sequences in a micro-step, tokens in a sequence */
    int C, F;    /* model width, MLP hidden size */
    int H, HD;   /* heads, head size */
    int DK;      /* channels of a head that make its scores: HD, or less, see AttentionArgs */
    int V;       /* vocabulary, the padding included where there is some */
    bool capped; /* attention scores have a soft cap */
} BackendLimits;

/* Dies with EXIT_IO where the device or its driver is missing or too old, saying which. */
Backend *backend_open(const BackendOptions *options);
void backend_close(Backend *be);
const char *backend_name(void);      /* "cpu", "cuda", "emu" */
const char *backend_attention(void); /* "laser", "standard" */
const char *backend_precision(void); /* "fp32", "bf16" */
void backend_describe(
    Backend *be, char *text, size_t capacity); /* device, threads, libraries: one line */
/* The GPU's UUID, as nvidia-smi -L prints it: the same for every process. false: there is none. */
bool backend_device_id(const Backend *be, char *text, size_t capacity);
/* FLOP/s that "fraction of peak" is counted against: the data sheet's on a GPU; on a CPU the rate
 * of this build's own matrix product, measured in 0.3 s, the best of all calls so far. */
double backend_peak_flops(Backend *be);

/* Scratch that backend_reserve will take, a pure function of its arguments (and of the device's
 * architecture where there is one). */
size_t backend_scratch_bytes(const BackendLimits *limits, const BackendOptions *options);
/* Bytes of the device that the context and the libraries hold, 0 on a CPU; an estimate while no
 * backend is open. */
size_t backend_overhead_bytes(const Backend *be /* or NULL */);
/* Bytes that one of `processes` on this machine may still take, for everything. */
size_t backend_memory_limit(const Backend *be, int processes);
void backend_reserve(Backend *be, const BackendLimits *limits); /* takes the scratch; call once */

void *backend_alloc(Backend *be, size_t bytes); /* 64-byte aligned, zeroed; dies with the size */
void backend_free(Backend *be, void *p);
void backend_upload(Backend *be, void *dst, const void *host, size_t bytes);
/* The same without waiting, for a batch of at most B*T int32 of the limits; host may be changed at
 * once. Operations called later see the new content, earlier ones the old. */
void backend_send(Backend *be, int32_t *dst, const int32_t *host, size_t count);
void backend_download(Backend *be, void *host, const void *src, size_t bytes);
void backend_zero(Backend *be, void *p, size_t bytes);
void backend_copy(Backend *be, void *dst, const void *src, size_t bytes); /* within its memory */
/* float on the host <-> act_t in backend memory */
void backend_upload_act(Backend *be, act_t *dst, const float *host, size_t n);
void backend_download_act(Backend *be, float *host, const act_t *src, size_t n);
/* Reads back without waiting: begin marks the place in the order of operations, end waits until
 * the work before it is done and gives the content that src had then. ready: end would not wait.
 * Slots are independent; a slot holds one read at a time. */
enum { BACKEND_READ_SLOTS = 4, BACKEND_READ_BYTES = 256 };
void backend_read_begin(Backend *be, int slot, const void *src, size_t bytes);
bool backend_read_ready(Backend *be, int slot);
void backend_read_end(Backend *be, int slot, void *host);
void backend_synchronize(Backend *be); /* waits for all operations */
/* True where host code may read and write backend memory. */
bool backend_memory_is_host(void);
/* Calls to backend_alloc so far; the second training step must not raise it. */
int64_t backend_allocations(const Backend *be);

/* ---- embedding ---- */

/* x[n,:] = scale * wte[tokens[n],:] + pos[n mod T,:]   (pos may be NULL) */
void op_embed_fwd(Backend *be, act_t *x /* (B*T, C) */, const int32_t *tokens /* (B*T) */,
    const act_t *wte /* (V, C) */, const act_t *pos /* (T, C) */, float scale,
    const int *BTC /* B, T, C */);
/* dwte[tokens[n],:] += scale * dx[n,:]   (always added: the classifier wrote it first);
 * dpos[t,:] = beta * dpos[t,:] + sum over sequences   (dpos may be NULL) */
void op_embed_bwd(Backend *be, float *dwte, float *dpos, float beta, const act_t *dx,
    const int32_t *tokens, float scale, const int *BTC);

/* ---- LayerNorm, fused with the residual addition before it ---- */

typedef struct NormArgs {
    int N, C;
    float eps;
    const act_t *w, *b; /* (C) scale and bias */
    float *mean, *rstd; /* (N) written by fwd, read by bwd */
} NormArgs;

/* x = x_in + delta (delta may be NULL, then x == x_in is not written); out = LN(x) * w + b. x may
 * alias x_in. */
void op_residual_norm_fwd(Backend *be, act_t *x /* (N, C) */, act_t *out /* (N, C) */,
    const act_t *x_in, const act_t *delta, const NormArgs *a);
/* dx += gradient through the norm; dw, db beta outputs. x is the norm's input. */
void op_norm_bwd(Backend *be, act_t *dx /* (N, C) */, float *dw /* (C) */, float *db /* (C) */,
    float beta, const act_t *dout, const act_t *x, const NormArgs *a);

/* ---- linear layer and activation ---- */

typedef enum Act { ACT_NONE, ACT_RELU, ACT_GELU /* tanh form */ } Act;

typedef struct LinearArgs {
    int N, OC, IC;
    const act_t *w;    /* (OC, IC) */
    const act_t *bias; /* (OC) or NULL */
    Act act;    /* fwd: applied to the output. bwd: x was act(pre), and dx is returned through it */
    act_t *pre; /* (N, OC) fwd out: value before act; (N, IC) bwd in. NULL with ACT_NONE, and with
                   ACT_RELU, whose derivative is read from its output */
} LinearArgs;

/* y = act(x w^T + bias) */
void op_linear_fwd(
    Backend *be, act_t *y /* (N, OC) */, const act_t *x /* (N, IC) */, const LinearArgs *a);
/* dx = (dy w) * act'(pre); dw, dbias beta outputs (dbias NULL where there is no bias; dx NULL: not
 * wanted). a->act and a->pre are those of the layer that produced x; x is its output. */
void op_linear_bwd(Backend *be, act_t *dx /* (N, IC) */, float *dw /* (OC, IC) */,
    float *dbias /* (OC) */, float beta, const act_t *dy /* (N, OC) */,
    const act_t *x /* (N, IC) */, const LinearArgs *a);
/* h = act(pre), when it is recomputed rather than kept */
void op_act_fwd(Backend *be, act_t *h, const act_t *pre, Act act, size_t n);

/* ---- attention, causal ---- */

typedef struct AttentionArgs {
    int B, T, H, HD;
    int DK, k0;    /* channels [k0, k0 + DK) of each head's q and k make its scores: HD and 0, but
                      for differential attention; v and out are HD wide in any case */
    float scale;   /* scores are scale * q.k */
    float softcap; /* 0: off; else scores become softcap * tanh(scores / softcap) */
    float *lse;    /* (B, H, T) written by fwd, read by bwd: log sum exp of the scores of a row */
    float *laser;  /* what LASER's backward needs, op_attention_laser_floats() of them; NULL for
                      standard */
    bool add_dv;   /* bwd: dv += (a second map over the same v) */
    int from; /* fwd: rows [from, T) of out are wanted, of a B of 1; those before may be left or
                 written again. 0 where a backward pass follows */
} AttentionArgs;

size_t op_attention_laser_floats(int B, int T, int H, int HD); /* 0 for standard attention */
void op_attention_fwd(Backend *be, act_t *out /* (B, T, H, HD) */,
    const act_t *qkv /* (B, T, 3, H, HD) */, const AttentionArgs *a);
/* Of dqkv's q and k the channels [k0, k0 + DK) are written, no others. */
void op_attention_bwd(Backend *be, act_t *dqkv /* (B, T, 3, H, HD) */, const act_t *dout,
    const act_t *qkv, const act_t *out, const AttentionArgs *a);

typedef struct RopeArgs {
    int B, T, H, HD;
    int first; /* position of each sequence's first row */
} RopeArgs;

/* Rotary positions on q and k in place: pairs (i, i + HD/2), angle t * base^(-2i/HD), base 1e4
 * (RoFormer; halves split as in GPT-NeoX). sign +1 forward, -1 backward (the transpose of a
 * rotation). */
void op_rope(Backend *be, act_t *qkv /* (B, T, 3, H, HD) */, int sign, const RopeArgs *a);

/* ---- queries and keys before the scores, in place ---- */

typedef struct QueryKeyArgs {
    int N, H, HD; /* tokens; heads and their size as the scores see them: 2 H heads of HD/2 with
                     differential attention */
    float eps;
    const act_t *qw, *kw; /* (HD) scales of the norms; NULL: no norm */
    const act_t *p;       /* (HD) of the per-dimension scale; NULL: none */
    act_t *raw;           /* (N, 2, H, HD) q and k as they came: written by fwd, read by bwd; NULL
                             without norm */
} QueryKeyArgs;

/* q = LN(q) * qw and k = LN(k) * kw over each head, without bias (QK-norm: Dehghani et al.,
 * ViT-22B, arXiv 2302.05442); then q *= 1.442695041 * softplus(p) (the per-dimension scale of
 * Praxis; 1 where p is 0). v is not touched. */
void op_query_key_fwd(Backend *be, act_t *qkv /* (N, 3, H, HD) */, const QueryKeyArgs *a);
/* dqkv's q and k become gradients of what came in; dqw, dkw, dp (HD) beta outputs, each NULL where
 * the forward pass had none. qkv: as fwd left it. */
void op_query_key_bwd(Backend *be, act_t *dqkv /* (N, 3, H, HD) */, float *dqw, float *dkw,
    float *dp, float beta, const act_t *qkv, const QueryKeyArgs *a);

/* ---- differential attention: two maps into one (arXiv 2410.05258) ---- */

typedef struct DiffArgs {
    int N, H, HD;
    float lambda_init, eps;
    const act_t *lq1, *lk1, *lq2, *lk2; /* (HD/2) each */
    const act_t *w; /* (HD) scale of the norm over each head; NULL: no norm and no factor */
} DiffArgs;

typedef struct DiffGrads {
    float *lq1, *lk1, *lq2, *lk2; /* (HD/2) beta outputs */
    float *w;                     /* (HD) beta output, NULL where the forward pass had no norm */
    float beta;
} DiffGrads;

/* lambda = exp(lq1.lk1) - exp(lq2.lk2) + lambda_init;  y = o1 - lambda * o2;
 * out = (1 - lambda_init) * y / sqrt(mean(y^2) + eps) * w, or y where w is NULL. */
void op_diff_fwd(
    Backend *be, act_t *out /* (N, H, HD) */, const act_t *o1, const act_t *o2, const DiffArgs *a);
/* do1, do2 written; do1 may be dout. */
void op_diff_bwd(Backend *be, act_t *do1 /* (N, H, HD) */, act_t *do2, const DiffGrads *g,
    const act_t *dout, const act_t *o1, const act_t *o2, const DiffArgs *a);

/* ---- classifier: logits, softmax, cross-entropy, in chunks of tokens, never whole ---- */

typedef struct ClassifierArgs {
    int N, C, V;
    int Vp;         /* rows that w, bias and their gradients hold, at least V: those from V on are
                       0, receive no probability and a gradient of 0, or none */
    const act_t *w; /* (Vp, C) */
    const act_t *bias; /* (Vp) or NULL */
    float softcap;     /* 0: off */
} ClassifierArgs;

/* losses[n] = -log softmax(x w^T + bias)[targets[n]] */
void op_classifier_loss(Backend *be, float *losses /* (N) */, const act_t *x /* (N, C) */,
    const int32_t *targets /* (N) */, const ClassifierArgs *a);
/* The same, and the gradients of grad_scale * sum(losses): dx written; dw, dbias beta outputs. */
void op_classifier_train(Backend *be, float *losses, act_t *dx /* (N, C) */,
    float *dw /* (Vp, C) */, float *dbias /* (Vp) or NULL */, float beta, float grad_scale,
    const act_t *x, const int32_t *targets, const ClassifierArgs *a);
void op_classifier_logits(
    Backend *be, float *logits /* (N, V) */, const act_t *x, const ClassifierArgs *a);

/* ---- checksum ---- */

/* *sum (in backend memory) = of the bits of x, modulo 2^64, of splitmix64's finalizer of
 * bits(x[i]) xor i * 0x9e3779b97f4a7c15: the same in any order of summing, so on every machine.
 * Any change of one element changes it; any other but for one chance in 2^64. */
void op_checksum(Backend *be, uint64_t *sum /* (1) */, const float *x, size_t n);

/* ---- optimizer ---- */

/* Lives in backend memory, one per training run, so that a GPU decides alone whether a step is
 * applied. */
typedef struct StepState {
    double loss_sum;     /* of all token losses of the step */
    double grad_sumsq;   /* squared global norm of the gradient, before clipping */
    int64_t updates;     /* updates applied since the start: Adam's t */
    int32_t skipped;     /* 1: loss or norm of this step is not finite and nothing was changed */
    int32_t bad_weights; /* 1: an update met a weight that is not finite, which a fused ReLU may
                            hide from the loss; set by updates, no later step is applied */
} StepState;

/* *sum += of the token losses of a micro-step */
void op_loss_add(Backend *be, double *sum, const float *losses /* (N) */, size_t n);
/* x += y: what is summed over micro-steps in another order than one after the other */
void op_add(Backend *be, float *x, const float *y, size_t n);

/* Sums over a parameter arena are made of sums over blocks of so many elements, counted from its
 * start, and those are added in order: the same bits whoever computes which block. */
enum { OPT_BLOCK = 4096 };

/* squares[i] = sum of the squared elements of block i of x, which is aligned to 16 bytes; n a
 * multiple of OPT_BLOCK */
void op_square_blocks(Backend *be, double *squares /* (n / OPT_BLOCK) */, const float *x, size_t n);
/* *bad = s->bad_weights: what all processes must know of those that each holds */
void op_bad_weights(Backend *be, double *bad, const StepState *s);

typedef struct StepSums {
    const double *losses;  /* (micro_steps) of the micro-steps of all processes */
    const double *squares; /* (blocks) of the gradient */
    const double *bad;     /* (1) not 0: a process met a weight that is not finite */
    size_t micro_steps, blocks;
} StepSums;
/* loss_sum, grad_sumsq = the totals, in a fixed order; bad_weights = 1 where *bad says so; skipped
 * = it is, or a total is not finite; updates += !skipped */
void op_step_decide(Backend *be, StepState *s, const StepSums *sums);

typedef struct OptRange { /* a tensor of a layer, or the part of it that is held here */
    size_t offset, count; /* in elements of the parameter arena; offset a multiple of 16 */
    size_t held;          /* where its first element lies in m, v, and a master of their shape;
                             offset less a multiple of OPT_BLOCK: blocks are held whole */
    int tensor;           /* its number; of all tensors, whoever holds them */
    float decay;          /* 1: weight decay applies, 0: not */
    float center;         /* decay pulls towards this: 0, or 1 for norm scales */
} OptRange;

typedef struct AdamArgs {
    float lr, beta1, beta2, eps, weight_decay;
    float grad_clip;   /* gradients times min(1, grad_clip / (global norm + 1e-6)); 0: off */
    float update_clip; /* per tensor: u /= max(1, rms(u) / update_clip), before decay; 0: off */
    bool lamb; /* per tensor, after decay: u *= |master - center| / |u|, 1 where either is 0 */
} AdamArgs;

/* Where every element of a tensor counts in its norms: sums has a slot for each block that the
 * tensor touches, from block + tensor on, block being offset / OPT_BLOCK: no two share one. */
typedef struct OptTensor {
    size_t offset, count; /* in elements of the parameter arena */
    float decay;
} OptTensor;

typedef struct OptSums { /* of a tensor's elements in a block, q being master - center */
    double uu, uq, qq;
} OptSums;

/* All in backend memory but the struct itself; arrays of float and act_t aligned to 16 bytes. */
typedef struct OptTensors {
    act_t *params;            /* parameter arena */
    const float *grads;       /* parameter arena */
    float *master;            /* params itself (fp32), else (held) */
    float *m, *v;             /* (held) */
    const OptRange *ranges;   /* (count) ascending, apart from each other, in both orders */
    int count;                /* 0: nothing is held here */
    size_t held;              /* elements of m and v */
    const OptTensor *tensors; /* (tensor_count) all of the model; these and all below: for norms */
    int tensor_count;
    size_t blocks;  /* of the parameter arena */
    OptSums *sums;  /* (blocks + tensor_count) */
    float *factors; /* (tensor_count, 2) room */
} OptTensors;

/* AdamW (Loshchilov & Hutter, decay scaled by the schedule): g = grads * clip;  m, v as usual,
 * bias-corrected with t = s->updates;  u = mhat / (sqrt(vhat) + eps), 0 where v is 0, clipped;
 * u += wd * decay * (master - center);  with lamb u *= trust ratio (LAMB as optax.lamb has it:
 * You et al., arXiv 1904.00962, with phi the identity);  master -= lr * u. params = master rounded.
 * Nothing happens when s->skipped.
 *
 * In one pass where no norm of a tensor is asked for: neither lamb nor update_clip. */
void op_adamw(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s);
/* In two where one is: m, v and the sums over what is held here, the other slots 0; then, with the
 * sums of all processes added up, the rest. */
void op_adam_sums(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s);
void op_adam_apply(Backend *be, const OptTensors *x, const AdamArgs *a, StepState *s);

#ifdef __cplusplus
}
#endif
#endif
