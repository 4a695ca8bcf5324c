/* encode.c: reads a sentencepiece model (protocol buffers, sentencepiece_model.proto) and cuts text
 * by dynamic programming over the positions between characters. Floats and the order of comparisons
 * are those of the library's unigram encoder, so that ties fall the same way. */
#include "dataloader/encode.h"

#include <float.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"

enum { PIECE_NORMAL = 1, PIECE_UNKNOWN, PIECE_CONTROL, PIECE_USER, PIECE_UNUSED, PIECE_BYTE };
enum { MODEL_UNIGRAM = 1 };
#define UNKNOWN_PENALTY 10.0f     /* below the least probable piece */
#define SPACE_MARK "\xe2\x96\x81" /* U+2581 stands for a space inside the model */

typedef struct Piece {
    const char *text; /* into the file */
    size_t size;
    float score;
    int type;
} Piece;

struct Encoder {
    char *file;
    Piece *pieces; /* (count) */
    int32_t count;
    int32_t *table; /* (slots) hash table of ids that text may become, -1: free */
    size_t slots;   /* a power of two */
    size_t longest; /* bytes of a piece */
    int32_t byte_id[256];
    float least, most; /* scores of normal pieces */
};

/* ---- the file ---- */

typedef struct Reader {
    const char *path, *file;
    const unsigned char *at, *end;
} Reader;

typedef struct Field {
    int number, wire;
    uint64_t value;          /* of a varint */
    const unsigned char *at; /* of 4 or 8 bytes, or of a string */
    size_t size;
} Field;

static void torn(const Reader *r) {
    die(EXIT_INPUT, "%s: byte %zu: the file is torn or not a sentencepiece model.", r->path,
        (size_t)((const char *)r->at - r->file));
}

static uint64_t read_varint(Reader *r) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (r->at == r->end) torn(r);
        const unsigned char byte = *r->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return value;
    }
    torn(r);
    return 0;
}

/* The next field of a message; false at its end. */
static bool read_field(Reader *r, Field *f) {
    if (r->at == r->end) return false;
    const uint64_t key = read_varint(r);
    *f = (Field){.number = (int)(key >> 3), .wire = (int)(key & 7)};
    uint64_t size = 0;
    if (f->wire == 0)
        f->value = read_varint(r);
    else if (f->wire == 1 || f->wire == 5)
        size = f->wire == 1 ? 8 : 4;
    else if (f->wire == 2)
        size = read_varint(r);
    else
        torn(r);
    if (size > (uint64_t)(r->end - r->at)) torn(r);
    f->at = r->at;
    f->size = (size_t)size;
    r->at += size;
    return true;
}

static Reader inner(const Reader *r, const Field *f) {
    if (f->wire != 2) torn(r);
    return (Reader){r->path, r->file, f->at, f->at + f->size};
}

static Piece read_piece(Reader r) {
    Piece p = {.text = "", .type = PIECE_NORMAL};
    Field f;
    while (read_field(&r, &f)) {
        if (f.number == 1 && f.wire == 2) p.text = (const char *)f.at, p.size = f.size;
        if (f.number == 2 && f.wire == 5) memcpy(&p.score, f.at, sizeof p.score);
        if (f.number == 3 && f.wire == 0) p.type = (int)f.value;
    }
    return p;
}

static void require_unigram(Reader r) {
    Field f;
    uint64_t type = MODEL_UNIGRAM;
    while (read_field(&r, &f))
        if (f.number == 3 && f.wire == 0) type = f.value;
    if (type != MODEL_UNIGRAM)
        die(EXIT_INPUT, "%s: is no unigram model; give the prompt as token ids.", r.path);
}

/* Text must go through as it is: no dummy prefix, no spaces removed, no characters replaced. */
static void require_identity(Reader r) {
    Field f;
    bool changes[3] = {false, true, true}; /* characters, prefix, spaces: the format's defaults */
    while (read_field(&r, &f)) {
        if (f.number == 2) changes[0] = f.size > 0;
        if (f.number == 3) changes[1] = f.value != 0;
        if (f.number == 4) changes[2] = f.value != 0;
    }
    if (changes[0] || changes[1] || changes[2])
        die(EXIT_INPUT, "%s: this model normalises text; give the prompt as token ids.", r.path);
}

