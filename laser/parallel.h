/* parallel.h: one model, trained by all processes. Gradients are added up and new weights handed
 * round bucket by bucket, beside the passes that make and read them; each process holds the whole
 * optimizer, or with ZeRO-1 a share of it. With one process nothing of this costs anything. Knows
 * model, optimizer and comm; knows neither data nor files. */
#ifndef LASER_PARALLEL_H
#define LASER_PARALLEL_H

#include "laser/comm.h"
#include "laser/model.h"
#include "laser/optim.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ParallelOptions {
    int micro_steps;   /* of this process in a step */
    bool zero;         /* ZeRO-1 (Rajbhandari et al., arXiv 1910.02054): m, v and the float master
                          copy are dealt out; the same bits */
    bool reproducible; /* micro-steps are summed in a binary tree, and so are processes: the same
                          bits for any number of them; host memory, micro_steps a power of two */
    bool share_gpu;    /* see comm_attach */
    CommWire wire;     /* what gradients travel in */
    bool decay_all, norms; /* see OptimOptions */
} ParallelOptions;

enum { PARALLEL_LEVELS = 32 };

typedef struct Bucket {
    size_t offset; /* in the parameter arena */
    CommShare share;
    CommTicket reduced, gathered;
} Bucket;

typedef struct Parallel {
    Comm *comm;
    Backend *be;
    Model *model;
    Optim optim;
    ParallelOptions options;
    bool dealt_out; /* zero, and several processes */
    Bucket *buckets; /* (count) as the table's */
    int count;
    double *losses; /* (world, micro_steps), in backend memory */
    int micro_step; /* of this step, done */
    float *partial[PARALLEL_LEVELS]; /* reproducible: sums of 1, 2, 4, ... micro-steps, or NULL */
    ModelHooks hooks;
    ModelMemory memory;
} Parallel;

ParallelOptions parallel_options(const Config *c, int micro_steps);

/* Sets the plan's master, optimizer and network: what this rank holds besides weights and
 * gradients. */
void parallel_plan(
    const ParamTable *t, int rank, int world, const ParallelOptions *o, MemoryPlan *p);

/* Opens the model, for B sequences of a micro-step, and what belongs to it. Dies (EXIT_USAGE) where
 * an option cannot be had. */
void parallel_open(Parallel *p, Comm *c, Backend *be, Model *m, const ModelConfig *shape, int B,
    const ParallelOptions *o);
void parallel_close(Parallel *p); /* the model too */

/* ---- a step: begin, then micro_steps forward passes, each with its backward, then update ---- */

void parallel_begin(Parallel *p);
void parallel_backward(Parallel *p, const int32_t *targets, int B, int T, float grad_scale);
void parallel_update(Parallel *p, const AdamArgs *a);
void parallel_settle(Parallel *p); /* before the weights are read but by a forward pass */
/* The model's gradients, of the last step, become the sum over all processes everywhere; all call
 * it, before anything else that may lose them. */
void parallel_gather_gradients(Parallel *p);

/* ---- weights and moments as whole tensors ---- */

typedef enum ParallelArena { PARALLEL_WEIGHTS, PARALLEL_M, PARALLEL_V } ParallelArena;

void parallel_init(Parallel *p, uint64_t seed); /* the weights that model_init gives */
/* The floats of all processes, shaped like the parameters; all call it. Valid until the next call
 * of it or the next step; the gradients may be lost. */
const float *parallel_whole(Parallel *p, ParallelArena which);
/* Sets tensor i of the table, of which host has the `logical` elements, in the arena's order; of
 * weights also what the passes read. What is held elsewhere is passed over. */
void parallel_put(Parallel *p, ParallelArena which, int i, const float *host);
bool parallel_holds(const Parallel *p, int i); /* moments of any element of tensor i */

#ifdef __cplusplus
}
#endif
#endif
