/* full_disk.c: for LD_PRELOAD. FULL_AFTER=n: the disk takes n bytes of what this process writes to
 * regular files with write and pwrite. The call that goes beyond writes what still fits, as where a
 * disk fills; all after it, and requests for more room than is left, fail with ENOSPC. Without the
 * variable nothing is changed. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static long long used; /* by all threads */

static long long room(int fd) {
    const char *most = getenv("FULL_AFTER");
    struct stat st;
    if (!most || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) return 1LL << 62;
    const long long left = atoll(most) - __atomic_load_n(&used, __ATOMIC_RELAXED);
    return left > 0 ? left : 0;
}

static ssize_t is_full(void) {
    errno = ENOSPC;
    return -1;
}

static ssize_t take(ssize_t n) {
    if (n > 0) __atomic_fetch_add(&used, n, __ATOMIC_RELAXED);
    return n;
}

#define REAL(name) (*(void **)&real = dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t);
    REAL(write);
    const long long left = room(fd);
    if (left == 1LL << 62) return real(fd, data, size);
    if (!left && size) return is_full();
    return take(real(fd, data, (long long)size < left ? size : (size_t)left));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    ssize_t (*real)(int, const void *, size_t, off_t);
    REAL(pwrite);
    const long long left = room(fd);
    if (left == 1LL << 62) return real(fd, data, size, at);
    if (!left && size) return is_full();
    return take(real(fd, data, (long long)size < left ? size : (size_t)left, at));
}

int fallocate(int fd, int mode, off_t at, off_t size) {
    int (*real)(int, int, off_t, off_t);
    REAL(fallocate);
    return size > room(fd) ? (int)is_full() : real(fd, mode, at, size);
}
