/* test_data.c: shards and vocabulary files: what is written comes back, also to and from code that
 * knows only llm.c's layout, and a file that is wrong in any field ends in a message with its name
 * and byte. Holds the table of the group; the loader's cases are in test_loader.c, those of
 * manifests in test_manifest*.c. Needs no backend. */
#include "dev/test/data_cases.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dataloader/shard.h"
#include "dataloader/vocab.h"

enum { MAGIC_U16 = 20240520, MAGIC_U32 = 20240801, HEADER = 1024 };

/* ---- the other side: a few lines that follow llm.c ------------------------------------------- */

void plain_write(const char *path, const int32_t *tokens, int count, int token_bytes) {
    int32_t header[256] = {0};
    header[0] = token_bytes == 2 ? MAGIC_U16 : MAGIC_U32;
    header[1] = token_bytes == 2 ? 1 : 7;
    header[2] = count;
    FILE *f = xfopen(path, "wb");
    fwrite(header, sizeof header, 1, f);
    for (int i = 0; i < count; i++) fwrite(&tokens[i], (size_t)token_bytes, 1, f);
    fclose(f);
}

/* Tokens read, or -1 where llm.c would refuse the file. */
static int plain_read(const char *path, int token_bytes, int32_t *tokens, int capacity) {
    int32_t header[256];
    FILE *f = xfopen(path, "rb");
    const size_t got = fread(header, 4, 256, f);
    const int magic = token_bytes == 2 ? MAGIC_U16 : MAGIC_U32;
    const int version = token_bytes == 2 ? 1 : 7;
    int count = -1;
    if (got == 256 && header[0] == magic && header[1] == version && header[2] <= capacity &&
        file_size(path) == HEADER + (int64_t)header[2] * token_bytes) {
        count = header[2];
        memset(tokens, 0, (size_t)count * sizeof *tokens);
        for (int i = 0; i < count; i++)
            if (fread(&tokens[i], (size_t)token_bytes, 1, f) != 1) count = -1;
    }
    fclose(f);
    return count;
}

static int32_t token_value(int i, int32_t vocab) {
    return (int32_t)(((int64_t)i * 7919 + i / 13) % vocab);
}

/* ---- round trips ----------------------------------------------------------------------------- */

enum { COUNT = 150001 }; /* more than the writer's buffer, and odd */

static void write_shard(const char *path, int32_t vocab, int count) {
    const ShardInfo info = {
        .vocab = vocab, .eos = vocab - 1, .separator = 1, .tokenizer_hash = 0x0123456789abcdef};
    ShardWriter *w = shard_writer_open(path, &info);
    for (int i = 0; i < count; i++) {
        const int32_t id = token_value(i, vocab);
        shard_writer_put(w, &id, 1);
        if (i % 1000 == 999) shard_writer_end_document(w);
    }
    shard_writer_close(w);
}

static void check_round_trip(Test *t, int32_t vocab, int token_bytes) {
    char path[DATA_PATH], dir[DATA_PATH - 64];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/a_000000.bin", dir);
    write_shard(path, vocab, COUNT);

    Shard s;
    shard_open(&s, path);
    CHECK_INT(t, s.info.tokens, COUNT);
    CHECK_INT(t, s.info.token_bytes, token_bytes);
    CHECK_INT(t, s.info.extended, true);
    CHECK_INT(t, s.info.vocab, vocab);
    CHECK_INT(t, s.info.eos, vocab - 1);
    CHECK_INT(t, s.info.documents, COUNT / 1000);
    CHECK_INT(t, s.info.separator, 1);
    CHECK_INT(t, s.info.tokenizer_hash, 0x0123456789abcdef);
    int wrong = 0;
    for (int i = 0; i < COUNT; i++) wrong += shard_token(&s, i) != token_value(i, vocab);
    CHECK_INT(t, wrong, 0);
    shard_verify(&s, 0);
    shard_close(&s);

    int32_t *tokens = xcalloc(COUNT, sizeof *tokens);
    CHECK_INT(t, plain_read(path, token_bytes, tokens, COUNT), COUNT);
    for (int i = 0; i < COUNT; i++) wrong += tokens[i] != token_value(i, vocab);
    CHECK_INT(t, wrong, 0);
    free(tokens);
}

