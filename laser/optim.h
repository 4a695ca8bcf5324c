/* optim.h: the optimizer's state and one update of all parameters, by AdamW or LAMB. */
#ifndef LASER_OPTIM_H
#define LASER_OPTIM_H

#include "laser/model.h"
#include "laser/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum Optimizer { OPTIMIZER_ADAMW, OPTIMIZER_LAMB } Optimizer; /* as --optimizer */

typedef struct OptSlice { /* elements of the parameter arena, multiples of PARAM_GRAIN */
    size_t begin, count;
} OptSlice;

/* What this process holds and updates. */
typedef struct OptShard {
    const OptSlice *slices; /* (count) ascending, apart from each other; they may be empty */
    int count;
} OptShard;

typedef struct Optim { /* arrays in backend memory, but for slices */
    OptSlice *slices;  /* (slice_count) */
    int slice_count;
    size_t held;        /* elements of m and v: the slices, one behind the other */
    float *m, *v;       /* (held) */
    float *master;      /* the model's where that is whole, else (held) */
    OptRange *ranges;   /* (count) tensors of a layer, cut at the slices */
    OptTensor *tensors; /* (tensor_count) */
    int count, tensor_count;
    size_t blocks;   /* of the parameter arena */
    double *squares; /* (blocks), then one: whether a weight held here is not finite */
    OptSums *sums;   /* (optim_slots) and */
    float *factors;  /* (tensor_count, 2); both NULL where no norms of tensors are asked for */
    StepState *state;
} Optim;

AdamArgs optim_args(const Config *c); /* lr is left 0: the schedule sets it each step */
Schedule optim_schedule(const Config *c);
bool optim_needs_norms(const AdamArgs *a); /* of tensors: LAMB, clipping of updates */

typedef struct OptimOptions {
    const OptShard *shard; /* NULL: everything is held here */
    bool decay_all, norms; /* norms: those of tensors will be needed */
} OptimOptions;
/* m and v 0. */
void optim_open(Optim *o, const Model *m, const OptimOptions *options);
void optim_close(Optim *o, const Model *m);
size_t optim_bytes(const ParamTable *t, size_t held, bool norms); /* about what open takes, but
                                                                     without master */

/* One update, when the gradients are there. Its parts, between which a process that holds a part
 * adds the measures, then the sums, over all of them: */
void optim_measure(Optim *o, const Model *m); /* writes squares, 0 in the blocks of others */
size_t optim_measures(const Optim *o);        /* how many doubles those are */
void optim_decide(Optim *o, const Model *m, const double *losses, size_t micro_steps);
void optim_sums(Optim *o, Model *m, const AdamArgs *a); /* where norms are needed */
size_t optim_slots(const Optim *o);                     /* of sums: blocks + tensor_count */
void optim_apply(Optim *o, Model *m, const AdamArgs *a);
/* All of it, by one process that holds everything. losses: see StepSums, in backend memory. */
void optim_step(Optim *o, Model *m, const AdamArgs *a, const double *losses, size_t micro_steps);

StepState optim_read(const Optim *o, Backend *be); /* waits */
/* The same without waiting: the state that the operations called before begin leave, in one of the
 * backend's slots. */
void optim_read_begin(const Optim *o, Backend *be, int slot);
bool optim_read_ready(const Optim *o, Backend *be, int slot);
StepState optim_read_end(const Optim *o, Backend *be, int slot);
void optim_set_updates(Optim *o, Backend *be, int64_t updates); /* on resume */

#ifdef __cplusplus
}
#endif
#endif
