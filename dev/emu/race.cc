/* race.cc: finds races in kernels that are compiled with -fsanitize=thread, and linked without: the
 * compiler then calls the functions below at each access. Two accesses of different threads to the
 * same two bytes, one of them a store, must have a barrier between them (for lanes of a warp,
 * __syncwarp does); nothing parts the blocks of a launch. Nothing calls this in other builds. Knows
 * nothing of how threads are run. */
#include <execinfo.h>
#include <stdio.h>
#include <sys/mman.h>

#include "dev/emu/threads.h"

#define PLAIN __attribute__((no_sanitize("thread"), no_sanitize("address")))

enum { UNIT = 2, MANY = -100 /* threads of several warps */ };
static const uint64_t BLOCKS = ~(uint64_t)0; /* several */

/* who: a thread, or -1 - w: several of warp w, or MANY. Of several the last one's numbers. */
typedef struct Access {
    uint64_t block; /* serial number; 0: none */
    int who;
    unsigned barriers, syncs;
    const void *pc;
} Access;
typedef struct Cell {
    int64_t launch; /* in which it was recorded, from 1; of another one, nothing is */
    Access write, read;
} Cell;

PLAIN static int warp_of(const Access *a) {
    return a->who >= 0 ? a->who / EMU_WARP : a->who == MANY ? MANY : -1 - a->who;
}

/* Whether something parts `before` and the access of now. */
PLAIN static bool ordered(const Access *before, const Access *now, bool shared) {
    if (!before->block) return true;
    if (before->block != now->block) return shared; /* another block's shared memory is another */
    if (before->barriers != now->barriers || before->who == now->who) return true;
    return warp_of(before) == warp_of(now) && before->syncs != now->syncs;
}

/* Both reads, as one. */
PLAIN static Access both(const Access *a, const Access *now) {
    Access x = *now;
    x.who = warp_of(a) == warp_of(now) ? -1 - warp_of(now) : MANY;
    if (a->block != now->block) x.block = BLOCKS;
    return x;
}

PLAIN static void report(
    const void *p, const Access *before, const char *did, const char *does, const Access *now) {
    char what[256], who[64];
    void *pcs[2] = {const_cast<void *>(before->pc), const_cast<void *>(now->pc)};
    emu_memory_describe(p, what, sizeof what);
    if (before->block != now->block)
        snprintf(who, sizeof who, "another block");
    else if (before->who < 0)
        snprintf(who, sizeof who, "other threads");
    else
        snprintf(who, sizeof who, "thread %d", before->who);
    fprintf(stderr, "emulator: a race: %s %s %p (%s), and nothing parts the two. Places:\n", who,
        did, p, emu_memory_reserved(p) ? what : "shared memory");
    backtrace_symbols_fd(pcs, 2, 2);
    emu_fail("a race: this thread %s it", does);
}

PLAIN static Cell *cells_of(const EmuArea *area) {
    if (!*area->record) {
        const size_t bytes = (area->bytes / UNIT + 1) * sizeof(Cell);
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) emu_fail("%s", "no memory to record accesses");
        *area->record = p;
        *area->recorded = bytes;
    }
    return (Cell *)*area->record;
}

PLAIN static void access_bytes(const void *p, size_t bytes, bool write, const void *pc) {
    const EmuMachine *m = &emu_machine;
    if (!m->current) return;
    EmuArea area = emu_shared_area(p);
    const bool shared = area.p != NULL;
    if (!shared) area = emu_memory_area(p);
    if (!area.p) return;
    const int who = (int)(m->current - m->threads);
    const Access now = {emu_place.serial, who, m->barriers, m->syncs[who / EMU_WARP], pc};
    const size_t from = (size_t)((const char *)p - area.p);
    if (from + bytes > area.bytes) return; /* faults by itself */
    Cell *cells = cells_of(&area);
    for (size_t i = from / UNIT; i <= (from + bytes - 1) / UNIT; i++) {
        Cell *c = &cells[i];
        if (c->launch != m->counts.launches + 1) {
            c->launch = m->counts.launches + 1;
            c->write.block = c->read.block = 0;
        }
        if (!ordered(&c->write, &now, shared))
            report(area.p + i * UNIT, &c->write, "wrote", write ? "writes" : "reads", &now);
        if (write && !ordered(&c->read, &now, shared))
            report(area.p + i * UNIT, &c->read, "read", "writes", &now);
        if (!write)
            c->read = ordered(&c->read, &now, shared) ? now : both(&c->read, &now);
        else
            c->write = now, c->read.block = 0;
    }
}

/* ---- what compilers call -------------------------------------------------------------------- */

extern "C" {
void __tsan_init(void);
void __tsan_func_entry(void *);
void __tsan_func_exit(void);
PLAIN void __tsan_init(void) {}
PLAIN void __tsan_func_entry(void *) {}
PLAIN void __tsan_func_exit(void) {}

#define HOOK(name, bytes, write)                                                                   \
    void name(void *p);                                                                            \
    PLAIN void name(void *p) {                                                                     \
        access_bytes(p, bytes, write, __builtin_return_address(0));                                \
    }
#define HOOKS(bytes)                                                                               \
    HOOK(__tsan_read##bytes, bytes, false)                                                         \
    HOOK(__tsan_write##bytes, bytes, true)                                                         \
    HOOK(__tsan_unaligned_read##bytes, bytes, false)                                               \
    HOOK(__tsan_unaligned_write##bytes, bytes, true)                                               \
    HOOK(__tsan_read_write##bytes, bytes, true)                                                    \
    HOOK(__tsan_unaligned_read_write##bytes, bytes, true)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

#define RANGE_HOOK(name, write)                                                                    \
    void name(void *p, unsigned long bytes);                                                       \
    PLAIN void name(void *p, unsigned long bytes) {                                                \
        if (bytes) access_bytes(p, bytes, write, __builtin_return_address(0));                     \
    }
RANGE_HOOK(__tsan_read_range, false)
RANGE_HOOK(__tsan_write_range, true)

void *__tsan_memcpy(void *to, const void *from, unsigned long bytes);
PLAIN void *__tsan_memcpy(void *to, const void *from, unsigned long bytes) {
    __tsan_read_range(const_cast<void *>(from), bytes);
    __tsan_write_range(to, bytes);
    return memcpy(to, from, bytes);
}
void *__tsan_memset(void *to, int value, unsigned long bytes);
PLAIN void *__tsan_memset(void *to, int value, unsigned long bytes) {
    __tsan_write_range(to, bytes);
    return memset(to, value, bytes);
}
}
