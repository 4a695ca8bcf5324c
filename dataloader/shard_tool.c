/* shard_tool.c: looks into token shards and manifests from the command line: what they are, whether
 * they are whole, what they say. Needs no tokenizer library. Knows nothing of models. */
#include "dataloader/manifest.h"
#include "dataloader/shard.h"
#include "dataloader/vocab.h"
#include "laser/base.h"

#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char help_text[] =
    "Usage: shard_tool COMMAND [OPTION]... FILE...\n"
    "FILE: a token shard, or a manifest (PREFIX.json), which stands for all shards that it names,\n"
    "train before val.\n"
    "\n"
    "  info      shard: its header. Manifest: documents, tokens per document, bytes per token\n"
    "  verify    reads everything. Shard: checksum, every id below the vocabulary size.\n"
    "            Manifest: also that each shard is there as it says and no other beside them,\n"
    "            sums, entropy, and that the tokenizer beside it is the one that was used\n"
    "  count     tokens and documents of each shard and of all; unigram entropy of the tokens\n"
    "  cat       the text, with a form feed after each document\n"
    "\n"
    "  --vocab N         verify: ids must be below N (default: as the shard records)\n"
    "  --tokenizer FILE  cat: the vocabulary (default: tokenizer.bin beside the shard)\n"
    "  --documents A-B   cat: documents A to B alone, counted from 0 through all files; also A\n"
    "                    for one, A- for all from there on\n"
    "  --from N          cat: first token of each shard (0)\n"
    "  --tokens N        cat: how many tokens of each shard (all)\n"
    "  --help            this text\n"
    "\n"
    "Exit status: 0 all is well, 2 wrong usage, 3 a file is missing, damaged or not what the\n"
    "manifest says, 4 out of memory, or the output cannot be written.\n";

typedef struct Options {
    int32_t vocab;
    const char *tokenizer; /* NULL: beside the shard */
    int64_t from, tokens;
    int64_t first, last; /* documents; first -1: not asked for */
} Options;

static int64_t parse_count(const char *option, const char *text, int64_t high) {
    char *end;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < 0 || value > high)
        die(EXIT_USAGE, "--%s %s: expected a whole number from 0 to %" PRId64 ".", option, text,
            high);
    return value;
}

static void parse_documents(Options *o, const char *text) {
    char *end;
    errno = 0;
    o->first = o->last = strtoll(text, &end, 10);
    bool good = !errno && end != text && o->first >= 0;
    if (good && *end == '-') {
        const char *last = end + 1;
        o->last = *last ? strtoll(last, &end, 10) : INT64_MAX;
        if (!*last) end++;
        good = !errno && *last != '-' && *last != '+' && o->last >= o->first;
    }
    if (!good || *end)
        die(EXIT_USAGE,
            "--documents %s: expected A-B, A or A-, where A and B count from 0 and A <= B.", text);
}

