/* validate.h: the loss on the same validation tokens every time, whatever the processes and the
 * micro-batches. */
#ifndef LASER_VALIDATE_H
#define LASER_VALIDATE_H

#include "laser/model.h"
#include "laser/rundata.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Validation {
    Model *model;
    const RunData *data;
    const Comm *comm;
    int64_t sequences;         /* the first of the validation shards, in the order of the files */
    double *losses;            /* (sequences) sums over the targets of each */
    double *sums;              /* (kept) the same on the way, in backend memory */
    int kept;                  /* a multiple of the model's B */
    int32_t *inputs, *targets; /* (B, T) */
} Validation;

typedef struct ValResult {
    int64_t tokens;       /* targets */
    double loss;          /* their mean, nats */
    double bits_per_byte; /* of their text; negative: unknown */
} ValResult;

/* tokens: rounded down to whole sequences, at least one; 0, or more than there are: all. */
void validate_open(Validation *v, Model *m, const RunData *data, const Comm *comm, int64_t tokens);
void validate_close(Validation *v);

/* Each process computes its share; all get the result. The sum of a sequence does not depend on the
 * others, and the sums are added up in the order of the sequences: where the loss of a token does
 * not depend on the other sequences of its batch (cpu, with our own matrix product), the result is
 * the same in every bit for any B and any number of processes. */
ValResult validate_run(Validation *v);

#ifdef __cplusplus
}
#endif
#endif
