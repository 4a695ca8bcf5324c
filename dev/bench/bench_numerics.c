/* bench_numerics.c: the paper's experiment on numerical error (its appendix A.5): of the queries,
 * keys and values that a trained model computes on validation text, the error of attention's output
 * in bfloat16, for each form of attention. Rounding is simulated, in builds of any precision; what
 * is rounded, dev/ref/rounded.h says.
 *
 *   bench_numerics CHECKPOINT SHARDS [--sequences N, 8] [option of the trainer...]
 * CHECKPOINT: or a run's directory, of the attention that is linked. Exit codes: the trainer's. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dataloader/loader.h"
#include "dev/ref/rounded.h"
#include "laser/base.h"
#include "laser/passes.h"
#include "laser/pretrained.h"

enum { SEQUENCES = 8, MAX_ARGUMENTS = 64 };

static const char *const form_names[FORM_COUNT] = {"standard, P V", "LASER, log(P exp V)",
    "LASER, exp(V - m), the paper's", "LASER, exp(V - m) - kappa, ours"};

/* Mean and standard deviation as the appendix prints them; there is none for the centred form. */
typedef struct Printed {
    double mean, sd;
} Printed;
static const Printed paper_tpu[FORM_COUNT] = {{.0016, .0001}, {.0018, .0002}, {.0017, .0001}};
static const Printed paper_a100[FORM_COUNT] = {{.0018, .0002}, {.0020, .0003}, {.0019, .0002}};
enum { PAPER_CASES = 4800 }; /* of (1024, 8, 256) */

typedef struct Spread {
    double sum, squares, least, most;
    int64_t n, beyond; /* beyond: not finite, not in n */
} Spread;

static void spread_add(Spread *s, double x) {
    if (!isfinite(x)) {
        s->beyond++;
        return;
    }
    s->least = s->n && s->least < x ? s->least : x;
    s->most = s->n && s->most > x ? s->most : x;
    s->sum += x, s->squares += x * x, s->n++;
}

static double spread_mean(const Spread *s) {
    return s->n ? s->sum / (double)s->n : NAN;
}

static double spread_sd(const Spread *s) {
    if (s->n < 2) return 0;
    const double n = (double)s->n, mean = s->sum / n;
    return sqrt(fmax(0, (s->squares - n * mean * mean) / (n - 1)));
}

typedef struct Bench {
    Config config;
    Model model;
    Loader *loader;
    int64_t sequences;
    float *qkv; /* (T, 3, H, HD) of one layer */
    Spread error[FORM_COUNT][ROUND_COUNT], std;
} Bench;

/* ---- one layer of one sequence
 * --------------------------------------------------------------------- */

static int maps_of(const Bench *b) { /* of all heads of a layer; differential: two a head */
    return b->model.config.H * model_maps(&b->model.config);
}

static RoundedHead map_of(const Bench *b, int layer, int map) {
    const ModelConfig *c = &b->model.config;
    const AttentionArgs a = pass_attention(&b->model, 1, c->T, &b->model.layer[layer], 0);
    const int maps = model_maps(c);
    const size_t A = (size_t)c->H * (size_t)c->HD;
    const float *q = b->qkv + (size_t)(map / maps) * (size_t)c->HD;
    const size_t k0 = (size_t)(map % maps) * (size_t)a.DK;
    return (RoundedHead){.q = q + k0,
        .k = q + A + k0,
        .v = q + 2 * A,
        .ld = 3 * A,
        .T = c->T,
        .DK = a.DK,
        .HD = c->HD,
        .scale = (double)a.scale,
        .softcap = (double)a.softcap,
        .bits = BF16_BITS};
}

static void measure_layer(Bench *b, int layer) {
    const ModelConfig *c = &b->model.config;
    const int maps = maps_of(b);
    const size_t n = size_mul((size_t)c->T, 3 * (size_t)c->H * (size_t)c->HD);
    RoundedErrors *errors = (RoundedErrors *)xcalloc((size_t)maps, sizeof *errors);
    backend_download_act(b->model.be, b->qkv, b->model.layer[layer].qkv, n);
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < maps; i++) {
        const RoundedHead h = map_of(b, layer, i);
        rounded_errors(&h, &errors[i]);
    }
    for (int i = 0; i < maps; i++) { /* in order: sums do not depend on the threads */
        spread_add(&b->std, errors[i].std);
        for (int f = 0; f < FORM_COUNT; f++)
            for (int r = 0; r < ROUND_COUNT; r++)
                spread_add(&b->error[f][r], errors[i].error[f][r]);
    }
    free(errors);
}

