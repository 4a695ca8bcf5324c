/* test_encode.c: the prompt's encoder gives the ids of the sentencepiece library, which wrote the
 * fixtures (dev/ref/encode_ref.py), and refuses models that it cannot follow. Needs no backend. */
#include "dev/test/test.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "dataloader/encode.h"

#define MODEL "dev/ref/fixtures/encode.model"

static size_t hex_bytes(const char *hex, char *bytes) {
    const size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        const char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};
        bytes[i] = (char)strtol(pair, NULL, 16);
    }
    return n;
}

/* Texts whose ids differ from the library's. plant: the last character is left out. */
static int count_differences(const Encoder *e, const cJSON *cases, bool plant) {
    int different = 0;
    const cJSON *c;
    cJSON_ArrayForEach(c, cases) {
        const char *hex = cJSON_GetObjectItem(c, "text_hex")->valuestring;
        const cJSON *want = cJSON_GetObjectItem(c, "ids");
        char *text = xcalloc(strlen(hex) / 2 + 1, 1);
        const size_t size = hex_bytes(hex, text);
        int32_t *ids;
        const int n = encoder_encode(e, text, plant && size ? size - 1 : size, &ids);
        bool same = n == cJSON_GetArraySize(want);
        int i = 0;
        const cJSON *id;
        cJSON_ArrayForEach(id, want) {
            same = same && ids[i] == id->valueint;
            i++;
        }
        different += !same;
        free(ids);
        free(text);
    }
    return different;
}

static void test_same_ids(Test *t) {
    size_t size;
    char *text = file_read_all("dev/ref/fixtures/encode.json", &size);
    cJSON *cases = cJSON_Parse(text);
    Encoder *e = encoder_open(MODEL);
    CHECK_INT(t, count_differences(e, cases, false), 0);
    CHECK(t, count_differences(e, cases, true) > 10, "a changed text gives %s", "the same ids");
    encoder_close(e);
    cJSON_Delete(cases);
    free(text);
}

static void open_path(void *path) {
    encoder_close(encoder_open(path));
}

static void expect_refused(Test *t, const char *data, size_t size, const char *says) {
    char dir[256], path[512];
    test_temp_dir(t, dir, sizeof dir);
    format(path, sizeof path, "%s/tokenizer.model", dir);
    file_write_atomic(path, data, size);
    EXPECT_EXIT(t, EXIT_INPUT, says, open_path, path);
}

static void test_refuses(Test *t) {
    size_t size;
    char *model = file_read_all(MODEL, &size);
    expect_refused(t, model, size - 3, "torn");
    expect_refused(t, model, 100, "torn");
    expect_refused(t, "", 0, "no pieces");
    /* appended fields replace those before: model_type 2 (bpe); add_dummy_prefix 1 */
    char *longer = xcalloc(size + 4, 1);
    memcpy(longer, model, size);
    memcpy(longer + size, "\x12\x02\x18\x02", 4);
    expect_refused(t, longer, size + 4, "no unigram model");
    memcpy(longer + size, "\x1a\x02\x18\x01", 4);
    expect_refused(t, longer, size + 4, "normalises");
    free(longer);
    free(model);
}

static const TestCase cases[] = {
    {"encode: the ids are those of the sentencepiece library", test_same_ids},
    {"encode: a model that cannot be followed is refused", test_refuses},
};

const TestCase *test_encode(int *count) {
    return TEST_TABLE(cases, count);
}
