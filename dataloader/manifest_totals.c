/* manifest_totals.c: see manifest_totals.h. There may be a thousand manifests, and gigabytes of
 * other JSON in the same directory: a file is known by its first bytes and only then read. Nothing
 * in one is believed that the headers of the shards deny. */
#include "dataloader/manifest_totals.h"

#include "dataloader/shard.h"
#include "laser/base.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

typedef struct Reader {
    const Loader *loader;
    ManifestTotals *out;
    bool *named;            /* (shards) */
    char first[PATH_BYTES]; /* the first manifest that names a shard */
    double entropy, entropy_tokens;
} Reader;

/* ---- one manifest, beside what the shards say ---- */

static const char *shard_path(const Loader *l, int i) {
    ShardInfo info;
    return loader_shard(l, i, &info);
}

/* Number of the loader's first shard whose path is not before this one; the loader sorts them. */
static int lower_bound(const Loader *l, const char *path) {
    int low = 0, high = loader_info(l)->shards;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (strcmp(shard_path(l, middle), path) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Number of the loader's shard of this path, or -1. */
static int find_shard(const Loader *l, const char *path) {
    const int i = lower_bound(l, path);
    return i < loader_info(l)->shards && strcmp(shard_path(l, i), path) == 0 ? i : -1;
}

/* The first of the loader's shards that lies in this directory; there is one. */
static const char *first_shard(const Loader *l, const char *directory /* with its slash */) {
    int i = lower_bound(l, directory);
    while (strchr(shard_path(l, i) + strlen(directory), '/')) i++; /* in one below it */
    return shard_path(l, i);
}

static void require_same_tokenizer(Reader *r, const Manifest *m) {
    ManifestTotals *all = r->out;
    const ManifestTokenizer *t = &m->tokenizer;
    if (all->manifests == 0) {
        format(r->first, sizeof r->first, "%s", m->path);
        all->vocab = t->vocab;
        all->eos = t->eos;
        all->tokenizer_hash = t->hash;
        format(all->tokenizer_file, sizeof all->tokenizer_file, "%s", t->file);
    }
    if (t->hash != all->tokenizer_hash || t->vocab != all->vocab || t->eos != all->eos)
        die(EXIT_INPUT,
            "%s and %s: their shards were written with different tokenizers (vocabulary %d and %d, "
            "end of document %d and %d, hash %016" PRIx64 " and %016" PRIx64
            "). Give a pattern that names the shards of one tokenizer.",
            r->first, m->path, all->vocab, t->vocab, all->eos, t->eos, all->tokenizer_hash,
            t->hash);
}

#define DENIED "%s: says that %s "
#define REMAKE ". Copy the manifest again together with its shards, or write both again."

static void require_same_header(
    const Manifest *m, const ManifestShard *s, const char *shard, const ShardInfo *info) {
    const ManifestTokenizer *t = &m->tokenizer;
    if (s->tokens != info->tokens)
        die(EXIT_INPUT, DENIED "has %" PRId64 " tokens; its header says %" PRId64 REMAKE, m->path,
            shard, s->tokens, info->tokens);
    if (!info->extended) return;
    if (info->documents >= 0 && s->documents != info->documents)
        die(EXIT_INPUT, DENIED "has %" PRId64 " documents; its header says %" PRId64 REMAKE,
            m->path, shard, s->documents, info->documents);
    if (s->crc != info->payload_crc)
        die(EXIT_INPUT,
            DENIED "has tokens with checksum %08" PRIx32 "; its header says %08" PRIx32 REMAKE,
            m->path, shard, s->crc, info->payload_crc);
    if (t->hash != info->tokenizer_hash || t->vocab != info->vocab || t->eos != info->eos)
        die(EXIT_INPUT,
            DENIED "was written with tokenizer %016" PRIx64
                   " (vocabulary %d, end of document %d); its header says %016" PRIx64
                   " (%d, %d)" REMAKE,
            m->path, shard, t->hash, t->vocab, t->eos, info->tokenizer_hash, info->vocab,
            info->eos);
}

/* Adds to `one` what is read of a split. Returns how many of its shards the loader has. */
static int add_split(
    Reader *r, const Manifest *m, const ManifestSplit *split, ManifestTotals *one) {
    int64_t tokens = 0, absent = 0;
    const char *first_absent = "";
    int matched = 0;
    for (int k = 0; k < split->count; k++) {
        const ManifestShard *s = &split->shards[k];
        ShardInfo info;
        char path[PATH_BYTES];
        manifest_beside(m, s->file, path, sizeof path);
        const int i = find_shard(r->loader, path);
        if (i < 0 && file_size(path) < 0 && absent++ == 0) first_absent = s->file;
        if (i < 0) continue;
        matched++;
        require_same_header(m, s, loader_shard(r->loader, i, &info), &info);
        if (r->named[i]) continue;
        r->named[i] = true;
        one->shards++;
        one->documents += s->documents;
        tokens += s->tokens;
    }
    if (tokens > 0) {
        one->tokens += tokens;
        one->bytes += (double)split->bytes * (double)tokens / (double)split->tokens;
        r->entropy += split->entropy * (double)tokens;
        r->entropy_tokens += (double)tokens;
    }
    if (!matched) return 0;
    if (absent && one->absent == 0)
        format(one->first_absent, sizeof one->first_absent, "%s", first_absent);
    one->absent += absent;
    return matched;
}

static void add_manifest(Reader *r, const Manifest *m) {
    ManifestTotals *all = r->out, one = {0};
    int matched = 0;
    for (int i = 0; i < MANIFEST_SPLITS; i++) matched += add_split(r, m, &m->splits[i], &one);
    if (matched > 0) require_same_tokenizer(r, m);
    if (one.shards == 0) return; /* of other shards, or a copy of one that was read */
    all->manifests++;
    all->shards += one.shards;
    all->tokens += one.tokens;
    all->documents += one.documents;
    all->bytes += one.bytes;
    all->inputs += m->input_count;
    for (int i = 0; i < m->input_count; i++) all->bad_lines += m->inputs[i].bad_lines;
    if (one.absent && all->absent == 0)
        format(all->first_absent, sizeof all->first_absent, "%s", one.first_absent);
    all->absent += one.absent;
}

/* ---- finding them ---- */

static void read_file(Reader *r, const char *path, const char *beside) {
    Manifest m;
    if (!manifest_is(path)) return;
    manifest_open(&m, path, beside);
    add_manifest(r, &m);
    manifest_close(&m);
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
    const char *beside = first_shard(r->loader, directory);
    for (size_t i = 0; i < count; i++) {
        char path[PATH_BYTES];
        format(path, sizeof path, "%s%s", directory, names[i]);
        read_file(r, path, beside);
        free(names[i]);
    }
    free(names);
}

void manifest_totals_read(ManifestTotals *m, const Loader *l) {
    const int shards = loader_info(l)->shards;
    *m = (ManifestTotals){.eos = -1, .entropy = NAN};
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
