/* c4_tokenize.cc: text -> token shards (FORMAT.md). Reads text and JSON lines, plain or gzipped,
 * cuts them into documents, encodes each whole document with sentencepiece, and writes
 * llm.c-readable shards, the vocabulary as tokenizer.bin and a summary. It can also train the
 * vocabulary. The only program that needs libsentencepiece; knows nothing of models or batches. */
#include "dataloader/shard.h"
#include "dataloader/text_source.h"
#include "laser/base.h"
#include "laser/rng.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <cerrno>
#include <cinttypes>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <getopt.h>
#include <glob.h>
#include <string>
#include <unistd.h>
#include <unordered_map>
#include <vector>

/* ---- options ---- */

struct Options {
    std::vector<std::string> inputs;
    std::string model, out;
    int64_t shard_tokens = 100000000;
    int64_t val_docs = 0;
    double val_fraction = 0;
    bool separator = true;
    int64_t train_vocab = 0;
    int64_t train_bytes = 20000000;
    bool vocab_only = false, force = false;
};

static const char help_text[] =
    "Usage: c4_tokenize (--model FILE | --train-vocab N) --out PREFIX [OPTION]... FILE...\n"
    "Writes text as token shards PREFIX_train_000000.bin, ..., PREFIX_val_000000.bin, ...\n"
    "\n"
    "Input, plain or gzipped: *.json, *.jsonl (one object a line, the document in \"text\");\n"
    "any other name is text: one document, or several separated by form feeds.\n"
    "\n"
    "  --model FILE        sentencepiece model to encode with\n"
    "  --train-vocab N     train a model of N pieces on the input instead\n"
    "                      (of fewer, where the text does not give so many)\n"
    "  --train-bytes N     text to train it on, from the start of the input (20000000)\n"
    "  --vocab-only        write the vocabulary and stop\n"
    "  --out PREFIX        directory and name of the shards; tokenizer.model and tokenizer.bin\n"
    "                      go to the same directory, a summary to PREFIX.json, last\n"
    "  --shard-tokens N    tokens in a shard (100000000)\n"
    "  --val-docs N        the first N documents are for validation (0)\n"
    "  --val-fraction X    this share of the documents is, drawn by document number (0)\n"
    "  --separator eos|none  end each document with the end-of-document id (eos)\n"
    "  --force             replace shards of an earlier run with this PREFIX\n"
    "  --help              this text\n"
    "\n"
    "Exit status: 0 done, 2 wrong usage, 3 bad input, 4 out of space or memory.\n";

static int64_t parse_count(const char *option, const char *text, int64_t low, int64_t high) {
    char *end;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high)
        die(EXIT_USAGE, "--%s %s: expected a whole number from %" PRId64 " to %" PRId64 ".", option,
            text, low, high);
    return value;
}

static double parse_fraction(const char *option, const char *text) {
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !(value >= 0 && value <= 1))
        die(EXIT_USAGE, "--%s %s: expected a number from 0 to 1.", option, text);
    return value;
}

static const struct option long_options[] = {
    {"model", required_argument, nullptr, 'm'},
    {"train-vocab", required_argument, nullptr, 't'},
    {"train-bytes", required_argument, nullptr, 'b'},
    {"vocab-only", no_argument, nullptr, 'o'},
    {"out", required_argument, nullptr, 'p'},
    {"shard-tokens", required_argument, nullptr, 'n'},
    {"val-docs", required_argument, nullptr, 'd'},
    {"val-fraction", required_argument, nullptr, 'f'},
    {"separator", required_argument, nullptr, 's'},
    {"force", no_argument, nullptr, 'F'},
    {"help", no_argument, nullptr, 'h'},
    {nullptr, 0, nullptr, 0},
};

static void check_options(const Options &o) {
    if (o.out.empty()) die(EXIT_USAGE, "--out PREFIX is missing. Try --help.");
    if (o.model.empty() == (o.train_vocab == 0))
        die(EXIT_USAGE, "give one of --model FILE and --train-vocab N. Try --help.");
    if (o.val_docs > 0 && o.val_fraction > 0)
        die(EXIT_USAGE, "give one of --val-docs and --val-fraction, not both.");
    if (o.inputs.empty()) die(EXIT_USAGE, "no input file is given. Try --help.");
}

