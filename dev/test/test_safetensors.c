/* test_safetensors.c: the safetensors cases of the "runs" group. Needs no backend. */
#include "dev/test/runs_cases.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "dev/test/safetensors_rows.h"
#include "laser/json.h"
#include "laser/safetensors.h"

static void file_path(Test *t, char *path, const char *name) {
    char dir[PATH_BYTES - 64];
    test_temp_dir(t, dir, sizeof dir);
    format(path, PATH_BYTES, "%s/%s", dir, name);
}

void sample_tensors(StTensor *s /* (SAMPLES) */) {
    static const StTensor table[SAMPLES] = {
        {.name = "wte.weight", .type = ST_F32, .ndim = 2, .shape = {5, 3}},
        {.name = "h.0.\"odd\\name\"\x01\xc3\xa9",
            .type = ST_BF16,
            .ndim = 4,
            .shape = {1, 3, 1, 1}},
        {.name = "scalar", .type = ST_F32, .ndim = 0},
        {.name = "empty", .type = ST_F32, .ndim = 2, .shape = {0, 7}},
        {.name = "counts", .type = ST_I64, .ndim = 1, .shape = {3}},
    };
    memcpy(s, table, sizeof table);
}

/* Element e of tensor i: values that all types hold exactly. */
static double sample_value(int i, int64_t e) {
    return (double)(i * 16) - (double)e * 0.5;
}

void sample_fill(void *user, int i, void *dst) {
    const StTensor *s = (const StTensor *)user + i;
    int64_t n = (int64_t)(s->end - s->begin) / (int64_t)st_type_bytes(s->type);
    for (int64_t e = 0; e < n; e++) {
        float value = (float)sample_value(i, e);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (s->type == ST_F32) ((float *)dst)[e] = value;
        if (s->type == ST_BF16) ((uint16_t *)dst)[e] = (uint16_t)(bits >> 16);
        if (s->type == ST_I64) ((int64_t *)dst)[e] = (int64_t)(value * 2) - ((int64_t)1 << 60);
    }
}

const char *const sample_metadata[] = {"format", "pt", "note", "a \"quoted\" line\n", NULL};

void test_st_round_trip(Test *t) {
    char path[PATH_BYTES];
    file_path(t, path, "a.safetensors");
    StTensor s[SAMPLES];
    sample_tensors(s);
    uint32_t crc = st_write(path, s, SAMPLES, sample_metadata, sample_fill, s);
    size_t size;
    char *raw = file_read_all(path, &size);
    CHECK_INT(t, crc32c(0, raw, size), crc);
    free(raw);
    StFile f;
    st_open(&f, path);
    CHECK_INT(t, f.count, SAMPLES);
    CHECK_INT(t, f.data_offset % 8, 0);
    CHECK_INT(t, f.file_bytes, size);
    for (int i = 0; i < SAMPLES; i++) {
        const StTensor *r = st_find(&f, s[i].name);
        CHECK(t, r != NULL, "%s is not found", s[i].name);
        if (!r) continue;
        CHECK_INT(t, r->type, s[i].type);
        CHECK_INT(t, r->ndim, s[i].ndim);
        for (int d = 0; d < r->ndim; d++) CHECK_INT(t, r->shape[d], s[i].shape[d]);
        unsigned char want[64 + GUARD_BYTES], got[64 + GUARD_BYTES];
        size_t n = (size_t)(r->end - r->begin);
        sample_fill(s, i, want);
        guard_fill(got + n, GUARD_BYTES);
        st_read(&f, r, got);
        CHECK(t, memcmp(got, want, n) == 0, "values of %s differ", s[i].name);
        CHECK_INT(t, guard_broken(got + n, GUARD_BYTES), -1);
    }
    CHECK(t, st_find(&f, "absent") == NULL, "found what is not there");
    CHECK(t, st_find(&f, "__metadata__") == NULL, "metadata is not a tensor");
    st_close(&f);
}

static void open_and_close(void *path) {
    StFile f;
    st_open(&f, path);
    st_close(&f);
}

