/* test_config.c: options, presets and their counts, the schedule, random numbers, checksums,
 * checkpoint directories. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/test/tensor.h"
#include "dev/test/test.h"
#include "laser/checkpoint.h"
#include "laser/config.h"
#include "laser/model.h"
#include "laser/rng.h"
#include "laser/schedule.h"

enum { MAX_ARGS = 16 };

/* A command line and what became of it: a Config's strings point into the words. */
typedef struct Parsed {
    Config config;
    char words[256];
} Parsed;

/* Parses "a b c" as the command line "train a b c". */
static const Config *parsed(Parsed *p, const char *words) {
    char *argv[MAX_ARGS] = {(char *)"train"};
    int argc = 1;
    format(p->words, sizeof p->words, "%s", words);
    for (char *w = strtok(p->words, " "); w && argc < MAX_ARGS; w = strtok(NULL, " "))
        argv[argc++] = w;
    config_parse(&p->config, argc, argv);
    free(p->config.command_line);
    return &p->config;
}

static void parse(void *words) {
    Parsed p;
    parsed(&p, (const char *)words);
}

typedef struct BadLine {
    const char *words, *message;
} BadLine;

static void bad_command_lines(Test *t) {
    static const BadLine bad[] = {
        {"--train x --seq-lenn 5", "did you mean --seq-len?"},
        {"--train x --seq-len", "--seq-len needs a value"},
        {"--train x --seq-len 0", "--seq-len: 0 is outside"},
        {"--train x --seq-len 12x", "'12x' is not a whole number"},
        {"--train x --lr nan", "'nan' is not a number"},
        {"--train x --lr -1", "--lr: -1 is outside"},
        {"--train x --batch 99999999999999999999", "is not a whole number"},
        {"--train x --act swish", "'swish' is not one of relu|gelu"},
        {"--train x --model 9B", "no preset '9B'; there are 234M, 301M"},
        {"--train x --decay-all=1", "--decay-all takes no value"},
        {"--train x --no-lr", "unknown option '--no-lr'"},
        {"--train x stray", "unexpected argument 'stray'"},
        {"--seq-len 5", "--train GLOB is needed"},
        {"--train x --total-batch 100 --seq-len 64", "not a multiple of --seq-len 64"},
        {"--train x --steps 5 --warmup 6", "--warmup 6 is longer than --steps 5"},
        {"--train x --pos rope --head-dim 3", "needs an even --head-dim"},
        {"--train x --diff --head-dim 3", "--diff cuts heads in two"},
        {"--train x --diff --pos rope --head-dim 6", "a multiple of 4, not 6"},
        {"--train x --temperature 0", "--temperature: 0 is outside"},
        {"--train x --resume nowhere", "neither 'auto', 'never' nor a checkpoint"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        void *words = xstrdup(bad[i].words);
        EXPECT_EXIT(t, EXIT_USAGE, bad[i].message, parse, words);
        free(words);
    }
}

static void presets_count(Test *t) {
    static const struct {
        const char *name;
        double bare;   /* millions, as DESIGN section 2 prints them; 0: see all */
        int64_t all;   /* exact; 0: not fixed */
        double digits; /* half a unit of the last printed digit, in millions */
    } want[] = {
        {"234M", 234.09, 0, .005},
        {"301M", 301.20, 301466880, .005},
        {"435M", 435.42, 0, .005},
        {"1.1B", 1139.3, 0, .05},
        {"2.2B", 2213.0, 0, .05},
        {"7.7B", 7732.9, 0, .05},
        /* GPT-2's published counts */
        {"gpt2-124M", 0, 124439808, 0},
        {"gpt2-350M", 0, 354823168, 0},
        {"gpt2-774M", 0, 774030080, 0},
        {"gpt2-1558M", 0, 1557611200, 0},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        char words[64];
        format(words, sizeof words, "--plan --model %s", want[i].name);
        Parsed pc;
        const Config *c = parsed(&pc, words);
        ModelConfig m = config_model(c, 0);
        if (want[i].bare > 0)
            CHECK_NEAR(t, (double)model_parameters_bare(&m) / 1e6, want[i].bare, want[i].digits);
        if (want[i].all) CHECK_INT(t, model_parameters(&m), want[i].all);
        CHECK_INT(t, m.Vp % 128, 0);
        CHECK(t, m.Vp >= m.V && m.Vp < m.V + 128, "V %d held as %d", m.V, m.Vp);
    }
}

static void own_sizes(Test *t) {
    Parsed p;
    const Config *c =
        parsed(&p, "--plan --model gpt2-124M --layers 3 --no-bias-mlp --act=relu --vocab 1000");
    ModelConfig m = config_model(c, 0);
    CHECK_INT(t, m.L, 3);
    CHECK_INT(t, m.C, 768);
    CHECK_INT(t, m.bias_mlp, 0);
    CHECK_INT(t, m.bias_attn, 1);
    CHECK_INT(t, m.act, ACT_RELU);
    CHECK_INT(t, m.Vp, 1024);
    CHECK(t, c->vocab_given, "--vocab was not noticed");
}

static void differences_are_named(Test *t) {
    Parsed pa;
    const Config *a = parsed(&pa, "--plan --model tiny --vocab 100 --lr 0.001");
    Parsed pb;
    const Config *b =
        parsed(&pb, "--plan --model tiny --vocab 100 --lr 0.002 --seed 7 --act gelu --keep 5");
    char *json = config_json(a);
    char *same = config_differences(a, json, FIXED);
    char *fixed = config_differences(b, json, FIXED), *noted = config_differences(b, json, NOTED);
    CHECK_STR(t, same, "");
    CHECK_STR(t, fixed, "  --seed: 1 -> 7\n  --act: relu -> gelu\n");
    CHECK_STR(t, noted, "  --lr: 0.001 -> 0.002\n");
    free(json);
    free(same);
    free(fixed);
    free(noted);
}

static void backend_options(Test *t) {
    static const struct {
        const char *cache, *home, *words, *file;
    } want[] = {
        {"/c", "/h", "", "/c/laser.c/matrix_products"},
        {"", "/h", "", "/h/.cache/laser.c/matrix_products"},
        {"relative", "/h", "", "/h/.cache/laser.c/matrix_products"},
        {"", "", "", ""},
        {"/c", "/h", "--tune-cache none", ""},
        {"/c", "/h", "--tune-cache=a/b", "a/b"},
    };
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *kept[2] = {xstrdup(cache ? cache : ""), xstrdup(home ? home : "")};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        char words[128];
        Parsed p;
        setenv("XDG_CACHE_HOME", want[i].cache, 1);
        setenv("HOME", want[i].home, 1);
        format(words, sizeof words, "--plan --threads 3 --no-tune %s", want[i].words);
        const BackendOptions o = config_backend(parsed(&p, words), 5);
        CHECK_STR(t, o.tune_cache, want[i].file);
        CHECK(t, o.threads == 3 && o.local_rank == 5 && o.untuned && !o.tf32, "threads %d, rank %d",
            o.threads, o.local_rank);
    }
    setenv("XDG_CACHE_HOME", kept[0], 1);
    setenv("HOME", kept[1], 1);
    Parsed p;
    const BackendOptions o = config_backend(parsed(&p, "--plan --tf32 --attn-core cudnn"), 0);
    CHECK(t, o.tf32 && !o.untuned, "tf32 %d, untuned %d", o.tf32, o.untuned);
    CHECK_INT(t, o.attn_core, ATTN_CORE_CUDNN);
    free(kept[0]), free(kept[1]);
}

