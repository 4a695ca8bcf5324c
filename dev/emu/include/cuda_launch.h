/* cuda_launch.h: the emulator's twin of laser/cuda/nvcc/cuda_launch.h: launching, shared memory,
 * rounding to bfloat16. A launch has run when LAUNCH returns. A build has one of the two folders in
 * its search path. */
#ifndef LASER_CUDA_LAUNCH_H
#define LASER_CUDA_LAUNCH_H

#include <cuda_runtime.h>
#include <stdint.h>

#define CUDA_BACKEND_NAME "emu"
/* Whether host code may touch device memory. */
#define CUDA_MEMORY_IS_HOST false

/* kernel in parentheses where its template arguments hold commas; smem: bytes for DYN_SMEM. Ends
 * the program where the launch would fail, and where an argument points to host memory. */
#define LAUNCH(kernel, grid, block, smem, stream, ...)                                             \
    emu_launcher({#kernel, __FILE__, __LINE__}, {(grid), (block), (size_t)(smem), (stream)},       \
        kernel)(__VA_ARGS__)

/* The block's dynamic shared memory, 16-byte aligned; once in a kernel. */
#define DYN_SMEM(type, name) type *name = static_cast<type *>(emu_dynamic_shared())

/* type name[count] in shared memory, count a constant. */
#define SHARED_ARRAY(type, name, count)                                                            \
    static EmuSharedSite name##_site = {#name, sizeof(type[count]), 0, NULL};                      \
    type(&name)[count] = *static_cast<type(*)[count]>(emu_shared(&name##_site))

/* Round to nearest even; the upper half of a float. NaN becomes 0x7fff, as on the device. */
static inline uint16_t bf16_bits(float x) {
    const uint32_t u = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

void cuda_check(cudaError_t status, const char *what, const char *file, int line);
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)

#endif
