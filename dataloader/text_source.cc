/* text_source.cc: files -> blocks of whole records. zlib's stream interface and not its gz*
 * functions: those hide the bytes that are to be hashed, and read what is no gzip as plain text. */
#include "dataloader/text_source.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "laser/base.h"

enum { INPUT_BYTES = 1 << 18 };
static const size_t longest_record = (size_t)1 << 30;

struct Source {
    const std::vector<std::string> *paths = nullptr;
    size_t file = 0;
    int fd = -1; /* -1: the file is not open yet */
    bool json = false, gzip = false;
    bool in_member = false; /* gzip: within a compressed stream, of which a file may have several */
    bool at_end = false;
    z_stream z = {};
    EVP_MD_CTX *sha = nullptr;
    std::vector<unsigned char> input; /* what z.next_in points into, for plain files too */
    int64_t read = 0, offset = 0;
    std::string rest;  /* the beginning of the next block */
    std::string fault; /* the first one; nothing is read after it */
};

/* ---- SHA-256 ---- */

static std::string hex(const unsigned char *bytes, size_t n) {
    static const char digits[] = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < n; i++) {
        text += digits[bytes[i] >> 4];
        text += digits[bytes[i] & 15];
    }
    return text;
}

static std::string sha256_end(EVP_MD_CTX *sha) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    REQUIRE(EVP_DigestFinal_ex(sha, digest, &size) == 1, "SHA-256");
    return hex(digest, size);
}

std::string sha256_hex(const std::string &data) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    REQUIRE(EVP_Digest(data.data(), data.size(), digest, &size, EVP_sha256(), nullptr) == 1,
        "SHA-256 of %zu bytes", data.size());
    return hex(digest, size);
}

/* ---- bytes of a file ---- */

static void fail(Source *s, const std::string &what) {
    if (s->fault.empty()) s->fault = (*s->paths)[s->file] + ": " + what;
    s->at_end = true;
}

static void fail_at(Source *s, const std::string &what) {
    fail(s, "byte " + std::to_string(s->read - (int64_t)s->z.avail_in) +
                (s->gzip ? " of the compressed file: " : ": ") + what +
                " The file is damaged or was not copied whole: copy it again, then run the same "
                "command.");
}

/* More input after what has been used up; false at the end of the file. */
static bool refill(Source *s) {
    ssize_t n;
    do {
        n = read(s->fd, s->input.data(), s->input.size());
    } while (n < 0 && errno == EINTR);
    if (n < 0) fail_at(s, std::string("cannot be read: ") + strerror(errno) + ".");
    if (n <= 0) return false;
    REQUIRE(EVP_DigestUpdate(s->sha, s->input.data(), (size_t)n) == 1, "SHA-256");
    s->read += n;
    s->z.next_in = s->input.data();
    s->z.avail_in = (uInt)n;
    return true;
}

static bool has_suffix(const std::string &name, const char *suffix) {
    const size_t n = strlen(suffix);
    return name.size() >= n && name.compare(name.size() - n, n, suffix) == 0;
}

