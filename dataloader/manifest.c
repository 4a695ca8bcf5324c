/* manifest.c: finds and reads the manifests beside shards. There may be a thousand of them, and
 * gigabytes of other JSON in the same directory: a file is known by its first bytes and only then
 * read. Nothing in one is believed that the headers of the shards deny. */
#include "dataloader/manifest.h"

#include "dataloader/shard.h"
#include "laser/base.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, SNIFF_BYTES = 4096, VERSION = 1 };
#define FORMAT_NAME "laser.c data"
#define REMAKE "Copy it again together with its shards, or write both again with c4_tokenize."

typedef struct Reader {
    const Loader *loader;
    Manifests *out;
    bool *named;            /* (shards) */
    char first[PATH_BYTES]; /* the first manifest that names a shard */
    double entropy, entropy_tokens;
    /* the manifest being read */
    char path[PATH_BYTES];
    int directory; /* bytes of path before the name */
    cJSON *root;
    const char *shard; /* whose entry it is, or NULL */
} Reader;

/* ---- errors, and values that must be there ---- */

static void bad(const Reader *r, const char *fmt, ...) PRINTF_LIKE(2, 3) NORETURN;
static void bad(const Reader *r, const char *fmt, ...) {
    char what[1024];
    ShardInfo info;
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    die(EXIT_INPUT, "%s: %s (it lies beside %s). " REMAKE, r->path, what,
        r->shard ? r->shard : loader_shard(r->loader, 0, &info));
}

static const cJSON *member(const Reader *r, const cJSON *o, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, key);
    if (!item) bad(r, "\"%s\" is missing", key);
    return item;
}

static const char *string(const Reader *r, const cJSON *o, const char *key) {
    const cJSON *item = member(r, o, key);
    if (!cJSON_IsString(item)) bad(r, "\"%s\" is not a string", key);
    return item->valuestring;
}

static int64_t whole(const Reader *r, const cJSON *o, const char *key, int64_t low) {
    const cJSON *item = member(r, o, key);
    const double most = 9007199254740992.0; /* 2^53 */
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= (double)low && item->valuedouble < most) ||
        item->valuedouble != floor(item->valuedouble))
        bad(r, "\"%s\" is not a whole number from %" PRId64 " on", key, low);
    return (int64_t)item->valuedouble;
}

static uint64_t hex(const Reader *r, const cJSON *o, const char *key, size_t digits) {
    const char *text = string(r, o, key);
    if (strlen(text) != digits || strspn(text, "0123456789abcdef") != digits)
        bad(r, "\"%s\" is '%.64s', not %zu hexadecimal digits", key, text, digits);
    return strtoull(text, NULL, 16);
}

static const cJSON *list(const Reader *r, const cJSON *o, const char *key) {
    const cJSON *item = member(r, o, key);
    if (!cJSON_IsArray(item)) bad(r, "\"%s\" is not a list", key);
    return item;
}

/* ---- what it says, beside what the shards say ---- */

