/* tokenize_output.cc: see tokenize_output.h. */
#include "dataloader/tokenize_output.h"

#include <unistd.h>

#include <cinttypes>

#include "laser/base.h"

static void write_journal(Output *out) {
    progress_write(*out->options, *out->tokenizer, out->whole);
}

bool run_has(const RunState &run, int split, int64_t document) {
    const int64_t next = run.splits[split].next.document;
    return next == Position::NO_MORE || document < next;
}

/* Inputs all of whose documents lie in whole shards are not read again. */
static void choose_first_input(Output *out) {
    const std::vector<InputState> &inputs = out->whole.inputs;
    for (; out->first_input < inputs.size(); out->first_input++) {
        const InputState &in = inputs[out->first_input];
        if (in.sha256.empty()) break;
        const int64_t last = out->first_document + in.documents - 1;
        bool needed = false;
        for (int k = 0; k < SPLITS; k++) needed = needed || !run_has(out->whole, k, last);
        if (needed) break;
        out->first_document += in.documents;
    }
}

void output_begin(Output *out, const Options *o, const Tokenizer *t, const RunState &run) {
    out->options = o;
    out->tokenizer = t;
    out->whole = run;
    out->earlier = run.inputs;
    out->earlier_part = run.part;
    choose_first_input(out);
    for (size_t i = out->first_input; i < run.inputs.size(); i++) {
        const InputState &in = run.inputs[i];
        out->whole.inputs[i] = InputState();
        out->whole.inputs[i].name = in.name;
        out->whole.inputs[i].size = in.size;
    }
    out->whole.part = PartState();
    out->whole.part.file = out->first_input;
    for (int k = 0; k < SPLITS; k++) {
        out->whole.splits[k].counts.resize((size_t)t->vocab);
        out->live[k] = out->whole.splits[k];
    }
    if (run.tokenizer_sha256.empty()) write_journal(out); /* a new run: shards are its own now */
}

/* ---- the interrupted run and this one must have read the same ---- */

static void NORETURN changed(const Output *out, size_t input, const char *what) {
    die(EXIT_USAGE,
        "%s: %s since the run was interrupted. Restore the file, or start over with --force.",
        out->options->inputs[input].c_str(), what);
}

static void count_part(Output *out, const EncodedDocument &d) {
    PartState *part = &out->whole.part;
    const PartState &then = out->earlier_part;
    if (part->file != d.input) *part = PartState{d.input, 0, 0};
    part->documents++;
    part->check = crc32c(part->check, &d.crc, sizeof d.crc);
    if (part->file == then.file && part->documents == then.documents && part->check != then.check)
        changed(out, d.input, "its text was changed");
}

void output_input_end(Output *out, size_t input, const InputState &in) {
    const InputState &then = out->earlier[input];
    if (!then.sha256.empty() && then.sha256 != in.sha256) changed(out, input, "it was changed");
    if (input == out->earlier_part.file && in.documents < out->earlier_part.documents)
        changed(out, input, "it lost documents");
    out->first_document += in.documents;
    const std::string name = out->whole.inputs[input].name;
    out->whole.inputs[input] = in;
    out->whole.inputs[input].name = name;
}

/* ---- shards ---- */

static void open_shard(Output *out, int k) {
    const SplitState &live = out->live[k];
    ShardInfo info = {};
    info.vocab = out->tokenizer->vocab;
    info.eos = out->tokenizer->eos;
    info.separator = out->options->separator;
    info.tokenizer_hash = out->tokenizer->hash;
    const std::string path = shard_path(*out->options, k, live.shards.size());
    out->open[k].writer = shard_writer_open(path.c_str(), &info);
    out->open[k].documents = out->open[k].bytes = 0;
}

static void close_shard(Output *out, int k, const Position &end) {
    SplitState *live = &out->live[k];
    const std::string path = shard_path(*out->options, k, live->shards.size());
    shard_writer_close(out->open[k].writer);
    out->open[k].writer = nullptr;
    Shard s;
    shard_open(&s, path.c_str());
    live->shards.push_back(
        {s.info.tokens, out->open[k].documents, out->open[k].bytes, s.info.payload_crc, end});
    shard_close(&s);
    live->next = end;
}

