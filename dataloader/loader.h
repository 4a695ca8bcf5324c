/* loader.h: shards -> batches. Batch i is a pure function of (seed, i): neither the number of
 * processes nor the micro-batch size changes what step i trains on. Knows shards; knows nothing of
 * models. */
#ifndef LASER_LOADER_H
#define LASER_LOADER_H

#include <stdbool.h>
#include <stdint.h>

#include "dataloader/shard.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct LoaderOptions {
    const char *pattern;    /* glob of shards, sorted by name */
    int seq_len;            /* T: a window is T inputs and the T next tokens as targets */
    int batch;              /* B: sequences per micro-step of this process */
    int64_t step_sequences; /* sequences per step over all processes and micro-steps */
    int rank, world;        /* this process takes the rank-th of world equal parts of each step */
    uint64_t seed;
    bool shuffle;         /* false: windows in file order (validation) */
    bool prefetch;        /* a thread prepares the next micro-batch */
    int64_t verify_bytes; /* up to so many bytes of shards are all read once when they are opened:
                             checksums where recorded, ids in range; 0: none are */
    int32_t vocab;        /* the model's; every id that is served is checked against it */
} LoaderOptions;

typedef struct LoaderInfo {
    int shards;
    int extended;    /* of them, those that record their tokenizer */
    bool verified;   /* all of them were read */
    int64_t bytes;   /* of the files */
    int64_t tokens;  /* in all shards */
    int64_t windows; /* of T + 1 tokens, overlapping by one, none across a shard's end: an epoch */
    int32_t vocab;   /* as recorded in the shards, 0 when they say nothing */
    int32_t eos;     /* -1 when none or unknown */
    uint64_t tokenizer_hash; /* 0 when unknown */
    uint64_t
        fingerprint; /* of names without directory, sizes, headers: same data set, same number */
} LoaderInfo;

typedef struct Loader Loader;

/* Looks at every shard (header and size; the payload as verify_bytes says) and keeps none open: a
 * few descriptors are held later, however many shards there are. Dies
 * with EXIT_INPUT on an empty glob, an unreadable, torn or foreign file, shards of different
 * tokenizers, a recorded vocabulary larger than options->vocab, or fewer windows than one step
 * needs. */
Loader *loader_open(const LoaderOptions *options);
const LoaderInfo *loader_info(const Loader *l);
const char *loader_shard(const Loader *l, int shard, ShardInfo *info /* out */); /* its path */
void loader_close(Loader *l);

/* Continue with step `step` (0-based), first micro-step. */
void loader_seek(Loader *l, int64_t step);

/* The next micro-batch: copies B*T inputs and targets. Sequence k of step s is global sequence
 * g = s * step_sequences + k; epoch g / windows; window = permutation_epoch(g % windows). Within a
 * step process r takes k in [r*S/world, (r+1)*S/world) in order, B at a time. Dies (EXIT_INPUT)
 * naming the file and what happened when a token is not below vocab, and when a shard vanished, was
 * cut or became another file since loader_open. */
void loader_next(Loader *l, int32_t *inputs /* (B, T) */, int32_t *targets /* (B, T) */);

/* The window that sequence g reads, for tests and tools: shard number and first token. */
void loader_locate(const Loader *l, int64_t g, int *shard, int64_t *token);

#ifdef __cplusplus
}
#endif
#endif
