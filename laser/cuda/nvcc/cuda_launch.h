/* cuda_launch.h: what differs between a kernel that nvcc compiles and one that the emulator runs
 * (dev/emu/include has a header of the same name): launching, shared memory, rounding to bfloat16.
 * A build has one of the two folders in its search path. */
#ifndef LASER_CUDA_LAUNCH_H
#define LASER_CUDA_LAUNCH_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define CUDA_BACKEND_NAME "cuda"
/* Whether host code may touch device memory. */
#define CUDA_MEMORY_IS_HOST false

/* kernel in parentheses where its template arguments hold commas; smem: bytes for DYN_SMEM. An
 * error of the launch ends the program with the kernel's name. */
#define LAUNCH(kernel, grid, block, smem, stream, ...)                                             \
    do {                                                                                           \
        if ((smem) > 48 * 1024)                                                                    \
            cuda_check(cudaFuncSetAttribute(                                                       \
                           kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(smem)),      \
                "shared memory for " #kernel, __FILE__, __LINE__);                                 \
        kernel<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__);                                \
        cuda_check(cudaGetLastError(), #kernel, __FILE__, __LINE__);                               \
    } while (0)

/* The block's dynamic shared memory, 16-byte aligned; once in a kernel. */
#define DYN_SMEM(type, name)                                                                       \
    extern __shared__ __align__(16) unsigned char dyn_smem_bytes[];                                \
    type *name = reinterpret_cast<type *>(dyn_smem_bytes)

/* type name[count] in shared memory, count a constant. */
#define SHARED_ARRAY(type, name, count) __shared__ __align__(16) type name[count]

/* Round to nearest even; the upper half of a float. */
__device__ static inline uint16_t bf16_bits(float x) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

void cuda_check(cudaError_t status, const char *what, const char *file, int line);
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)

#endif
