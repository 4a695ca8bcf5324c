/* test_loader.c: which tokens a step reads. The test shards hold their own positions as ids, so
 * that a served window says where it was read. Each check that could pass by accident is also given
 * an order that is wrong, and must say so. Needs no backend. */
#include "dev/test/data_cases.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dataloader/loader.h"
#include "dataloader/shard.h"
#include "laser/rng.h"

/* Four shards; T = 8: 5 + 0 + 4 + 12 windows. Shard s holds ids 1000 s, 1000 s + 1, ... */
enum { T = 8, SHARDS = 4, WINDOWS = 21, VOCAB = 5000 };
static const int shard_tokens[SHARDS] = {41, 8, 40, 100};
static const int shard_windows[SHARDS] = {5, 0, 4, 12};

static void make_shards(Test *t, char *pattern /* (DATA_PATH) */) {
    char dir[DATA_PATH - 64], path[DATA_PATH];
    test_temp_dir(t, dir, sizeof dir);
    for (int s = 0; s < SHARDS; s++) {
        format(path, sizeof path, "%s/x_%06d.bin", dir, s);
        ShardWriter *w = shard_writer_open(path, &(ShardInfo){.vocab = VOCAB, .eos = 1});
        for (int32_t i = 0; i < shard_tokens[s]; i++) {
            const int32_t id = 1000 * s + i;
            shard_writer_put(w, &id, 1);
        }
        shard_writer_close(w);
    }
    format(pattern, DATA_PATH, "%s/x_*.bin", dir);
}

static LoaderOptions options(const char *pattern, int batch, int64_t step_sequences) {
    return (LoaderOptions){.pattern = pattern,
        .seq_len = T,
        .batch = batch,
        .step_sequences = step_sequences,
        .world = 1,
        .seed = 42,
        .shuffle = true,
        .vocab = VOCAB};
}

/* Number of the window that starts with this id, or -1. */
static int window_of(int32_t first) {
    const int s = first / 1000, at = first % 1000;
    if (first < 0 || s >= SHARDS || at % T != 0 || at / T >= shard_windows[s]) return -1;
    int before = 0;
    for (int i = 0; i < s; i++) before += shard_windows[i];
    return before + at / T;
}

/* Serves one micro-batch and appends the windows it holds. */
static void serve(Test *t, Loader *l, int batch, int *windows /* (batch) */) {
    int32_t inputs[16 * T], targets[16 * T];
    REQUIRE(batch <= 16, "%d", batch);
    loader_next(l, inputs, targets);
    for (int b = 0; b < batch; b++) {
        windows[b] = window_of(inputs[b * T]);
        int wrong = 0;
        for (int i = 0; i < T; i++) {
            wrong += inputs[b * T + i] != inputs[b * T] + i;
            wrong += targets[b * T + i] != inputs[b * T] + i + 1;
        }
        CHECK(t, windows[b] >= 0 && wrong == 0, "sequence %d starts with id %d, %d wrong", b,
            inputs[b * T], wrong);
    }
}

/* The windows of steps [first, first + steps), as all processes together read them. */
static void run(Test *t, LoaderOptions o, int64_t first, int steps, int *windows) {
    const int part = (int)o.step_sequences / o.world;
    for (o.rank = 0; o.rank < o.world; o.rank++) {
        Loader *l = loader_open(&o);
        if (first > 0) loader_seek(l, first);
        for (int s = 0; s < steps; s++)
            for (int k = 0; k < part; k += o.batch)
                serve(t, l, o.batch, windows + s * o.step_sequences + o.rank * part + k);
        loader_close(l);
    }
}

static int differences(const int *a, const int *b, int n) {
    int count = 0;
    for (int i = 0; i < n; i++) count += a[i] != b[i];
    return count;
}