/* FLOPs of one training step, counted product by product instead of by formula. */
static void flops_by_hand(Test *t) {
    Parsed pc;
    const Config *c = parsed(&pc, "--plan --model 2.2B");
    ModelConfig m = config_model(c, 0);
    const double C = m.C, F = m.F, A = m.H * m.HD, T = m.T;
    double forward = m.V * C, attention = 0;
    for (int l = 0; l < m.L; l++) forward += C * 3 * A + A * C + C * F + F * C;
    for (int row = 1; row <= m.T; row++) attention += 2.0 * row * A * m.L; /* q k^T and P v */
    const double want = 3 * 2 * (forward + attention / T); /* backward counts twice */
    /* the formula takes T/2 keys a row, the sum (T+1)/2 */
    CHECK_NEAR(t, model_flops_per_token(&m, m.T), want, 6.0 * A * m.L * 1.01);
}

static void schedules(Test *t) {
    Schedule s = {SCHEDULE_COSINE, 2.0, 0.1, 0.2, 10, 110};
    CHECK_NEAR(t, schedule_lr(&s, 0), 0.2, 1e-12);
    CHECK_NEAR(t, schedule_lr(&s, 9), 2.0, 1e-12);
    CHECK_NEAR(t, schedule_lr(&s, 10), 2.0, 1e-12);
    CHECK_NEAR(t, schedule_lr(&s, 60), 2.0 * 0.55, 1e-12); /* half way: the mean of peak and end */
    CHECK_NEAR(t, schedule_lr(&s, 110), 0.2, 1e-12);
    CHECK_NEAR(t, schedule_lr(&s, 1000), 0.2, 1e-12);
    s.min_ratio = 0;
    CHECK(t, schedule_lr(&s, 109) > 0 && schedule_lr(&s, 109) < 2e-3, "%g", schedule_lr(&s, 109));
    s.kind = SCHEDULE_LINEAR;
    CHECK_NEAR(t, schedule_lr(&s, 60), 1.0, 1e-12);
    s.kind = SCHEDULE_CONSTANT;
    CHECK_NEAR(t, schedule_lr(&s, 109), 2.0, 1e-12);
    s.kind = SCHEDULE_WSD; /* the last fifth of 110 steps: 22 */
    CHECK_NEAR(t, schedule_lr(&s, 87), 2.0, 1e-12);
    CHECK_NEAR(t, schedule_lr(&s, 99), 1.0, 1e-12);
    s.warmup = 0;
    s.steps = 0;
    CHECK(t, isfinite(schedule_lr(&s, 0)), "no steps at all");
}

