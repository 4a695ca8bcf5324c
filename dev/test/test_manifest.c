/* test_manifest.c: manifests of shards (dataloader/FORMAT.md) as text: what is written in one
 * is read, and whatever a file holds ends in values or in a message with its name. What is promised
 * of a manifest together with its shards is in check_tokenize.py. Needs no backend. */
#include "dev/test/data_cases.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dataloader/manifest.h"

static const char manifest_text[] =
    "{\n"
    "\"format\": \"laser.c data\", \"version\": 1,\n"
    "\"tokenizer\": {\"file\": \"tokenizer.model\", \"hash\": \"0123456789abcdef\", \"sha256\":\n"
    "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\", \"vocab\": 32000,\n"
    "\"eos\": 1},\n"
    "\"options\": {\"separator\": \"eos\", \"split\": null, \"val_docs\": 2, \"val_fraction\": 0,\n"
    "\"shard_tokens\": 1000},\n"
    "\"inputs\": [{\"name\": \"a.json.gz\", \"size\": 12345, \"sha256\":\n"
    "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\", \"documents\": 9,\n"
    "\"empty\": 3, \"bad_lines\": 4}],\n"
    "\"train\": {\"documents\": 7, \"tokens\": 1500, \"bytes\": 6000, \"unigram_entropy_nats\": "
    "5.5,\n"
    "\"shards\": [\n"
    "{\"file\": \"x_train_000000.bin\", \"tokens\": 1000, \"documents\": 4, \"crc32c\": "
    "\"0000beef\"},\n"
    "{\"file\": \"x_train_000001.bin\", \"tokens\": 500, \"documents\": 3, \"crc32c\": "
    "\"ffffffff\"}]},\n"
    "\"val\": {\"documents\": 2, \"tokens\": 300, \"bytes\": 1200, \"unigram_entropy_nats\": "
    "5.25,\n"
    "\"shards\": [\n"
    "{\"file\": \"x_val_000000.bin\", \"tokens\": 300, \"documents\": 2, \"crc32c\": "
    "\"12345678\"}]}\n"
    "}\n";

static void write_text(const char *path, const char *text, size_t size) {
    FILE *f = xfopen(path, "wb");
    REQUIRE(fwrite(text, 1, size, f) == size, "%s", path);
    fclose(f);
}

static void temp_manifest(Test *t, char *path /* (DATA_PATH) */) {
    char dir[DATA_PATH - 64];
    test_temp_dir(t, dir, sizeof dir);
    format(path, DATA_PATH, "%s/x.json", dir);
    write_text(path, manifest_text, strlen(manifest_text));
}

void test_manifest_read(Test *t) {
    char path[DATA_PATH], beside[DATA_PATH];
    temp_manifest(t, path);
    Manifest m;
    manifest_open(&m, path, NULL);
    CHECK_STR(t, m.tokenizer.file, "tokenizer.model");
    CHECK_INT(t, m.tokenizer.hash, 0x0123456789abcdef);
    CHECK_INT(t, m.tokenizer.vocab, 32000);
    CHECK_INT(t, m.tokenizer.eos, 1);
    CHECK_INT(t, m.separator, true);
    CHECK_INT(t, m.only_split, -1);
    CHECK_INT(t, m.val_docs, 2);
    CHECK_INT(t, m.shard_tokens, 1000);
    CHECK_INT(t, m.input_count, 1);
    CHECK_STR(t, m.inputs[0].name, "a.json.gz");
    CHECK_INT(t, m.inputs[0].bytes, 12345);
    CHECK_INT(t, m.inputs[0].empty, 3);
    CHECK_INT(t, m.inputs[0].bad_lines, 4);
    const ManifestSplit *train = &m.splits[MANIFEST_TRAIN], *val = &m.splits[MANIFEST_VAL];
    CHECK_INT(t, train->count, 2);
    CHECK_INT(t, train->bytes, 6000);
    CHECK_NEAR(t, train->entropy, 5.5, 0);
    CHECK_STR(t, train->shards[1].file, "x_train_000001.bin");
    CHECK_INT(t, train->shards[0].crc, 0xbeef);
    CHECK_INT(t, val->shards[0].tokens, 300);
    CHECK_INT(t, val->shards[0].documents, 2);
    manifest_beside(&m, "other", beside, sizeof beside);
    CHECK_INT(t, strlen(beside), strlen(path) - 1); /* x.json, other */
    manifest_close(&m);
}

