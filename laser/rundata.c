/* rundata.c: see rundata.h. Whatever can be compared is: two tokenizers that are taken for one cost
 * a run, and nothing in it would say so. */
#include "laser/rundata.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"

enum { PATH_BYTES = 4096 };
/* Shards of more are read before training only where it is asked for: a second or two, not hours */
static const int64_t VERIFY_BYTES = 1000000000;

/* ---- the shards ---- */

static LoaderOptions loader_options(const Config *c, const char *pattern, const Comm *comm) {
    LoaderOptions o;
    memset(&o, 0, sizeof o);
    o.pattern = pattern;
    o.seq_len = (int)c->seq_len;
    o.batch = 1;
    o.step_sequences = 1;
    o.world = 1;
    o.seed = (uint64_t)c->seed;
    o.vocab = c->vocab == AUTO ? INT32_MAX : (int32_t)c->vocab;
    if (comm->rank == 0 && c->verify_data)
        o.verify_bytes = c->verify_data == AUTO ? VERIFY_BYTES : INT64_MAX;
    return o;
}

static void open_train(RunData *d, Config *c, const Comm *comm) {
    LoaderOptions o = loader_options(c, c->train, comm);
    o.batch = (int)c->batch;
    o.step_sequences = d->step_sequences;
    o.rank = comm->rank;
    o.world = comm->world;
    o.shuffle = true;
    o.prefetch = c->prefetch != 0;
    d->train = loader_open(&o);
    const LoaderInfo *info = loader_info(d->train);
    if (info->vocab > 0 && c->vocab != AUTO && info->vocab != c->vocab && !c->vocab_given)
        die(EXIT_INPUT,
            "%s: the shards' vocabulary is %d, preset '%s' has %" PRId64
            "; give --vocab %d to train the preset's structure with it",
            c->train, info->vocab, c->model, c->vocab, info->vocab);
    c->vocab = config_model(c, info->vocab).V;
    if (c->steps == AUTO) c->steps = info->windows / d->step_sequences;
    if (c->warmup > c->steps)
        die(EXIT_USAGE,
            "--warmup %" PRId64 " is longer than the run: one pass over the data is %" PRId64
            " steps",
            c->warmup, c->steps);
}

/* ---- one tokenizer ---- */

typedef struct Tokenizer {
    bool known;
    int32_t vocab, eos;
    uint64_t hash;
} Tokenizer;

/* As the headers record it, else as the manifests do. */
static Tokenizer tokenizer_of(const Loader *l, const ManifestTotals *m) {
    const LoaderInfo *i = loader_info(l);
    if (i->extended) return (Tokenizer){true, i->vocab, i->eos, i->tokenizer_hash};
    return (Tokenizer){m->manifests > 0, m->vocab, m->eos, m->tokenizer_hash};
}

static void warn_unrecorded(const char *pattern, const Loader *l, const ManifestTotals *m) {
    const LoaderInfo *i = loader_info(l);
    const int unknown = i->shards - (i->extended > m->shards ? i->extended : m->shards);
    if (i->extended + m->shards > 0 && unknown > 0)
        warn("%s: %d of %d shards do not record their tokenizer; that it is the others' cannot be "
             "checked",
            pattern, unknown, i->shards);
}

static void require_one_tokenizer(const RunData *d, const Config *c, bool loud) {
    const Tokenizer a = tokenizer_of(d->train, &d->train_manifests);
    const Tokenizer b = tokenizer_of(d->val, &d->val_manifests);
    if (a.known && b.known && (a.vocab != b.vocab || a.eos != b.eos || a.hash != b.hash))
        die(EXIT_INPUT,
            "%s and %s were written with different tokenizers (vocabulary %d and %d, end of "
            "document %d and %d, hash %016" PRIx64 " and %016" PRIx64
            "): give validation shards of the training shards' tokenizer",
            c->train, c->val, a.vocab, b.vocab, a.eos, b.eos, a.hash, b.hash);
    if (loud && a.known != b.known)
        warn("%s: these shards do not record their tokenizer, %s do; that it is the same cannot be "
             "checked",
            a.known ? c->val : c->train, a.known ? c->train : c->val);
}

static void read_manifests(ManifestTotals *m, const Loader *l, const char *pattern) {
    manifest_totals_read(m, l);
    warn_unrecorded(pattern, l, m);
    if (m->absent)
        warn("%s: %" PRId64 " shards that were written together with these are not there, %s "
             "first: the data are not complete",
            pattern, m->absent, m->first_absent);
}

