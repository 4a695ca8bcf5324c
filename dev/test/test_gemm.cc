/* test_gemm.cc: matrix products and column sums of laser/cuda below the seam, on the emulator and
 * on a GPU: values, what timing may not change, plans and the file that keeps them. Linked into
 * builds with BACKEND=cuda or emu only. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "dev/test/product_kit.h"

extern "C" const TestCase *test_gemm(int *count);

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

static const Shape shapes[] = {
    {"one by one", 1, 1, 1, false, true, false, 1, 0, false, false, 1, 0, 0},
    {"one row", 1, 130, 67, false, true, false, 1, 0, true, false, 1, 0, 0},
    {"one column", 70, 1, 33, false, true, true, 1, 0, false, false, 1, 0, 0},
    {"nn odd", 33, 65, 17, false, false, false, 1, 0, false, false, 1, 0, 0},
    {"nt odd", 65, 33, 19, false, true, false, 1, 0, false, false, 1, 0, 0},
    {"tn odd, float", 19, 35, 67, true, false, true, 1, 0, false, false, 1, 0, 0},
    {"tt odd", 37, 21, 31, true, true, false, -0.5f, 0, false, false, 1, 0, 0},
    {"nt, multiples of everything", 128, 64, 96, false, true, false, 1, 0, false, false, 1, 0, 0},
    {"nn, multiples, float", 64, 128, 256, false, false, true, 1, 0, false, false, 1, 0, 0},
    {"tn added, float", 48, 40, 72, true, false, true, 1, 1, false, false, 1, 0, 0},
    {"tn scaled, added, odd", 47, 41, 73, true, false, true, 0.25f, -1.5f, false, false, 1, 3, 1},
    {"nn added", 32, 48, 64, false, false, false, 1, 1, false, false, 1, 8, 0},
    {"bias", 40, 64, 32, false, true, false, 1, 0, true, false, 1, 0, 0},
    {"bias, relu", 41, 64, 32, false, true, false, 1, 0, true, true, 1, 8, 0},
    {"relu", 42, 64, 32, false, true, false, 1, 0, false, true, 1, 0, 0},
    {"bias, relu, nothing aligned", 43, 67, 35, false, true, false, 1, 0, true, true, 1, 3, 1},
    {"bias, one element off", 16, 32, 64, false, true, false, 1, 0, true, false, 1, 0, 1},
    {"padded rows", 24, 40, 56, false, false, false, 1, 0, false, false, 1, 16, 0},
    {"batch nt", 24, 32, 16, false, true, true, 0.125f, 0, false, false, 5, 0, 0},
    {"batch nn, odd", 13, 15, 33, false, false, false, 1, 0, false, false, 3, 1, 0},
    {"batch tn, added", 16, 24, 40, true, false, true, 1, 1, false, false, 2, 0, 0},
    {"odd, bias, relu", 21, 37, 31, false, true, false, 2, 0, true, true, 1, 1, 0},
    {"odd batch, added", 21, 37, 31, true, false, true, 2, 0.5f, false, false, 3, 1, 0},
    {"long sums", 17, 19, 2051, false, true, true, 1, 0, false, false, 1, 0, 0},
};

static void check_product(Test *t, Backend *be, const Product *p, const char *how) {
    float *got = matrix_read(be, &p->C);
    const int misses = product_misses(p, got, p->s->K), changed = product_padding_changed(p, got);
    CHECK(t, misses == 0, "%s, %s: %d elements of C are wrong", p->s->label, how, misses);
    CHECK(t, changed == 0, "%s, %s: %d elements between the rows of C were written", p->s->label,
        how, changed);
    const int planted = product_misses(p, got, p->s->K - 1);
    CHECK(t, planted > 0, "%s, %s: a missing product is not seen", p->s->label, how);
    free(got);
}

static Backend *open_backend(bool untuned, const char *path) {
    BackendOptions options = {};
    options.untuned = untuned;
    options.tune_cache = path;
    Backend *be = backend_open(&options);
    const BackendLimits limits = {1, 8, 1031, 8, 1, 8, 8, 8, false};
    backend_reserve(be, &limits);
    return be;
}

static void run_all(Backend *be) {
    for (int i = 0; i < COUNT(shapes); i++) {
        Product p = product_make(be, &shapes[i]);
        gemm(be, &p.g);
        product_free(be, &p);
    }
}

/* ---- the tests ------------------------------------------------------------------------------- */

