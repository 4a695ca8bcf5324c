/* test_manifest_totals.c: what is read of the manifests beside shards: sums of what a pattern
 * matched, files of others passed over, and a manifest that is damaged or contradicts its shards
 * refused. Needs no backend. */
#include "dev/test/data_cases.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dataloader/manifest_totals.h"
#include "dataloader/shard.h"

enum { VOCAB = 100, EOS = 1, TOKENS = 40, DOCUMENTS = 3 };
static const uint64_t HASH = 0x0123456789abcdef;

/* One shard of TOKENS + extra tokens and DOCUMENTS documents; writes its checksum to crc. */
static void write_shard(const char *path, int extra, uint32_t *crc) {
    const ShardInfo info = {.vocab = VOCAB, .eos = EOS, .separator = 1, .tokenizer_hash = HASH};
    ShardWriter *w = shard_writer_open(path, &info);
    for (int32_t i = 0; i < TOKENS + extra; i++) {
        const int32_t id = (i * 7 + extra) % VOCAB;
        shard_writer_put(w, &id, 1);
        if (i < DOCUMENTS) shard_writer_end_document(w);
    }
    shard_writer_close(w);
    Shard s;
    shard_open(&s, path);
    *crc = s.info.payload_crc;
    shard_close(&s);
}

typedef enum Kind { PLAIN, OURS } Kind; /* plain ones are not synced: many are written quickly */

/* One split of `shards` shards NAME_SPLIT_00000n.bin, and its part of the manifest. */
static void write_split(
    FILE *f, const char *dir, const char *name, const char *split, int shards, Kind kind) {
    const int32_t zeros[2 * TOKENS] = {0};
    char path[DATA_PATH];
    int tokens = 0;
    fprintf(f, ", \"%s\": {\"shards\": [", split);
    for (int i = 0; i < shards; i++) {
        uint32_t crc = 0;
        format(path, sizeof path, "%s/%s_%s_%06d.bin", dir, name, split, i);
        if (kind == OURS)
            write_shard(path, i, &crc);
        else
            plain_write(path, zeros, TOKENS + i, 2);
        tokens += TOKENS + i;
        fprintf(f,
            "%s{\"file\": \"%s_%s_%06d.bin\", \"tokens\": %d, \"documents\": %d, \"crc32c\": "
            "\"%08" PRIx32 "\"}",
            i ? ", " : "", name, split, i, TOKENS + i, DOCUMENTS, crc);
    }
    fprintf(f, "], \"documents\": %d, \"tokens\": %d, \"bytes\": %d, \"unigram_entropy_nats\": %s}",
        DOCUMENTS * shards, tokens, 4 * tokens, shards ? "2.5" : "0");
}

/* Shards and manifest of one data set, as c4_tokenize leaves them. */
static void write_set(const char *dir, const char *name, int train, int val, Kind kind) {
    char path[DATA_PATH];
    format(path, sizeof path, "%s/%s.json", dir, name);
    FILE *f = xfopen(path, "w");
    fprintf(f,
        "{\"format\": \"laser.c data\", \"version\": 1, \"tokenizer\": {\"file\": "
        "\"tokenizer.model\", \"hash\": \"%016" PRIx64
        "\", \"sha256\": \"%064d\", \"vocab\": %d, \"eos\": %d}, \"options\": {\"separator\": "
        "\"eos\", \"split\": null, \"val_docs\": %d, \"val_fraction\": 0, \"shard_tokens\": %d}, "
        "\"inputs\": [{\"name\": \"%s.gz\", \"size\": 9, \"sha256\": \"%064d\", \"documents\": %d, "
        "\"empty\": 0, \"bad_lines\": 2}]",
        HASH, 0, VOCAB, EOS, DOCUMENTS * val, TOKENS, name, 0, DOCUMENTS * (train + val));
    write_split(f, dir, name, "train", train, kind);
    write_split(f, dir, name, "val", val, kind);
    fprintf(f, "}\n");
    fclose(f);
}

static Loader *open_pattern(const char *pattern) {
    const LoaderOptions o = {.pattern = pattern,
        .seq_len = 8,
        .batch = 1,
        .step_sequences = 1,
        .world = 1,
        .vocab = VOCAB};
    return loader_open(&o);
}

