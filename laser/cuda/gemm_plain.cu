/* cuda/gemm_plain.cu: the product by a kernel of our own: any shape, slowly. For what the library
 * does not serve, which is odd shapes that no model of use has. Knows no library. */
#include "laser/cuda/gemm_plan.cuh"

enum { TILE = 16 };

typedef struct Operand {
    const act_t *p;
    int64_t row, col, stride; /* element (i, j) of matrix b: p[b * stride + i * row + j * col] */
} Operand;

/* The tile at (row, col) of a matrix of rows x cols, zeros outside. */
__device__ static inline void load_tile(
    float (*tile)[TILE + 1], Operand x, int row, int col, int rows, int cols) {
    const int i = threadIdx.x / TILE, j = threadIdx.x % TILE;
    const int64_t at = blockIdx.z * x.stride + (row + i) * x.row + (col + j) * x.col;
    tile[i][j] = row + i < rows && col + j < cols ? to_float(x.p[at]) : 0.0f;
}

/* A block computes a tile of C, a thread an element. E: what C holds. */
template <typename E>
__global__ static void product_kernel(Operand A, Operand B, E *C, const act_t *bias, int M, int N,
    int K, int64_t ldc, int64_t strideC, float alpha, float beta, bool relu) {
    typedef float Row[TILE + 1];
    SHARED_ARRAY(Row, a, TILE);
    SHARED_ARRAY(Row, b, TILE);
    const int i = threadIdx.x / TILE, j = threadIdx.x % TILE;
    const int row = blockIdx.y * TILE, col = blockIdx.x * TILE;
    float sum = 0;
    for (int k = 0; k < K; k += TILE) {
        load_tile(a, A, row, k, M, K);
        load_tile(b, B, k, col, K, N);
        __syncthreads();
#pragma unroll
        for (int l = 0; l < TILE; l++) sum = fmaf(a[i][l], b[l][j], sum);
        __syncthreads();
    }
    if (row + i >= M || col + j >= N) return;
    E *c = &C[blockIdx.z * strideC + (row + i) * ldc + col + j];
    float x = alpha * sum;
    if (beta != 0.0f) x = fmaf(beta, to_float(*c), x);
    if (bias) x += to_float(bias[col + j]);
    store(c, relu && x < 0.0f ? 0.0f : x);
}

template <typename E> static void launch(Backend *be, const Gemm *g, Operand a, Operand b) {
    const dim3 grid(
        ceil_div(g->N, TILE), ceil_div(g->M, TILE), (unsigned)(g->batch > 1 ? g->batch : 1));
    REQUIRE(grid.y <= 65535 && grid.z <= 65535, "M=%d batch=%d", g->M, g->batch);
    LAUNCH((product_kernel<E>), grid, TILE * TILE, 0, be->stream, a, b, (E *)g->C, g->bias, g->M,
        g->N, g->K, g->ldc, g->strideC, g->alpha, g->beta, g->relu);
}

void gemm_plain(Backend *be, const Gemm *g) {
    const Operand a = {g->A, g->transA ? 1 : g->lda, g->transA ? g->lda : 1, g->strideA};
    const Operand b = {g->B, g->transB ? 1 : g->ldb, g->transB ? g->ldb : 1, g->strideB};
    if (g->c_float)
        launch<float>(be, g, a, b);
    else
        launch<act_t>(be, g, a, b);
}
