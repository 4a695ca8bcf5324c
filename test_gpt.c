/* test_gpt.c: one table of tests, run against whichever backend is linked. Runs in the checkout's
 * top directory. Holds main and what dev/test/test.h declares; the tests lie in dev/test/. May not
 * include a .c or .cu file.
 *
 *   ./test_gpt [--list] [--filter SUBSTRING]... [--skip SUBSTRING]...
 * Exit code 0: all passed, 1: some failed, 2: usage.
 */
#include "dev/test/test.h"

#include <ftw.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    FAILURES_SHOWN = 12, /* per test; the rest is counted */
    MAX_FILTERS = 16,
};

/* ---- checks ---------------------------------------------------------------------------------- */

void test_fail(Test *t, const char *where, const char *fmt, ...) {
    if (++t->failures > FAILURES_SHOWN || t->quiet) return;
    printf("%s    %s: ", t->failures == 1 ? "\n" : "", where);
    va_list args;
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}

void test_fail_condition(Test *t, const char *where, const char *condition, const char *fmt, ...) {
    char said[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(said, sizeof said, fmt, args);
    va_end(args);
    test_fail(t, where, "%s: %s", condition, said);
}

void test_skip(Test *t, const char *fmt, ...) {
    t->skipped = true;
    printf("skipped: ");
    va_list args;
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
}

void test_check_int(Test *t, const char *where, const char *what, int64_t got, int64_t want) {
    t->checks++;
    if (got != want) {
        test_fail(t, where, "%s is %lld, want %lld", what, (long long)got, (long long)want);
    }
}

void test_check_str(
    Test *t, const char *where, const char *what, const char *got, const char *want) {
    t->checks++;
    if (got == NULL || strcmp(got, want) != 0) {
        test_fail(t, where, "%s is \"%s\", want \"%s\"", what, got ? got : "(null)", want);
    }
}

void test_check_near(
    Test *t, const char *where, const char *what, double got, double want, double tol) {
    t->checks++;
    if (fabs(got - want) <= tol) return;
    test_fail(t, where, "%s is %.9g, want %.9g within %.3g, off by %.3g", what, got, want, tol,
        fabs(got - want));
}

/* ---- helpers --------------------------------------------------------------------------------- */

static void child_run(int write_end, void (*fn)(void *arg), void *arg) {
    dup2(write_end, STDERR_FILENO);
    close(write_end);
    fn(arg);
    fflush(NULL);
    _exit(0);
}

static void read_to_end(int fd, char *text, size_t capacity) {
    size_t n = 0;
    char drop[512];
    for (;;) {
        bool room = n + 1 < capacity;
        ssize_t got = read(fd, room ? text + n : drop, room ? capacity - 1 - n : sizeof drop);
        if (got <= 0) break;
        if (room) n += (size_t)got;
    }
    text[n] = 0;
}

void test_expect_exit(
    Test *t, const char *where, int code, const char *substring, void (*fn)(void *arg), void *arg) {
    int ends[2];
    fflush(NULL); /* what is buffered would be written twice */
    REQUIRE(pipe(ends) == 0, "pipe");
    pid_t child = fork();
    REQUIRE(child >= 0, "fork");
    if (child == 0) {
        close(ends[0]);
        child_run(ends[1], fn, arg);
    }
    close(ends[1]);
    char said[8192];
    read_to_end(ends[0], said, sizeof said);
    close(ends[0]);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child, "waitpid");
    int got = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    t->checks += 2;
    if (got != code) {
        test_fail(t, where, "ended with %d, want %d; stderr: \"%s\"", got, code, said);
    }
    if (substring == NULL && said[0] != 0) {
        test_fail(t, where, "wrote \"%s\" on stderr, want nothing", said);
    } else if (substring != NULL && strstr(said, substring) == NULL) {
        test_fail(t, where, "stderr is \"%s\", want \"%s\" in it", said, substring);
    }
}

void test_temp_dir(Test *t, char *path, size_t capacity) {
    if (t->root[0] == 0) {
        const char *base = getenv("TMPDIR");
        format(t->root, sizeof t->root, "%s/test_gpt.XXXXXX", base && base[0] ? base : "/tmp");
        if (mkdtemp(t->root) == NULL) die(EXIT_IO, "cannot make a directory like %s", t->root);
    }
    format(path, capacity, "%s/%d", t->root, t->temp_dirs++);
    make_dirs(path);
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *position) {
    (void)info, (void)type, (void)position;
    return remove(path);
}