static void test_shard_round_trip(Test *t) {
    check_round_trip(t, 1, 2);
    check_round_trip(t, 32000, 2);
    check_round_trip(t, 65536, 2);
    check_round_trip(t, 65537, 4);
    check_round_trip(t, INT32_MAX, 4);
}

static void test_shard_from_llmc(Test *t) {
    char path[DATA_PATH], dir[DATA_PATH - 64];
    int32_t tokens[1001];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/edu_fineweb_train_000001.bin", dir);
    for (int bytes = 2; bytes <= 4; bytes += 2) {
        const int32_t vocab = bytes == 2 ? 65536 : 128256;
        for (int i = 0; i < 1001; i++) tokens[i] = token_value(i, vocab);
        plain_write(path, tokens, 1001, bytes);
        Shard s;
        shard_open(&s, path);
        CHECK_INT(t, s.info.tokens, 1001);
        CHECK_INT(t, s.info.token_bytes, bytes);
        CHECK_INT(t, s.info.extended, false);
        CHECK_INT(t, s.info.vocab, 0);
        CHECK_INT(t, s.info.eos, -1);
        CHECK_INT(t, s.info.documents, -1);
        for (int i = 0; i < 1001; i++) CHECK_INT(t, shard_token(&s, i), tokens[i]);
        shard_verify(&s, 0);
        shard_close(&s);
    }
}

static void test_shard_atomic(Test *t) {
    char path[DATA_PATH], temporary[DATA_PATH + 8], dir[DATA_PATH - 64];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/a.bin", dir);
    format(temporary, sizeof temporary, "%s.tmp", path);
    ShardWriter *w = shard_writer_open(path, &(ShardInfo){.vocab = 10, .eos = -1});
    const int32_t ids[3] = {1, 2, 3};
    shard_writer_put(w, ids, 3);
    CHECK_INT(t, shard_writer_tokens(w), 3);
    CHECK_INT(t, file_size(path), -1);
    shard_writer_close(w);
    CHECK_INT(t, file_size(path), HEADER + 6);
    CHECK_INT(t, file_size(temporary), -1);
}

/* ---- malformed shards ------------------------------------------------------------------------ */

static void open_shard(void *path) {
    Shard s;
    shard_open(&s, path);
}

static void verify_shard(void *path) {
    Shard s;
    shard_open(&s, path);
    shard_verify(&s, 0);
}

/* A good file of 100 tokens in which one word is changed, then its length. */
typedef struct Fault {
    int word; /* -1: none */
    int32_t value;
    int64_t length;      /* -1: as it is */
    const char *message; /* after the path */
} Fault;

static void spoil(const char *path, const Fault *f, bool mend_checksum) {
    FILE *file = xfopen(path, "r+b");
    int32_t h[256];
    REQUIRE(fread(h, sizeof h, 1, file) == 1, "%s", path);
    if (f->word >= 0) h[f->word] = f->value;
    if (mend_checksum) {
        h[26] = 0;
        const uint32_t crc = crc32c(0, h, sizeof h);
        memcpy(h + 26, &crc, sizeof crc);
    }
    rewind(file);
    REQUIRE(fwrite(h, sizeof h, 1, file) == 1, "%s", path);
    fclose(file);
    if (f->length >= 0) REQUIRE(truncate(path, f->length) == 0, "%s", path);
}

static void expect_fault(Test *t, char *path, const char *message, void (*fn)(void *)) {
    char expected[2 * DATA_PATH];
    format(expected, sizeof expected, "%s: %s", path, message);
    EXPECT_EXIT(t, EXIT_INPUT, expected, fn, path);
}

