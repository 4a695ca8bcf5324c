/* base.c: errors, checked sizes, files, checksums, time. */
#include "laser/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const Reporter *reporter;

void report_to(const Reporter *r) {
    __atomic_store_n(&reporter, r, __ATOMIC_RELEASE);
}

static const Reporter *reports(void) {
    return __atomic_load_n(&reporter, __ATOMIC_ACQUIRE);
}

void made_progress(void) {
    const Reporter *r = reports();
    if (r) r->progress(r->user);
}

/* Malloced; NULL when memory is out. */
static char *message_text(const char *fmt, va_list args) {
    char *text = NULL;
    return vasprintf(&text, fmt, args) < 0 ? NULL : text;
}

static void print_message(const char *kind, const char *text) {
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", kind, text);
}

void die(int code, const char *fmt, ...) {
    const Reporter *r = reports();
    va_list args;
    va_start(args, fmt);
    char *text = message_text(fmt, args);
    va_end(args);
    const char *shown = text ? text : fmt;
    if (r) r->error(r->user, code, shown);
    print_message("error", shown);
    exit(code);
}

void warn(const char *fmt, ...) {
    const Reporter *r = reports();
    va_list args;
    va_start(args, fmt);
    char *text = message_text(fmt, args);
    va_end(args);
    const char *shown = text ? text : fmt;
    if (r)
        r->warning(r->user, shown);
    else
        print_message("warning", shown);
    free(text);
}

void require_failed(const char *cond, const char *file, int line, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fflush(stdout);
    fprintf(stderr, "%s:%d: requirement failed: %s: ", file, line, cond);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

size_t size_mul(size_t a, size_t b) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) die(EXIT_IO, "a size of %zu x %zu overflows", a, b);
    return r;
}

size_t size_add(size_t a, size_t b) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) die(EXIT_IO, "a size of %zu + %zu overflows", a, b);
    return r;
}

void *xcalloc(size_t count, size_t size) {
    size_t bytes = size_mul(count, size);
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) die(EXIT_IO, "out of memory: cannot allocate %zu bytes", bytes);
    return p;
}

char *xstrdup(const char *s) {
    size_t n = strlen(s) + 1;
    return (char *)memcpy(xcalloc(n, 1), s, n);
}

void format(char *dst, size_t cap, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(dst, cap, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= cap)
        die(EXIT_USAGE, "name too long (%d bytes, limit %zu): %s...", n, cap - 1, dst);
}

FILE *xfopen(const char *path, const char *mode) {
    FILE *f = fopen(path, mode);
    if (!f) die(mode[0] == 'r' ? EXIT_INPUT : EXIT_IO, "%s: %s", path, strerror(errno));
    return f;
}

char *file_read_all(const char *path, size_t *size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) die(EXIT_INPUT, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) die(EXIT_INPUT, "%s: not a regular file", path);
    size_t want = (size_t)st.st_size, have = 0;
    char *data = (char *)xcalloc(want + 1, 1);
    while (have < want) {
        ssize_t n = read(fd, data + have, want - have);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) die(EXIT_INPUT, "%s: at byte %zu: %s", path, have, strerror(errno));
        if (n == 0) break; /* the file shrank under us: what is there is what is returned */
        have += (size_t)n;
    }
    close(fd);
    if (size) *size = have;
    return data;
}

int64_t file_size(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 ? (int64_t)st.st_size : -1;
}

void make_dirs(const char *path) {
    char part[4096];
    format(part, sizeof part, "%s", path);
    for (char *p = part + 1;; p++) {
        if (*p != '/' && *p != '\0') continue;
        char end = *p;
        *p = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            die(EXIT_IO, "cannot create directory %s: %s", part, strerror(errno));
        *p = end;
        if (end == '\0') break;
    }
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) die(EXIT_IO, "%s: not a directory", path);
}

void files_expect(int count) {
    const rlim_t need = (rlim_t)count + 256;
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= need) return;
    if (limit.rlim_max < need)
        die(EXIT_IO, "%d connections to other processes: this one may open %llu files (ulimit -n)",
            count, (unsigned long long)limit.rlim_max);
    limit.rlim_cur = need;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        die(EXIT_IO, "%d connections to other processes: ulimit -n: %s", count, strerror(errno));
}

void fsync_path(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) die(EXIT_IO, "cannot open %s to sync it: %s", path, strerror(errno));
    /* Some file systems cannot sync a directory and say EINVAL: their renames are ordered anyway.
     */
    if (fsync(fd) != 0 && errno != EINVAL)
        die(EXIT_IO, "cannot sync %s: %s", path, strerror(errno));
    close(fd);
}

static void write_fully(int fd, const char *path, const void *data, size_t size) {
    const char *p = (const char *)data;
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, p + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            die(EXIT_IO, "cannot write %s at byte %zu of %zu: %s", path, done, size,
                strerror(errno));
        done += (size_t)n;
    }
}

