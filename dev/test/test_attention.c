/* test_attention.c: the linked attention, standard or LASER, against the oracle over the cases of
 * dev/ref/cases.h, and what is promised beyond values: bitwise causality, finite results for finite
 * values, sums of dV. Knows the seam alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/ref/cases.h"
#include "dev/test/tensor.h"
#include "laser/rng.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

enum { QKV, OUT, LSE, DOUT, DQKV, SAVED };

static bool is_laser(void) {
    return strcmp(backend_attention(), "laser") == 0;
}

static size_t width(const AttentionCase *c) {
    return (size_t)(c->H * c->HD);
}
static size_t rows(const AttentionCase *c) {
    return (size_t)(c->B * c->T);
}

static float scale_of(const AttentionCase *c) {
    return 1.0f / sqrtf((float)c->DK);
}

/* One key is so placed that every query gives it about the same, very low score. */
static void set_low_score(double *qkv, const AttentionCase *c, int key, double score) {
    const size_t W = width(c);
    for (size_t n = 0; n < rows(c); n++) {
        for (int h = 0; h < c->H; h++) {
            double *q = qkv + n * 3 * W + (size_t)(h * c->HD + c->k0), *k = q + W;
            q[0] = 8;
            k[0] = (int)n % c->T == key ? score / (8 * (double)scale_of(c)) : 0;
        }
    }
}

static double extreme_value(const AttentionCase *c, int t, int channel, double v) {
    switch (c->extreme) {
    case EXTREME_NONE:
        return v;
    case EXTREME_LARGE:
        return channel % 2 ? 1e4 + v : v;
    case EXTREME_LAST:
        return t == c->T - 1 && channel % 3 ? 1e4 : v;
    case EXTREME_ALTERNATING:
        return ((t + channel) % 2 ? 1e4 : -1e4) + v;
    case EXTREME_UNDERFLOW:
        return t == 5 ? 80 : v;
    case EXTREME_LOST:
        return t == 5 ? 300 : v;
    case EXTREME_FIRST_88:
        return t == 0 ? 88 : v;
    case EXTREME_FIRST_100:
        return t == 0 ? 100 : v;
    case EXTREME_FLOAT_MAX:
        return (t + channel) % 2 ? 3e38 : -3e38;
    case EXTREME_OFFSET:
        return 300 + v;
    }
    return v;
}

static double *make_qkv(const AttentionCase *c, uint64_t seed) {
    const size_t W = width(c), n = rows(c) * 3 * W;
    double *qkv = xcalloc(n, sizeof *qkv);
    for (size_t i = 0; i < n; i++) {
        double x = rng_normal(seed, RNG_TEST, i);
        bool value = i / W % 3 == 2;
        int t = (int)(i / (3 * W)) % c->T;
        qkv[i] = value ? extreme_value(c, t, (int)(i % W), x * c->v_std) : x;
    }
    if (c->extreme == EXTREME_UNDERFLOW) set_low_score(qkv, c, 5, -60);
    if (c->extreme == EXTREME_FIRST_88) set_low_score(qkv, c, 0, -200);
    if (c->extreme == EXTREME_FIRST_100) set_low_score(qkv, c, 0, -200);
    if (c->extreme == EXTREME_LOST) set_low_score(qkv, c, 5, -200);
    return qkv;
}

static AttentionArgs attention_args(Bench *b, const AttentionCase *c) {
    AttentionArgs a = {.B = c->B, .T = c->T, .H = c->H, .HD = c->HD, .scale = scale_of(c)};
    a.DK = c->DK, a.k0 = c->k0, a.add_dv = c->add_dv;
    a.softcap = (float)c->softcap;
    a.lse = tensor_float(&b->tensors[LSE]);
    if (op_attention_laser_floats(c->B, c->T, c->H, c->HD)) {
        a.laser = tensor_float(&b->tensors[SAVED]);
    }
    return a;
}

