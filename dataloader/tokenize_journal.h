/* tokenize_journal.h: what a run of c4_tokenize has done, as JSON: PREFIX.json, the manifest of a
 * finished run, and PREFIX.progress.json, from which an interrupted one continues (FORMAT.md). */
#ifndef LASER_TOKENIZE_JOURNAL_H
#define LASER_TOKENIZE_JOURNAL_H

#include <cstdint>
#include <string>
#include <vector>

#include "dataloader/tokenize_options.h"
#include "dataloader/tokenizer.h"

struct InputState {
    std::string name;   /* without directory */
    int64_t size = 0;   /* of the file, bytes */
    std::string sha256; /* of the file; empty: not read to its end yet */
    int64_t documents = 0, empty = 0, bad_lines = 0;
    bool damaged = false; /* a fault in it ended the run: it may be replaced */
};

/* Where whole shards end: before this document (a number over all inputs and both splits), or after
 * so many of its tokens. */
struct Position {
    enum : int64_t { NO_MORE = -1 }; /* as document: none will come */
    int64_t document = 0, token = 0;
};

struct ShardState {
    int64_t tokens = 0;
    int64_t documents = 0, bytes = 0; /* that end in it; bytes of text of these */
    uint32_t crc = 0;                 /* CRC32C of the payload */
    Position end;
};

/* All of it is about the shards listed: of a document that has only begun the tokens are counted,
 * and nothing else. */
struct SplitState {
    std::vector<ShardState> shards;
    int64_t documents = 0, tokens = 0, bytes = 0;
    std::vector<int64_t> counts; /* (vocab) how often each id occurs */
    Position next;               /* document to write */
};

/* What the documents of a file that was being read were, to tell whether it is still the same. */
struct PartState {
    size_t file = 0;
    int64_t documents = 0;
    uint32_t check = 0; /* over the CRC32C of each of these documents */
};

struct RunState {
    std::vector<InputState> inputs;
    SplitState splits[SPLITS];
    PartState part;
    int64_t train_vocab = 0, train_bytes = 0; /* as asked for; 0: the tokenizer was given */
    std::string tokenizer_sha256;
};

/* The state of a run that has done nothing. Dies (EXIT_INPUT) where an input is no file. */
RunState run_begin(const Options &o);

double unigram_entropy(const SplitState &split); /* nats a token */
std::string manifest_path(const Options &o);
std::string progress_path(const Options &o);
std::string shard_path(const Options &o, int split, size_t number);

void manifest_write(const Options &o, const Tokenizer &t, const RunState &run);
void progress_write(const Options &o, const Tokenizer &t, const RunState &run);

/* What an earlier run with this --out has left; dies (EXIT_USAGE) naming what differs where it was
 * another run, and (EXIT_INPUT) where what it left is damaged. */
enum Earlier { EARLIER_NONE, EARLIER_UNFINISHED, EARLIER_FINISHED };
Earlier run_read(const Options &o, RunState *run /* in: as run_begin; out: as it was left */);

#endif
