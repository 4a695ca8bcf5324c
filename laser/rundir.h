/* rundir.h: a run's directory: one process at a time, one run for ever, and the line that
 * tells what that run is. Knows the options and the checkpoints; knows nothing of what is logged
 * later. */
#ifndef LASER_RUNDIR_H
#define LASER_RUNDIR_H

#include "laser/config.h"
#include "laser/json.h"

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

typedef struct RunFacts {
    const Config *config;
    const char *config_json; /* of config_json() */
    const ModelConfig *model;
    const char *device; /* of backend_describe() */
    double peak_flops;
    int processes;
    int64_t data_tokens;
    uint64_t data_fingerprint;
    const char *data_json; /* of rundata_add_json() */
} RunFacts;
/* The {"kind":"run"} line: every option, resolved, and what they were applied to. */
Text rundir_line(const RunFacts *f);

#ifdef __cplusplus
}
#endif
#endif
