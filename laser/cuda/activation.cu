/* cuda/activation.cu: ReLU and GELU, forward and backward, one pass over memory. Knows nothing of
 * what comes before or after. */
#include "laser/cuda/activation.cuh"

/* GELU in its tanh form, 0.5 x (1 + tanh u), is x * sigmoid(2u): the same function without the
 * cancellation of 1 + tanh u at negative x. u = sqrt(2/pi) (x + 0.044715 x^3). */
constexpr float GELU_A = 1.5957691216057308f;  /* 2 sqrt(2/pi) */
constexpr float GELU_B = 0.07135481627260025f; /* 0.044715 * 2 sqrt(2/pi) */

template <Act ACT> __device__ static inline float act_value(float x) {
    if constexpr (ACT == ACT_GELU) return x / (1.0f + expf(-x * fmaf(x * x, GELU_B, GELU_A)));
    /* NaN stays: it must reach the loss, where the step is given up */
    if constexpr (ACT == ACT_RELU) return x < 0.0f ? 0.0f : x;
    return x;
}

template <Act ACT> __device__ static inline float act_gradient(float g, float x) {
    if constexpr (ACT == ACT_RELU) return x > 0.0f ? g : 0.0f;
    if constexpr (ACT == ACT_GELU) {
        /* beyond 15 the slope is 0 or 1 to the last bit; x * x must not overflow */
        x = x > 15.0f ? 15.0f : x < -15.0f ? -15.0f : x;
        const float xx = x * x, s = 1.0f / (1.0f + expf(-x * fmaf(xx, GELU_B, GELU_A)));
        return g * fmaf(x * s * (1.0f - s), fmaf(xx, 3.0f * GELU_B, GELU_A), s);
    }
    return g;
}

/* A thread takes VEC elements; the last one of an n that VEC does not divide takes them singly. */
template <int VEC, Act ACT>
__global__ static void act_fwd_kernel(act_t *h, const act_t *pre, int64_t n) {
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (i + VEC <= n) {
        float x[VEC];
        load_vec<VEC>(x, pre + i);
#pragma unroll
        for (int v = 0; v < VEC; v++) x[v] = act_value<ACT>(x[v]);
        store_vec<VEC>(h + i, x);
    } else {
        for (int64_t j = i; j < n; j++) store(&h[j], act_value<ACT>(to_float(pre[j])));
    }
}

template <int VEC, Act ACT>
__global__ static void act_bwd_kernel(act_t *dx, const act_t *at, int64_t n) {
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (i + VEC <= n) {
        float g[VEC], x[VEC];
        load_vec<VEC>(g, dx + i);
        load_vec<VEC>(x, at + i);
#pragma unroll
        for (int v = 0; v < VEC; v++) g[v] = act_gradient<ACT>(g[v], x[v]);
        store_vec<VEC>(dx + i, g);
    } else {
        for (int64_t j = i; j < n; j++)
            store(&dx[j], act_gradient<ACT>(to_float(dx[j]), to_float(at[j])));
    }
}

enum { THREADS = 256 };

template <Act ACT> static void launch_fwd(Backend *be, act_t *h, const act_t *pre, size_t n) {
    if (rows_aligned(0, sizeof(act_t), h, pre))
        LAUNCH((act_fwd_kernel<ACT_VEC, ACT>), ceil_div((int64_t)n, THREADS * ACT_VEC), THREADS, 0,
            be->stream, h, pre, (int64_t)n);
    else
        LAUNCH((act_fwd_kernel<1, ACT>), ceil_div((int64_t)n, THREADS), THREADS, 0, be->stream, h,
            pre, (int64_t)n);
}

template <Act ACT> static void launch_bwd(Backend *be, act_t *dx, const act_t *at, size_t n) {
    if (rows_aligned(0, sizeof(act_t), dx, at))
        LAUNCH((act_bwd_kernel<ACT_VEC, ACT>), ceil_div((int64_t)n, THREADS * ACT_VEC), THREADS, 0,
            be->stream, dx, at, (int64_t)n);
    else
        LAUNCH((act_bwd_kernel<1, ACT>), ceil_div((int64_t)n, THREADS), THREADS, 0, be->stream, dx,
            at, (int64_t)n);
}

void op_act_fwd(Backend *be, act_t *h, const act_t *pre, Act act, size_t n) {
    if (n == 0) return;
    switch (act) {
    case ACT_NONE:
        launch_fwd<ACT_NONE>(be, h, pre, n);
        break;
    case ACT_RELU:
        launch_fwd<ACT_RELU>(be, h, pre, n);
        break;
    case ACT_GELU:
        launch_fwd<ACT_GELU>(be, h, pre, n);
        break;
    }
}

void act_bwd(Backend *be, act_t *dx, const act_t *at, Act act, size_t n) {
    if (n == 0) return;
    switch (act) {
    case ACT_NONE:
        break;
    case ACT_RELU:
        launch_bwd<ACT_RELU>(be, dx, at, n);
        break;
    case ACT_GELU:
        launch_bwd<ACT_GELU>(be, dx, at, n);
        break;
    }
}
