/* safetensors.c: see safetensors.h. Writing streams tensor after tensor through one buffer to its
 * place, which the layout says, so that several writers may share a file; reading checks the whole
 * header against the file before anything of it is used, and takes tensors with pread, so that
 * 64-bit offsets hold everywhere and several readers may. May not know what the tensors mean. */
#include "laser/safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "laser/base.h"
#include "laser/json.h"

enum { LENGTH_BYTES = 8, MAX_DIMS = 4, ALIGNMENT = 8 };
#define MAX_HEADER 100000000u       /* the Hugging Face library's limit */
#define MAX_CHUNK ((size_t)1 << 22) /* a write and its checksum: small enough to stay in cache */
#define MAX_PREAD ((size_t)1 << 30) /* Linux moves at most 2 GiB a call */
#define SYNC_BYTES ((uint64_t)1 << 30)
#define MAX_EXACT 9007199254740991.0 /* 2^53 - 1: JSON numbers are doubles */

static const struct {
    const char *name;
    size_t bytes;
} types[] = {[ST_F32] = {"F32", 4}, [ST_BF16] = {"BF16", 2}, [ST_I64] = {"I64", 8}};
enum { TYPES = sizeof types / sizeof types[0] };

size_t st_type_bytes(StType t) {
    REQUIRE((unsigned)t < TYPES, "type %d", (int)t);
    return types[t].bytes;
}

/* ---- writing --------------------------------------------------------------------------------- */

typedef struct Output {
    const char *path;
    int fd;
    uint32_t crc;                 /* of what was written */
    uint64_t at, unsynced, total; /* next byte; written since the last sync; of the file */
} Output;

/* Some file systems find the disk full, or broken, only here. */
static void output_sync(Output *o) {
    if (fdatasync(o->fd) != 0)
        die(EXIT_IO, "%s: what was written to byte %" PRIu64 " cannot be brought to the disk: %s",
            o->path, o->at, strerror(errno));
    o->unsynced = 0;
}

static void output_put(Output *o, const void *data, uint64_t n) {
    const char *p = data;
    while (n > 0) {
        const size_t chunk = n < MAX_CHUNK ? (size_t)n : MAX_CHUNK;
        const ssize_t done = pwrite(o->fd, p, chunk, (off_t)o->at);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0)
            die(EXIT_IO, "%s: cannot be written at byte %" PRIu64 " of %" PRIu64 ": %s", o->path,
                o->at, o->total, strerror(errno));
        o->crc = crc32c(o->crc, p, (size_t)done);
        o->at += (uint64_t)done;
        o->unsynced += (uint64_t)done;
        p += done;
        n -= (uint64_t)done;
        /* not all at the end: with much memory that would be minutes in one call */
        if (o->unsynced >= SYNC_BYTES) output_sync(o);
        made_progress();
    }
}

static void output_close(Output *o) {
    output_sync(o);
    if (close(o->fd) != 0) die(EXIT_IO, "%s: cannot be closed: %s", o->path, strerror(errno));
}

static uint64_t tensor_bytes(const StTensor *t) {
    size_t n = st_type_bytes(t->type);
    REQUIRE(t->ndim >= 0 && t->ndim <= MAX_DIMS, "tensor %s has %d dimensions", t->name, t->ndim);
    for (int d = 0; d < t->ndim; d++) {
        REQUIRE(t->shape[d] >= 0, "tensor %s: negative dimension", t->name);
        n = size_mul(n, (size_t)t->shape[d]);
    }
    return n;
}

static void add_metadata(Text *h, const char *const *metadata) {
    text_add(h, "\"__metadata__\":{");
    for (int i = 0; metadata[i]; i += 2) {
        REQUIRE(metadata[i + 1], "metadata key %s has no value", metadata[i]);
        if (i) text_add(h, ",");
        text_add_json_string(h, metadata[i]);
        text_add(h, ":");
        text_add_json_string(h, metadata[i + 1]);
    }
    text_add(h, "}");
}

