/* tokenizer.cc: see tokenizer.h. */
#include "dataloader/tokenizer.h"

#include <cstdlib>
#include <cstring>

#include "laser/base.h"
#include "laser/json.h"

static const char space_mark[] = "\xe2\x96\x81"; /* U+2581, the library's space */

/* What a piece prints as. */
static std::string piece_bytes(const sentencepiece::SentencePieceProcessor &sp, int id) {
    std::string piece = sp.IdToPiece(id);
    if (sp.IsByte(id)) return std::string(1, (char)strtol(piece.c_str() + 3, nullptr, 16));
    if (sp.IsControl(id) || sp.IsUnknown(id)) return piece;
    for (size_t at; (at = piece.find(space_mark)) != std::string::npos;) piece.replace(at, 3, " ");
    return piece;
}

/* Whether the ids stand for this text. Most pieces are short: they are compared by their words. */
static bool is_text(
    const Tokenizer &t, const int32_t *ids, size_t n, const char *text, size_t size) {
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const std::string &piece = t.pieces[(size_t)ids[i]];
        const size_t length = piece.size();
        if (length > size - at) return false;
        if (length <= 8 && size - at >= 8) { /* a string's own memory holds 15 bytes and more */
            uint64_t a, b;
            memcpy(&a, piece.data(), 8);
            memcpy(&b, text + at, 8);
            if (length > 0 && (a ^ b) << (64 - 8 * length) != 0) return false;
        } else if (memcmp(piece.data(), text + at, length) != 0) {
            return false;
        }
        at += length;
    }
    return at == size;
}

/* Appends the ids of text; returns the library's reason when it cannot. */
static std::string encode_run(const Tokenizer &t, const char *text, size_t size,
    std::vector<int> *scratch, std::vector<int32_t> *ids) {
    const auto status = t.sp.Encode(absl::string_view(text, size), scratch);
    if (!status.ok()) return status.ToString();
    ids->insert(ids->end(), scratch->begin(), scratch->end());
    return "";
}

/* Whether the model is one like ours: how it is made is in a protocol buffer whose declaration the
 * library does not install, so it is asked for what normalisation or a missing piece would change.
 */
static bool returns_bytes(const Tokenizer &t) {
    static const char *const probes[] = {"a", " a", "a ", "  a  b  ", "\n\n\ta\r\n", "Aa",
        "\xef\xbc\xa1 \xef\xac\x81 \xc2\xbd", /* full width A, ligature fi, one half */
        "e\xcc\x81 \xc3\xa9 \xe1\xba\x9b\xcc\xa3", "\xe3\x80\x80\xc2\xa0\xe2\x80\x8b\xef\xbb\xbf",
        "\x01\x7f\xc2\xad", "\xf0\x9f\x98\x80\xe9\xbe\x98\xf4\x8f\xbf\xbf", "</s><unk>"};
    for (const char *probe : probes) {
        std::vector<int> scratch;
        std::vector<int32_t> ids;
        if (!encode_run(t, probe, strlen(probe), &scratch, &ids).empty()) return false;
        for (const int32_t id : ids)
            if (t.sp.IsUnknown(id) || t.sp.IsControl(id)) return false;
        if (!is_text(t, ids.data(), ids.size(), probe, strlen(probe))) return false;
    }
    return true;
}

static uint64_t fnv1a(const std::string &data) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const char c : data) hash = (hash ^ (unsigned char)c) * 0x100000001b3;
    return hash;
}

void tokenizer_load(Tokenizer *t, const std::string &model, const char *name) {
    const auto status = t->sp.LoadFromSerializedProto(model);
    if (!status.ok())
        die(EXIT_INPUT, "%s: is not a sentencepiece model: %s.", name, status.ToString().c_str());
    t->model = model;
    t->hash = fnv1a(model);
    t->vocab = t->sp.GetPieceSize();
    t->eos = t->sp.eos_id();
    int bytes = 0;
    for (int id = 0; id < t->vocab; id++) {
        t->pieces.push_back(piece_bytes(t->sp, id));
        if (!t->sp.IsByte(id)) continue;
        t->byte_ids[(unsigned char)t->pieces.back()[0]] = id;
        bytes++;
    }
    t->exact = bytes == 256 && returns_bytes(*t);
}

/* Bytes from text on that an exact model's library leaves as they are: it would make U+FFFD of what
 * is not UTF-8, and a space of U+2581. */
static size_t kept_bytes(const char *text, size_t size) {
    size_t at = 0;
    while (at < size) {
        uint64_t word;
        if (size - at >= 8 && (memcpy(&word, text + at, 8), (word & 0x8080808080808080) == 0)) {
            at += 8; /* ASCII */
            continue;
        }
        const size_t n = utf8_sequence(text + at, size - at);
        if (n == 0 || (n == 3 && memcmp(text + at, space_mark, 3) == 0)) break;
        at += n;
    }
    return at;
}

std::string tokenizer_encode(
    const Tokenizer &t, const char *text, size_t size, std::vector<int32_t> *ids, bool *same) {
    std::vector<int> scratch;
    const size_t first = ids->size();
    std::string fault;
    if (!t.exact) return encode_run(t, text, size, &scratch, ids);
    for (size_t at = 0; at < size && fault.empty();) {
        const size_t n = kept_bytes(text + at, size - at);
        if (n > 0) fault = encode_run(t, text + at, n, &scratch, ids);
        at += n;
        if (at < size) ids->push_back(t.byte_ids[(unsigned char)text[at++]]);
    }
    *same = is_text(t, ids->data() + first, ids->size() - first, text, size);
    return fault;
}

std::string tokenizer_export(const Tokenizer &t) {
    int32_t header[256] = {20240328, 2, t.vocab, t.eos};
    std::string file((const char *)header, sizeof header);
    for (size_t id = 0; id < t.pieces.size(); id++) {
        const std::string &bytes = t.pieces[id];
        if (bytes.empty() || bytes.size() > 255)
            die(EXIT_INPUT,
                "piece %zu of the model has %zu bytes; tokenizer.bin holds 1 to 255. Use "
                "a model with shorter pieces.",
                id, bytes.size());
        file += (char)bytes.size();
        file += bytes;
    }
    return file;
}
