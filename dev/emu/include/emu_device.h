/* emu_device.h: what a kernel finds in CUDA without including anything: its index, barriers, warp
 * operations, atomics, mathematics; and how the emulator is told to run it. Part of cuda_runtime.h.
 * Knows nothing of how threads are run. */
#ifndef DEV_EMU_EMU_DEVICE_H
#define DEV_EMU_EMU_DEVICE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#ifndef __restrict__
#define __restrict__ __restrict
#endif
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

/* ---- vectors --------------------------------------------------------------------------------- */

typedef struct uint3 {
    unsigned x, y, z;
} uint3;
typedef struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
} dim3;

#define EMU_VECTOR(type, name, bytes)                                                              \
    typedef struct __align__(2 * bytes) name##2 {                                                  \
        type x, y;                                                                                 \
    }                                                                                              \
    name##2;                                                                                       \
    typedef struct __align__(4 * bytes) name##4 {                                                  \
        type x, y, z, w;                                                                           \
    }                                                                                              \
    name##4;                                                                                       \
    static inline name##2 make_##name##2(type x, type y) {                                         \
        return {x, y};                                                                             \
    }                                                                                              \
    static inline name##4 make_##name##4(type x, type y, type z, type w) {                         \
        return {x, y, z, w};                                                                       \
    }
EMU_VECTOR(float, float, 4)
EMU_VECTOR(int, int, 4)
EMU_VECTOR(unsigned, uint, 4)

/* ---- who runs -------------------------------------------------------------------------------- */

typedef struct EmuPlace {
    uint3 thread, block;
    dim3 threads, blocks;
    uint64_t serial; /* of the block, from 1 */
} EmuPlace;
/* Changes under the kernels as threads are switched; never as one of them sees it. */
extern const EmuPlace emu_place __asm__("emu_place_of_thread");
#define threadIdx (emu_place.thread)
#define blockIdx (emu_place.block)
#define blockDim (emu_place.threads)
#define gridDim (emu_place.blocks)
enum { warpSize = 32 };

/* A place in the source: where a thread waits. */
typedef struct EmuSite {
    const char *what, *file;
    int line;
} EmuSite;
/* Last parameters, by default the place of the caller; and the site that they make. */
#define EMU_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMU_SITE(what) (EmuSite{what, file, line})

/* ---- barriers -------------------------------------------------------------------------------- */

enum EmuVote { EMU_NONE, EMU_OR, EMU_AND, EMU_COUNT };
int emu_barrier(EmuVote vote, int predicate, const EmuSite &site);
static inline void __syncthreads(EMU_CALLER) {
    emu_barrier(EMU_NONE, 0, EMU_SITE("__syncthreads"));
}
static inline int __syncthreads_or(int p, EMU_CALLER) {
    return emu_barrier(EMU_OR, p, EMU_SITE("__syncthreads_or"));
}
static inline int __syncthreads_and(int p, EMU_CALLER) {
    return emu_barrier(EMU_AND, p, EMU_SITE("__syncthreads_and"));
}
static inline int __syncthreads_count(int p, EMU_CALLER) {
    return emu_barrier(EMU_COUNT, p, EMU_SITE("__syncthreads_count"));
}
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}

/* ---- warp operations: all lanes of the mask must call, with the same mask, at the same place - */

enum EmuShuffle { EMU_INDEX, EMU_UP, EMU_DOWN, EMU_XOR };
uint64_t emu_shuffle(
    EmuShuffle how, unsigned mask, uint64_t value, int by, int width, const EmuSite &site);
unsigned emu_ballot(unsigned mask, bool predicate, const EmuSite &site);
void emu_sync_warp(unsigned mask, const EmuSite &site);

