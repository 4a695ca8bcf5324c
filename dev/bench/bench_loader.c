/* bench_loader.c: how fast the loader serves tokens out of the page cache, and how fast a run
 * begins that has very many files. Writes its shards itself, in a directory that it removes: some
 * large ones, and as many small ones as the largest corpora have. Beside the loader stands the same
 * reading from mapped files, which is what it could be at best without being safe.
 *
 *   bench_loader [SECONDS of each measurement, 0.5]
 * Exit code 0; goals are printed with what was reached, and judged by who reads them. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "dataloader/loader.h"
#include "dataloader/manifest_totals.h"
#include "dev/bench/op_times.h" /* median */
#include "laser/base.h"

enum { T = 1024, VOCAB = 32000, ROUNDS = 5 };
enum { LARGE = 32, LARGE_TOKENS = 2 << 20, SMALL = 10000, SMALL_TOKENS = T + 1, MANIFESTS = 1024 };
enum { PATH_BYTES = 512 };
#define GOAL_TOKENS 20e6 /* a second */
#define GOAL_OPEN 1.0    /* seconds */

typedef struct Rate {
    double tokens_s, tokens_cpu_s; /* by the clock; by the time of all threads */
} Rate;

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- files ---- */

/* A plain shard, without the writer's fsync: ten thousand of them should not take minutes. */
static void write_shard(const char *path, int32_t tokens, uint32_t seed) {
    enum { BLOCK = 1 << 15 };
    int32_t header[SHARD_HEADER_WORDS] = {SHARD_MAGIC_U16, SHARD_VERSION_U16, tokens};
    uint16_t block[BLOCK];
    FILE *f = xfopen(path, "wb");
    bool good = fwrite(header, sizeof header, 1, f) == 1;
    for (int32_t at = 0; at < tokens; at += BLOCK) {
        const size_t n = (size_t)(tokens - at < BLOCK ? tokens - at : BLOCK);
        for (size_t i = 0; i < n; i++) {
            seed = seed * 1664525 + 1013904223;
            block[i] = (uint16_t)((seed >> 16) % VOCAB);
        }
        good = good && fwrite(block, sizeof *block, n, f) == n;
    }
    if (fclose(f) != 0 || !good) die(EXIT_IO, "%s: cannot be written: %s.", path, strerror(errno));
}

static void write_manifest(const char *dir, int number, int first, int count) {
    char path[PATH_BYTES];
    format(path, sizeof path, "%s/s_%05d.json", dir, number);
    FILE *f = xfopen(path, "w");
    fprintf(f,
        "{\"format\": \"laser.c data\", \"version\": 1, \"tokenizer\": {\"file\": "
        "\"tokenizer.model\", \"hash\": \"0123456789abcdef\", \"sha256\": \"%064d\", \"vocab\": "
        "%d, "
        "\"eos\": 1}, \"options\": {\"separator\": \"eos\", \"split\": \"train\", \"val_docs\": 0, "
        "\"val_fraction\": 0, \"shard_tokens\": %d}, \"inputs\": [{\"name\": "
        "\"c4-train.%05d-of-01024.json.gz\", \"size\": 1, \"sha256\": \"%064d\", \"documents\": "
        "%d, "
        "\"empty\": 0, \"bad_lines\": 0}], \"val\": {\"documents\": 0, \"tokens\": 0, \"bytes\": "
        "0, "
        "\"unigram_entropy_nats\": 0, \"shards\": []}, \"train\": {\"documents\": %d, \"tokens\": "
        "%d, "
        "\"bytes\": %d, \"unigram_entropy_nats\": 7.1, \"shards\": [",
        0, VOCAB, SMALL_TOKENS, number, 0, count, count, count * SMALL_TOKENS,
        4 * count * SMALL_TOKENS);
    for (int i = 0; i < count; i++)
        fprintf(f,
            "%s{\"file\": \"s_train_%06d.bin\", \"tokens\": %d, \"documents\": 1, \"crc32c\": "
            "\"00000000\"}",
            i ? ", " : "", first + i, SMALL_TOKENS);
    fprintf(f, "]}}\n");
    if (fclose(f) != 0) die(EXIT_IO, "%s: cannot be written: %s.", path, strerror(errno));
}

