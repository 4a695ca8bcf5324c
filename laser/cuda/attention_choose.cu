/* cuda/attention_choose.cu: which attention core serves a shape: a pure function, so that the
 * choice can be printed and tested. Knows what cores can do, not how. */
#include "laser/cuda/attention.cuh"

/* Why cuDNN cannot serve the shape, or NULL: what its deterministic backward pass has. */
static const char *cudnn_lacks(const AttnShape *s) {
    if (!s->bf16) return "cuDNN's attention takes bf16 alone";
    if (!s->has_cudnn) return "built without cuDNN, or with one before 9.15.1";
    if (s->DK != s->HD) return "cuDNN's scores are of whole heads, not of the halves of --diff";
    if (s->T == 1) return "cuDNN's attention needs more than one token";
    if (s->HD % 8 != 0) return "cuDNN's head sizes are multiples of 8";
    if (s->major == 9 && s->HD > 256) return "cuDNN's head sizes end at 256 on Hopper";
    if (s->major != 9 && s->HD > 128) return "cuDNN's head sizes end at 128 here";
    if (s->softcap && s->major != 8 && s->major != 9)
        return "cuDNN caps scores on Ampere and Hopper alone";
    return NULL;
}

AttnChoice attn_choose(const AttnShape *s, AttnCore asked) {
    const char *lacks = cudnn_lacks(s);
    if (asked == ATTN_CORE_GEMM) return AttnChoice{ATTN_CORE_GEMM, "as asked"};
    if (asked == ATTN_CORE_CUDNN && lacks) return AttnChoice{ATTN_CORE_AUTO, lacks};
    if (asked == ATTN_CORE_CUDNN) return AttnChoice{ATTN_CORE_CUDNN, "as asked"};
    if (lacks) return AttnChoice{ATTN_CORE_GEMM, lacks};
    /* its plans build; its results have not been compared with the oracle's on a GPU */
    if (s->softcap) return AttnChoice{ATTN_CORE_GEMM, "cuDNN's soft cap has to be asked for"};
    return AttnChoice{ATTN_CORE_CUDNN, "one fused kernel each way"};
}
