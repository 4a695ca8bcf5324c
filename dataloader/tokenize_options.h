/* tokenize_options.h: the command line of c4_tokenize. */
#ifndef LASER_TOKENIZE_OPTIONS_H
#define LASER_TOKENIZE_OPTIONS_H

#include <cstdint>
#include <string>
#include <vector>

enum { TRAIN = 0, VAL = 1, SPLITS = 2 };
extern const char *const split_names[SPLITS]; /* "train", "val" */

struct Options {
    std::vector<std::string> inputs;
    std::string model, out;
    int64_t shard_tokens = 100000000;
    int split = -1; /* all documents go there: TRAIN or VAL; -1: as the next two say */
    int64_t val_docs = 0;
    double val_fraction = 0;
    bool separator = true;
    int64_t train_vocab = 0;
    int64_t train_bytes = 100000000;
    int64_t max_bad = 100;
    int threads = 0; /* set to the cores available when not given */
    bool vocab_only = false, force = false, quiet = false;
};

/* Dies (EXIT_USAGE) on what is unknown, malformed or contradicts itself. */
Options options_parse(int argc, char **argv);

/* The split of document number (from 0, over all inputs). */
int options_split(const Options &o, int64_t document);

std::string options_directory(const Options &o); /* of --out, with a slash at its end */
std::string base_name(const std::string &path);

#endif