static void write_files(const char *dir) {
    char path[PATH_BYTES];
    for (int i = 0; i < LARGE; i++) {
        format(path, sizeof path, "%s/l_train_%06d.bin", dir, i);
        write_shard(path, LARGE_TOKENS, (uint32_t)i);
    }
    for (int i = 0; i < SMALL; i++) {
        format(path, sizeof path, "%s/s_train_%06d.bin", dir, i);
        write_shard(path, SMALL_TOKENS, (uint32_t)i);
    }
    for (int i = 0; i < MANIFESTS; i++) {
        const int first = (int)((int64_t)SMALL * i / MANIFESTS);
        write_manifest(dir, i, first, (int)((int64_t)SMALL * (i + 1) / MANIFESTS) - first);
    }
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *position) {
    (void)info, (void)type, (void)position;
    return remove(path);
}

/* ---- serving ---- */

static Loader *open_loader(const char *dir, const char *names, int batch, bool prefetch) {
    char pattern[PATH_BYTES];
    format(pattern, sizeof pattern, "%s/%s", dir, names);
    const LoaderOptions o = {.pattern = pattern,
        .seq_len = T,
        .batch = batch,
        .step_sequences = batch,
        .world = 1,
        .seed = 1,
        .shuffle = true,
        .prefetch = prefetch,
        .vocab = VOCAB};
    return loader_open(&o);
}

static Rate rate_of(int64_t tokens, double begin, double cpu_begin) {
    return (Rate){
        (double)tokens / (now_seconds() - begin), (double)tokens / (cpu_seconds() - cpu_begin)};
}

static Rate serve(Loader *l, int batch, int32_t *inputs, int32_t *targets, double seconds) {
    const double begin = now_seconds(), cpu = cpu_seconds();
    int64_t tokens = 0;
    do {
        for (int i = 0; i < 64; i += batch) {
            loader_next(l, inputs, targets);
            tokens += (int64_t)batch * T;
        }
    } while (now_seconds() - begin < seconds);
    return rate_of(tokens, begin, cpu);
}

/* The same windows in the same order out of mappings, copied as the loader copies. */
typedef struct Mapped {
    const uint16_t *tokens[LARGE];
    size_t bytes;
} Mapped;

