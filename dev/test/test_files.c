/* test_files.c: the loader and its files: many of them, large ones, and such as vanish, are cut or
 * replaced while a run reads them. Which tokens are read is test_loader.c's. Needs no backend. */
#include "dev/test/data_cases.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dataloader/loader.h"
#include "dataloader/shard.h"

enum { T = 8, VOCAB = 5000 };

static LoaderOptions options(const char *pattern, bool shuffle, bool prefetch) {
    return (LoaderOptions){.pattern = pattern,
        .seq_len = T,
        .batch = 1,
        .step_sequences = 1,
        .world = 1,
        .seed = 42,
        .shuffle = shuffle,
        .prefetch = prefetch,
        .vocab = VOCAB};
}

/* `count` shards of one window each; shard s holds ids s % VOCAB, and so on. */
static void make_many(Test *t, char *pattern /* (DATA_PATH) */, int count) {
    char dir[DATA_PATH - 64], path[DATA_PATH];
    test_temp_dir(t, dir, sizeof dir);
    for (int s = 0; s < count; s++) {
        int32_t ids[T + 1];
        for (int i = 0; i <= T; i++) ids[i] = (s + i) % VOCAB;
        format(path, sizeof path, "%s/x_%06d.bin", dir, s);
        plain_write(path, ids, T + 1, 2);
    }
    format(pattern, DATA_PATH, "%s/x_*.bin", dir);
}

/* ---- many and large ---------------------------------------------------------------------------
 */

static int count_entries(const char *directory) {
    DIR *d = opendir(directory);
    REQUIRE(d, "%s", directory);
    int count = 0;
    while (readdir(d)) count++;
    closedir(d);
    return count;
}

static int count_mappings(void) {
    FILE *f = xfopen("/proc/self/maps", "r");
    int lines = 0;
    for (int c; (c = fgetc(f)) != EOF;) lines += c == '\n';
    fclose(f);
    return lines;
}

/* An epoch of all shards, with room for fewer descriptors than there are shards. */
static void serve_many(void *user) {
    const LoaderOptions *o = user;
    enum { MANY = 2000, DESCRIPTORS = 100, FEW = 70 };
    const int before = count_entries("/proc/self/fd"), mappings = count_mappings();
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = DESCRIPTORS;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
    const double begin = now_seconds();
    Loader *l = loader_open(o);
    const double took = now_seconds() - begin;
    REQUIRE(loader_info(l)->shards == MANY, "%d", loader_info(l)->shards);
    /* 0.03 s where nothing else runs; a machine may be a hundred times as busy or slow */
    REQUIRE(took < 4, "opening %d shards took %.2f s", MANY, took);
    int times[MANY] = {0};
    for (int g = 0; g < MANY; g++) {
        int32_t inputs[T], targets[T];
        loader_next(l, inputs, targets);
        times[inputs[0]]++;
        REQUIRE(targets[T - 1] == inputs[0] + T, "%d, %d", inputs[0], targets[T - 1]);
    }
    for (int s = 0; s < MANY; s++) REQUIRE(times[s] == 1, "shard %d came %d times", s, times[s]);
    const int held = count_entries("/proc/self/fd") - before;
    REQUIRE(held <= FEW, "%d descriptors are held", held);
    REQUIRE(count_mappings() - mappings <= FEW, "%d more mappings", count_mappings() - mappings);
    loader_close(l);
    REQUIRE(count_entries("/proc/self/fd") == before, "descriptors are left open");
}

void test_files_many(Test *t) {
    char pattern[DATA_PATH];
    make_many(t, pattern, 2000);
    for (int prefetch = 0; prefetch < 2; prefetch++) {
        LoaderOptions o = options(pattern, true, prefetch);
        EXPECT_EXIT(t, 0, NULL, serve_many, &o);
    }
}