/* Only by its first members, so that gigabytes of other JSON are not read. */
void test_manifest_is(Test *t) {
    char path[DATA_PATH];
    temp_manifest(t, path);
    CHECK(t, manifest_is(path), "a manifest is not known");
    write_text(path, manifest_text, 100);
    CHECK(t, manifest_is(path), "a torn manifest is taken for something else");
    write_text(path, "{\"format\": \"laser.c data, unfinished\"}", 38);
    CHECK(t, !manifest_is(path), "a run's progress is taken for a manifest");
    write_text(path, "", 0);
    CHECK(t, !manifest_is(path), "an empty file is taken for one");
    REQUIRE(unlink(path) == 0 && mkfifo(path, 0600) == 0, "%s", path);
    CHECK(t, !manifest_is(path), "a pipe is taken for one, or waited for");
    REQUIRE(unlink(path) == 0, "%s", path);
    CHECK(t, !manifest_is(path), "a file that is not there is taken for one");
}

static void check_layout(void *path) {
    Manifest m;
    manifest_open(&m, path, NULL);
    manifest_check_layout(&m);
    manifest_close(&m);
}

/* Whoever trains takes shards of any name and length; what c4_tokenize writes is laid out so. */
void test_manifest_layout(Test *t) {
    static const struct {
        const char *from, *to, *says; /* of one length */
    } faults[] = {
        {"x_val_000000", "x_val_000001", "val.shards[0].file is 'x_val_000001.bin'; expected"},
        {"\"shard_tokens\": 1000", "\"shard_tokens\": 1001", "train.shards[0].tokens is 1000"},
        {"\"shard_tokens\": 1000", "\"shard_tokens\":  999", "train.shards[0].tokens is 1000"},
        {"\"val_docs\": 2", "\"val_docs\": 1", "val.documents is 2; options make it 1"},
        {"\"split\": null, \"val_docs\": 2", "\"split\": \"val\",\"val_docs\": 0",
            "val.documents is 2; options make it 9"},
    };
    char path[DATA_PATH], text[sizeof manifest_text];
    temp_manifest(t, path);
    EXPECT_EXIT(t, 0, NULL, check_layout, path);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        memcpy(text, manifest_text, sizeof text);
        char *at = strstr(text, faults[i].from);
        const size_t length = strlen(faults[i].from);
        REQUIRE(at && strlen(faults[i].to) == length, "%s", faults[i].from);
        memcpy(at, faults[i].to, length);
        write_text(path, text, strlen(text));
        EXPECT_EXIT(t, EXIT_INPUT, faults[i].says, check_layout, path);
        Manifest m;
        manifest_open(&m, path, NULL);
        manifest_close(&m);
    }
}

void test_manifest_hash(Test *t) { /* the values that FNV's authors publish */
    CHECK_INT(t, manifest_hash("", 0), (int64_t)0xcbf29ce484222325);
    CHECK_INT(t, manifest_hash("a", 1), (int64_t)0xaf63dc4c8601ec8c);
    CHECK_INT(t, manifest_hash("foobar", 6), (int64_t)0x85944171f73967e8);
}

/* How a process ends that opens the file: exit code, or minus the signal. */
static int end_of_open(const char *path) {
    fflush(NULL);
    const pid_t child = fork();
    REQUIRE(child >= 0, "fork");
    if (child == 0) {
        REQUIRE(dup2(open("/dev/null", O_WRONLY), STDERR_FILENO) >= 0, "dup2");
        Manifest m;
        manifest_open(&m, path, NULL);
        manifest_close(&m);
        _exit(0);
    }
    int status;
    REQUIRE(waitpid(child, &status, 0) == child, "waitpid");
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

void test_manifest_torn(Test *t) {
    char path[DATA_PATH];
    temp_manifest(t, path);
    for (size_t size = 0; size < strlen(manifest_text) - 1; size += 7) {
        write_text(path, manifest_text, size);
        CHECK(t, end_of_open(path) == EXIT_INPUT, "the first %zu bytes of a manifest", size);
    }
}

void test_manifest_changed(Test *t) {
    static const char bytes[] = {0, '"', '9', '-', '[', '}', (char)0xff};
    char path[DATA_PATH], text[sizeof manifest_text];
    const size_t size = strlen(manifest_text);
    temp_manifest(t, path);
    for (size_t at = 0; at < size; at += 3) {
        memcpy(text, manifest_text, sizeof text);
        text[at] = bytes[at / 3 % sizeof bytes];
        write_text(path, text, size);
        const int end = end_of_open(path);
        CHECK(
            t, end == 0 || end == EXIT_INPUT, "byte %zu made %d: ended with %d", at, text[at], end);
    }
}
