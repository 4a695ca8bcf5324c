/* cuda/attention.cuh: causal attention on a GPU. DESIGN: pre (LASER: V -> F), core, post (LASER: O
 * -> log(kappa + O) + m). A core knows no variant: it computes O = softmax(q k^T) F and its
 * gradients for whatever F is. Private to laser/cuda. */
#ifndef LASER_CUDA_ATTENTION_CUH
#define LASER_CUDA_ATTENTION_CUH

#include "laser/cuda/attention_cudnn.cuh"
#include "laser/cuda/backend.cuh"

#ifndef LASER_ATTENTION
#error "build with -DLASER_ATTENTION=1 (LASER) or 0 (standard)"
#endif
enum { LASER = LASER_ATTENTION };

/* ---- choosing a core: pure, printable ---- */

typedef struct AttnShape {
    int HD, DK, T; /* DK: channels of a head that make its scores */
    int major; /* compute capability: 8 Ampere, 9 Hopper */
    bool softcap;
    bool bf16;
    bool has_cudnn; /* built with it, and the library is new enough */
} AttnShape;

typedef struct AttnChoice {
    AttnCore core;   /* GEMM or CUDNN */
    const char *why; /* one clause, for the log */
} AttnChoice;

/* asked: ATTN_CORE_AUTO, or the core to force; one that cannot serve the shape: core is AUTO and
 * why says what it lacks. */
AttnChoice attn_choose(const AttnShape *shape, AttnCore asked);

/* ---- for backend.cu -------------------------------------------------------------------------- */

/* The core for a shape on this device; dies with EXIT_USAGE where the one that the options force
 * cannot serve it. */
AttnChoice attention_core(const Backend *be, int HD, int DK, int T, bool softcap);
size_t attention_scratch_bytes(
    const BackendLimits *limits, const BackendOptions *options, int major);
/* ", attention by ..." for the shape that is reserved */
void attention_describe(const Backend *be, char *text, size_t capacity);
void attention_reserve(Backend *be); /* builds what would take time inside a step */

#endif
