/* stop_at.c: for LD_PRELOAD. Ends the process as kill -9 does, just before or just after the n-th
 * call that makes files durable or changes their names; STOP_AT=2n: before call n, 2n+1: after it,
 * counted from 0. Without STOP_AT nothing is changed. Every moment at which a crash leaves other
 * files behind can so be tried, not only those that chance finds. */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int count; /* calls so far, by any thread */

static void stop_if(int moment) {
    const char *at = getenv("STOP_AT");
    if (at && atoi(at) == moment) kill(getpid(), SIGKILL);
}

#define WATCH(name, parameters, arguments)                                                         \
    int name parameters {                                                                          \
        int(*real) parameters;                                                                     \
        *(void **)&real = dlsym(RTLD_NEXT, #name);                                                 \
        const int call = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);                          \
        stop_if(2 * call);                                                                         \
        const int result = real arguments;                                                         \
        stop_if(2 * call + 1);                                                                     \
        return result;                                                                             \
    }

WATCH(rename, (const char *from, const char *to), (from, to))
WATCH(unlink, (const char *path), (path))
WATCH(fsync, (int fd), (fd))
WATCH(fdatasync, (int fd), (fd))
WATCH(ftruncate, (int fd, off_t size), (fd, size))
