/* attention.c: causal attention over (B, H): heads are shared out to threads, each head is one task
 * of attention_fwd.c or attention_bwd.c, whose bits do not depend on the thread. */
#include "laser/cpu/attention.h"

#include "laser/base.h"
#include "laser/cpu/backend.h"

void *carve(Carve *c, size_t bytes) {
    void *p = c->base ? c->base + c->used : NULL;
    c->used += (bytes + 63) / 64 * 64;
    return p;
}

size_t cpu_attention_scratch_bytes(const BackendLimits *limits) {
    Carve fwd = {NULL, 0}, bwd = {NULL, 0};
    attention_carve_fwd(&fwd, limits->T, limits->HD);
    attention_carve_bwd(&bwd, limits->T, limits->HD);
    return fwd.used > bwd.used ? fwd.used : bwd.used;
}

size_t op_attention_laser_floats(int B, int T, int H, int HD) {
    return LASER ? (size_t)B * (size_t)T * (size_t)H * (size_t)HD : 0;
}

/* Head n = b * H + h, without what only one direction has. */
static Head attention_head(
    const AttentionArgs *a, int n, const float *qkv, ptrdiff_t *at_qkv, ptrdiff_t *at_out) {
    ptrdiff_t T = a->T, C = (ptrdiff_t)a->H * a->HD, b = n / a->H, h = n % a->H;
    *at_qkv = b * T * 3 * C + h * a->HD;
    *at_out = b * T * C + h * a->HD;
    const float *q = qkv + *at_qkv;
    return (Head){.T = a->T,
        .HD = a->HD,
        .DK = a->DK,
        .from = a->from,
        .ld = 3 * C,
        .ldo = C,
        .q = q + a->k0,
        .k = q + C + a->k0,
        .v = q + 2 * C,
        .add_dv = a->add_dv,
        .lse = a->lse + n * T,
        .sums = LASER ? a->laser + *at_out : NULL,
        .scale = a->scale,
        .softcap = a->softcap};
}

static void attention_check(const Backend *be, const AttentionArgs *a) {
    REQUIRE(a->B > 0 && a->T > 0 && a->H > 0 && a->HD > 0, "B %d T %d H %d HD %d", a->B, a->T, a->H,
        a->HD);
    REQUIRE(a->DK > 0 && a->k0 >= 0 && a->k0 + a->DK <= a->HD, "channels %d + %d of %d", a->k0,
        a->DK, a->HD);
    REQUIRE(a->from == 0 || (a->B == 1 && a->from > 0 && a->from < a->T), "from %d of %d, B %d",
        a->from, a->T, a->B);
    REQUIRE(be->scratch, "%s", "backend_reserve comes first");
    REQUIRE(a->T <= be->limits.T && a->HD <= be->limits.HD, "T %d HD %d: reserved for %d, %d", a->T,
        a->HD, be->limits.T, be->limits.HD);
    REQUIRE(!LASER || a->laser, "%s", "LASER needs its sums");
}

void op_attention_fwd(Backend *be, act_t *out, const act_t *qkv, const AttentionArgs *a) {
    attention_check(be, a);
#pragma omp parallel for num_threads(be->threads) schedule(dynamic, 1)
    for (int n = 0; n < a->B * a->H; n++) {
        ptrdiff_t at_qkv, at_out;
        Head head = attention_head(a, n, qkv, &at_qkv, &at_out);
        head.out = out + at_out;
        Carve scratch = {cpu_scratch(be, cpu_thread()), 0};
        attention_head_fwd(&head, &scratch);
    }
}

void op_attention_bwd(Backend *be, act_t *dqkv, const act_t *dout, const act_t *qkv,
    const act_t *out, const AttentionArgs *a) {
    attention_check(be, a);
#pragma omp parallel for num_threads(be->threads) schedule(dynamic, 1)
    for (int n = 0; n < a->B * a->H; n++) {
        ptrdiff_t at_qkv, at_out;
        Head head = attention_head(a, n, qkv, &at_qkv, &at_out);
        head.o = out + at_out, head.dout = dout + at_out;
        head.dq = dqkv + at_qkv + a->k0, head.dk = head.dq + head.ldo;
        head.dv = dqkv + at_qkv + 2 * head.ldo;
        Carve scratch = {cpu_scratch(be, cpu_thread()), 0};
        attention_head_bwd(&head, &scratch);
    }
}

void attention_store_transposed(
    float *dst, ptrdiff_t ldd, const float *src, ptrdiff_t lds, int rows, int columns) {
    for (int j = 0; j < columns; j += 4) {
        int n = columns - j < 4 ? columns - j : 4;
        for (int i = 0; i < rows; i += 4) {
            int have = rows - i < 4 ? rows - i : 4;
            const float *s = src + i * lds + j;
            float *d = dst + j * ldd + i;
            if (have == 4 && n == 4)
                pack_quads((int)ldd, d, s, lds, false, 4);
            else
                pack_slow((int)ldd, d, s, lds, have, n);
        }
    }
}

void attention_prefetch_rows(float *dst, ptrdiff_t ld, int rows, int columns) {
    for (int i = 0; i < rows; i++, dst += ld)
        for (int c = 0; c < columns; c += 16) __builtin_prefetch(dst + c, 1);
}