/* Known answers of Philox-4x32-10 (Random123's kat_vectors): the low 64 of the 128 bits. */
static void philox_vectors(Test *t) {
    CHECK(t, (uint32_t)rng_u64(0, 0, 0) == 0x6627e8d5u, "%llx", (long long)rng_u64(0, 0, 0));
    CHECK(
        t, (uint32_t)(rng_u64(0, 0, 0) >> 32) == 0xe169c58du, "%llx", (long long)rng_u64(0, 0, 0));
    const uint64_t ones = UINT64_MAX;
    CHECK(t, (uint32_t)rng_u64(ones, ones, ones) == 0x408f276du, "%llx",
        (long long)rng_u64(ones, ones, ones));
    CHECK(t, (uint32_t)(rng_u64(ones, ones, ones) >> 32) == 0x41c83b0eu, "%llx",
        (long long)rng_u64(ones, ones, ones));
}

static void normal_moments(Test *t) {
    enum { N = 200000 };
    double sum = 0, square = 0, fourth = 0;
    for (uint64_t i = 0; i < N; i++) {
        double x = rng_normal(3, RNG_TEST, i);
        sum += x;
        square += x * x;
        fourth += x * x * x * x;
    }
    /* five standard errors: of the mean 1/sqrt(N), of the variance sqrt(2/N), of E x^4 sqrt(96/N)
     */
    CHECK_NEAR(t, sum / N, 0, 5 / sqrt(N));
    CHECK_NEAR(t, square / N, 1, 5 * sqrt(2.0 / N));
    CHECK_NEAR(t, fourth / N, 3, 5 * sqrt(96.0 / N));
}

static void permutations(Test *t) {
    static const uint64_t sizes[] = {1, 2, 3, 5, 64, 65, 1000, 4097};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const uint64_t n = sizes[s];
        char *seen = (char *)xcalloc(n, 1);
        uint64_t moved = 0;
        for (uint64_t i = 0; i < n; i++) {
            uint64_t p = rng_permute(9, RNG_SHUFFLE, i, n);
            CHECK(
                t, p < n && !seen[p], "n %llu: %llu again or outside", (long long)n, (long long)p);
            if (p < n) seen[p] = 1;
            moved += p != i;
        }
        CHECK(
            t, n < 64 || moved > n / 2, "only %llu of %llu moved", (long long)moved, (long long)n);
        free(seen);
    }
}

/* RFC 3720, B.4 */
static void crc_vectors(Test *t) {
    unsigned char block[32];
    CHECK_INT(t, crc32c(0, "123456789", 9), 0xe3069283u);
    memset(block, 0, 32);
    CHECK_INT(t, crc32c(0, block, 32), 0x8a9136aau);
    memset(block, 0xff, 32);
    CHECK_INT(t, crc32c(0, block, 32), 0x62a8ab43u);
    for (int i = 0; i < 32; i++) block[i] = (unsigned char)i;
    CHECK_INT(t, crc32c(0, block, 32), 0x46dd794eu);
    CHECK_INT(t, crc32c(crc32c(0, block, 13), block + 13, 19), 0x46dd794eu);
}

/* Joined checksums are those of the whole, for every cut. Of sizes that nobody computes directly:
 * the polynomial is x + 1 times one that is irreducible of degree 31, so that x^(2^31 - 1) is 1. */