void test_st_malformed(Test *t) {
    char path[PATH_BYTES];
    file_path(t, path, "bad.safetensors");
    for (size_t i = 0; i < sizeof st_rows / sizeof *st_rows; i++) {
        const StRow *r = &st_rows[i];
        Text text = {0};
        uint64_t n = strlen(r->header);
        unsigned char length[8];
        for (int b = 0; b < 8; b++) length[b] = (unsigned char)(n >> (8 * b));
        text_add_bytes(&text, length, sizeof length);
        text_add_bytes(&text, r->header, (size_t)n);
        for (int b = 0; b < r->data; b++) text_add_bytes(&text, "", 1);
        write_file(path, text.data, text.size);
        text_free(&text);
        int before = t->failures;
        EXPECT_EXIT(t, r->said ? EXIT_INPUT : 0, r->said, open_and_close, path);
        if (r->said) EXPECT_EXIT(t, EXIT_INPUT, path, open_and_close, path);
        if (t->failures > before) test_fail(t, TEST_WHERE, "in the row \"%s\"", r->what);
    }
}

void test_st_lengths(Test *t) {
    static const struct {
        uint64_t header, file;
        const char *said;
    } rows[] = {
        {0, 0, "too few"}, {0, 7, "too few"}, {3, 10, "header of 3 bytes"},
        {UINT64_MAX, 64, "header of 184"}, {UINT64_MAX - 7, 64, "header of 184"},
        {(uint64_t)1 << 63, 64, "header of 922"},
        {100000001, 100000100, "limit 100000000"}, /* sparse */
    };
    char path[PATH_BYTES];
    file_path(t, path, "length.safetensors");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        unsigned char length[8];
        for (int b = 0; b < 8; b++) length[b] = (unsigned char)(rows[i].header >> (8 * b));
        write_file(path, length, sizeof length);
        REQUIRE(truncate(path, (off_t)rows[i].file) == 0, "%s", path);
        EXPECT_EXIT(t, EXIT_INPUT, rows[i].said, open_and_close, path);
    }
    write_file(path, "\2\0\0\0\0\0\0\0{\0", 10);
    EXPECT_EXIT(t, EXIT_INPUT, "not UTF-8 text at byte 9", open_and_close, path);
    REQUIRE(unlink(path) == 0, "%s", path);
    EXPECT_EXIT(t, EXIT_INPUT, path, open_and_close, path);
    EXPECT_EXIT(t, EXIT_INPUT, "not a regular file", open_and_close, (void *)(uintptr_t) "/dev");
}

/* A file of 5 GiB that takes no room: the second tensor lies beyond 32 bits. */
void test_st_beyond_4_gib(Test *t) {
    char path[PATH_BYTES];
    file_path(t, path, "large.safetensors");
    static const char header[] =
        "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2684354560],\"data_offsets\":[0,5368709120]},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[5368709120,5368709124]}}";
    unsigned char length[8] = {sizeof header - 1};
    FILE *f = xfopen(path, "wb");
    fwrite(length, 1, sizeof length, f);
    fwrite(header, 1, sizeof header - 1, f);
    float want = 42.5f, got = 0;
    if (fseeko(f, (off_t)5368709120, SEEK_CUR) != 0 || fwrite(&want, 4, 1, f) != 1 ||
        fflush(f) != 0) {
        fclose(f);
        SKIP(t, "the temporary directory takes no sparse file of 5 GiB");
    }
    fclose(f);
    StFile st;
    st_open(&st, path);
    st_read(&st, st_find(&st, "b"), &got);
    CHECK_NEAR(t, got, want, 0);
    st_close(&st);
}

/* ---- several writers --------------------------------------------------------------------------
 */

enum { MOST_WRITERS = 8 };

/* A file by so many writers, the last first, one of which may forget its part; returns its CRC. */
static uint32_t write_in_parts(const char *path, int writers, int forgets) {
    StTensor s[SAMPLES];
    StLayout l;
    sample_tensors(s);
    st_layout(&l, s, SAMPLES, sample_metadata);
    uint32_t crc = st_create(path, &l), parts[MOST_WRITERS] = {0};
    for (int w = writers - 1; w >= 0; w--)
        if (w != forgets)
            parts[w] = st_write_part(path, &l, st_part_begin(s, SAMPLES, w, writers),
                st_part_begin(s, SAMPLES, w + 1, writers), sample_fill, s);
    for (int w = 0; w < writers; w++) {
        const int first = st_part_begin(s, SAMPLES, w, writers);
        const int end = st_part_begin(s, SAMPLES, w + 1, writers);
        crc = crc32c_combine(crc, parts[w], st_bytes(&s[first], end - first));
    }
    st_layout_free(&l);
    return crc;
}

