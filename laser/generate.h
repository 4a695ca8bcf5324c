/* generate.h: text from a checkpoint, continuing a prompt (--sample-from). */
#ifndef LASER_GENERATE_H
#define LASER_GENERATE_H

#include "laser/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes the prompt and its continuation to stdout as it comes: text where there is a vocabulary,
 * else ids. The model's options are the checkpoint's. Dies with EXIT_INPUT where the checkpoint or
 * the vocabulary cannot be read, with EXIT_USAGE where the prompt does not fit. */
void generate(Config *c);

#ifdef __cplusplus
}
#endif
#endif