/* Number of the loader's shard of this path, or -1. */
static int find_shard(const Loader *l, const char *path) {
    ShardInfo info;
    int low = 0, high = loader_info(l)->shards;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        const int order = strcmp(loader_shard(l, middle, &info), path);
        if (order == 0) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

static void read_tokenizer(const Reader *r, const cJSON *root, Manifests *m) {
    const cJSON *tokenizer = member(r, root, "tokenizer");
    const char *file = string(r, tokenizer, "file");
    if (strlen(file) >= sizeof m->tokenizer_file || strchr(file, '/'))
        bad(r, "the tokenizer's \"file\" is no name of a file");
    format(m->tokenizer_file, sizeof m->tokenizer_file, "%s", file);
    m->tokenizer_hash = hex(r, tokenizer, "hash", 16);
    const int64_t vocab = whole(r, tokenizer, "vocab", 1), eos = whole(r, tokenizer, "eos", -1);
    if (vocab > INT32_MAX || eos >= vocab)
        bad(r, "a vocabulary of %" PRId64 " with end of document %" PRId64 " cannot be", vocab,
            eos);
    m->vocab = (int32_t)vocab;
    m->eos = (int32_t)eos;
}

static void require_same_tokenizer(Reader *r, const Manifests *one) {
    Manifests *all = r->out;
    if (all->manifests == 0) {
        format(r->first, sizeof r->first, "%s", r->path);
        all->vocab = one->vocab;
        all->eos = one->eos;
        all->tokenizer_hash = one->tokenizer_hash;
        format(all->tokenizer_file, sizeof all->tokenizer_file, "%s", one->tokenizer_file);
    }
    if (one->tokenizer_hash != all->tokenizer_hash || one->vocab != all->vocab ||
        one->eos != all->eos)
        die(EXIT_INPUT,
            "%s and %s: their shards were written with different tokenizers (vocabulary %d and %d, "
            "end of document %d and %d, hash %016" PRIx64 " and %016" PRIx64
            "). Give a pattern that names the shards of one tokenizer.",
            r->first, r->path, all->vocab, one->vocab, all->eos, one->eos, all->tokenizer_hash,
            one->tokenizer_hash);
}

static void require_same_header(
    const Reader *r, const cJSON *entry, const ShardInfo *info, const Manifests *one) {
    const int64_t tokens = whole(r, entry, "tokens", 1),
                  documents = whole(r, entry, "documents", 0);
    const uint64_t crc = hex(r, entry, "crc32c", 8);
    if (tokens != info->tokens)
        bad(r, "says that %s has %" PRId64 " tokens; its header says %" PRId64, r->shard, tokens,
            info->tokens);
    if (!info->extended) return;
    if (info->documents >= 0 && documents != info->documents)
        bad(r, "says that %s has %" PRId64 " documents; its header says %" PRId64, r->shard,
            documents, info->documents);
    if (crc != info->payload_crc)
        bad(r,
            "says that the checksum of the tokens of %s is %08" PRIx64
            "; its header says %08" PRIx32,
            r->shard, crc, info->payload_crc);
    if (one->tokenizer_hash != info->tokenizer_hash || one->vocab != info->vocab ||
        one->eos != info->eos)
        bad(r,
            "says that %s was written with tokenizer %016" PRIx64
            " (vocabulary %d, end of document %d); its header says %016" PRIx64 " (%d, %d)",
            r->shard, one->tokenizer_hash, one->vocab, one->eos, info->tokenizer_hash, info->vocab,
            info->eos);
}

/* A split's shards; adds what is read of it to `one`. Returns how many of them the loader has. */
static int read_split(Reader *r, const cJSON *root, const char *name, Manifests *one) {
    const cJSON *split = cJSON_GetObjectItemCaseSensitive(root, name), *entry;
    if (!split || cJSON_IsNull(split)) return 0;
    int64_t tokens = 0, documents = 0, new_tokens = 0, absent = 0;
    int matched = 0;
    char path[PATH_BYTES], first_absent[MANIFEST_NAME] = "";
    cJSON_ArrayForEach(entry, list(r, split, "shards")) {
        const char *file = string(r, entry, "file");
        if (strchr(file, '/') || strlen(file) >= MANIFEST_NAME)
            bad(r, "'%.64s' is no name of a shard beside it", file);
        tokens += whole(r, entry, "tokens", 1);
        documents += whole(r, entry, "documents", 0);
        format(path, sizeof path, "%.*s%s", r->directory, r->path, file);
        const int i = find_shard(r->loader, path);
        if (i < 0 && file_size(path) < 0 && absent++ == 0)
            format(first_absent, sizeof first_absent, "%s", file);
        if (i < 0) continue;
        ShardInfo info;
        matched++;
        r->shard = loader_shard(r->loader, i, &info);
        require_same_header(r, entry, &info, one);
        r->shard = NULL;
        if (r->named[i]) continue;
        r->named[i] = true;
        one->shards++;
        new_tokens += info.tokens;
        one->documents += whole(r, entry, "documents", 0);
    }
    if (tokens != whole(r, split, "tokens", 0) || documents != whole(r, split, "documents", 0))
        bad(r,
            "the shards of \"%s\" have %" PRId64 " tokens and %" PRId64
            " documents together, other than it says itself",
            name, tokens, documents);
    const double bytes = (double)whole(r, split, "bytes", 0);
    const cJSON *entropy = member(r, split, "unigram_entropy_nats");
    if (new_tokens > 0) {
        one->tokens += new_tokens;
        one->bytes += bytes * (double)new_tokens / (double)tokens;
        if (cJSON_IsNumber(entropy)) {
            r->entropy += entropy->valuedouble * (double)new_tokens;
            r->entropy_tokens += (double)new_tokens;
        }
    }
    if (matched && absent && one->absent == 0)
        format(one->first_absent, sizeof one->first_absent, "%s", first_absent);
    if (matched) one->absent += absent;
    return matched;
}

static void read_inputs(const Reader *r, const cJSON *root, Manifests *m) {
    const cJSON *input;
    cJSON_ArrayForEach(input, list(r, root, "inputs")) {
        m->inputs++;
        m->bad_lines += whole(r, input, "bad_lines", 0);
    }
}

static void take(Reader *r, const char *text, size_t size) {
    Manifests *all = r->out, one = {0};
    r->shard = NULL;
    const cJSON *root = r->root = cJSON_ParseWithLength(text, size);
    if (!root) bad(r, "is cut short or damaged: it is not whole JSON");
    const int64_t version = whole(r, root, "version", 0);
    if (version != VERSION)
        bad(r, "is of version %" PRId64 "; this program reads version %d", version, VERSION);
    read_tokenizer(r, root, &one);
    const int train = read_split(r, root, "train", &one), val = read_split(r, root, "val", &one);
    if (train + val > 0) require_same_tokenizer(r, &one);
    if (one.shards > 0) { /* else a copy of another that was read */
        read_inputs(r, root, all);
        all->manifests++;
        all->shards += one.shards;
        all->tokens += one.tokens;
        all->documents += one.documents;
        all->bytes += one.bytes;
        if (one.absent && all->absent == 0)
            format(all->first_absent, sizeof all->first_absent, "%s", one.first_absent);
        all->absent += one.absent;
    }
    cJSON_Delete(r->root);
}

/* ---- finding them ---- */

/* Whether a file begins as a manifest does: "format" with our name among its first members. */
static bool is_ours(const char *text) {
    if (text[strspn(text, " \t\r\n")] != '{') return false;
    const char *at = strstr(text, "\"format\"");
    if (!at) return false;
    at += strlen("\"format\"");
    at += strspn(at, " \t\r\n");
    if (*at++ != ':') return false;
    at += strspn(at, " \t\r\n");
    return strncmp(at, "\"" FORMAT_NAME "\"", strlen(FORMAT_NAME) + 2) == 0;
}

static void read_file(Reader *r) {
    char begin[SNIFF_BYTES + 1];
    struct stat st;
    const int fd = open(r->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const ssize_t n =
        fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? read(fd, begin, SNIFF_BYTES) : -1;
    if (fd >= 0) close(fd);
    begin[n > 0 ? n : 0] = '\0';
    if (!is_ours(begin)) return;
    if (n < SNIFF_BYTES && n == st.st_size) {
        take(r, begin, (size_t)n);
        return;
    }
    size_t size;
    char *text = file_read_all(r->path, &size);
    take(r, text, size);
    free(text);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void sort_names(char **names, size_t n) {
    if (n > 0) qsort(names, n, sizeof *names, by_name);
}

static void read_directory(Reader *r, const char *directory /* with its slash, or empty */) {
    DIR *d = opendir(directory[0] ? directory : ".");
    if (!d) { /* shards may be read where their names may not be listed */
        warn("%s: cannot be listed: %s. What lies beside the shards is not known.", directory,
            strerror(errno));
        return;
    }
    size_t count = 0, capacity = 64;
    char **names = xcalloc(capacity, sizeof *names);
    for (const struct dirent *e; (e = readdir(d));) {
        const size_t length = strlen(e->d_name);
        if (length < 5 || strcmp(e->d_name + length - 5, ".json") != 0) continue;
        if (count == capacity) {
            char **larger = xcalloc(size_mul(capacity, 2), sizeof *names);
            memcpy(larger, names, capacity * sizeof *names);
            free(names);
            names = larger;
            capacity *= 2;
        }
        names[count++] = xstrdup(e->d_name);
    }
    closedir(d);
    sort_names(names, count);
    r->directory = (int)strlen(directory);
    for (size_t i = 0; i < count; i++) {
        format(r->path, sizeof r->path, "%s%s", directory, names[i]);
        read_file(r);
        free(names[i]);
    }
    free(names);
}

void manifest_read(Manifests *m, const Loader *l) {
    const int shards = loader_info(l)->shards;
    *m = (Manifests){.eos = -1, .entropy = NAN};
    Reader *r = xcalloc(1, sizeof *r);
    char **directories = xcalloc((size_t)shards, sizeof *directories);
    r->loader = l;
    r->out = m;
    r->named = xcalloc((size_t)shards, sizeof *r->named);
    for (int i = 0; i < shards; i++) {
        ShardInfo info;
        directories[i] = xstrdup(loader_shard(l, i, &info));
        char *slash = strrchr(directories[i], '/');
        directories[i][slash ? slash + 1 - directories[i] : 0] = '\0';
    }
    sort_names(directories, (size_t)shards);
    for (int i = 0; i < shards; i++)
        if (i == 0 || strcmp(directories[i], directories[i - 1]) != 0)
            read_directory(r, directories[i]);
    if (r->entropy_tokens > 0) m->entropy = r->entropy / r->entropy_tokens;
    for (int i = 0; i < shards; i++) free(directories[i]);
    free(directories);
    free(r->named);
    free(r);
}
