/* tokenize_options.cc: see tokenize_options.h. */
#include "dataloader/tokenize_options.h"

#include <cerrno>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <getopt.h>
#include <sched.h>

#include "laser/base.h"
#include "laser/rng.h"

const char *const split_names[SPLITS] = {"train", "val"};

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
    "  --train-bytes N     text to train it on, from the start of the input (100000000)\n"
    "  --vocab-only        write the vocabulary and stop\n"
    "  --out PREFIX        directory and name of the shards; tokenizer.model and tokenizer.bin\n"
    "                      go to the same directory, a manifest to PREFIX.json, last\n"
    "  --shard-tokens N    tokens in a shard (100000000)\n"
    "  --split train|val   all documents go there\n"
    "  --val-docs N        the first N documents are for validation (0)\n"
    "  --val-fraction X    this share of the documents is, drawn by document number (0)\n"
    "  --separator eos|none  end each document with the end-of-document id (eos)\n"
    "  --max-bad N         lines that are not JSON with a string under \"text\" are named and\n"
    "                      left out; more than N of them end the program (100)\n"
    "  --threads N         threads that encode; the shards do not depend on it (all cores)\n"
    "  --force             start over, replacing what an earlier run with this PREFIX left\n"
    "  --quiet             no progress\n"
    "  --help              this text\n"
    "\n"
    "Interrupted at any moment, the same command continues after the last whole shard.\n"
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

/* The index of text in choices. */
static int parse_choice(const char *option, const char *text, const char *const choices[2]) {
    for (int i = 0; i < 2; i++)
        if (strcmp(text, choices[i]) == 0) return i;
    die(EXIT_USAGE, "--%s %s: expected %s or %s.", option, text, choices[0], choices[1]);
}

static const struct option long_options[] = {
    {"model", required_argument, nullptr, 'm'},
    {"train-vocab", required_argument, nullptr, 't'},
    {"train-bytes", required_argument, nullptr, 'b'},
    {"vocab-only", no_argument, nullptr, 'o'},
    {"out", required_argument, nullptr, 'p'},
    {"shard-tokens", required_argument, nullptr, 'n'},
    {"split", required_argument, nullptr, 'S'},
    {"val-docs", required_argument, nullptr, 'd'},
    {"val-fraction", required_argument, nullptr, 'f'},
    {"separator", required_argument, nullptr, 's'},
    {"max-bad", required_argument, nullptr, 'B'},
    {"threads", required_argument, nullptr, 'T'},
    {"force", no_argument, nullptr, 'F'},
    {"quiet", no_argument, nullptr, 'q'},
    {"help", no_argument, nullptr, 'h'},
    {nullptr, 0, nullptr, 0},
};

static void set_option(Options *o, int c, const char *value) {
    static const char *const separators[2] = {"none", "eos"};
    switch (c) {
    case 'm':
        o->model = value;
        break;
    case 't':
        o->train_vocab = parse_count("train-vocab", value, 300, 1 << 24);
        break;
    case 'b':
        o->train_bytes = parse_count("train-bytes", value, 1, INT64_MAX);
        break;
    case 'o':
        o->vocab_only = true;
        break;
    case 'p':
        o->out = value;
        break;
    case 'n':
        o->shard_tokens = parse_count("shard-tokens", value, 1, INT32_MAX);
        break;
    case 'S':
        o->split = parse_choice("split", value, split_names);
        break;
    case 'd':
        o->val_docs = parse_count("val-docs", value, 0, INT64_MAX);
        break;
    case 'f':
        o->val_fraction = parse_fraction("val-fraction", value);
        break;
    case 's':
        o->separator = parse_choice("separator", value, separators) == 1;
        break;
    case 'B':
        o->max_bad = parse_count("max-bad", value, 0, INT64_MAX);
        break;
    case 'T':
        o->threads = (int)parse_count("threads", value, 1, 4096);
        break;
    case 'F':
        o->force = true;
        break;
    case 'q':
        o->quiet = true;
        break;
    case 'h':
        fputs(help_text, stdout);
        exit(0);
    default:
        exit(EXIT_USAGE); /* getopt_long has named the option */
    }
}

static void check_options(const Options &o) {
    if (o.out.empty()) die(EXIT_USAGE, "--out PREFIX is missing. Try --help.");
    if (base_name(o.out).empty())
        die(EXIT_USAGE, "--out %s: expected a name after the directory. Try --help.",
            o.out.c_str());
    if (o.model.empty() == (o.train_vocab == 0))
        die(EXIT_USAGE, "give one of --model FILE and --train-vocab N. Try --help.");
    if ((o.split >= 0) + (o.val_docs > 0) + (o.val_fraction > 0) > 1)
        die(EXIT_USAGE, "give one of --split, --val-docs and --val-fraction, not two.");
    if (o.split == VAL && o.train_vocab)
        die(EXIT_USAGE, "--split val with --train-vocab: a vocabulary is trained on documents "
                        "for training, and there is none. Give --model FILE.");
    if (o.inputs.empty()) die(EXIT_USAGE, "no input file is given. Try --help.");
}

static int cores_available() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

Options options_parse(int argc, char **argv) {
    Options o;
    int c;
    while ((c = getopt_long(argc, argv, "", long_options, nullptr)) != -1)
        set_option(&o, c, optarg);
    for (int i = optind; i < argc; i++) o.inputs.push_back(argv[i]);
    check_options(o);
    if (o.threads == 0) o.threads = cores_available();
    return o;
}

int options_split(const Options &o, int64_t document) {
    if (o.split >= 0) return o.split;
    if (o.val_fraction > 0)
        return rng_uniform(0, 0, (uint64_t)document) < o.val_fraction ? VAL : TRAIN;
    return document < o.val_docs ? VAL : TRAIN;
}

std::string options_directory(const Options &o) {
    const size_t slash = o.out.rfind('/');
    return slash == std::string::npos ? "./" : o.out.substr(0, slash + 1);
}

std::string base_name(const std::string &path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? path : path.substr(slash + 1);
}
