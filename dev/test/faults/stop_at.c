/* stop_at.c: for LD_PRELOAD. Ends the process as kill -9 does, at a moment that is counted and not
 * timed: what a killed process leaves is what its calls have done to files, so that every state
 * that a crash can leave is before or after one of them, and can be tried, however busy the machine
 * is. STOP_AT=2n, 2n+1        before, after the n-th call that makes files durable or changes names
 *   STOP_AT_WRITE=2n, 2n+1  before the n-th call that writes to a regular file; half-way in it
 * Calls of each kind count from 0, those of all threads. Without the variables nothing is changed.
 */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int count, writes; /* calls so far, by any thread */

static int is_moment(const char *variable, int moment) {
    const char *at = getenv(variable);
    return at && atoi(at) == moment;
}

static void stop_if(int stop) {
    if (stop) kill(getpid(), SIGKILL);
}

#define REAL(name) (*(void **)&real = dlsym(RTLD_NEXT, #name))

#define WATCH(name, parameters, arguments)                                                         \
    int name parameters {                                                                          \
        int(*real) parameters;                                                                     \
        REAL(name);                                                                                \
        const int call = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);                          \
        stop_if(is_moment("STOP_AT", 2 * call));                                                   \
        const int result = real arguments;                                                         \
        stop_if(is_moment("STOP_AT", 2 * call + 1));                                               \
        return result;                                                                             \
    }

WATCH(rename, (const char *from, const char *to), (from, to))
WATCH(unlink, (const char *path), (path))
WATCH(fsync, (int fd), (fd))
WATCH(fdatasync, (int fd), (fd))
WATCH(ftruncate, (int fd, off_t size), (fd, size))

/* Whether the call is to end half-way. */
static int stops_within(int fd) {
    struct stat st;
    if (!getenv("STOP_AT_WRITE") || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) return 0;
    const int call = __atomic_fetch_add(&writes, 1, __ATOMIC_RELAXED);
    stop_if(is_moment("STOP_AT_WRITE", 2 * call));
    return is_moment("STOP_AT_WRITE", 2 * call + 1);
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t);
    REAL(write);
    if (!stops_within(fd)) return real(fd, data, size);
    const ssize_t done = real(fd, data, size / 2);
    stop_if(1);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    ssize_t (*real)(int, const void *, size_t, off_t);
    REAL(pwrite);
    if (!stops_within(fd)) return real(fd, data, size, at);
    const ssize_t done = real(fd, data, size / 2, at);
    stop_if(1);
    return done;
}

size_t fwrite(const void *data, size_t size, size_t n, FILE *f) {
    size_t (*real)(const void *, size_t, size_t, FILE *);
    REAL(fwrite);
    if (!stops_within(fileno(f))) return real(data, size, n, f);
    const size_t done = real(data, 1, size * n / 2, f);
    fflush(f);
    stop_if(1);
    return done;
}
