/* fixture.c: a model with its optimizer for tests, and the fixtures of dev/ref/model_ref.py. */
#include "dev/test/fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/ops_ref.h"
#include "dev/test/tensor.h"
#include "laser/base.h"

ModelConfig rig_small_config(void) {
    ModelConfig c = {.L = 2, .C = 48, .F = 80, .H = 3, .HD = 20, .V = 61, .Vp = 128, .T = 16};
    c.temperature = 1;
    c.act = ACT_GELU, c.pos = POS_SINUSOID, c.init = INIT_GPT2;
    c.bias_mlp = c.bias_logits = c.embed_scale = true;
    c.norm_eps = 1e-6f, c.attn_cap = 20, c.logit_cap = 30;
    return c;
}

ModelConfig rig_variant(int which) {
    ModelConfig c = rig_small_config();
    c.qk_norm = which == 1 || which == 3;
    c.per_dim_scale = which == 1 || which == 3;
    c.diff = which >= 2;
    c.diff_plain = which == 4;
    if (which >= 3) c.temperature = 0.7f;
    if (which == 3) c.pos = POS_ROPE;
    return c;
}

void rig_open(Rig *r, const ModelConfig *c, int B, int threads) {
    memset(r, 0, sizeof *r);
    const BackendOptions options = bench_options(threads);
    const BackendLimits limits = model_limits(c, B);
    r->be = backend_open(&options);
    backend_reserve(r->be, &limits);
    model_open(&r->m, r->be, c, B, MODEL_TRAINING, NULL);
    optim_open(&r->o, &r->m, &(OptimOptions){.norms = true});
    r->loss = backend_alloc(r->be, sizeof *r->loss);
}

void rig_close(Rig *r) {
    backend_free(r->be, r->loss);
    optim_close(&r->o, &r->m);
    model_close(&r->m);
    backend_close(r->be);
    memset(r, 0, sizeof *r);
}

double rig_gradients(
    Rig *r, const int32_t *tokens, const int32_t *targets, int B, int T, int micro) {
    REQUIRE(B % micro == 0, "%d sequences, %d at a time", B, micro);
    backend_zero(r->be, r->loss, sizeof *r->loss);
    for (int b = 0; b < B; b += micro) {
        model_forward(&r->m, tokens + b * T, micro, T);
        model_backward(&r->m, targets + b * T, micro, T, 1.0f / (float)(B * T), b > 0, r->loss);
    }
    double sum;
    backend_download(r->be, &sum, r->loss, sizeof sum);
    return sum / (B * T);
}

void rig_step(Rig *r, const AdamArgs *a) {
    optim_step(&r->o, &r->m, a, r->loss, 1);
}

float *rig_floats(Rig *r, const float *p, size_t n) {
    float *host = xcalloc(n, sizeof *host);
    backend_download(r->be, host, p, n * sizeof *host);
    return host;
}

float *rig_logits(Rig *r, int rows) {
    const size_t V = (size_t)r->m.config.V;
    float *logits = xcalloc((size_t)rows * V, sizeof *logits);
    for (int at = 0; at < rows; at += MODEL_LOGIT_ROWS) {
        const int left = rows - at;
        model_logits(
            &r->m, logits + (size_t)at * V, at, left < MODEL_LOGIT_ROWS ? left : MODEL_LOGIT_ROWS);
    }
    return logits;
}

double rig_error(const ModelConfig *c, bool backward) {
    const int sums[] = {c->C, c->F, c->H * c->HD, c->T, backward ? c->V : 1};
    /* QK-norm and per-dimension scale; a second map, and what is made of the two */
    const int modifiers = (c->qk_norm || c->per_dim_scale) + (c->diff ? 2 : 0);
    const int operations = ((10 + modifiers) * c->L + 3) * (backward ? 2 : 1);
    int longest = 1;
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        longest = sums[i] > longest ? sums[i] : longest;
    return ACT_U > 0 ? 2 * sqrt(operations) * ACT_U : operations * ref_gamma(longest);
}

double rig_difference(const float *got, const float *want, size_t n) {
    double worst = 0, largest = 0, off = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        const double w = (double)want[i], d = fabs((double)got[i] - w);
        if (!isfinite(d)) return INFINITY;
        worst = fmax(worst, d), largest = fmax(largest, fabs(w));
        off += d * d, all += w * w;
    }
    return ACT_U > 0 ? sqrt(off / all) : worst / largest;
}

/* ---- fixtures -------------------------------------------------------------------------------- */

static const StTensor *find(const Fixture *f, const char *name, StType type) {
    const StTensor *t = st_find(&f->file, name);
    if (!t || t->type != type) {
        die(EXIT_INPUT, "%s: no tensor \"%s\" of the type expected; run dev/ref/model_ref.py",
            f->file.path, name);
    }
    return t;
}

