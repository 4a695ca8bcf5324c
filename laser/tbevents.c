/* tbevents.c: see tbevents.h. Field numbers are those of TensorFlow's event.proto and
 * summary.proto. May not know which scalars there are. */
#include "laser/tbevents.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "laser/base.h"
#include "laser/json.h"

#define FLUSH_SECONDS 2.0

struct TbWriter {
    char *path;
    FILE *file;
    Text event; /* reused */
    Text part;
    double last_flush;
};

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };
enum {
    EVENT_WALL_TIME = 1,
    EVENT_STEP = 2,
    EVENT_FILE_VERSION = 3,
    EVENT_SUMMARY = 5,
    EVENT_SESSION_LOG = 7
};
enum { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_SIMPLE = 2 };
enum { SESSION_STATUS = 1, SESSION_START = 1 };

static void put_little_endian(Text *t, uint64_t value, int bytes) {
    unsigned char b[8];
    for (int i = 0; i < bytes; i++) b[i] = (unsigned char)(value >> (8 * i));
    text_add_bytes(t, b, (size_t)bytes);
}

static void put_varint(Text *t, uint64_t value) {
    while (value >= 0x80) {
        put_little_endian(t, (value & 0x7f) | 0x80, 1);
        value >>= 7;
    }
    put_little_endian(t, value, 1);
}

static void put_key(Text *t, int field, int wire) {
    put_varint(t, (uint64_t)(field << 3 | wire));
}

static void put_double(Text *t, int field, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(t, field, WIRE_FIXED64);
    put_little_endian(t, bits, 8);
}

static void put_float(Text *t, int field, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(t, field, WIRE_FIXED32);
    put_little_endian(t, bits, 4);
}

static void put_bytes(Text *t, int field, const void *data, size_t n) {
    put_key(t, field, WIRE_BYTES);
    put_varint(t, n);
    text_add_bytes(t, data, n);
}

/* A checksum stored beside its data is masked, so that the checksum of a record which holds one
 * stays useful. */
static uint32_t masked_crc(const void *data, size_t n) {
    uint32_t crc = crc32c(0, data, n);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

static void begin_event(TbWriter *w, int64_t step) {
    text_clear(&w->event);
    put_double(&w->event, EVENT_WALL_TIME, wall_seconds());
    if (step) {
        put_key(&w->event, EVENT_STEP, WIRE_VARINT);
        put_varint(&w->event, (uint64_t)step);
    }
}

static void end_event(TbWriter *w) {
    Text *record = &w->part;
    text_clear(record);
    put_little_endian(record, w->event.size, 8);
    put_little_endian(record, masked_crc(record->data, 8), 4);
    text_add_bytes(record, w->event.data, w->event.size);
    put_little_endian(record, masked_crc(w->event.data, w->event.size), 4);
    if (fwrite(record->data, 1, record->size, w->file) != record->size) {
        die(EXIT_IO, "%s: write failed: %s", w->path, strerror(errno));
    }
    if (now_seconds() - w->last_flush > FLUSH_SECONDS) tb_flush(w);
}

/* TensorBoard reads the files of a directory in the order of their names, so the name starts with
 * the time. */
static void create_file(TbWriter *w, const char *dir) {
    double now = wall_seconds();
    for (int64_t micro = (int64_t)(now * 1e6);; micro++) {
        char path[4096];
        format(path, sizeof path, "%s/events.out.tfevents.%010lld.%06lld", dir,
            (long long)(micro / 1000000), (long long)(micro % 1000000));
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno == EEXIST) continue;
        w->path = xstrdup(path);
        w->file = fd < 0 ? NULL : fdopen(fd, "wb");
        if (!w->file) die(EXIT_IO, "%s: cannot be created: %s", path, strerror(errno));
        return;
    }
}

TbWriter *tb_open(const char *dir, int64_t first_step) {
    TbWriter *w = xcalloc(1, sizeof *w);
    create_file(w, dir);
    static const char version[] = "brain.Event:2";
    begin_event(w, 0);
    put_bytes(&w->event, EVENT_FILE_VERSION, version, sizeof version - 1);
    end_event(w);
    if (first_step > 0) {
        begin_event(w, first_step);
        text_clear(&w->part);
        put_key(&w->part, SESSION_STATUS, WIRE_VARINT);
        put_varint(&w->part, SESSION_START);
        put_bytes(&w->event, EVENT_SESSION_LOG, w->part.data, w->part.size);
        end_event(w);
    }
    tb_flush(w);
    return w;
}

void tb_write(TbWriter *w, int64_t step, const TbScalar *scalars, int count) {
    Text summary = {0};
    for (int i = 0; i < count; i++) {
        text_clear(&w->part);
        put_bytes(&w->part, VALUE_TAG, scalars[i].tag, strlen(scalars[i].tag));
        put_float(&w->part, VALUE_SIMPLE, (float)scalars[i].value);
        put_bytes(&summary, SUMMARY_VALUE, w->part.data, w->part.size);
    }
    begin_event(w, step);
    put_bytes(&w->event, EVENT_SUMMARY, summary.data, summary.size);
    end_event(w);
    text_free(&summary);
}

void tb_flush(TbWriter *w) {
    if (fflush(w->file) != 0) die(EXIT_IO, "%s: write failed: %s", w->path, strerror(errno));
    w->last_flush = now_seconds();
}

void tb_close(TbWriter *w) {
    tb_flush(w);
    if (fclose(w->file) != 0) die(EXIT_IO, "%s: write failed: %s", w->path, strerror(errno));
    text_free(&w->event);
    text_free(&w->part);
    free(w->path);
    free(w);
}
