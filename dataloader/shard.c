/* shard.c: opens, reads, checks and writes token shards (layout: FORMAT.md). The reader trusts
 * nothing in a file before it has been compared with the file's own size, nor that the file stays
 * as it was; the writer publishes a file only when it is whole. Knows nothing of models or
 * batches. */
#include "dataloader/shard.h"

#include "laser/base.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(
    __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "shards are read in place, little-endian");

/* Header words, int32 each. llm.c reads 0 to 2 and ignores the rest. */
enum {
    WORD_MAGIC = 0,
    WORD_VERSION = 1,
    WORD_TOKENS = 2,
    WORD_EXT_MAGIC = 16,
    WORD_EXT_VERSION = 17,
    WORD_VOCAB = 18,
    WORD_EOS = 19,
    WORD_DOCUMENTS = 20, /* two words, low first */
    WORD_SEPARATOR = 22,
    WORD_PAYLOAD_CRC = 23,
    WORD_TOKENIZER_HASH = 24, /* two words, low first */
    WORD_HEADER_CRC = 26,     /* of the header with this word zero */
};
enum { EXT_MAGIC = 0x5253414c /* "LASR" */, EXT_VERSION = 1 };

/* ---- errors ---- */

static void bad_shard(const char *path, uint64_t byte, const char *fmt, ...)
    PRINTF_LIKE(3, 4) NORETURN;
static void bad_shard(const char *path, uint64_t byte, const char *fmt, ...) {
    char what[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    die(EXIT_INPUT, "%s: byte %" PRIu64 ": %s", path, byte, what);
}

#define REMAKE                                                                                     \
    "The file is damaged or was not copied whole: copy it again, or write it again with "          \
    "c4_tokenize."

/* What a file with a foreign first word is, as far as it can be told. */
static const char *foreign_kind(uint32_t word) {
    static const struct {
        uint32_t magic;
        const char *kind;
    } known[] = {
        {20240326, "an llm.c model"},
        {20240327, "an llm.c debug state"},
        {20240328, "an llm.c tokenizer"},
        {20240522, "an llm.c evaluation set"},
        {20240527, "an llm.c optimizer state"},
        {20240803, "an llm.c Llama model"},
    };
    if (word == __builtin_bswap32(SHARD_MAGIC_U16) || word == __builtin_bswap32(SHARD_MAGIC_U32))
        return "a byte-swapped shard, written on a big-endian machine";
    if ((word & 0xffff) == 0x8b1f) return "gzip data: unpack it, or pass text to c4_tokenize";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].magic == word) return known[i].kind;
    return "not a token shard";
}

/* ---- the header ---- */

static int64_t read_i64(const int32_t *words) {
    return (int64_t)((uint64_t)(uint32_t)words[1] << 32 | (uint32_t)words[0]);
}

static uint32_t header_crc(const int32_t *header /* (SHARD_HEADER_WORDS) */) {
    int32_t copy[SHARD_HEADER_WORDS];
    memcpy(copy, header, sizeof copy);
    copy[WORD_HEADER_CRC] = 0;
    return crc32c(0, copy, sizeof copy);
}

static void parse_extension(ShardInfo *info, const int32_t *h, const char *path) {
    if (h[WORD_EXT_VERSION] != EXT_VERSION)
        bad_shard(path, 4 * WORD_EXT_VERSION,
            "extension version is %d; this program reads version %d. Use the program that wrote "
            "the shard, or a newer "
            "one.",
            h[WORD_EXT_VERSION], EXT_VERSION);
    uint32_t crc = header_crc(h);
    if (crc != (uint32_t)h[WORD_HEADER_CRC])
        bad_shard(path, 4 * WORD_HEADER_CRC,
            "header checksum is %08" PRIx32 "; the header gives %08" PRIx32 ". " REMAKE,
            (uint32_t)h[WORD_HEADER_CRC], crc);
    info->extended = true;
    info->vocab = h[WORD_VOCAB];
    info->eos = h[WORD_EOS];
    info->documents = read_i64(h + WORD_DOCUMENTS);
    info->separator = h[WORD_SEPARATOR];
    info->tokenizer_hash = (uint64_t)read_i64(h + WORD_TOKENIZER_HASH);
    info->payload_crc = (uint32_t)h[WORD_PAYLOAD_CRC];
    if (info->vocab < 1)
        bad_shard(path, 4 * WORD_VOCAB, "vocabulary size is %d; expected at least 1. " REMAKE,
            info->vocab);
    if (info->eos < -1 || info->eos >= info->vocab)
        bad_shard(path, 4 * WORD_EOS, "end-of-document id is %d; expected -1 (none) to %d. " REMAKE,
            info->eos, info->vocab - 1);
    if (info->documents < -1 || info->documents > info->tokens)
        bad_shard(path, 4 * WORD_DOCUMENTS,
            "document count is %" PRId64 "; expected -1 (unknown) to the token count, %" PRId64
            ". " REMAKE,
            info->documents, info->tokens);
    if (info->separator < 0 || info->separator > 1)
        bad_shard(
            path, 4 * WORD_SEPARATOR, "separator is %d; expected 0 or 1. " REMAKE, info->separator);
}

