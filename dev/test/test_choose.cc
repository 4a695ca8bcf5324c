/* test_choose.cc: which attention core serves which shape: the table of attn_choose, and what it
 * says where a forced core cannot. Knows the choice, no core. */
#include <string.h>

#include "dev/test/test.h"
#include "laser/cuda/attention.cuh"

struct Row {
    AttnShape shape; /* HD, DK, T, major, softcap, bf16, has_cudnn */
    AttnCore asked, want;
    const char *why; /* part of the reason */
};

static const Row rows[] = {
    {{128, 128, 1024, 9, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_CUDNN, "fused"},
    {{256, 256, 1024, 9, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_CUDNN, "fused"},
    {{64, 64, 1024, 8, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_CUDNN, "fused"},
    {{256, 256, 1024, 8, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "128"},
    {{512, 512, 1024, 9, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "256"},
    {{720, 720, 1024, 9, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "256"},
    {{128, 64, 1024, 9, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "whole heads"},
    {{128, 64, 1024, 9, false, true, true}, ATTN_CORE_CUDNN, ATTN_CORE_AUTO, "--diff"},
    {{128, 64, 1024, 9, false, true, true}, ATTN_CORE_GEMM, ATTN_CORE_GEMM, "asked"},
    {{128, 128, 1, 9, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "more than one"},
    {{20, 20, 64, 9, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "multiples of 8"},
    {{128, 128, 1024, 9, true, true, true}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "asked for"},
    {{128, 128, 1024, 9, true, true, true}, ATTN_CORE_CUDNN, ATTN_CORE_CUDNN, "asked"},
    {{128, 128, 1024, 8, true, true, true}, ATTN_CORE_CUDNN, ATTN_CORE_CUDNN, "asked"},
    {{128, 128, 1024, 10, false, true, true}, ATTN_CORE_AUTO, ATTN_CORE_CUDNN, "fused"},
    {{128, 128, 1024, 10, true, true, true}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "caps"},
    {{128, 128, 1024, 9, false, false, true}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "bf16"},
    {{128, 128, 1024, 9, false, true, false}, ATTN_CORE_AUTO, ATTN_CORE_GEMM, "without cuDNN"},
    {{128, 128, 1024, 9, false, true, true}, ATTN_CORE_GEMM, ATTN_CORE_GEMM, "asked"},
    {{128, 128, 1024, 9, false, true, true}, ATTN_CORE_CUDNN, ATTN_CORE_CUDNN, "asked"},
    {{512, 512, 1024, 9, false, true, true}, ATTN_CORE_CUDNN, ATTN_CORE_AUTO, "256"},
    {{128, 128, 1024, 10, true, true, true}, ATTN_CORE_CUDNN, ATTN_CORE_AUTO, "caps"},
    {{128, 128, 1024, 9, false, true, false}, ATTN_CORE_CUDNN, ATTN_CORE_AUTO, "without cuDNN"},
};

static void choices(Test *t) {
    for (const Row &r : rows) {
        const AttnChoice got = attn_choose(&r.shape, r.asked);
        CHECK(t, got.core == r.want,
            "head size %d, %d scored, capability %d, asked %d: core %d, want %d", r.shape.HD,
            r.shape.DK, r.shape.major, (int)r.asked, (int)got.core, (int)r.want);
        CHECK(t, strstr(got.why, r.why) != NULL, "head size %d: \"%s\", want \"%s\" in it",
            r.shape.HD, got.why, r.why);
    }
}

static void devices(Test *t) {
    CHECK_INT(t, cuda_choose_device(2, 8, false, false), 2);
    CHECK_INT(t, cuda_choose_device(0, 1, false, false), 0);
    CHECK_INT(t, cuda_choose_device(2, 2, false, false), -1); /* too few */
    CHECK_INT(t, cuda_choose_device(5, 2, true, false), 1);
    CHECK_INT(t, cuda_choose_device(3, 1, false, true), 0); /* the launcher shows each its own */
    CHECK_INT(t, cuda_choose_device(3, 2, false, true), -1);
}

extern "C" const TestCase *test_choose(int *count) {
    static const TestCase cases[] = {
        {"choice: the attention core of each shape, and why", choices},
        {"choice: each process of a machine has a GPU of its own, unless they may share", devices},
    };
    return TEST_TABLE(cases, count);
}