void test_st_parts(Test *t) {
    char one[PATH_BYTES], many[PATH_BYTES];
    file_path(t, one, "one.safetensors");
    file_path(t, many, "many.safetensors");
    StTensor s[SAMPLES];
    sample_tensors(s);
    size_t size, other;
    const uint32_t want = st_write(one, s, SAMPLES, sample_metadata, sample_fill, s);
    char *whole = file_read_all(one, &size);
    for (int writers = 1; writers <= MOST_WRITERS; writers++)
        for (int forgets = -1; forgets < writers; forgets++) {
            const uint32_t got = write_in_parts(many, writers, forgets);
            char *data = file_read_all(many, &other);
            const bool same = other == size && memcmp(data, whole, size) == 0;
            const int first = forgets < 0 ? 0 : st_part_begin(s, SAMPLES, forgets, writers);
            const int end = forgets < 0 ? 0 : st_part_begin(s, SAMPLES, forgets + 1, writers);
            const bool complete = st_bytes(&s[first], end - first) == 0;
            CHECK_INT(t, other, size);
            CHECK(t, same == complete, "%d writers, without %d: the bytes", writers, forgets);
            CHECK(t, (got == want) == complete, "%d writers, without %d: CRC %08x, of one %08x",
                writers, forgets, got, want);
            free(data);
        }
    free(whole);
}

/* Sizes with nothing, one that outweighs the rest, and files beyond what 64 bits hold times parts.
 */
void test_st_dealing(Test *t) {
    enum { COUNT = 9, PARTS = 20 };
    static const uint64_t rows[][COUNT] = {
        {4, 4, 4, 4, 4, 4, 4, 4, 4},
        {1000, 1, 1, 1, 1, 1, 1, 1, 1},
        {1, 1, 1, 1, 1, 1, 1, 1, 1000},
        {0, 0, 7, 0, 0, 9, 1, 0, 0},
        {0, 0, 0, 0, 0, 0, 0, 0, 0},
        {(uint64_t)1 << 60, 3, (uint64_t)1 << 59, 0, 77, (uint64_t)1 << 58, 5, 1, 1},
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        StTensor s[COUNT] = {0};
        uint64_t at = 1000, largest = 0; /* they need not be a file's first */
        for (int i = 0; i < COUNT; i++) {
            s[i].begin = at;
            s[i].end = at += rows[r][i];
            if (rows[r][i] > largest) largest = rows[r][i];
        }
        for (int parts = 1; parts <= PARTS; parts++) {
            CHECK_INT(t, st_part_begin(s, COUNT, 0, parts), 0);
            CHECK_INT(t, st_part_begin(s, COUNT, parts, parts), COUNT);
            for (int p = 0; p < parts; p++) {
                const int first = st_part_begin(s, COUNT, p, parts);
                const int end = st_part_begin(s, COUNT, p + 1, parts);
                CHECK(t, first <= end, "row %zu: part %d of %d from %d to %d", r, p, parts, first,
                    end);
                if (first > end) continue;
                /* half a tensor over at either end, and a byte for rounding */
                const uint64_t n = st_bytes(&s[first], end - first);
                const uint64_t most = st_bytes(s, COUNT) / (uint64_t)parts + largest + 1;
                CHECK(t, n <= most, "row %zu: part %d of %d has %llu bytes, at most %llu", r, p,
                    parts, (unsigned long long)n, (unsigned long long)most);
            }
        }
    }
}

/* ---- failures --------------------------------------------------------------------------------
 */

static void limit_files(rlim_t bytes) {
    struct rlimit limit = {bytes, bytes};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
}

static void write_plain(void *path) {
    StTensor s[SAMPLES];
    sample_tensors(s);
    st_write(path, s, SAMPLES, NULL, sample_fill, s);
}