static void test_shard_malformed(Test *t) {
    static const Fault faults[] = {
        {0, 1234, -1, "byte 0: first word is 1234 (not a token shard); expected 20240520"},
        {0, -1, -1, "byte 0: first word is 4294967295"},
        {0, (int32_t)__builtin_bswap32(MAGIC_U16), -1,
            "byte 0: first word is 2295870465 (a byte-swapped shard"},
        {0, (int32_t)__builtin_bswap32(MAGIC_U32), -1,
            "byte 0: first word is 2715366401 (a byte-swapped shard"},
        {0, 20240328, -1, "byte 0: first word is 20240328 (an llm.c tokenizer)"},
        {0, 0x00088b1f, -1, "byte 0: first word is 559903 (gzip data"},
        {1, 2, -1, "byte 4: version is 2; expected 1"},
        {0, MAGIC_U32, -1, "byte 4: version is 1; expected 7"},
        {2, 0, -1, "byte 8: token count is 0; expected 1 to 2147483647"},
        {2, -100, -1, "byte 8: token count is -100;"},
        {2, INT32_MAX, -1, "byte 1224: the file has 1224 bytes; its header (2147483647 tokens"},
        {2, 99, -1, "byte 1222: the file has 1224 bytes; its header (99 tokens of 2 bytes)"},
        {2, 101, -1, "byte 1224: the file has 1224 bytes; its header (101 tokens of 2 bytes)"},
        {-1, 0, 1223, "byte 1223: the file has 1223 bytes"},
        {-1, 0, 1225, "byte 1224: the file has 1225 bytes"},
        {-1, 0, 1024, "byte 1024: the file has 1024 bytes"},
        {-1, 0, 1023, "byte 1023: the file ends within the header"},
        {-1, 0, 0, "byte 0: the file ends within the header"},
    };
    char path[DATA_PATH], dir[DATA_PATH - 64];
    int32_t tokens[100] = {0};
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/bad.bin", dir);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        plain_write(path, tokens, 100, 2);
        spoil(path, &faults[i], false);
        expect_fault(t, path, faults[i].message, open_shard);
    }
}

static void test_shard_extension_malformed(Test *t) {
    static const Fault mended[] = {
        {17, 2, -1, "byte 68: extension version is 2; this program reads version 1"},
        {18, 0, -1, "byte 72: vocabulary size is 0"},
        {18, -7, -1, "byte 72: vocabulary size is -7"},
        {19, 500, -1, "byte 76: end-of-document id is 500; expected -1 (none) to 499"},
        {19, -2, -1, "byte 76: end-of-document id is -2"},
        {20, 101, -1, "byte 80: document count is 101"},
        {21, -2, -1, "byte 80: document count is -"},
        {22, 2, -1, "byte 88: separator is 2"},
    };
    static const Fault torn[] = {
        {18, 499, -1, "byte 104: header checksum is "},
        {23, 0, -1, "byte 104: header checksum is "},
        {200, 1, -1, "byte 104: header checksum is "},
    };
    char path[DATA_PATH], dir[DATA_PATH - 64];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/bad.bin", dir);
    for (size_t i = 0; i < sizeof mended / sizeof *mended; i++) {
        write_shard(path, 500, 100);
        spoil(path, &mended[i], true);
        expect_fault(t, path, mended[i].message, open_shard);
    }
    for (size_t i = 0; i < sizeof torn / sizeof *torn; i++) {
        write_shard(path, 500, 100);
        spoil(path, &torn[i], false);
        expect_fault(t, path, torn[i].message, open_shard);
    }
}

static void change_token(const char *path, int64_t index, uint16_t id) {
    FILE *f = xfopen(path, "r+b");
    fseeko(f, HEADER + 2 * index, SEEK_SET);
    fwrite(&id, sizeof id, 1, f);
    fclose(f);
}

static void test_shard_verify(Test *t) {
    char path[DATA_PATH], dir[DATA_PATH - 64];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/bad.bin", dir);
    write_shard(path, 500, COUNT);
    EXPECT_EXIT(t, 0, NULL, verify_shard, path);
    change_token(path, COUNT - 1, 500);
    expect_fault(t, path, "byte 301024: token 150000 is 500; expected less than", verify_shard);
    write_shard(path, 500, COUNT);
    change_token(path, 77777, (uint16_t)(token_value(77777, 500) ^ 1)); /* one bit, a valid id */
    expect_fault(t, path, "byte 1024: checksum of the tokens is ", verify_shard);
}