/* 2^28 windows: a stored order would take 1 GiB at least. */
static void serve_large(void *user) {
    enum { STEPS = 1000, MOST_KB = 32 << 10 };
    const LoaderOptions *o = user;
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    Loader *l = loader_open(o);
    REQUIRE(loader_info(l)->windows == (1 << 28) - 1, "%lld", (long long)loader_info(l)->windows);
    int32_t input, target;
    for (int i = 0; i < STEPS; i++) loader_next(l, &input, &target);
    loader_seek(l, (int64_t)1 << 40);
    for (int i = 0; i < STEPS; i++) loader_next(l, &input, &target);
    loader_close(l);
    getrusage(RUSAGE_SELF, &after);
    REQUIRE(after.ru_maxrss - before.ru_maxrss < MOST_KB, "%ld kB more",
        after.ru_maxrss - before.ru_maxrss);
}

void test_files_large(Test *t) {
    char dir[DATA_PATH - 64], path[DATA_PATH];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/large.bin", dir);
    plain_write(path, NULL, 0, 2);
    const int32_t tokens = 1 << 28; /* a hole: takes no room */
    FILE *f = xfopen(path, "r+b");
    fseeko(f, 8, SEEK_SET);
    REQUIRE(fwrite(&tokens, sizeof tokens, 1, f) == 1, "%s", path);
    fclose(f);
    if (truncate(path, SHARD_HEADER_BYTES + 2 * (int64_t)tokens) != 0)
        SKIP(t, "a file of 512 MiB that is one hole cannot be made in %s", dir);
    for (int prefetch = 0; prefetch < 2; prefetch++) {
        LoaderOptions o = options(path, true, prefetch);
        o.seq_len = 1;
        EXPECT_EXIT(t, 0, NULL, serve_large, &o);
    }
}

/* ---- files that change ------------------------------------------------------------------------
 */

/* Three shards of 10, 10 and 20 windows in order; the last is 161 tokens. */
enum { FIRST_OF_LAST = 20, LAST_WINDOWS = 20, LAST_TOKENS = T * LAST_WINDOWS + 1 };

static void write_last(const char *path, bool extended, int32_t add) {
    int32_t ids[LAST_TOKENS];
    for (int i = 0; i < LAST_TOKENS; i++) ids[i] = 2000 + add + i;
    if (!extended) {
        plain_write(path, ids, LAST_TOKENS, 2);
        return;
    }
    ShardWriter *w = shard_writer_open(path, &(ShardInfo){.vocab = VOCAB, .eos = 1});
    shard_writer_put(w, ids, LAST_TOKENS);
    shard_writer_close(w);
}

typedef struct Change {
    bool extended;
    int when; /* windows served before: 5, the last shard was not read yet; 25: it is open */
    enum { NOTHING, REMOVE, CUT, CUT_HEADER, GROW, REPLACE, REWRITE, RESTORE, DIRECTORY } what;
    const char *says; /* NULL: the run goes on */
} Change;

typedef struct Changing {
    LoaderOptions options;
    char path[DATA_PATH]; /* of the last shard */
    const Change *change;
} Changing;

static void later(const char *path) { /* a file system's clock may tick slower than this test */
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 4000000000}};
    REQUIRE(utimensat(AT_FDCWD, path, times, 0) == 0, "%s", path);
}

static void apply(const Change *c, const char *path) {
    char other[DATA_PATH + 8];
    format(other, sizeof other, "%s.new", path);
    switch (c->what) {
    case NOTHING:
        break;
    case DIRECTORY:
    case REMOVE:
        REQUIRE(unlink(path) == 0, "%s", path);
        if (c->what == DIRECTORY) make_dirs(path);
        break;
    case CUT:
        REQUIRE(truncate(path, SHARD_HEADER_BYTES + 100) == 0, "%s", path);
        break;
    case CUT_HEADER:
        REQUIRE(truncate(path, 10) == 0, "%s", path);
        break;
    case GROW:
        REQUIRE(truncate(path, 100000) == 0, "%s", path);
        break;
    case REPLACE: /* by a whole shard of the same size */
        write_last(other, c->extended, 1);
        REQUIRE(rename(other, path) == 0, "%s", path);
        later(path);
        break;
    case REWRITE:
        write_last(path, c->extended, 1);
        later(path);
        break;
    case RESTORE:
        write_last(path, c->extended, 0);
        later(path);
    }
}

