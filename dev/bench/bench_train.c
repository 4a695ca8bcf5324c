/* bench_train.c: how fast whole training steps are, beside the rate of the machine's matrix product
 * measured in the same process, and where the time of a step goes. Random weights and tokens; takes
 * the trainer's own options. Run without options it measures GPT-2 124M at 4 x 64 and at 1 x 1024
 * tokens.
 *
 * The table of operations needs a link in which calls to them pass through the wrappers of
 * op_times.c. Where operations return before they have run there is no such table (bench_ops.c has
 * one), and steps follow each other without waiting, as the trainer's do. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/op_times.h"
#include "laser/base.h"
#include "laser/optim.h"
#include "laser/plan.h"
#include "laser/rng.h"

enum { SIDE = 1024, WARM_UP = 2, GROUPS = 5, LINE = 256, DEVICE = 256 };
static const double GEMM_SECONDS = 0.3, STEP_SECONDS = 20.0, GROUP_SECONDS = 1.5;

typedef struct Bench {
    Config config;
    ModelConfig shape;
    Backend *be;
    Model model;
    Optim optim;
    AdamArgs adam;
    double *loss;              /* (1) of a step, in backend memory */
    int32_t *tokens, *targets; /* (B, T) */
    int B, T;
    act_t *matrices;    /* (3, SIDE, SIDE): two factors and the product, in backend memory */
    void *blas;         /* handle of a library with cblas_sgemm, or NULL */
    float *host;        /* (3, SIDE, SIDE) for that library */
    char blas_name[64]; /* with the processor whose kernels it uses, as it may choose badly */
} Bench;

/* ---- the machine: products of SIDE x SIDE matrices
 * ------------------------------------------------- */

typedef void SgemmFn(int order, int transA, int transB, int M, int N, int K, float alpha,
    const float *A, int lda, const float *B, int ldb, float beta, float *C, int ldc);
typedef void SetThreadsFn(int threads);
typedef char *CoreNameFn(void);

/* A function's address from dlsym's object pointer, as POSIX has it. */
static void find_function(void *library, const char *name, void *function) {
    void *found = library ? dlsym(library, name) : NULL;
    memcpy(function, &found, sizeof found);
}

static void multiply_own(Bench *b) {
    const size_t n = (size_t)SIDE * SIDE;
    LinearArgs a = {.N = SIDE, .OC = SIDE, .IC = SIDE, .w = b->matrices + n};
    op_linear_fwd(b->be, b->matrices + 2 * n, b->matrices, &a);
    float last; /* a backend that works in the background is waited for */
    backend_download(b->be, &last, b->matrices + 3 * n - 1, sizeof(act_t));
}

static void multiply_blas(Bench *b) {
    enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };
    const size_t n = (size_t)SIDE * SIDE;
    SgemmFn *sgemm;
    find_function(b->blas, "cblas_sgemm", &sgemm);
    sgemm(ROW_MAJOR, NO_TRANS, TRANS, SIDE, SIDE, SIDE, 1.0f, b->host, SIDE, b->host + n, SIDE,
        0.0f, b->host + 2 * n, SIDE);
}

/* FLOP/s of the best of what fits into GEMM_SECONDS: other programs can only slow it down. */
static double gemm_rate(Bench *b, void multiply(Bench *)) {
    double start = now_seconds(), best = 1e30;
    for (int i = 0; i < 3 || now_seconds() - start < GEMM_SECONDS; i++) {
        double before = now_seconds();
        multiply(b);
        double took = now_seconds() - before;
        if (took < best) best = took;
    }
    return 2.0 * SIDE * SIDE * SIDE / best;
}

typedef struct GemmRates {
    double own, blas; /* FLOP/s; blas 0 without the library */
} GemmRates;

static GemmRates gemm_rates(Bench *b) {
    GemmRates r = {gemm_rate(b, multiply_own), b->blas ? gemm_rate(b, multiply_blas) : 0.0};
    return r;
}

static GemmRates best_rates(GemmRates a, GemmRates b) {
    GemmRates r = {a.own > b.own ? a.own : b.own, a.blas > b.blas ? a.blas : b.blas};
    return r;
}

static void open_gemm(Bench *b) {
    const size_t n = 3 * (size_t)SIDE * SIDE;
    SetThreadsFn *set_threads;
    CoreNameFn *core_name;
    b->blas = dlopen("libopenblas.so.0", RTLD_NOW);
    find_function(b->blas, "openblas_set_num_threads", &set_threads);
    find_function(b->blas, "openblas_get_corename", &core_name);
    format(b->blas_name, sizeof b->blas_name, "OpenBLAS %s", core_name ? core_name() : "");
    if (set_threads && b->config.threads) set_threads((int)b->config.threads);
    b->host = (float *)xcalloc(n, sizeof *b->host);
    for (size_t i = 0; i < n; i++) b->host[i] = (float)(i % 31) - 15.0f;
    b->matrices = (act_t *)backend_alloc(b->be, n * sizeof(act_t));
    backend_upload_act(b->be, b->matrices, b->host, n);
}