static unsigned char guard_byte(size_t i) {
    return (unsigned char)(0xA5u ^ (i * 37u));
}

void guard_fill(void *p, size_t bytes) {
    unsigned char *bytes_of = p;
    for (size_t i = 0; i < bytes; i++) bytes_of[i] = guard_byte(i);
}

int64_t guard_broken(const void *p, size_t bytes) {
    const unsigned char *bytes_of = p;
    for (size_t i = 0; i < bytes; i++) {
        if (bytes_of[i] != guard_byte(i)) return (int64_t)i;
    }
    return -1;
}

/* ---- the runner ------------------------------------------------------------------------------ */

typedef struct Totals {
    int passed, failed, skipped;
} Totals;

static void run_one(const TestCase *c, Totals *totals) {
    Test t = {.name = c->name};
    printf("%-86s ", c->name);
    fflush(stdout);
    double start = now_seconds();
    c->fn(&t);
    if (t.root[0] != 0) nftw(t.root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    if (t.failures > FAILURES_SHOWN) printf("    (%d failed checks in all)\n", t.failures);
    if (t.failures == 0 && t.checks == 0 && !t.skipped) {
        test_fail(&t, c->name, "the test checked nothing");
    }
    if (t.failures > 0) {
        printf("    FAILED: %s\n", c->name);
        totals->failed++;
    } else if (t.skipped) {
        printf("\n");
        totals->skipped++;
    } else {
        printf("ok %7.2f s\n", now_seconds() - start);
        totals->passed++;
    }
    fflush(stdout);
}

typedef struct Wanted {
    const char *filters[MAX_FILTERS]; /* a test runs when its name contains one; none: all run */
    const char *skips[MAX_FILTERS];   /* but not when it contains one of these */
    int filter_count, skip_count;
    bool list; /* names only */
} Wanted;

static bool contains_any(const char *name, const char *const *parts, int count) {
    for (int i = 0; i < count; i++) {
        if (strstr(name, parts[i]) != NULL) return true;
    }
    return false;
}

static bool is_wanted(const Wanted *w, const char *name) {
    return (w->filter_count == 0 || contains_any(name, w->filters, w->filter_count)) &&
           !contains_any(name, w->skips, w->skip_count);
}

static Wanted parse_arguments(int argc, char **argv) {
    Wanted w = {0};
    for (int i = 1; i < argc; i++) {
        const bool valued = i + 1 < argc;
        if (strcmp(argv[i], "--list") == 0) {
            w.list = true;
        } else if (strcmp(argv[i], "--filter") == 0 && valued && w.filter_count < MAX_FILTERS) {
            w.filters[w.filter_count++] = argv[++i];
        } else if (strcmp(argv[i], "--skip") == 0 && valued && w.skip_count < MAX_FILTERS) {
            w.skips[w.skip_count++] = argv[++i];
        } else {
            die(EXIT_USAGE,
                "unknown argument \"%s\"\n"
                "usage: test_gpt [--list] [--filter SUBSTRING]... [--skip SUBSTRING]...",
                argv[i]);
        }
    }
    return w;
}

static void run_group(TestGroup group, const Wanted *wanted, Totals *totals) {
    int count = 0;
    const TestCase *cases = group(&count);
    for (int i = 0; i < count; i++) {
        if (!is_wanted(wanted, cases[i].name)) continue;
        if (wanted->list) {
            printf("%s\n", cases[i].name);
        } else {
            run_one(&cases[i], totals);
        }
    }
}

int main(int argc, char **argv) {
    const Wanted wanted = parse_arguments(argc, argv);
    const TestGroup groups[] = {test_config, test_data, test_encode, test_runs, test_oracle,
        test_rounded, test_ops, test_modifiers, test_products, test_attention, test_optim,
        test_precision, test_start, test_torch, test_model, test_generate, test_watch};
    Totals totals = {0};
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        run_group(groups[g], &wanted, &totals);
    }
    for (const TestGroup *g = extra_test_groups; *g != NULL; g++) {
        run_group(*g, &wanted, &totals);
    }
    if (wanted.list) return 0;
    if (totals.passed + totals.failed + totals.skipped == 0) {
        die(EXIT_USAGE, "no test name contains what --filter asks for; --list prints them");
    }
    printf("%d passed, %d failed", totals.passed, totals.failed);
    if (totals.skipped > 0) printf(", %d skipped", totals.skipped);
    printf("\n");
    return totals.failed > 0;
}