/* What models are made of is left to the library. */
static void check_aligned_plans(Test *t, Backend *be) {
    for (int i = 0; i < gemm_plan_count(be); i++) {
        const GemmPlanInfo p = gemm_plan_info(be, i);
        if (p.M % 8 || p.N % 8 || p.K % 8) continue;
        CHECK(t, strcmp(p.origin, "plain") != 0, "M %d N %d K %d %s has no algorithm", (int)p.M,
            (int)p.N, (int)p.K, p.form);
    }
}

static void values(Test *t) {
    for (int untuned = 0; untuned < 2; untuned++) {
        Backend *be = open_backend(untuned != 0, NULL);
        for (int i = 0; i < COUNT(shapes); i++) {
            Product p = product_make(be, &shapes[i]);
            gemm(be, &p.g);
            check_product(t, be, &p, untuned ? "first choice" : "timed");
            product_free(be, &p);
        }
        check_aligned_plans(t, be);
        backend_close(be);
    }
}

/* p has run; its C are the columns from `first` on, all others hold what they held. */
static void check_columns(Test *t, Backend *be, const Product *p, const Matrix *whole, int first) {
    float *got = matrix_read(be, whole);
    int changed = 0;
    for (size_t i = 0; i < whole->n; i++)
        changed += (int64_t)i % whole->ld < first && got[i] != whole->before[i];
    const int misses = product_misses(p, got + first, p->s->K);
    CHECK(t, misses == 0, "%d elements of C are wrong", misses);
    CHECK(t, changed == 0, "%d elements beside C were written", changed);
    CHECK(t, product_misses(p, got + first, p->s->K - 1) > 0, "%s", "a missing product");
    CHECK_STR(t, gemm_plan_info(be, 0).origin, "timed");
    free(got);
}

static Shape dense(int rows) {
    const Shape s = {"", rows, 0, 0, false, false, false, 1, 0, false, false, 1, 0, 0};
    return s;
}

/* As in attention: heads lie beside each other in memory, in the operands and in C. */
static void interleaved(Test *t) {
    enum { T = 20, H = 3, HD = 20, WIDTH = 3 * H * HD };
    static const Shape heads = {
        "heads", T, HD, HD, false, false, false, 1, 0, false, false, H, 0, 0};
    const Shape whole = dense(T);
    Backend *be = open_backend(false, NULL);
    Matrix qkv = matrix_make(be, 5, T, WIDTH, &whole, false);
    Matrix out = matrix_make(be, 6, T, WIDTH, &whole, false);
    Product p = {};
    p.s = &heads;
    p.A = matrix_columns(&qkv, 0, HD), p.B = matrix_columns(&qkv, H * HD, HD);
    p.C = matrix_columns(&out, 2 * H * HD, HD);
    product_describe(&p);
    gemm(be, &p.g);
    check_columns(t, be, &p, &out, 2 * H * HD);
    matrix_free(be, &qkv);
    matrix_free(be, &out);
    backend_close(be);
}