static void parse_header(ShardInfo *info, const int32_t *h, uint64_t file_bytes, const char *path) {
    const uint32_t magic = (uint32_t)h[WORD_MAGIC];
    if (magic != SHARD_MAGIC_U16 && magic != SHARD_MAGIC_U32)
        bad_shard(path, 0,
            "first word is %" PRIu32
            " (%s); expected %d (16-bit tokens) or %d (32-bit tokens). Pass token shards, as "
            "c4_tokenize or llm.c writes them.",
            magic, foreign_kind(magic), SHARD_MAGIC_U16, SHARD_MAGIC_U32);
    const int version = magic == SHARD_MAGIC_U16 ? SHARD_VERSION_U16 : SHARD_VERSION_U32;
    if (h[WORD_VERSION] != version)
        bad_shard(path, 4 * WORD_VERSION,
            "version is %d; expected %d with magic %" PRIu32
            ". Write the shard again with c4_tokenize.",
            h[WORD_VERSION], version, magic);
    if (h[WORD_TOKENS] < 1)
        bad_shard(path, 4 * WORD_TOKENS, "token count is %d; expected 1 to %d. " REMAKE,
            h[WORD_TOKENS], INT32_MAX);
    *info = (ShardInfo){.tokens = h[WORD_TOKENS], .documents = -1, .eos = -1};
    info->token_bytes = magic == SHARD_MAGIC_U16 ? 2 : 4;
    const uint64_t expected =
        SHARD_HEADER_BYTES + (uint64_t)info->tokens * (uint64_t)info->token_bytes;
    if (file_bytes != expected)
        bad_shard(path, file_bytes < expected ? file_bytes : expected,
            "the file has %" PRIu64 " bytes; its header (%" PRId64
            " tokens of %d bytes) makes %" PRIu64 ". " REMAKE,
            file_bytes, info->tokens, info->token_bytes, expected);
    if (h[WORD_EXT_MAGIC] == EXT_MAGIC) parse_extension(info, h, path);
}

