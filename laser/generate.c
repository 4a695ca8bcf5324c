/* generate.c: text from a checkpoint: reads the model, turns the prompt into ids, samples, prints.
 */
#include "laser/generate.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dataloader/encode.h"
#include "dataloader/vocab.h"
#include "laser/base.h"
#include "laser/pretrained.h"
#include "laser/sample.h"

enum { PATH_BYTES = 4096 };

/* NAME beside the vocabulary file that was named, or beside the shards of the run. */
static void beside_vocab(const Config *c, const char *name, char *path, size_t capacity) {
    const char *near = c->tokenizer[0] ? c->tokenizer : c->train;
    const char *slash = strrchr(near, '/');
    format(path, capacity, "%.*s%s", slash ? (int)(slash - near + 1) : 0, near, name);
}

static bool open_vocab(Vocab *v, const Config *c) {
    char path[PATH_BYTES];
    beside_vocab(c, "tokenizer.bin", path, sizeof path);
    if (c->tokenizer[0]) format(path, sizeof path, "%s", c->tokenizer);
    *v = (Vocab){.eos = -1};
    if (!c->tokenizer[0] && file_size(path) < 0) return false;
    vocab_open(v, path);
    if (v->size > c->vocab)
        die(EXIT_INPUT, "%s has %d pieces, the model %" PRId64 ": give its own by --tokenizer",
            path, v->size, c->vocab);
    return true;
}

static int ids_of_text(const Config *c, int32_t **ids) {
    char path[PATH_BYTES];
    beside_vocab(c, "tokenizer.model", path, sizeof path);
    if (file_size(path) < 0)
        die(EXIT_INPUT,
            "--prompt: no sentencepiece model at %s: name the tokenizer.bin beside it by "
            "--tokenizer, or give --prompt-ids",
            path);
    Encoder *e = encoder_open(path);
    if (encoder_size(e) > c->vocab)
        die(EXIT_INPUT, "%s has %d pieces, the model %" PRId64 ": it belongs to another run", path,
            encoder_size(e), c->vocab);
    const int n = encoder_encode(e, c->prompt, strlen(c->prompt), ids);
    encoder_close(e);
    return n;
}

/* "17 4,2" */
static int ids_of_list(const Config *c, int32_t **ids) {
    const char *at = c->prompt_ids;
    *ids = (int32_t *)xcalloc(strlen(at) / 2 + 1, sizeof **ids);
    for (int n = 0;; n++) {
        at += strspn(at, " ,");
        if (!*at) return n;
        char *end;
        const long id = strtol(at, &end, 10);
        if (end == at || id < 0 || id >= c->vocab)
            die(EXIT_USAGE, "--prompt-ids: '%.20s': expected ids from 0 to %" PRId64, at,
                c->vocab - 1);
        (*ids)[n] = (int32_t)id;
        at = end;
    }
}

/* The first tokens, at least one, with room for all that may follow. */
static int32_t *open_prompt(const Config *c, const Vocab *v, int most, int *count) {
    int32_t *ids = NULL, *tokens = (int32_t *)xcalloc((size_t)most, sizeof *tokens);
    int n = 0;
    if (c->prompt_ids[0])
        n = ids_of_list(c, &ids);
    else if (c->prompt[0])
        n = ids_of_text(c, &ids);
    if (n >= most)
        die(EXIT_USAGE, "the prompt has %d tokens; the model takes %d, one of them to come", n,
            most);
    if (n) memcpy(tokens, ids, (size_t)n * sizeof *tokens);
    if (!n) tokens[n++] = v->eos >= 0 ? v->eos : 0; /* what ends a document begins the next */
    free(ids);
    *count = n;
    return tokens;
}

static void print_token(const Vocab *v, int32_t token) {
    if (v->size == 0)
        printf("%d ", token);
    else if (token < v->size && token != v->eos)
        fwrite(v->bytes + v->offset[token], 1, (size_t)(v->offset[token + 1] - v->offset[token]),
            stdout);
    fflush(stdout);
}

void generate(Config *c) {
    Model m;
    Vocab v;
    int count;
    pretrained_open(&m, c, c->sample_from);
    open_vocab(&v, c);
    int32_t *tokens = open_prompt(c, &v, (int)c->seq_len, &count);
    const int64_t wanted = count + c->sample_tokens;
    const int most = (int)(wanted < c->seq_len ? wanted : c->seq_len);
    const SampleRule rule = {c->sample_temperature, (int)c->top_k, (uint64_t)c->seed};
    for (int i = 0; i < count; i++) print_token(&v, tokens[i]);
    for (int from = 0; count < most; from = count++) {
        tokens[count] = sample_next(&m, tokens, from, count, &rule);
        if (tokens[count] == v.eos) break;
        print_token(&v, tokens[count]);
    }
    printf("\n");
    free(tokens);
    vocab_close(&v);
    pretrained_close(&m);
}