static void add_tensor(Text *h, const StTensor *t) {
    text_add_json_string(h, t->name);
    text_add(h, ":{\"dtype\":\"%s\",\"shape\":[", types[t->type].name);
    for (int d = 0; d < t->ndim; d++) text_add(h, "%s%" PRId64, d ? "," : "", t->shape[d]);
    text_add(h, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", t->begin, t->end);
}

static void lay_out(StTensor *tensors, int count) {
    uint64_t at = 0;
    for (int i = 0; i < count; i++) {
        StTensor *t = &tensors[i];
        REQUIRE(memchr(t->name, '\0', sizeof t->name), "tensor %d: name is not terminated", i);
        for (int j = 0; j < i; j++) {
            REQUIRE(strcmp(tensors[j].name, t->name) != 0, "two tensors are named %s", t->name);
        }
        t->begin = at;
        t->end = at = size_add(at, tensor_bytes(t));
    }
}

uint64_t st_bytes(const StTensor *tensors, int count) {
    return count ? tensors[count - 1].end - tensors[0].begin : 0;
}

void st_layout(StLayout *l, StTensor *tensors, int count, const char *const *metadata) {
    lay_out(tensors, count);
    Text h = {0};
    text_add_bytes(&h, (char[LENGTH_BYTES]){0}, LENGTH_BYTES);
    text_add(&h, "{");
    if (metadata) add_metadata(&h, metadata);
    for (int i = 0; i < count; i++) {
        if (i || metadata) text_add(&h, ",");
        add_tensor(&h, &tensors[i]);
    }
    text_add(&h, "}");
    while (h.size % ALIGNMENT) text_add(&h, " ");
    const uint64_t length = h.size - LENGTH_BYTES;
    REQUIRE(length <= MAX_HEADER, "header of %" PRIu64 " bytes, the format allows %u", length,
        MAX_HEADER);
    for (int i = 0; i < LENGTH_BYTES; i++) h.data[i] = (char)(length >> (8 * i));
    *l = (StLayout){.tensors = tensors,
        .count = count,
        .header = h.data,
        .data_offset = h.size,
        .file_bytes = size_add(h.size, st_bytes(tensors, count))};
}

void st_layout_free(StLayout *l) {
    free(l->header);
    *l = (StLayout){0};
}

/* The length comes first: where several machines write, none may take the file's end of a moment
 * for the end of what it writes into. */
static void set_length(const Output *o) {
    if (fallocate(o->fd, 0, 0, (off_t)o->total) == 0) return;
    const bool full = errno == ENOSPC || errno == EDQUOT; /* else: there is no way to ask */
    if (full || ftruncate(o->fd, (off_t)o->total) != 0)
        die(EXIT_IO, "%s: cannot be given its %" PRIu64 " bytes: %s", o->path, o->total,
            strerror(errno));
}

uint32_t st_create(const char *path, const StLayout *l) {
    Output o = {.path = path, .total = l->file_bytes};
    o.fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (o.fd < 0) die(EXIT_IO, "%s: cannot be created: %s", path, strerror(errno));
    set_length(&o);
    output_put(&o, l->header, l->data_offset);
    output_close(&o);
    return o.crc;
}

static int open_created(const char *path) {
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        die(EXIT_IO, "%s: cannot be opened: %s%s", path, strerror(errno),
            errno == ENOENT ? ". All processes of a run must see the same files there" : "");
    return fd;
}

uint32_t st_write_part(
    const char *path, const StLayout *l, int first, int end, StFill *fill, void *user) {
    REQUIRE(0 <= first && first <= end && end <= l->count, "tensors %d to %d of %d", first, end,
        l->count);
    if (first == end) return 0;
    size_t largest = 1;
    for (int i = first; i < end; i++)
        if (st_bytes(&l->tensors[i], 1) > largest) largest = st_bytes(&l->tensors[i], 1);
    Output o = {.path = path,
        .fd = open_created(path),
        .at = l->data_offset + l->tensors[first].begin,
        .total = l->file_bytes};
    void *buffer = xcalloc(largest, 1);
    for (int i = first; i < end; i++) {
        fill(user, i, buffer);
        output_put(&o, buffer, st_bytes(&l->tensors[i], 1));
    }
    free(buffer);
    output_close(&o);
    return o.crc;
}

uint32_t st_write(const char *path, StTensor *tensors, int count, const char *const *metadata,
    StFill *fill, void *user) {
    StLayout l;
    st_layout(&l, tensors, count, metadata);
    const uint32_t header = st_create(path, &l);
    const uint32_t data = st_write_part(path, &l, 0, count, fill, user);
    st_layout_free(&l);
    return crc32c_combine(header, data, st_bytes(tensors, count));
}

/* A tensor is of the part that its middle lies in. */
int st_part_begin(const StTensor *tensors, int count, int part, int parts) {
    REQUIRE(0 <= part && part <= parts, "part %d of %d", part, parts);
    const uint64_t n = st_bytes(tensors, count), p = (uint64_t)part, of = (uint64_t)parts;
    const uint64_t bound = n / of * p + n % of * p / of; /* n p / of, which may not fit */
    int i = part == parts ? count : 0;
    while (i < count && (tensors[i].begin + tensors[i].end) / 2 - tensors[0].begin < bound) i++;
    return i;
}

/* ---- reading --------------------------------------------------------------------------------- */

static void read_at(const StFile *f, void *dst, uint64_t offset, uint64_t n) {
    char *p = dst;
    while (n > 0) {
        size_t chunk = n < MAX_PREAD ? (size_t)n : MAX_PREAD;
        ssize_t done = pread(f->fd, p, chunk, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) {
            die(EXIT_INPUT, "%s: cannot be read at byte %" PRIu64 ": %s", f->path, offset,
                strerror(errno));
        }
        if (done == 0)
            die(EXIT_INPUT, "%s: ends at byte %" PRIu64 " while being read", f->path, offset);
        made_progress();
        p += done;
        offset += (uint64_t)done;
        n -= (uint64_t)done;
    }
}

/* A JSON number that is an integer in [0, 2^53). */
static bool exact_integer(const cJSON *item, uint64_t *value) {
    if (!cJSON_IsNumber(item)) return false;
    double v = item->valuedouble;
    if (!(v >= 0 && v <= MAX_EXACT)) return false;
    *value = (uint64_t)v;
    return (double)*value == v;
}

static void parse_type(const StFile *f, StTensor *t, const cJSON *dtype) {
    if (!cJSON_IsString(dtype))
        die(EXIT_INPUT, "%s: tensor %s: \"dtype\" is not a string", f->path, t->name);
    for (int i = 0; i < TYPES; i++) {
        if (strcmp(dtype->valuestring, types[i].name) == 0) {
            t->type = (StType)i;
            return;
        }
    }
    die(EXIT_INPUT, "%s: tensor %s: dtype %.20s is not known here (F32, BF16 and I64 are)", f->path,
        t->name, dtype->valuestring);
}

/* Returns the bytes that the shape asks for. */
static uint64_t parse_shape(const StFile *f, StTensor *t, const cJSON *shape) {
    if (!cJSON_IsArray(shape))
        die(EXIT_INPUT, "%s: tensor %s: \"shape\" is not a list", f->path, t->name);
    if (cJSON_GetArraySize(shape) > MAX_DIMS) {
        die(EXIT_INPUT, "%s: tensor %s: %d dimensions, at most %d are known here", f->path, t->name,
            cJSON_GetArraySize(shape), MAX_DIMS);
    }
    uint64_t bytes = st_type_bytes(t->type);
    bool overflow = false, empty = false;
    const cJSON *item;
    cJSON_ArrayForEach(item, shape) {
        uint64_t n;
        if (!exact_integer(item, &n)) {
            die(EXIT_INPUT,
                "%s: tensor %s: dimension %d of \"shape\" is not a whole number from 0 to 2^53",
                f->path, t->name, t->ndim);
        }
        t->shape[t->ndim++] = (int64_t)n;
        empty |= n == 0;
        overflow |= __builtin_mul_overflow(bytes, n, &bytes);
    }
    if (empty) return 0;
    if (overflow) die(EXIT_INPUT, "%s: tensor %s: its shape overflows 64 bits", f->path, t->name);
    return bytes;
}

static void parse_offsets(const StFile *f, StTensor *t, const cJSON *offsets) {
    uint64_t data = f->file_bytes - f->data_offset;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !exact_integer(cJSON_GetArrayItem(offsets, 0), &t->begin) ||
        !exact_integer(cJSON_GetArrayItem(offsets, 1), &t->end)) {
        die(EXIT_INPUT, "%s: tensor %s: \"data_offsets\" is not a pair of whole numbers", f->path,
            t->name);
    }
    if (t->begin > t->end) {
        die(EXIT_INPUT, "%s: tensor %s: ends (%" PRIu64 ") before it begins (%" PRIu64 ")", f->path,
            t->name, t->end, t->begin);
    }
    if (t->end > data) {
        die(EXIT_INPUT,
            "%s: tensor %s: ends at byte %" PRIu64 " of the data, of which the file holds %" PRIu64
            " (torn, or not of this header)",
            f->path, t->name, t->end, data);
    }
}