/* NaN where the backward pass must write; numbers where it must leave or add to what is there. */
static void gradient_output(Bench *b, const AttentionCase *c) {
    const size_t W = width(c), n = rows(c) * 3 * W;
    double *x = xcalloc(n, sizeof *x);
    for (size_t i = 0; i < n; i++) {
        const int channel = (int)(i % (size_t)c->HD);
        const bool value = i / W % 3 == 2;
        const bool scored = channel >= c->k0 && channel < c->k0 + c->DK;
        const bool written = value ? !c->add_dv : scored;
        x[i] = written ? NAN : rng_normal(b->seed + 5, RNG_TEST, i);
    }
    bench_values(b, TENSOR_ACT, x, n);
    free(x);
}

static void attention_open(Bench *b, const AttentionCase *c, const double *qkv) {
    const size_t W = width(c), N = rows(c);
    const size_t saved = op_attention_laser_floats(c->B, c->T, c->H, c->HD);
    backend_reserve(b->be, &(BackendLimits){c->B, c->T, (int)W, 1, c->H, c->HD, c->DK, 2, false});
    bench_values(b, TENSOR_ACT, qkv, N * 3 * W);
    bench_output(b, TENSOR_ACT, N * W);
    bench_output(b, TENSOR_FLOAT, N * (size_t)c->H);
    bench_random(b, TENSOR_ACT, N * W, 1, 0);
    gradient_output(b, c);
    if (saved) bench_output(b, TENSOR_FLOAT, saved);
}

static void attention_run(Bench *b, const AttentionCase *c) {
    double *qkv = make_qkv(c, b->seed);
    attention_open(b, c, qkv);
    free(qkv);
    Tensor *at = b->tensors;
    AttentionArgs a = attention_args(b, c);
    op_attention_fwd(b->be, tensor_act(&at[OUT]), tensor_act(&at[QKV]), &a);
    op_attention_bwd(b->be, tensor_act(&at[DQKV]), tensor_act(&at[DOUT]), tensor_act(&at[QKV]),
        tensor_act(&at[OUT]), &a);
}

static RefAttention ref_of(const AttentionCase *c) {
    RefAttention a = {.B = c->B, .T = c->T, .H = c->H, .HD = c->HD};
    a.DK = c->DK, a.k0 = c->k0, a.add_dv = c->add_dv;
    a.scale = (double)scale_of(c);
    a.softcap = c->softcap;
    a.laser = is_laser();
    a.act_u = ACT_U;
    return a;
}

/* ---- against the oracle ---------------------------------------------------------------------- */

typedef struct Want {
    double *out, *lse, *dqkv;
} Want;

static Want want_new(Bench *b) {
    Want w = {bench_doubles(b, b->tensors[OUT].n), bench_doubles(b, b->tensors[LSE].n),
        bench_doubles(b, b->tensors[DQKV].n)};
    return w;
}

static void want_fill(Bench *b, const Want *w, const RefAttention *a) {
    const Tensor *dqkv = &b->tensors[DQKV];
    memcpy(w->dqkv, dqkv->in, dqkv->n * sizeof *w->dqkv);
    ref_attention_fwd(w->out, w->lse, b->tensors[QKV].in, a);
    ref_attention_bwd(w->dqkv, b->tensors[DOUT].in, b->tensors[QKV].in, a);
}

/* What is wrong with the channels of the scores, and with dv where a map was there before. */
static void planted_halves(Bench *b, const AttentionCase *c, const Want *wrong, const Want *tol) {
    RefAttention a = ref_of(c);
    a.k0 = c->k0 ? 0 : c->DK;
    want_fill(b, wrong, &a);
    bench_compare_planted(b, "the other half", &b->tensors[OUT], wrong->out, tol->out);
    bench_compare_planted(b, "the other half", &b->tensors[DQKV], wrong->dqkv, tol->dqkv);
    a = ref_of(c);
    a.DK = c->HD, a.k0 = 0;
    want_fill(b, wrong, &a);
    bench_compare_planted(b, "all channels", &b->tensors[OUT], wrong->out, tol->out);
    if (!c->add_dv) return;
    a = ref_of(c);
    a.add_dv = false;
    want_fill(b, wrong, &a);
    bench_compare_planted(b, "dv written, not added", &b->tensors[DQKV], wrong->dqkv, tol->dqkv);
}