/* ---- what ids print as ---- */

/* Pieces that stand for no text: tokenizer.bin has them by name. */
static bool is_control(const char *piece, size_t n) {
    static const char *const names[] = {"<unk>", "<s>", "</s>", "<pad>"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i]) == n && memcmp(names[i], piece, n) == 0) return true;
    return n > 4 && memcmp(piece, "<|", 2) == 0 && memcmp(piece + n - 2, "|>", 2) == 0;
}

static void count_text_bytes(RunData *d) {
    const Vocab *v = &d->vocab;
    d->text_bytes = (uint8_t *)xcalloc((size_t)v->size, 1);
    for (int32_t i = 0; i < v->size; i++) {
        const size_t n = (size_t)(v->offset[i + 1] - v->offset[i]); /* at most 255 */
        const bool text = i != v->eos && i != loader_info(d->train)->eos &&
                          !is_control(v->bytes + v->offset[i], n);
        d->text_bytes[i] = text ? (uint8_t)n : 0;
    }
}

static uint64_t file_hash(const char *path) {
    size_t size;
    char *data = file_read_all(path, &size);
    const uint64_t hash = manifest_hash(data, (int64_t)size);
    free(data);
    return hash;
}

/* tokenizer.bin has no hash of its own, but the file that it was made from lies beside it. */
static void require_source(const RunData *d, const char *path) {
    const Tokenizer t = tokenizer_of(d->train, &d->train_manifests);
    const char *name =
        d->train_manifests.manifests ? d->train_manifests.tokenizer_file : "tokenizer.model";
    const char *slash = strrchr(path, '/');
    char source[PATH_BYTES];
    format(source, sizeof source, "%.*s%s", slash ? (int)(slash + 1 - path) : 0, path, name);
    if (!t.known || !t.hash || file_size(source) < 0) return;
    const uint64_t hash = file_hash(source);
    if (hash != t.hash)
        die(EXIT_INPUT,
            "%s has hash %016" PRIx64 ", the shards were written with %016" PRIx64
            ": %s beside it is another tokenizer's; give --tokenizer",
            source, hash, t.hash, path);
}

static void open_vocab(RunData *d, const Config *c, bool check_source) {
    char path[PATH_BYTES];
    const char *slash = strrchr(c->train, '/');
    if (c->tokenizer[0])
        format(path, sizeof path, "%s", c->tokenizer);
    else
        format(path, sizeof path, "%.*stokenizer.bin", slash ? (int)(slash + 1 - c->train) : 0,
            c->train);
    if (!c->tokenizer[0] && file_size(path) < 0) {
        if (c->sample_every)
            die(EXIT_INPUT, "--sample-every: no vocabulary at %s; give --tokenizer FILE", path);
        return;
    }
    const Tokenizer t = tokenizer_of(d->train, &d->train_manifests);
    vocab_open(&d->vocab, path);
    if (t.known && d->vocab.size != t.vocab)
        die(EXIT_INPUT, "%s has %d pieces, the shards were written with %d: give --tokenizer", path,
            d->vocab.size, t.vocab);
    if (t.known && t.eos >= 0 && d->vocab.eos >= 0 && d->vocab.eos != t.eos)
        die(EXIT_INPUT,
            "%s ends a document with id %d, the shards were written with %d: give --tokenizer",
            path, d->vocab.eos, t.eos);
    if (check_source) require_source(d, path);
    count_text_bytes(d);
}

void rundata_open(RunData *d, Config *c, int64_t step_sequences, const Comm *comm) {
    const bool first = comm->rank == 0;
    memset(d, 0, sizeof *d);
    d->step_sequences = step_sequences;
    open_train(d, c, comm);
    if (first) read_manifests(&d->train_manifests, d->train, c->train);
    if (c->val[0]) {
        const LoaderOptions val = loader_options(c, c->val, comm);
        d->val = loader_open(&val);
        if (first) read_manifests(&d->val_manifests, d->val, c->val);
        require_one_tokenizer(d, c, first);
    }
    if (c->verify_data == AUTO) c->verify_data = loader_info(d->train)->verified;
    open_vocab(d, c, first);
}

