/* loader.c: which tokens a step trains on, and a thread that has them ready. The order is computed
 * from (seed, sequence number), never stored, so the position in a run is one integer. Files are
 * read, not mapped, through few descriptors: a corpus has more shards than a process may hold open,
 * and what happens to a file is an error that can be told, not a signal. Knows shards; knows
 * nothing of models. */
#include "dataloader/loader.h"

#include "dataloader/shard.h"
#include "laser/base.h"
#include "laser/rng.h"

#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { RING = 8 };  /* micro-batches that the thread may be ahead */
enum { OPEN = 64 }; /* descriptors held: shard i holds one only at place i % OPEN */

typedef struct Slot {
    int32_t *inputs, *targets; /* (B, T) each */
    ShardFault fault;          /* found by the thread, reported when the batch is served */
} Slot;

struct Loader {
    LoaderOptions options;
    LoaderInfo info;
    int64_t *first_window; /* (info.shards + 1): windows in the shards before */
    int64_t micro_steps;   /* per step */
    int64_t next;          /* micro-batch that loader_next serves, counted from step 0 */

    /* Of the thread alone, where there is one */
    Shard *shards;   /* (info.shards) */
    Shard *at[OPEN]; /* the one of each place that holds a descriptor, or NULL */
    void *raw;       /* (T + 1) tokens as they lie in a file */

    /* Prefetch; the lock guards everything below, except the contents of a slot while the thread
     * fills it (filling) or while it waits to be served (ready). */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Slot ring[RING];
    int64_t produce; /* micro-batch that the thread fills next */
    int64_t serve;   /* micro-batch that is served next; slots [serve, produce) are ready */
    bool filling, stop;
};

/* ---- opening ---- */

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* FNV-1a: enough to tell a changed data set, which is no attack. */
static uint64_t fingerprint_add(uint64_t hash, const void *data, size_t size) {
    for (const unsigned char *p = data; size > 0; p++, size--) hash = (hash ^ *p) * 0x100000001b3;
    return hash;
}

static uint64_t fingerprint_shard(uint64_t hash, Shard *s) {
    int32_t header[SHARD_HEADER_WORDS];
    const char *slash = strrchr(s->path, '/');
    const char *name = slash ? slash + 1 : s->path;
    shard_read_header(s, header);
    hash = fingerprint_add(hash, name, strlen(name) + 1);
    hash = fingerprint_add(hash, &s->bytes, sizeof s->bytes);
    return fingerprint_add(hash, header, sizeof header);
}

static void open_shards(Loader *l, const char *pattern) {
    glob_t found;
    const int status = glob(pattern, GLOB_NOSORT, NULL, &found);
    if (status == GLOB_NOMATCH)
        die(EXIT_INPUT,
            "no file matches '%s': expected token shards (.bin). Check the path; write shards with "
            "c4_tokenize; quote the pattern so that the shell leaves it whole.",
            pattern);
    if (status != 0)
        die(EXIT_INPUT, "cannot list the files of '%s': %s.", pattern,
            status == GLOB_NOSPACE ? "out of memory" : strerror(errno));
    qsort(found.gl_pathv, found.gl_pathc, sizeof *found.gl_pathv, by_name);
    REQUIRE(found.gl_pathc <= INT32_MAX, "%zu shards", found.gl_pathc);
    l->info.shards = (int)found.gl_pathc;
    l->shards = xcalloc(found.gl_pathc, sizeof *l->shards);
    l->info.fingerprint = 0xcbf29ce484222325;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        Shard *s = &l->shards[i];
        shard_open(s, found.gl_pathv[i]);
        l->info.fingerprint = fingerprint_shard(l->info.fingerprint, s);
        l->info.bytes += (int64_t)s->bytes;
        shard_release(s);
    }
    globfree(&found);
}

