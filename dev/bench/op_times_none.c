/* op_times_none.c: op_times.c for backends whose operations return before they have run: a clock
 * around a call would tell nothing, and nothing is counted or printed. The build links one of the
 * two. */
#include "dev/bench/op_times.h"

void op_times_begin(const Model *m) {
    (void)m;
}

void op_times_step_begin(void) {}

void op_times_step_done(double seconds) {
    (void)seconds;
}

void op_times_print(FILE *out, double peak_flops) {
    (void)out, (void)peak_flops;
}
