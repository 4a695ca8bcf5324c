/* cuda/attention_nocudnn.cu: stands for attention_cudnn.cc in builds with CUDNN=0: there is no such
 * core, and nothing may choose it. */
#include <stdio.h>

#include "laser/cuda/attention_cudnn.cuh"

bool cudnn_attention_available(void) {
    return false;
}

size_t cudnn_attention_workspace(int B, int T, int H, int HD) {
    (void)B, (void)T, (void)H, (void)HD;
    return 0;
}

void cudnn_attention_build(Backend *be, const CudnnAttention *a) {
    (void)be;
    REQUIRE(false, "head size %d: this build has no cuDNN", a->HD);
}

void cudnn_attention_fwd(Backend *be, const CudnnAttention *a) {
    (void)be;
    REQUIRE(false, "head size %d: this build has no cuDNN", a->HD);
}

void cudnn_attention_bwd(Backend *be, const CudnnAttention *a) {
    (void)be;
    REQUIRE(false, "head size %d: this build has no cuDNN", a->HD);
}

void cudnn_attention_close(Backend *be) {
    (void)be;
}

void cudnn_attention_describe(char *text, size_t capacity) {
    snprintf(text, capacity, "no cuDNN");
}