static void parse_tensor(const StFile *f, StTensor *t, const cJSON *entry) {
    size_t length = strlen(entry->string);
    if (length >= sizeof t->name) {
        die(EXIT_INPUT, "%s: tensor %.40s...: its name has %zu bytes, at most %zu are known here",
            f->path, entry->string, length, sizeof t->name - 1);
    }
    memcpy(t->name, entry->string, length + 1);
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    /* Three members, and these three: so none is given twice. */
    if (!cJSON_IsObject(entry) || !dtype || !shape || !offsets || cJSON_GetArraySize(entry) != 3) {
        die(EXIT_INPUT,
            "%s: tensor %s: expected dtype, shape and data_offsets, each once, and nothing else",
            f->path, t->name);
    }
    parse_type(f, t, dtype);
    uint64_t bytes = parse_shape(f, t, shape);
    parse_offsets(f, t, offsets);
    if (t->end - t->begin != bytes) {
        die(EXIT_INPUT,
            "%s: tensor %s: its shape needs %" PRIu64 " bytes, its data_offsets span %" PRIu64,
            f->path, t->name, bytes, t->end - t->begin);
    }
}

static void check_metadata(const StFile *f, const cJSON *metadata, bool seen) {
    if (seen) die(EXIT_INPUT, "%s: header has __metadata__ twice", f->path);
    const cJSON *item;
    bool ok = cJSON_IsObject(metadata);
    cJSON_ArrayForEach(item, metadata) ok &= cJSON_IsString(item) != 0;
    if (!ok) die(EXIT_INPUT, "%s: __metadata__ is not an object of strings", f->path);
}