/* ---- the table ---- */

static size_t piece_hash(const char *text, size_t size) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3;
    return (size_t)(hash ^ hash >> 32);
}

static bool piece_is(const Piece *p, const char *text, size_t size) {
    return p->size == size && memcmp(p->text, text, size) == 0;
}

/* Id of the piece, or -1. */
static int32_t find_piece(const Encoder *e, const char *text, size_t size) {
    size_t slot = piece_hash(text, size) & (e->slots - 1);
    for (; e->table[slot] >= 0; slot = (slot + 1) & (e->slots - 1))
        if (piece_is(&e->pieces[e->table[slot]], text, size)) return e->table[slot];
    return -1;
}

static void add_piece(Encoder *e, int32_t id) {
    const Piece *p = &e->pieces[id];
    if (p->type == PIECE_BYTE && p->size == 6) /* "<0x0A>" */
        e->byte_id[strtol(p->text + 3, NULL, 16) & 0xff] = id;
    if (p->type == PIECE_NORMAL) {
        if (p->score < e->least) e->least = p->score;
        if (p->score > e->most) e->most = p->score;
    }
    if ((p->type != PIECE_NORMAL && p->type != PIECE_USER) || p->size == 0) return;
    if (p->size > e->longest) e->longest = p->size;
    size_t slot = piece_hash(p->text, p->size) & (e->slots - 1);
    while (e->table[slot] >= 0) slot = (slot + 1) & (e->slots - 1);
    e->table[slot] = id;
}

static void build_table(Encoder *e, const char *path) {
    for (e->slots = 16; e->slots < 2 * (size_t)e->count;) e->slots *= 2;
    e->table = xcalloc(e->slots, sizeof *e->table);
    memset(e->table, -1, e->slots * sizeof *e->table);
    memset(e->byte_id, -1, sizeof e->byte_id);
    e->least = FLT_MAX, e->most = -FLT_MAX;
    for (int32_t id = 0; id < e->count; id++) add_piece(e, id);
    for (int i = 0; i < 256; i++)
        if (e->byte_id[i] < 0)
            die(EXIT_INPUT, "%s: has no piece for byte %d; give the prompt as token ids.", path, i);
}

Encoder *encoder_open(const char *path) {
    size_t size;
    Encoder *e = xcalloc(1, sizeof *e);
    e->file = file_read_all(path, &size);
    const unsigned char *begin = (const unsigned char *)e->file;
    const Reader whole = {path, e->file, begin, begin + size};
    Reader r = whole;
    Field f;
    while (read_field(&r, &f)) {
        if (f.number == 1) e->count++;
        if (f.number == 2) require_unigram(inner(&r, &f));
        if (f.number == 3) require_identity(inner(&r, &f));
    }
    if (e->count == 0) die(EXIT_INPUT, "%s: is not a sentencepiece model: no pieces.", path);
    e->pieces = xcalloc((size_t)e->count, sizeof *e->pieces);
    r = whole;
    for (int32_t id = 0; read_field(&r, &f);)
        if (f.number == 1) e->pieces[id++] = read_piece(inner(&r, &f));
    build_table(e, path);
    return e;
}

void encoder_close(Encoder *e) {
    if (!e) return;
    free(e->file);
    free(e->pieces);
    free(e->table);
    free(e);
}

int32_t encoder_size(const Encoder *e) {
    return e->count;
}

/* ---- the cut ---- */

/* Bytes of the character at text, 0 where they are no UTF-8 (RFC 3629). */
static size_t character_size(const unsigned char *text, size_t left) {
    const unsigned char c = text[0];
    const size_t size = c < 0x80   ? 1
                        : c < 0xc2 ? 0
                        : c < 0xe0 ? 2
                        : c < 0xf0 ? 3
                        : c < 0xf5 ? 4
                                   : 0;
    if (size == 0 || size > left) return 0;
    for (size_t i = 1; i < size; i++)
        if ((text[i] & 0xc0) != 0x80) return 0;
    const bool overlong = (c == 0xe0 && text[1] < 0xa0) || (c == 0xf0 && text[1] < 0x90);
    const bool beyond = (c == 0xed && text[1] > 0x9f) || (c == 0xf4 && text[1] > 0x8f);
    return overlong || beyond ? 0 : size;
}

