/* checkpoint.h: a run's state on disk. DIR/step_00001000/ holds model.safetensors (logical tensors,
 * Hugging Face GPT-2 names, the float master copy), optimizer.safetensors ("m." and "v." before the
 * same names) and state.json (position, options, size and CRC32C of each file). Written under
 * another name, synced, renamed: a directory called step_* was once whole. Knows the model and the
 * optimizer; knows neither data nor logs. */
#ifndef LASER_CHECKPOINT_H
#define LASER_CHECKPOINT_H

#include "laser/parallel.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct RunState {
    int64_t step;    /* steps done: the next is step + 1, and the data position follows from it */
    int64_t tokens;  /* trained on */
    int64_t skipped; /* steps not applied, and how many of them in a row up to now */
    int64_t skipped_in_row;
    double best_val;      /* lowest validation loss, negative when none */
    double train_seconds; /* spent in steps, over all attempts */
    uint64_t data_fingerprint;
} RunState;

/* Bytes that one checkpoint takes on disk, to within its headers. */
uint64_t checkpoint_bytes(const ModelConfig *c);

/* Saves to DIR/step_%08d and deletes all but `keep`: this one and those before it. config_json:
 * every option, resolved. All processes call it; with a dealt out optimizer each writes its part of
 * the files, else rank 0 all, and the checkpoint appears when all parts are whole. */
void checkpoint_save(
    const char *dir, Parallel *p, const RunState *s, const char *config_json, int keep);

/* The newest checkpoint in dir whose files all have the recorded size and checksum, malloced; NULL
 * when there are no checkpoints. Dies (EXIT_INPUT) when there are and none is whole. For one
 * process of a run: names on stderr those that are passed over, and removes what interrupted saves
 * left. */
char *checkpoint_find(const char *dir);

/* The same for a reader, beside a run that may be saving: removes nothing; NULL when none is whole.
 */
char *checkpoint_newest(const char *dir);

/* Dies (EXIT_INPUT) unless every file of this checkpoint has its size and checksum. */
void checkpoint_require_whole(const char *path);

/* Reads PATH/state.json: the position, and the options of the run that wrote it (malloced). Dies
 * with EXIT_INPUT when it is not a checkpoint of the linked attention variant. */
char *checkpoint_state(const char *path, RunState *s, int64_t *updates);

/* Reads the tensors, whatever number of processes wrote them; the weights alone, of a model that
 * holds them whole. Dies with EXIT_INPUT when a tensor is missing or of another shape. */
void checkpoint_load(const char *path, Parallel *p);
void checkpoint_load_weights(const char *path, Model *m);

#ifdef __cplusplus
}
#endif
#endif