void file_write_atomic(const char *path, const void *data, size_t size) {
    char tmp[4096], dir[4096];
    format(tmp, sizeof tmp, "%s.tmp", path);
    format(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = '\0';
    else
        format(dir, sizeof dir, ".");
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) die(EXIT_IO, "cannot create %s: %s", tmp, strerror(errno));
    write_fully(fd, tmp, data, size);
    if (fsync(fd) != 0 || close(fd) != 0) die(EXIT_IO, "cannot sync %s: %s", tmp, strerror(errno));
    if (rename(tmp, path) != 0)
        die(EXIT_IO, "cannot rename %s to %s: %s", tmp, path, strerror(errno));
    fsync_path(dir);
}

/* A remainder is a polynomial over GF(2), x^0 in its highest bit; this is it times x. */
static uint32_t crc32c_times_x(uint32_t r) {
    return (r >> 1) ^ (0x82f63b78u & (0u - (r & 1u)));
}

#if defined(__SSE4_2__)
/* The processor has an instruction for just this polynomial. */
static uint64_t crc32c_words(uint64_t r, const unsigned char *p, size_t words) {
    for (; words > 0; words--, p += 8) {
        unsigned long long word;
        memcpy(&word, p, 8);
        r = __builtin_ia32_crc32di(r, word);
    }
    return r;
}
static uint32_t crc32c_byte(uint32_t r, unsigned char byte) {
    return __builtin_ia32_crc32qi(r, byte);
}
#else
static uint32_t crc32c_byte(uint32_t r, unsigned char byte) {
    r ^= byte;
    for (int k = 0; k < 8; k++) r = crc32c_times_x(r);
    return r;
}

/* Eight bytes a turn ("slicing by 8", Kounavis & Berry 2005). Eight tables of 256; they are
 * computed on first use, and two threads that both compute them write the same values. */
static const uint32_t *crc32c_table(void) {
    static uint32_t table[8 * 256];
    static int ready;
    if (__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) return table;
    for (uint32_t i = 0; i < 256; i++)
        __atomic_store_n(&table[i], crc32c_byte(i, 0), __ATOMIC_RELAXED);
    for (uint32_t k = 1; k < 8; k++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t r = table[(k - 1) * 256 + i];
            __atomic_store_n(&table[k * 256 + i], (r >> 8) ^ table[r & 255u], __ATOMIC_RELAXED);
        }
    __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    return table;
}

static uint64_t crc32c_words(uint64_t crc, const unsigned char *p, size_t words) {
    const uint32_t *t = crc32c_table();
    uint32_t r = (uint32_t)crc;
    for (; words > 0; words--, p += 8) {
        uint32_t lo, hi;
        memcpy(&lo, p, 4); /* little-endian, as every format here is */
        memcpy(&hi, p + 4, 4);
        lo ^= r;
        r = t[7 * 256 + (lo & 255)] ^ t[6 * 256 + (lo >> 8 & 255)] ^ t[5 * 256 + (lo >> 16 & 255)] ^
            t[4 * 256 + (lo >> 24)] ^ t[3 * 256 + (hi & 255)] ^ t[2 * 256 + (hi >> 8 & 255)] ^
            t[1 * 256 + (hi >> 16 & 255)] ^ t[hi >> 24];
    }
    return r;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t size) {
    const unsigned char *p = (const unsigned char *)data;
    uint32_t r = (uint32_t)crc32c_words(~crc, p, size / 8);
    for (p += size / 8 * 8, size %= 8; size > 0; size--, p++) r = crc32c_byte(r, *p);
    return ~r;
}

static uint32_t crc32c_product(uint32_t a, uint32_t b) {
    uint32_t sum = 0;
    for (uint32_t term = 1u << 31; term; term >>= 1, b = crc32c_times_x(b))
        if (a & term) sum ^= b;
    return sum;
}

/* b's bytes move a's remainder up by x^8 each, and what both checksums have inverted at their ends
 * cancels. The power comes by squaring, so that terabytes take as long as bytes. */
uint32_t crc32c_combine(uint32_t a, uint32_t b, uint64_t b_size) {
    uint32_t power = 1u << (31 - 8); /* of one byte, two, four, ... */
    for (; b_size; b_size >>= 1, power = crc32c_product(power, power))
        if (b_size & 1) a = crc32c_product(a, power);
    return a ^ b;
}

bool file_crc32c(const char *path, uint32_t *crc) {
    enum { CHUNK = 1 << 20 };
    FILE *f = fopen(path, "rb");
    if (!f) return false;
    char *chunk = (char *)xcalloc(CHUNK, 1);
    *crc = 0;
    for (size_t n; (n = fread(chunk, 1, CHUNK, f)) > 0; made_progress())
        *crc = crc32c(*crc, chunk, n);
    const bool whole = !ferror(f);
    fclose(f);
    free(chunk);
    return whole;
}

static double clock_seconds(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double now_seconds(void) {
    return clock_seconds(CLOCK_MONOTONIC);
}
double wall_seconds(void) {
    return clock_seconds(CLOCK_REALTIME);
}
