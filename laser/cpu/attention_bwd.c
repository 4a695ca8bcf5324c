/* attention_bwd.c: one head backward. Blocks of keys stand still and chunks of queries pass by, the
 * last first. Scores come out as (queries, NR keys): as packed B with queries as depth they make dk
 * and dv, and transposed in small they make dq. For LASER the product runs on E and dout / L in
 * place of V and dout, each pair of chunks on the queries' reference. Knows nothing of threads or
 * other heads. */
#include "laser/cpu/attention.h"

enum { PANELS = KEYS / NR };

typedef struct Backward {
    float *query, *grad;     /* A: rows are queries, depth DK, HD; grad is dout, or dout / L */
    float *query_t, *grad_t; /* A: rows are channels, depth T */
    float *delta;            /* (T) sum over j of P_ij dP_ij */
    float *g;                /* (T, HD), LASER: dout / L */
    float *key, *value;      /* B: depth DK, HD, KEYS columns; value is V, or E */
    float *scaled;           /* the same for LASER: E on the reference of the queries */
    float *key_rows;         /* B: depth KEYS, DK columns */
    float *p, *ds;           /* (PANELS, CHUNK, NR): B with queries as depth */
    float *ds_rows;          /* A: rows are queries, depth KEYS */
    float *dk, *dv;          /* (PANELS, DK or HD, NR) */
    float *extra;     /* as dv, LASER: dv of later chunks, where the block's reference changes */
    float *rows;      /* (KEYS, HD), LASER */
    float *step;      /* (HD), LASER */
    bool *exact_rows; /* (T), LASER: has exact elements */
    double *exact;    /* (2, T), LASER */
    LaserRefs refs;
} Backward;

/* A block of keys, and the chunk of queries (whole or from the block on) that passes it. */
typedef struct Pair {
    int k0, keys, from, to;
    bool first; /* first chunk to pass: dk and dv start here */
} Pair;

static inline int least(int a, int b) {
    return a < b ? a : b;
}

static void backward_carve(Carve *c, Backward *w, int T, int HD) {
    size_t elem = sizeof(float), hd = (size_t)HD, block = KEYS * hd * elem;
    w->query = carve(c, packed_floats(MR, T, HD) * elem);
    w->grad = carve(c, packed_floats(MR, T, HD) * elem);
    w->query_t = carve(c, packed_floats(MR, HD, T) * elem);
    w->grad_t = carve(c, packed_floats(MR, HD, T) * elem);
    w->delta = carve(c, (size_t)T * elem);
    w->key = carve(c, block);
    w->value = carve(c, block);
    w->key_rows = carve(c, packed_floats(NR, HD, KEYS) * elem);
    w->p = carve(c, (size_t)KEYS * CHUNK * elem);
    w->ds = carve(c, (size_t)KEYS * CHUNK * elem);
    w->ds_rows = carve(c, (size_t)KEYS * CHUNK * elem);
    w->dk = carve(c, block);
    w->dv = carve(c, block);
    w->scaled = w->value;
    if (!LASER) return;
    w->g = carve(c, (size_t)T * hd * elem);
    w->scaled = carve(c, block);
    w->extra = carve(c, block);
    w->rows = carve(c, block);
    w->step = carve(c, hd * elem);
    w->exact_rows = carve(c, (size_t)T * sizeof(bool));
    w->exact = carve(c, 2 * (size_t)T * sizeof(double));
    laser_carve_refs(c, &w->refs, T, HD);
}

void attention_carve_bwd(Carve *c, int T, int HD) {
    Backward w;
    backward_carve(c, &w, T, HD);
}

/* delta = rowsum(dout * out) */
static void row_sums(const Head *h, const Backward *w) {
    for (int i = 0; i < h->T; i++) {
        vf sum = {0};
        for (int c = 0; c < h->HD; c += VL) {
            int n = least(VL, h->HD - c);
            sum += vf_load_n(h->dout + i * h->ldo + c, n) * vf_load_n(h->o + i * h->ldo + c, n);
        }
        w->delta[i] = vf_sum(sum);
    }
}

