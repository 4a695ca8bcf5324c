/* tokenize_pipeline.h: one thread reads, several cut and encode, and the caller's gets what they
 * made in the order of the input, whatever their number. Memory: text of at most
 * (threads + 1) x 4 blocks of BLOCK_BYTES, or one larger record, is under way, in three forms (as
 * read, as documents, as ids); besides that each thread has what the library needs for one
 * document. */
#ifndef LASER_TOKENIZE_PIPELINE_H
#define LASER_TOKENIZE_PIPELINE_H

#include <functional>

#include "dataloader/documents.h"
#include "dataloader/tokenizer.h"

/* One block and what became of it. */
struct Batch {
    Block block;                /* without its data */
    Documents documents;        /* without their text */
    int64_t first_document;     /* number of the first, over all inputs */
    std::vector<uint32_t> crcs; /* (documents) CRC32C of the text of each */
    std::vector<int32_t> ids;
    std::vector<size_t> id_ends; /* (documents) of each in ids */
    std::vector<bool> encoded;   /* (documents) false: it was not wanted */
    int64_t altered = 0; /* documents whose ids do not stand for just their text, if exact */
    std::string fault;   /* not empty: a document could not be encoded */
};

struct Pipeline {
    const std::vector<std::string> *paths;
    size_t first_input;
    int64_t first_document; /* number of the first one there */
    int threads;
    const Tokenizer *tokenizer;
    int32_t separator; /* appended to each document; -1: none */
    /* Whether a document is to be encoded. Called by several threads. */
    std::function<bool(int64_t document)> wanted;
    /* Gets each batch, in order, on the calling thread; false ends the work. */
    std::function<bool(const Batch &batch)> consume;
};

void pipeline_run(const Pipeline &p);

#endif