/* Shards that record their tokenizer must record the same one. */
static void check_tokenizers(Loader *l) {
    const Shard *first = NULL;
    l->info.eos = -1;
    for (int i = 0; i < l->info.shards; i++) {
        const Shard *s = &l->shards[i];
        if (!s->info.extended) continue;
        if (!first) {
            first = s;
            l->info.vocab = s->info.vocab;
            l->info.eos = s->info.eos;
            l->info.tokenizer_hash = s->info.tokenizer_hash;
        }
        l->info.extended++;
        const ShardInfo *a = &first->info, *b = &s->info;
        if (a->vocab == b->vocab && a->eos == b->eos && a->tokenizer_hash == b->tokenizer_hash)
            continue;
        die(EXIT_INPUT,
            "%s and %s were written with different tokenizers (vocabulary %d and %d, end of "
            "document %d and %d, hash %016" PRIx64 " and %016" PRIx64
            "). Give a pattern that names the shards of one data set.",
            first->path, s->path, a->vocab, b->vocab, a->eos, b->eos, a->tokenizer_hash,
            b->tokenizer_hash);
    }
    if (l->info.vocab > l->options.vocab)
        die(EXIT_INPUT,
            "%s: was written with a vocabulary of %d; the model has %d. Train with --vocab %d, or "
            "use shards of the model's tokenizer.",
            first->path, l->info.vocab, l->options.vocab, l->info.vocab);
    /* an id beyond what the shards record is damage, also where the model has room for it */
    if (l->info.vocab > 0) l->options.vocab = l->info.vocab;
}

static void count_windows(Loader *l) {
    const LoaderOptions *o = &l->options;
    l->first_window = xcalloc((size_t)l->info.shards + 1, sizeof *l->first_window);
    for (int i = 0; i < l->info.shards; i++) {
        const int64_t tokens = l->shards[i].info.tokens;
        l->info.tokens += tokens;
        l->first_window[i + 1] = l->first_window[i] + (tokens - 1) / o->seq_len;
    }
    l->info.windows = l->first_window[l->info.shards];
    if (l->info.windows < o->step_sequences)
        die(EXIT_INPUT,
            "'%s': %d shards of %" PRId64 " tokens hold %" PRId64
            " sequences of %d + 1 tokens; one "
            "step needs %" PRId64 ". Add data, or lower the batch or the sequence length.",
            o->pattern, l->info.shards, l->info.tokens, l->info.windows, o->seq_len,
            o->step_sequences);
}

static void prefetch_start(Loader *l);
static void prefetch_stop(Loader *l);

Loader *loader_open(const LoaderOptions *options) {
    const LoaderOptions *o = options;
    REQUIRE(o->seq_len > 0 && o->batch > 0 && o->vocab > 0, "seq_len %d, batch %d, vocab %d",
        o->seq_len, o->batch, o->vocab);
    REQUIRE(o->world > 0 && o->rank >= 0 && o->rank < o->world, "rank %d of %d", o->rank, o->world);
    REQUIRE(o->step_sequences > 0 && o->step_sequences % ((int64_t)o->world * o->batch) == 0,
        "a step of %" PRId64 " sequences is no multiple of %d processes x %d sequences",
        o->step_sequences, o->world, o->batch);
    Loader *l = xcalloc(1, sizeof *l);
    l->options = *options;
    l->options.pattern = NULL;
    l->micro_steps = o->step_sequences / ((int64_t)o->world * o->batch);
    l->options.pattern = xstrdup(o->pattern);
    open_shards(l, o->pattern);
    check_tokenizers(l);
    count_windows(l);
    l->raw = xcalloc((size_t)o->seq_len + 1, sizeof(uint32_t));
    l->info.verified = l->info.bytes <= o->verify_bytes;
    for (int i = 0; l->info.verified && i < l->info.shards; i++) {
        shard_verify(&l->shards[i], o->vocab);
        shard_release(&l->shards[i]);
    }
    if (o->prefetch) prefetch_start(l);
    return l;
}

const LoaderInfo *loader_info(const Loader *l) {
    return &l->info;
}

const char *loader_shard(const Loader *l, int shard, ShardInfo *info) {
    REQUIRE(shard >= 0 && shard < l->info.shards, "shard %d of %d", shard, l->info.shards);
    *info = l->shards[shard].info;
    return l->shards[shard].path;
}