/* g = dout / L, delta = rowsum(g * L); exact elements take no part in either, and mark their row.
 */
static void laser_row_sums(const Head *h, const Backward *w) {
    const vf one = vf_set1(1.0f);
    for (int i = 0; i < h->T; i++) {
        vf sum = {0};
        vi lanes = {0};
        for (int c = 0; c < h->HD; c += VL) {
            int n = least(VL, h->HD - c);
            vf L = vf_load_n(h->sums + i * h->ldo + c, n);
            vi fast = L > 0.0f;
            vf d = (vf)((vi)vf_load_n(h->dout + i * h->ldo + c, n) & fast);
            vf_store_n(w->g + (ptrdiff_t)i * h->HD + c, d / vf_select(fast, L, one), n);
            sum += d;
            lanes -= fast; /* true is -1 */
        }
        w->delta[i] = vf_sum(sum);
        w->exact_rows[i] = vf_sum(__builtin_convertvector(lanes, vf)) < (float)h->HD;
    }
}

static void pack_queries(const Head *h, const Backward *w) {
    const float *g = LASER ? w->g : h->dout;
    ptrdiff_t ldg = LASER ? h->HD : h->ldo;
    pack_a(w->query, h->q, h->ld, h->T, h->DK);
    pack_a(w->grad, g, ldg, h->T, h->HD);
    pack_a_t(w->query_t, h->q, h->ld, h->DK, h->T);
    pack_a_t(w->grad_t, g, ldg, h->HD, h->T);
}

static void pack_exp_value(const Head *h, const Backward *w, int k0, int n, const float *refs) {
    laser_exp_values(h, w->rows, k0, n, refs + (ptrdiff_t)(k0 / CHUNK) * h->HD);
    pack_b_t(w->value, w->rows, h->HD, n, h->HD);
}

static void pack_keys(const Head *h, const Backward *w, int k0, int n) {
    pack_b_t(w->key, h->k + k0 * h->ld, h->ld, n, h->DK);
    pack_b(w->key_rows, h->k + k0 * h->ld, h->ld, h->DK, n);
    if (LASER)
        pack_exp_value(h, w, k0, n, w->refs.past);
    else
        pack_b_t(w->value, h->v + k0 * h->ld, h->ld, n, h->HD);
}

/* First row of the pair that a panel's keys are seen by, in whole tiles. */
static int panel_from(const Pair *r, int panel) {
    int ahead = r->k0 + panel * NR - r->from;
    return ahead > 0 ? r->from + ahead / MR * MR : r->from;
}

/* c (rows of the pair, NR keys of the panel) = a b, without vectors of keys that come after the
 * rows */
static void multiply_panel(
    int depth, const Pair *r, int panel, const float *a, const float *b, float *c) {
    int from = panel_from(r, panel), k0 = r->k0 + panel * NR;
    for (int i = from; i < r->to; i += MR) {
        int seen = (i + MR - k0 + VL - 1) / VL * VL;
        Tile t = {
            c + (ptrdiff_t)(i - r->from) * NR, NR, least(MR, r->to - i), least(NR, seen), false};
        micro_kernel(depth, a + (ptrdiff_t)i * depth, b, &t);
    }
}

/* One vector of keys: scores in p become probabilities, dP in ds becomes the gradient of q.k. */
static inline void softmax_lanes(
    const Head *h, float *p, float *ds, float lse, float delta, vi seen) {
    vf x = vf_load(p), slope = vf_set1(h->scale);
    if (h->softcap > 0.0f) {
        vf t = vf_tanh(x * (h->scale / h->softcap));
        x = t * h->softcap;
        slope = h->scale - h->scale * (t * t);
    } else {
        x = x * h->scale;
    }
    vf y = (vf)((vi)vf_exp(x - lse) & seen);
    vf_store(p, y);
    vf_store(ds, (vf)((vi)(y * (vf_load(ds) - delta) * slope) & seen));
}