/* How many windows of an epoch are not there exactly once. */
static int not_once(const int *windows /* (WINDOWS) */) {
    int times[WINDOWS] = {0}, count = 0;
    for (int i = 0; i < WINDOWS; i++)
        if (windows[i] >= 0 && windows[i] < WINDOWS) times[windows[i]]++;
    for (int i = 0; i < WINDOWS; i++) count += times[i] != 1;
    return count;
}

/* ---- cases ----------------------------------------------------------------------------------- */

void test_loader_epochs(Test *t) {
    enum { EPOCHS = 5 };
    char pattern[DATA_PATH];
    int w[EPOCHS * WINDOWS];
    make_shards(t, pattern);
    LoaderOptions o = options(pattern, 3, 3);
    Loader *l = loader_open(&o);
    CHECK_INT(t, loader_info(l)->shards, SHARDS);
    CHECK_INT(t, loader_info(l)->tokens, 189);
    CHECK_INT(t, loader_info(l)->windows, WINDOWS);
    CHECK_INT(t, loader_info(l)->vocab, VOCAB);
    CHECK_INT(t, loader_info(l)->eos, 1);
    loader_close(l);
    run(t, o, 0, EPOCHS * WINDOWS / 3, w);
    for (int e = 0; e < EPOCHS; e++) CHECK_INT(t, not_once(w + e * WINDOWS), 0);
    for (int e = 1; e < EPOCHS; e++)
        CHECK(t, differences(w, w + e * WINDOWS, WINDOWS) > WINDOWS / 2, "epoch %d repeats", e);
    w[3] = w[4]; /* the check itself: one window twice, one missing */
    CHECK_INT(t, not_once(w), 2);
    /* steps that do not divide an epoch: the last of one epoch takes the first of the next */
    o = options(pattern, 4, 4);
    int v[5 * WINDOWS + 3];
    run(t, o, 0, 27, v);
    run(t, options(pattern, 3, 3), 0, EPOCHS * WINDOWS / 3, w);
    CHECK_INT(t, differences(v, w, 5 * WINDOWS), 0);
}

void test_loader_pure(Test *t) {
    char pattern[DATA_PATH];
    int a[42], b[42];
    make_shards(t, pattern);
    LoaderOptions o = options(pattern, 2, 2);
    run(t, o, 0, WINDOWS, a);
    run(t, o, 0, WINDOWS, b);
    CHECK_INT(t, differences(a, b, 42), 0);
    /* the function that is documented: runs of today must find their place tomorrow */
    for (uint64_t g = 0; g < 42; g++)
        CHECK_INT(
            t, a[g], rng_permute(42, RNG_SHUFFLE + 256 * (g / WINDOWS), g % WINDOWS, WINDOWS));
    o.seed = 43;
    run(t, o, 0, WINDOWS, b);
    CHECK(t, differences(a, b, 42) > WINDOWS, "seed 43 gives the order of seed 42");
    o.seed = 42;
    Loader *l = loader_open(&o);
    for (int g = 41; g >= 0; g--) { /* any order of asking */
        int shard;
        int64_t token;
        loader_locate(l, g, &shard, &token);
        CHECK_INT(t, window_of((int32_t)(1000 * shard + token)), a[g]);
    }
    loader_close(l);
}

void test_loader_worlds(Test *t) {
    enum { STEP = 12, STEPS = 7, EPOCHS = STEP * STEPS / WINDOWS };
    _Static_assert(EPOCHS * WINDOWS == STEP * STEPS, "whole epochs");
    static const int split[][2] = {{1, 12}, {1, 4}, {2, 1}, {2, 6}, {2, 3}, {4, 1}, {4, 3}};
    char pattern[DATA_PATH];
    int one[STEP * STEPS], w[STEP * STEPS];
    make_shards(t, pattern);
    LoaderOptions o = options(pattern, 1, STEP);
    run(t, o, 0, STEPS, one);
    for (size_t i = 0; i < sizeof split / sizeof *split; i++)
        for (int prefetch = 0; prefetch < 2; prefetch++) {
            o.world = split[i][0];
            o.batch = split[i][1];
            o.prefetch = prefetch;
            run(t, o, 0, STEPS, w);
            CHECK(t, differences(one, w, STEP * STEPS) == 0, "world %d, batch %d, prefetch %d",
                o.world, o.batch, prefetch);
            for (int e = 0; e < EPOCHS; e++) CHECK_INT(t, not_once(w + e * WINDOWS), 0);
            for (int e = 1; e < EPOCHS; e++)
                CHECK(t, differences(w, w + e * WINDOWS, WINDOWS) > WINDOWS / 2, "epoch %d repeats",
                    e);
        }
}