static void serve_changing(void *user) {
    const Changing *s = user;
    int32_t inputs[T], targets[T];
    Loader *l = loader_open(&s->options);
    for (int g = 0; g < FIRST_OF_LAST + LAST_WINDOWS; g++) {
        if (g == s->change->when) apply(s->change, s->path);
        loader_next(l, inputs, targets);
        const int32_t first =
            g < FIRST_OF_LAST ? 1000 * (g / 10) + T * (g % 10) : 2000 + T * (g - FIRST_OF_LAST);
        for (int i = 0; i < T; i++)
            REQUIRE(inputs[i] == first + i && targets[i] == first + i + 1, "%d: %d, want %d", g,
                inputs[i], first + i);
    }
    loader_close(l);
}

static void make_changing(Test *t, Changing *s, char *pattern) {
    char dir[DATA_PATH - 64], path[DATA_PATH];
    test_temp_dir(t, dir, sizeof dir);
    for (int k = 0; k < 2; k++) {
        int32_t ids[10 * T + 1];
        for (int i = 0; i <= 10 * T; i++) ids[i] = 1000 * k + i;
        format(path, sizeof path, "%s/x_%d.bin", dir, k);
        plain_write(path, ids, 10 * T + 1, 2);
    }
    format(s->path, sizeof s->path, "%s/x_2.bin", dir);
    write_last(s->path, s->change->extended, 0);
    format(pattern, DATA_PATH, "%s/x_*.bin", dir);
}

void test_files_change(Test *t) {
    static const Change changes[] = {
        {false, 0, NOTHING, NULL},
        {true, 5, REMOVE, "cannot be opened any more: No such file or directory"},
        {true, 5, CUT, "byte 1124: cannot be read any more: the file was cut short"},
        {false, 25, CUT, "byte 1124: cannot be read any more: the file was cut short"},
        {false, 25, CUT_HEADER, "byte 10: cannot be read any more: the file was cut short"},
        {false, 5, GROW, "it has 100000 bytes, and had 1346"},
        {false, 25, GROW, "it has 100000 bytes, and had 1346"},
        {true, 5, REPLACE, "was replaced by another file while it was in use"},
        {false, 5, REPLACE, "was changed while it was in use"},
        {false, 5, REWRITE, "was changed while it was in use"},
        {false, 25, REWRITE, "was changed while it was in use"},
        {false, 5, DIRECTORY, "x_2.bin: "},
        {true, 25, REMOVE, NULL}, /* held open: the tokens are still those */
        {true, 25, REPLACE, NULL},
        {true, 5, RESTORE, NULL}, /* another file with the same checksum is the same shard */
        {true, 25, RESTORE, NULL},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++)
        for (int prefetch = 0; prefetch < 2; prefetch++) {
            /* what a thread reads while tokens are written over depends on who is faster */
            if (prefetch && changes[i].what == REWRITE) continue;
            char pattern[DATA_PATH], expected[2 * DATA_PATH];
            Changing s = {.change = &changes[i]};
            make_changing(t, &s, pattern);
            s.options = options(pattern, false, prefetch);
            if (!changes[i].says) {
                EXPECT_EXIT(t, 0, NULL, serve_changing, &s);
                continue;
            }
            format(expected, sizeof expected, "error: %s", s.path);
            EXPECT_EXIT(t, EXIT_INPUT, expected, serve_changing, &s);
            make_changing(t, &s, pattern);
            s.options.pattern = pattern;
            const char *says = changes[i].says;
            /* a thread may be cut off in the middle of a read: at another byte */
            if (prefetch && strncmp(says, "byte ", 5) == 0) says = strchr(says, ':');
            EXPECT_EXIT(t, EXIT_INPUT, says, serve_changing, &s);
        }
}