static void softmax_panel(const Head *h, const Backward *w, const Pair *r, int panel) {
    int k0 = r->k0 + panel * NR;
    vi lane;
    for (int i = 0; i < VL; i++) lane[i] = i;
    for (int i = panel_from(r, panel); i < r->to; i++) {
        ptrdiff_t at = ((ptrdiff_t)panel * CHUNK + i - r->from) * NR;
        for (int v = 0; v < NV; v++) {
            int diagonal = i - k0 - v * VL; /* lanes up to this are seen */
            softmax_lanes(h, w->p + at + v * VL, w->ds + at + v * VL, h->lse[i], w->delta[i],
                lane <= diagonal);
        }
    }
}

/* acc (channels, NR) = or += a b over the queries from `from` */
static void multiply_queries(const Head *h, int channels, const Pair *r, int from, const float *a,
    const float *b, float *acc) {
    for (int c = 0; c < channels; c += MR) {
        Tile t = {acc + (ptrdiff_t)c * NR, NR, least(MR, channels - c), NR, !r->first};
        micro_kernel(r->to - from, a + (ptrdiff_t)c * h->T + (ptrdiff_t)from * MR, b, &t);
    }
}

/* dq of the pair's rows: += except with the first block of keys, which every row sees */
static void multiply_keys(const Head *h, const Backward *w, const Pair *r) {
    for (int i = r->from; i < r->to; i += MR)
        for (int panel = 0; panel < PANELS; panel++) {
            float *a = w->ds_rows + (ptrdiff_t)(i - r->from) * KEYS + panel * NR * MR;
            const float *ds = w->ds + ((ptrdiff_t)panel * CHUNK + i - r->from) * NR;
            if (i >= panel_from(r, panel)) pack_panel(MR, a, ds, NR, least(MR, r->to - i), NR);
        }
    for (int c = 0; c < h->DK; c += NR)
        for (int i = r->from; i < r->to; i += MR) {
            int seen = least(r->keys, i + MR - r->k0);
            Tile t = {h->dq + i * h->ld + c, h->ld, least(MR, r->to - i), least(NR, h->DK - c),
                r->k0 > 0};
            micro_kernel(seen, w->ds_rows + (ptrdiff_t)(i - r->from) * KEYS,
                w->key_rows + (ptrdiff_t)c * r->keys, &t);
        }
}

static void pass_pair(const Head *h, const Backward *w, const Pair *r, const float *value) {
    for (int panel = 0; panel * NR < r->keys; panel++) {
        ptrdiff_t block = (ptrdiff_t)panel * NR * h->HD, rows = (ptrdiff_t)panel * CHUNK * NR;
        ptrdiff_t key = (ptrdiff_t)panel * NR * h->DK;
        multiply_panel(h->DK, r, panel, w->query, w->key + key, w->p + rows);
        multiply_panel(h->HD, r, panel, w->grad, value + block, w->ds + rows);
        softmax_panel(h, w, r, panel);
        int from = panel_from(r, panel);
        rows += (ptrdiff_t)(from - r->from) * NR;
        multiply_queries(h, h->HD, r, from, w->grad_t, w->p + rows, w->dv + block);
        multiply_queries(h, h->DK, r, from, w->query_t, w->ds + rows, w->dk + key);
    }
    multiply_keys(h, w, r);
}

/* dst (PANELS, HD, NR) = or += src * step[channel] */
static void scale_channels(const Head *h, float *dst, const float *src, const float *step) {
    for (ptrdiff_t c = 0; c < (ptrdiff_t)PANELS * h->HD; c++) {
        float f = step[c % h->HD];
        for (int v = 0; v < NV; v++)
            vf_store(dst + c * NR + v * VL, vf_load(src + c * NR + v * VL) * f);
    }
}

/* dv, so far the sum of P^T dout / L, becomes the gradient of V through E: extra = or += E dv. */
static void values_from_exp(const Head *h, const Backward *w, float *dst, const float *add) {
    for (ptrdiff_t i = 0; i < (ptrdiff_t)KEYS * h->HD; i += VL) {
        vf x = vf_load(w->value + i) * vf_load(w->dv + i);
        vf_store(dst + i, add ? x + vf_load(add + i) : x);
    }
}

