/* vocab.h: token id -> bytes, enough to print what a model writes without a tokenizer library. The
 * file is llm.c's tokenizer format (magic 20240328, version 2; FORMAT.md), exported beside the
 * shards as tokenizer.bin. */
#ifndef LASER_VOCAB_H
#define LASER_VOCAB_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Vocab {
    int32_t size;
    int32_t eos;     /* -1 when the file names none */
    char *bytes;     /* all pieces back to back */
    int64_t *offset; /* (size + 1): piece i is bytes[offset[i]] .. bytes[offset[i+1]] */
} Vocab;

void vocab_open(Vocab *v, const char *path); /* dies (EXIT_INPUT) naming file and offset */
void vocab_close(Vocab *v);

#ifdef __cplusplus
}
#endif
#endif
