/* tokenize_journal.cc: see tokenize_journal.h. Both files have the same form; the unfinished one
 * says more. */
#include "dataloader/tokenize_journal.h"

#include <cjson/cJSON.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "dataloader/shard.h"
#include "laser/base.h"
#include "laser/json.h"

static const char finished_format[] = "laser.c data";
static const char unfinished_format[] = "laser.c data, unfinished";
enum { FORMAT_VERSION = 1 };

std::string manifest_path(const Options &o) {
    return o.out + ".json";
}

std::string progress_path(const Options &o) {
    return o.out + ".progress.json";
}

std::string shard_path(const Options &o, int split, size_t number) {
    char name[40];
    format(name, sizeof name, "_%s_%06zu.bin", split_names[split], number);
    return o.out + name;
}

RunState run_begin(const Options &o) {
    RunState run;
    for (const std::string &path : o.inputs) {
        struct stat st;
        fclose(xfopen(path.c_str(), "rb"));
        if (stat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode))
            die(EXIT_INPUT, "%s: is not a regular file.", path.c_str());
        run.inputs.emplace_back();
        run.inputs.back().name = base_name(path);
        run.inputs.back().size = (int64_t)st.st_size;
    }
    if (o.split >= 0) run.splits[1 - o.split].next.document = Position::NO_MORE;
    if (o.split < 0 && o.val_docs == 0 && !(o.val_fraction > 0))
        run.splits[VAL].next.document = Position::NO_MORE;
    run.train_vocab = o.train_vocab;
    run.train_bytes = o.train_vocab ? o.train_bytes : 0;
    return run;
}

double unigram_entropy(const SplitState &split) {
    double sum = 0;
    for (const int64_t count : split.counts)
        if (count) sum -= (double)count * std::log((double)count / (double)split.tokens);
    return split.tokens ? sum / (double)split.tokens : 0;
}

/* ---- writing ---- */

/* The shortest of a few forms that reads back as the same number. */
static std::string number_text(double value) {
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        format(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, nullptr) == value) break;
    }
    return text;
}

static std::string options_json(const Options &o, const RunState &run) {
    Text t = {};
    text_add(&t, "{\"separator\": \"%s\", \"split\": ", o.separator ? "eos" : "none");
    if (o.split >= 0)
        text_add(&t, "\"%s\"", split_names[o.split]);
    else
        text_add(&t, "null");
    text_add(&t,
        ", \"val_docs\": %" PRId64 ", \"val_fraction\": %s, \"shard_tokens\": %" PRId64
        ", \"train_vocab\": %" PRId64 ", \"train_bytes\": %" PRId64 "}",
        o.val_docs, number_text(o.val_fraction).c_str(), o.shard_tokens, run.train_vocab,
        run.train_bytes);
    const std::string text(t.data, t.size);
    text_free(&t);
    return text;
}

static void add_inputs(Text *t, const RunState &run, bool unfinished) {
    text_add(t, "  \"inputs\": [");
    for (size_t i = 0; i < run.inputs.size(); i++) {
        const InputState &in = run.inputs[i];
        text_add(t, "%s\n    {\"name\": ", i ? "," : "");
        text_add_json_string(t, in.name.c_str());
        text_add(t, ", \"size\": %" PRId64, in.size);
        if (!in.sha256.empty())
            text_add(t,
                ", \"sha256\": \"%s\", \"documents\": %" PRId64 ", \"empty\": %" PRId64
                ", \"bad_lines\": %" PRId64,
                in.sha256.c_str(), in.documents, in.empty, in.bad_lines);
        if (unfinished && in.damaged) text_add(t, ", \"damaged\": true");
        text_add(t, "}");
    }
    text_add(t, "\n  ]");
}

static void add_position(Text *t, const Position &p) {
    text_add(t, ", \"next_document\": %" PRId64 ", \"next_token\": %" PRId64, p.document, p.token);
}

static void add_split(Text *t, const Options &o, const RunState &run, int k, bool unfinished) {
    const SplitState &s = run.splits[k];
    text_add(t,
        "  \"%s\": {\"documents\": %" PRId64 ", \"tokens\": %" PRId64 ", \"bytes\": %" PRId64
        ", \"unigram_entropy_nats\": %.6f",
        split_names[k], s.documents, s.tokens, s.bytes, unigram_entropy(s));
    if (unfinished) {
        add_position(t, s.next);
        text_add(t, ",\n    \"counts\": [");
        for (size_t i = 0; i < s.counts.size(); i++)
            text_add(t, "%s%" PRId64, i ? "," : "", s.counts[i]);
        text_add(t, "]");
    }
    text_add(t, ",\n    \"shards\": [");
    for (size_t i = 0; i < s.shards.size(); i++) {
        const ShardState &shard = s.shards[i];
        text_add(t, "%s\n      {\"file\": ", i ? "," : "");
        text_add_json_string(t, base_name(shard_path(o, k, i)).c_str());
        text_add(t,
            ", \"tokens\": %" PRId64 ", \"documents\": %" PRId64 ", \"crc32c\": \"%08" PRIx32 "\"",
            shard.tokens, shard.documents, shard.crc);
        if (unfinished) {
            text_add(t, ", \"bytes\": %" PRId64, shard.bytes);
            add_position(t, shard.end);
        }
        text_add(t, "}");
    }
    text_add(t, "]}");
}

