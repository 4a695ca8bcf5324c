/* shard.h: token shards on disk. Layout in FORMAT.md: valid llm.c shards (256 int32 of header, then
 * uint16 or uint32 tokens), plus extension words that llm.c ignores. Knows nothing of models or
 * batches. */
#ifndef LASER_SHARD_H
#define LASER_SHARD_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SHARD_HEADER_WORDS = 256, SHARD_HEADER_BYTES = 1024 };
enum { SHARD_MAGIC_U16 = 20240520, SHARD_VERSION_U16 = 1 };
enum { SHARD_MAGIC_U32 = 20240801, SHARD_VERSION_U32 = 7 };

typedef struct ShardInfo {
    int64_t tokens;
    int token_bytes;         /* 2 or 4 */
    bool extended;           /* the fields below are present */
    int32_t vocab;           /* ids are in [0, vocab); 0 when not extended */
    int32_t eos;             /* end-of-document id, -1 for none */
    int64_t documents;       /* -1 when unknown */
    int32_t separator;       /* 1: every document ends with eos; 0: no separator */
    uint64_t tokenizer_hash; /* first 8 bytes of the hash of the tokenizer file; 0 when unknown */
    uint32_t payload_crc;    /* CRC32C of the token bytes */
} ShardInfo;

/* One mapped shard. tokens_u16 or tokens_u32 is set, the other is NULL. */
typedef struct Shard {
    char *path;
    ShardInfo info;
    const uint16_t *tokens_u16;
    const uint32_t *tokens_u32;
    void *map;
    uint64_t map_bytes;
} Shard;

/* Maps the file and checks header and size; dies (EXIT_INPUT) naming file and byte offset. Does not
 * touch the payload. */
void shard_open(Shard *s, const char *path);
void shard_close(Shard *s);

/* Reads the whole payload: checksum where the header has one, every id below the header's
 * vocabulary and, when > 0, below vocab. Dies naming file and offset of the first fault. */
void shard_verify(const Shard *s, int32_t vocab);

/* Writer: tokens are collected into PATH.tmp, which shard_writer_close completes (header, checksum,
 * fsync) and renames; a crash leaves no file under the final name. */
typedef struct ShardWriter ShardWriter;
ShardWriter *shard_writer_open(
    const char *path, const ShardInfo *info /* vocab, eos, separator, hash */);
void shard_writer_put(ShardWriter *w, const int32_t *tokens /* (n) */, int64_t n);
void shard_writer_end_document(ShardWriter *w); /* counts one document */
int64_t shard_writer_tokens(const ShardWriter *w);
void shard_writer_close(ShardWriter *w);

#ifdef __cplusplus
}
#endif
#endif