static void open_file(Source *s) {
    const std::string &path = (*s->paths)[s->file];
    std::string name = path;
    const bool named_gzip = has_suffix(name, ".gz");
    if (named_gzip) name.resize(name.size() - 3);
    s->json = has_suffix(name, ".json") || has_suffix(name, ".jsonl");
    s->read = s->offset = 0;
    s->at_end = s->in_member = s->gzip = false;
    s->z.avail_in = 0;
    REQUIRE(EVP_DigestInit_ex(s->sha, EVP_sha256(), nullptr) == 1, "SHA-256");
    s->fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (s->fd < 0) return fail(s, std::string("cannot be opened: ") + strerror(errno) + ".");
    posix_fadvise(s->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    refill(s);
    s->gzip = s->z.avail_in >= 2 && s->input[0] == 0x1f && s->input[1] == 0x8b;
    if (named_gzip && !s->gzip && s->fault.empty())
        fail(s, s->read == 0 ? "byte 0: is empty; expected gzip data. Copy it again."
                             : "byte 0: is not gzip data. Copy it again, or rename it if it is "
                               "plain text.");
}

/* Begins the next compressed stream of the file; false at the end of the file or a fault. Zeros
 * may fill up the end of the file, as tapes have it. */
static bool next_member(Source *s) {
    for (;;) {
        if (s->z.avail_in == 0 && !refill(s)) return false;
        if (*s->z.next_in != 0) break;
        s->z.next_in++;
        s->z.avail_in--;
    }
    if (*s->z.next_in != 0x1f) {
        fail_at(s, "something that is not gzip data follows the compressed text.");
        return false;
    }
    REQUIRE(inflateReset(&s->z) == Z_OK, "zlib");
    s->in_member = true;
    return true;
}

static size_t read_gzip(Source *s, char *to, size_t size) {
    s->z.next_out = (unsigned char *)to;
    s->z.avail_out = (uInt)size;
    while (s->z.avail_out > 0 && !s->at_end) {
        if (!s->in_member && !next_member(s)) {
            s->at_end = true;
            break;
        }
        if (s->z.avail_in == 0 && !refill(s)) {
            fail_at(s, "the file ends within the compressed text.");
            break;
        }
        const int status = inflate(&s->z, Z_NO_FLUSH);
        if (status == Z_STREAM_END)
            s->in_member = false;
        else if (status != Z_OK && status != Z_BUF_ERROR)
            fail_at(s, std::string(s->z.msg ? s->z.msg : zError(status)) + ".");
    }
    return size - s->z.avail_out;
}

static size_t read_plain(Source *s, char *to, size_t size) {
    size_t have = 0;
    while (have < size && !s->at_end) {
        if (s->z.avail_in == 0 && !refill(s)) {
            s->at_end = true;
            break;
        }
        const size_t n = size - have < s->z.avail_in ? size - have : s->z.avail_in;
        memcpy(to + have, s->z.next_in, n);
        s->z.next_in += n;
        s->z.avail_in -= (uInt)n;
        have += n;
    }
    return have;
}

/* ---- blocks ---- */

Source *source_open(const std::vector<std::string> *paths, size_t first) {
    Source *s = new Source;
    s->paths = paths;
    s->file = first;
    s->input.resize(INPUT_BYTES);
    s->sha = EVP_MD_CTX_new();
    if (!s->sha || inflateInit2(&s->z, 15 + 16 /* gzip alone */) != Z_OK)
        die(EXIT_IO, "out of memory");
    return s;
}

/* Appends text to the block's data until it holds the end of a record or the file ends; what
 * follows the last record's end goes to s->rest. */
static void fill(Source *s, Block *block) {
    std::string &data = block->data;
    const char delimiter = s->json ? '\n' : '\f';
    data.swap(s->rest);
    s->rest.clear();
    while (!s->at_end) {
        const size_t have = data.size();
        data.resize(have + BLOCK_BYTES);
        const size_t n = s->gzip ? read_gzip(s, &data[have], BLOCK_BYTES)
                                 : read_plain(s, &data[have], BLOCK_BYTES);
        data.resize(have + n);
        if (s->at_end) break;
        const void *found = memrchr(&data[have], delimiter, n);
        if (found) {
            const size_t end = (size_t)((const char *)found - data.data()) + 1;
            s->rest.assign(data, end, std::string::npos);
            data.resize(end);
            break;
        }
        if (data.size() > longest_record)
            fail(s, "byte " + std::to_string(s->offset) +
                        ": a document of more than 1 GiB starts here. Separate its parts" +
                        (s->json ? "." : " with form feeds."));
    }
    if (s->fault.empty()) return;
    /* a record that the fault has cut must not pass for a whole one */
    const size_t end = data.rfind(delimiter);
    data.resize(end == std::string::npos ? 0 : end + 1);
}

bool source_next(Source *s, Block *block) {
    *block = Block();
    if (s->file == s->paths->size()) return false;
    if (s->fd < 0) open_file(s);
    block->file = s->file;
    block->json = s->json;
    fill(s, block);
    block->offset = s->offset;
    block->read = s->read - (int64_t)s->z.avail_in;
    block->fault = s->fault;
    s->offset += (int64_t)block->data.size();
    if (!s->at_end) return true;
    block->last = s->fault.empty();
    if (block->last) block->sha256 = sha256_end(s->sha);
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    s->file = s->fault.empty() ? s->file + 1 : s->paths->size();
    return true;
}

void source_close(Source *s) {
    if (s->fd >= 0) close(s->fd);
    inflateEnd(&s->z);
    EVP_MD_CTX_free(s->sha);
    delete s;
}