template <typename T>
static inline T emu_shuffle_as(
    EmuShuffle how, unsigned mask, T value, int by, int width, const EmuSite &site) {
    static_assert((sizeof(T) == 4 || sizeof(T) == 8) && !__is_class(T), "no shuffle of this type");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emu_shuffle(how, mask, bits, by, width, site);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, EMU_CALLER) {
    return emu_shuffle_as(EMU_INDEX, mask, value, lane, width, EMU_SITE("__shfl_sync"));
}
template <typename T>
static inline T __shfl_up_sync(
    unsigned mask, T value, unsigned delta, int width = warpSize, EMU_CALLER) {
    return emu_shuffle_as(EMU_UP, mask, value, (int)delta, width, EMU_SITE("__shfl_up_sync"));
}
template <typename T>
static inline T __shfl_down_sync(
    unsigned mask, T value, unsigned delta, int width = warpSize, EMU_CALLER) {
    return emu_shuffle_as(EMU_DOWN, mask, value, (int)delta, width, EMU_SITE("__shfl_down_sync"));
}
template <typename T>
static inline T __shfl_xor_sync(
    unsigned mask, T value, int lane_mask, int width = warpSize, EMU_CALLER) {
    return emu_shuffle_as(EMU_XOR, mask, value, lane_mask, width, EMU_SITE("__shfl_xor_sync"));
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_CALLER) {
    emu_sync_warp(mask, EMU_SITE("__syncwarp"));
}
static inline unsigned __ballot_sync(unsigned mask, int p, EMU_CALLER) {
    return emu_ballot(mask, p != 0, EMU_SITE("__ballot_sync"));
}
static inline int __any_sync(unsigned mask, int p, EMU_CALLER) {
    return emu_ballot(mask, p != 0, EMU_SITE("__any_sync")) != 0;
}
static inline int __all_sync(unsigned mask, int p, EMU_CALLER) {
    return emu_ballot(mask, p != 0, EMU_SITE("__all_sync")) == mask;
}

/* ---- atomics, on integers alone: sums of floats would depend on the order of the threads ----- */

template <typename T> T atomicAdd(T *p, T x) = delete;
float atomicAdd(float *p, float x) = delete;
double atomicAdd(double *p, double x) = delete;

/* not seen by race.cc */
#define EMU_ATOMICALLY __attribute__((no_sanitize("thread")))
#define EMU_ATOMIC(type, name, expression)                                                         \
    EMU_ATOMICALLY static inline type name(type *p, type x) {                                      \
        const type old = *p;                                                                       \
        *p = expression;                                                                           \
        return old;                                                                                \
    }
#define EMU_ATOMICS(type)                                                                          \
    EMU_ATOMIC(type, atomicAdd, old + x)                                                           \
    EMU_ATOMIC(type, atomicMax, old > x ? old : x)                                                 \
    EMU_ATOMIC(type, atomicMin, old < x ? old : x)                                                 \
    EMU_ATOMIC(type, atomicExch, x)                                                                \
    EMU_ATOMIC(type, atomicOr, old | x)                                                            \
    EMU_ATOMIC(type, atomicAnd, old &x)                                                            \
    EMU_ATOMICALLY static inline type atomicCAS(type *p, type compare, type x) {                   \
        const type old = *p;                                                                       \
        if (old == compare) *p = x;                                                                \
        return old;                                                                                \
    }
EMU_ATOMICS(int)
EMU_ATOMICS(unsigned)
EMU_ATOMICS(unsigned long long)

/* ---- mathematics beyond math.h --------------------------------------------------------------- */

template <typename To, typename From> static inline To emu_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "bits of another size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline unsigned __float_as_uint(float x) {
    return emu_bits<unsigned>(x);
}
static inline int __float_as_int(float x) {
    return emu_bits<int>(x);
}
static inline float __uint_as_float(unsigned x) {
    return emu_bits<float>(x);
}
static inline float __int_as_float(int x) {
    return emu_bits<float>(x);
}
static inline long long __double_as_longlong(double x) {
    return emu_bits<long long>(x);
}
static inline double __longlong_as_double(long long x) {
    return emu_bits<double>(x);
}
template <typename T> static inline T __ldg(const T *p) {
    return *p;
}
static inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
static inline double rsqrt(double x) {
    return 1.0 / sqrt(x);
}
/* Rounded by itself: what is in memory is not contracted into a fused multiply-add. */
template <typename T> static inline T emu_rounded(T x) {
    __asm__("" : "+m"(x));
    return x;
}
static inline float __fadd_rn(float a, float b) {
    return emu_rounded(emu_rounded(a) + emu_rounded(b));
}
static inline float __fsub_rn(float a, float b) {
    return emu_rounded(emu_rounded(a) - emu_rounded(b));
}
static inline float __fmul_rn(float a, float b) {
    return emu_rounded(a * b);
}
static inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
static inline double __dadd_rn(double a, double b) {
    return emu_rounded(emu_rounded(a) + emu_rounded(b));
}
static inline double __dmul_rn(double a, double b) {
    return emu_rounded(a * b);
}
static inline int __float2int_rn(float x) {
    return (int)rintf(x);
}
static inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
static inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __ffs(int x) {
    return __builtin_ffs(x);
}

