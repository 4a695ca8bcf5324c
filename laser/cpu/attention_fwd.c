/* attention_fwd.c: one head forward. Queries lie in the lanes of vectors and keys run down: scores
 * come out of the micro-kernel as (keys, NR queries), the softmax is vertical, and what it leaves
 * is at once the packed B of the product with the values. Knows nothing of threads or other heads.
 */
#include "laser/cpu/attention.h"

#include <math.h>

typedef struct Forward {
    float *keys;   /* A: rows are keys, depth DK */
    float *values; /* A: rows are channels, depth T: V, or LASER's E */
    float *query;  /* B: depth DK, NR queries, scaled */
    float *scores; /* (CHUNK, NR) scores, then probabilities: B with keys as depth */
    float *acc;    /* (HD, NR) */
    float *result; /* (HD, NR), LASER: log L + reference */
    float *rows;   /* (CHUNK, HD), LASER: E before it is packed */
    float *step;   /* (HD), LASER: factor from one reference to the next */
    double *exact; /* (T), LASER */
    LaserRefs refs;
} Forward;

/* Per query: the maximum so far, and the sum of exp(score - maximum). */
typedef struct Softmax {
    vf max[NV], sum[NV], rescale[NV];
} Softmax;

static void forward_carve(Carve *c, Forward *f, int T, int HD) {
    size_t hd = (size_t)HD, elem = sizeof(float);
    f->keys = carve(c, packed_floats(MR, T, HD) * elem);
    f->values = carve(c, packed_floats(MR, HD, T) * elem);
    f->query = carve(c, hd * NR * elem);
    f->scores = carve(c, (size_t)CHUNK * NR * elem);
    f->acc = carve(c, hd * NR * elem);
    if (!LASER) return;
    f->result = carve(c, hd * NR * elem);
    f->rows = carve(c, CHUNK * hd * elem);
    f->step = carve(c, hd * elem);
    f->exact = carve(c, (size_t)T * sizeof(double));
    laser_carve_refs(c, &f->refs, T, HD);
}

void attention_carve_fwd(Carve *c, int T, int HD) {
    Forward f;
    forward_carve(c, &f, T, HD);
}

static inline int least(int a, int b) {
    return a < b ? a : b;
}

/* E of a chunk as A, into its place among the values. */
static void pack_exp_values(const Head *h, const Forward *f, int chunk, const float *ref) {
    int j0 = chunk * CHUNK, n = least(CHUNK, h->T - j0);
    laser_exp_values(h, f->rows, j0, n, ref + (ptrdiff_t)chunk * h->HD);
    for (int c = 0; c < h->HD; c += MR) {
        float *dst = f->values + (ptrdiff_t)c * h->T + (ptrdiff_t)j0 * MR;
        pack_a_t(dst, f->rows + c, h->HD, least(MR, h->HD - c), n);
    }
}

/* scores (n, NR) of keys k0.. against the queries i0..; lanes that all these keys come after are
 * left. */
static void multiply_scores(const Head *h, const Forward *f, int i0, int k0, int n) {
    for (int r = 0; r < n; r += MR) {
        int skip = k0 + r > i0 ? (k0 + r - i0) / VL * VL : 0;
        Tile t = {f->scores + (ptrdiff_t)r * NR + skip, NR, least(MR, n - r), NR - skip, false};
        micro_kernel(h->DK, f->keys + (ptrdiff_t)(k0 + r) * h->DK, f->query + skip, &t);
    }
}

static inline vf lane_numbers(int first) {
    vf x;
    for (int i = 0; i < VL; i++) x[i] = (float)(first + i);
    return x;
}

/* Caps and masks the scores where that is wanted, and takes their maximum into s->max. past: keys
 * that every query sees. */
