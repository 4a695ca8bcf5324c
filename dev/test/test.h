/* test.h: what a test is written with. A test is a name that says what is promised and a function
 * that checks it; a group is a function that returns a table of them; test_gpt.c runs every table.
 * A failed check prints its values and the test goes on, so that one run shows all of them. Knows
 * nothing of what is tested. */
#ifndef DEV_TEST_TEST_H
#define DEV_TEST_TEST_H

#include "laser/base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Test {
    const char *name;
    int checks, failures;
    bool skipped;
    bool quiet; /* counts failures and prints none: to see that a planted error is found */
    int temp_dirs;
    char root[256]; /* this test's temporary directory, made on the first call of test_temp_dir */
} Test;

typedef struct TestCase {
    const char *name; /* "group: what is promised" */
    void (*fn)(Test *t);
} TestCase;
typedef const TestCase *(*TestGroup)(int *count);

/* The groups. */
const TestCase *test_oracle(int *count);
const TestCase *test_rounded(int *count);
const TestCase *test_ops(int *count);
const TestCase *test_modifiers(int *count);
const TestCase *test_attention(int *count);
const TestCase *test_optim(int *count);
const TestCase *test_products(int *count);
const TestCase *test_precision(int *count);
const TestCase *test_start(int *count);
const TestCase *test_model(int *count);
const TestCase *test_generate(int *count);
const TestCase *test_torch(int *count);
const TestCase *test_watch(int *count);
const TestCase *test_data(int *count);
const TestCase *test_encode(int *count);
const TestCase *test_runs(int *count);
const TestCase *test_config(int *count);
/* Those that only some backends have, NULL behind the last: groups_cpu.c, _cuda.c or _emu.c. */
extern const TestGroup extra_test_groups[];
const TestCase *test_gemm(int *count);   /* cuda, emu */
const TestCase *test_choose(int *count); /* cuda, emu */
const TestCase *test_emu(int *count);    /* emu */
const TestCase *test_emu_ends(int *count); /* emu */
#define TEST_TABLE(cases, count) (*(count) = (int)(sizeof(cases) / sizeof *(cases)), (cases))

/* ---- checks: each prints file, line and values when it fails, counts, and goes on ------------ */

void test_fail(Test *t, const char *where, const char *fmt, ...) PRINTF_LIKE(3, 4);
void test_fail_condition(Test *t, const char *where, const char *condition, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
void test_skip(Test *t, const char *fmt, ...) PRINTF_LIKE(2, 3);
void test_check_int(Test *t, const char *where, const char *what, int64_t got, int64_t want);
void test_check_str(
    Test *t, const char *where, const char *what, const char *got, const char *want);
void test_check_near(
    Test *t, const char *where, const char *what, double got, double want, double tol);

#define TEST_STRING_(x) #x
#define TEST_STRING(x) TEST_STRING_(x)
#define TEST_WHERE __FILE__ ":" TEST_STRING(__LINE__)

/* CHECK(t, a < b, "a %d b %d", a, b): the message is not optional. */
#define CHECK(t, cond, ...)                                                                        \
    do {                                                                                           \
        (t)->checks++;                                                                             \
        if (!(cond)) test_fail_condition((t), TEST_WHERE, #cond, __VA_ARGS__);                     \
    } while (0)
#define CHECK_INT(t, got, want)                                                                    \
    test_check_int((t), TEST_WHERE, #got, (int64_t)(got), (int64_t)(want))
#define CHECK_STR(t, got, want) test_check_str((t), TEST_WHERE, #got, (got), (want))
/* |got - want| <= tol; a NaN fails */
#define CHECK_NEAR(t, got, want, tol) test_check_near((t), TEST_WHERE, #got, (got), (want), (tol))
/* Ends the test with a reason: SKIP(t, "needs 2 cores, this machine has %d", n); */
#define SKIP(t, ...)                                                                               \
    do {                                                                                           \
        test_skip((t), __VA_ARGS__);                                                               \
        return;                                                                                    \
    } while (0)

/* ---- helpers --------------------------------------------------------------------------------- */

/* Runs fn(arg) in a forked child and checks how it ends: code is the exit code (0 when fn returns),
 * or minus the signal (-SIGABRT for REQUIRE). substring must occur in what it wrote on stderr ("":
 * anything, NULL: nothing may be written). Threads do not survive a fork: fn may not use a backend
 * or loader that the parent opened. */
void test_expect_exit(
    Test *t, const char *where, int code, const char *substring, void (*fn)(void *arg), void *arg);
#define EXPECT_EXIT(t, code, substring, fn, arg)                                                   \
    test_expect_exit((t), TEST_WHERE, (code), (substring), (fn), (arg))

/* A new empty directory for this test; removed with all it holds when the test ends, also after a
 * failure. */
void test_temp_dir(Test *t, char *path, size_t capacity);

/* A byte pattern to lay behind a buffer: guard_broken gives the first byte that changed, or -1. */
enum { GUARD_BYTES = 256 };
void guard_fill(void *p, size_t bytes);
int64_t guard_broken(const void *p, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
