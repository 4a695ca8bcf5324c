/* base.h: errors, checked sizes, files, checksums, time. The root of the include graph: includes
 * nothing of ours and may not know what is computed with it. */
#ifndef LASER_BASE_H
#define LASER_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Exit codes, the whole contract with scripts that call the trainer. */
enum {
    EXIT_USAGE = 2,    /* an option is unknown, malformed or contradicts another */
    EXIT_INPUT = 3,    /* an input file is missing, torn, corrupt or of the wrong kind */
    EXIT_IO = 4,       /* out of space, memory or descriptors; a write failed */
    EXIT_DIVERGED = 5, /* too many steps in a row were not finite */
    EXIT_PROCESS = 6,  /* one of several processes was killed, hangs or holds other weights */
};

#if defined(__GNUC__)
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#define NORETURN __attribute__((noreturn))
#else
#define PRINTF_LIKE(f, a)
#define NORETURN
#endif

/* For what a user can cause: prints "error: ..." on stderr and exits with code. Say what was wrong,
 * where (file, byte, option), what was expected, and what to do. */
void die(int code, const char *fmt, ...) PRINTF_LIKE(2, 3) NORETURN;
void warn(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* Says that work goes on, from inside of what may take minutes. Costs next to nothing. */
void made_progress(void);

/* Where processes run as one, what becomes of errors, warnings and progress in each. Set once,
 * before other threads begin, by who knows the other processes; r must live on. NULL: as alone. */
typedef struct Reporter {
    void *user;
    void (*error)(void *user, int code, const char *message); /* does not return */
    void (*warning)(void *user, const char *message);
    void (*progress)(void *user);
} Reporter;
void report_to(const Reporter *r);

/* For what only a programmer can cause: prints the condition, the values and file:line, and aborts.
 */
void require_failed(const char *cond, const char *file, int line, const char *fmt, ...)
    PRINTF_LIKE(4, 5) NORETURN;
#define REQUIRE(cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond)) require_failed(#cond, __FILE__, __LINE__, __VA_ARGS__);                       \
    } while (0)

/* Sizes. size_mul and size_add die (EXIT_IO) on overflow instead of wrapping. */
size_t size_mul(size_t a, size_t b);
size_t size_add(size_t a, size_t b);
void *xcalloc(size_t count, size_t size); /* zeroed; dies when memory is out */
char *xstrdup(const char *s);

/* snprintf that dies (EXIT_USAGE) when the result does not fit: paths are never silently cut. */
void format(char *dst, size_t cap, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Files. Every function dies with the path and the reason. */
FILE *xfopen(const char *path, const char *mode);
char *file_read_all(
    const char *path, size_t *size /* out, may be NULL */); /* NUL-terminated, malloced */
int64_t file_size(const char *path);                        /* bytes, or -1 if absent */
void make_dirs(const char *path);                           /* mkdir -p */
/* Writes path + ".tmp", fsyncs, renames, fsyncs the directory: readers see the old or the new file.
 */
void file_write_atomic(const char *path, const void *data, size_t size);
void fsync_path(const char *path); /* file or directory */
/* Makes room for that many open files beside what a process has otherwise, as far as it may; dies
 * (EXIT_IO) where it may not. */
void files_expect(int count);

/* CRC32C (Castagnoli), as in iSCSI, RFC 3720: crc32c(0, "123456789", 9) == 0xe3069283. Chainable:
 * crc32c(crc32c(0, a), b) is the checksum of a followed by b. */
uint32_t crc32c(uint32_t crc, const void *data, size_t size);
/* The same of a and b from their checksums and b's size, of what nobody has in one piece. */
uint32_t crc32c_combine(uint32_t a, uint32_t b, uint64_t b_size);
bool file_crc32c(const char *path, uint32_t *crc); /* false: the file cannot be read */

double now_seconds(void);  /* monotonic */
double wall_seconds(void); /* since 1970 */

#ifdef __cplusplus
}
#endif
#endif
