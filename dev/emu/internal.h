/* internal.h: what the emulator's own files share. Knows nothing of what runs on it. */
#ifndef DEV_EMU_INTERNAL_H
#define DEV_EMU_INTERNAL_H

#include <cuda_runtime.h>

#include "dev/emu/emu.h"

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#else
#define EMU_ASAN 0
#define ASAN_POISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#endif

enum {
    EMU_SMS = 4,
    EMU_MAX_THREADS = 1024,
    EMU_WARP = 32,
    EMU_MAX_WARPS = EMU_MAX_THREADS / EMU_WARP,
    EMU_SHARED_STATIC = 48 * 1024,
    EMU_SHARED_BLOCK = 227 * 1024,
};

/* ---- launch.cc ---- */

bool emu_in_kernel(void);
void emu_host_call(const char *name); /* fails in a kernel */
/* "kernel x, block (..), thread (..)"; "" outside of a launch. Also in a signal handler. */
void emu_describe_place(char *text, size_t capacity);
bool emu_is_stack_guard(const void *p); /* of a thread of the kernel */

/* ---- runtime.cc ---- */

void emu_require_stream(cudaStream_t stream);
bool emu_is_host(const void *p); /* looks like an address, and memory is there; not pinned */

/* ---- order.cc: pure but for its random numbers ---- */

void emu_order_launch(uint64_t blocks); /* the same random numbers again */
uint64_t emu_order_block(uint64_t i);   /* the i-th block to run */
/* Puts threads [0, count), numbers ascending, in the order that they take turns. */
void emu_order_threads(int *threads, int count);
/* Whether threads that may go on do so before those that wait for a turn. */
bool emu_order_first(void);

/* ---- shared.cc ---- */

void emu_shared_begin(size_t dynamic_bytes); /* a block begins: arrays are handed out anew */
void emu_shared_end(void);                   /* fails where a guard zone was written */

/* An array of the block that runs, or a place in none. */
typedef struct EmuArea {
    char *p; /* NULL: p lies in none */
    size_t bytes;
    void **record;    /* the owner's place for what race.cc keeps; it unmaps it with the area */
    size_t *recorded; /* bytes of it */
} EmuArea;
EmuArea emu_shared_area(const void *p);
EmuArea emu_memory_area(const void *p);

/* ---- memory.cc ---- */

void emu_memory_open(const void *p); /* the allocation that p lies in, where it does */
void emu_memory_close(void);         /* all of it; fails where a guard zone was written */
bool emu_memory_holds(const void *p, size_t bytes); /* one allocation, its end included */
bool emu_memory_reserved(const void *p);            /* in the region that holds allocations */
bool emu_memory_was_freed(const void *p);           /* not long ago */
void emu_memory_describe(const void *p, char *text, size_t capacity);
void emu_memory_counts(int64_t *allocations, size_t *bytes);

/* Bytes that read as NaN in every type, and that no sound program writes. */
void emu_guard_fill(char *p, size_t bytes);
ptrdiff_t emu_guard_broken(const char *p, size_t bytes); /* the first byte that changed, or -1 */

#endif
