/* manifest.h: one PREFIX.json, which says what a set of shards holds and what it was made from
 * (layout: FORMAT.md). Written last: where it is, the shards that it names are complete. Reads and
 * checks it against itself; opens no shard. What those beside a loader's shards say together:
 * manifest_totals.h. */
#ifndef LASER_MANIFEST_H
#define LASER_MANIFEST_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MANIFEST_TRAIN, MANIFEST_VAL, MANIFEST_SPLITS };
enum { MANIFEST_NAME = 256 }; /* bytes that a name in one takes at most, with its end */

typedef struct ManifestShard {
    char *file; /* in the directory of the manifest */
    int64_t tokens, documents;
    uint32_t crc; /* CRC32C of the token bytes */
} ManifestShard;

typedef struct ManifestSplit {
    const char *name; /* "train", "val" */
    int64_t documents, tokens;
    int64_t bytes;  /* of text */
    double entropy; /* of single tokens, in nats */
    int count;
    ManifestShard *shards; /* (count) */
} ManifestSplit;

typedef struct ManifestInput {
    char *name; /* without directory */
    int64_t bytes;
    char sha256[65]; /* of the file's bytes, in hexadecimal */
    int64_t documents, empty, bad_lines;
} ManifestInput;

typedef struct ManifestTokenizer {
    char *file;      /* in the directory of the manifest */
    uint64_t hash;   /* FNV-1a of its bytes, as in the header of each shard */
    char sha256[65]; /* of its bytes, in hexadecimal */
    int32_t vocab, eos;
} ManifestTokenizer;

typedef struct Manifest {
    char *path;
    ManifestTokenizer tokenizer;
    bool separator;   /* every document ends with eos */
    int only_split;   /* MANIFEST_TRAIN, MANIFEST_VAL: all documents are there; -1: by the next */
    int64_t val_docs; /* the first documents are for validation */
    double val_fraction; /* this share of them is */
    int64_t shard_tokens;
    int input_count;
    ManifestInput *inputs; /* (input_count) */
    ManifestSplit splits[MANIFEST_SPLITS];
} Manifest;

/* Whether a file begins as a manifest does; something else may be called *.json. Reads no more than
 * the beginning; false also for what is no file, or cannot be read. */
bool manifest_is(const char *path);
/* Dies (EXIT_INPUT) naming file and field where the file is torn, or a field is missing, malformed
 * or not the sum that it should be. beside: the shard for whose sake it is read, named in messages;
 * NULL: none. */
void manifest_open(Manifest *m, const char *path, const char *beside);
/* That the shards are called, filled and shared out among the splits as the options make them. Who
 * only trains on them needs none of that. Dies as manifest_open does. */
void manifest_check_layout(const Manifest *m);
void manifest_close(Manifest *m);
/* Path of a file in the directory of the manifest. */
void manifest_beside(
    const Manifest *m, const char *file, char *path /* (capacity) */, int capacity);
/* Hash of a tokenizer's bytes, as manifests and shards have it: FNV-1a, 64 bits. */
uint64_t manifest_hash(const void *data, int64_t size);

#ifdef __cplusplus
}
#endif
#endif
