/* cpu/embed.c: token and position embedding, and rotary positions. */
#include "laser/cpu/backend.h"

#include <math.h>

#include "laser/base.h"

void op_embed_fwd(Backend *be, act_t *x, const int32_t *tokens, const act_t *wte, const act_t *pos,
    float scale, const int *BTC) {
    const int T = BTC[1], N = BTC[0] * T, C = BTC[2];
    CPU_PARALLEL_FOR
    for (int n = 0; n < N; n++) {
        REQUIRE(tokens[n] >= 0, "token %d at %d", (int)tokens[n], n);
        float *restrict row = x + (size_t)n * (size_t)C;
        const float *restrict e = wte + (size_t)tokens[n] * (size_t)C;
        for (int c = 0; c < C; c++) row[c] = scale * e[c];
        if (!pos) continue;
        const float *restrict p = pos + (size_t)(n % T) * (size_t)C;
        for (int c = 0; c < C; c++) row[c] += p[c];
    }
}

/* Cut by channel, so that every element of dwte is summed by one thread, in the order of the
 * tokens. */
static void scatter_tokens(
    Backend *be, float *dwte, const float *dx, const int32_t *tokens, float scale, int N, int C) {
    enum { CHANNELS = 64 };
    CPU_PARALLEL_FOR
    for (int first = 0; first < C; first += CHANNELS) {
        const int count = C - first < CHANNELS ? C - first : CHANNELS;
        for (int n = 0; n < N; n++) {
            float *restrict to = dwte + (size_t)tokens[n] * (size_t)C + first;
            const float *restrict from = dx + (size_t)n * (size_t)C + first;
            for (int c = 0; c < count; c++) to[c] += scale * from[c];
        }
    }
}

void op_embed_bwd(Backend *be, float *dwte, float *dpos, float beta, const act_t *dx,
    const int32_t *tokens, float scale, const int *BTC) {
    const int B = BTC[0], T = BTC[1], C = BTC[2];
    scatter_tokens(be, dwte, dx, tokens, scale, B * T, C);
    if (!dpos) return;
    CPU_PARALLEL_FOR
    for (int t = 0; t < T; t++) {
        float *restrict to = dpos + (size_t)t * (size_t)C;
        for (int b = 0; b < B; b++) {
            const float *restrict from = dx + ((size_t)b * (size_t)T + (size_t)t) * (size_t)C;
            if (b == 0 && beta == 0.0f)
                for (int c = 0; c < C; c++) to[c] = from[c];
            else
                for (int c = 0; c < C; c++) to[c] += from[c];
        }
    }
}

/* ---- rotary positions ------------------------------------------------------------------------ */

/* In double: an angle of a thousand turns has no digits left in float. */
static void rope_fill(Backend *be) {
    const int T = be->limits.T, HD = be->limits.DK, half = HD / 2;
    CPU_PARALLEL_FOR
    for (int i = 0; i < half; i++) {
        const double frequency = pow(1e4, -2.0 * i / HD);
        for (int t = 0; t < T; t++) {
            float *row = be->rope + (size_t)t * (size_t)HD;
            row[i] = (float)cos(t * frequency);
            row[half + i] = (float)sin(t * frequency);
        }
    }
    be->rope_ready = true;
}

void op_rope(Backend *be, act_t *qkv, int sign, const RopeArgs *a) {
    const int T = a->T, N = a->B * T, H = a->H, HD = a->HD, half = HD / 2;
    REQUIRE(HD % 2 == 0, "rotary positions turn pairs: head size %d is odd", HD);
    REQUIRE(be->scratch && a->first + T <= be->limits.T && HD == be->limits.DK,
        "T=%d + %d HD=%d, reserved %d %d", a->first, T, HD, be->limits.T, be->limits.DK);
    if (!be->rope_ready) rope_fill(be);
    const float s = sign < 0 ? -1.0f : 1.0f;
    CPU_PARALLEL_FOR
    for (int n = 0; n < N; n++) {
        const float *restrict cosine = be->rope + (size_t)(a->first + n % T) * (size_t)HD;
        const float *restrict sine = cosine + half;
        for (int h = 0; h < 2 * H; h++) { /* the heads of q, then of k */
            float *restrict lo = qkv + ((size_t)n * 3 * (size_t)H + (size_t)h) * (size_t)HD;
            float *restrict hi = lo + half;
            for (int i = 0; i < half; i++) {
                float x = lo[i], y = hi[i], turn = s * sine[i];
                lo[i] = x * cosine[i] - y * turn;
                hi[i] = y * cosine[i] + x * turn;
            }
        }
    }
}
