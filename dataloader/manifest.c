/* manifest.c: see manifest.h. What stands in a manifest twice (sums, sizes, names) is compared, so
 * that a changed byte is found where it can be. Knows nothing of what is in the shards. */
#include "dataloader/manifest.h"

#include "laser/base.h"

#include <cjson/cJSON.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FORMAT_NAME "laser.c data"
#define REMAKE "Copy it again with its shards, or write both again"
enum { FORMAT_VERSION = 1, BEGINNING_BYTES = 4096 };
#define LARGEST ((int64_t)1 << 53) /* whole numbers that JSON's doubles hold exactly */

/* ---- fields ---- */

/* An object of the file, and the way to it for messages: "train.shards[3]." */
typedef struct Node {
    const char *path, *beside; /* as in manifest_open */
    char where[96];
    const cJSON *json;
} Node;

static void bad(const Node *n, const char *field, const char *fmt, ...) PRINTF_LIKE(3, 4) NORETURN;
static void bad(const Node *n, const char *field, const char *fmt, ...) {
    char what[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    die(EXIT_INPUT, "%s: %s%s%s%s%s%s. " REMAKE ".", n->path, n->where, field, *field ? " " : "",
        what, n->beside ? "; it is read because it lies beside " : "", n->beside ? n->beside : "");
}

static const cJSON *get(const Node *n, const char *field) {
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(n->json, field);
    if (!value) bad(n, field, "is missing");
    return value;
}

static Node get_object(const Node *n, const char *field) {
    Node child = *n;
    child.json = get(n, field);
    if (!cJSON_IsObject(child.json)) bad(n, field, "is not an object");
    format(child.where, sizeof child.where, "%s%s.", n->where, field);
    return child;
}

/* Element i of the array; the caller has its length from get_array. */
static Node get_element(const Node *n, const char *field, int i, const cJSON *element) {
    Node child = *n;
    child.json = element;
    format(child.where, sizeof child.where, "%s%s[%d].", n->where, field, i);
    if (!cJSON_IsObject(element)) bad(n, field, "has an element %d that is not an object", i);
    return child;
}

static const cJSON *get_array(const Node *n, const char *field, int *count) {
    const cJSON *array = get(n, field);
    if (!cJSON_IsArray(array)) bad(n, field, "is not a list");
    *count = cJSON_GetArraySize(array);
    return array;
}

static int64_t get_count(const Node *n, const char *field, int64_t low, int64_t high) {
    const cJSON *value = get(n, field);
    const double x = cJSON_IsNumber(value) ? value->valuedouble : NAN;
    if (!(x >= (double)low && x <= (double)high) || x != floor(x))
        bad(n, field, "is not a whole number from %" PRId64 " to %" PRId64, low, high);
    return (int64_t)x;
}

static double get_number(const Node *n, const char *field, double low, double high) {
    const cJSON *value = get(n, field);
    const double x = cJSON_IsNumber(value) ? value->valuedouble : NAN;
    if (!(x >= low && x <= high)) bad(n, field, "is not a number from %g to %g", low, high);
    return x;
}

static const char *get_text(const Node *n, const char *field) {
    const cJSON *value = get(n, field);
    if (!cJSON_IsString(value)) bad(n, field, "is not a string");
    return value->valuestring;
}

/* A name within the manifest's own directory. */
static char *get_name(const Node *n, const char *field) {
    const char *name = get_text(n, field);
    if (!*name || strchr(name, '/') || strlen(name) >= MANIFEST_NAME)
        bad(n, field, "is '%s'; expected a name without /, of at most %d bytes", name,
            MANIFEST_NAME - 1);
    return xstrdup(name);
}

static const char *get_hex(const Node *n, const char *field, size_t digits) {
    const char *text = get_text(n, field);
    if (strlen(text) != digits || strspn(text, "0123456789abcdef") != digits)
        bad(n, field, "is '%s'; expected %zu digits 0-9a-f", text, digits);
    return text;
}

/* ---- parts ---- */

static void read_tokenizer(ManifestTokenizer *t, const Node *top) {
    const Node n = get_object(top, "tokenizer");
    t->file = get_name(&n, "file");
    t->hash = strtoull(get_hex(&n, "hash", 16), NULL, 16);
    format(t->sha256, sizeof t->sha256, "%s", get_hex(&n, "sha256", 64));
    t->vocab = (int32_t)get_count(&n, "vocab", 1, INT32_MAX);
    t->eos = (int32_t)get_count(&n, "eos", -1, t->vocab - 1);
}

static void read_options(Manifest *m, const Node *top) {
    const Node n = get_object(top, "options");
    const char *separator = get_text(&n, "separator");
    m->separator = strcmp(separator, "eos") == 0;
    if (!m->separator && strcmp(separator, "none") != 0)
        bad(&n, "separator", "is '%s'; expected eos or none", separator);
    m->only_split = -1;
    if (!cJSON_IsNull(get(&n, "split"))) {
        const char *split = get_text(&n, "split");
        for (int i = 0; i < MANIFEST_SPLITS; i++)
            if (strcmp(split, m->splits[i].name) == 0) m->only_split = i;
        if (m->only_split < 0) bad(&n, "split", "is '%s'; expected null, train or val", split);
    }
    m->val_docs = get_count(&n, "val_docs", 0, LARGEST);
    m->val_fraction = get_number(&n, "val_fraction", 0, 1);
    if ((m->only_split >= 0) + (m->val_docs > 0) + (m->val_fraction > 0) > 1)
        bad(&n, "split", "is one of two or three that contradict: split, val_docs, val_fraction");
    m->shard_tokens = get_count(&n, "shard_tokens", 1, INT32_MAX);
}

/* Returns the documents of all inputs. */
static int64_t read_inputs(Manifest *m, const Node *top) {
    const cJSON *array = get_array(top, "inputs", &m->input_count), *element;
    m->inputs = xcalloc((size_t)m->input_count, sizeof *m->inputs);
    int64_t documents = 0;
    int i = 0;
    cJSON_ArrayForEach(element, array) {
        const Node n = get_element(top, "inputs", i, element);
        ManifestInput *input = &m->inputs[i++];
        input->name = get_name(&n, "name");
        input->bytes = get_count(&n, "size", 0, LARGEST);
        format(input->sha256, sizeof input->sha256, "%s", get_hex(&n, "sha256", 64));
        input->documents = get_count(&n, "documents", 0, LARGEST);
        input->empty = get_count(&n, "empty", 0, LARGEST);
        input->bad_lines = get_count(&n, "bad_lines", 0, LARGEST);
        documents += input->documents;
    }
    return documents;
}

static void read_shard(ManifestShard *s, const Node *n) {
    s->file = get_name(n, "file");
    s->tokens = get_count(n, "tokens", 1, INT32_MAX);
    s->documents = get_count(n, "documents", 0, s->tokens);
    s->crc = (uint32_t)strtoull(get_hex(n, "crc32c", 8), NULL, 16);
}

static void read_split(Manifest *m, ManifestSplit *split, const Node *top) {
    const Node n = get_object(top, split->name);
    split->documents = get_count(&n, "documents", 0, LARGEST);
    split->tokens = get_count(&n, "tokens", 0, LARGEST);
    split->bytes = get_count(&n, "bytes", 0, LARGEST);
    split->entropy = get_number(&n, "unigram_entropy_nats", 0, log(m->tokenizer.vocab) + 1e-6);
    const cJSON *array = get_array(&n, "shards", &split->count), *element;
    split->shards = xcalloc((size_t)split->count, sizeof *split->shards);
    int64_t documents = 0, tokens = 0;
    int i = 0;
    cJSON_ArrayForEach(element, array) {
        const Node child = get_element(&n, "shards", i, element);
        ManifestShard *s = &split->shards[i++];
        read_shard(s, &child);
        documents += s->documents;
        tokens += s->tokens;
    }
    if (tokens != split->tokens)
        bad(&n, "tokens", "is %" PRId64 "; its shards have %" PRId64, split->tokens, tokens);
    if (documents != split->documents)
        bad(&n, "documents", "is %" PRId64 "; its shards have %" PRId64, split->documents,
            documents);
}

static void read_all(Manifest *m, const Node *top) {
    const int64_t version = get_count(top, "version", 1, INT32_MAX);
    if (version != FORMAT_VERSION)
        bad(top, "version",
            "is %" PRId64 "; this program reads version %d, a newer one may read it", version,
            FORMAT_VERSION);
    read_tokenizer(&m->tokenizer, top);
    read_options(m, top);
    const int64_t inputs = read_inputs(m, top);
    int64_t documents = 0;
    for (int i = 0; i < MANIFEST_SPLITS; i++) {
        read_split(m, &m->splits[i], top);
        documents += m->splits[i].documents;
    }
    if (documents != inputs)
        bad(top, "inputs", "have %" PRId64 " documents; train and val have %" PRId64, inputs,
            documents);
}

/* ---- the file ---- */

/* Whether it begins as a manifest does: "format" with our name among its first members. */
static bool is_ours(const char *text) {
    static const char blanks[] = " \t\r\n";
    if (text[strspn(text, blanks)] != '{') return false;
    const char *at = strstr(text, "\"format\"");
    if (!at) return false;
    at += strlen("\"format\"");
    at += strspn(at, blanks);
    if (*at++ != ':') return false;
    at += strspn(at, blanks);
    return strncmp(at, "\"" FORMAT_NAME "\"", strlen(FORMAT_NAME) + 2) == 0;
}

bool manifest_is(const char *path) {
    char beginning[BEGINNING_BYTES + 1];
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* no waiting at a pipe */
    const bool file = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    const ssize_t n = file ? read(fd, beginning, BEGINNING_BYTES) : -1;
    if (fd >= 0) close(fd);
    beginning[n > 0 ? n : 0] = '\0';
    return is_ours(beginning);
}

void manifest_open(Manifest *m, const char *path, const char *beside) {
    *m = (Manifest){.path = xstrdup(path)};
    m->splits[MANIFEST_TRAIN].name = "train";
    m->splits[MANIFEST_VAL].name = "val";
    size_t size;
    char *text = file_read_all(path, &size);
    const char *end = text;
    cJSON *json = cJSON_ParseWithOpts(text, &end, 1 /* nothing may follow */);
    const Node top = {.path = path, .beside = beside, .json = json};
    if (!json || strlen(text) != size)
        bad(&top, "", "is cut short or damaged: it is not JSON from byte %td on",
            json ? (ptrdiff_t)strlen(text) : end - text);
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(json, "format");
    if (!cJSON_IsString(name) || strcmp(name->valuestring, FORMAT_NAME) != 0)
        die(EXIT_INPUT,
            "%s: \"format\" is not \"" FORMAT_NAME
            "\". Pass a manifest as c4_tokenize writes it, or token shards.",
            path);
    read_all(m, &top);
    cJSON_Delete(json);
    free(text);
}

void manifest_close(Manifest *m) {
    for (int i = 0; i < MANIFEST_SPLITS; i++) {
        for (int k = 0; k < m->splits[i].count; k++) free(m->splits[i].shards[k].file);
        free(m->splits[i].shards);
    }
    for (int i = 0; i < m->input_count; i++) free(m->inputs[i].name);
    free(m->inputs);
    free(m->tokenizer.file);
    free(m->path);
    *m = (Manifest){0};
}

/* ---- the layout ---- */

/* Shards are numbered from 0 under one name: PREFIX_train_000000.bin, as c4_tokenize writes them;
 * PREFIX is the manifest's own name. All but the last are full. */
static void check_shards(const Manifest *m, const ManifestSplit *split) {
    Node n = {.path = m->path};
    char want[4096];
    const char *slash = strrchr(m->path, '/'), *base = slash ? slash + 1 : m->path;
    const size_t length = strlen(base), suffix = strlen(".json");
    const int stem = (int)(length > suffix ? length - suffix : length);
    for (int i = 0; i < split->count; i++) {
        const ManifestShard *s = &split->shards[i];
        format(n.where, sizeof n.where, "%s.shards[%d].", split->name, i);
        format(want, sizeof want, "%.*s_%s_%06d.bin", stem, base, split->name, i);
        if (strcmp(s->file, want) != 0) bad(&n, "file", "is '%s'; expected '%s'", s->file, want);
        if (i + 1 < split->count ? s->tokens != m->shard_tokens : s->tokens > m->shard_tokens)
            bad(&n, "tokens",
                "is %" PRId64 "; options.shard_tokens is %" PRId64
                ", and all but the last shard have so many",
                s->tokens, m->shard_tokens);
    }
}

void manifest_check_layout(const Manifest *m) {
    const Node n = {.path = m->path};
    for (int i = 0; i < MANIFEST_SPLITS; i++) check_shards(m, &m->splits[i]);
    const int64_t val = m->splits[MANIFEST_VAL].documents;
    const int64_t documents = m->splits[MANIFEST_TRAIN].documents + val;
    double want = (double)(m->val_docs < documents ? m->val_docs : documents), margin = 0;
    if (m->only_split >= 0) {
        want = m->only_split == MANIFEST_VAL ? (double)documents : 0;
    } else if (m->val_fraction > 0) { /* drawn: eight standard deviations do not happen */
        want = m->val_fraction * (double)documents;
        margin = 1 + 8 * sqrt(want * (1 - m->val_fraction));
    }
    if (fabs((double)val - want) > margin)
        bad(&n, "val.documents", "is %" PRId64 "; options make it %.0f (+- %.0f)", val, want,
            margin);
}

/* ---- beside it ---- */

void manifest_beside(const Manifest *m, const char *file, char *path, int capacity) {
    const char *slash = strrchr(m->path, '/');
    const int directory = slash ? (int)(slash - m->path) + 1 : 0;
    format(path, (size_t)capacity, "%.*s%s", directory, m->path, file);
}

uint64_t manifest_hash(const void *data, int64_t size) {
    uint64_t hash = 0xcbf29ce484222325;
    for (int64_t i = 0; i < size; i++)
        hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3;
    return hash;
}