static void planted(Bench *b, const AttentionCase *c, const Want *tol) {
    static const struct {
        RefPlant plant;
        bool forward;
        const char *name;
    } errors[] = {
        {PLANT_DROP_KEY, true, "a key dropped"},
        {PLANT_MASK_MINUS, true, "rows do not see themselves"},
        {PLANT_MASK_PLUS, true, "rows see one token of the future"},
        {PLANT_SCALE, true, "scale larger"},
        {PLANT_STALE_ROW, true, "last row computed with an old query"},
        {PLANT_NO_D, false, "D missing"},
    };
    const Want wrong = want_new(b);
    for (int i = 0; i < COUNT(errors); i++) {
        RefAttention a = ref_of(c);
        a.plant = errors[i].plant;
        want_fill(b, &wrong, &a);
        /* LASER of tiny v is off by what its largest term, 1, rounds to */
        if (errors[i].forward && (c->v_std > 0.01 || a.plant != PLANT_SCALE)) {
            bench_compare_planted(b, errors[i].name, &b->tensors[OUT], wrong.out, tol->out);
        }
        bench_compare_planted(b, errors[i].name, &b->tensors[DQKV], wrong.dqkv, tol->dqkv);
    }
    if (c->DK < c->HD) planted_halves(b, c, &wrong, tol);
    if (c->softcap == 0) return;
    RefAttention a = ref_of(c);
    a.softcap *= ACT_U > 0 ? 1.5 : 1.01;
    want_fill(b, &wrong, &a);
    if (ACT_U == 0 || c->softcap < 10) /* a high cap hardly bends */
        bench_compare_planted(b, "cap larger", &b->tensors[OUT], wrong.out, tol->out);
}

/* LASER: the columns of dV sum to those of dout, since the weights of a row sum to 1 in each
 * channel. */
static void check_sums_of_dv(Bench *b, const AttentionCase *c, const Want *tol) {
    const double *dqkv = tensor_read(b, &b->tensors[DQKV]), *dout = b->tensors[DOUT].in;
    const double *before = b->tensors[DQKV].in;
    const size_t W = width(c), T = (size_t)c->T;
    for (size_t column = 0; column < (size_t)c->B * W; column++) {
        const size_t first = column / W * T, at = column % W;
        double of_dv = 0, of_dout = 0, allowed = 0;
        for (size_t t = first; t < first + T; t++) {
            const size_t v = t * 3 * W + 2 * W + at;
            of_dv += dqkv[v] - (c->add_dv ? before[v] : 0), of_dout += dout[t * W + at];
            allowed += tol->dqkv[v] + (ACT_U + 2 * REF_U) * fabs(dqkv[v]);
        }
        CHECK_NEAR(b->t, of_dv, of_dout, allowed);
    }
}

/* Log-mean-exp and mean both lie between the smallest and the largest value that a row sees. */
static void check_between(Bench *b, const AttentionCase *c) {
    const double *out = tensor_read(b, &b->tensors[OUT]), *qkv = b->tensors[QKV].in;
    const size_t W = width(c);
    size_t outside = 0;
    for (size_t column = 0; column < (size_t)c->B * W; column++) {
        double low = INFINITY, high = -INFINITY;
        for (size_t t = 0; t < (size_t)c->T; t++) {
            const size_t n = column / W * (size_t)c->T + t;
            const double v = qkv[n * 3 * W + 2 * W + column % W], x = out[n * W + column % W];
            low = fmin(low, v), high = fmax(high, v);
            const double relative = ref_gamma(c->T) + 20 * REF_FN + 6 * ACT_U;
            const double slack = relative * fmax(1, fmax(-low, high));
            outside += !(x >= low - slack && x <= high + slack);
        }
    }
    CHECK(b->t, outside == 0, "%s: %zu outputs lie outside the values", c->label, outside);
}

/* Adding to dv rounds what was there once for each addition, at most one a row, and may round what
 * is added to an activation first. */