static Options parse_options(int argc, char **argv) {
    Options o;
    int c;
    while ((c = getopt_long(argc, argv, "", long_options, nullptr)) != -1) {
        switch (c) {
        case 'm':
            o.model = optarg;
            break;
        case 't':
            o.train_vocab = parse_count("train-vocab", optarg, 300, 1 << 24);
            break;
        case 'b':
            o.train_bytes = parse_count("train-bytes", optarg, 1, INT64_MAX);
            break;
        case 'o':
            o.vocab_only = true;
            break;
        case 'p':
            o.out = optarg;
            break;
        case 'n':
            o.shard_tokens = parse_count("shard-tokens", optarg, 1, INT32_MAX);
            break;
        case 'd':
            o.val_docs = parse_count("val-docs", optarg, 0, INT64_MAX);
            break;
        case 'f':
            o.val_fraction = parse_fraction("val-fraction", optarg);
            break;
        case 's':
            if (strcmp(optarg, "eos") != 0 && strcmp(optarg, "none") != 0)
                die(EXIT_USAGE, "--separator %s: expected eos or none.", optarg);
            o.separator = optarg[0] == 'e';
            break;
        case 'F':
            o.force = true;
            break;
        case 'h':
            fputs(help_text, stdout);
            exit(0);
        default:
            exit(EXIT_USAGE); /* getopt_long has named the option */
        }
    }
    for (int i = optind; i < argc; i++) o.inputs.push_back(argv[i]);
    check_options(o);
    return o;
}

/* ---- vocabulary ---- */

static bool is_validation(const Options &o, int64_t document) {
    if (o.val_fraction > 0) return rng_uniform(0, 0, (uint64_t)document) < o.val_fraction;
    return document < o.val_docs;
}

/* Training text in pieces of a few KB: the library leaves long sentences out. Cut at newlines,
 * which are pieces of their own, else at a space, else between characters. */
struct Sentences : sentencepiece::SentenceIterator {
    std::vector<std::string> list;
    size_t at = 0;
    bool done() const override { return at == list.size(); }
    void Next() override { at++; }
    const std::string &value() const override { return list[at]; }
    sentencepiece::util::Status status() const override { return {}; }
};

static void cut_sentences(const std::string &text, std::vector<std::string> *list) {
    enum { LONGEST = 4000 };
    size_t begin = 0;
    while (begin < text.size()) {
        size_t end = text.find('\n', begin);
        size_t next = end + 1;
        if (end == std::string::npos) end = next = text.size();
        if (end - begin > LONGEST) {
            end = text.rfind(' ', begin + LONGEST);
            if (end == std::string::npos || end <= begin) end = begin + LONGEST;
            while (end > begin + 1 && ((unsigned char)text[end] & 0xc0) == 0x80) end--;
            next = end;
        }
        if (end > begin) list->push_back(text.substr(begin, end - begin));
        begin = next;
    }
}

static std::string train_vocabulary(const Options &o) {
    Sentences sentences;
    Source source;
    source.paths = &o.inputs;
    source.quiet = true; /* bad lines are named when the shards are written */
    std::string text, model;
    int64_t bytes = 0;
    while (bytes < o.train_bytes && source_next(&source, &text)) {
        if (is_validation(o, source.documents - 1)) continue;
        if ((int64_t)text.size() > o.train_bytes - bytes)
            text.resize((size_t)(o.train_bytes - bytes));
        bytes += (int64_t)text.size();
        cut_sentences(text, &sentences.list);
    }
    source_close(&source);
    fprintf(stderr, "training a vocabulary of %" PRId64 " pieces on %.1f MB of text\n",
        o.train_vocab, (double)bytes / 1e6);
    /* Newline and tab are pieces of their own and every other byte has one, so that any text comes
     * back as it was. The number of threads is fixed: sums, and so the pieces, depend on it. */
    const std::unordered_map<std::string, std::string> spec = {
        {"model_type", "unigram"},
        {"vocab_size", std::to_string(o.train_vocab)},
        {"normalization_rule_name", "identity"},
        {"remove_extra_whitespaces", "false"},
        {"add_dummy_prefix", "false"},
        {"byte_fallback", "true"},
        {"allow_whitespace_only_pieces", "true"},
        {"split_digits", "true"},
        {"character_coverage", "0.9995"},
        {"user_defined_symbols", "\n,\t"},
        {"unk_id", "0"},
        {"eos_id", "1"},
        {"bos_id", "-1"},
        {"pad_id", "-1"},
        {"max_sentence_length", "8000"},
        {"input_sentence_size", "0"},
        {"shuffle_input_sentence", "false"},
        {"num_threads", "2"},
        {"minloglevel", "2"},
        {"hard_vocab_limit", "false"},
    };
    const auto status = sentencepiece::SentencePieceTrainer::Train(spec, &sentences, &model);
    if (!status.ok())
        die(EXIT_INPUT, "cannot train the vocabulary: %s. Change --train-vocab or give more text.",
            status.ToString().c_str());
    return model;
}

