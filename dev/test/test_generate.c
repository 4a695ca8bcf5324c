/* test_generate.c: text from a model: with keys and values kept, logits are those of the whole
 * sequence, for every modifier; what is drawn follows its rule. And the probe of attention against
 * differences. Knows the model, not the backend. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/test/fixture.h"
#include "dev/test/tensor.h"
#include "laser/passes.h"
#include "laser/probe.h"
#include "laser/rng.h"
#include "laser/sample.h"

/* On a CPU with our own matrix product a row's bits depend on its own tokens alone. */
static bool equal_bits(void) {
    return strcmp(backend_name(), "cpu") == 0 && !bench_threads_cut_sums();
}

static int32_t *random_tokens(int n, int V, uint64_t seed) {
    int32_t *x = xcalloc((size_t)n, sizeof *x);
    for (int i = 0; i < n; i++)
        x[i] = (int32_t)(rng_u64(seed, RNG_TEST, (uint64_t)i) % (uint64_t)V);
    return x;
}

/* Weights of attention so large that its rows differ and LASER is far from standard. */
static void enlarge(Rig *r, float factor) {
    for (int i = 0; i < r->m.table.count; i++) {
        const ParamInfo *p = &r->m.table.rows[i];
        if (p->id != P_qkvw) continue;
        float *w = rig_floats(r, r->m.master + p->offset, p->count);
        for (size_t k = 0; k < p->count; k++) w[k] *= factor;
        backend_upload(r->be, r->m.master + p->offset, w, p->count * sizeof *w);
        free(w);
    }
    model_sync_params(&r->m);
}

/* Logits (T, V) in calls of so many tokens; the last number goes on to the end. plant: the second
 * call is told a position too low. */
static float *logits_in_parts(Rig *r, const int32_t *tokens, const int *parts, bool plant) {
    const int T = r->m.config.T, V = r->m.config.V;
    float *all = xcalloc(product(T, V), sizeof *all);
    for (int from = 0, k = 0; from < T;) {
        const int n = parts[k] < T - from ? parts[k] : T - from, low = plant && from > 0;
        model_forward_on(&r->m, tokens + from, from - low, from - low + n);
        for (int i = 0; i < n; i += MODEL_LOGIT_ROWS) {
            const int rows = n - i < MODEL_LOGIT_ROWS ? n - i : MODEL_LOGIT_ROWS;
            model_logits(&r->m, all + product(from + i, V), i, rows);
        }
        from += n;
        if (parts[k + 1]) k++;
    }
    return all;
}

static void check_parts(Test *t, const ModelConfig *c, float factor) {
    const int plans[][4] = {{c->T - 3, 2, 1, 0}, {5, 1, 0}, {1, 0}, {3, 4, 2, 0}};
    const int count = bench_emulated() ? 1 : 4; /* a call takes its time there */
    const int whole[] = {c->T, 0};
    const size_t n = product(c->T, c->V);
    int32_t *tokens = random_tokens(c->T, c->V, 1);
    Rig r;
    rig_open(&r, c, 1, 1);
    model_init(&r.m, 1);
    enlarge(&r, factor);
    const double tol = rig_error(c, false);
    float *want = logits_in_parts(&r, tokens, whole, false);
    for (int p = 0; p < count; p++) {
        float *got = logits_in_parts(&r, tokens, plans[p], false);
        const double off = rig_difference(got, want, n);
        CHECK(t, equal_bits() ? memcmp(got, want, n * sizeof *got) == 0 : off <= tol,
            "parts %d, %d, ...: logits differ by %g", plans[p][0], plans[p][1], off);
        free(got);
    }
    const int half[] = {c->T / 3, c->T, 0};
    const size_t seen = product(c->T / 3, c->V);
    float *wrong = logits_in_parts(&r, tokens, half, true);
    const double off = rig_difference(wrong + seen, want + seen, n - seen);
    /* where values are extreme a position matters less than the rounding of narrow activations */
    CHECK(t, off > 1.5 * tol || (factor > 100 && ACT_U > 0),
        "a position too low passes: %g, %g allowed", off, tol);
    free(wrong), free(want), free(tokens);
    rig_close(&r);
}

static void cached_logits(Test *t) {
    for (int i = 0; i < RIG_VARIANTS; i++) {
        ModelConfig c = rig_variant(i);
        if (bench_emulated() && i % 3) continue;
        check_parts(t, &c, 1);
        check_parts(t, &c, 20);
        c.pos = POS_LEARNED;
        if (!bench_emulated()) check_parts(t, &c, 20);
    }
}

/* Longer than any block of rows, keys or queries; values so large that LASER's exact path is used.
 */
static void cached_logits_long(Test *t) {
    ModelConfig c = rig_variant(3);
    c.L = 1, c.T = bench_emulated() ? 261 : 403;
    check_parts(t, &c, 300);
}