static void planned_once(Test *t) {
    Backend *be = open_backend(false, NULL);
    Product p = product_make(be, &shapes[7]);
    gemm(be, &p.g);
    const int64_t queries = gemm_query_count(be);
    CHECK_INT(t, gemm_plan_count(be), 1);
    CHECK(t, queries > 0, "%d queries", (int)queries);
    p.g.alpha = 2; /* no other plan; nor is another place of the same alignment */
    for (int i = 0; i < 3; i++) gemm(be, &p.g);
    CHECK_INT(t, gemm_plan_count(be), 1);
    CHECK_INT(t, gemm_query_count(be), queries);
    p.g.beta = 1;
    gemm(be, &p.g);
    CHECK_INT(t, gemm_plan_count(be), 2);
    p.g.M = 127;
    gemm(be, &p.g);
    CHECK_INT(t, gemm_plan_count(be), 3);
    p.g.A++; /* no longer aligned: what was fastest may not be able to run */
    gemm(be, &p.g);
    CHECK_INT(t, gemm_plan_count(be), 4);
    product_free(be, &p);
    const int before = gemm_plan_count(be);
    run_all(be); /* more than the table had room for at first, or not: all are found again */
    const int after = gemm_plan_count(be);
    const int64_t asked = gemm_query_count(be);
    run_all(be);
    CHECK(t, after > before, "%d plans, %d before", after, before);
    CHECK_INT(t, gemm_plan_count(be), after);
    CHECK_INT(t, gemm_query_count(be), asked);
    backend_close(be);
}

/* More shapes than the table of plans begins with. */
static void many_shapes(Test *t) {
    enum { SHAPES = 300 };
    static const Shape largest = {"", SHAPES, 8, 8, false, true, true, 1, 0, false, false, 1, 0, 0};
    Backend *be = open_backend(true, NULL);
    Product p = product_make(be, &largest);
    for (int round = 0; round < 2; round++)
        for (p.g.M = 1; p.g.M <= SHAPES; p.g.M++) gemm(be, &p.g);
    CHECK_INT(t, gemm_plan_count(be), SHAPES);
    check_product(t, be, &p, "after many shapes");
    product_free(be, &p);
    backend_close(be);
}

/* C in the same block as A, between its rows: the times are taken elsewhere, as with beta 1. */
static void timing_spoils_nothing(Test *t) {
    enum { M = 24, N = 16, K = 40 };
    static const Shape added = {"", M, N, K, false, true, false, 1, 1, false, false, 1, 0, 0};
    static const Shape written = {"", M, N, K, false, true, false, 1, 0, false, false, 1, 0, 0};
    for (int i = 0; i < 2; i++) {
        const Shape whole = dense(M);
        Backend *be = open_backend(false, NULL);
        Matrix block = matrix_make(be, 7, M, K + N, &whole, false);
        Matrix w = matrix_make(be, 8, N, K, &whole, false);
        Product p = {};
        p.s = i ? &written : &added;
        p.A = matrix_columns(&block, 0, 0), p.B = w, p.C = matrix_columns(&block, K, 0);
        product_describe(&p);
        gemm(be, &p.g);
        check_columns(t, be, &p, &block, K);
        matrix_free(be, &block);
        matrix_free(be, &w);
        backend_close(be);
    }
}

static void same_bits_every_time(Test *t) {
    for (int untuned = 0; untuned < 2; untuned++) {
        Backend *be = open_backend(untuned != 0, NULL);
        run_all(be);
        for (int i = 0; i < gemm_plan_count(be); i++) {
            const GemmPlanInfo p = gemm_plan_info(be, i);
            CHECK(t, p.reduction < 0 || (p.reduction & 1) == 0,
                "M %d N %d K %d %s: algorithm %d adds parts of a sum in place, in any order",
                (int)p.M, (int)p.N, (int)p.K, p.form, p.algorithm);
            CHECK(t, p.workspace <= gemm_workspace_bytes(be->major), "workspace %zu", p.workspace);
        }
        backend_close(be);
    }
}

/* ---- the file -------------------------------------------------------------------------------- */

typedef struct Counts {
    int plans, from_file; /* plans that need a choice */
    int64_t queries;
} Counts;

