/* c4_tokenize.cc: text -> token shards (FORMAT.md). Reads text and JSON lines, plain or gzipped,
 * cuts them into documents, encodes each whole document with sentencepiece, and writes
 * llm.c-readable shards, the vocabulary and a manifest; trains the vocabulary when asked to.
 * Interrupted, it continues. Reading order: text_source.h, documents.h, tokenizer.h,
 * tokenize_pipeline.h (threads), tokenize_output.h (shards), tokenize_journal.h (JSON). */
#include <fcntl.h>
#include <glob.h>
#include <malloc.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <new>

#include "dataloader/tokenize_output.h"
#include "dataloader/tokenize_pipeline.h"
#include "dataloader/tokenize_progress.h"
#include "laser/base.h"

/* ---- the vocabulary ---- */

/* The training documents from the start of the input, train_bytes of them. */
static std::string train_vocabulary(const Options &o) {
    std::vector<std::string> sentences;
    Source *source = source_open(&o.inputs, 0);
    Block block;
    int64_t bytes = 0, number = 0;
    while (bytes < o.train_bytes && source_next(source, &block)) {
        Documents d; /* bad lines are named when the shards are written */
        documents_cut(block, true, &d);
        for (size_t i = 0, begin = 0; i < d.ends.size(); begin = d.ends[i++]) {
            if (options_split(o, number++) != TRAIN) continue;
            const int64_t rest = o.train_bytes - bytes, all = (int64_t)(d.ends[i] - begin);
            const int64_t n = all < rest ? all : rest;
            sentences_add(d.text.substr(begin, (size_t)n), &sentences);
            bytes += n;
        }
        if (!block.fault.empty()) die(EXIT_INPUT, "%s", block.fault.c_str());
    }
    source_close(source);
    if (!o.quiet)
        fprintf(stderr, "training a vocabulary of %" PRId64 " pieces on %.1f MB of text\n",
            o.train_vocab, (double)bytes / 1e6);
    return tokenizer_train(o.train_vocab, &sentences);
}

static std::string read_whole(const std::string &path) {
    size_t size;
    char *data = file_read_all(path.c_str(), &size);
    std::string text(data, size);
    free(data);
    return text;
}

/* sha256: of the tokenizer of the run that is to be continued, or empty. */
static void get_tokenizer(const Options &o, const std::string &sha256, Tokenizer *t) {
    const std::string left = options_directory(o) + "tokenizer.model";
    std::string model;
    if (!o.model.empty())
        model = read_whole(o.model);
    else if (!sha256.empty() && file_size(left.c_str()) >= 0)
        model = read_whole(left);
    if (o.model.empty() && (model.empty() || sha256_hex(model) != sha256))
        model = train_vocabulary(o);
    tokenizer_load(t, model, o.model.empty() ? left.c_str() : o.model.c_str());
    t->sha256 = sha256_hex(model);
    if (!sha256.empty() && t->sha256 != sha256)
        die(EXIT_USAGE,
            "%s: is another tokenizer than that of the run which was interrupted here. Start over "
            "with --force, or choose another --out.",
            o.model.empty() ? "--train-vocab" : o.model.c_str());
    if (o.train_vocab && t->vocab < o.train_vocab)
        warn("the text gives %d pieces; --train-vocab asked for %" PRId64 ".", t->vocab,
            o.train_vocab);
    if (o.separator && t->eos < 0)
        die(EXIT_INPUT, "%s: the model has no end-of-document piece. Use --separator none.",
            o.model.c_str());
}

/* Shards of other runs may lie beside a tokenizer that is there: it is not replaced. */
static void write_vocabulary(const Options &o, const Tokenizer &t) {
    const std::string path = options_directory(o) + "tokenizer.model",
                      ids = options_directory(o) + "tokenizer.bin", list = tokenizer_export(t);
    const bool there = file_size(path.c_str()) >= 0;
    const bool same = there && read_whole(path) == t.model;
    if (there && !same && !o.force)
        die(EXIT_USAGE,
            "%s is there, with other pieces: shards beside it may be written with it. Choose "
            "another directory for --out, give this one as --model, or replace it with --force.",
            path.c_str());
    if (!same) file_write_atomic(path.c_str(), t.model.data(), t.model.size());
    if (file_size(ids.c_str()) < 0 || read_whole(ids) != list)
        file_write_atomic(ids.c_str(), list.data(), list.size());
}