static Options parse_options(int argc, char **argv) {
    static const struct option long_options[] = {
        {"vocab", required_argument, NULL, 'v'},
        {"tokenizer", required_argument, NULL, 't'},
        {"documents", required_argument, NULL, 'd'},
        {"from", required_argument, NULL, 'f'},
        {"tokens", required_argument, NULL, 'n'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    Options o = {.tokens = INT64_MAX, .first = -1, .last = INT64_MAX};
    int c;
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (c) {
        case 'v':
            o.vocab = (int32_t)parse_count("vocab", optarg, INT32_MAX);
            break;
        case 't':
            o.tokenizer = optarg;
            break;
        case 'd':
            parse_documents(&o, optarg);
            break;
        case 'f':
            o.from = parse_count("from", optarg, INT64_MAX);
            break;
        case 'n':
            o.tokens = parse_count("tokens", optarg, INT64_MAX);
            break;
        case 'h':
            fputs(help_text, stdout);
            exit(0);
        default:
            exit(EXIT_USAGE); /* getopt_long has named the option */
        }
    }
    if (o.first >= 0 && (o.from > 0 || o.tokens != INT64_MAX))
        die(EXIT_USAGE, "give --documents, or --from and --tokens, not both.");
    return o;
}

/* ---- info ---- */

static void info_shard(const Shard *s) {
    const ShardInfo *i = &s->info;
    printf("%s: %" PRId64 " tokens of %d bytes", s->path, i->tokens, i->token_bytes);
    if (!i->extended) {
        puts(", plain llm.c shard");
        return;
    }
    printf(", vocabulary %d, eos %d, ", i->vocab, i->eos);
    if (i->documents >= 0) printf("%" PRId64 " documents ", i->documents);
    printf("%s, tokenizer %016" PRIx64 ", crc32c %08" PRIx32 "\n",
        i->separator ? "ended by eos" : "without separator", i->tokenizer_hash, i->payload_crc);
}

static void info_manifest(const Manifest *m) {
    const ManifestTokenizer *t = &m->tokenizer;
    int64_t bytes = 0, documents = 0, empty = 0, bad_lines = 0;
    for (int i = 0; i < m->input_count; i++) {
        bytes += m->inputs[i].bytes;
        documents += m->inputs[i].documents;
        empty += m->inputs[i].empty;
        bad_lines += m->inputs[i].bad_lines;
    }
    printf("%s: %" PRId64 " documents %s, tokenizer %s (vocabulary %d, eos %d, %016" PRIx64 ")\n",
        m->path, documents, m->separator ? "ended by eos" : "without separator", t->file, t->vocab,
        t->eos, t->hash);
    printf("  input: %d files of %" PRId64 " bytes; left out: %" PRId64 " empty documents, %" PRId64
           " bad lines\n",
        m->input_count, bytes, empty, bad_lines);
    for (int i = 0; i < MANIFEST_SPLITS; i++) {
        const ManifestSplit *s = &m->splits[i];
        printf("  %s: %" PRId64 " tokens in %d shards, %" PRId64 " documents", s->name, s->tokens,
            s->count, s->documents);
        if (s->documents > 0)
            printf(", %.1f tokens per document, %.3f bytes per token, unigram entropy %.3f nats",
                (double)s->tokens / (double)s->documents, (double)s->bytes / (double)s->tokens,
                s->entropy);
        putchar('\n');
    }
}

/* ---- count ---- */

enum { LARGEST_ID = 1 << 24 }; /* that count makes room for */

typedef struct Counts {
    int64_t shards, tokens, documents; /* documents: -1 once a shard does not say */
    int64_t *of;                       /* (capacity) occurrences of each id */
    size_t capacity;
} Counts;

static void counts_reserve(Counts *c, size_t ids) {
    if (ids <= c->capacity) return;
    const size_t capacity = size_mul(ids, 2);
    int64_t *larger = xcalloc(capacity, sizeof *larger);
    if (c->of) memcpy(larger, c->of, c->capacity * sizeof *larger);
    free(c->of);
    c->of = larger;
    c->capacity = capacity;
}

static void counts_add(Counts *sum, const Counts *c) {
    sum->shards += c->shards;
    sum->tokens += c->tokens;
    sum->documents = sum->documents < 0 || c->documents < 0 ? -1 : sum->documents + c->documents;
    counts_reserve(sum, c->capacity);
    for (size_t id = 0; id < c->capacity; id++) sum->of[id] += c->of[id];
}

static void count_shard(Counts *c, Shard *s) {
    c->shards++;
    c->tokens += s->info.tokens;
    c->documents =
        c->documents < 0 || s->info.documents < 0 ? -1 : c->documents + s->info.documents;
    for (int64_t i = 0; i < s->info.tokens; i++) {
        const size_t id = (size_t)shard_token(s, i);
        if (id > LARGEST_ID)
            die(EXIT_INPUT,
                "%s: byte %" PRId64 ": token %" PRId64
                " is %zu; no tokenizer has so many pieces. The shard is damaged.",
                s->path, SHARD_HEADER_BYTES + i * s->info.token_bytes, i, id);
        counts_reserve(c, id + 1);
        c->of[id]++;
    }
}

/* Nats a token: what a model reaches that knows only how often each id occurs. */
static double counts_entropy(const Counts *c) {
    double sum = 0;
    for (size_t id = 0; id < c->capacity; id++)
        if (c->of[id]) sum -= (double)c->of[id] * log((double)c->of[id] / (double)c->tokens);
    return c->tokens ? sum / (double)c->tokens : 0;
}

static void print_counts(const Counts *c, const char *label) {
    int64_t used = 0;
    for (size_t id = 0; id < c->capacity; id++) used += c->of[id] != 0;
    printf("%s%" PRId64 " tokens in %" PRId64 " shards", label, c->tokens, c->shards);
    if (c->documents >= 0) printf(", %" PRId64 " documents", c->documents);
    printf(", %" PRId64 " different ids, unigram entropy %.3f nats\n", used, counts_entropy(c));
}

static void count_file(Counts *c, const char *path) {
    Shard s;
    shard_open(&s, path);
    count_shard(c, &s);
    printf("%s: %" PRId64 " tokens", path, s.info.tokens);
    if (s.info.documents >= 0) printf(", %" PRId64 " documents", s.info.documents);
    putchar('\n');
    shard_close(&s);
}

static void count_manifest(Counts *all, const Manifest *m) {
    for (int i = 0; i < MANIFEST_SPLITS; i++) {
        const ManifestSplit *split = &m->splits[i];
        Counts c = {0};
        char path[4096], label[4096];
        for (int k = 0; k < split->count; k++) {
            manifest_beside(m, split->shards[k].file, path, sizeof path);
            count_file(&c, path);
        }
        format(label, sizeof label, "%s, %s: ", m->path, split->name);
        print_counts(&c, label);
        counts_add(all, &c);
        free(c.of);
    }
}

/* ---- verify ---- */

static void verify_shard(Shard *s, int32_t vocab) {
    shard_verify(s, vocab);
    printf("%s: whole%s\n", s->path,
        s->info.extended ? "" : " (plain llm.c shard: no checksum, sizes and ids only)");
}

static void expect(const Shard *s, const Manifest *m, const char *what, int64_t got, int64_t want) {
    if (got != want)
        die(EXIT_INPUT,
            "%s: %s is %" PRId64 "; %s says %" PRId64
            ". The one is not of the same run as the other, or was changed: copy both again, or "
            "write them again.",
            s->path, what, got, m->path, want);
}

static void verify_listed(
    const Manifest *m, const ManifestShard *listed, const char *path, int32_t vocab, Counts *c) {
    Shard s;
    shard_open(&s, path);
    if (!s.info.extended)
        die(EXIT_INPUT, "%s: is a plain llm.c shard; %s names one with our extension.", path,
            m->path);
    expect(&s, m, "token count", s.info.tokens, listed->tokens);
    expect(&s, m, "document count", s.info.documents, listed->documents);
    expect(&s, m, "vocabulary size", s.info.vocab, m->tokenizer.vocab);
    expect(&s, m, "end-of-document id", s.info.eos, m->tokenizer.eos);
    expect(&s, m, "separator", s.info.separator, m->separator);
    if (s.info.payload_crc != listed->crc)
        die(EXIT_INPUT,
            "%s: its header has checksum %08" PRIx32 "; %s says %08" PRIx32
            ". Copy both again, or write them again.",
            path, s.info.payload_crc, m->path, listed->crc);
    if (s.info.tokenizer_hash != m->tokenizer.hash)
        die(EXIT_INPUT,
            "%s: was written with tokenizer %016" PRIx64 "; %s says %016" PRIx64
            ". Shards of two vocabularies must not be mixed.",
            path, s.info.tokenizer_hash, m->path, m->tokenizer.hash);
    verify_shard(&s, vocab);
    count_shard(c, &s);
    shard_close(&s);
}

/* Training patterns take every shard of the prefix, also those that an earlier run left. */
static void verify_no_other(const Manifest *m, const ManifestSplit *split) {
    char directory[4096], prefix[4096];
    const char *slash = strrchr(m->path, '/'), *base = slash ? slash + 1 : m->path;
    manifest_beside(m, ".", directory, sizeof directory);
    format(prefix, sizeof prefix, "%.*s_%s_", (int)(strlen(base) - strlen(".json")), base,
        split->name);
    DIR *dir = opendir(directory);
    if (!dir) die(EXIT_INPUT, "%s: cannot be listed: %s.", directory, strerror(errno));
    for (const struct dirent *entry; (entry = readdir(dir));) {
        const char *name = entry->d_name;
        const size_t length = strlen(name);
        bool known = strncmp(name, prefix, strlen(prefix)) != 0 || length < 4 ||
                     strcmp(name + length - 4, ".bin") != 0;
        for (int i = 0; i < split->count && !known; i++)
            known = strcmp(name, split->shards[i].file) == 0;
        if (!known)
            die(EXIT_INPUT,
                "%s: lies beside the shards of %s and is not one of them; a training pattern would "
                "take it. Remove it.",
                name, m->path);
    }
    closedir(dir);
}

static void verify_tokenizer(const Manifest *m) {
    char path[4096];
    size_t size;
    manifest_beside(m, m->tokenizer.file, path, sizeof path);
    char *data = file_read_all(path, &size);
    const uint64_t hash = manifest_hash(data, (int64_t)size);
    free(data);
    if (hash != m->tokenizer.hash)
        die(EXIT_INPUT,
            "%s: has hash %016" PRIx64 "; %s says %016" PRIx64
            ": it is damaged, or not the vocabulary that these shards were written with. Put that "
            "one in its place.",
            path, hash, m->path, m->tokenizer.hash);
}

static void verify_manifest(const Manifest *m, int32_t vocab) {
    enum { DIGITS = 6 }; /* of the entropy, behind the point */
    int64_t shards = 0, tokens = 0;
    manifest_check_layout(m);
    verify_tokenizer(m);
    for (int i = 0; i < MANIFEST_SPLITS; i++) {
        const ManifestSplit *split = &m->splits[i];
        Counts c = {0};
        char path[4096];
        verify_no_other(m, split);
        for (int k = 0; k < split->count; k++) {
            manifest_beside(m, split->shards[k].file, path, sizeof path);
            verify_listed(m, &split->shards[k], path, vocab, &c);
        }
        const double entropy = counts_entropy(&c);
        if (fabs(entropy - split->entropy) > pow(10, -DIGITS))
            die(EXIT_INPUT,
                "%s: %s.unigram_entropy_nats is %.*f; the tokens give %.*f. The manifest was "
                "changed: copy it again.",
                m->path, split->name, DIGITS, split->entropy, DIGITS, entropy);
        shards += c.shards;
        tokens += c.tokens;
        free(c.of);
    }
    printf("%s: whole: %" PRId64 " tokens in %" PRId64 " shards, written with the %s beside it\n",
        m->path, tokens, shards, m->tokenizer.file);
}

/* ---- cat ---- */

static void open_vocabulary(Vocab *v, const Options *o, const Shard *s) {
    char path[4096];
    const char *slash = strrchr(s->path, '/');
    const int directory = slash ? (int)(slash - s->path) + 1 : 0;
    format(path, sizeof path, "%.*stokenizer.bin", directory, s->path);
    vocab_open(v, o->tokenizer ? o->tokenizer : path);
    if (s->info.extended && s->info.vocab != v->size)
        die(EXIT_INPUT,
            "%s: was written with a vocabulary of %d; %s has %d pieces. Name the right one with "
            "--tokenizer.",
            s->path, s->info.vocab, o->tokenizer ? o->tokenizer : path, v->size);
}

/* Tokens from begin to end (not included) of a shard. */
static void print_tokens(Shard *s, const Vocab *v, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const int64_t id = shard_token(s, i);
        if (id >= v->size)
            die(EXIT_INPUT,
                "%s: byte %" PRId64 ": token %" PRId64 " is %" PRId64
                "; expected less than the vocabulary size, %d. The shard is damaged or belongs to "
                "another tokenizer.",
                s->path, SHARD_HEADER_BYTES + i * s->info.token_bytes, i, id, v->size);
        if (id == v->eos)
            putchar('\f');
        else
            fwrite(
                v->bytes + v->offset[id], 1, (size_t)(v->offset[id + 1] - v->offset[id]), stdout);
    }
}