static Mapped map_files(const char *dir) {
    Mapped m = {.bytes = SHARD_HEADER_BYTES + 2 * (size_t)LARGE_TOKENS};
    char path[PATH_BYTES];
    for (int i = 0; i < LARGE; i++) {
        format(path, sizeof path, "%s/l_train_%06d.bin", dir, i);
        const int fd = open(path, O_RDONLY | O_CLOEXEC);
        const void *at = mmap(NULL, m.bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (fd < 0 || at == MAP_FAILED) die(EXIT_IO, "%s: %s", path, strerror(errno));
        close(fd);
        m.tokens[i] = (const uint16_t *)at + SHARD_HEADER_BYTES / 2;
    }
    return m;
}

static Rate serve_mapped(const Mapped *m, const Loader *order, int32_t *restrict inputs,
    int32_t *restrict targets, double seconds) {
    const double begin = now_seconds(), cpu = cpu_seconds();
    int64_t g = 0;
    do {
        for (int i = 0; i < 64; i++) {
            int shard;
            int64_t token;
            loader_locate(order, g++, &shard, &token);
            const uint16_t *from = m->tokens[shard] + token;
            for (int t = 0; t < T; t++) inputs[t] = from[t];
            for (int t = 0; t < T; t++) targets[t] = from[t + 1];
        }
    } while (now_seconds() - begin < seconds);
    return rate_of(g * T, begin, cpu);
}

/* Returns the rate by the time of one core. */
static double print_rates(const char *name, const Rate *rates /* (ROUNDS) */) {
    double clock[ROUNDS], core[ROUNDS];
    for (int r = 0; r < ROUNDS; r++) {
        clock[r] = rates[r].tokens_s;
        core[r] = rates[r].tokens_cpu_s;
    }
    const double median_core = median(core, ROUNDS);
    printf("  %-32s %10.1f %24.1f\n", name, median(clock, ROUNDS) / 1e6, median_core / 1e6);
    return median_core;
}

static void bench_rates(const char *dir, double seconds) {
    static const int batches[] = {1, 8, 64};
    enum { BATCHES = sizeof batches / sizeof *batches, MOST = 64 };
    int32_t *inputs = xcalloc((size_t)MOST * T, sizeof *inputs);
    int32_t *targets = xcalloc((size_t)MOST * T, sizeof *targets);
    const Mapped mapped = map_files(dir);
    Loader *order = open_loader(dir, "l_train_*.bin", 1, false);
    Rate rates[ROUNDS];
    double slowest = INFINITY;
    printf("M tokens/s, T %d, shuffled, %d shards of %d tokens; medians of %d\n", T, LARGE,
        LARGE_TOKENS, ROUNDS);
    printf("  %-32s %10s %24s\n", "", "by a clock", "by the time of one core");
    for (int r = 0; r < ROUNDS; r++)
        rates[r] = serve_mapped(&mapped, order, inputs, targets, seconds / ROUNDS);
    print_rates("mapped files, nothing checked", rates);
    for (int i = 0; i < BATCHES; i++)
        for (int prefetch = 0; prefetch < 2; prefetch++) {
            char name[64];
            Loader *l = open_loader(dir, "l_train_*.bin", batches[i], prefetch);
            for (int r = 0; r < ROUNDS; r++)
                rates[r] = serve(l, batches[i], inputs, targets, seconds / ROUNDS);
            loader_close(l);
            format(name, sizeof name, "B %d%s", batches[i], prefetch ? ", prefetching" : "");
            slowest = fmin(slowest, print_rates(name, rates));
        }
    printf("goal: %.0f M tokens/s on one core; reached: %.1f at worst\n", GOAL_TOKENS / 1e6,
        slowest / 1e6);
    loader_close(order);
    for (int i = 0; i < LARGE; i++)
        munmap((char *)(uintptr_t)mapped.tokens[i] - SHARD_HEADER_BYTES, mapped.bytes);
    free(inputs);
    free(targets);
}

/* ---- starting ---- */

static void bench_start(const char *dir) {
    double opening[ROUNDS], reading[ROUNDS], rate[ROUNDS], core[ROUNDS];
    int32_t inputs[T], targets[T];
    for (int r = 0; r < ROUNDS; r++) {
        ManifestTotals m;
        const double begin = now_seconds(), cpu = cpu_seconds();
        Loader *l = open_loader(dir, "s_train_*.bin", 1, false);
        const double opened = now_seconds();
        manifest_totals_read(&m, l);
        const double end = now_seconds();
        core[r] = cpu_seconds() - cpu;
        REQUIRE(m.manifests == MANIFESTS && m.shards == SMALL, "%d, %d", m.manifests, m.shards);
        opening[r] = opened - begin;
        reading[r] = end - opened;
        for (int i = 0; i < SMALL; i++) loader_next(l, inputs, targets);
        rate[r] = (double)SMALL * T / (now_seconds() - end);
        loader_close(l);
    }
    const double a = median(opening, ROUNDS), b = median(reading, ROUNDS);
    printf("%d shards of one window and %d manifests; medians of %d\n", SMALL, MANIFESTS, ROUNDS);
    printf("  opening the shards   %8.3f s\n  reading the manifests%8.3f s\n", a, b);
    printf(
        "  an epoch, each window in another file: %.1f M tokens/s\n", median(rate, ROUNDS) / 1e6);
    printf("goal: %.1f s for both; reached: %.3f by a clock, %.3f of one core\n", GOAL_OPEN, a + b,
        median(core, ROUNDS));
}

int main(int argc, char **argv) {
    char dir[PATH_BYTES - 64];
    const char *base = getenv("TMPDIR");
    const double seconds = argc > 1 ? strtod(argv[1], NULL) : 0.5;
    if (argc > 2 || seconds <= 0) die(EXIT_USAGE, "usage: bench_loader [SECONDS]");
    format(dir, sizeof dir, "%s/bench_loader.XXXXXX", base && base[0] ? base : "/tmp");
    if (!mkdtemp(dir)) die(EXIT_IO, "cannot make a directory like %s: %s", dir, strerror(errno));
    write_files(dir);
    bench_rates(dir, seconds);
    bench_start(dir);
    nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}