static void read_while_cut(void *path) {
    Shard s;
    shard_open(&s, path);
    if (truncate(path, 8192) != 0) return;
    int64_t sum = 0;
    for (int64_t i = 0; i < s.info.tokens; i++) sum += shard_token(&s, i);
    if (sum == 0) puts("all zero");
}

static void test_shard_unreadable(Test *t) {
    char path[DATA_PATH], dir[DATA_PATH - 64];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/none.bin", dir);
    expect_fault(t, path, "cannot be opened: No such file or directory", open_shard);
    expect_fault(t, dir, "is a directory or a device", open_shard);
    format(path, sizeof path, "%s/fifo.bin", dir);
    REQUIRE(mkfifo(path, 0600) == 0, "%s", path);
    expect_fault(t, path, "is a directory or a device", open_shard);
    format(path, sizeof path, "%s/cut.bin", dir);
    write_shard(path, 500, COUNT);
    expect_fault(
        t, path, "byte 8192: cannot be read any more: the file was cut short", read_while_cut);
    write_shard(path, 500, 100);
    REQUIRE(chmod(path, 0) == 0, "%s", path);
    if (geteuid() != 0) expect_fault(t, path, "cannot be opened: Permission denied", open_shard);
}

/* ---- vocabulary files ------------------------------------------------------------------------ */

static const char vocab_pieces[] = "\1a\4 the\1\n\2\xc3\xa9\5</s>!\1\0";
enum { PIECES = 6, PIECE_BYTES = 20 };

static void write_vocab(const char *path, const uint32_t *words, size_t bytes) {
    uint32_t header[256] = {0};
    memcpy(header, words, 4 * sizeof *words);
    FILE *f = xfopen(path, "wb");
    fwrite(header, sizeof header, 1, f);
    fwrite(vocab_pieces, 1, bytes, f);
    fclose(f);
}

static void open_vocab(void *path) {
    Vocab v;
    vocab_open(&v, path);
}

static void test_vocab_round_trip(Test *t) {
    char path[DATA_PATH], dir[DATA_PATH - 64];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/tokenizer.bin", dir);
    write_vocab(path, (uint32_t[]){20240328, 2, PIECES, 4}, PIECE_BYTES);
    static const char *const pieces[PIECES] = {"a", " the", "\n", "\xc3\xa9", "</s>!", ""};
    Vocab v;
    vocab_open(&v, path);
    CHECK_INT(t, v.size, PIECES);
    CHECK_INT(t, v.eos, 4);
    for (int i = 0; i < PIECES; i++) {
        char piece[16] = {0};
        const size_t n = (size_t)(v.offset[i + 1] - v.offset[i]);
        CHECK_INT(t, n, i == 5 ? 1 : strlen(pieces[i])); /* the last piece is a NUL byte */
        memcpy(piece, v.bytes + v.offset[i], n);
        CHECK_STR(t, piece, pieces[i]);
    }
    vocab_close(&v);
    write_vocab(path, (uint32_t[]){20240328, 1, PIECES, 4}, PIECE_BYTES);
    vocab_open(&v, path);
    CHECK_INT(t, v.eos, -1); /* version 1 names none */
    vocab_close(&v);
}