/* Those tokens of the shard that belong to the wanted documents. *document: number of the one that
 * the shard begins in; afterwards, of the one that the next begins in. */
static void print_documents(Shard *s, const Vocab *v, const Options *o, int64_t *document) {
    if (!s->info.extended || !s->info.separator)
        die(EXIT_USAGE,
            "%s: does not tell where its documents end: it was written without separator, or by "
            "another program. Use --from and --tokens.",
            s->path);
    if (s->info.documents >= 0 && *document + s->info.documents < o->first) {
        *document += s->info.documents;
        return;
    }
    int64_t begin = 0;
    for (int64_t i = 0; i < s->info.tokens && *document <= o->last; i++) {
        if (shard_token(s, i) != s->info.eos && i + 1 < s->info.tokens) continue;
        if (*document >= o->first) print_tokens(s, v, begin, i + 1);
        begin = i + 1;
        *document += shard_token(s, i) == s->info.eos;
    }
}

static void print_shard(const char *path, const Options *o, int64_t *document) {
    if (o->first >= 0 && *document > o->last) return;
    Shard s;
    Vocab v;
    shard_open(&s, path);
    open_vocabulary(&v, o, &s);
    if (o->first >= 0) {
        print_documents(&s, &v, o, document);
    } else {
        const int64_t rest = s.info.tokens - o->from;
        print_tokens(&s, &v, o->from, o->tokens < rest ? o->from + o->tokens : s.info.tokens);
    }
    vocab_close(&v);
    shard_close(&s);
}

