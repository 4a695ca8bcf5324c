/* shard_tool.c: looks into token shards from the command line: what they are, whether they are
 * whole, what they say. Needs no tokenizer library. Knows nothing of models. */
#include "dataloader/shard.h"
#include "dataloader/vocab.h"
#include "laser/base.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char help_text[] =
    "Usage: shard_tool COMMAND [OPTION]... SHARD...\n"
    "\n"
    "  info      header of each shard\n"
    "  verify    reads everything: checksum, every id below the vocabulary size\n"
    "  count     tokens and documents of all, and the unigram entropy of the tokens\n"
    "  cat       the text, with a form feed after each document\n"
    "\n"
    "  --vocab N         verify: ids must be below N (default: as the shard records)\n"
    "  --tokenizer FILE  cat: the vocabulary (default: tokenizer.bin beside the shard)\n"
    "  --from N          cat: first token of each shard (0)\n"
    "  --tokens N        cat: how many tokens of each shard (all)\n"
    "  --help            this text\n"
    "\n"
    "Exit status: 0 all is well, 2 wrong usage, 3 a file is missing or damaged.\n";

typedef struct Options {
    int32_t vocab;
    const char *tokenizer; /* NULL: beside the shard */
    int64_t from, tokens;
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

static Options parse_options(int argc, char **argv) {
    static const struct option long_options[] = {
        {"vocab", required_argument, NULL, 'v'},
        {"tokenizer", required_argument, NULL, 't'},
        {"from", required_argument, NULL, 'f'},
        {"tokens", required_argument, NULL, 'n'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    Options o = {.tokens = INT64_MAX};
    int c;
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (c) {
        case 'v':
            o.vocab = (int32_t)parse_count("vocab", optarg, INT32_MAX);
            break;
        case 't':
            o.tokenizer = optarg;
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
    return o;
}

static int64_t token_at(Shard *s, int64_t i) {
    return shard_token(s, i);
}

static void print_info(const Shard *s) {
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

/* ---- count ---- */

enum { LARGEST_ID = 1 << 24 }; /* that count makes room for */

typedef struct Counts {
    int64_t shards, tokens, documents; /* documents: -1 once a shard does not say */
    int64_t *of;                       /* (capacity) occurrences of each id */
    size_t capacity;
} Counts;

static void count_shard(Counts *c, Shard *s) {
    c->shards++;
    c->tokens += s->info.tokens;
    c->documents =
        c->documents < 0 || s->info.documents < 0 ? -1 : c->documents + s->info.documents;
    for (int64_t i = 0; i < s->info.tokens; i++) {
        const size_t id = (size_t)token_at(s, i);
        if (id > LARGEST_ID)
            die(EXIT_INPUT,
                "%s: byte %" PRId64 ": token %" PRId64
                " is %zu; no tokenizer has so many pieces. The shard is damaged.",
                s->path, SHARD_HEADER_BYTES + i * s->info.token_bytes, i, id);
        if (id >= c->capacity) {
            const size_t capacity = size_mul(id + 1, 2);
            int64_t *larger = xcalloc(capacity, sizeof *larger);
            if (c->of) memcpy(larger, c->of, c->capacity * sizeof *larger);
            free(c->of);
            c->of = larger;
            c->capacity = capacity;
        }
        c->of[id]++;
    }
}

static void print_counts(Counts *c) {
    double entropy = 0;
    int64_t used = 0;
    for (size_t id = 0; id < c->capacity; id++) {
        if (c->of[id] == 0) continue;
        used++;
        entropy -= (double)c->of[id] * log((double)c->of[id] / (double)c->tokens);
    }
    printf("%" PRId64 " tokens in %" PRId64 " shards", c->tokens, c->shards);
    if (c->documents >= 0) printf(", %" PRId64 " documents", c->documents);
    printf(", %" PRId64 " different ids, unigram entropy %.3f nats\n", used,
        entropy / (double)c->tokens);
    free(c->of);
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

static void print_text(Shard *s, const Options *o) {
    Vocab v;
    open_vocabulary(&v, o, s);
    const int64_t rest = s->info.tokens - o->from;
    const int64_t end = o->tokens < rest ? o->from + o->tokens : s->info.tokens;
    for (int64_t i = o->from; i < end; i++) {
        const int64_t id = token_at(s, i);
        if (id >= v.size)
            die(EXIT_INPUT,
                "%s: byte %" PRId64 ": token %" PRId64 " is %" PRId64
                "; expected less than the vocabulary size, %d. The shard is damaged or belongs to "
                "another tokenizer.",
                s->path, SHARD_HEADER_BYTES + i * s->info.token_bytes, i, id, v.size);
        if (id == v.eos)
            putchar('\f');
        else
            fwrite(v.bytes + v.offset[id], 1, (size_t)(v.offset[id + 1] - v.offset[id]), stdout);
    }
    vocab_close(&v);
}

int main(int argc, char **argv) {
    const Options o = parse_options(argc, argv);
    static const char *const commands[] = {"info", "verify", "count", "cat"};
    enum { INFO, VERIFY, COUNT, CAT, COMMANDS };
    int command = 0;
    if (optind + 1 >= argc) die(EXIT_USAGE, "give a command and a shard. Try --help.");
    while (command < COMMANDS && strcmp(argv[optind], commands[command]) != 0) command++;
    if (command == COMMANDS)
        die(EXIT_USAGE, "%s: no such command; there are info, verify, count and cat. Try --help.",
            argv[optind]);
    Counts counts = {0};
    for (int i = optind + 1; i < argc; i++) {
        Shard s;
        shard_open(&s, argv[i]);
        if (command == INFO) print_info(&s);
        if (command == VERIFY) {
            shard_verify(&s, o.vocab);
            printf("%s: whole%s\n", s.path,
                s.info.extended ? "" : " (plain llm.c shard: no checksum, sizes and ids only)");
        }
        if (command == COUNT) count_shard(&counts, &s);
        if (command == CAT) print_text(&s, &o);
        shard_close(&s);
    }
    if (command == COUNT) print_counts(&counts);
    if (fflush(stdout) != 0 || ferror(stdout))
        die(EXIT_IO, "cannot write to standard output: %s.", strerror(errno));
    return 0;
}
