/* ops_ref.h: the oracle. Every operation of laser/backend.h, forward and backward, naive and in
 * double, on plain host arrays: what a backend must compute. Shapes are those of backend.h. Knows
 * no backend and no float; both attentions are here, chosen at run time. */
#ifndef DEV_REF_OPS_REF_H
#define DEV_REF_OPS_REF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- embedding ------------------------------------------------------------------------------- */

typedef struct RefEmbed {
    int B, T, C;
    double scale;
    const int32_t *tokens; /* (B*T) */
} RefEmbed;

void ref_embed_fwd(
    double *x, const double *wte, const double *pos /* may be NULL */, const RefEmbed *a);
/* dwte +=; dpos = beta * dpos + (may be NULL) */
void ref_embed_bwd(double *dwte, double *dpos, double beta, const double *dx, const RefEmbed *a);

/* ---- LayerNorm ------------------------------------------------------------------------------- */

typedef struct RefNorm {
    int N, C;
    double eps;
    const double *w, *b;
} RefNorm;

/* x = x_in + delta (written also when delta is NULL); mean, rstd (N) may be NULL */
void ref_norm_fwd(double *x, double *out, double *mean, double *rstd, const double *x_in,
    const double *delta, const RefNorm *a);
/* dx +=; dw, db = beta * old + */
void ref_norm_bwd(double *dx, double *dw, double *db, double beta, const double *dout,
    const double *x, const RefNorm *a);

/* ---- linear layer and activation ------------------------------------------------------------- */

typedef enum RefAct { REF_NONE, REF_RELU, REF_GELU } RefAct;
double ref_act(double x, RefAct act);
double ref_act_grad(double x, RefAct act);

typedef struct RefLinear {
    int N, OC, IC;
    const double *w, *bias; /* bias may be NULL */
    RefAct act;
} RefLinear;

void ref_linear_fwd(
    double *y, double *pre /* (N, OC), may be NULL */, const double *x, const RefLinear *a);
/* dx = (dy w) * act'(pre), pre (N, IC); dw, dbias = beta * old + ; dx, dbias may be NULL */
void ref_linear_bwd(double *dx, double *dw, double *dbias, double beta, const double *dy,
    const double *x, const double *pre, const RefLinear *a);

/* ---- attention (attention_ref.c) ------------------------------------------------------------- */

/* Errors that can be planted, to see that a comparison finds them. */
typedef enum RefPlant {
    PLANT_NONE,
    PLANT_DROP_KEY,   /* the key in the middle is not seen by later rows */
    PLANT_MASK_MINUS, /* rows after the first do not see themselves */
    PLANT_MASK_PLUS,  /* rows see one token of the future */
    PLANT_SCALE,      /* scores larger by 1e-3, by 0.1 with narrow activations */
    PLANT_STALE_ROW,  /* the last row is computed with the query of the row before */
    PLANT_NO_D,       /* backward without D_i */
} RefPlant;

typedef struct RefAttention {
    int B, T, H, HD;
    int DK, k0;            /* channels [k0, k0 + DK) of q and k make the scores */
    double scale, softcap; /* softcap 0: off */
    bool laser;
    bool add_dv; /* bwd: dv += */
    RefPlant plant;
    double act_u; /* for ref_attention_bound: 0, or the unit roundoff of narrow activations, 2^-8 */
} RefAttention;

/* out (B, T, H, HD), lse (B, H, T) or NULL, qkv (B, T, 3, H, HD). LASER is computed as
 * out[i,c] = log sum_j exp(log p[i,j] + v[j,c]), exact at any size of v. */
void ref_attention_fwd(double *out, double *lse, const double *qkv, const RefAttention *a);
/* Of dqkv's q and k the channels [k0, k0 + DK) are written, no others; v is written or added to. */
void ref_attention_bwd(double *dqkv, const double *dout, const double *qkv, const RefAttention *a);
/* LASER as the paper's Algorithm 1 writes it: log(P exp(v - m)) + m with one maximum m over the
 * whole sequence, the future included. For comparison: -inf where the sum underflows. */
void ref_attention_paper_fwd(double *out, const double *qkv, const RefAttention *a);
/* How far a backend may be from the oracle, element by element (derivation in attention_ref.c):
 * float arithmetic on activations that are held as float, or narrow (act_u). dqkv_tol is added to;
 * of an addition to dv only what is added counts. */
void ref_attention_bound(double *out_tol, double *lse_tol, double *dqkv_tol /* or NULL */,
    const double *dout, const double *qkv, const RefAttention *a);

void ref_rope(double *qkv, int sign, int B, int T, int H, int HD);

/* ---- queries and keys before the scores (modifiers_ref.c) ------------------------------------ */

typedef struct RefQueryKey {
    int N, H, HD;
    double eps;
    const double *qw, *kw; /* (HD) scales of the norms; NULL: no norm */
    const double *p;       /* (HD) of the per-dimension scale; NULL: none */
    double act_u; /* for ref_query_key_bound: 0, or the unit roundoff of narrow activations */
} RefQueryKey;

