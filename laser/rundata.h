/* rundata.h: the data of a run: its shards, what their makers wrote down about them, and what ids
 * print as; that all of it belongs together. Knows the options; knows nothing of the model. */
#ifndef LASER_RUNDATA_H
#define LASER_RUNDATA_H

#include "dataloader/loader.h"
#include "dataloader/manifest_totals.h"
#include "dataloader/vocab.h"
#include "laser/comm.h"
#include "laser/config.h"
#include "laser/json.h"
#include "laser/runlog.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct RunData {
    Loader *train, *val; /* val: NULL without validation shards; one sequence a step */
    Vocab vocab;         /* size 0: none */
    uint8_t *text_bytes; /* (vocab.size) of text that an id stands for; 0: it ends a document, or is
                            a control piece */
    ManifestTotals train_manifests, val_manifests; /* of process 0; the others have none */
    int64_t step_sequences;                        /* of all processes */
} RunData;

/* Opens what the options name, and fills in those that the data decide: vocab, steps, verify_data.
 * Dies with EXIT_INPUT, the files named, where something is not whole or does not belong to the
 * rest; with EXIT_USAGE where the options do not fit the data. */
void rundata_open(RunData *d, Config *c, int64_t step_sequences, const Comm *comm);
void rundata_close(RunData *d);

/* Bytes of text that a validation token stands for, by the manifests; 0 when unknown. */
double rundata_val_bytes_per_token(const RunData *d);

void rundata_note(const RunData *d, const Config *c, RunLog *log); /* what the run trains on */
void rundata_add_json(const RunData *d, const Config *c, Text *t); /* an object of the same */

#ifdef __cplusplus
}
#endif
#endif
