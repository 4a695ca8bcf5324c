/* cuda/attention_cudnn.cuh: the attention core by cuDNN, as attention.cu calls it. Implemented by
 * attention_cudnn.cc, which a plain C++ compiler compiles, or by attention_nocudnn.cu in builds
 * without cuDNN; holds no device code for that reason. Knows no variant of attention: F is whatever
 * the values are. Private to laser/cuda. */
#ifndef LASER_CUDA_ATTENTION_CUDNN_CUH
#define LASER_CUDA_ATTENTION_CUDNN_CUH

#include <cuda_runtime.h>

#include "laser/backend.h"
#include "laser/base.h"

typedef struct CudnnPlans CudnnPlans;

/* What the core sees of a Backend (attention.cu). */
cudaStream_t cudnn_stream_of(const Backend *be);
CudnnPlans **cudnn_plans_of(Backend *be);

/* Element (b, t, h, c) of q, k, dq, dk and df is at b * qkv_seq + t * qkv_tok + h * HD + c, of f at
 * b * f_seq + t * f_tok + h * HD + c; o and dO are dense (B, T, H, HD). All pointers are device
 * memory, those of act_t on multiples of 16 bytes. */
typedef struct CudnnAttention {
    int B, T, H, HD;
    int64_t qkv_seq, qkv_tok, f_seq, f_tok;
    float scale, softcap; /* scores: scale * q.k; softcap > 0: softcap * tanh(those / softcap) */
    const act_t *q, *k, *f;
    act_t *o;            /* written by fwd, read by bwd */
    float *lse;          /* (B, H, T) log sum exp of a row's scores; written by fwd, read by bwd */
    const act_t *dO;     /* bwd */
    act_t *dq, *dk, *df; /* written by bwd */
    void *workspace;     /* on a multiple of 16 bytes */
    size_t workspace_bytes;
} CudnnAttention;

bool cudnn_attention_available(void); /* built with it, and the library is 9.15.1 or newer */
void cudnn_attention_describe(char *text, size_t capacity); /* "cuDNN 9.19.0" or "no cuDNN" */
/* Bytes of workspace that no plan of the shape, nor of one with a smaller B or T, exceeds. */
size_t cudnn_attention_workspace(int B, int T, int H, int HD);
/* Builds and keeps the plans of both passes for the shape, the strides and whether softcap is 0;
 * fwd and bwd build what is not there, which takes about a second. */
void cudnn_attention_build(Backend *be, const CudnnAttention *a);
void cudnn_attention_fwd(Backend *be, const CudnnAttention *a);
void cudnn_attention_bwd(Backend *be, const CudnnAttention *a); /* T > 1; same bits every time */
void cudnn_attention_close(Backend *be);

#endif