static void write_run(const Options &o, const Tokenizer &tok, const RunState &run,
    const std::string &path, bool unfinished) {
    Text t = {};
    text_add(&t,
        "{\n  \"format\": \"%s\", \"version\": %d,\n  \"tokenizer\": {\"file\": "
        "\"tokenizer.model\", \"hash\": \"%016" PRIx64
        "\", \"sha256\": \"%s\", \"vocab\": %d, \"eos\": %d},\n  \"options\": %s,\n",
        unfinished ? unfinished_format : finished_format, FORMAT_VERSION, tok.hash,
        tok.sha256.c_str(), tok.vocab, tok.eos, options_json(o, run).c_str());
    add_inputs(&t, run, unfinished);
    text_add(&t, ",\n");
    if (unfinished)
        text_add(&t,
            "  \"part\": {\"input\": %zu, \"documents\": %" PRId64 ", \"check\": %" PRIu32 "},\n",
            run.part.file, run.part.documents, run.part.check);
    add_split(&t, o, run, TRAIN, unfinished);
    text_add(&t, ",\n");
    add_split(&t, o, run, VAL, unfinished);
    text_add(&t, "\n}\n");
    file_write_atomic(path.c_str(), t.data, t.size);
    text_free(&t);
}

void manifest_write(const Options &o, const Tokenizer &t, const RunState &run) {
    write_run(o, t, run, manifest_path(o), false);
}

void progress_write(const Options &o, const Tokenizer &t, const RunState &run) {
    write_run(o, t, run, progress_path(o), true);
}

/* ---- reading ---- */

/* A file that was read, for messages. */
struct Reading {
    std::string path;
    bool unfinished;
};

#define START_OVER "Start over with --force, or choose another --out."

static void NORETURN damaged(const Reading &r, const char *what) {
    die(EXIT_INPUT, "%s: %s. It was not written by this program, or is damaged. " START_OVER,
        r.path.c_str(), what);
}

static const cJSON *member(const Reading &r, const cJSON *object, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!item) damaged(r, (std::string("holds no \"") + name + "\"").c_str());
    return item;
}

static int64_t whole(const Reading &r, const cJSON *item) {
    const double largest = 9007199254740992.0; /* 2^53: the whole numbers of JSON's readers */
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= -1 && item->valuedouble <= largest))
        damaged(r, "holds something else where a whole number belongs");
    return (int64_t)item->valuedouble;
}

static int64_t count_of(const Reading &r, const cJSON *object, const char *name) {
    return whole(r, member(r, object, name));
}

static std::string text_of(const Reading &r, const cJSON *object, const char *name) {
    const cJSON *item = member(r, object, name);
    if (!cJSON_IsString(item)) damaged(r, "holds something else where a string belongs");
    return item->valuestring;
}

static const cJSON *list_of(const Reading &r, const cJSON *object, const char *name) {
    const cJSON *item = member(r, object, name);
    if (!cJSON_IsArray(item)) damaged(r, "holds something else where a list belongs");
    return item;
}

static void NORETURN differs(
    const Reading &r, const std::string &what, const std::string &now, const std::string &then) {
    die(EXIT_USAGE,
        "%s: this is another run than the one %s here: %s is %s; it was %s. " START_OVER,
        r.path.c_str(), r.unfinished ? "interrupted" : "finished", what.c_str(), now.c_str(),
        then.c_str());
}

/* Every option that the shards depend on must be what it was. With --model it does not matter how
 * the model came about: it is compared itself. */
static void compare_options(
    const Reading &r, const cJSON *then, const Options &o, const RunState &run) {
    cJSON *now = cJSON_Parse(options_json(o, run).c_str());
    for (const cJSON *item = now->child; item; item = item->next) {
        if (o.train_vocab == 0 && strncmp(item->string, "train_", 6) == 0) continue;
        char *a = cJSON_PrintUnformatted(item);
        char *b = cJSON_PrintUnformatted(member(r, then, item->string));
        std::string option = std::string("--") + item->string;
        for (char &c : option)
            if (c == '_') c = '-';
        if (!cJSON_Compare(item, member(r, then, item->string), 1)) differs(r, option, a, b);
        free(a);
        free(b);
    }
    cJSON_Delete(now);
}