/* Bytes read: less than size at the end of the file, or -1 with errno. */
static int64_t read_at(int fd, void *data, size_t size, uint64_t offset) {
    size_t got = 0;
    while (got < size) {
        const ssize_t n = pread(fd, (char *)data + got, size - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        got += (size_t)n;
    }
    return (int64_t)got;
}

static void read_header(int fd, int32_t *header /* (SHARD_HEADER_WORDS) */, const char *path) {
    const int64_t got = read_at(fd, header, SHARD_HEADER_BYTES, 0);
    if (got < 0) bad_shard(path, 0, "cannot read the header: %s.", strerror(errno));
    if (got < SHARD_HEADER_BYTES)
        bad_shard(path, (uint64_t)got,
            "the file ends within the header; expected %d bytes of header. " REMAKE,
            SHARD_HEADER_BYTES);
}

/* ---- opening ---- */

static int open_file(const char *path) {
    /* O_NONBLOCK: a FIFO under this name is reported, not waited for */
    return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

static int open_error_code(void) {
    return errno == EMFILE || errno == ENFILE || errno == ENOMEM ? EXIT_IO : EXIT_INPUT;
}

static int64_t modified_ns(const struct stat *st) {
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

void shard_open(Shard *s, const char *path) {
    *s = (Shard){.path = xstrdup(path)};
    s->fd = open_file(path);
    if (s->fd < 0) die(open_error_code(), "%s: cannot be opened: %s.", path, strerror(errno));
    struct stat st;
    if (fstat(s->fd, &st) != 0)
        die(EXIT_INPUT, "%s: cannot be examined: %s.", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        die(EXIT_INPUT, "%s: is a directory or a device; expected a token shard file.", path);
    int32_t header[SHARD_HEADER_WORDS];
    read_header(s->fd, header, path);
    s->bytes = (uint64_t)st.st_size;
    s->modified = modified_ns(&st);
    s->header_crc = crc32c(0, header, sizeof header);
    parse_header(&s->info, header, s->bytes, path);
}

void shard_release(Shard *s) {
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
}

void shard_close(Shard *s) {
    shard_release(s);
    free(s->piece);
    free(s->path);
    *s = (Shard){.fd = -1};
}

/* ---- reading ---- */

static bool fault(ShardFault *f, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
static bool fault(ShardFault *f, int code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(f->what, sizeof f->what, fmt, args);
    va_end(args);
    f->code = code;
    return false;
}

#define RESTORE "Restore the file and start the same command again."

/* A file of another time is the same shard when its header says so: with our extension the header
 * vouches for the tokens by their checksum. A plain header tells the count alone. */
static bool same_header(Shard *s, const struct stat *st, ShardFault *f) {
    int32_t header[SHARD_HEADER_WORDS];
    const int64_t got = read_at(s->fd, header, sizeof header, 0);
    if (got != sizeof header || crc32c(0, header, sizeof header) != s->header_crc)
        return fault(f, EXIT_INPUT,
            "%s: was replaced by another file while it was in use: its header is not the one that "
            "it had at the start. " RESTORE,
            s->path);
    if (modified_ns(st) != s->modified && !s->info.extended)
        return fault(f, EXIT_INPUT,
            "%s: was changed while it was in use: it was written to after the start, and a plain "
            "llm.c header has no checksum of the tokens. " RESTORE,
            s->path);
    s->modified = modified_ns(st);
    return true;
}

/* Opens the file if need be, and compares it with what it was. */
static bool require_same(Shard *s, ShardFault *f) {
    const bool again = s->fd < 0;
    if (again) s->fd = open_file(s->path);
    if (s->fd < 0)
        return fault(f, open_error_code(),
            "%s: cannot be opened any more: %s. It was there at the start. " RESTORE, s->path,
            strerror(errno));
    struct stat st;
    if (fstat(s->fd, &st) != 0)
        return fault(f, EXIT_INPUT, "%s: cannot be examined any more: %s. " RESTORE, s->path,
            strerror(errno));
    if ((uint64_t)st.st_size < s->bytes)
        return fault(f, EXIT_INPUT,
            "%s: byte %" PRIu64 ": cannot be read any more: the file was cut short while it was in "
            "use; it had %" PRIu64 " bytes. " RESTORE,
            s->path, (uint64_t)st.st_size, s->bytes);
    if ((uint64_t)st.st_size > s->bytes)
        return fault(f, EXIT_INPUT,
            "%s: was replaced or added to while it was in use: it has %" PRIu64
            " bytes, and had %" PRIu64 ". " RESTORE,
            s->path, (uint64_t)st.st_size, s->bytes);
    return (!again && modified_ns(&st) == s->modified) || same_header(s, &st, f);
}

bool shard_read(Shard *s, int64_t first, int64_t n, void *tokens, ShardFault *f) {
    REQUIRE(first >= 0 && n >= 0 && n <= s->info.tokens - first,
        "tokens %" PRId64 " + %" PRId64 " of %" PRId64, first, n, s->info.tokens);
    const size_t size = (size_t)n * (size_t)s->info.token_bytes;
    const uint64_t offset = SHARD_HEADER_BYTES + (uint64_t)(first * s->info.token_bytes);
    if (!require_same(s, f)) return false;
    const int64_t got = read_at(s->fd, tokens, size, offset);
    if (got == (int64_t)size) return true;
    if (got < 0)
        return fault(f, EXIT_INPUT, "%s: byte %" PRIu64 ": cannot be read any more: %s. " RESTORE,
            s->path, offset, strerror(errno));
    return fault(f, EXIT_INPUT,
        "%s: byte %" PRIu64 ": cannot be read any more: the file was cut short while it was in "
        "use. " RESTORE,
        s->path, offset + (uint64_t)got);
}

void shard_read_header(Shard *s, int32_t *header) {
    ShardFault f;
    if (!require_same(s, &f)) die(f.code, "%s", f.what);
    read_header(s->fd, header, s->path);
}

enum { PIECE_TOKENS = 1 << 16 };
typedef struct ShardPiece {
    int64_t first, count;
    union {
        uint16_t u16[PIECE_TOKENS];
        uint32_t u32[PIECE_TOKENS];
    } tokens;
} ShardPiece;

static int64_t piece_token(const ShardPiece *p, int token_bytes, int64_t i) {
    return token_bytes == 2 ? p->tokens.u16[i] : (int64_t)p->tokens.u32[i];
}

static void read_piece(Shard *s, ShardPiece *p, int64_t first) {
    ShardFault f;
    const int64_t rest = s->info.tokens - first;
    p->first = first;
    p->count = rest < PIECE_TOKENS ? rest : PIECE_TOKENS;
    if (!shard_read(s, first, p->count, &p->tokens, &f)) die(f.code, "%s", f.what);
}

int64_t shard_token(Shard *s, int64_t i) {
    REQUIRE(i >= 0 && i < s->info.tokens, "token %" PRId64 " of %" PRId64, i, s->info.tokens);
    if (!s->piece) s->piece = xcalloc(1, sizeof *s->piece);
    if (i < s->piece->first || i >= s->piece->first + s->piece->count)
        read_piece(s, s->piece, i / PIECE_TOKENS * PIECE_TOKENS);
    return piece_token(s->piece, s->info.token_bytes, i - s->piece->first);
}

static int64_t piece_largest(const ShardPiece *p, int token_bytes) {
    uint32_t largest = 0;
    if (token_bytes == 2)
        for (int64_t k = 0; k < p->count; k++)
            largest = p->tokens.u16[k] > largest ? p->tokens.u16[k] : largest;
    else
        for (int64_t k = 0; k < p->count; k++)
            largest = p->tokens.u32[k] > largest ? p->tokens.u32[k] : largest;
    return largest;
}

/* Names the first id of the piece that is not below limit. */
static void bad_token(const Shard *s, const ShardPiece *p, int64_t limit) {
    int64_t k = 0;
    while (piece_token(p, s->info.token_bytes, k) < limit) k++;
    bad_shard(s->path, SHARD_HEADER_BYTES + (uint64_t)((p->first + k) * s->info.token_bytes),
        "token %" PRId64 " is %" PRId64 "; expected less than the vocabulary size, %" PRId64
        ". The shard is damaged or belongs to another tokenizer.",
        p->first + k, piece_token(p, s->info.token_bytes, k), limit);
}

void shard_verify(Shard *s, int32_t vocab) {
    int64_t limit = s->info.extended ? s->info.vocab : INT64_MAX;
    if (vocab > 0 && vocab < limit) limit = vocab;
    ShardPiece *p = xcalloc(1, sizeof *p);
    uint32_t crc = 0;
    for (int64_t i = 0; i < s->info.tokens; i += p->count) {
        read_piece(s, p, i);
        if (piece_largest(p, s->info.token_bytes) >= limit) bad_token(s, p, limit);
        crc = crc32c(crc, &p->tokens, (size_t)(p->count * s->info.token_bytes));
        made_progress();
    }
    free(p);
    if (s->info.extended && crc != s->info.payload_crc)
        bad_shard(s->path, SHARD_HEADER_BYTES,
            "checksum of the tokens is %08" PRIx32 "; the header (byte %d) says %08" PRIx32
            ". " REMAKE,
            crc, 4 * WORD_PAYLOAD_CRC, s->info.payload_crc);
}

/* ---- writing ---- */

enum { WRITER_BUFFER = 1 << 16 /* tokens */ };

struct ShardWriter {
    char *path, *temporary;
    FILE *file;
    ShardInfo info;
    int64_t buffered;
    union {
        uint16_t u16[WRITER_BUFFER];
        uint32_t u32[WRITER_BUFFER];
    } buffer;
};

static void writer_write(ShardWriter *w, const void *data, size_t size) {
    if (fwrite(data, 1, size, w->file) != size)
        die(EXIT_IO, "%s: cannot write: %s. Free some space and run the same command again.",
            w->temporary, strerror(errno));
}

ShardWriter *shard_writer_open(const char *path, const ShardInfo *info) {
    REQUIRE(info->vocab > 0, "vocab %d", info->vocab);
    REQUIRE(info->eos >= -1 && info->eos < info->vocab, "eos %d, vocab %d", info->eos, info->vocab);
    ShardWriter *w = xcalloc(1, sizeof *w);
    const size_t length = strlen(path) + sizeof ".tmp";
    w->path = xstrdup(path);
    w->temporary = xcalloc(length, 1);
    format(w->temporary, length, "%s.tmp", path);
    w->info = *info;
    w->info.tokens = 0;
    w->info.documents = 0;
    w->info.token_bytes = info->vocab <= 1 << 16 ? 2 : 4;
    w->info.payload_crc = 0;
    w->file = xfopen(w->temporary, "wb");
    const int32_t header[SHARD_HEADER_WORDS] = {0};
    writer_write(w, header, sizeof header);
    return w;
}

static void writer_flush(ShardWriter *w) {
    const size_t size = (size_t)w->buffered * (size_t)w->info.token_bytes;
    w->info.payload_crc = crc32c(w->info.payload_crc, &w->buffer, size);
    writer_write(w, &w->buffer, size);
    w->buffered = 0;
}

void shard_writer_put(ShardWriter *w, const int32_t *tokens, int64_t n) {
    REQUIRE(n >= 0 && n <= INT32_MAX - w->info.tokens,
        "%" PRId64 " + %" PRId64 " tokens in one shard", w->info.tokens, n);
    for (int64_t i = 0; i < n; i++) {
        REQUIRE(tokens[i] >= 0 && tokens[i] < w->info.vocab, "token %d, vocab %d", tokens[i],
            w->info.vocab);
        if (w->info.token_bytes == 2)
            w->buffer.u16[w->buffered++] = (uint16_t)tokens[i];
        else
            w->buffer.u32[w->buffered++] = (uint32_t)tokens[i];
        if (w->buffered == WRITER_BUFFER) writer_flush(w);
    }
    w->info.tokens += n;
}

void shard_writer_end_document(ShardWriter *w) {
    w->info.documents++;
}

int64_t shard_writer_tokens(const ShardWriter *w) {
    return w->info.tokens;
}

static void writer_header(const ShardWriter *w, int32_t *h /* (SHARD_HEADER_WORDS), zeroed */) {
    const ShardInfo *info = &w->info;
    const bool wide = info->token_bytes == 4;
    h[WORD_MAGIC] = wide ? SHARD_MAGIC_U32 : SHARD_MAGIC_U16;
    h[WORD_VERSION] = wide ? SHARD_VERSION_U32 : SHARD_VERSION_U16;
    h[WORD_TOKENS] = (int32_t)info->tokens;
    h[WORD_EXT_MAGIC] = EXT_MAGIC;
    h[WORD_EXT_VERSION] = EXT_VERSION;
    h[WORD_VOCAB] = info->vocab;
    h[WORD_EOS] = info->eos;
    memcpy(h + WORD_DOCUMENTS, &info->documents, sizeof info->documents);
    h[WORD_SEPARATOR] = info->separator;
    memcpy(h + WORD_PAYLOAD_CRC, &info->payload_crc, sizeof info->payload_crc);
    memcpy(h + WORD_TOKENIZER_HASH, &info->tokenizer_hash, sizeof info->tokenizer_hash);
    const uint32_t crc = header_crc(h);
    memcpy(h + WORD_HEADER_CRC, &crc, sizeof crc);
}

static void fsync_parent(const char *path) {
    char *parent = xstrdup(path);
    char *slash = strrchr(parent, '/');
    if (slash) slash[slash == parent] = '\0';
    fsync_path(slash ? parent : ".");
    free(parent);
}

void shard_writer_close(ShardWriter *w) {
    REQUIRE(w->info.tokens > 0, "%s: a shard holds at least one token", w->path);
    writer_flush(w);
    int32_t header[SHARD_HEADER_WORDS] = {0};
    writer_header(w, header);
    if (fseeko(w->file, 0, SEEK_SET) != 0)
        die(EXIT_IO, "%s: cannot seek: %s.", w->temporary, strerror(errno));
    writer_write(w, header, sizeof header);
    if (fflush(w->file) != 0 || fsync(fileno(w->file)) != 0 || fclose(w->file) != 0)
        die(EXIT_IO, "%s: cannot write: %s. Free some space and run the same command again.",
            w->temporary, strerror(errno));
    if (rename(w->temporary, w->path) != 0)
        die(EXIT_IO, "%s: cannot be renamed to %s: %s.", w->temporary, w->path, strerror(errno));
    fsync_parent(w->path);
    free(w->path);
    free(w->temporary);
    free(w);
}
