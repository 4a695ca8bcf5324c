/* tokenizer.h: a sentencepiece model: trained by the house recipe or read from a file, and text ->
 * ids with it. The only header that needs libsentencepiece. Knows neither inputs nor shards. */
#ifndef LASER_TOKENIZER_H
#define LASER_TOKENIZER_H

#include <sentencepiece_processor.h>

#include <cstdint>
#include <string>
#include <vector>

struct Tokenizer {
    std::string model;  /* the bytes of the .model file */
    std::string sha256; /* of these */
    uint64_t hash = 0;  /* FNV-1a of these */
    sentencepiece::SentencePieceProcessor sp;
    int32_t vocab = 0, eos = -1;
    std::vector<std::string> pieces; /* (vocab) the bytes that each id stands for */
    /* Any text comes back byte for byte: the model normalises nothing, adds nothing, and has a
     * piece for every byte. */
    bool exact = false;
    int32_t byte_ids[256]; /* exact: the piece of each byte */
};

/* Dies (EXIT_INPUT) when model is not one; name is for the message. */
void tokenizer_load(Tokenizer *t, const std::string &model, const char *name);

/* Appends the ids of one document, which goes through the library whole but for the bytes that it
 * would change (only if exact: they are written as byte pieces). Returns an empty string or what
 * is wrong; if exact, *same tells whether the ids stand for just this text. Several threads may
 * encode with one tokenizer. */
std::string tokenizer_encode(const Tokenizer &t, const char *text, size_t size,
    std::vector<int32_t> *ids, bool *same /* out */);

/* The bytes of tokenizer.bin (FORMAT.md). Dies (EXIT_INPUT) when a piece does not fit into it. */
std::string tokenizer_export(const Tokenizer &t);

/* Text to train a vocabulary on, in the pieces of a few KB that the library wants. */
void sentences_add(const std::string &text, std::vector<std::string> *sentences);
/* A model of at most vocab pieces; the same sentences give the same bytes. Dies (EXIT_INPUT) when
 * the library cannot. Sentences are used up. */
std::string tokenizer_train(int64_t vocab, std::vector<std::string> *sentences);

#endif