static void close_gemm(Bench *b) {
    backend_free(b->be, b->matrices);
    free(b->host);
}

/* ---- a training step
 * ------------------------------------------------------------------------------- */

static void open_bench(Bench *b) {
    const Config *c = &b->config;
    b->shape = config_model(c, 0);
    b->B = (int)c->batch, b->T = b->shape.T;
    const ModelConfig *s = &b->shape;
    const BackendLimits limits = model_limits(s, b->B);
    const BackendOptions options = config_backend(c, 0);
    const size_t n = size_mul((size_t)b->B, (size_t)b->T);
    b->be = backend_open(&options);
    backend_reserve(b->be, &limits);
    model_open(&b->model, b->be, s, b->B, MODEL_TRAINING, NULL);
    model_init(&b->model, (uint64_t)c->seed);
    optim_open(&b->optim, &b->model, &(OptimOptions){.decay_all = false});
    b->loss = (double *)backend_alloc(b->be, sizeof *b->loss);
    b->adam = (AdamArgs){.lr = 1e-4f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .eps = 1e-8f,
        .weight_decay = 0.1f,
        .grad_clip = 1.0f};
    b->tokens = (int32_t *)xcalloc(n, sizeof *b->tokens);
    b->targets = (int32_t *)xcalloc(n, sizeof *b->targets);
    for (size_t i = 0; i < n; i++) {
        b->tokens[i] = (int32_t)(rng_u64(1, RNG_TEST, i) % (uint64_t)s->V);
        b->targets[i] = (int32_t)(rng_u64(1, RNG_TEST, n + i) % (uint64_t)s->V);
    }
    open_gemm(b);
    op_times_begin(&b->model);
}

static void close_bench(Bench *b) {
    close_gemm(b);
    backend_free(b->be, b->loss);
    optim_close(&b->optim, &b->model);
    model_close(&b->model);
    backend_close(b->be);
    free(b->tokens);
    free(b->targets);
}

/* One step, as the trainer takes it. */
static void begin_step(Bench *b) {
    backend_zero(b->be, b->loss, sizeof *b->loss);
    model_forward(&b->model, b->tokens, b->B, b->T);
    model_backward(&b->model, b->targets, b->B, b->T, 1.0f / (float)(b->B * b->T), 0.0f, b->loss);
    optim_step(&b->optim, &b->model, &b->adam, b->loss, 1);
}

static void require_applied(Bench *b) {
    const StepState s = optim_read(&b->optim, b->be);
    REQUIRE(!s.skipped, "loss %g, squared gradient norm %g", s.loss_sum, s.grad_sumsq);
}

/* Its seconds. */
static double take_step(Bench *b) {
    op_times_step_begin();
    const double start = now_seconds();
    begin_step(b);
    require_applied(b);
    const double took = now_seconds() - start;
    op_times_step_done(took);
    return took;
}

static double step_flops(const Bench *b) {
    return model_flops_per_token(&b->shape, b->T) * b->B * b->T;
}

/* ---- a report
 * ---------------------------------------------------------------------------------------- */

static void print_machine(Bench *b) {
    char device[DEVICE];
    backend_describe(b->be, device, sizeof device);
    printf("%s attention, %s, batch %d x %d tokens, %.2f M parameters\n%s\n", backend_attention(),
        b->config.model, b->B, b->T, (double)model_parameters(&b->shape) / 1e6, device);
}

static void print_rate(const char *name, double rate, double flops, double step) {
    if (rate > 0)
        printf("  sgemm, %-17s %8.1f GFLOP/s   the step runs at %5.1f %% of it\n", name, rate / 1e9,
            100 * flops / step / rate);
}

static void report(Bench *b, bool operations) {
    double ms[OP_TIMES_MAX], best = 1e30, begin;
    const int64_t wanted = b->config.steps;
    int n = 0;
    print_machine(b);
    for (int i = 0; i < WARM_UP; i++) (void)take_step(b);
    GemmRates rates = gemm_rates(b);
    op_times_begin(&b->model);
    begin = now_seconds();
    while (n < OP_TIMES_MAX &&
           (wanted > 0 ? n < wanted : n < 3 || now_seconds() - begin < STEP_SECONDS)) {
        const double took = take_step(b);
        if (took < best) best = took;
        ms[n++] = 1e3 * took;
    }
    rates = best_rates(rates, gemm_rates(b));
    const double typical = median(ms, n) / 1e3, flops = step_flops(b), tokens = b->B * b->T;
    printf("  step, median of %-4d %12.2f ms   %9.1f tokens/s   %7.1f GFLOP/s (model FLOPs)\n", n,
        1e3 * typical, tokens / typical, flops / typical / 1e9);
    printf("  step, best           %12.2f ms   %9.1f tokens/s   %7.1f GFLOP/s\n", 1e3 * best,
        tokens / best, flops / best / 1e9);
    print_rate("this build", rates.own, flops, typical);
    print_rate(b->blas_name, rates.blas, flops, typical);
    if (operations) op_times_print(stdout, rates.own > rates.blas ? rates.own : rates.blas);
    printf("\n");
}