void test_loader_seek(Test *t) {
    enum { STEP = 4, STEPS = 16 }; /* three epochs of 5.25 steps, over every shard */
    char pattern[DATA_PATH];
    int whole[STEP * STEPS], w[STEP * STEPS];
    make_shards(t, pattern);
    for (int shuffle = 0; shuffle < 2; shuffle++)
        for (int prefetch = 0; prefetch < 2; prefetch++) {
            LoaderOptions o = options(pattern, 2, STEP);
            o.shuffle = shuffle;
            run(t, o, 0, STEPS, whole);
            o.prefetch = prefetch;
            for (int s = 0; s < STEPS; s++) {
                run(t, o, s, STEPS - s, w);
                CHECK(t, differences(whole + s * STEP, w, (STEPS - s) * STEP) == 0,
                    "from step %d, shuffle %d, prefetch %d", s, shuffle, prefetch);
            }
            Loader *l = loader_open(&o); /* back and forth in one loader, within a step too */
            for (int i = 0; i < 50; i++) {
                const int s = i * 7 % STEPS;
                loader_seek(l, s);
                serve(t, l, 2, w);
                CHECK_INT(t, differences(whole + s * STEP, w, 2), 0);
            }
            loader_close(l);
        }
}

void test_loader_prefetch(Test *t) {
    enum { STEPS = 400, PAUSED = 20 };
    char pattern[DATA_PATH];
    int plain[2 * STEPS], ahead[2 * STEPS];
    make_shards(t, pattern);
    LoaderOptions o = options(pattern, 2, 2);
    run(t, o, 0, STEPS, plain);
    o.prefetch = true;
    run(t, o, 0, STEPS, ahead);
    CHECK_INT(t, differences(plain, ahead, 2 * STEPS), 0);
    Loader *l = loader_open(&o);
    for (int s = 0; s < STEPS; s++) {
        if (s < PAUSED) usleep(500); /* the ring is full when it is asked */
        serve(t, l, 2, ahead + 2 * s);
    }
    loader_close(l);
    CHECK_INT(t, differences(plain, ahead, 2 * STEPS), 0);
    for (int i = 0; i < 20; i++) loader_close(loader_open(&o)); /* closed while it fills */
}

void test_loader_file_order(Test *t) {
    char pattern[DATA_PATH];
    int w[42];
    make_shards(t, pattern);
    LoaderOptions o = options(pattern, 1, 1);
    o.shuffle = false;
    run(t, o, 0, 42, w);
    for (int i = 0; i < 42; i++) CHECK_INT(t, w[i], i % WINDOWS);
}

/* Sum of (times - expected)^2 / expected over places and windows: about (n - 1)^2 for uniform
 * orders, with standard deviation (n - 1) sqrt 2. order: (epochs, n) */
static double chi_square(const int *order, int epochs, int n) {
    int *times = xcalloc((size_t)(n * n), sizeof *times);
    for (int e = 0; e < epochs; e++)
        for (int i = 0; i < n; i++) times[i * n + order[e * n + i]]++;
    const double expected = (double)epochs / n;
    double sum = 0;
    for (int i = 0; i < n * n; i++) sum += (times[i] - expected) * (times[i] - expected) / expected;
    free(times);
    return sum;
}

static int followers(const int *order, int n) { /* window i + 1 right after window i */
    int count = 0;
    for (int i = 1; i < n; i++) count += order[i] == order[i - 1] + 1;
    return count;
}