static void test_vocab_malformed(Test *t) {
    static const struct {
        uint32_t words[4];
        size_t bytes;
        const char *message;
    } faults[] = {
        {{1, 2, PIECES, 4}, PIECE_BYTES, "byte 0: first word is 1; expected 20240328"},
        {{__builtin_bswap32(20240328), 2, PIECES, 4}, PIECE_BYTES, "byte 0: first word is"},
        {{20240328, 3, PIECES, 4}, PIECE_BYTES, "byte 4: version is 3"},
        {{20240328, 2, 0, 4}, PIECE_BYTES, "byte 8: number of pieces is 0"},
        {{20240328, 2, 0xffffffff, 4}, PIECE_BYTES, "byte 8: number of pieces is 4294967295"},
        {{20240328, 2, 1000000, 4}, PIECE_BYTES, "byte 8: number of pieces is 1000000"},
        {{20240328, 2, PIECES, PIECES}, PIECE_BYTES, "byte 12: end-of-document id is 6"},
        {{20240328, 2, PIECES, 4}, PIECE_BYTES - 1, "byte 1042: the file ends within piece 5 of 6"},
        {{20240328, 2, PIECES, 4}, PIECE_BYTES - 2, "byte 1042: the file ends within piece 5 of 6"},
        {{20240328, 2, PIECES, 4}, 9, "byte 1033: the file ends within piece 3 of 6"},
        {{20240328, 2, PIECES - 1, 4}, PIECE_BYTES, "byte 1042: 2 bytes follow the last of 5"},
    };
    char path[DATA_PATH], dir[DATA_PATH - 64];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/tokenizer.bin", dir);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        write_vocab(path, faults[i].words, faults[i].bytes);
        expect_fault(t, path, faults[i].message, open_vocab);
    }
    REQUIRE(truncate(path, 1000) == 0, "%s", path);
    expect_fault(t, path, "byte 1000: the file ends within the header", open_vocab);
}

const TestCase *test_data(int *count) {
    static const TestCase cases[] = {
        {"shard: what is written comes back, to us and to llm.c's layout", test_shard_round_trip},
        {"shard: files in llm.c's layout are read, 16 and 32 bits", test_shard_from_llmc},
        {"shard: the final name appears with the last byte", test_shard_atomic},
        {"shard: a malformed file is refused, file and byte named", test_shard_malformed},
        {"shard: a malformed extension is refused", test_shard_extension_malformed},
        {"shard: verify finds a wrong id and a flipped bit", test_shard_verify},
        {"shard: what cannot be read, or not any more, is a clear error", test_shard_unreadable},
        {"vocab: pieces come back byte for byte", test_vocab_round_trip},
        {"vocab: a malformed file is refused, file and byte named", test_vocab_malformed},
        {"manifest: what is written in it is read", test_manifest_read},
        {"manifest: known by how it begins", test_manifest_is},
        {"manifest: a layout that the options do not make is refused", test_manifest_layout},
        {"manifest: a tokenizer's hash is FNV-1a", test_manifest_hash},
        {"manifest: one that was cut short is refused", test_manifest_torn},
        {"manifest: a changed byte ends in values or a message", test_manifest_changed},
        {"loader: every window once an epoch, then another order", test_loader_epochs},
        {"loader: batch i is a function of the seed and i", test_loader_pure},
        {"loader: processes and micro-batch change nothing a step reads", test_loader_worlds},
        {"loader: seeking equals having run there", test_loader_seek},
        {"loader: prefetching changes nothing", test_loader_prefetch},
        {"loader: without shuffling, windows in the order of the files", test_loader_file_order},
        {"loader: the order is uniform", test_loader_uniform},
        {"loader: 32-bit and plain shards are served", test_loader_wide},
        {"loader: the fingerprint tells data sets apart", test_loader_fingerprint},
        {"loader: a data set that does not fit is refused", test_loader_refuses},
        {"loader: an id beyond the vocabulary ends the run where it is served",
            test_loader_bad_token},
        {"loader: 2000 shards open at once, and few of them are held open", test_files_many},
        {"loader: an order of 2^28 windows takes no memory", test_files_large},
        {"loader: a shard that vanishes, is cut or replaced under it is a clear error",
            test_files_change},
        {"manifest: sums of the shards that a pattern matched", test_manifest_totals},
        {"manifest: what is not one is passed over, and a copy counts once", test_manifest_others},
        {"manifest: shards of many directories, or of this one", test_manifest_directories},
        {"manifest: one that is torn or contradicts its shards is refused, both named",
            test_manifest_refuses},
        {"manifest: many of them are read at once", test_manifest_many},
    };
    return TEST_TABLE(cases, count);
}
