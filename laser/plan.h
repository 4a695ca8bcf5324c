/* plan.h: what a run will need, before it starts: parameters, memory, disk, FLOPs. */
#ifndef LASER_PLAN_H
#define LASER_PLAN_H

#include "laser/config.h"
#include "laser/model.h"
#include "laser/parallel.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct PlanShape {
    const ModelConfig *model;
    int batch, world; /* sequences of a micro-step; processes */
    const ParallelOptions *parallel;
    const BackendOptions *options;
} PlanShape;

/* Of the process that holds most. Returns the sum. */
size_t plan_memory(const PlanShape *s, MemoryPlan *p);

/* Prints the plan; allocates nothing of the model. */
void plan_print(const Config *c, const PlanShape *s);

/* Dies (EXIT_IO) when the run does not fit into the backend's memory, with what would. */
void plan_require_memory(const Backend *be, const PlanShape *s, int processes_here);

#ifdef __cplusplus
}
#endif
#endif
