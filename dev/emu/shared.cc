/* shared.cc: a block's shared memory: one arena, in it the dynamic part and then the arrays as
 * kernels ask for them, each between guard zones. All of it reads as NaN when a block begins. Knows
 * nothing of the kernel. */
#include <sys/mman.h>

#include "dev/emu/internal.h"

/* GUARD: no multiple of 32, so that nobody comes to rely on more than ALIGN */
enum { MAX_ARRAYS = 64, GUARD = 1040, ALIGN = 16 };
static const size_t ARENA = EMU_SHARED_BLOCK + (MAX_ARRAYS + 1) * (GUARD + ALIGN);

typedef struct Array {
    const char *name;
    char *p;
    size_t bytes;
} Array;

typedef struct Shared {
    char *arena;
    Array arrays[MAX_ARRAYS]; /* 0: the dynamic part; those from count on are of earlier blocks */
    int count, guarded;       /* guarded: arrays whose guards are in place */
    void *record;
    size_t recorded;
    size_t fixed; /* bytes of arrays, without the dynamic part */
} Shared;
static Shared shared;

static void open_arena(void) {
    void *p = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) emu_fail("%s", "no memory for shared memory");
    shared.arena = (char *)p;
    emu_guard_fill(shared.arena, GUARD);
    ASAN_POISON_MEMORY_REGION(shared.arena, GUARD);
}

/* Behind the last one, where the guard of that one ends. */
static char *next_place(void) {
    if (shared.count == 0) return shared.arena + GUARD;
    const Array *last = &shared.arrays[shared.count - 1];
    const uintptr_t end = (uintptr_t)(last->p + last->bytes + GUARD);
    return (char *)((end + ALIGN - 1) / ALIGN * ALIGN);
}

static void *add_array(const char *name, size_t bytes) {
    if (shared.count == MAX_ARRAYS) emu_fail("more than %d shared arrays", MAX_ARRAYS - 1);
    Array *a = &shared.arrays[shared.count];
    char *p = next_place();
    const bool same = shared.count < shared.guarded && a->p == p && a->bytes == bytes;
    a->name = name, a->p = p, a->bytes = bytes;
    ASAN_UNPOISON_MEMORY_REGION(p, bytes);
    memset(p, 0xff, bytes);
    if (!same) {
        /* up to where the next array may begin */
        ASAN_UNPOISON_MEMORY_REGION(p + bytes, GUARD + ALIGN);
        emu_guard_fill(p + bytes, GUARD + ALIGN);
        ASAN_POISON_MEMORY_REGION(p + bytes, GUARD + ALIGN);
        shared.guarded = shared.count + 1;
    }
    shared.count++;
    return p;
}

void emu_shared_begin(size_t dynamic_bytes) {
    if (!shared.arena) open_arena();
    shared.count = 0;
    shared.fixed = 0;
    add_array("DYN_SMEM", dynamic_bytes);
}

void *emu_dynamic_shared(void) {
    return shared.arrays[0].p;
}

void *emu_shared_new(EmuSharedSite *site) {
    shared.fixed += site->bytes;
    if (shared.fixed > EMU_SHARED_STATIC)
        emu_fail(
            "%zu bytes of SHARED_ARRAY, at most %d; use DYN_SMEM", shared.fixed, EMU_SHARED_STATIC);
    if (shared.fixed + shared.arrays[0].bytes > EMU_SHARED_BLOCK)
        emu_fail("%zu bytes of SHARED_ARRAY and %zu of DYN_SMEM, together at most %d", shared.fixed,
            shared.arrays[0].bytes, EMU_SHARED_BLOCK);
    site->p = add_array(site->name, site->bytes);
    site->block = emu_place.serial;
    return site->p;
}

EmuArea emu_shared_area(const void *p) {
    const char *at = (const char *)p;
    if (!shared.arena || at < shared.arena || at >= shared.arena + ARENA) return {};
    return {shared.arena, ARENA, &shared.record, &shared.recorded};
}

void emu_shared_end(void) {
    if (EMU_ASAN) return; /* reports the access itself */
    ptrdiff_t at = emu_guard_broken(shared.arena, GUARD);
    if (at >= 0)
        emu_fail("a write %td bytes before shared memory (%s)", GUARD - at, shared.arrays[0].name);
    for (int i = 0; i < shared.count; i++) {
        const Array *a = &shared.arrays[i];
        at = emu_guard_broken(a->p + a->bytes, GUARD);
        if (at < 0) continue;
        if (i + 1 < shared.count && at > GUARD / 2)
            emu_fail("a write %td bytes before the shared array %s", GUARD - at, a[1].name);
        emu_fail("a write %td bytes past the end of the shared array %s (%zu bytes)", at, a->name,
            a->bytes);
    }
}