static void measure(Bench *b) {
    const ModelConfig *c = &b->model.config;
    const size_t T = (size_t)c->T, A = size_mul((size_t)c->H, (size_t)c->HD);
    int32_t *tokens = (int32_t *)xcalloc(2 * T, sizeof *tokens);
    b->qkv = (float *)xcalloc(size_mul(T, 3 * A), sizeof *b->qkv);
    for (int64_t s = 0; s < b->sequences; s++) {
        loader_next(b->loader, tokens, tokens + T);
        model_forward(&b->model, tokens, 1, c->T);
        for (int layer = 0; layer < c->L; layer++) measure_layer(b, layer);
    }
    free(tokens);
    free(b->qkv);
}

/* ---- the table
 * --------------------------------------------------------------------------------------- */

static void print_number(double mean, double sd) {
    char text[64];
    if (isfinite(mean))
        snprintf(text, sizeof text, "%.5f (%.5f)", mean, sd);
    else
        snprintf(text, sizeof text, "-");
    printf("  %-19s", text);
}

static void print_paper(const Printed *p, int width) {
    if (p->mean > 0)
        printf("  %.4f (%.4f)", p->mean, p->sd);
    else
        printf("  %-*s", width, "-");
}

static void print_table(const Bench *b) {
    const ModelConfig *c = &b->model.config;
    printf("%" PRId64 " cases: %" PRId64 " sequences of %d tokens x %d layers x %d heads of %d"
           " (the paper: %d of 1024 x 8 x 256)\n",
        b->std.n, b->sequences, c->T, c->L, maps_of(b), c->HD, PAPER_CASES);
    printf("values: standard deviation within a channel %.4f (%.4f to %.4f)\n",
        spread_mean(&b->std), b->std.least, b->std.most);
    printf("relative error of attention's output in bfloat16 against float64: mean (sd)\n");
    printf("%-32s  %-19s  %-19s  %-19s  %-15s  %s\n", "rounded to bfloat16:", "output",
        "P, values, output", "and the product", "the paper: TPU", "A100");
    for (int f = 0; f < FORM_COUNT; f++) {
        int64_t beyond = 0;
        printf("%-32s", form_names[f]);
        for (int r = 0; r < ROUND_COUNT; r++) {
            const Spread *s = &b->error[f][r];
            print_number(spread_mean(s), spread_sd(s));
            beyond = s->beyond > beyond ? s->beyond : beyond;
        }
        print_paper(&paper_tpu[f], 15);
        print_paper(&paper_a100[f], 1);
        if (beyond) printf("  %" PRId64 " cases are not finite and left out", beyond);
        printf("\n");
    }
    printf("values: V or LASER's matrix, which P weighs; the product: of the two, before LASER's"
           " logarithm\n");
}

/* ---- the command line
 * --------------------------------------------------------------------------------- */

static int64_t take_sequences(int *argc, char **argv) {
    char *end;
    for (int i = 1; i < *argc; i++) {
        if (strcmp(argv[i], "--sequences") != 0) continue;
        const char *value = i + 1 < *argc ? argv[i + 1] : "";
        const long long n = strtoll(value, &end, 10);
        if (n < 1 || *end) die(EXIT_USAGE, "--sequences '%s': expected a number above 0", value);
        memmove(argv + i, argv + i + 2, (size_t)(*argc - i - 2) * sizeof *argv);
        *argc -= 2;
        return n;
    }
    return SEQUENCES;
}

static void open_shards(Bench *b, const char *pattern) {
    const ModelConfig *c = &b->model.config;
    const LoaderOptions options = {.pattern = pattern,
        .seq_len = c->T,
        .batch = 1,
        .step_sequences = 1,
        .world = 1,
        .vocab = c->V};
    b->loader = loader_open(&options);
    const int64_t there = loader_info(b->loader)->windows;
    if (b->sequences > there)
        die(EXIT_INPUT, "--sequences %" PRId64 ": %s has %" PRId64 " of %d tokens", b->sequences,
            pattern, there, c->T);
}

int main(int argc, char **argv) {
    Bench b;
    memset(&b, 0, sizeof b);
    b.sequences = take_sequences(&argc, argv);
    if (argc < 3 || argv[1][0] == '-' || argv[2][0] == '-')
        die(EXIT_USAGE, "usage: bench_numerics CHECKPOINT SHARDS [--sequences N] [OPTION...]");
    if (argc > MAX_ARGUMENTS) die(EXIT_USAGE, "%d arguments are too many", argc);
    char *all[MAX_ARGUMENTS + 2] = {argv[0], "--sample-from", argv[1]};
    for (int i = 3; i < argc; i++) all[i] = argv[i];
    config_parse(&b.config, argc, all);
    pretrained_open(&b.model, &b.config, argv[1]);
    open_shards(&b, argv[2]);
    measure(&b);
    print_table(&b);
    loader_close(b.loader);
    pretrained_close(&b.model);
    return 0;
}