void rundata_close(RunData *d) {
    loader_close(d->train);
    loader_close(d->val);
    vocab_close(&d->vocab);
    free(d->text_bytes);
}

double rundata_val_bytes_per_token(const RunData *d) {
    const ManifestTotals *m = &d->val_manifests;
    return m->tokens > 0 ? m->bytes / (double)m->tokens : 0.0;
}

/* ---- told ---- */

static double epochs(const RunData *d, const Config *c) {
    return (double)c->steps * (double)d->step_sequences / (double)loader_info(d->train)->windows;
}

static void add_count(Text *t, double n) {
    if (n < 1e4)
        text_add(t, "%.0f", n);
    else if (n < 1e6)
        text_add(t, "%.1f k", n / 1e3);
    else if (n < 1e9)
        text_add(t, "%.1f M", n / 1e6);
    else
        text_add(t, "%.2f G", n / 1e9);
}

static void add_manifests(Text *t, const ManifestTotals *m, const Loader *l) {
    if (!m->manifests) return;
    text_add(t, "; ");
    add_count(t, (double)m->documents);
    text_add(t, " documents of %" PRId64 " file%s, %.2f bytes/token", m->inputs,
        m->inputs == 1 ? "" : "s", m->bytes / (double)m->tokens);
    if (isfinite(m->entropy)) text_add(t, ", unigram entropy %.3f nats", m->entropy);
    if (m->shards < loader_info(l)->shards) text_add(t, " (of %d shards)", m->shards);
}

static void add_shards(Text *t, const char *pattern, const Loader *l) {
    const LoaderInfo *i = loader_info(l);
    text_add(t, "%s: ", pattern);
    add_count(t, (double)i->tokens);
    text_add(t, " tokens in %d shard%s", i->shards, i->shards == 1 ? "" : "s");
    if (!i->verified) {
        text_add(t, ", not read through (");
        add_count(t, (double)i->bytes);
        text_add(t, "B; --verify-data does)");
    }
}

void rundata_note(const RunData *d, const Config *c, RunLog *log) {
    Text t = {NULL, 0, 0};
    const Tokenizer k = tokenizer_of(d->train, &d->train_manifests);
    add_shards(&t, c->train, d->train);
    text_add(&t, ", %.3g epochs in this run", epochs(d, c));
    if (k.known) text_add(&t, "; tokenizer %016" PRIx64 " of %d", k.hash, k.vocab);
    add_manifests(&t, &d->train_manifests, d->train);
    runlog_note(log, "%s", t.data);
    text_clear(&t);
    if (d->val) {
        add_shards(&t, c->val, d->val);
        add_manifests(&t, &d->val_manifests, d->val);
        if (!d->vocab.size && rundata_val_bytes_per_token(d) > 0)
            text_add(&t, "; bits per byte by the manifest's bytes/token: no tokenizer.bin");
        runlog_note(log, "%s", t.data);
    }
    text_free(&t);
}

static void add_json(Text *t, const char *key, const Loader *l, const ManifestTotals *m) {
    const LoaderInfo *i = loader_info(l);
    text_add(t, "\"%s\":{\"tokens\":%" PRId64 ",\"shards\":%d,\"verified\":%s", key, i->tokens,
        i->shards, i->verified ? "true" : "false");
    if (m->manifests) {
        text_add(t, ",\"manifests\":%d,\"documents\":%" PRId64 ",\"inputs\":%" PRId64, m->manifests,
            m->documents, m->inputs);
        text_add(t,
            ",\"text_bytes\":%.0f,\"bytes_per_token\":%.9g,\"unigram_entropy_nats\":", m->bytes,
            m->bytes / (double)m->tokens);
        text_add_json_number(t, m->entropy, 9);
    }
    text_add(t, "}");
}

void rundata_add_json(const RunData *d, const Config *c, Text *t) {
    const Tokenizer k = tokenizer_of(d->train, &d->train_manifests);
    text_add(t, "{\"epochs\":%.9g,", epochs(d, c));
    if (k.known)
        text_add(t, "\"tokenizer\":{\"hash\":\"%016" PRIx64 "\",\"vocab\":%d,\"eos\":%d},", k.hash,
            k.vocab, k.eos);
    add_json(t, "train", d->train, &d->train_manifests);
    if (d->val) {
        text_add(t, ",");
        add_json(t, "val", d->val, &d->val_manifests);
    }
    text_add(t, "}");
}