static void print_manifest(const Manifest *m, const Options *o, int64_t *document) {
    char path[4096];
    for (int i = 0; i < MANIFEST_SPLITS; i++)
        for (int k = 0; k < m->splits[i].count; k++) {
            manifest_beside(m, m->splits[i].shards[k].file, path, sizeof path);
            print_shard(path, o, document);
        }
}

/* ---- commands ---- */

typedef enum Command { INFO, VERIFY, COUNT, CAT, COMMANDS } Command;

typedef struct Results {
    Counts counts;
    int64_t documents; /* cat: that have ended so far */
} Results;

static void do_manifest(Command command, const Options *o, const char *path, Results *r) {
    Manifest m;
    manifest_open(&m, path, NULL);
    if (command == INFO) info_manifest(&m);
    if (command == VERIFY) verify_manifest(&m, o->vocab);
    if (command == COUNT) count_manifest(&r->counts, &m);
    if (command == CAT) print_manifest(&m, o, &r->documents);
    manifest_close(&m);
}

static void do_shard(Command command, const Options *o, const char *path, Results *r) {
    if (command == COUNT) count_file(&r->counts, path);
    if (command == CAT) print_shard(path, o, &r->documents);
    if (command == COUNT || command == CAT) return;
    Shard s;
    shard_open(&s, path);
    if (command == INFO) info_shard(&s);
    if (command == VERIFY) verify_shard(&s, o->vocab);
    shard_close(&s);
}