static void read_inputs(const Reading &r, const cJSON *list, RunState *run) {
    const int then = cJSON_GetArraySize(list);
    if ((size_t)then != run->inputs.size())
        differs(r, "the number of input files", std::to_string(run->inputs.size()),
            std::to_string(then));
    const cJSON *item = list->child;
    for (size_t i = 0; i < run->inputs.size(); i++, item = item->next) {
        InputState *in = &run->inputs[i];
        const std::string name = text_of(r, item, "name");
        const int64_t size = count_of(r, item, "size");
        in->damaged = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(item, "damaged"));
        if (name != in->name) differs(r, "input file " + std::to_string(i + 1), in->name, name);
        if (size != in->size && !in->damaged)
            differs(r, "the size of " + name, std::to_string(in->size), std::to_string(size));
        if (!cJSON_GetObjectItemCaseSensitive(item, "sha256")) continue;
        in->sha256 = text_of(r, item, "sha256");
        in->documents = count_of(r, item, "documents");
        in->empty = count_of(r, item, "empty");
        in->bad_lines = count_of(r, item, "bad_lines");
    }
}

/* The shard that is listed must be there and have the header that it was given. */
static void check_shard(const std::string &path, const ShardState &state) {
    Shard s;
    shard_open(&s, path.c_str());
    if (s.info.tokens != state.tokens || s.info.documents != state.documents ||
        s.info.payload_crc != state.crc)
        die(EXIT_INPUT, "%s: is another shard than the one that was written there. " START_OVER,
            path.c_str());
    shard_close(&s);
}

static Position position_of(const Reading &r, const cJSON *object) {
    return {count_of(r, object, "next_document"), count_of(r, object, "next_token")};
}

static void read_split(
    const Reading &r, const cJSON *root, const Options &o, int k, SplitState *s) {
    const cJSON *object = member(r, root, split_names[k]);
    s->documents = count_of(r, object, "documents");
    s->tokens = count_of(r, object, "tokens");
    s->bytes = count_of(r, object, "bytes");
    const cJSON *item;
    cJSON_ArrayForEach(item, list_of(r, object, "shards")) {
        ShardState shard;
        shard.tokens = count_of(r, item, "tokens");
        shard.documents = count_of(r, item, "documents");
        shard.crc = (uint32_t)strtoul(text_of(r, item, "crc32c").c_str(), nullptr, 16);
        if (r.unfinished) {
            shard.bytes = count_of(r, item, "bytes");
            shard.end = position_of(r, item);
        }
        check_shard(shard_path(o, k, s->shards.size()), shard);
        s->shards.push_back(shard);
    }
    if (!r.unfinished) return;
    s->next = position_of(r, object);
    cJSON_ArrayForEach(item, list_of(r, object, "counts")) s->counts.push_back(whole(r, item));
}

static void read_run(const Reading &r, const Options &o, RunState *run) {
    char *data = file_read_all(r.path.c_str(), nullptr);
    cJSON *root = cJSON_Parse(data);
    free(data);
    const char *expected = r.unfinished ? unfinished_format : finished_format;
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(root, "format");
    if (!cJSON_IsString(name) || strcmp(name->valuestring, expected) != 0)
        die(EXIT_USAGE,
            "%s is there and is not of this program's making, or of an older one's. " START_OVER,
            r.path.c_str());
    if (count_of(r, root, "version") != FORMAT_VERSION)
        damaged(r, "is of another version of this program");
    compare_options(r, member(r, root, "options"), o, *run);
    read_inputs(r, list_of(r, root, "inputs"), run);
    const cJSON *tokenizer = member(r, root, "tokenizer");
    const int64_t vocab = count_of(r, tokenizer, "vocab");
    run->tokenizer_sha256 = text_of(r, tokenizer, "sha256");
    for (int k = 0; k < SPLITS; k++) {
        read_split(r, root, o, k, &run->splits[k]);
        if (r.unfinished && (int64_t)run->splits[k].counts.size() != vocab)
            damaged(r, "the counts are not one for each piece of the vocabulary");
    }
    if (r.unfinished) {
        const cJSON *part = member(r, root, "part");
        run->part.file = (size_t)count_of(r, part, "input");
        run->part.documents = count_of(r, part, "documents");
        run->part.check = (uint32_t)count_of(r, part, "check");
    }
    cJSON_Delete(root);
}

Earlier run_read(const Options &o, RunState *run) {
    const bool finished = access(manifest_path(o).c_str(), F_OK) == 0;
    const bool unfinished = access(progress_path(o).c_str(), F_OK) == 0;
    if (!finished && !unfinished) {
        glob_t found;
        const std::string pattern = o.out + "_{train,val}_[0-9]*.bin";
        const int status = glob(pattern.c_str(), GLOB_BRACE, nullptr, &found);
        if (status != 0 && status != GLOB_NOMATCH)
            die(EXIT_IO, "%s: cannot list the files there: %s.", o.out.c_str(), strerror(errno));
        if (status == 0)
            die(EXIT_USAGE,
                "%s is there from an earlier run. Choose another --out, or replace it "
                "with --force.",
                found.gl_pathv[0]);
        return EARLIER_NONE;
    }
    /* both: the end came between writing the one and removing the other */
    const Reading r = {finished ? manifest_path(o) : progress_path(o), !finished};
    read_run(r, o, run);
    return finished ? EARLIER_FINISHED : EARLIER_UNFINISHED;
}