/* What the piece prints as. */
static std::string piece_bytes(const sentencepiece::SentencePieceProcessor &sp, int id) {
    std::string piece = sp.IdToPiece(id);
    if (sp.IsByte(id)) return std::string(1, (char)strtol(piece.c_str() + 3, nullptr, 16));
    if (sp.IsControl(id) || sp.IsUnknown(id)) return piece;
    static const char space[] = "\xe2\x96\x81"; /* U+2581 */
    for (size_t at; (at = piece.find(space)) != std::string::npos;) piece.replace(at, 3, " ");
    return piece;
}

static void export_vocabulary(const sentencepiece::SentencePieceProcessor &sp, const char *path) {
    int32_t header[256] = {20240328, 2, sp.GetPieceSize(), sp.eos_id()};
    std::string file((const char *)header, sizeof header);
    for (int id = 0; id < sp.GetPieceSize(); id++) {
        const std::string bytes = piece_bytes(sp, id);
        if (bytes.empty() || bytes.size() > 255)
            die(EXIT_INPUT,
                "piece %d of the model has %zu bytes; tokenizer.bin holds 1 to 255. Use "
                "a model with shorter pieces.",
                id, bytes.size());
        file += (char)bytes.size();
        file += bytes;
    }
    file_write_atomic(path, file.data(), file.size());
}

/* ---- shards ---- */

struct Split {
    const char *name = nullptr;
    ShardWriter *writer = nullptr;
    int64_t shards = 0, documents = 0, tokens = 0, bytes = 0;
    std::vector<int64_t> counts; /* (vocab) how often each id occurs */
};

struct Output {
    const Options *options;
    ShardInfo info = {};
    Split splits[2];
};

static void split_put(Output *out, Split *split, const std::vector<int> &ids) {
    for (size_t at = 0; at < ids.size();) {
        if (!split->writer) {
            char name[32];
            format(name, sizeof name, "_%s_%06" PRId64 ".bin", split->name, split->shards++);
            split->writer = shard_writer_open((out->options->out + name).c_str(), &out->info);
        }
        const int64_t room = out->options->shard_tokens - shard_writer_tokens(split->writer);
        const int64_t rest = (int64_t)(ids.size() - at);
        const int64_t n = rest < room ? rest : room;
        shard_writer_put(split->writer, &ids[at], n);
        at += (size_t)n;
        if (at == ids.size()) shard_writer_end_document(split->writer);
        if (n < room) continue;
        shard_writer_close(split->writer);
        split->writer = nullptr;
    }
    for (const int id : ids) split->counts[(size_t)id]++;
    split->documents++;
    split->tokens += (int64_t)ids.size();
}

/* Nats a token: what a model reaches that knows only how often each token occurs. */
static double unigram_entropy(const Split &split) {
    double sum = 0;
    for (const int64_t count : split.counts)
        if (count) sum -= (double)count * std::log((double)count / (double)split.tokens);
    return split.tokens ? sum / (double)split.tokens : 0;
}

static void write_summary(const Output &out, const Source &source) {
    std::string text = "{";
    char part[256];
    for (const Split &split : out.splits) {
        format(part, sizeof part,
            "\"%s\": {\"shards\": %" PRId64 ", \"documents\": %" PRId64 ", \"tokens\": %" PRId64
            ", \"bytes\": %" PRId64 ", \"unigram_entropy_nats\": %.6f}, ",
            split.name, split.shards, split.documents, split.tokens, split.bytes,
            unigram_entropy(split));
        text += part;
        printf("%s: %" PRId64 " tokens of %" PRId64 " bytes in %" PRId64 " documents and %" PRId64
               " shards; unigram entropy %.3f nats\n",
            split.name, split.tokens, split.bytes, split.documents, split.shards,
            unigram_entropy(split));
    }
    format(part, sizeof part,
        "\"vocab\": %d, \"eos\": %d, \"tokenizer_hash\": \"%016" PRIx64 "\", \"empty\": %" PRId64
        ", \"bad_lines\": %" PRId64 "}\n",
        out.info.vocab, out.info.eos, out.info.tokenizer_hash, source.empty, source.bad_lines);
    text += part;
    if (source.bad_lines || source.empty || source.nul)
        printf("left out: %" PRId64 " bad lines, %" PRId64 " empty documents; %" PRId64
               " NUL characters became U+FFFD\n",
            source.bad_lines, source.empty, source.nul);
    file_write_atomic((out.options->out + ".json").c_str(), text.data(), text.size());
}

