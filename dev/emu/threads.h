/* threads.h: the threads of the block that runs, as launch.cc and warp.cc share them. Knows nothing
 * of memory. */
#ifndef DEV_EMU_THREADS_H
#define DEV_EMU_THREADS_H

#include "dev/emu/internal.h"

enum EmuState { EMU_NEW, EMU_READY, EMU_AT_BARRIER, EMU_AT_WARP, EMU_EXITED };

typedef struct EmuThread {
    void *sp; /* where it waits */
    uint3 index;
    int stack;
    EmuState state;
    EmuSite site;  /* where it waits */
    unsigned mask; /* of the warp operation */
    int source;    /* lane whose value it wants */
    uint64_t value, result;
} EmuThread;

typedef struct EmuMachine {
    EmuSite kernel; /* what: NULL outside of a launch */
    EmuShape shape;
    bool running;
    void (*body)(void *arguments);
    void *arguments;
    EmuThread threads[EMU_MAX_THREADS];
    int count, exited;
    unsigned waiting[EMU_MAX_WARPS], ended[EMU_MAX_WARPS]; /* bits of lanes, by warp */
    EmuThread *current;                                    /* NULL outside of a kernel */
    short queue[EMU_MAX_THREADS];
    unsigned head;
    int queued;
    void *host, *dropped; /* where the launch waits; of a thread that ended */
    char *stacks;
    short free_stacks[EMU_MAX_THREADS];
    int free_count;
    int arrived, trues, barrier_result;      /* of the barrier */
    unsigned barriers, syncs[EMU_MAX_WARPS]; /* passed by the block; __syncwarp by each warp */
    EmuThread *barrier_site;                 /* that came first */
    int64_t switches;
    EmuCounts counts;
} EmuMachine;

extern EmuMachine emu_machine;
void emu_wait(void);                     /* the current thread, until it is ready */
void emu_ready(int *threads, int count); /* they may go on; ascending, sorted by the order */
void emu_report_waits(void);

static inline bool emu_same_site(const EmuSite *a, const EmuSite *b) {
    return a->line == b->line && (a->what == b->what || !strcmp(a->what, b->what)) &&
           (a->file == b->file || !strcmp(a->file, b->file));
}

#endif