static int by_place(const void *a, const void *b) {
    const StTensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const StTensor *const *)a)->name, (*(const StTensor *const *)b)->name);
}

static void check_names(const StFile *f) {
    const StTensor **sorted = xcalloc((size_t)f->count + 1, sizeof *sorted);
    for (int i = 0; i < f->count; i++) sorted[i] = &f->tensors[i];
    qsort(sorted, (size_t)f->count, sizeof *sorted, by_name);
    const char *twice = NULL;
    for (int i = 1; i < f->count; i++) {
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0) twice = sorted[i]->name;
    }
    free(sorted);
    if (twice) die(EXIT_INPUT, "%s: two tensors are named %s", f->path, twice);
}

/* The tensors, in the order of their bytes, must cover the data section exactly. */
static void check_cover(StFile *f) {
    uint64_t at = 0, data = f->file_bytes - f->data_offset;
    qsort(f->tensors, (size_t)f->count, sizeof *f->tensors, by_place);
    for (int i = 0; i < f->count; i++) {
        const StTensor *t = &f->tensors[i];
        if (t->begin != at) {
            die(EXIT_INPUT,
                "%s: tensor %s begins at byte %" PRIu64 " of the data, %s byte %" PRIu64
                " where the one before it ends",
                f->path, t->name, t->begin,
                t->begin < at ? "overlapping up to" : "leaving a hole from", at);
        }
        at = t->end;
    }
    if (at != data) {
        die(EXIT_INPUT, "%s: the data section has %" PRIu64 " bytes, the tensors fill %" PRIu64,
            f->path, data, at);
    }
}

