/* op_times.h: where the time of training steps goes. Calls of the model to the backend pass through
 * wrappers that the linker puts in between (op_times.link), so what is timed is the step itself and
 * not a copy of it. */
#ifndef LASER_BENCH_OP_TIMES_H
#define LASER_BENCH_OP_TIMES_H

#include <stdio.h>

#include "laser/model.h"

enum { OP_TIMES_MAX = 1000 }; /* steps; what comes after is not counted */

void op_times_begin(const Model *m); /* forgets what was counted */
void op_times_step_begin(void);
void op_times_step_done(double seconds);
/* For each kind of operation: time in a step, rate, and what it takes beyond its FLOPs at
 * peak_flops. */
void op_times_print(FILE *out, double peak_flops);

double median(double *values, int n); /* sorts them; median.c */

#endif