typedef struct RefQueryKeyGrads { /* (HD) each, NULL where the forward pass had none */
    double *qw, *kw, *p;
    double beta; /* g = beta * old + */
} RefQueryKeyGrads;

double ref_per_dim_factor(double p); /* 1.442695041 * softplus(p) */
void ref_query_key_fwd(double *qkv /* (N, 3, H, HD) in place */, const RefQueryKey *a);
/* dqkv in place; raw (N, 3, H, HD): what fwd was given */
void ref_query_key_bwd(
    double *dqkv, const RefQueryKeyGrads *g, const double *raw, const RefQueryKey *a);
/* How far a backend may be: of what fwd leaves, of what bwd leaves when it is given dqkv, and of
 * the sums (tol->beta is not looked at). All are added to. */
void ref_query_key_bound(double *qkv_tol, double *dqkv_tol, const RefQueryKeyGrads *tol,
    const double *dqkv, const double *raw, const RefQueryKey *a);

/* ---- differential attention: two maps into one (modifiers_ref.c) ----------------------------- */

typedef struct RefDiff {
    int N, H, HD;
    double lambda_init, eps;
    const double *lq1, *lk1, *lq2, *lk2; /* (HD/2) */
    const double *w;                     /* (HD), NULL: no norm and no factor */
} RefDiff;

typedef struct RefDiffGrads {
    double *lq1, *lk1, *lq2, *lk2; /* (HD/2) */
    double *w;                     /* (HD), NULL without norm */
    double beta;                   /* g = beta * old + */
} RefDiffGrads;

double ref_diff_lambda(const RefDiff *a);
void ref_diff_fwd(
    double *out /* (N, H, HD) */, const double *o1, const double *o2, const RefDiff *a);
void ref_diff_bwd(double *do1, double *do2, const RefDiffGrads *g, const double *dout,
    const double *o1, const double *o2, const RefDiff *a);
/* How far float may be; all are added to. */
typedef struct RefDiffTol {
    double *out, *do1, *do2; /* (N, H, HD) */
    RefDiffGrads grads;
} RefDiffTol;
void ref_diff_bound(const RefDiffTol *tol, const double *dout, const double *o1, const double *o2,
    const RefDiff *a);

/* ---- classifier ------------------------------------------------------------------------------ */

typedef struct RefClassifier {
    int N, C, V;
    const double *w, *bias; /* bias may be NULL */
    double softcap;         /* 0: off */
} RefClassifier;

void ref_classifier_logits(double *logits /* (N, V) */, const double *x, const RefClassifier *a);
void ref_classifier_loss(
    double *losses, const double *x, const int32_t *targets, const RefClassifier *a);
/* gradients of grad_scale * sum(losses): dx written; dw, dbias (may be NULL) = beta * old + */
typedef struct RefClassifierGrads {
    double *dx, *dw, *dbias;
    double beta, grad_scale;
} RefClassifierGrads;
void ref_classifier_bwd(
    const RefClassifierGrads *g, const double *x, const int32_t *targets, const RefClassifier *a);
/* How far fp32 may be from the oracle: of the logits, the losses and the gradients, each may be
 * NULL. */
typedef struct RefClassifierTol {
    double *logits, *losses, *dx, *dw, *dbias;
    double act_u; /* in: 0, or the unit roundoff of narrow activations, 2^-8 */
} RefClassifierTol;
void ref_classifier_bound(const RefClassifierTol *tol, double grad_scale, const double *x,
    const int32_t *targets, const RefClassifier *a);

/* ---- optimizer ------------------------------------------------------------------------------- */

typedef struct RefAdam {
    double lr, beta1, beta2, eps, weight_decay, grad_clip, update_clip;
    bool lamb;
    double decay, center; /* of this tensor */
    double grad_sumsq;    /* of the whole gradient */
    int64_t t;            /* 1 at the first update */
    double shrink, trust; /* 0: as defined; else what update clipping and LAMB multiply by instead,
                             to plant errors */
} RefAdam;

/* One tensor; AdamW, or LAMB. tol (3, n), may be NULL: how far fp32 may be in master, m and v,
 * before (0 where they are given) and, written, after. Norms may not be summed in fp32. */
void ref_adamw(double *master, double *m, double *v, double *tol, const double *grads, size_t n,
    const RefAdam *a);

/* ---- rounding -------------------------------------------------------------------------------- */

/* u = 2^-24, the unit roundoff of fp32. A sum of n rounded terms is off by at most n u times the
 * sum of the absolute values; with rounding errors of mean zero by lambda sqrt(n) u with
 * probability 1 - 2 exp(-lambda^2/2) (Higham & Mary, "A new approach to probabilistic rounding
 * error analysis", SISC 2019). lambda = 6: 3e-8. */
#define REF_U 5.9604644775390625e-08
/* exp, log and tanh of a backend may be off by 4 units in the last place. */
#define REF_FN (8 * REF_U)
/* Subnormal numbers may be flushed to 0: 2^-126 and a little. */
#define REF_TINY 1.2e-38
double ref_gamma(double n);

#endif