void loader_close(Loader *l) {
    if (!l) return;
    if (l->options.prefetch) prefetch_stop(l);
    for (int i = l->info.shards; i-- > 0;) shard_close(&l->shards[i]);
    free(l->shards);
    free(l->raw);
    free(l->first_window);
    free((char *)l->options.pattern);
    free(l);
}

/* ---- which window ---- */

void loader_locate(const Loader *l, int64_t g, int *shard, int64_t *token) {
    REQUIRE(g >= 0, "sequence %" PRId64, g);
    const uint64_t windows = (uint64_t)l->info.windows;
    const uint64_t epoch = (uint64_t)g / windows;
    uint64_t window = (uint64_t)g % windows;
    if (l->options.shuffle)
        window = rng_permute(l->options.seed, RNG_SHUFFLE + (epoch << 8), window, windows);
    int low = 0, high = l->info.shards; /* first_window[low] <= window < first_window[high] */
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        if (l->first_window[middle] <= (int64_t)window)
            low = middle;
        else
            high = middle;
    }
    *shard = low;
    *token = ((int64_t)window - l->first_window[low]) * l->options.seq_len;
}

/* ---- filling a micro-batch ---- */

/* Inputs are tokens [0, T), targets [1, T]. Returns the largest id among all T + 1. */
static uint32_t copy_u16(
    int32_t *restrict inputs, int32_t *restrict targets, const uint16_t *tokens, int T) {
    uint32_t largest = tokens[0];
    inputs[0] = tokens[0];
    for (int t = 1; t < T; t++) inputs[t] = tokens[t];
    for (int t = 0; t < T; t++) {
        const uint32_t id = tokens[t + 1];
        targets[t] = (int32_t)id;
        largest = id > largest ? id : largest;
    }
    return largest;
}

static uint32_t copy_u32(
    int32_t *restrict inputs, int32_t *restrict targets, const uint32_t *tokens, int T) {
    uint32_t largest = tokens[0];
    inputs[0] = (int32_t)tokens[0];
    for (int t = 1; t < T; t++) inputs[t] = (int32_t)tokens[t];
    for (int t = 0; t < T; t++) {
        const uint32_t id = tokens[t + 1];
        targets[t] = (int32_t)id;
        largest = id > largest ? id : largest;
    }
    return largest;
}

/* The first id of a window that is too large. */
static void bad_token(const Loader *l, const Shard *s, int64_t first, ShardFault *f) {
    const uint16_t *u16 = l->raw;
    const uint32_t *u32 = l->raw;
    int64_t id = 0, k = 0;
    for (; k <= l->options.seq_len; k++) {
        id = s->info.token_bytes == 2 ? u16[k] : (int64_t)u32[k];
        if (id >= l->options.vocab) break;
    }
    f->code = EXIT_INPUT;
    snprintf(f->what, sizeof f->what,
        "%s: byte %" PRId64 ": token %" PRId64 " is %" PRId64
        "; expected less than the vocabulary size, %d. The shard is damaged or belongs to "
        "another tokenizer: check it with 'shard_tool verify'.",
        s->path, SHARD_HEADER_BYTES + (first + k) * s->info.token_bytes, first + k, id,
        l->options.vocab);
}

/* Reads T + 1 tokens; before, whoever holds the shard's place for a descriptor gives it up. */
static bool fill_window(Loader *l, int shard, int64_t token, int32_t *inputs /* (T) */,
    int32_t *targets /* (T) */, ShardFault *f) {
    const int T = l->options.seq_len;
    Shard *s = &l->shards[shard], **place = &l->at[shard % OPEN];
    if (*place && *place != s) shard_release(*place);
    *place = s;
    if (!shard_read(s, token, (int64_t)T + 1, l->raw, f)) return false;
    const uint32_t largest = s->info.token_bytes == 2 ? copy_u16(inputs, targets, l->raw, T)
                                                      : copy_u32(inputs, targets, l->raw, T);
    if (largest >= (uint32_t)l->options.vocab) bad_token(l, s, token, f);
    return largest < (uint32_t)l->options.vocab;
}

