/* tokenize_output.h: documents, in order, into the shards of both splits; the journal each time a
 * shard is whole. What it is given decides every byte that it writes; it may not know of threads.
 */
#ifndef LASER_TOKENIZE_OUTPUT_H
#define LASER_TOKENIZE_OUTPUT_H

#include "dataloader/shard.h"
#include "dataloader/tokenize_journal.h"

struct Output {
    const Options *options;
    const Tokenizer *tokenizer;
    RunState whole;                  /* as of the last whole shard of each split: the journal */
    std::vector<InputState> earlier; /* inputs that the interrupted run had read to their end */
    PartState earlier_part;
    SplitState live[SPLITS]; /* with what the open shards hold */
    struct Open {
        ShardWriter *writer = nullptr;
        int64_t documents = 0, bytes = 0; /* that end in it, and of their text */
    } open[SPLITS];
    size_t first_input = 0;     /* that has to be read */
    int64_t first_document = 0; /* number of the first one in the input that is being read */
};

/* Continues run, as run_begin or run_read gave it, and writes the journal. */
void output_begin(Output *out, const Options *o, const Tokenizer *t, const RunState &run);

/* Whether whole shards hold all of this document: it need not be encoded again. */
bool run_has(const RunState &run, int split, int64_t document);

struct EncodedDocument {
    size_t input; /* file it is from */
    int split;
    int64_t number;     /* over all inputs, from 0 */
    int64_t bytes;      /* of text */
    uint32_t crc;       /* CRC32C of the text */
    const int32_t *ids; /* (n); NULL if run_has it */
    int64_t n;
};
void output_document(Output *out, const EncodedDocument &d);

/* An input was read to its end: in holds what it was found to be. */
void output_input_end(Output *out, size_t input, const InputState &in);

/* The run ends for a fault in this input, which may be mended or replaced: what shards hold of it
 * may be wrong (gzip's checksum comes last), so these are taken back. */
void output_damaged(Output *out, size_t input);

/* Closes the last shards, writes the manifest, removes the journal. */
void output_end(Output *out);

#endif