static void finish_scores(const Head *h, const Forward *f, Softmax *s, int ahead, int past, int n) {
    float cap = h->softcap;
    for (int v = 0; v < NV; v++) {
        vf max = s->max[v], query = lane_numbers(v * VL);
        float *p = f->scores + v * VL;
        if (cap > 0.0f)
            for (int j = 0; j < n; j++) vf_store(p + j * NR, cap * vf_tanh(vf_load(p + j * NR)));
        for (int j = 0; j < past; j++) max = vf_max(vf_load(p + j * NR), max);
        for (int j = past; j < n; j++) {
            vf x = vf_select(query >= (float)(j - ahead), vf_load(p + j * NR), vf_set1(-INFINITY));
            vf_store(p + j * NR, x);
            max = vf_max(x, max);
        }
        s->rescale[v] = vf_exp(s->max[v] - max);
        s->max[v] = max;
    }
}

/* Probabilities, up to the sum that the end divides by. ahead: i0 - k0. */
static void softmax_pass(const Head *h, const Forward *f, Softmax *s, int ahead, int n) {
    int past = ahead + 1 > n ? n : ahead + 1;
    finish_scores(h, f, s, ahead, past, n);
    vf sum[NV];
    for (int v = 0; v < NV; v++) sum[v] = s->sum[v] * s->rescale[v];
    for (int j = 0; j < n; j++) MICRO_UNROLL for (int v = 0; v < NV; v++) {
            float *p = f->scores + j * NR + v * VL;
            vf e = vf_exp(vf_load(p) - s->max[v]);
            vf_store(p, e);
            sum[v] += e;
        }
    for (int v = 0; v < NV; v++) s->sum[v] = sum[v];
}

/* acc to the new maxima, and for LASER to the reference of chunk `to`. */
static void rescale_acc(const Head *h, const Forward *f, const Softmax *s, int to, bool own) {
    if (LASER) {
        const float *past = f->refs.past + (ptrdiff_t)to * h->HD;
        const float *ref = own ? f->refs.first + (ptrdiff_t)to * h->HD : past;
        laser_ref_factors(f->step, past - h->HD, ref, h->HD);
    }
    for (int c = 0; c < h->HD; c++) {
        float step = LASER ? f->step[c] : 1.0f, *p = f->acc + (ptrdiff_t)c * NR;
        MICRO_UNROLL for (int v = 0; v < NV; v++)
            vf_store(p + v * VL, vf_load(p + v * VL) * (s->rescale[v] * step));
    }
}

static void multiply_values(const Head *h, const Forward *f, int k0, int n) {
    for (int c = 0; c < h->HD; c += MR) {
        Tile t = {f->acc + (ptrdiff_t)c * NR, NR, least(MR, h->HD - c), NR, k0 > 0};
        micro_kernel(n, f->values + (ptrdiff_t)c * h->T + (ptrdiff_t)k0 * MR, f->scores, &t);
    }
}

/* acc -> L in acc, log L + reference in result; elements for the exact path get L = 0. True if any
 * has. */
static bool finish_laser(const Head *h, const Forward *f, int i0) {
    const float *ref = f->refs.first + (ptrdiff_t)(i0 / CHUNK) * h->HD;
    const int *jump = f->refs.jump + (ptrdiff_t)(i0 / CHUNK) * h->HD;
    vi any = {0};
    for (int c = 0; c < h->HD; c++) {
        float *p = f->acc + (ptrdiff_t)c * NR, *q = f->result + (ptrdiff_t)c * NR;
        for (int v = 0; v < NV; v++) {
            vf L = vf_load(p + v * VL);
            vi query = __builtin_convertvector(lane_numbers(v * VL), vi);
            vi exact = (L < LASER_SMALLEST) | (query >= jump[c] - i0);
            any |= exact;
            vf_store(p + v * VL, (vf)((vi)L & ~exact));
            vf_store(q + v * VL, vf_log(L) + ref[c]);
        }
    }
    int32_t found = 0;
    for (int i = 0; i < VL; i++) found |= any[i];
    return found != 0;
}

