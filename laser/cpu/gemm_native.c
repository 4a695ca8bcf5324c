/* cpu/gemm_native.c: the matrix product without a BLAS: packed, blocked for the caches, on the
 * kernel of micro.h.
 *
 * A block of A (BLOCK_ROWS x BLOCK_DEPTH, second-level cache) is packed by all threads. Then each
 * thread takes panels of NR columns: it packs one slice of a panel of B (slice x NR, near the
 * first-level cache) and runs it down the whole block. K is cut by its length only, and an
 * element of C is always summed by one thread in the order of k: so the bits depend neither on
 * the number of threads nor on which thread took which panel. */
#include "laser/cpu/gemm.h"

#include <stdio.h>

#include "laser/base.h"
#include "laser/cpu/micro.h"

enum { SLICE = 384, BLOCK_DEPTH = 2 * SLICE, BLOCK_ROWS = 512 };
enum { A_FLOATS = (BLOCK_ROWS + MR) * BLOCK_DEPTH, B_FLOATS = SLICE * NR };

typedef struct Block {
    const GemmArgs *g;
    int i0, rows; /* rows of C */
    int k0, depth, slice;
    float *packed_a; /* for each slice: panels of MR rows */
} Block;

size_t gemm_scratch_bytes(int threads) {
    return (A_FLOATS + (size_t)threads * B_FLOATS) * sizeof(float);
}

void gemm_open(Backend *be) {
    (void)be;
}

void gemm_describe(char *text, size_t capacity) {
    snprintf(text, capacity, "own matrix product");
}

static inline int least(int a, int b) {
    return a < b ? a : b;
}
static inline int parts(int n, int part) {
    return (n + part - 1) / part;
}
static inline int round_up(int n, int unit) {
    return parts(n, unit) * unit;
}

static float *packed_slice(const Block *b, int s) {
    return b->packed_a + (size_t)round_up(b->rows, MR) * (size_t)(s * b->slice);
}

/* Called by the whole team; returns when all of the block is packed. */
static void pack_block(const Block *b) {
    enum { UNIT = 8 * MR };
    const GemmArgs *g = b->g;
    const int units = parts(b->rows, UNIT), slices = parts(b->depth, b->slice);
#pragma omp for schedule(static)
    for (int u = 0; u < units * slices; u++) {
        const int s = u / units, row = u % units * UNIT, i = b->i0 + row;
        const int k = b->k0 + s * b->slice, depth = least(b->slice, b->depth - s * b->slice);
        const int rows = least(UNIT, b->rows - row);
        float *dst = packed_slice(b, s) + (size_t)row * (size_t)depth;
        if (g->transA)
            pack_a_t(dst, g->A + (ptrdiff_t)k * g->lda + i, g->lda, rows, depth);
        else
            pack_a(dst, g->A + (ptrdiff_t)i * g->lda + k, g->lda, rows, depth);
    }
}

static void pack_b_slice(float *dst, const GemmArgs *g, int j, int n, int k, int depth) {
    if (g->transB)
        pack_b_t(dst, g->B + (ptrdiff_t)j * g->ldb + k, g->ldb, n, depth);
    else
        pack_b(dst, g->B + (ptrdiff_t)k * g->ldb + j, g->ldb, n, depth);
}

/* Rows from .. to of the block, columns j .. j+n-1. */
static void multiply_panel(const Block *b, float *packed_b, int from, int to, int j, int n) {
    const GemmArgs *g = b->g;
    const bool last_block = b->k0 + b->depth == g->K;
    for (int at = 0; at < b->depth; at += b->slice) {
        const int depth = least(b->slice, b->depth - at), k = b->k0 + at;
        const bool last = last_block && at + depth == b->depth;
        const float *a = packed_slice(b, at / b->slice);
        pack_b_slice(packed_b, g, j, n, k, depth);
        for (int i = from; i < to; i += MR) {
            float *c = g->C + (ptrdiff_t)(b->i0 + i) * g->ldc + j;
            const int m = least(MR, to - i);
            const Tile t = {c, g->ldc, m, n, k > 0 || g->beta != 0.0f};
            micro_kernel(depth, a + (size_t)i * (size_t)depth, packed_b, &t);
            if (last) gemm_fuse(g, b->i0 + i, j, m, n);
        }
    }
}

/* Called by the whole team; returns when all of the block's columns are done. */
static void multiply_block(const Block *b, float *packed_b, int team) {
    const int N = b->g->N, panels = parts(N, NR);
    /* where columns are few, rows are shared out too */
    int row_parts = 1;
    while (panels * row_parts < 4 * team && b->rows / row_parts > 8 * MR) row_parts++;
    const int rows = round_up(parts(b->rows, row_parts), MR);
    row_parts = parts(b->rows, rows);
#pragma omp for schedule(dynamic)
    for (int u = 0; u < panels * row_parts; u++) {
        const int j = u / row_parts * NR, from = u % row_parts * rows;
        multiply_panel(b, packed_b, from, least(from + rows, b->rows), j, least(NR, N - j));
    }
}

static void gemm_team(const GemmArgs *g, char *scratch, int thread, int team) {
    float *packed_a = (float *)(void *)scratch;
    float *packed_b = packed_a + A_FLOATS + (size_t)thread * B_FLOATS;
    /* equal parts instead of full ones and a small rest */
    const int slice = round_up(parts(g->K, parts(g->K, SLICE)), 4);
    const int depth = slice * (BLOCK_DEPTH / SLICE);
    const int rows = round_up(parts(g->M, parts(g->M, BLOCK_ROWS)), MR);
    for (int i = 0; i < g->M; i += rows)
        for (int k = 0; k < g->K; k += depth) {
            Block b = {g, i, least(rows, g->M - i), k, least(depth, g->K - k), slice, packed_a};
            pack_block(&b);
            multiply_block(&b, packed_b, team);
        }
}

void gemm(Backend *be, const GemmArgs *g) {
    REQUIRE(g->M > 0 && g->N > 0 && g->K > 0, "M=%d N=%d K=%d", g->M, g->N, g->K);
    REQUIRE(be->scratch, "no scratch is reserved");
    REQUIRE(g->fusion == GEMM_PLAIN || g->beta == 0.0f, "a fusion with beta=%g", (double)g->beta);
#pragma omp parallel num_threads(be->threads)
    gemm_team(g, be->gemm, cpu_thread(), cpu_team());
}
