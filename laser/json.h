/* json.h: a growing text and the few pieces of JSON that are written by hand: strings from
 * arbitrary bytes, numbers that may not be finite. Reading is cJSON's. Knows nothing of what the
 * text is for. */
#ifndef LASER_JSON_H
#define LASER_JSON_H

#include <stddef.h>

#include "laser/base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Text {
    char *data; /* NUL-terminated once anything was added */
    size_t size, capacity;
} Text; /* starts as all zeros */

void text_add(Text *t, const char *fmt, ...) PRINTF_LIKE(2, 3);
void text_add_bytes(Text *t, const void *bytes, size_t n);
/* A quoted JSON string. Quotes, backslashes and control characters are escaped; bytes that are not
 * UTF-8 become U+FFFD, one for each byte. */
void text_add_json_string(Text *t, const char *s);
/* %.*g, or null: JSON has neither NaN nor infinity */
void text_add_json_number(Text *t, double value, int digits);
void text_clear(Text *t); /* empty, memory kept */
void text_free(Text *t);

/* Bytes of the UTF-8 sequence at s (1..4, at most n); 0 when it is not valid (overlong and
 * surrogates included). */
size_t utf8_sequence(const char *s, size_t n);

#ifdef __cplusplus
}
#endif
#endif