/* Fills slot with micro-batch number micro of this process, up to the first fault. */
static void fill(Loader *l, Slot *slot, int64_t micro) {
    const LoaderOptions *o = &l->options;
    const size_t T = (size_t)o->seq_len;
    const int64_t step = micro / l->micro_steps;
    const int64_t first = step * o->step_sequences + (o->step_sequences / o->world) * o->rank +
                          (micro % l->micro_steps) * o->batch;
    slot->fault.code = 0;
    for (int b = 0; b < o->batch; b++) {
        int shard;
        int64_t token;
        loader_locate(l, first + b, &shard, &token);
        int32_t *inputs = slot->inputs + (size_t)b * T, *targets = slot->targets + (size_t)b * T;
        if (!fill_window(l, shard, token, inputs, targets, &slot->fault)) return;
    }
}

/* ---- prefetch ---- */

static void *prefetch_main(void *user) {
    Loader *l = user;
    pthread_mutex_lock(&l->lock);
    while (!l->stop) {
        if (l->produce - l->serve >= RING) {
            pthread_cond_wait(&l->changed, &l->lock);
            continue;
        }
        const int64_t micro = l->produce;
        l->filling = true;
        pthread_mutex_unlock(&l->lock);
        fill(l, &l->ring[micro % RING], micro);
        pthread_mutex_lock(&l->lock);
        l->filling = false;
        l->produce = micro + 1;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static void prefetch_start(Loader *l) {
    const size_t elements = size_mul((size_t)l->options.batch, (size_t)l->options.seq_len);
    for (int i = 0; i < RING; i++) {
        l->ring[i].inputs = xcalloc(elements, sizeof(int32_t));
        l->ring[i].targets = xcalloc(elements, sizeof(int32_t));
    }
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    /* Signals that ask the program to stop are for the main thread; faults stay with the thread. */
    sigset_t asked, old;
    sigfillset(&asked);
    const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&asked, faults[i]);
    pthread_sigmask(SIG_SETMASK, &asked, &old);
    const int status = pthread_create(&l->thread, NULL, prefetch_main, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (status != 0)
        die(EXIT_IO, "cannot start the prefetch thread: %s. Run with --no-prefetch.",
            strerror(status));
}

static void prefetch_stop(Loader *l) {
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    for (int i = 0; i < RING; i++) {
        free(l->ring[i].inputs);
        free(l->ring[i].targets);
    }
}

/* ---- serving ---- */

void loader_seek(Loader *l, int64_t step) {
    REQUIRE(step >= 0, "step %" PRId64, step);
    l->next = step * l->micro_steps;
    if (!l->options.prefetch) return;
    pthread_mutex_lock(&l->lock);
    while (l->filling) pthread_cond_wait(&l->changed, &l->lock);
    l->serve = l->produce = l->next;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

void loader_next(Loader *l, int32_t *inputs, int32_t *targets) {
    const int64_t micro = l->next++;
    if (!l->options.prefetch) {
        Slot *slot = &l->ring[0]; /* not filled by a thread: lends its place for a fault */
        slot->inputs = inputs;
        slot->targets = targets;
        fill(l, slot, micro);
        if (slot->fault.code) die(slot->fault.code, "%s", slot->fault.what);
        return;
    }
    pthread_mutex_lock(&l->lock);
    while (l->produce <= micro) pthread_cond_wait(&l->changed, &l->lock);
    pthread_mutex_unlock(&l->lock);
    const Slot *slot = &l->ring[micro % RING];
    if (slot->fault.code) die(slot->fault.code, "%s", slot->fault.what);
    const size_t bytes = (size_t)l->options.batch * (size_t)l->options.seq_len * sizeof *inputs;
    memcpy(inputs, slot->inputs, bytes);
    memcpy(targets, slot->targets, bytes);
    pthread_mutex_lock(&l->lock);
    l->serve = micro + 1;
    /* not for each: two threads that wake each other for every small batch do little else */
    if (l->produce - l->serve <= RING / 2) pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}