/* The best way to a position: through which piece (-1: bytes), from where. */
typedef struct Best {
    float score;
    size_t from;
    int32_t id;
    bool reached;
} Best;

static void offer(Best *to, float score, size_t from, int32_t id) {
    if (to->reached && score <= to->score) return;
    *to = (Best){score, from, id, true};
}

/* All pieces that begin at `from`, and the unknown character where none is one character long. */
static void extend(const Encoder *e, const char *text, size_t size, size_t from, Best *best) {
    const size_t one = character_size((const unsigned char *)text + from, size - from);
    bool single = false;
    for (size_t n = 1; n <= e->longest && from + n <= size; n++) {
        const int32_t id = find_piece(e, text + from, n);
        if (id < 0) continue;
        const Piece *p = &e->pieces[id];
        /* a symbol of the user's always wins */
        const float score = p->type == PIECE_USER ? (float)((float)n * e->most - 0.1) : p->score;
        offer(&best[from + n], score + best[from].score, from, id);
        single |= n == one;
    }
    if (!single) offer(&best[from + one], e->least - UNKNOWN_PENALTY + best[from].score, from, -1);
}

typedef struct Ids {
    int32_t *ids;
    int count, capacity;
} Ids;

static void put_id(Ids *out, int32_t id) {
    if (out->count == out->capacity) {
        out->capacity = out->capacity ? 2 * out->capacity : 64;
        int32_t *more = xcalloc((size_t)out->capacity, sizeof *more);
        if (out->count) memcpy(more, out->ids, (size_t)out->count * sizeof *more);
        free(out->ids);
        out->ids = more;
    }
    out->ids[out->count++] = id;
}

static void put_bytes(const Encoder *e, Ids *out, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) put_id(out, e->byte_id[(unsigned char)text[i]]);
}

/* Valid UTF-8 with spaces as marks. */
static void encode_run(const Encoder *e, Ids *out, const char *text, size_t size) {
    Best *best = xcalloc(size + 1, sizeof *best);
    size_t *path = xcalloc(size + 1, sizeof *path), steps = 0;
    for (size_t at = 0; at < size;
         at += character_size((const unsigned char *)text + at, size - at))
        extend(e, text, size, at, best);
    for (size_t at = size; at > 0; at = best[at].from) path[steps++] = at;
    while (steps > 0) {
        const size_t to = path[--steps];
        const Best *b = &best[to];
        if (b->id >= 0)
            put_id(out, b->id);
        else
            put_bytes(e, out, text + b->from, to - b->from);
    }
    free(best);
    free(path);
}

/* Characters that the model does not alter go through the cut; NUL, the space mark itself and what
 * is no UTF-8 become bytes and end a run. */
int encoder_encode(const Encoder *e, const char *text, size_t size, int32_t **ids) {
    const size_t mark = strlen(SPACE_MARK);
    char *run = xcalloc(size_mul(size, mark) + 1, 1);
    size_t used = 0;
    Ids out = {0};
    for (size_t at = 0, step; at <= size; at += step) {
        const size_t one =
            at < size ? character_size((const unsigned char *)text + at, size - at) : 0;
        const bool plain = one > 0 && text[at] != '\0' &&
                           !(one == mark && memcmp(text + at, SPACE_MARK, mark) == 0);
        const bool space = plain && text[at] == ' ';
        step = one ? one : 1;
        if (plain) {
            memcpy(run + used, space ? SPACE_MARK : text + at, space ? mark : one);
            used += space ? mark : one;
            continue;
        }
        if (used) encode_run(e, &out, run, used);
        used = 0;
        if (at < size) put_bytes(e, &out, text + at, step);
    }
    free(run);
    *ids = out.ids;
    return out.count;
}