/* ---- the shards ---- */

/* What this call has seen, besides what the output keeps. */
struct Call {
    const Options *o;
    Output out;
    Progress progress;
    InputState input;  /* the one that is being read */
    int64_t lines = 0; /* of it, before the batch */
    int64_t bad_lines = 0, named = 0, altered = 0;
    int64_t size_before = 0; /* bytes of the inputs before this one */
    std::string fault;
};

/* false when there were too many. */
static bool name_bad_lines(Call *c, const Batch &batch) {
    enum { NAMED = 100 };
    const char *path = c->o->inputs[batch.block.file].c_str();
    for (const BadLine &bad : batch.documents.bad) {
        progress_clear(&c->progress);
        const std::string where = std::string(path) + ":" +
                                  std::to_string(c->lines + bad.line + 1) + " (byte " +
                                  std::to_string(bad.offset) + " of the text)";
        if (++c->bad_lines > c->o->max_bad) {
            c->fault = where + " " + bad.fault + "; that is one more than --max-bad " +
                       std::to_string(c->o->max_bad) +
                       " allows. Mend the file, or allow more, and run the same command again.";
            return false;
        }
        c->input.bad_lines++;
        if (++c->named <= NAMED)
            warn("%s %s; it is left out.", where.c_str(), bad.fault);
        else if (c->named == NAMED + 1)
            warn("more lines are bad; they are counted, not named.");
    }
    c->lines += batch.documents.lines;
    return true;
}

static void put_documents(Call *c, const Batch &batch) {
    size_t text = 0, ids = 0;
    for (size_t i = 0; i < batch.crcs.size(); i++) {
        EncodedDocument d;
        d.input = batch.block.file;
        d.number = batch.first_document + (int64_t)i;
        d.split = options_split(*c->o, d.number);
        d.bytes = (int64_t)(batch.documents.ends[i] - text);
        d.crc = batch.crcs[i];
        d.ids = batch.encoded[i] ? batch.ids.data() + ids : nullptr;
        d.n = (int64_t)(batch.id_ends[i] - ids);
        output_document(&c->out, d);
        if (batch.encoded[i]) {
            c->progress.documents++;
            c->progress.tokens += d.n;
            c->progress.bytes += d.bytes;
        }
        text = batch.documents.ends[i];
        ids = batch.id_ends[i];
    }
    c->input.documents += (int64_t)batch.crcs.size();
    c->input.empty += batch.documents.empty;
    c->altered += batch.altered;
}

static bool consume(Call *c, const Batch &batch) {
    const Block &block = batch.block;
    if (!batch.fault.empty()) {
        c->fault = c->o->inputs[block.file] + ": cannot be encoded: " + batch.fault;
        return false;
    }
    const bool few = name_bad_lines(c, batch);
    if (few) put_documents(c, batch);
    if (few) c->fault = block.fault;
    if (!c->fault.empty()) {
        output_damaged(&c->out, block.file);
        return false;
    }
    progress_update(&c->progress, c->size_before + block.read);
    if (!block.last) return true;
    c->size_before += c->out.whole.inputs[block.file].size;
    c->input.size = block.read;
    c->input.sha256 = block.sha256;
    output_input_end(&c->out, block.file, c->input);
    c->input = InputState();
    c->lines = 0;
    return true;
}

static void print_summary(const Options &o, const Call &c) {
    int64_t empty = 0, bad = 0, documents = 0;
    for (const InputState &in : c.out.whole.inputs) {
        empty += in.empty;
        bad += in.bad_lines;
        documents += in.documents;
    }
    for (int k = 0; k < SPLITS; k++) {
        const SplitState &s = c.out.whole.splits[k];
        printf("%s: %" PRId64 " tokens of %" PRId64 " bytes in %" PRId64
               " documents and %zu shards; unigram entropy %.3f nats\n",
            split_names[k], s.tokens, s.bytes, s.documents, s.shards.size(), unigram_entropy(s));
    }
    if (bad || empty)
        printf("left out: %" PRId64 " bad lines, %" PRId64 " empty documents\n", bad, empty);
    if (c.altered)
        warn("%" PRId64 " documents do not come back byte for byte: the model normalises them.",
            c.altered);
    if ((o.val_docs > 0 || o.val_fraction > 0) && c.out.whole.splits[VAL].documents == 0)
        warn("there is no document for validation: the input has %" PRId64
             ". A text file is one document; form feeds in it make more.",
            documents);
}

