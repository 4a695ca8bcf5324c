/* config.c: the option table at work: parse, presets, help, JSON, comparison on resume. */
#include "laser/config.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/version.h"

typedef enum Kind { ROW_GROUP, ROW_TEXT, ROW_INT, ROW_REAL, ROW_FLAG, ROW_ENUM } Kind;

typedef struct Row {
    Kind kind;
    const char *field, *option; /* C name (and JSON key), command line name; group: title, NULL */
    size_t offset;
    const char *text; /* default of TEXT and ENUM */
    double number;    /* default of the others */
    double lo, hi;
    ResumeRule rule;
    const char *arg; /* what --help shows as the value; ENUM: the choices */
    const char *help;
} Row;

#define GROUP_ROW(title) {ROW_GROUP, title, NULL, 0, NULL, 0, 0, 0, FREE, NULL, NULL},
#define TEXT_ROW(f, o, d, r, arg, help)                                                            \
    {ROW_TEXT, #f, o, offsetof(Config, f), d, 0, 0, 0, r, arg, help},
#define INT_ROW(f, o, d, lo, hi, r, help)                                                          \
    {ROW_INT, #f, o, offsetof(Config, f), NULL, d, (double)(lo), (double)(hi), r, "N", help},
#define REAL_ROW(f, o, d, lo, hi, r, help)                                                         \
    {ROW_REAL, #f, o, offsetof(Config, f), NULL, d, (double)(lo), (double)(hi), r, "X", help},
#define FLAG_ROW(f, o, d, r, help)                                                                 \
    {ROW_FLAG, #f, o, offsetof(Config, f), NULL, d, 0, 1, r, NULL, help},
#define ENUM_ROW(f, o, d, choices, r, help)                                                        \
    {ROW_ENUM, #f, o, offsetof(Config, f), d, 0, 0, 0, r, choices, help},

static const Row table[] = {
    CONFIG_TABLE(GROUP_ROW, TEXT_ROW, INT_ROW, REAL_ROW, FLAG_ROW, ENUM_ROW)};
enum { ROWS = sizeof table / sizeof table[0] };
#define TUNE_FILE "matrix_products"

static const Preset presets[] = {
    /* the paper's sizes; caps as its framework has them by default */
    {"234M", 16, 1024, 4096, 8, 128, 32000, 1024, false, 50, 30},
    {"301M", 32, 1024, 2048, 8, 128, 32000, 1024, false, 50, 30},
    {"435M", 32, 1024, 4096, 8, 128, 32000, 1024, false, 50, 30},
    {"1.1B", 32, 2048, 4096, 8, 256, 32000, 1024, false, 50, 30},
    {"2.2B", 32, 2048, 8192, 8, 512, 32000, 1024, false, 50, 30},
    {"7.7B", 32, 3440, 11584, 16, 720, 32000, 1024, false, 50, 30},
    {"gpt2-124M", 12, 768, 3072, 12, 64, 50257, 1024, true, 0, 0},
    {"gpt2-350M", 24, 1024, 4096, 16, 64, 50257, 1024, true, 0, 0},
    {"gpt2-774M", 36, 1280, 5120, 20, 64, 50257, 1024, true, 0, 0},
    {"gpt2-1558M", 48, 1600, 6400, 25, 64, 50257, 1024, true, 0, 0},
    /* for CPUs: the paper's structure, vocabulary as the data records it */
    {"small", 4, 256, 1024, 4, 64, AUTO, 256, false, 0, 0},
    {"tiny", 2, 128, 512, 2, 64, AUTO, 128, false, 0, 0},
};

const Preset *config_presets(int *count) {
    *count = (int)(sizeof presets / sizeof presets[0]);
    return presets;
}

static int64_t *int_at(Config *c, const Row *r) {
    return (int64_t *)((char *)c + r->offset);
}
static double *real_at(Config *c, const Row *r) {
    return (double *)((char *)c + r->offset);
}
static const char **text_at(Config *c, const Row *r) {
    return (const char **)((char *)c + r->offset);
}

/* Index of word in "a|b|c", AUTO when it is not there. */
static int choice_index(const char *choices, const char *word, size_t length) {
    int index = 0;
    for (const char *p = choices;; index++) {
        size_t n = strcspn(p, "|");
        if (n == length && memcmp(p, word, n) == 0) return index;
        if (p[n] == '\0') return AUTO;
        p += n + 1;
    }
}

static void choice_name(const char *choices, int64_t index, char *out, size_t cap) {
    const char *p = choices;
    for (; index > 0 && *p; index--) p += strcspn(p, "|") + 1;
    format(out, cap, "%.*s", (int)strcspn(p, "|"), p);
}

static void set_default(Config *c, const Row *r) {
    switch (r->kind) {
    case ROW_GROUP:
        break;
    case ROW_TEXT:
        *text_at(c, r) = r->text;
        break;
    case ROW_REAL:
        *real_at(c, r) = r->number;
        break;
    case ROW_INT:
    case ROW_FLAG:
        *int_at(c, r) = (int64_t)r->number;
        break;
    case ROW_ENUM:
        *int_at(c, r) = r->text[0] ? choice_index(r->arg, r->text, strlen(r->text)) : AUTO;
    }
}

static void set_number(Config *c, const Row *r, const char *value) {
    char *end;
    errno = 0;
    if (r->kind == ROW_REAL) {
        double x = strtod(value, &end);
        if (end == value || *end || !isfinite(x))
            die(EXIT_USAGE, "--%s: '%s' is not a number", r->option, value);
        if (x < r->lo || x > r->hi)
            die(EXIT_USAGE, "--%s: %g is outside %g .. %g", r->option, x, r->lo, r->hi);
        *real_at(c, r) = x;
        return;
    }
    long long x = strtoll(value, &end, 10);
    if (end == value || *end || errno)
        die(EXIT_USAGE, "--%s: '%s' is not a whole number", r->option, value);
    if ((double)x < r->lo || (double)x > r->hi)
        die(EXIT_USAGE, "--%s: %lld is outside %.0f .. %.0f", r->option, x, r->lo, r->hi);
    *int_at(c, r) = x;
}

static void set_value(Config *c, const Row *r, const char *value) {
    if (r->kind == ROW_TEXT) {
        *text_at(c, r) = value;
    } else if (r->kind == ROW_ENUM) {
        int index = choice_index(r->arg, value, strlen(value));
        if (index == AUTO) die(EXIT_USAGE, "--%s: '%s' is not one of %s", r->option, value, r->arg);
        *int_at(c, r) = index;
    } else {
        set_number(c, r, value);
    }
}

/* The option that shares the longest beginning with what was typed, for the error message. */
static const char *nearest_option(const char *name, size_t length) {
    const char *best = "help";
    size_t most = 0;
    for (int i = 0; i < ROWS; i++) {
        if (table[i].kind == ROW_GROUP) continue;
        size_t n = 0;
        while (n < length && table[i].option[n] == name[n]) n++;
        if (n > most) {
            most = n;
            best = table[i].option;
        }
    }
    return best;
}

static const Row *find_option(const char *name, size_t length) {
    for (int i = 0; i < ROWS; i++)
        if (table[i].kind != ROW_GROUP && strlen(table[i].option) == length &&
            memcmp(table[i].option, name, length) == 0)
            return &table[i];
    return NULL;
}

static void print_version(void) {
    printf("laser.c %s (%s), attention %s, backend %s, precision %s\n", LASER_VERSION,
        laser_revision(), backend_attention(), backend_name(), backend_precision());
}

/* Takes argv[i] and, where the option needs one and it was not given by '=', argv[i + 1]. */
static int parse_one(Config *c, int argc, char **argv, int i) {
    const char *arg = argv[i];
    if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
        config_help(stdout);
        exit(0);
    }
    if (strcmp(arg, "--version") == 0) {
        print_version();
        exit(0);
    }
    if (strncmp(arg, "--", 2) != 0 || arg[2] == '\0')
        die(EXIT_USAGE, "unexpected argument '%s': options begin with --, see --help", arg);
    const char *name = arg + 2;
    size_t length = strcspn(name, "=");
    const char *value = name[length] == '=' ? name + length + 1 : NULL;
    const Row *r = find_option(name, length);
    bool negated = false;
    if (!r && strncmp(name, "no-", 3) == 0) {
        r = find_option(name + 3, length - 3);
        negated = true;
        if (r && r->kind != ROW_FLAG) r = NULL;
    }
    if (!r)
        die(EXIT_USAGE, "unknown option '--%.*s'; did you mean --%s? See --help", (int)length, name,
            nearest_option(name, length));
    if (r->kind == ROW_FLAG) {
        if (value)
            die(EXIT_USAGE, "--%s takes no value (--%s or --no-%s)", r->option, r->option,
                r->option);
        *int_at(c, r) = !negated;
        return i + 1;
    }
    if (!value && i + 1 == argc) die(EXIT_USAGE, "--%s needs a value: %s", r->option, r->arg);
    set_value(c, r, value ? value : argv[i + 1]);
    return value ? i + 1 : i + 2;
}

static const Preset *find_preset(const char *name) {
    int count;
    const Preset *p = config_presets(&count);
    char names[512] = "";
    for (int i = 0; i < count; i++) {
        if (strcmp(p[i].name, name) == 0) return &p[i];
        size_t used = strlen(names);
        format(names + used, sizeof names - used, "%s%s", i ? ", " : "", p[i].name);
    }
    die(EXIT_USAGE, "--model: no preset '%s'; there are %s", name, names);
}

static void fill(int64_t *field, int64_t preset) {
    if (*field == AUTO) *field = preset;
}

static void fill_real(double *field, double preset) {
    if (*field == AUTO) *field = preset;
}

static void apply_preset(Config *c) {
    const Preset *p = find_preset(c->model);
    c->vocab_given = c->vocab != AUTO;
    fill(&c->layers, p->L);
    fill(&c->d_model, p->C);
    fill(&c->d_ff, p->F);
    fill(&c->heads, p->H);
    fill(&c->head_dim, p->HD);
    fill(&c->vocab, p->V);
    fill(&c->seq_len, p->T);
    fill(&c->act, (p->gpt2 ? ACT_GELU : ACT_RELU) - ACT_RELU); /* the table has no ACT_NONE */
    fill(&c->pos, p->gpt2 ? POS_LEARNED : POS_SINUSOID);
    fill(&c->init, p->gpt2 ? INIT_GPT2 : INIT_PAX);
    fill_real(&c->norm_eps, p->gpt2 ? 1e-5 : 1e-6);
    fill(&c->bias_attn, p->gpt2);
    fill(&c->bias_mlp, 1);
    fill(&c->bias_logits, !p->gpt2);
    fill(&c->embed_scale, !p->gpt2);
    fill_real(&c->attn_cap, (double)p->attn_cap);
    fill_real(&c->logit_cap, (double)p->logit_cap);
    if (c->diff_plain) c->diff = 1;
}

static void check(const Config *c) {
    if (!c->plan && !c->train[0] && !c->sample_from[0])
        die(EXIT_USAGE, "--train GLOB is needed: the training shards (or --plan)");
    if (c->pos == POS_ROPE && c->head_dim % 2)
        die(EXIT_USAGE, "--pos rope needs an even --head-dim, not %lld", (long long)c->head_dim);
    if (c->diff && c->head_dim % 2)
        die(EXIT_USAGE, "--diff cuts heads in two: it needs an even --head-dim, not %lld",
            (long long)c->head_dim);
    if (c->diff && c->pos == POS_ROPE && c->head_dim % 4)
        die(EXIT_USAGE,
            "--pos rope turns pairs of channels in each half of a head: with --diff it needs a "
            "--head-dim that is a multiple of 4, not %lld",
            (long long)c->head_dim);
    if (c->probe_attention && c->recompute == RECOMPUTE_BLOCK)
        die(EXIT_USAGE, "--probe-attention reads what --recompute block does not keep");
    if (c->total_batch != AUTO && c->total_batch % c->seq_len)
        die(EXIT_USAGE, "--total-batch %lld is not a multiple of --seq-len %lld",
            (long long)c->total_batch, (long long)c->seq_len);
    if (c->steps != AUTO && c->warmup > c->steps)
        die(EXIT_USAGE, "--warmup %lld is longer than --steps %lld", (long long)c->warmup,
            (long long)c->steps);
    if (strcmp(c->resume, "auto") && strcmp(c->resume, "never") && file_size(c->resume) < 0)
        die(EXIT_USAGE,
            "--resume %s: neither 'auto', 'never' nor a checkpoint directory that is there",
            c->resume);
}

/* A user without a home directory has no file: timing again costs seconds, no result. */
static void resolve_tune_cache(Config *c) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (strcmp(c->tune_cache, "none") == 0) return;
    if (c->tune_cache[0])
        format(c->tune_path, sizeof c->tune_path, "%s", c->tune_cache);
    else if (cache && cache[0] == '/')
        format(c->tune_path, sizeof c->tune_path, "%s/laser.c/" TUNE_FILE, cache);
    else if (home && home[0] == '/')
        format(c->tune_path, sizeof c->tune_path, "%s/.cache/laser.c/" TUNE_FILE, home);
}

void config_parse(Config *c, int argc, char **argv) {
    memset(c, 0, sizeof *c);
    for (int i = 0; i < ROWS; i++) set_default(c, &table[i]);
    for (int i = 1; i < argc;) i = parse_one(c, argc, argv, i);
    apply_preset(c);
    check(c);
    resolve_tune_cache(c);
    size_t bytes = 1;
    for (int i = 0; i < argc; i++) bytes += strlen(argv[i]) + 1;
    c->command_line = (char *)xcalloc(bytes, 1);
    for (int i = 0; i < argc; i++) {
        if (i) strcat(c->command_line, " ");
        strcat(c->command_line, argv[i]);
    }
}

static void help_row(FILE *out, const Row *r) {
    char left[64], value[64] = "";
    if (r->kind == ROW_FLAG)
        format(left, sizeof left, "--[no-]%s", r->option);
    else
        format(left, sizeof left, "--%s %s", r->option, r->arg);
    if (r->kind == ROW_TEXT && r->text[0]) format(value, sizeof value, " [%s]", r->text);
    if (r->kind == ROW_ENUM && r->text[0]) format(value, sizeof value, " [%s]", r->text);
    if (r->kind == ROW_FLAG && r->number == 1) format(value, sizeof value, " [on]");
    if ((r->kind == ROW_INT || r->kind == ROW_REAL) && r->number != AUTO)
        format(value, sizeof value, " [%.9g]", r->number);
    fprintf(out, "  %-36s %s%s\n", left, r->help, value);
}

void config_help(FILE *out) {
    fprintf(out,
        "usage: train_gpt_%s --train GLOB [options]\n\nPretrains a decoder-only transformer with "
        "%s "
        "attention on token shards.\nDefaults in [brackets]; options without one take the preset's "
        "value.\n",
        backend_attention(), backend_attention());
    for (int i = 0; i < ROWS; i++) {
        if (table[i].kind == ROW_GROUP)
            fprintf(out, "\n%s\n", table[i].field);
        else
            help_row(out, &table[i]);
    }
    fprintf(
        out, "  %-36s %s\n  %-36s %s\n", "--help", "this text", "--version", "version and build");
    fprintf(out, "\nPresets: layers, d-model, d-ff, heads x head-dim, vocabulary, seq-len\n");
    int count;
    const Preset *p = config_presets(&count);
    for (int i = 0; i < count; i++) {
        char v[16] = "of the data";
        if (p[i].V > 0) format(v, sizeof v, "%d", p[i].V);
        fprintf(out, "  %-11s %2d  %4d  %5d  %2d x %3d  %11s  %4d\n", p[i].name, p[i].L, p[i].C,
            p[i].F, p[i].H, p[i].HD, v, p[i].T);
    }
    fprintf(out,
        "\nExit codes: 2 usage, 3 bad input file, 4 out of space or I/O, 5 training diverged,\n"
        "6 one of several processes was killed, hangs or holds other weights.\n");
}

ModelConfig config_model(const Config *c, int32_t vocab) {
    int64_t V = c->vocab == AUTO ? vocab : c->vocab;
    if (V < 2)
        die(EXIT_USAGE,
            "--vocab N is needed: preset '%s' has none of its own, and none was found in the data",
            c->model);
    ModelConfig m = {
        .L = (int)c->layers,
        .C = (int)c->d_model,
        .F = (int)c->d_ff,
        .H = (int)c->heads,
        .HD = (int)c->head_dim,
        .V = (int)V,
        .Vp = (int)((V + 127) / 128 * 128),
        .T = (int)c->seq_len,
        .act = (Act)(ACT_RELU + c->act),
        .pos = (Positions)c->pos,
        .init = (Init)c->init,
        .recompute = (Recompute)c->recompute,
        .bias_attn = c->bias_attn != 0,
        .bias_mlp = c->bias_mlp != 0,
        .bias_logits = c->bias_logits != 0,
        .embed_scale = c->embed_scale != 0,
        .norm_eps = (float)c->norm_eps,
        .attn_cap = (float)c->attn_cap,
        .logit_cap = (float)c->logit_cap,
        .temperature = (float)c->temperature,
        .per_dim_scale = c->per_dim_scale != 0,
        .qk_norm = c->qk_norm != 0,
        .diff = c->diff != 0,
        .diff_plain = c->diff_plain != 0,
    };
    return m;
}

BackendOptions config_backend(const Config *c, int local_rank) {
    return (BackendOptions){.threads = (int)c->threads,
        .local_rank = local_rank,
        .share_gpu = c->share_gpu != 0,
        .attn_core = (AttnCore)c->attn_core,
        .tf32 = c->tf32 != 0,
        .untuned = c->tune == 0,
        .tune_cache = c->tune_path};
}

/* The value as text, as --help and messages show it. */
static void value_text(const Config *c, const Row *r, char *out, size_t cap) {
    const char *at = (const char *)c + r->offset;
    if (r->kind == ROW_TEXT)
        format(out, cap, "%s", *(const char *const *)at);
    else if (r->kind == ROW_REAL)
        format(out, cap, "%.9g", *(const double *)at);
    else if (r->kind == ROW_ENUM)
        choice_name(r->arg, *(const int64_t *)at, out, cap);
    else
        format(out, cap, "%lld", (long long)*(const int64_t *)at);
}

char *config_json(const Config *c) {
    cJSON *o = cJSON_CreateObject();
    for (int i = 0; i < ROWS; i++) {
        const Row *r = &table[i];
        char text[4096];
        if (r->kind == ROW_GROUP) continue;
        value_text(c, r, text, sizeof text);
        if (r->kind == ROW_TEXT || r->kind == ROW_ENUM)
            cJSON_AddStringToObject(o, r->field, text);
        else if (r->kind == ROW_FLAG)
            cJSON_AddBoolToObject(o, r->field, text[0] == '1');
        else
            cJSON_AddRawToObject(o, r->field, text); /* whole numbers keep all their digits */
    }
    char *json = cJSON_PrintUnformatted(o);
    cJSON_Delete(o);
    return json;
}

static void saved_text(const cJSON *item, char *out, size_t cap) {
    if (cJSON_IsString(item))
        format(out, cap, "%s", item->valuestring);
    else if (cJSON_IsBool(item))
        format(out, cap, "%d", cJSON_IsTrue(item) ? 1 : 0);
    else if (cJSON_IsNumber(item) && fabs(item->valuedouble) >= 1e9)
        format(out, cap, "%.0f", item->valuedouble); /* a large seed keeps its digits */
    else
        format(out, cap, "%.9g", cJSON_IsNumber(item) ? item->valuedouble : 0.0);
}

void config_adopt_model(Config *c, const char *json) {
    cJSON *o = cJSON_Parse(json);
    for (int i = 0; i < ROWS; i++) {
        const Row *r = &table[i];
        char text[4096];
        const cJSON *item = r->kind == ROW_GROUP ? NULL : cJSON_GetObjectItem(o, r->field);
        const bool name = strcmp(r->field, "train") == 0 || strcmp(r->field, "tokenizer") == 0;
        const bool missing = name && !(*text_at(c, r))[0];
        /* the seed is of the text to come */
        const bool model = r->rule == FIXED && strcmp(r->field, "seed") != 0;
        if (!item || !(missing || model)) continue;
        saved_text(item, text, sizeof text);
        set_value(c, r, r->kind == ROW_TEXT ? xstrdup(text) : text);
    }
    cJSON_Delete(o);
}

/* An option that the earlier run's program did not have yet was as its default is now. */
char *config_differences(const Config *c, const char *json, ResumeRule rule) {
    cJSON *o = cJSON_Parse(json);
    Config defaults = {0};
    for (int i = 0; i < ROWS; i++) set_default(&defaults, &table[i]);
    size_t cap = 1 << 16;
    char *out = (char *)xcalloc(cap, 1);
    for (int i = 0; i < ROWS; i++) {
        const Row *r = &table[i];
        char now[4096], then[4096];
        if (r->kind == ROW_GROUP || r->rule != rule) continue;
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, r->field);
        value_text(c, r, now, sizeof now);
        if (item)
            saved_text(item, then, sizeof then);
        else if (r->kind == ROW_TEXT || r->number == AUTO)
            continue;
        else
            value_text(&defaults, r, then, sizeof then);
        bool number = r->kind == ROW_INT || r->kind == ROW_REAL;
        bool same = number ? strtod(now, NULL) == strtod(then, NULL) : strcmp(now, then) == 0;
        size_t used = strlen(out);
        if (!same) format(out + used, cap - used, "  --%s: %s -> %s\n", r->option, then, now);
    }
    cJSON_Delete(o);
    return out;
}
