/* cpu/gemm_cblas.c: the matrix product by a CBLAS library (OpenBLAS); the fusion is a pass of its
 * own. The library cuts its work by the number of threads, so with it, unlike with
 * gemm_native.c, the last bits of a result depend on that number. */
#include "laser/cpu/gemm.h"

#include <cblas.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "laser/base.h"

#ifndef OPENBLAS_VERSION
#error "cblas.h is not OpenBLAS: install it (Debian: libopenblas-openmp-dev) or build BLAS=none"
#endif

size_t gemm_scratch_bytes(int threads) {
    (void)threads;
    return 0;
}

void gemm_describe(char *text, size_t capacity) {
    const char *config = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE ..." */
    const char *version = strchr(config, ' ');
    const int length = version ? (int)strcspn(version + 1, " ") : 0;
    snprintf(text, capacity, "OpenBLAS %.*s %s", length, version ? version + 1 : "",
        openblas_get_corename());
}

#if defined(__x86_64__)
static const char *vector_extension(void) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return "AVX-512";
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "AVX2" : NULL;
}

/* OpenBLAS picks its kernels by a list of processors; on one it does not know it may fall back to
 * those of 2004. */
static void warn_of_old_kernels(void) {
    static const char *const old[] = {"Prescott", "Core2", "Penryn", "Dunnington", "Nehalem",
        "Atom", "Athlon", "Opteron", "Barcelona", "Bobcat", "Generic"};
    const char *core = openblas_get_corename(), *extension = vector_extension();
    if (!extension) return;
    for (size_t i = 0; i < sizeof old / sizeof *old; i++)
        if (strncasecmp(core, old[i], strlen(old[i])) == 0)
            warn("OpenBLAS uses its kernels for \"%s\" on a processor with %s: several times "
                 "too slow. Set OPENBLAS_CORETYPE=%s in the environment, or build with BLAS=none.",
                core, extension, strcmp(extension, "AVX2") == 0 ? "HASWELL" : "SKYLAKEX");
}
#else
static void warn_of_old_kernels(void) {}
#endif

void gemm_open(Backend *be) {
    (void)be;
    warn_of_old_kernels();
}

void gemm(Backend *be, const GemmArgs *g) {
    REQUIRE(g->M > 0 && g->N > 0 && g->K > 0, "M=%d N=%d K=%d", g->M, g->N, g->K);
    REQUIRE(g->fusion == GEMM_PLAIN || g->beta == 0.0f, "a fusion with beta=%g", (double)g->beta);
    openblas_set_num_threads(be->threads); /* kept by the library for the process, not for us */
    cblas_sgemm(CblasRowMajor, g->transA ? CblasTrans : CblasNoTrans,
        g->transB ? CblasTrans : CblasNoTrans, g->M, g->N, g->K, 1.0f, g->A, (int)g->lda, g->B,
        (int)g->ldb, g->beta, g->C, (int)g->ldc);
    if (g->fusion == GEMM_PLAIN) return;
    enum { ROWS = 4 };
    CPU_PARALLEL_FOR
    for (int i = 0; i < g->M; i += ROWS)
        gemm_fuse(g, i, 0, g->M - i < ROWS ? g->M - i : ROWS, g->N);
}
