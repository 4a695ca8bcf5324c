/* pretrained.h: a model from a checkpoint, to be read and not trained: what writes text from it and
 * what measures it begin here. Knows checkpoints and options; knows neither data nor text. */
#ifndef LASER_PRETRAINED_H
#define LASER_PRETRAINED_H

#include "laser/config.h"
#include "laser/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Opens a backend, and on it the model of a checkpoint, or of the newest whole one in a run's
 * directory, for one sequence, every layer's activations kept. Takes the model's options into c.
 * Says on stderr what it is, unless c->quiet. Dies with EXIT_INPUT where `named` is neither, is not
 * whole, or is of the attention that is not linked. */
void pretrained_open(Model *m, Config *c, const char *named);
void pretrained_close(Model *m); /* and its backend */

#ifdef __cplusplus
}
#endif
#endif
