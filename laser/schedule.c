/* schedule.c: the learning rate as a pure function of the step. */
#include "laser/schedule.h"

#include <math.h>

static double ramp_down(
    const Schedule *s, int64_t step, int64_t from) { /* peak at from, min at steps */
    double length = (double)(s->steps - from);
    double r = length > 0 ? (double)(step - from) / length : 1.0;
    return s->peak * (s->min_ratio + (1.0 - s->min_ratio) * (1.0 - r));
}

double schedule_lr(const Schedule *s, int64_t step) {
    if (step < s->warmup) return s->peak * (double)(step + 1) / (double)s->warmup;
    if (step > s->steps) step = s->steps;
    double span = (double)(s->steps - s->warmup);
    double r = span > 0 ? (double)(step - s->warmup) / span : 1.0;
    switch (s->kind) {
    case SCHEDULE_COSINE:
        return s->peak * (s->min_ratio +
                             (1.0 - s->min_ratio) * 0.5 * (1.0 + cos(3.14159265358979323846 * r)));
    case SCHEDULE_LINEAR:
        return ramp_down(s, step, s->warmup);
    case SCHEDULE_CONSTANT:
        return s->peak;
    case SCHEDULE_WSD: {
        int64_t from = s->steps - (int64_t)llround(s->decay_fraction * (double)s->steps);
        if (from < s->warmup) from = s->warmup;
        return step < from ? s->peak : ramp_down(s, step, from);
    }
    }
    return s->peak;
}