static void write_shards(const Options &o, const Tokenizer &t, const RunState &run) {
    Call c;
    c.o = &o;
    output_begin(&c.out, &o, &t, run);
    int64_t total = 0;
    for (size_t i = 0; i < run.inputs.size(); i++) {
        if (i == c.out.first_input) c.size_before = total;
        total += run.inputs[i].size;
        if (i < c.out.first_input) c.bad_lines += run.inputs[i].bad_lines;
    }
    progress_begin(&c.progress, o.quiet, total);
    Pipeline p;
    p.paths = &o.inputs;
    p.first_input = c.out.first_input;
    p.first_document = c.out.first_document;
    p.threads = o.threads;
    p.tokenizer = &t;
    p.separator = o.separator ? t.eos : -1;
    const RunState start = c.out.whole; /* the threads must not read what output_document changes */
    p.wanted = [&](int64_t document) {
        return !run_has(start, options_split(o, document), document);
    };
    p.consume = [&](const Batch &batch) { return consume(&c, batch); };
    pipeline_run(p);
    progress_clear(&c.progress);
    if (!c.fault.empty()) die(EXIT_INPUT, "%s", c.fault.c_str());
    int64_t documents = 0;
    for (const InputState &in : c.out.whole.inputs) documents += in.documents;
    if (documents == 0)
        die(EXIT_INPUT, "%s: no document in the input. Expected text, or JSON lines with \"text\".",
            o.inputs[0].c_str());
    output_end(&c.out);
    print_summary(o, c);
}

/* ---- earlier runs ---- */

static std::string lock_path(const Options &o) {
    return o.out + ".lock";
}

/* Two programs that write the same shards would spoil each other's: the second one ends here. The
 * lock ends with the process, and its file with it, except where kill -9 ends it. */
static void lock_output(const Options &o) {
    const std::string path = lock_path(o);
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) die(EXIT_IO, "%s: cannot be created: %s.", path.c_str(), strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        die(EXIT_USAGE, "%s: another c4_tokenize is at work with this --out.", path.c_str());
    on_exit([](int, void *name) { unlink((char *)name); }, xstrdup(path.c_str()));
}

/* --force: removes what an earlier run with this --out has left, what tells of it first. */
static void clear_output(const Options &o) {
    glob_t found;
    const std::string pattern = o.out + "_{train,val}_[0-9]*.bin{,.tmp}";
    unlink(manifest_path(o).c_str());
    unlink(progress_path(o).c_str());
    if (glob(pattern.c_str(), GLOB_BRACE, nullptr, &found) != 0) return;
    for (size_t i = 0; i < found.gl_pathc; i++) unlink(found.gl_pathv[i]);
    globfree(&found);
}

int main(int argc, char **argv) {
    /* The library gets some hundred KB for each document, in many small pieces, and frees them:
     * glibc would return the memory to the system each time, and merge its fast bins first. */
    mallopt(M_TRIM_THRESHOLD, 16 << 20);
    mallopt(M_MMAP_THRESHOLD, 16 << 20);
    mallopt(M_MXFAST, 0);
    std::set_new_handler([] { die(EXIT_IO, "out of memory"); });
    const Options o = options_parse(argc, argv);
    make_dirs(options_directory(o).c_str());
    RunState run = run_begin(o);
    Earlier earlier = EARLIER_NONE;
    if (!o.vocab_only) {
        lock_output(o);
        if (!o.force) earlier = run_read(o, &run);
    }
    if (earlier == EARLIER_FINISHED) {
        if (!o.model.empty() && sha256_hex(read_whole(o.model)) != run.tokenizer_sha256)
            die(EXIT_USAGE,
                "%s: was made with another model than %s. Start over with --force, or "
                "choose another --out.",
                manifest_path(o).c_str(), o.model.c_str());
        unlink(progress_path(o).c_str());
        printf("%s: is there already, and complete\n", manifest_path(o).c_str());
        return 0;
    }
    Tokenizer t;
    get_tokenizer(o, run.tokenizer_sha256, &t);
    if (o.force && !o.vocab_only) clear_output(o); /* nothing is lost to a model that is none */
    write_vocabulary(o, t);
    if (o.vocab_only) return 0;
    write_shards(o, t, run);
    unlink(lock_path(o).c_str());
    return 0;
}
