/* rundir.h: a run's directory: one process at a time, one run for ever. Knows the options and
 * the checkpoints; knows nothing of what is logged. */
#ifndef LASER_RUNDIR_H
#define LASER_RUNDIR_H

#include "laser/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Creates dir, locks it until the process ends, and refuses it where config.json tells of a run
 * with other fixed options or another attention, or of any run when fresh is set. */
void rundir_open(const char *dir, const Config *c, bool fresh);

/* Opens c->out, where one is named, and writes to start the checkpoint from which the run goes on;
 * nothing when it is to begin. For one process of a run. */
void rundir_find_start(const Config *c, const char *checkpoints, char *start, size_t capacity);

/* Dies (EXIT_USAGE) naming the options that may not differ from saved_json's; when loud, warns of
 * those that may. where: the name for the messages. */
void rundir_require_same(const char *where, const Config *c, const char *saved_json, bool loud);

#ifdef __cplusplus
}
#endif
#endif