static void allow_additions(Bench *b, const AttentionCase *c, const Want *want, const Want *tol) {
    const double *before = b->tensors[DQKV].in;
    for (size_t i = 0; c->add_dv && i < b->tensors[DQKV].n; i++) {
        if (i / width(c) % 3 != 2) continue;
        const double added = fabs(want->dqkv[i] - before[i]);
        tol->dqkv[i] += ref_gamma(c->T) * fabs(before[i]) + (ACT_U + REF_U) * added;
    }
}

static void check_untouched(Bench *b, const AttentionCase *c) {
    const double *after = tensor_read(b, &b->tensors[DQKV]), *before = b->tensors[DQKV].in;
    size_t changed = 0;
    for (size_t i = 0; i < b->tensors[DQKV].n; i++) {
        const int channel = (int)(i % (size_t)c->HD);
        const bool scored = channel >= c->k0 && channel < c->k0 + c->DK;
        changed += i / width(c) % 3 != 2 && !scored && after[i] != before[i];
    }
    CHECK(b->t, changed == 0, "%s: %zu gradients of channels that make no scores were changed",
        c->label, changed);
}

static bool applies(const AttentionCase *c) {
    return is_laser() || c->extreme != EXTREME_FLOAT_MAX;
}

static void attention_equals(Test *t) {
    for (int i = 0; i < COUNT(attention_cases); i++) {
        const AttentionCase *c = &attention_cases[i];
        if (!applies(c)) continue;
        Bench b;
        bench_open(&b, t, c->label, NULL, 1);
        b.seed = (uint64_t)(1000 + i);
        attention_run(&b, c);
        RefAttention a = ref_of(c);
        Want want = want_new(&b), tol = want_new(&b);
        want_fill(&b, &want, &a);
        ref_attention_bound(tol.out, tol.lse, tol.dqkv, b.tensors[DOUT].in, b.tensors[QKV].in, &a);
        allow_additions(&b, c, &want, &tol);
        bench_compare(&b, "out", &b.tensors[OUT], want.out, tol.out);
        bench_compare(&b, "lse", &b.tensors[LSE], want.lse, tol.lse);
        bench_compare(&b, "dqkv", &b.tensors[DQKV], want.dqkv, tol.dqkv);
        check_untouched(&b, c);
        check_between(&b, c);
        if (is_laser()) check_sums_of_dv(&b, c, &tol);
        /* six times the oracle: where that is quick */
        const bool small = rows(c) * width(c) * (size_t)c->T < 1000000;
        if (c->T > 2 && c->extreme == EXTREME_NONE && small) planted(&b, c, &tol);
        bench_close(&b);
    }
}

static void run_case(Bench *b, const void *c) {
    attention_run(b, c);
}

static void same_bits(Test *t) {
    static const int one_and_two[3] = {1, 2, 1};
    for (int i = 0; i < COUNT(attention_cases); i++) {
        const AttentionCase *c = &attention_cases[i];
        if (applies(c)) bench_same_bits(t, run_case, c, c->label, one_and_two);
    }
}

/* ---- causality ------------------------------------------------------------------------------- */

/* Runs the forward pass on qkv and returns the bits of out; lse in *lse. */
static char *forward_bits(Bench *b, const AttentionCase *c, const double *qkv, char **lse) {
    Tensor *at = b->tensors;
    float *host = xcalloc(at[QKV].n, sizeof *host);
    for (size_t i = 0; i < at[QKV].n; i++) host[i] = (float)qkv[i];
    backend_upload_act(b->be, tensor_act(&at[QKV]), host, at[QKV].n);
    free(host);
    AttentionArgs a = attention_args(b, c);
    op_attention_fwd(b->be, tensor_act(&at[OUT]), tensor_act(&at[QKV]), &a);
    *lse = tensor_bits(b, &at[LSE]);
    return tensor_bits(b, &at[OUT]);
}

/* LASER with narrow activations takes its reference from the whole sequence: earlier rows may
 * change by rounding, that of exp(v - m) near 1 where a far value takes the centre away. All else
 * keeps every bit. */