static void crc_combine(Test *t) {
    enum { SIZE = 333, SHORT = 512 };
    static const unsigned char zeros[SHORT];
    const uint64_t period = ((uint64_t)1 << 31) - 1;
    unsigned char data[SIZE];
    for (int i = 0; i < SIZE; i++) data[i] = (unsigned char)(i * 151 >> 3);
    const uint32_t whole = crc32c(0, data, SIZE);
    for (size_t cut = 0; cut <= SIZE; cut++) {
        const uint32_t a = crc32c(0, data, cut), b = crc32c(0, data + cut, SIZE - cut);
        CHECK_INT(t, crc32c_combine(a, b, SIZE - cut), whole);
        const bool cut_shows = crc32c_combine(a, b, SIZE - cut + 1) != whole;
        CHECK(t, cut_shows || cut == 0, "cut at %zu: one byte more goes unnoticed", cut);
    }
    const uint32_t nothing = crc32c(0, zeros, SHORT), after = crc32c(whole, zeros, SHORT);
    CHECK_INT(t, crc32c_combine(whole, nothing, SHORT), after);
    for (uint64_t turns = 1; turns < 9000; turns = turns * 2 + 1)
        CHECK_INT(t, crc32c_combine(whole, nothing, SHORT + turns * period), after);
    /* 8 x 2^40 = 2^43 is 2^12 = 8 x 512 in the exponent */
    CHECK_INT(t, crc32c_combine(whole, nothing, (uint64_t)1 << 40), after);
    const uint64_t sizes[] = {1, period + 1, ((uint64_t)1 << 32) + 5, ((uint64_t)1 << 45) + 12345};
    for (int i = 0; i < 4; i++) /* added up, in either order */
        for (int j = 0; j < 4; j++)
            CHECK_INT(t, crc32c_combine(crc32c_combine(whole, 0, sizes[i]), 0, sizes[j]),
                crc32c_combine(whole, 0, sizes[i] + sizes[j]));
}

/* What each modifier adds to a model of 301M's shape, whose heads are 8 x 128; FLOPs of the scores
 * and of the values are as many, and two maps weigh the values twice. */
static void modifiers_count(Test *t) {
    static const struct {
        const char *words;
        int64_t layer; /* parameters */
        double attention;
    } want[] = {
        {"--temperature 2", 0, 1},
        {"--per-dim-scale", 128, 1},
        {"--qk-norm", 2 * 128, 1},
        {"--diff", 4 * 64 + 128, 1.5},
        {"--diff-plain", 4 * 64, 1.5},
        {"--diff --qk-norm --per-dim-scale", 4 * 64 + 128 + 3 * 64, 1.5},
    };
    Parsed pc;
    const ModelConfig plain = config_model(parsed(&pc, "--plan --model 301M"), 0);
    const double matrices = 6.0 * (double)model_parameters_bare(&plain);
    const double attention = model_flops_per_token(&plain, plain.T) - matrices;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        char words[96];
        format(words, sizeof words, "--plan --model 301M %s", want[i].words);
        const ModelConfig m = config_model(parsed(&pc, words), 0);
        CHECK_INT(t, model_parameters(&m), model_parameters(&plain) + m.L * want[i].layer);
        CHECK_INT(t, model_parameters_bare(&m), model_parameters_bare(&plain));
        CHECK_NEAR(t, model_flops_per_token(&m, m.T), matrices + want[i].attention * attention, 1);
        CHECK_INT(t, m.diff, want[i].attention > 1);
    }
}

static void check_plan(Test *t, const char *words) {
    Parsed pc;
    const Config *c = parsed(&pc, words);
    ModelConfig m = config_model(c, 0);
    MemoryPlan plan;
    Model model;
    const BackendOptions options = bench_options(1);
    const BackendLimits limits = model_limits(&m, 3);
    Backend *be = backend_open(&options);
    backend_reserve(be, &limits);
    model_plan(&m, 3, &options, &plan);
    model_open(&model, be, &m, 3, MODEL_TRAINING, NULL);
    CHECK_INT(t, plan.activations, model.acts_plan.bytes);
    CHECK_INT(t, plan.weights, model.table.elements * sizeof(act_t));
    model_close(&model);
    backend_close(be);
}

static void plan_equals_memory(Test *t) {
    check_plan(t, "--plan --model tiny --vocab 300 --batch 3");
    check_plan(t, "--plan --model tiny --vocab 300 --batch 3 --diff --qk-norm --recompute light");
}

const TestCase *test_config(int *count) {
    static const TestCase cases[] = {
        {"config: every malformed command line is named, exit 2", bad_command_lines},
        {"config: presets have the design's and GPT-2's parameter counts", presets_count},
        {"config: options override the preset", own_sizes},
        {"config: what differs from a saved run is named, by rule", differences_are_named},
        {"config: the backend gets its options, and a file in the cache directory",
            backend_options},
        {"model: FLOPs agree with a count product by product", flops_by_hand},
        {"model: what each modifier of attention adds to parameters and FLOPs", modifiers_count},
        {"model: the plan is what is allocated", plan_equals_memory},
        {"schedule: cosine, linear, constant, wsd and warm-up at their corners", schedules},
        {"rng: Philox-4x32-10 gives the published numbers", philox_vectors},
        {"rng: normal numbers have the moments of a normal", normal_moments},
        {"rng: a permutation of any n takes every value once", permutations},
        {"base: CRC32C gives RFC 3720's numbers", crc_vectors},
        {"base: checksums of parts give that of the whole, of any size", crc_combine},
    };
    return TEST_TABLE(cases, count);
}
