/* vocab.c: reads tokenizer.bin (llm.c's format, FORMAT.md) so that ids can be printed as text.
 * Knows no tokenizer library and cannot turn text into ids. */
#include "dataloader/vocab.h"

#include "laser/base.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB_MAGIC = 20240328, HEADER_BYTES = 1024 };
enum { GPT2_VOCAB = 50257, GPT2_EOS = 50256 };

#define REMAKE "The file is damaged or not a vocabulary: write it again with c4_tokenize."

/* Checks the header against the file's size; returns the number of pieces. */
static int32_t parse_header(Vocab *v, const unsigned char *file, size_t size, const char *path) {
    uint32_t word[4];
    if (size < HEADER_BYTES)
        die(EXIT_INPUT, "%s: byte %zu: the file ends within the header of %d bytes. " REMAKE, path,
            size, HEADER_BYTES);
    memcpy(word, file, sizeof word);
    if (word[0] != VOCAB_MAGIC)
        die(EXIT_INPUT, "%s: byte 0: first word is %" PRIu32 "; expected %d. %s", path, word[0],
            VOCAB_MAGIC,
            word[0] == __builtin_bswap32(VOCAB_MAGIC)
                ? "The file is byte-swapped: it was written on a big-endian machine."
                : REMAKE);
    if (word[1] != 1 && word[1] != 2)
        die(EXIT_INPUT, "%s: byte 4: version is %" PRIu32 "; expected 1 or 2. " REMAKE, path,
            word[1]);
    /* every piece takes at least its length byte */
    if (word[2] < 1 || word[2] > INT32_MAX || word[2] > size - HEADER_BYTES)
        die(EXIT_INPUT,
            "%s: byte 8: number of pieces is %" PRIu32
            "; expected 1 to %zu in a file of %zu bytes. " REMAKE,
            path, word[2], size - HEADER_BYTES, size);
    v->size = (int32_t)word[2];
    v->eos = v->size == GPT2_VOCAB ? GPT2_EOS : -1; /* version 1 names none: only GPT-2 used it */
    if (word[1] == 1) return v->size;
    v->eos = (int32_t)word[3];
    if (v->eos < -1 || v->eos >= v->size)
        die(EXIT_INPUT, "%s: byte 12: end-of-document id is %d; expected -1 (none) to %d. " REMAKE,
            path, v->eos, v->size - 1);
    return v->size;
}

void vocab_open(Vocab *v, const char *path) {
    size_t size;
    *v = (Vocab){.bytes = file_read_all(path, &size)};
    const int32_t pieces = parse_header(v, (const unsigned char *)v->bytes, size, path);
    v->offset = xcalloc((size_t)pieces + 1, sizeof *v->offset);
    size_t at = HEADER_BYTES, used = 0; /* pieces move to the front: used stays behind at */
    for (int32_t i = 0; i < pieces; i++) {
        const size_t length = at < size ? (unsigned char)v->bytes[at] : 0;
        if (at >= size || length > size - at - 1)
            die(EXIT_INPUT, "%s: byte %zu: the file ends within piece %d of %d. " REMAKE, path, at,
                i, pieces);
        memmove(v->bytes + used, v->bytes + at + 1, length);
        used += length;
        at += 1 + length;
        v->offset[i + 1] = (int64_t)used;
    }
    if (at != size)
        die(EXIT_INPUT, "%s: byte %zu: %zu bytes follow the last of %d pieces. " REMAKE, path, at,
            size - at, pieces);
}

void vocab_close(Vocab *v) {
    free(v->bytes);
    free(v->offset);
    *v = (Vocab){0};
}