#define EMU_MIN_MAX(type)                                                                          \
    static inline type min(type a, type b) {                                                       \
        return b < a ? b : a;                                                                      \
    }                                                                                              \
    static inline type max(type a, type b) {                                                       \
        return a < b ? b : a;                                                                      \
    }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
static inline float min(float a, float b) {
    return fminf(a, b);
}
static inline float max(float a, float b) {
    return fmaxf(a, b);
}
static inline double min(double a, double b) {
    return fmin(a, b);
}
static inline double max(double a, double b) {
    return fmax(a, b);
}

/* ---- launching ------------------------------------------------------------------------------- */

typedef struct EmuShape {
    dim3 grid, block;
    size_t smem;
    cudaStream_t stream;
} EmuShape;
/* Checks what a launch would check, then runs body(arguments) once for each thread. */
void emu_launch_begin(const EmuSite &kernel, const EmuShape &shape);
void emu_launch_pointer(int argument, const void *p);
/* The pointers in it; padded: what lies between its members is not cleared. */
void emu_launch_struct(int argument, const void *p, size_t bytes, bool padded);
void emu_launch_run(void (*body)(void *arguments), void *arguments);

#if __has_builtin(__builtin_clear_padding)
enum { EMU_PADDED = false };
#define EMU_CLEAR_PADDING(p) __builtin_clear_padding(p)
#else
enum { EMU_PADDED = true };
#define EMU_CLEAR_PADDING(p) (void)(p)
#endif
template <typename T> static inline void emu_launch_argument(int argument, const T &x) {
    static_assert(sizeof(T) <= 4096, "a kernel takes at most 4 KiB of parameters");
    if constexpr (__is_class(T)) {
        T copy = x;
        EMU_CLEAR_PADDING(&copy);
        emu_launch_struct(argument, &copy, sizeof copy, EMU_PADDED);
    }
}
template <typename T> static inline void emu_launch_argument(int argument, T *const &p) {
    emu_launch_pointer(argument, (const void *)p);
}

template <typename Body> static void emu_launch_body(void *body) {
    (*static_cast<const Body *>(body))();
}
template <typename... P> struct EmuLauncher {
    EmuSite site;
    EmuShape shape;
    void (*kernel)(P...);
    /* by value, with the conversions that a call would make */
    void operator()(P... arguments) const {
        void (*const function)(P...) = kernel;
        const auto body = [&] { function(arguments...); };
        int i = 0;
        emu_launch_begin(site, shape);
        (emu_launch_argument(i++, arguments), ...);
        emu_launch_run(emu_launch_body<decltype(body)>, const_cast<void *>((const void *)&body));
        (void)i;
    }
};
template <typename... P>
static inline EmuLauncher<P...> emu_launcher(
    const EmuSite &site, const EmuShape &shape, void (*kernel)(P...)) {
    return {site, shape, kernel};
}

/* ---- shared memory --------------------------------------------------------------------------- */

typedef struct EmuSharedSite {
    const char *name;
    size_t bytes;
    uint64_t block; /* serial number of the block in which p was handed out */
    void *p;
} EmuSharedSite;
void *emu_dynamic_shared(void);
void *emu_shared_new(EmuSharedSite *site);
static inline void *emu_shared(EmuSharedSite *site) {
    return site->block == emu_place.serial ? site->p : emu_shared_new(site);
}

#endif