static ManifestTotals read_of(const char *pattern) {
    ManifestTotals m;
    Loader *l = open_pattern(pattern);
    manifest_totals_read(&m, l);
    loader_close(l);
    return m;
}

static void write_file(const char *dir, const char *name, const char *text, size_t size) {
    char path[DATA_PATH];
    format(path, sizeof path, "%s/%s", dir, name);
    FILE *f = xfopen(path, "w");
    REQUIRE(fwrite(text, 1, size, f) == size, "%s", path);
    fclose(f);
}

void test_manifest_totals(Test *t) {
    char dir[DATA_PATH - 64], pattern[DATA_PATH], path[DATA_PATH];
    test_temp_dir(t, dir, sizeof dir);
    write_set(dir, "a", 3, 1, OURS); /* 40, 41, 42; 40 tokens */
    write_set(dir, "b", 2, 0, OURS); /* 40, 41 */
    format(pattern, sizeof pattern, "%s/*_train_*.bin", dir);
    ManifestTotals m = read_of(pattern);
    CHECK_INT(t, m.manifests, 2);
    CHECK_INT(t, m.shards, 5);
    CHECK_INT(t, m.tokens, 204);
    CHECK_INT(t, m.documents, 15);
    CHECK_NEAR(t, m.bytes, 4 * 204, 1e-9);
    CHECK_NEAR(t, m.entropy, 2.5, 1e-12);
    CHECK_INT(t, m.inputs, 2);
    CHECK_INT(t, m.bad_lines, 4);
    CHECK_INT(t, m.absent, 0);
    CHECK(t, m.tokenizer_hash == HASH && m.vocab == VOCAB && m.eos == EOS, "another tokenizer");
    CHECK_STR(t, m.tokenizer_file, "tokenizer.model");

    format(pattern, sizeof pattern, "%s/a_val_*.bin", dir);
    m = read_of(pattern);
    CHECK_INT(t, m.manifests, 1);
    CHECK_INT(t, m.tokens, 40);
    format(pattern, sizeof pattern, "%s/a_train_000002.bin", dir); /* a part: bytes by tokens */
    m = read_of(pattern);
    CHECK_INT(t, m.tokens, 42);
    CHECK_NEAR(t, m.bytes, 4 * 42, 1e-9);
    CHECK_INT(t, m.absent, 0); /* the others are there, and not asked for */

    format(path, sizeof path, "%s/a_train_000001.bin", dir);
    REQUIRE(unlink(path) == 0, "%s", path);
    format(pattern, sizeof pattern, "%s/*_train_*.bin", dir);
    m = read_of(pattern);
    CHECK_INT(t, m.tokens, 204 - 41);
    CHECK_INT(t, m.absent, 1);
    CHECK_STR(t, m.first_absent, "a_train_000001.bin");
}

static void copy_file(const char *from, const char *dir, const char *name) {
    size_t size;
    char *text = file_read_all(from, &size);
    write_file(dir, name, text, size);
    free(text);
}

void test_manifest_others(Test *t) {
    static const struct {
        const char *name, *text;
    } others[] = {{"empty.json", ""}, {"array.json", "[1, 2"}, {"torn.json", "{\"format\": \"las"},
        {"other.json", "{\"format\": \"laser.c data 2\", \"version\""},
        {"progress.json", "{\"format\": \"laser.c progress\"}"},
        {"lines.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n"},
        {"binary.json", "\x01\xff{\"format\": \"laser.c data\""},
        {"summary.json", "{\"train\": {\"shards\": 1}, \"val\": {\"shards\": 1}}"},
        {"ours.txt", "{\"format\": \"laser.c data\", "}};
    char dir[DATA_PATH - 64], other[DATA_PATH - 64], pattern[DATA_PATH], path[DATA_PATH];
    test_temp_dir(t, dir, sizeof dir);
    test_temp_dir(t, other, sizeof other);
    write_set(dir, "a", 2, 0, OURS);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        write_file(dir, others[i].name, others[i].text, strlen(others[i].text));
    format(path, sizeof path, "%s/directory.json", dir);
    make_dirs(path);
    format(path, sizeof path, "%s/dangling.json", dir);
    REQUIRE(symlink("nowhere", path) == 0, "%s", path);
    format(path, sizeof path, "%s/huge.json", dir); /* 1 TB of a hole is not read */
    write_file(dir, "huge.json", "{", 1);
    if (truncate(path, (int64_t)1 << 40) != 0) REQUIRE(unlink(path) == 0, "%s", path);
    format(pattern, sizeof pattern, "%s/*.bin", dir);
    ManifestTotals m = read_of(pattern);
    CHECK_INT(t, m.manifests, 1);
    CHECK_INT(t, m.tokens, 81);
    format(path, sizeof path, "%s/a.json", dir); /* a copy of one that agrees counts once */
    copy_file(path, dir, "b.json");
    m = read_of(pattern);
    CHECK_INT(t, m.manifests, 1);
    CHECK_INT(t, m.shards, 2);
    CHECK_INT(t, m.tokens, 81);
    CHECK_INT(t, m.inputs, 1);
    /* beside no shard, and beside those that no manifest names */
    plain_write(strcat(strcpy(path, other), "/x.bin"), (int32_t[9]){0}, 9, 2);
    m = read_of(path);
    CHECK_INT(t, m.manifests, 0);
    CHECK(t, isnan(m.entropy), "entropy %g of nothing", m.entropy);
}

