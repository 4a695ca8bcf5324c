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
} Rig;

ModelConfig rig_small_config(void); /* every option in use; no size divides another */
void rig_open(Rig *r, const ModelConfig *c, int B, int threads);
void rig_close(Rig *r);
/* Forward and backward of the mean loss of (B, T) tokens, in micro-batches of `micro` sequences;
 * returns that loss. */
double rig_gradients(
    Rig *r, const int32_t *tokens, const int32_t *targets, int B, int T, int micro);
float *rig_floats(Rig *r, const float *p, size_t n); /* copy of backend memory, malloced */
/* Logits of the last forward pass, (rows, V), malloced. */
float *rig_logits(Rig *r, int rows);

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