void test_loader_uniform(Test *t) {
    enum { EPOCHS = 4000, N = WINDOWS };
    char pattern[DATA_PATH];
    make_shards(t, pattern);
    LoaderOptions o = options(pattern, 1, 1);
    Loader *l = loader_open(&o);
    int *order = xcalloc(EPOCHS * N, sizeof *order), next = 0;
    for (int g = 0; g < EPOCHS * N; g++) {
        int shard;
        int64_t token;
        loader_locate(l, g, &shard, &token);
        order[g] = window_of((int32_t)(1000 * shard + token));
    }
    loader_close(l);
    /* six standard deviations either side: 1 in 10^9 by chance, and the seed is fixed */
    const double mean = (N - 1) * (N - 1), width = 6 * (N - 1) * sqrt(2.0);
    CHECK_NEAR(t, chi_square(order, EPOCHS, N), mean, width);
    for (int e = 0; e < EPOCHS; e++) next += followers(order + e * N, N);
    /* one expected in N places is (N - 1) / N an epoch, about Poisson */
    const double expected = EPOCHS * (N - 1.0) / N;
    CHECK_NEAR(t, next, expected, 6 * sqrt(expected));
    /* planted: every tenth epoch is the first again */
    for (int e = 0; e < EPOCHS; e += 10) memcpy(order + e * N, order, N * sizeof *order);
    CHECK(t, fabs(chi_square(order, EPOCHS, N) - mean) > width, "a repeated order is not seen");
    free(order);
}

void test_loader_wide(Test *t) {
    char dir[DATA_PATH - 64], path[DATA_PATH];
    int32_t ids[17], inputs[16], targets[16];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/llama.bin", dir);
    for (int bytes = 2; bytes <= 4; bytes += 2) {
        for (int i = 0; i < 17; i++) ids[i] = bytes == 4 ? 128255 - i : 65535 - i;
        plain_write(path, ids, 17, bytes);
        LoaderOptions o = options(path, 1, 1);
        o.seq_len = 16;
        o.vocab = bytes == 4 ? 128256 : 65536;
        Loader *l = loader_open(&o);
        CHECK_INT(t, loader_info(l)->vocab, 0);
        CHECK_INT(t, loader_info(l)->eos, -1);
        loader_next(l, inputs, targets);
        for (int i = 0; i < 16; i++) CHECK_INT(t, inputs[i], ids[i]);
        for (int i = 0; i < 16; i++) CHECK_INT(t, targets[i], ids[i + 1]);
        loader_close(l);
    }
}

static uint64_t fingerprint_of(const char *pattern) {
    LoaderOptions o = options(pattern, 1, 1);
    Loader *l = loader_open(&o);
    const uint64_t fingerprint = loader_info(l)->fingerprint;
    loader_close(l);
    return fingerprint;
}

