/* optim.h: the optimizer's state and one update of all parameters, by AdamW or LAMB. */
#ifndef LASER_OPTIM_H
#define LASER_OPTIM_H

#include "laser/model.h"
#include "laser/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum Optimizer { OPTIMIZER_ADAMW, OPTIMIZER_LAMB } Optimizer; /* as --optimizer */

typedef struct Optim {
    float *m, *v;     /* (elements of the parameter arena); these and all below: backend memory */
    OptRange *ranges; /* (count) one per tensor and layer */
    double *work;     /* (count, OPT_WORK) */
    int count;
    StepState *state;
} Optim;

AdamArgs optim_args(const Config *c); /* lr is left 0: the schedule sets it each step */
Schedule optim_schedule(const Config *c);

void optim_open(Optim *o, const Model *m, bool decay_all);
void optim_close(Optim *o, Backend *be);

void optim_begin(Optim *o, Backend *be); /* loss_sum = 0 */
/* After the last micro-step (and the sum over processes): norm, decision, update. */
void optim_step(Optim *o, Model *m, const AdamArgs *a);
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