/* Seconds a step, of n that are handed over one after the other. */
static double steady_step(Bench *b, int n) {
    backend_synchronize(b->be);
    const double start = now_seconds();
    for (int i = 0; i < n; i++) begin_step(b);
    backend_synchronize(b->be);
    return (now_seconds() - start) / n;
}

/* Of a backend that works in the background, against the data sheet's peak. */
static void report_steady(Bench *b) {
    MemoryPlan plan;
    const BackendOptions options = config_backend(&b->config, 0);
    double ms[GROUPS];
    print_machine(b);
    const ParallelOptions alone = parallel_options(&b->config, 1);
    const PlanShape shape = {&b->shape, b->B, 1, &alone, &options};
    const size_t planned = plan_memory(&shape, &plan);
    for (int i = 0; i < WARM_UP; i++) (void)take_step(b);
    int n = (int)b->config.steps;
    if (n <= 0) n = 1 + (int)(GROUP_SECONDS / steady_step(b, 2));
    for (int i = 0; i < GROUPS; i++) ms[i] = 1e3 * steady_step(b, n);
    require_applied(b);
    const double typical = median(ms, GROUPS) / 1e3, rate = step_flops(b) / typical;
    const double peak = backend_peak_flops(b->be);
    printf(
        "  step, median of %d x %d: %.3f ms (best %.3f), %.1f tokens/s, %.1f TFLOP/s (model FLOPs)"
        ", MFU %.2f %% of %.1f TFLOP/s\n  memory, planned: %.3f GiB\n\n",
        GROUPS, n, 1e3 * typical, ms[0], b->B * b->T / typical, rate / 1e12, 100 * rate / peak,
        peak / 1e12, (double)planned / 1073741824.0);
}

/* ---- steps on demand, so that a script can interleave programs
 * ---------------------------------------- */

/* Answers each line of stdin with one line: "step" with its milliseconds, "gemm" with GFLOP/s. */
static void serve(Bench *b) {
    char line[LINE];
    for (int i = 0; i < WARM_UP; i++) (void)take_step(b);
    printf("ready %.6g FLOP, %d tokens\n", step_flops(b), b->B * b->T);
    for (fflush(stdout); fgets(line, sizeof line, stdin); fflush(stdout)) {
        line[strcspn(line, "\n")] = '\0';
        if (strcmp(line, "step") == 0) {
            printf("%.3f ms\n", 1e3 * take_step(b));
        } else if (strcmp(line, "gemm") == 0) {
            GemmRates r = gemm_rates(b);
            printf("%.2f %.2f GFLOP/s\n", r.own / 1e9, r.blas / 1e9);
        } else {
            die(EXIT_USAGE, "'%s' on stdin: step and gemm are known", line);
        }
    }
}

/* ---- the command line
 * ---------------------------------------------------------------------------------- */

/* Removes an option that the trainer does not have. */
static bool take_flag(int *argc, char **argv, const char *flag) {
    for (int i = 1; i < *argc; i++) {
        if (strcmp(argv[i], flag) != 0) continue;
        memmove(argv + i, argv + i + 1, (size_t)(*argc - i) * sizeof *argv);
        --*argc;
        return true;
    }
    return false;
}

/* --plan: the one way to say that no data are needed. */
static void parse(Bench *b, int argc, char **argv, char *batch, char *seq_len) {
    char *all[64] = {argv[0], "--plan", "--model", "gpt2-124M", "--batch", batch};
    int n = 6;
    if (seq_len) all[n++] = "--seq-len", all[n++] = seq_len;
    if (argc + n > 64) die(EXIT_USAGE, "%d arguments are too many", argc);
    for (int i = 1; i < argc; i++) all[n++] = argv[i];
    memset(b, 0, sizeof *b);
    config_parse(&b->config, n, all);
}

static bool gives_shape(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strncmp(argv[i], "--batch", 7) == 0 || strncmp(argv[i], "--seq-len", 9) == 0 ||
            strncmp(argv[i], "--model", 7) == 0)
            return true;
    return false;
}

int main(int argc, char **argv) {
    const bool serving = take_flag(&argc, argv, "--serve");
    const bool operations = !take_flag(&argc, argv, "--no-ops");
    const bool one = gives_shape(argc, argv);
    static char *const shapes[2][2] = {{"4", "64"}, {"1", "1024"}};
    for (int i = 0; i < (one ? 1 : 2); i++) {
        Bench b;
        parse(&b, argc, argv, shapes[i][0], one ? NULL : shapes[i][1]);
        open_bench(&b);
        if (serving)
            serve(&b);
        else if (backend_memory_is_host())
            report(&b, operations);
        else
            report_steady(&b);
        close_bench(&b);
    }
    return 0;
}