static bool row_is_same(const char *before, const char *after, size_t n) {
    if (!is_laser() || ACT_U == 0) return memcmp(before, after, n * sizeof(act_t)) == 0;
    bool same = true;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits[2] = {0, 0};
        float x[2];
        memcpy(&bits[0], before + i * sizeof(act_t), sizeof(act_t));
        memcpy(&bits[1], after + i * sizeof(act_t), sizeof(act_t));
        for (int k = 0; k < 2; k++) bits[k] <<= 16;
        memcpy(x, bits, sizeof x);
        same = same && fabsf(x[0] - x[1]) <= 4 * (float)ACT_U * (fabsf(x[0]) + 1);
    }
    return same;
}

/* Token `token` gets other q, k and v; no row before it may change, and the rows after it must. */
static void check_causal(Test *t, const AttentionCase *c, int token, double size) {
    const size_t W = width(c), row = W * sizeof(act_t);
    Bench b;
    bench_open(&b, t, c->label, NULL, 1);
    double *qkv = make_qkv(c, 7);
    attention_open(&b, c, qkv);
    char *lse, *lse_after, *before = forward_bits(&b, c, qkv, &lse);
    for (size_t i = 0; i < 3 * W; i++) {
        const double x = rng_normal(9, RNG_TEST, i);
        const bool value = i >= 2 * W;
        qkv[(size_t)token * 3 * W + i] = size == 0 ? x : value ? copysign(size, x) : 100 * x;
    }
    char *after = forward_bits(&b, c, qkv, &lse_after);
    for (int n = 0; n < token; n++) {
        CHECK(t, row_is_same(before + (size_t)n * row, after + (size_t)n * row, W),
            "%s: token %d of size %g changed row %d", c->label, token, size, n);
        for (int h = 0; h < c->H; h++) {
            const size_t at = (size_t)(h * c->T + n) * sizeof(float);
            CHECK(t, memcmp(lse + at, lse_after + at, sizeof(float)) == 0,
                "%s: token %d changed lse of row %d", c->label, token, n);
        }
    }
    CHECK(t, memcmp(before + (size_t)token * row, after + (size_t)token * row, row) != 0,
        "%s: token %d does not see itself", c->label, token);
    free(qkv);
    bench_close(&b);
}

static void causal(Test *t) {
    static const AttentionCase cases[] = {
        {"T 67, head size 16", 1, 67, 2, 16, 0, 1, EXTREME_NONE, ALL_CHANNELS(16)},
        {"T 200, head size 3", 1, 200, 1, 3, 0, 0.07, EXTREME_NONE, ALL_CHANNELS(3)},
        {"T 300, head size 64, cap", 1, 300, 1, 64, 20, 5, EXTREME_NONE, ALL_CHANNELS(64)},
        {"T 70, head size 720", 1, 70, 1, 720, 0, 1, EXTREME_NONE, ALL_CHANNELS(720)},
        {"T 200, second of 2 x 24", 1, 200, 1, 48, 0, 1, EXTREME_NONE, 24, 24, false},
    };
    static const double sizes[] = {0, 60, 1e4, 1e30};
    for (int i = 0; i < COUNT(cases); i++) {
        const int T = cases[i].T;
        const int tokens[] = {1, 7, 15, 16, 31, 32, 33, 63, 64, 65, T / 2, 2 * T / 3, T - 2, T - 1};
        const int step = strcmp(backend_name(), "emu") == 0 ? 3 : 1; /* it takes its time */
        for (int k = 0; k < COUNT(tokens); k += step) {
            check_causal(t, &cases[i], tokens[k], sizes[(i + k) % COUNT(sizes)]);
            check_causal(t, &cases[i], tokens[k], sizes[(i + k + 2) % COUNT(sizes)]);
        }
    }
}

const TestCase *test_attention(int *count) {
    static const TestCase cases[] = {
        {"attention: forward and backward equal the oracle, planted errors are found",
            attention_equals},
        {"attention: the same bits every time, with any number of threads", same_bits},
        {"attention: a changed token changes no bit of an earlier row", causal},
    };
    return TEST_TABLE(cases, count);
}
