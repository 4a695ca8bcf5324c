/* json.c: see json.h. May not know who writes what: no keys, no file names. */
#include "laser/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static void text_reserve(Text *t, size_t extra) {
    size_t need = size_add(size_add(t->size, extra), 1);
    if (need <= t->capacity) return;
    size_t capacity = size_mul(need, 2);
    char *data = xcalloc(capacity, 1);
    if (t->data) memcpy(data, t->data, t->size);
    free(t->data);
    t->data = data;
    t->capacity = capacity;
}

void text_add_bytes(Text *t, const void *bytes, size_t n) {
    text_reserve(t, n);
    memcpy(t->data + t->size, bytes, n);
    t->size += n;
    t->data[t->size] = '\0';
}

void text_add(Text *t, const char *fmt, ...) {
    char *added = NULL;
    va_list args;
    va_start(args, fmt);
    int n = vasprintf(&added, fmt, args);
    va_end(args);
    if (n < 0) die(EXIT_IO, "out of memory");
    text_add_bytes(t, added, (size_t)n);
    free(added);
}

size_t utf8_sequence(const char *s, size_t n) {
    const unsigned char *b = (const unsigned char *)s;
    if (n == 0) return 0;
    if (b[0] < 0x80) return 1;
    size_t length = b[0] < 0xc2 ? 0 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : b[0] < 0xf5 ? 4 : 0;
    if (length == 0 || length > n) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((b[i] & 0xc0) != 0x80) return 0;
    }
    /* The second byte decides the rest: overlong forms, surrogates, and what lies above U+10FFFF.
     */
    if (b[0] == 0xe0 && b[1] < 0xa0) return 0;
    if (b[0] == 0xed && b[1] > 0x9f) return 0;
    if (b[0] == 0xf0 && b[1] < 0x90) return 0;
    if (b[0] == 0xf4 && b[1] > 0x8f) return 0;
    return length;
}

static void add_escaped(Text *t, unsigned char c) {
    static const char plain[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const char *at = strchr(plain, c); /* c is never 0: the string ended there */
    if (at)
        text_add(t, "\\%c", letters[at - plain]);
    else
        text_add(t, "\\u%04x", c);
}

void text_add_json_string(Text *t, const char *s) {
    size_t n = strlen(s);
    text_add_bytes(t, "\"", 1);
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        size_t length = utf8_sequence(s + i, n - i);
        if (length == 0) {
            text_add_bytes(t, "\xef\xbf\xbd", 3);
        } else if (c < 0x20 || c == '"' || c == '\\' || c == 0x7f) {
            add_escaped(t, c);
        } else {
            text_add_bytes(t, s + i, length);
        }
        i += length ? length : 1;
    }
    text_add_bytes(t, "\"", 1);
}

void text_add_json_number(Text *t, double value, int digits) {
    if (isfinite(value))
        text_add(t, "%.*g", digits, value);
    else
        text_add(t, "null");
}

void text_clear(Text *t) {
    t->size = 0;
    if (t->data) t->data[0] = '\0';
}

void text_free(Text *t) {
    free(t->data);
    *t = (Text){0};
}