static void sampling(Test *t) {
    const ModelConfig c = rig_variant(1);
    int32_t first[12], again[12];
    Rig r;
    rig_open(&r, &c, 1, 1);
    model_init(&r.m, 1);
    SampleRule rule = {.temperature = 1, .seed = 5};
    first[0] = again[0] = 3;
    CHECK_INT(t, sample_tokens(&r.m, first, 1, 12, -1, &rule), 12);
    sample_tokens(&r.m, again, 1, 12, -1, &rule);
    CHECK(t, memcmp(first, again, sizeof first) == 0, "the same seed gives %s", "other tokens");
    rule.seed = 6;
    sample_tokens(&r.m, again, 1, 12, -1, &rule);
    CHECK(t, memcmp(first, again, sizeof first) != 0, "another seed gives %s", "the same tokens");
    /* eos ends it and is not counted */
    rule.seed = 5;
    CHECK(t, sample_tokens(&r.m, again, 1, 12, first[4], &rule) <= 4, "eos %d is passed over",
        first[4]);
    /* the most probable token: by temperature 0 and by top-k 1 */
    const SampleRule greedy = {.temperature = 0, .seed = 1}, top = {1, 1, 2};
    sample_tokens(&r.m, first, 1, 12, -1, &greedy);
    sample_tokens(&r.m, again, 1, 12, -1, &top);
    CHECK(t, memcmp(first, again, sizeof first) == 0, "top-k 1 is not %s", "the most probable");
    float logits[256];
    REQUIRE(c.V <= 256, "V %d", c.V);
    model_forward_on(&r.m, first, 0, 12);
    model_logits(&r.m, logits, 10, 1);
    for (int i = 0; i < c.V; i++)
        CHECK(t, logits[i] <= logits[first[11]], "token %d is more probable than %d", i, first[11]);
    rig_close(&r);
}

/* ---- the probe ------------------------------------------------------------------------------- */

enum { T_ = 6, DK_ = 3, HD_ = 2, LD_ = 8 };

/* out of the last row with score j raised by d */
static double last_out(const ProbeMap *m, int raised, double d, int c) {
    double weight[T_], sum = 0, out = 0;
    for (int j = 0; j < m->T; j++) {
        double s = 0;
        for (int k = 0; k < m->DK; k++)
            s += (double)m->q[(size_t)(m->T - 1) * m->ld + (size_t)k] *
                 (double)m->k[(size_t)j * m->ld + (size_t)k];
        s = m->softcap * tanh(m->scale * s / m->softcap) + (j == raised ? d : 0);
        sum += weight[j] = exp(s);
    }
    for (int j = 0; j < m->T; j++) {
        const double v = m->v[(size_t)j * m->ld + (size_t)c];
        out += weight[j] / sum * (m->laser ? exp(v) : v);
    }
    return m->laser ? log(out) : out;
}

static void probe_slopes(Test *t) {
    float x[3][T_ * LD_];
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < T_ * LD_; k++)
            x[i][k] = (float)rng_normal(9, RNG_TEST, (uint64_t)(i * T_ * LD_ + k));
    for (int laser = 0; laser < 2; laser++) {
        const ProbeMap map = {x[0], x[1], x[2], LD_, T_, DK_, HD_, 0.6, 2, laser};
        ProbeMap shorter = map;
        shorter.T = T_ - 1;
        ProbeLayer all = {0}, without = {0};
        probe_map(&map, &all);
        probe_map(&shorter, &without);
        double squares = 0; /* of the last row, by central differences */
        const double d = 1e-5;
        for (int c = 0; c < HD_; c++)
            for (int j = 0; j < T_; j++) {
                const double slope = (last_out(&map, j, d, c) - last_out(&map, j, -d, c)) / (2 * d);
                squares += slope * slope / HD_;
            }
        CHECK_NEAR(t, all.slope - without.slope, sqrt(squares), 1e-8);
        CHECK_INT(t, all.probabilities, T_ * (T_ + 1) / 2);
        int64_t counted = 0;
        for (int b = 0; b < PROBE_BINS; b++) counted += all.bins[b];
        CHECK_INT(t, counted, all.probabilities);
    }
    /* two keys alike: p = 1/2 each, |diag(p) - p p^T| = 1/2 */
    const float zero[2 * LD_] = {0};
    const ProbeMap even = {zero, zero, zero, LD_, 2, DK_, HD_, 1, 0, false};
    ProbeLayer two = {0};
    probe_map(&even, &two);
    CHECK_NEAR(t, two.jacobian, 0.5, 1e-15);
}

/* Every head and both maps are counted, and the gradient norms are those of their thirds. */
static void probe_sees_the_model(Test *t) {
    const ModelConfig c = rig_variant(3);
    int32_t *tokens = random_tokens(c.T, c.V, 1);
    Rig r;
    rig_open(&r, &c, 1, 1);
    model_init(&r.m, 1);
    enlarge(&r, 20);
    rig_gradients(&r, tokens, tokens, 1, c.T, 1);
    ProbeLayer layer;
    probe_layer(&r.m, 0, c.T, &layer);
    CHECK_INT(t, layer.rows, 2 * c.H * c.T);
    CHECK_INT(t, layer.probabilities, c.H * c.T * (c.T + 1));
    const size_t third = product(c.H * c.HD, c.C);
    float *grad = rig_floats(&r, param_float(&r.m.table, r.m.grads, P_qkvw, 0), 3 * third);
    double squares = 0;
    for (size_t i = third; i < 2 * third; i++) squares += (double)grad[i] * (double)grad[i];
    CHECK_NEAR(t, layer.grad_k, sqrt(squares), 1e-12 * layer.grad_k);
    free(grad), free(tokens);
    rig_close(&r);
}

static const TestCase cases[] = {
    {"generate: with keys and values kept, logits are those of the whole sequence", cached_logits},
    {"generate: the same over several blocks, with extreme values", cached_logits_long},
    {"generate: what is drawn follows seed, temperature, top-k and eos", sampling},
    {"probe: slopes, Jacobian and counts of a map", probe_slopes},
    {"probe: heads, maps and gradients of a model", probe_sees_the_model},
};

const TestCase *test_generate(int *count) {
    return TEST_TABLE(cases, count);
}