/* Two directories, one pattern; and names without a directory. */
void test_manifest_directories(Test *t) {
    char dir[DATA_PATH - 128], sub[DATA_PATH - 64], pattern[DATA_PATH], home[DATA_PATH];
    test_temp_dir(t, dir, sizeof dir);
    for (int i = 0; i < 3; i++) {
        format(sub, sizeof sub, "%s/part%d", dir, i);
        make_dirs(sub);
        write_set(sub, "x", 1 + i, 0, OURS);
    }
    format(pattern, sizeof pattern, "%s/part*/x_train_*.bin", dir);
    ManifestTotals m = read_of(pattern);
    CHECK_INT(t, m.manifests, 3);
    CHECK_INT(t, m.shards, 6);
    CHECK_INT(t, m.tokens, 6 * 40 + 0 + 1 + 3);
    REQUIRE(getcwd(home, sizeof home) && chdir(sub) == 0, "%s", sub);
    m = read_of("x_train_*.bin");
    REQUIRE(chdir(home) == 0, "%s", home);
    CHECK_INT(t, m.shards, 3);
}

/* ---- refusals -----------------------------------------------------------------------------------
 */

static void read_manifests(void *pattern) {
    read_of(pattern);
}

/* Replaces the first `from` in DIR/a.json. */
static void change(const char *dir, const char *from, const char *to) {
    char path[DATA_PATH];
    format(path, sizeof path, "%s/a.json", dir);
    size_t size;
    char *text = file_read_all(path, &size), *at = strstr(text, from);
    REQUIRE(at, "no %s in %s", from, text);
    FILE *f = xfopen(path, "w");
    fprintf(f, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    fclose(f);
    free(text);
}

static const struct {
    const char *from, *to, *says;
    const char *from2, *to2; /* changed with it, so that the manifest agrees with itself */
} faults[] = {
    {"}\n", "", "is cut short or damaged", NULL, NULL},
    {"\"version\": 1", "\"version\": 2", "version is 2; this program reads version 1", NULL, NULL},
    {"\"version\": 1, ", "", "version is missing", NULL, NULL},
    {"\"vocab\": 100", "\"vocab\": \"x\"", "tokenizer.vocab is not a whole number", NULL, NULL},
    {"\"vocab\": 100", "\"vocab\": 101", "was written with tokenizer", NULL, NULL},
    {"\"eos\": 1}", "\"eos\": 2}", "was written with tokenizer", NULL, NULL},
    {"\"eos\": 1}", "\"eos\": 100}", "tokenizer.eos is not a whole number", NULL, NULL},
    {"\"hash\": \"0", "\"hash\": \"1", "was written with tokenizer", NULL, NULL},
    {"\"hash\": \"0", "\"hash\": \"", "expected 16 digits", NULL, NULL},
    {"\"tokens\": 41", "\"tokens\": 42", "has 42 tokens; its header says 41", "\"tokens\": 81",
        "\"tokens\": 82"},
    {"\"tokens\": 41", "\"tokens\": 41.5", "shards[1].tokens is not a whole number", NULL, NULL},
    {"\"tokens\": 41", "\"tokens\": 1e300", "shards[1].tokens is not a whole number", NULL, NULL},
    {"\"documents\": 3, \"crc", "\"documents\": 2, \"crc", "has 2 documents; its header says 3",
        "\"documents\": 3, \"crc", "\"documents\": 4, \"crc"},
    {"\"crc32c\": \"", "\"crc32c\": \"x", "expected 8 digits", NULL, NULL},
    {"\"tokens\": 81", "\"tokens\": 80", "train.tokens is 80; its shards have 81", NULL, NULL},
    {"\"documents\": 6, \"tokens\"", "\"documents\": 5, \"tokens\"", "its shards have 6", NULL,
        NULL},
    {"\"bytes\": 324", "\"bytes\": -1", "train.bytes is not a whole number", NULL, NULL},
    {"\"file\": \"a_train", "\"file\": \"../a_train", "expected a name without /", NULL, NULL},
    {"\"shards\": [", "\"shards\": 7, \"x\": [", "train.shards is not a list", NULL, NULL},
    {"\"inputs\": [{", "\"inputs\": [[], {", "inputs has an element 0 that is not an object", NULL,
        NULL},
    {"\"bad_lines\": 2", "\"x\": 2", "inputs[0].bad_lines is missing", NULL, NULL},
};

void test_manifest_refuses(Test *t) {
    char dir[DATA_PATH - 64], pattern[DATA_PATH], path[DATA_PATH], expected[2 * DATA_PATH];
    test_temp_dir(t, dir, sizeof dir);
    format(pattern, sizeof pattern, "%s/a_*.bin", dir);
    format(path, sizeof path, "error: %s/a.json: ", dir);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        write_set(dir, "a", 2, 0, OURS);
        EXPECT_EXIT(t, 0, NULL, read_manifests, pattern);
        change(dir, faults[i].from, faults[i].to);
        if (faults[i].from2) change(dir, faults[i].from2, faults[i].to2);
        EXPECT_EXIT(t, EXIT_INPUT, path, read_manifests, pattern);
        EXPECT_EXIT(t, EXIT_INPUT, faults[i].says, read_manifests, pattern);
        format(expected, sizeof expected, " %s/a_train_00000", dir); /* the shard, or one of them */
        EXPECT_EXIT(t, EXIT_INPUT, expected, read_manifests, pattern);
    }
    /* the same shard written anew: its manifest is of the one before */
    write_set(dir, "a", 2, 0, OURS);
    format(path, sizeof path, "%s/a_train_000001.bin", dir);
    ShardWriter *w =
        shard_writer_open(path, &(ShardInfo){.vocab = VOCAB, .eos = EOS, .tokenizer_hash = HASH});
    shard_writer_put(w, (int32_t[TOKENS + 1]){5}, TOKENS + 1);
    for (int i = 0; i < DOCUMENTS; i++) shard_writer_end_document(w);
    shard_writer_close(w);
    EXPECT_EXIT(t, EXIT_INPUT, "000001.bin has tokens with checksum", read_manifests, pattern);
    /* plain shards record no tokenizer: the manifests tell that there are two */
    write_set(dir, "a", 2, 0, PLAIN);
    write_set(dir, "b", 1, 0, PLAIN);
    change(dir, "\"hash\": \"0", "\"hash\": \"1");
    format(pattern, sizeof pattern, "%s/*_train_*.bin", dir);
    EXPECT_EXIT(t, EXIT_INPUT, "b.json: their shards were written with different tokenizers",
        read_manifests, pattern);
}

/* As many manifests as C4 has files: a start must not wait for them. */
void test_manifest_many(Test *t) {
    enum { SETS = 300 };
    char dir[DATA_PATH - 64], pattern[DATA_PATH], name[32];
    test_temp_dir(t, dir, sizeof dir);
    for (int i = 0; i < SETS; i++) {
        format(name, sizeof name, "c4_%05d", i);
        write_set(dir, name, 2, 0, PLAIN);
    }
    format(pattern, sizeof pattern, "%s/*_train_*.bin", dir);
    Loader *l = open_pattern(pattern);
    ManifestTotals m;
    const double begin = now_seconds();
    manifest_totals_read(&m, l);
    const double took = now_seconds() - begin;
    loader_close(l);
    CHECK_INT(t, m.manifests, SETS);
    CHECK_INT(t, m.tokens, SETS * 81);
    /* 0.01 s where nothing else runs; a machine may be a hundred times as busy or slow */
    CHECK(t, took < 2, "%d manifests took %.2f s", SETS, took);
}