static size_t elements(const StTensor *t) {
    size_t n = 1;
    for (int i = 0; i < t->ndim; i++) n = size_mul(n, (size_t)t->shape[i]);
    return n;
}

float *fixture_read(const Fixture *f, const char *name, size_t *count) {
    const StTensor *t = find(f, name, ST_F32);
    *count = elements(t);
    float *x = xcalloc(*count, sizeof *x);
    st_read(&f->file, t, x);
    return x;
}

float *fixture_result(const Fixture *f, const char *name, size_t *count) {
    char full[128];
    format(full, sizeof full, "%s.%s", backend_attention(), name);
    return fixture_read(f, full, count);
}

static int64_t *read_integers(const Fixture *f, const char *name) {
    const StTensor *t = find(f, name, ST_I64);
    int64_t *x = xcalloc(elements(t), sizeof *x);
    st_read(&f->file, t, x);
    return x;
}

/* The order of the numbers is that of config.integers and config.reals in model_ref.py. */
static void read_config(Fixture *f) {
    size_t count;
    int64_t *n = read_integers(f, "config.integers");
    float *x = fixture_read(f, "config.reals", &count);
    REQUIRE(count == 11, "%zu reals", count);
    ModelConfig c = {.L = (int)n[0], .C = (int)n[1], .F = (int)n[2], .H = (int)n[3]};
    c.HD = (int)n[4], c.V = (int)n[5], c.T = (int)n[6];
    c.Vp = (c.V + 127) / 128 * 128;
    c.act = (Act)n[11], c.pos = (Positions)n[12];
    c.bias_attn = n[13] != 0, c.bias_mlp = n[14] != 0, c.bias_logits = n[15] != 0;
    c.embed_scale = n[16] != 0;
    c.per_dim_scale = n[17] != 0, c.qk_norm = n[18] != 0;
    c.diff = n[19] != 0, c.diff_plain = n[20] != 0;
    c.norm_eps = x[0], c.attn_cap = x[1], c.logit_cap = x[2];
    f->config = c;
    f->B = (int)n[7], f->steps = (int)n[8];
    f->schedule = (Schedule){.kind = SCHEDULE_COSINE, .peak = (double)x[3]};
    f->schedule.min_ratio = (double)x[4];
    f->schedule.warmup = n[9], f->schedule.steps = n[10];
    f->adam = (AdamArgs){.beta1 = x[5], .beta2 = x[6], .eps = x[7], .weight_decay = x[8]};
    f->adam.grad_clip = x[9];
    f->config.temperature = x[10];
    free(n), free(x);
}

void fixture_open(Fixture *f, const char *name) {
    char path[256];
    memset(f, 0, sizeof *f);
    format(path, sizeof path, "dev/ref/fixtures/%s.safetensors", name);
    st_open(&f->file, path);
    read_config(f);
    const size_t T = (size_t)f->config.T, sequences = (size_t)(f->steps * f->B);
    int64_t *tokens = read_integers(f, "tokens");
    f->inputs = xcalloc(sequences * T, sizeof *f->inputs);
    f->targets = xcalloc(sequences * T, sizeof *f->targets);
    for (size_t s = 0; s < sequences; s++) {
        for (size_t t = 0; t < T; t++) {
            f->inputs[s * T + t] = (int32_t)tokens[s * (T + 1) + t];
            f->targets[s * T + t] = (int32_t)tokens[s * (T + 1) + t + 1];
        }
    }
    free(tokens);
}

void fixture_close(Fixture *f) {
    st_close(&f->file);
    free(f->inputs), free(f->targets);
}

float *fixture_param(const Fixture *f, const char *group, const ParamInfo *p) {
    char name[80], full[128];
    size_t count;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(name, sizeof name, p->name, p->layer);
#pragma GCC diagnostic pop
    format(full, sizeof full, "%s%s", group, name);
    const bool result = strcmp(group, "init.") != 0;
    float *disk = result ? fixture_result(f, full, &count) : fixture_read(f, full, &count);
    if (count != p->logical) die(EXIT_INPUT, "%s: %s has %zu elements", f->file.path, full, count);
    if (!p->transposed) return disk;
    float *x = xcalloc(count, sizeof *x);
    for (int64_t r = 0; r < p->rows; r++) {
        for (int64_t c = 0; c < p->cols; c++) x[r * p->cols + c] = disk[c * p->rows + r];
    }
    free(disk);
    return x;
}

void fixture_load_weights(const Fixture *f, Rig *r) {
    for (int i = 0; i < r->m.table.count; i++) {
        const ParamInfo *p = &r->m.table.rows[i];
        float *x = fixture_param(f, "init.", p);
        backend_upload(r->be, r->m.master + p->offset, x, p->logical * sizeof *x);
        free(x);
    }
    model_sync_params(&r->m);
}
