/* fixture.h: a model with its optimizer on a backend of its own, for tests, and the fixtures that
 * dev/ref/model_ref.py wrote, of the linked attention. Knows the model and its files; checks
 * nothing. */
#ifndef DEV_TEST_FIXTURE_H
#define DEV_TEST_FIXTURE_H

#include "laser/model.h"
#include "laser/optim.h"
#include "laser/safetensors.h"
#include "laser/schedule.h"

typedef struct Rig {
    Backend *be;
    Model m;
    Optim o;
    double *loss; /* (1) of rig_gradients, a sum over tokens; backend memory */
} Rig;

ModelConfig rig_small_config(void); /* every option in use; no size divides another */
/* The same with modifiers of attention: none, QK-norm and per-dimension scale, differential
 * attention, all of them with rotary positions, the plain form with a temperature. */
enum { RIG_VARIANTS = 5 };
ModelConfig rig_variant(int which);
void rig_open(Rig *r, const ModelConfig *c, int B, int threads);
void rig_close(Rig *r);
/* Forward and backward of the mean loss of (B, T) tokens, in micro-batches of `micro` sequences;
 * returns that loss. */
double rig_gradients(
    Rig *r, const int32_t *tokens, const int32_t *targets, int B, int T, int micro);
void rig_step(Rig *r, const AdamArgs *a);            /* one update by these gradients */
float *rig_floats(Rig *r, const float *p, size_t n); /* copy of backend memory, malloced */
/* Logits of the last forward pass, (rows, V), malloced. */
float *rig_logits(Rig *r, int rows);

/* The error that a pass may have, as rig_difference measures it. The forward pass is a chain of
 * 10 operations a layer, more with modifiers of attention, and 3 around them; norms hold the scale.
 * The backward pass is a chain as long again, on top of the forward's error. Float: errors add, and
 * each operation brings at most gamma(longest sum). Narrow: each operation rounds its result, by at
 * most act_u, in root mean square by 0.4 of it. These errors are independent, so that their squares
 * add; 2, not 0.4, since an operation may pass an error on larger than it was. */
double rig_error(const ModelConfig *c, bool backward);
/* Float: the largest difference, as a fraction of the largest value, so that no single element may
 * be wrong. Narrow, where the errors of single elements scatter: root mean square over root mean
 * square. Infinite where something is not finite. */
double rig_difference(const float *got, const float *want, size_t n);

typedef struct Fixture {
    StFile file;
    ModelConfig config;
    int B, steps;
    Schedule schedule;
    AdamArgs adam;             /* lr is set before each step */
    int32_t *inputs, *targets; /* (steps, B, T) */
} Fixture;

void fixture_open(Fixture *f, const char *name);
void fixture_close(Fixture *f);
float *fixture_read(
    const Fixture *f, const char *name, size_t *count); /* malloced; dies when absent */
/* A result of the linked attention: "laser.NAME" or "standard.NAME". */
float *fixture_result(const Fixture *f, const char *name, size_t *count);
/* One parameter, e.g. group "init." or "grad.", in the layout of the model, (p->logical), malloced.
 */
float *fixture_param(const Fixture *f, const char *group, const ParamInfo *p);
void fixture_load_weights(const Fixture *f, Rig *r);

#endif