static void write_with_limit(void *path) {
    limit_files(256);
    write_plain(path);
}

/* What is written into a file that has its length, of which a part can be had no more. */
static void write_part(const char *path, size_t limit) {
    StTensor s[SAMPLES];
    StLayout l;
    sample_tensors(s);
    st_layout(&l, s, SAMPLES, NULL);
    if (limit) limit_files(l.data_offset + limit);
    st_write_part(path, &l, 0, SAMPLES, sample_fill, s);
    st_layout_free(&l);
}

static void write_part_plain(void *path) {
    write_part(path, 0);
}

static void write_part_with_limit(void *path) {
    write_part(path, 20);
}

void test_st_write_failures(Test *t) {
    char path[PATH_BYTES], wanted[PATH_BYTES];
    file_path(t, path, "full.safetensors");
    EXPECT_EXIT(t, EXIT_IO, path, write_with_limit, path);
    EXPECT_EXIT(t, EXIT_IO, "cannot be given its ", write_with_limit, path);
    write_plain(path);
    StTensor s[SAMPLES];
    StLayout l;
    sample_tensors(s);
    st_layout(&l, s, SAMPLES, NULL);
    format(wanted, sizeof wanted, "cannot be written at byte %llu of %llu",
        (unsigned long long)l.data_offset + 20, (unsigned long long)l.file_bytes);
    st_layout_free(&l);
    EXPECT_EXIT(t, EXIT_IO, path, write_part_with_limit, path);
    EXPECT_EXIT(t, EXIT_IO, wanted, write_part_with_limit, path);
    file_path(t, path, "other.safetensors"); /* not the one that was created */
    EXPECT_EXIT(t, EXIT_IO, "must see the same files", write_part_plain, path);
    file_path(t, path, "absent/a.safetensors");
    EXPECT_EXIT(t, EXIT_IO, path, write_plain, path);
    if (access("/dev/full", W_OK) != 0) SKIP(t, "no /dev/full here");
    EXPECT_EXIT(t, EXIT_IO, "No space left", write_part_plain, (void *)(uintptr_t) "/dev/full");
}

/* Whatever the header's length, the data starts at a multiple of 8. */
void test_st_alignment(Test *t) {
    char path[PATH_BYTES];
    file_path(t, path, "aligned.safetensors");
    for (int length = 1; length <= 9; length++) {
        StTensor s[SAMPLES];
        sample_tensors(s);
        format(s[0].name, sizeof s[0].name, "%.*s", length, "abcdefghi");
        st_write(path, s, 1, NULL, sample_fill, s);
        StFile f;
        st_open(&f, path);
        CHECK_INT(t, f.data_offset % 8, 0);
        st_close(&f);
    }
}

/* The table of well-formed sequences of the Unicode standard, each limit from both sides. */
void test_utf8(Test *t) {
    static const struct {
        const char *bytes;
        size_t length;
    } rows[] = {
        {"\x01", 1},
        {"\x7f", 1},
        {"\x80", 0},
        {"\xbf", 0},
        {"\xc1\xbf", 0},
        {"\xc2\x80", 2},
        {"\xc2\x7f", 0},
        {"\xdf\xbf", 2},
        {"\xdf\xc0", 0},
        {"\xe0\x9f\xbf", 0},
        {"\xe0\xa0\x80", 3},
        {"\xe1\x80\x80", 3},
        {"\xe1\x80", 0},
        {"\xe1\x80\x7f", 0},
        {"\xed\x9f\xbf", 3},
        {"\xed\xa0\x80", 0},
        {"\xee\x80\x80", 3},
        {"\xf0\x8f\xbf\xbf", 0},
        {"\xf0\x90\x80\x80", 4},
        {"\xf1\x80\x80", 0},
        {"\xf4\x8f\xbf\xbf", 4},
        {"\xf4\x90\x80\x80", 0},
        {"\xf5\x80\x80\x80", 0},
        {"\xff", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t got = utf8_sequence(rows[i].bytes, strlen(rows[i].bytes));
        CHECK(t, got == rows[i].length, "row %zu: %zu bytes, want %zu", i, got, rows[i].length);
    }
}
