/* pretrained.c: see pretrained.h. */
#include "laser/pretrained.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "laser/base.h"
#include "laser/checkpoint.h"

enum { PATH_BYTES = 4096 };

/* A checkpoint, or the newest whole one of a run's directory. */
static void find_checkpoint(const char *named, char *path, size_t capacity) {
    char inside[PATH_BYTES];
    format(inside, sizeof inside, "%s/state.json", named);
    if (file_size(inside) >= 0) {
        checkpoint_require_whole(named);
        format(path, capacity, "%s", named);
        return;
    }
    format(inside, sizeof inside, "%s/checkpoints", named);
    char *found = file_size(inside) >= 0 ? checkpoint_newest(inside) : NULL;
    if (!found) die(EXIT_INPUT, "%s: neither a checkpoint nor a run's directory with one", named);
    format(path, capacity, "%s", found);
    free(found);
}

void pretrained_open(Model *m, Config *c, const char *named) {
    char path[PATH_BYTES];
    RunState state;
    int64_t updates;
    find_checkpoint(named, path, sizeof path);
    char *saved = checkpoint_state(path, &state, &updates);
    config_adopt_model(c, saved);
    free(saved);
    c->recompute = RECOMPUTE_NONE; /* keys and values of every layer stay where they can be read */
    const ModelConfig shape = config_model(c, 0);
    const BackendLimits limits = model_limits(&shape, 1);
    const BackendOptions options = config_backend(c, 0);
    Backend *be = backend_open(&options);
    backend_reserve(be, &limits);
    model_open(m, be, &shape, 1, MODEL_INFERENCE, NULL);
    checkpoint_load_weights(path, m);
    if (!c->quiet)
        fprintf(stderr, "%s: %.2f M parameters, %s attention, step %" PRId64 "\n", path,
            (double)model_parameters(&shape) / 1e6, backend_attention(), state.step);
}

void pretrained_close(Model *m) {
    Backend *be = m->be;
    model_close(m);
    backend_close(be);
}