static void parse_header(StFile *f, const char *text, size_t size) {
    for (size_t i = 0, n; i < size; i += n) {
        n = utf8_sequence(text + i, size - i);
        if (n == 0 || text[i] == '\0') {
            die(EXIT_INPUT, "%s: header is not UTF-8 text at byte %zu", f->path, LENGTH_BYTES + i);
        }
    }
    const char *end = NULL;
    cJSON *root = text[0] == '{' ? cJSON_ParseWithLengthOpts(text, size + 1, &end, false) : NULL;
    if (root) end += strspn(end, " \t\r\n");
    if (!root || end != text + size) {
        cJSON_Delete(root);
        die(EXIT_INPUT, "%s: header is not one JSON object (at byte %zu)", f->path,
            LENGTH_BYTES + (end ? (size_t)(end - text) : 0));
    }
    f->tensors = xcalloc((size_t)cJSON_GetArraySize(root) + 1, sizeof *f->tensors);
    bool metadata = false;
    const cJSON *item;
    cJSON_ArrayForEach(item, root) {
        if (strcmp(item->string, "__metadata__") == 0) {
            check_metadata(f, item, metadata);
            metadata = true;
        } else {
            parse_tensor(f, &f->tensors[f->count++], item);
        }
    }
    cJSON_Delete(root);
}

void st_open(StFile *f, const char *path) {
    *f = (StFile){.path = xstrdup(path)};
    /* O_NONBLOCK: a pipe of that name is refused below instead of being waited for. */
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat info;
    if (f->fd < 0 || fstat(f->fd, &info) != 0) {
        die(EXIT_INPUT, "%s: cannot be opened: %s", path, strerror(errno));
    }
    if (!S_ISREG(info.st_mode)) die(EXIT_INPUT, "%s: not a regular file", path);
    f->file_bytes = (uint64_t)info.st_size;
    if (f->file_bytes < LENGTH_BYTES) {
        die(EXIT_INPUT, "%s: %" PRIu64 " bytes are too few for a safetensors file", path,
            f->file_bytes);
    }
    unsigned char length[LENGTH_BYTES];
    read_at(f, length, 0, LENGTH_BYTES);
    uint64_t header = 0;
    for (int i = 0; i < LENGTH_BYTES; i++) header |= (uint64_t)length[i] << (8 * i);
    if (header > MAX_HEADER || header > f->file_bytes - LENGTH_BYTES) {
        die(EXIT_INPUT,
            "%s: claims a header of %" PRIu64 " bytes, has %" PRIu64
            " after the length (limit %u): "
            "torn, or not a safetensors file",
            path, header, f->file_bytes - LENGTH_BYTES, MAX_HEADER);
    }
    f->data_offset = LENGTH_BYTES + header;
    char *text = xcalloc((size_t)header + 1, 1);
    read_at(f, text, LENGTH_BYTES, header);
    parse_header(f, text, (size_t)header);
    free(text);
    check_names(f);
    check_cover(f);
}

const StTensor *st_find(const StFile *f, const char *name) {
    for (int i = 0; i < f->count; i++) {
        if (strcmp(f->tensors[i].name, name) == 0) return &f->tensors[i];
    }
    return NULL;
}

void st_read(const StFile *f, const StTensor *t, void *dst) {
    read_at(f, dst, f->data_offset + t->begin, t->end - t->begin);
}

void st_close(StFile *f) {
    close(f->fd);
    free(f->path);
    free(f->tensors);
    *f = (StFile){.fd = -1};
}