static Counts run_with_file(const char *path, bool untuned) {
    Backend *be = open_backend(untuned, path);
    run_all(be);
    Counts c = {0, 0, gemm_query_count(be)};
    for (int i = 0; i < gemm_plan_count(be); i++) {
        c.plans += strcmp(gemm_plan_info(be, i).origin, "plain") != 0;
        c.from_file += strcmp(gemm_plan_info(be, i).origin, "file") == 0;
    }
    backend_close(be);
    return c;
}

static int lines_of(const char *text) {
    int lines = 0;
    for (; *text; text++) lines += *text == '\n';
    return lines;
}

static void file_of_choices(Test *t) {
    char folder[256], path[512];
    test_temp_dir(t, folder, sizeof folder);
    format(path, sizeof path, "%s/new/tune.txt", folder);
    const Counts first = run_with_file(path, false);
    CHECK_INT(t, first.from_file, 0);
    char *text = file_read_all(path, NULL);
    CHECK_INT(t, lines_of(text), first.plans + 1);
    const Counts second = run_with_file(path, false);
    CHECK_INT(t, second.plans, first.plans);
    CHECK_INT(t, second.from_file, first.plans);
    CHECK(t, second.queries < first.queries - first.plans + 1, "%d queries, %d before",
        (int)second.queries, (int)first.queries);
    const Counts untuned = run_with_file(path, true);
    CHECK_INT(t, untuned.from_file, 0);
    char *same = file_read_all(path, NULL);
    CHECK_STR(t, same, text);
    free(same);
    free(text);
}

/* What is wrong is timed again; the rest counts; the file is whole afterwards. */
static void damaged_file(Test *t) {
    char folder[256], path[512];
    size_t size;
    test_temp_dir(t, folder, sizeof folder);
    format(path, sizeof path, "%s/tune.txt", folder);
    const Counts whole = run_with_file(path, false);
    char *text = file_read_all(path, &size);
    char *line = strchr(text, '\n') + 1, *digit = strchr(line, '\n') - 40; /* in the algorithm */
    *digit = *digit == '0' ? '1' : '0';
    file_write_atomic(path, text, size);
    CHECK_INT(t, run_with_file(path, false).from_file, whole.plans - 1);
    CHECK_INT(t, run_with_file(path, false).from_file, whole.plans);

    file_write_atomic(path, text, size - 100); /* the last line is torn, the first is wrong */
    CHECK_INT(t, run_with_file(path, false).from_file, whole.plans - 2);

    text[0] = 'X'; /* another program's */
    file_write_atomic(path, text, size);
    CHECK_INT(t, run_with_file(path, false).from_file, 0);
    char *device = strstr(text, "cuBLASLt");
    text[0] = 'l', device[9] = '9'; /* another version's */
    file_write_atomic(path, text, size);
    CHECK_INT(t, run_with_file(path, false).from_file, 0);
    CHECK_INT(t, run_with_file(path, false).from_file, whole.plans);
    file_write_atomic(path, "", 0);
    CHECK_INT(t, run_with_file(path, false).from_file, 0);
    CHECK_INT(t, run_with_file(path, false).from_file, whole.plans);
    free(text);
}

/* ---- column sums ----------------------------------------------------------------------------- */

typedef struct SumShape {
    int rows, cols, pad;
    bool floats;
    float beta;
} SumShape;

static const SumShape sum_shapes[] = {
    {1, 1, 0, false, 0},
    {1, 64, 0, false, 1},
    {63, 33, 0, false, 0},
    {64, 256, 8, false, 1},
    {65, 264, 0, false, 0},
    {129, 1031, 0, false, 0},
    {20000, 40, 0, false, 0},
    {17000, 9, 2, false, 1},
    {300, 136, 0, true, 0},
    {300, 101, 27, true, 1},
    {16385, 12, 4, true, 0},
};

