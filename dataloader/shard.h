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

/* A shard of which header and size were checked. The descriptor is opened where it is needed and
 * may be given back at any time; a file that is another one when it is opened again is noticed. */
typedef struct Shard {
    char *path;
    ShardInfo info;
    uint64_t bytes; /* of the file */
    /* as it was when it was opened first, to know it by */
    int64_t modified; /* ns since 1970 */
    uint32_t header_crc;
    int fd; /* -1: given back */
    struct ShardPiece *piece;
} Shard;

/* What is wrong with a file that was whole when it was opened; for a thread that may not end the
 * program itself. */
enum { SHARD_FAULT_BYTES = 5120 };
typedef struct ShardFault {
    int code; /* exit code; 0: nothing is wrong */
    char what[SHARD_FAULT_BYTES];
} ShardFault;

/* Opens the file and checks header and size; dies (EXIT_INPUT) naming file and byte offset. Does
 * not touch the payload. */
void shard_open(Shard *s, const char *path);
void shard_release(Shard *s); /* gives the descriptor back; everything below opens it again */
void shard_close(Shard *s);

/* Copies n tokens from token `first` on as they lie in the file, token_bytes each. False, with the
 * fault, where the file vanished, was cut or is another one than it was; nothing is mapped, so that
 * no access can fail in another way. For one thread at a time. */
bool shard_read(Shard *s, int64_t first, int64_t n, void *tokens, ShardFault *fault);
void shard_read_header(Shard *s, int32_t *header /* (SHARD_HEADER_WORDS) */);

/* One token, out of a piece that is kept: for passes in order. Dies where the file is not as it
 * was. */
int64_t shard_token(Shard *s, int64_t i);

/* Reads the whole payload: checksum where the header has one, every id below the header's
 * vocabulary and, when > 0, below vocab. Dies naming file and offset of the first fault. */
void shard_verify(Shard *s, int32_t vocab);

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