/* Moves dv to the reference of query chunk q, coming from q + 1: the references fall, so no factor
 * is above 1 and none overflows. Then E on that reference, to multiply with. */
static const float *laser_enter_chunk(const Head *h, const Backward *w, const Pair *r, int q) {
    int own = r->k0 / CHUNK;
    const float *past = w->refs.past + (ptrdiff_t)own * h->HD,
                *ref = w->refs.first + (ptrdiff_t)q * h->HD;
    if (!r->first) {
        laser_ref_factors(w->step, q == own ? past : ref, ref + h->HD, h->HD);
        scale_channels(h, w->dv, w->dv, w->step);
    }
    if (q > own) {
        laser_ref_factors(w->step, past, ref, h->HD);
        scale_channels(h, w->scaled, w->value, w->step);
        return w->scaled;
    }
    if (w->refs.jumps[own]) {
        if (!r->first) {
            values_from_exp(h, w, w->extra, NULL);
            memset(w->dv, 0, (size_t)KEYS * (size_t)h->HD * sizeof *w->dv);
        }
        pack_exp_value(h, w, r->k0, r->keys, w->refs.first);
    }
    return w->value;
}

/* dv of n keys += rows of the panel at src, by way of w->value, which has been read. */
static void add_values(const Head *h, const Backward *w, float *dv, const float *src, int n) {
    attention_store_transposed(w->value, h->HD, src, NR, h->HD, n);
    for (int j = 0; j < n; j++)
        for (int c = 0; c < h->HD; c++) dv[j * h->ld + c] += w->value[(ptrdiff_t)j * h->HD + c];
}

static void store_gradients(const Head *h, const Backward *w, int k0, int keys) {
    for (int panel = 0; panel * NR < keys; panel++) {
        const ptrdiff_t at = (k0 + panel * NR) * h->ld;
        const float *dk = w->dk + (ptrdiff_t)panel * NR * h->DK;
        const float *dv = w->dv + (ptrdiff_t)panel * NR * h->HD;
        const int n = least(NR, keys - panel * NR);
        attention_store_transposed(h->dk + at, h->ld, dk, NR, h->DK, n);
        if (h->add_dv)
            add_values(h, w, h->dv + at, dv, n);
        else
            attention_store_transposed(h->dv + at, h->ld, dv, NR, h->HD, n);
    }
}

static void key_block(const Head *h, const Backward *w, int k0) {
    int keys = least(KEYS, h->T - k0), own = k0 / CHUNK, last = (h->T - 1) / CHUNK;
    attention_prefetch_rows(h->dk + k0 * h->ld, h->ld, keys, h->DK);
    attention_prefetch_rows(h->dv + k0 * h->ld, h->ld, keys, h->HD);
    pack_keys(h, w, k0, keys);
    for (int q = last; q >= own; q--) {
        int start = q * CHUNK;
        Pair r = {k0, keys, start > k0 ? start : k0, least(h->T, start + CHUNK), q == last};
        const float *value = LASER ? laser_enter_chunk(h, w, &r, q) : w->value;
        pass_pair(h, w, &r, value);
    }
    if (LASER) values_from_exp(h, w, w->dv, w->refs.jumps[own] && last > own ? w->extra : NULL);
    store_gradients(h, w, k0, keys);
}

void attention_head_bwd(const Head *h, Carve *scratch) {
    Backward w;
    backward_carve(scratch, &w, h->T, h->HD);
    if (LASER) {
        laser_row_sums(h, &w);
        laser_find_refs(h, &w.refs);
    } else {
        row_sums(h, &w);
    }
    pack_queries(h, &w);
    for (int k0 = 0; k0 < h->T; k0 += KEYS) key_block(h, &w, k0);
    for (int i = 0; LASER && i < h->T; i++)
        if (w.exact_rows[i]) laser_exact_bwd(h, i, w.exact);
}
