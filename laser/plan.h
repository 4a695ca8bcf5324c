/* plan.h: what a run will need, before it starts: parameters, memory, disk, FLOPs. */
#ifndef LASER_PLAN_H
#define LASER_PLAN_H

#include "laser/config.h"
#include "laser/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Prints the plan; allocates nothing of the model. world: processes; vocab: as the data record it,
 * or 0. */
void plan_print(const Config *c, const ModelConfig *m, int world, const BackendOptions *options);

/* Dies (EXIT_IO) when the run does not fit into the backend's memory, with what would. */
void plan_require_memory(const Backend *be, const ModelConfig *m, int batch, int processes_here,
    const BackendOptions *options);

#ifdef __cplusplus
}
#endif
#endif