/* Columns whose sum is not that of the first `rows` rows. */
static int sum_misses(
    const Matrix *x, const float *before, const float *got, float beta, int rows) {
    int misses = 0;
    for (int j = 0; j < x->cols; j++) {
        double want = beta != 0.0f ? (double)beta * (double)before[j] : 0, absolute = fabs(want);
        for (int i = 0; i < rows; i++) {
            want += (double)x->before[i * x->ld + j];
            absolute += fabs((double)x->before[i * x->ld + j]);
        }
        /* a sum of at most rows / 256 + 64 terms, of 8, of cuts */
        misses += !(fabs((double)got[j] - want) <= (rows / 256 + 128) * 0x1p-23 * absolute);
    }
    return misses;
}

static void sums_of_columns(Test *t) {
    Backend *be = open_backend(true, NULL);
    for (int i = 0; i < COUNT(sum_shapes); i++) {
        const SumShape *s = &sum_shapes[i];
        const Shape in = {"", 0, 0, 0, false, false, false, 1, 0, false, false, 1, s->pad, 0};
        const Shape row = dense(1);
        Matrix x = matrix_make(be, 9, s->rows, s->cols, &in, s->floats);
        Matrix out = matrix_make(be, 10, 1, s->cols, &row, true);
        if (s->floats)
            column_sums(be, (float *)out.p, s->beta, (const float *)x.p, s->rows, s->cols, x.ld);
        else
            column_sums(be, (float *)out.p, s->beta, (const act_t *)x.p, s->rows, s->cols, x.ld);
        float *got = matrix_read(be, &out);
        const int misses = sum_misses(&x, out.before, got, s->beta, s->rows);
        CHECK(t, misses == 0, "%d x %d: %d wrong sums", s->rows, s->cols, misses);
        CHECK(t, sum_misses(&x, out.before, got, s->beta, s->rows - 1) > 0,
            "%d x %d: a missing row is not seen", s->rows, s->cols);
        free(got);
        matrix_free(be, &x);
        matrix_free(be, &out);
    }
    backend_close(be);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void refused(void *opaque) {
    Backend be = {};
    gemm(&be, (const Gemm *)opaque); /* must not come as far as the library */
}

static void bad_arguments(Test *t) {
    act_t x;
    Gemm good = {};
    good.M = 2, good.N = 3, good.K = 4;
    good.A = good.B = &x, good.C = &x;
    good.lda = good.ldb = good.ldc = 4;
    good.alpha = 1;
    Gemm g = good;
    g.M = 0;
    EXPECT_EXIT(t, -SIGABRT, "M=0 N=3 K=4", refused, &g);
    g = good, g.ldc = 2;
    EXPECT_EXIT(t, -SIGABRT, "ldc=2", refused, &g);
    g = good, g.B = NULL;
    EXPECT_EXIT(t, -SIGABRT, "B=", refused, &g);
    g = good, g.alpha = 0;
    EXPECT_EXIT(t, -SIGABRT, "alpha=0", refused, &g);
    g = good, g.bias = &x, g.beta = 1;
    EXPECT_EXIT(t, -SIGABRT, "beta=1", refused, &g);
}

const TestCase *test_gemm(int *count) {
    static const TestCase cases[] = {
        {"gemm: products equal a reference in double", values},
        {"gemm: heads between each other in memory", interleaved},
        {"gemm: a shape is planned once", planned_once},
        {"gemm: the table of plans grows", many_shapes},
        {"gemm: timing changes neither C nor its neighbours", timing_spoils_nothing},
        {"gemm: no algorithm sums in an order of chance", same_bits_every_time},
        {"gemm: a second run takes its choices from the file", file_of_choices},
        {"gemm: a damaged or foreign file is passed over", damaged_file},
        {"gemm: bad arguments end in a message", bad_arguments},
        {"gemm: column sums equal a reference in double", sums_of_columns},
    };
    return TEST_TABLE(cases, count);
}
