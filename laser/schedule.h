/* schedule.h: the learning rate as a pure function of the step. Knows no model and no optimizer. */
#ifndef LASER_SCHEDULE_H
#define LASER_SCHEDULE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ScheduleKind {
    SCHEDULE_COSINE,
    SCHEDULE_LINEAR,
    SCHEDULE_CONSTANT,
    SCHEDULE_WSD
} ScheduleKind;

typedef struct Schedule {
    ScheduleKind kind;
    double peak, min_ratio, decay_fraction;
    int64_t warmup, steps;
} Schedule;

/* For step 0 .. steps-1. Warm-up: peak * (step + 1) / warmup, so that the first step already moves.
 * Then, with r = (step - warmup) / (steps - warmup): cosine min + (peak - min) (1 + cos(pi r)) / 2;
 * linear peak .. min; constant; wsd: constant, then linear to min over the last decay_fraction of
 * all steps. Beyond the end: the end's. */
double schedule_lr(const Schedule *s, int64_t step);

#ifdef __cplusplus
}
#endif
#endif