static bool is_manifest_name(const char *path) {
    const size_t length = strlen(path);
    return length >= 5 && strcmp(path + length - 5, ".json") == 0;
}

int main(int argc, char **argv) {
    const Options o = parse_options(argc, argv);
    static const char *const commands[] = {"info", "verify", "count", "cat"};
    int command = 0;
    if (optind + 1 >= argc) die(EXIT_USAGE, "give a command and a shard or manifest. Try --help.");
    while (command < COMMANDS && strcmp(argv[optind], commands[command]) != 0) command++;
    if (command == COMMANDS)
        die(EXIT_USAGE, "%s: no such command; there are info, verify, count and cat. Try --help.",
            argv[optind]);
    Results results = {0};
    for (int i = optind + 1; i < argc; i++)
        (is_manifest_name(argv[i]) ? do_manifest : do_shard)(
            (Command)command, &o, argv[i], &results);
    if (command == COUNT) print_counts(&results.counts, "");
    if (fflush(stdout) != 0 || ferror(stdout))
        die(EXIT_IO, "cannot write to standard output: %s.", strerror(errno));
    if (command == CAT && o.first >= 0 && o.last != INT64_MAX && results.documents <= o.last)
        die(EXIT_USAGE,
            "--documents: asks for document %" PRId64 "; there are %" PRId64 ", counted from 0.",
            o.last, results.documents);
    free(results.counts.of);
    return 0;
}
