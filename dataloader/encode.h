/* encode.h: text -> token ids by a sentencepiece unigram model, enough for a prompt without the
 * library: the same ids as the library gives (test_encode.c). Text for training is encoded by the
 * library itself (c4_tokenize.cc). Knows no model and no shards. */
#ifndef LASER_ENCODE_H
#define LASER_ENCODE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Encoder Encoder;

/* Reads tokenizer.model. Dies (EXIT_INPUT) naming the file where it is torn, is not unigram, or
 * normalises text: vocabularies of c4_tokenize --train-vocab do not. */
Encoder *encoder_open(const char *path);
void encoder_close(Encoder *e);
int32_t encoder_size(const Encoder *e); /* pieces */

/* The most probable cut of text into pieces (Kudo, arXiv 1804.10959); what no piece covers becomes
 * byte pieces, any bytes at all. Writes the ids, malloced, to *ids and returns how many. */
int encoder_encode(const Encoder *e, const char *text, size_t size, int32_t **ids);

#ifdef __cplusplus
}
#endif
#endif