void test_loader_fingerprint(Test *t) {
    char a[DATA_PATH], b[DATA_PATH], path[DATA_PATH];
    make_shards(t, a);
    make_shards(t, b);
    CHECK(t, fingerprint_of(a) == fingerprint_of(b), "the directory is part of it");
    format(path, sizeof path, "%.*s_000002.bin", (int)strlen(b) - 6, b);
    ShardWriter *w = shard_writer_open(path, &(ShardInfo){.vocab = VOCAB, .eos = 1});
    int32_t ids[40] = {7}; /* same size, other contents: the header's checksum tells */
    shard_writer_put(w, ids, 40);
    shard_writer_close(w);
    CHECK(t, fingerprint_of(a) != fingerprint_of(b), "other contents, same fingerprint");
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void open_loader(void *user) {
    loader_close(loader_open(user));
}

void test_loader_refuses(Test *t) {
    char pattern[DATA_PATH], path[DATA_PATH], expected[2 * DATA_PATH];
    make_shards(t, pattern);
    LoaderOptions o = options("/nowhere/x_*.bin", 1, 1);
    EXPECT_EXIT(t, EXIT_INPUT, "no file matches '/nowhere/x_*.bin'", open_loader, &o);
    o = options(pattern, 2, 22);
    EXPECT_EXIT(
        t, EXIT_INPUT, "hold 21 sequences of 8 + 1 tokens; one step needs 22", open_loader, &o);
    o = options(pattern, 1, 1);
    o.seq_len = 100;
    EXPECT_EXIT(t, EXIT_INPUT, "hold 0 sequences of 100 + 1 tokens", open_loader, &o);
    o = options(pattern, 1, 1);
    o.vocab = VOCAB - 1;
    format(expected, sizeof expected, "%.*s_000000.bin: was written with a vocabulary of 5000",
        (int)strlen(pattern) - 6, pattern);
    EXPECT_EXIT(t, EXIT_INPUT, expected, open_loader, &o);
    o = options(pattern, 3, 4);
    EXPECT_EXIT(t, -SIGABRT, "no multiple of", open_loader, &o);

    o = options(pattern, 1, 1);
    format(path, sizeof path, "%.*s_000003.bin", (int)strlen(pattern) - 6, pattern);
    for (int i = 0; i < 3; i++) { /* vocabulary, end of document, hash */
        ShardInfo other = {.vocab = VOCAB - (i == 0), .eos = i != 1, .tokenizer_hash = i == 2};
        ShardWriter *w = shard_writer_open(path, &other);
        shard_writer_put(w, (int32_t[]){1, 2, 3}, 3);
        shard_writer_close(w);
        EXPECT_EXIT(t, EXIT_INPUT, "were written with different tokenizers", open_loader, &o);
    }
    REQUIRE(truncate(path, 1029) == 0, "%s", path);
    format(expected, sizeof expected, "%s: byte 1029: the file has 1029 bytes", path);
    EXPECT_EXIT(t, EXIT_INPUT, expected, open_loader, &o);
}

typedef struct Serving {
    LoaderOptions options;
    int good; /* sequences before the bad one */
} Serving;

/* Says on stderr that all before the bad one were served. */
static void serve_until_bad(void *user) {
    const Serving *s = user;
    int32_t inputs[T], targets[T];
    Loader *l = loader_open(&s->options);
    for (int i = 0; i < s->good; i++) loader_next(l, inputs, targets);
    fprintf(stderr, "served %d\n", s->good);
    loader_next(l, inputs, targets);
}

void test_loader_bad_token(Test *t) {
    char pattern[DATA_PATH], path[DATA_PATH], expected[2 * DATA_PATH];
    make_shards(t, pattern);
    format(path, sizeof path, "%.*s_000003.bin", (int)strlen(pattern) - 6, pattern);
    FILE *f = xfopen(path, "r+b"); /* token 17, second of window 2 of the last shard */
    const uint16_t bad = VOCAB;
    fseeko(f, SHARD_HEADER_BYTES + 2 * 17, SEEK_SET);
    fwrite(&bad, sizeof bad, 1, f);
    fclose(f);
    Serving s = {.options = options(pattern, 1, 1)};
    s.options.vocab = 2 * VOCAB; /* the model has room; the shards say it cannot be */
    Loader *l = loader_open(&s.options);
    for (;; s.good++) {
        int shard;
        int64_t token;
        loader_locate(l, s.good, &shard, &token);
        if (shard == 3 && token == 16) break;
    }
    loader_close(l);
    CHECK(t, s.good > 0, "the bad window is the first: choose another seed");
    format(expected, sizeof expected,
        "served %d\nerror: %s: byte 1058: token 17 is 5000; expected less than the vocabulary "
        "size, 5000",
        s.good, path);
    for (int prefetch = 0; prefetch < 2; prefetch++) {
        s.options.prefetch = prefetch;
        EXPECT_EXIT(t, EXIT_INPUT, expected, serve_until_bad, &s);
    }
}