/* Normalises acc and writes out, lse and LASER's sums for n queries from i0. */
static void finish_block(const Head *h, const Forward *f, const Softmax *s, int i0, int n) {
    for (int v = 0; v < NV && v * VL < n; v++)
        vf_store_n(h->lse + i0 + v * VL, s->max[v] + vf_log(s->sum[v]), least(VL, n - v * VL));
    vf inverse[NV];
    for (int v = 0; v < NV; v++) inverse[v] = 1.0f / s->sum[v];
    /* + 0: a negative product that vanishes leaves -0, and whether masked keys turn that into 0
     * would show */
    for (int c = 0; c < h->HD; c++) {
        float *p = f->acc + (ptrdiff_t)c * NR;
        for (int v = 0; v < NV; v++) vf_store(p + v * VL, vf_load(p + v * VL) * inverse[v] + 0.0f);
    }
    ptrdiff_t at = i0 * h->ldo;
    if (!LASER) {
        attention_store_transposed(h->out + at, h->ldo, f->acc, NR, h->HD, n);
        return;
    }
    bool exact = finish_laser(h, f, i0);
    attention_store_transposed(h->out + at, h->ldo, f->result, NR, h->HD, n);
    attention_store_transposed(h->sums + at, h->ldo, f->acc, NR, h->HD, n);
    for (int i = i0; exact && i < i0 + n; i++)
        if (laser_row_is_exact(h, i)) laser_exact_fwd(h, i, f->exact);
}

/* NR queries from i0 against all keys that they see. */
static void query_block(const Head *h, const Forward *f, int i0) {
    int n = least(NR, h->T - i0), end = i0 + n;
    float scale = h->softcap > 0.0f ? h->scale / h->softcap : h->scale;
    attention_prefetch_rows(h->out + i0 * h->ldo, h->ldo, n, h->HD);
    if (LASER) attention_prefetch_rows(h->sums + i0 * h->ldo, h->ldo, n, h->HD);
    pack_b_t(f->query, h->q + i0 * h->ld, h->ld, n, h->DK);
    for (ptrdiff_t i = 0; i < (ptrdiff_t)h->DK * NR; i += VL)
        vf_store(f->query + i, vf_load(f->query + i) * scale);
    Softmax s;
    for (int v = 0; v < NV; v++) s.max[v] = vf_set1(-INFINITY), s.sum[v] = (vf){0};
    for (int k0 = 0; k0 < end; k0 += CHUNK) {
        int keys = least(CHUNK, end - k0);
        multiply_scores(h, f, i0, k0, keys);
        softmax_pass(h, f, &s, i0 - k0, keys);
        if (k0 > 0) rescale_acc(h, f, &s, k0 / CHUNK, k0 + CHUNK > i0);
        multiply_values(h, f, k0, keys);
    }
    finish_block(h, f, &s, i0, n);
}

void attention_head_fwd(const Head *h, Carve *scratch) {
    const int begin = h->from / NR * NR;
    Forward f;
    forward_carve(scratch, &f, h->T, h->HD);
    pack_a(f.keys, h->k, h->ld, h->T, h->DK);
    if (LASER)
        laser_find_refs(h, &f.refs);
    else
        pack_a_t(f.values, h->v, h->ld, h->HD, h->T);
    for (int chunk = 0; chunk * CHUNK < h->T; chunk++) {
        int first = chunk * CHUNK, end = least(h->T, first + CHUNK);
        bool own = end > begin; /* rows of this chunk are wanted */
        if (LASER) pack_exp_values(h, &f, chunk, own ? f.refs.first : f.refs.past);
        for (int i0 = first > begin ? first : begin; i0 < end; i0 += NR) query_block(h, &f, i0);
        /* later chunks see the whole of this one, jumps too: they need the other reference */
        if (LASER && own && f.refs.jumps[chunk]) pack_exp_values(h, &f, chunk, f.refs.past);
    }
}
