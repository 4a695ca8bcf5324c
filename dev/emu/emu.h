/* emu.h: the emulator as its twins of libraries and its tests see it. Kernels and their launchers
 * see cuda_runtime.h and cuda_launch.h. */
#ifndef DEV_EMU_EMU_H
#define DEV_EMU_EMU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* In which order threads and blocks take their turns, from the next launch on: "forward",
 * "reverse", "random:SEED", "warps" or "warps:SEED" (warps and blocks at random, the lanes of a
 * warp ascending); NULL: what the environment variable EMU_ORDER says, or forward. */
void emu_set_order(const char *order);
const char *emu_order(void);

/* Code of a library between the two counts as the device's: it may touch device memory. */
void emu_device_begin(void);
void emu_device_end(void);

/* Whether [p, p + bytes) lies in one allocation of device memory. */
bool emu_is_device(const void *p, size_t bytes);

typedef struct EmuCounts { /* since the start */
    int64_t launches, blocks, threads, switches;
    int64_t allocations; /* that are live */
    size_t bytes;        /* in them */
} EmuCounts;
EmuCounts emu_counts(void);

/* Prints what is wrong, and which thread of which kernel runs, and aborts. */
void emu_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

#ifdef __cplusplus
}
#endif
#endif