static void write_shards(
    const Options &o, const sentencepiece::SentencePieceProcessor &sp, uint64_t tokenizer_hash) {
    const size_t vocab = (size_t)sp.GetPieceSize();
    Output out;
    out.options = &o;
    out.splits[0].name = "train";
    out.splits[1].name = "val";
    out.info.vocab = sp.GetPieceSize();
    out.info.eos = sp.eos_id();
    out.info.separator = o.separator;
    out.info.tokenizer_hash = tokenizer_hash;
    for (Split &split : out.splits) split.counts.resize(vocab);
    Source source;
    source.paths = &o.inputs;
    std::string text;
    std::vector<int> ids;
    while (source_next(&source, &text)) {
        const auto status = sp.Encode(text, &ids);
        if (!status.ok())
            die(EXIT_INPUT, "document %" PRId64 ": cannot be encoded: %s.", source.documents,
                status.ToString().c_str());
        if (o.separator) ids.push_back(out.info.eos);
        Split *split = &out.splits[is_validation(o, source.documents - 1)];
        split_put(&out, split, ids);
        split->bytes += (int64_t)text.size();
    }
    if (source.documents == 0)
        die(EXIT_INPUT, "%s: no document in the input. Expected text, or JSON lines with \"text\".",
            o.inputs[0].c_str());
    for (Split &split : out.splits)
        if (split.writer) shard_writer_close(split.writer);
    if ((o.val_docs > 0 || o.val_fraction > 0) && out.splits[1].documents == 0)
        warn("there is no document for validation: the input has %" PRId64
             ". A text file is one document; form feeds in it make more.",
            source.documents);
    write_summary(out, source);
}

/* Shards that an earlier run left under the same names would be taken for part of this one. */
static void clear_output(const Options &o) {
    glob_t found;
    const std::string patterns[] = {o.out + "_train_[0-9]*.bin", o.out + "_val_[0-9]*.bin"};
    int flags = 0, status = 0;
    for (const std::string &pattern : patterns) {
        status = glob(pattern.c_str(), flags, nullptr, &found);
        flags = GLOB_APPEND;
    }
    if (status != 0 && status != GLOB_NOMATCH)
        die(EXIT_IO, "%s: cannot list the files there: %s.", o.out.c_str(), strerror(errno));
    if (found.gl_pathc > 0 && !o.force)
        die(EXIT_USAGE,
            "%s is there from an earlier run. Choose another --out, or replace it with "
            "--force.",
            found.gl_pathv[0]);
    unlink((o.out + ".json").c_str()); /* the summary says that the shards are complete */
    for (size_t i = 0; i < found.gl_pathc; i++) unlink(found.gl_pathv[i]);
    globfree(&found);
}

static uint64_t fnv1a(const std::string &data) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const char c : data) hash = (hash ^ (unsigned char)c) * 0x100000001b3;
    return hash;
}

int main(int argc, char **argv) {
    const Options o = parse_options(argc, argv);
    const size_t slash = o.out.rfind('/');
    const std::string dir = slash == std::string::npos ? "./" : o.out.substr(0, slash + 1);
    make_dirs(dir.c_str());
    for (const std::string &path : o.inputs) fclose(xfopen(path.c_str(), "rb"));
    if (!o.vocab_only) clear_output(o);

    std::string model;
    if (o.train_vocab) {
        model = train_vocabulary(o);
    } else {
        size_t size;
        char *data = file_read_all(o.model.c_str(), &size);
        model.assign(data, size);
        free(data);
    }
    sentencepiece::SentencePieceProcessor sp;
    const auto status = sp.LoadFromSerializedProto(model);
    if (!status.ok())
        die(EXIT_INPUT, "%s: is not a sentencepiece model: %s.", o.model.c_str(),
            status.ToString().c_str());
    if (o.train_vocab && sp.GetPieceSize() < o.train_vocab)
        warn("the text gives %d pieces; --train-vocab asked for %" PRId64 ".", sp.GetPieceSize(),
            o.train_vocab);
    if (o.separator && sp.eos_id() < 0)
        die(EXIT_INPUT, "%s: the model has no end-of-document piece. Use --separator none.",
            o.model.c_str());
    file_write_atomic((dir + "tokenizer.model").c_str(), model.data(), model.size());
    export_vocabulary(sp, (dir + "tokenizer.bin").c_str());
    if (!o.vocab_only) write_shards(o, sp, fnv1a(model));
    return 0;
}