static void end_document(Output *out, const EncodedDocument &d) {
    shard_writer_end_document(out->open[d.split].writer);
    out->open[d.split].documents++;
    out->open[d.split].bytes += d.bytes;
    out->live[d.split].documents++;
    out->live[d.split].bytes += d.bytes;
}

static void put_tokens(Output *out, const EncodedDocument &d) {
    SplitState *live = &out->live[d.split];
    ShardWriter *&writer = out->open[d.split].writer;
    int64_t at = d.number == live->next.document ? live->next.token : 0;
    while (at < d.n) {
        if (!writer) open_shard(out, d.split);
        const int64_t room = out->options->shard_tokens - shard_writer_tokens(writer);
        const int64_t n = d.n - at < room ? d.n - at : room;
        shard_writer_put(writer, d.ids + at, n);
        for (int64_t i = at; i < at + n; i++) live->counts[(size_t)d.ids[i]]++;
        live->tokens += n;
        at += n;
        if (at == d.n) end_document(out, d);
        if (n < room) continue;
        close_shard(out, d.split, at == d.n ? Position{d.number + 1, 0} : Position{d.number, at});
        out->whole.splits[d.split] = *live;
        write_journal(out);
    }
}

/* The first documents are for validation: after them its last shard need not stay open, and what
 * comes after is not held up by it when the run is continued. */
static void end_validation(Output *out, int64_t next_document) {
    if (out->open[VAL].writer) close_shard(out, VAL, {next_document, 0});
    out->live[VAL].next = {Position::NO_MORE, 0};
    out->whole.splits[VAL] = out->live[VAL];
    write_journal(out);
}

void output_document(Output *out, const EncodedDocument &d) {
    count_part(out, d);
    if (d.ids) put_tokens(out, d);
    const int64_t val_docs = out->options->val_docs;
    if (val_docs > 0 && d.number + 1 >= val_docs &&
        out->live[VAL].next.document != Position::NO_MORE)
        end_validation(out, d.number + 1);
}

/* Takes the last shard of a split back; the file is removed later. */
static void drop_shard(Output *out, int k) {
    SplitState *split = &out->whole.splits[k];
    const ShardState last = split->shards.back();
    split->shards.pop_back();
    Shard s;
    shard_open(&s, shard_path(*out->options, k, split->shards.size()).c_str());
    for (int64_t i = 0; i < s.info.tokens; i++)
        split->counts[(size_t)shard_token(&s, i)]--;
    shard_close(&s);
    split->documents -= last.documents;
    split->tokens -= last.tokens;
    split->bytes -= last.bytes;
}

void output_damaged(Output *out, size_t input) {
    const int64_t first = out->first_document;
    size_t written[SPLITS];
    for (int k = 0; k < SPLITS; k++) {
        SplitState *split = &out->whole.splits[k];
        written[k] = split->shards.size();
        const bool more = split->next.document != Position::NO_MORE ||
                          (k == VAL && first < out->options->val_docs);
        while (!split->shards.empty()) {
            const Position &end = split->shards.back().end;
            if (end.document < first || (end.document == first && end.token == 0)) break;
            drop_shard(out, k);
        }
        if (more) split->next = split->shards.empty() ? Position() : split->shards.back().end;
    }
    out->whole.inputs[input].damaged = true;
    out->whole.part = PartState{input, 0, 0};
    write_journal(out);
    for (int k = 0; k < SPLITS; k++)
        for (size_t i = out->whole.splits[k].shards.size(); i < written[k]; i++)
            unlink(shard_path(*out->options, k, i).c_str());
}

void output_end(Output *out) {
    for (int k = 0; k < SPLITS; k++) {
        if (out->open[k].writer) close_shard(out, k, {Position::NO_MORE, 0});
        out->whole.splits[k] = out->live[k];
    }
    manifest_write(*out->options, *out->tokenizer, out->whole);
    const std::string progress = progress_path(*out->options);
    unlink(progress.c_str());
    unlink((progress + ".tmp").c_str()); /* of a call that was killed */
}
