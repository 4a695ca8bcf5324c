/* memory.cc: device memory. Each allocation has pages of its own, ends close to the end of the last
 * one, and lies between pages that nothing may touch; what is left of its own are guard zones.
 * Pages are closed (PROT_NONE) unless a kernel, a library or a copy is at work; those open what
 * they touch: a fault of theirs on a closed allocation opens it, any other is reported. Freed
 * addresses are not handed out again until the region is used up. Knows nothing of kernels. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dev/emu/internal.h"

static const size_t REGION = (size_t)1 << 42, PAGE = 4096, HUGE_PAGE = (size_t)2 << 20;
static const size_t ALIGN = 256;
/* Where nothing else lies, so that no other number looks like an address in it. */
static const uintptr_t REGION_AT = (uintptr_t)0x200000000000;
enum { MAX_OPEN = 64, REMEMBERED = 256 };

typedef struct Block {
    char *p;
    size_t bytes;
    char *map; /* its pages; one more on either side stays closed */
    size_t map_bytes;
    bool open;
    void *record; /* of race.cc */
    size_t recorded;
} Block;

typedef struct Memory {
    char *region; /* NULL before the first allocation */
    char *next;
    Block *blocks; /* ascending */
    int count, capacity;
    size_t bytes;
    char *open_from, *open_to; /* what may be open lies between */
    Block freed[REMEMBERED];   /* a ring, for reports */
    int freed_next;
    int at_work; /* calls of emu_device_begin without an end */
    struct sigaction before[2];
} Memory;
static Memory memory;

/* ---- guard zones ----------------------------------------------------------------------------- */

/* Every aligned 2, 4 and 8 bytes of it are NaN. */
static uint64_t guard_word(const char *at) {
    return (uintptr_t)at % 2 ? 0xf5fff5fff5fff5ffu : 0xfff5fff5fff5fff5u;
}

void emu_guard_fill(char *p, size_t bytes) {
    const uint64_t word = guard_word(p);
    size_t i = 0;
    for (; i + sizeof word <= bytes; i += sizeof word) memcpy(p + i, &word, sizeof word);
    memcpy(p + i, &word, bytes - i);
}

ptrdiff_t emu_guard_broken(const char *p, size_t bytes) {
    const uint64_t word = guard_word(p);
    uint64_t found = word;
    size_t i = 0;
    for (; i + sizeof word <= bytes && found == word; i += sizeof word)
        memcpy(&found, p + i, sizeof word);
    if (found != word) i -= sizeof word;
    for (; i < bytes; i++)
        if (p[i] != ((const char *)&word)[i % sizeof word]) return (ptrdiff_t)i;
    return -1;
}

/* The rest of its first and last page, at most ALIGN bytes of either. */
static size_t head_bytes(const Block *b) {
    const size_t bytes = (size_t)(b->p - b->map);
    return bytes < ALIGN ? bytes : ALIGN;
}
static size_t tail_bytes(const Block *b) {
    return (size_t)(b->map + b->map_bytes - (b->p + b->bytes));
}

static void require_guards(const Block *b) {
    if (EMU_ASAN) return; /* reports the access itself */
    const size_t head = head_bytes(b);
    ptrdiff_t at = emu_guard_broken(b->p - head, head);
    if (at >= 0)
        emu_fail("a write %td bytes before the allocation of %zu bytes at %p", (ptrdiff_t)head - at,
            b->bytes, (void *)b->p);
    at = emu_guard_broken(b->p + b->bytes, tail_bytes(b));
    if (at >= 0)
        emu_fail("a write %td bytes past the end of the allocation of %zu bytes at %p", at,
            b->bytes, (void *)b->p);
}

/* ---- looking up ------------------------------------------------------------------------------ */

/* How many blocks begin at or before p. */
static int blocks_before(const void *p) {
    int low = 0, high = memory.count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (memory.blocks[middle].map <= (const char *)p)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The block whose pages hold p, or NULL. */
static Block *find_block(const void *p) {
    const int i = blocks_before(p) - 1;
    if (i < 0) return NULL;
    Block *b = &memory.blocks[i];
    return (const char *)p <= b->map + b->map_bytes ? b : NULL;
}

bool emu_memory_reserved(const void *p) {
    const char *at = (const char *)p;
    return memory.region && at >= memory.region && at < memory.region + REGION;
}

bool emu_memory_holds(const void *p, size_t bytes) {
    const Block *b = find_block(p);
    const char *at = (const char *)p;
    return b && at >= b->p && at <= b->p + b->bytes && bytes <= (size_t)(b->p + b->bytes - at);
}

bool emu_is_device(const void *p, size_t bytes) {
    return emu_memory_holds(p, bytes);
}

static const Block *find_freed(const void *p) {
    const char *at = (const char *)p;
    for (const Block &b : memory.freed)
        if (b.p && at >= b.map && at < b.map + b.map_bytes) return &b;
    return NULL;
}
bool emu_memory_was_freed(const void *p) {
    return emu_memory_reserved(p) && !find_block(p) && find_freed(p);
}

EmuArea emu_memory_area(const void *p) {
    Block *b = emu_memory_reserved(p) ? find_block(p) : NULL;
    if (!b) return {};
    return {b->map, b->map_bytes, &b->record, &b->recorded};
}

void emu_memory_describe(const void *p, char *text, size_t capacity) {
    const char *at = (const char *)p;
    const Block *b = NULL;
    for (int i = 0; i < memory.count; i++) {
        const Block *x = &memory.blocks[i];
        if (at >= x->map - PAGE && at < x->map + x->map_bytes + PAGE) b = x;
    }
    const char *state = "";
    if (!b && (b = find_freed(p))) state = "freed ";
    if (!emu_memory_reserved(p))
        snprintf(text, capacity, "not device memory");
    else if (!b)
        snprintf(text, capacity, "in no allocation of device memory");
    else if (at < b->p)
        snprintf(text, capacity, "%td bytes before the %sallocation of %zu bytes at %p", b->p - at,
            state, b->bytes, (void *)b->p);
    else if (at >= b->p + b->bytes)
        snprintf(text, capacity, "%td bytes past the end of the %sallocation of %zu bytes at %p",
            at - (b->p + b->bytes), state, b->bytes, (void *)b->p);
    else
        snprintf(text, capacity, "%td bytes into the %sallocation of %zu bytes at %p", at - b->p,
            state, b->bytes, (void *)b->p);
}

/* ---- opening and closing --------------------------------------------------------------------- */

static void protect(char *p, size_t bytes, int protection) {
    if (mprotect(p, bytes, protection) != 0)
        emu_fail("mprotect of %zu bytes at %p: %s", bytes, (void *)p, strerror(errno));
}

static void open_block(Block *b) {
    if (b->open) return;
    protect(b->map, b->map_bytes, PROT_READ | PROT_WRITE);
    b->open = true;
    char *end = b->map + b->map_bytes;
    if (!memory.open_from || b->map < memory.open_from) memory.open_from = b->map;
    if (!memory.open_to || end > memory.open_to) memory.open_to = end;
}

void emu_memory_open(const void *p) {
    if (!emu_memory_reserved(p)) return;
    Block *b = find_block(p);
    if (b) open_block(b);
}

void emu_memory_close(void) {
    if (!memory.open_from) return;
    for (int i = blocks_before(memory.open_from) - 1; i >= 0 && i < memory.count; i++) {
        Block *b = &memory.blocks[i];
        if (b->map >= memory.open_to) break;
        if (b->open) require_guards(b);
        b->open = false;
    }
    protect(memory.open_from, (size_t)(memory.open_to - memory.open_from), PROT_NONE);
    memory.open_from = memory.open_to = NULL;
}

void emu_device_begin(void) {
    memory.at_work++;
}

void emu_device_end(void) {
    if (--memory.at_work == 0) emu_memory_close();
}

/* ---- faults ---------------------------------------------------------------------------------- */

static void say(const char *text) {
    if (write(STDERR_FILENO, text, strlen(text)) < 0) _exit(1);
}

static void report_fault(const void *at) {
    char place[256], what[256], text[768];
    emu_describe_place(place, sizeof place);
    emu_memory_describe(at, what, sizeof what);
    if (emu_is_stack_guard(at))
        snprintf(text, sizeof text, "emulator: stack overflow in %s\n", place);
    else if (memory.at_work)
        snprintf(text, sizeof text, "emulator: access to %p, %s, by %s\n", at, what,
            place[0] ? place : "a library");
    else
        snprintf(
            text, sizeof text, "emulator: host code touched device memory at %p, %s\n", at, what);
    say(text);
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)context;
    const void *at = info->si_addr;
    Block *b = emu_memory_reserved(at) ? find_block(at) : NULL;
    if (memory.at_work && b && !b->open && (const char *)at < b->map + b->map_bytes) {
        open_block(b);
        return;
    }
    if (memory.at_work || emu_memory_reserved(at) || emu_is_stack_guard(at)) {
        report_fault(at);
        abort();
    }
    /* not ours: who was there before gets the fault again */
    sigaction(signal, &memory.before[signal == SIGBUS], NULL);
}

/* The stack that faults are handled on: a thread's own may be what is used up. */
static void catch_faults(void) {
    enum { BYTES = 64 * 1024 };
    stack_t stack = {}, old = {};
    if (sigaltstack(NULL, &old) == 0 && (old.ss_flags & SS_DISABLE)) {
        stack.ss_sp = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        stack.ss_size = BYTES;
        if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL) != 0)
            emu_fail("%s", "no stack for signals");
    }
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &memory.before[0]);
    sigaction(SIGBUS, &action, &memory.before[1]);
}

/* ---- allocating ------------------------------------------------------------------------------ */

static void open_region(void) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *p = mmap((void *)REGION_AT, REGION, PROT_NONE, flags, -1, 0);
    if (p == MAP_FAILED) emu_fail("no address space for device memory: %s", strerror(errno));
    memory.region = memory.next = (char *)p;
    catch_faults();
}

static size_t round_up(size_t n, size_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* The first place from p on for so many bytes. The lower half of an address is at least 2^31,
 * unless the block is larger than that: half an address and an int or a positive float beside it,
 * in the padding of a struct, are then no address. */
static char *place_from(char *p, size_t bytes, size_t unit) {
    const uintptr_t half = (uintptr_t)1 << 31;
    uintptr_t at = round_up((uintptr_t)p, unit);
    if (at / half % 2 == 0) at = round_up(at + 1, half);
    if (bytes + PAGE < half && (at + bytes + PAGE) / half != at / half) at = (at / half + 2) * half;
    return p + (at - (uintptr_t)p);
}

/* Pages that no block has, with a closed one on either side. */
static char *find_pages(size_t bytes, size_t unit) {
    for (int round = 0; round < 2; round++) {
        char *p = place_from(memory.next + PAGE, bytes, unit);
        for (int i = blocks_before(p); i < memory.count; i++) {
            if (memory.blocks[i].map >= p + bytes + PAGE) break;
            p = place_from(memory.blocks[i].map + memory.blocks[i].map_bytes + PAGE, bytes, unit);
        }
        if (p + bytes + PAGE <= memory.region + REGION) return p;
        memory.next = memory.region; /* from the start: long freed by now */
    }
    return NULL;
}

static void insert(const Block *b) {
    if (memory.count == memory.capacity) {
        memory.capacity = memory.capacity ? 2 * memory.capacity : 64;
        memory.blocks =
            (Block *)realloc(memory.blocks, (size_t)memory.capacity * sizeof *memory.blocks);
        if (!memory.blocks) emu_fail("%s", "no memory for the list of allocations");
    }
    const int at = blocks_before(b->map);
    memmove(memory.blocks + at + 1, memory.blocks + at,
        (size_t)(memory.count - at) * sizeof *memory.blocks);
    memory.blocks[at] = *b;
    memory.count++;
    memory.bytes += b->bytes;
}

static void fill_block(const Block *b) {
    const size_t head = (size_t)(b->p - b->map);
    protect(b->map, b->map_bytes, PROT_READ | PROT_WRITE);
    memset(b->p, 0xff, b->bytes);
    emu_guard_fill(b->map, head);
    emu_guard_fill(b->p + b->bytes, tail_bytes(b));
    ASAN_POISON_MEMORY_REGION(b->map, head);
    ASAN_POISON_MEMORY_REGION(b->p + b->bytes, tail_bytes(b));
    protect(b->map, b->map_bytes, PROT_NONE);
}

/* Large ones lie in huge pages, whose protection changes quickly. */
cudaError_t cudaMalloc(void **p, size_t bytes) {
    size_t available, total;
    emu_host_call("cudaMalloc");
    if (!p) return cudaErrorInvalidValue;
    *p = NULL;
    if (!bytes) return cudaSuccess;
    if (!memory.region) open_region();
    cudaMemGetInfo(&available, &total);
    if (bytes > available) return cudaErrorMemoryAllocation;
    const size_t unit = bytes >= HUGE_PAGE / 8 ? HUGE_PAGE : PAGE;
    Block b = {};
    b.bytes = bytes;
    b.map_bytes = round_up(bytes, unit);
    b.map = find_pages(b.map_bytes, unit);
    if (!b.map) return cudaErrorMemoryAllocation;
    b.p = b.map + b.map_bytes - round_up(bytes, ALIGN);
    memory.next = b.map + b.map_bytes;
    insert(&b);
    if (unit == HUGE_PAGE) madvise(b.map, b.map_bytes, MADV_HUGEPAGE);
    fill_block(&b);
    *p = b.p;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p) {
    emu_host_call("cudaFree");
    if (!p) return cudaSuccess;
    Block *b = emu_memory_reserved(p) ? find_block(p) : NULL;
    if (!b || b->p != p) {
        char what[256];
        emu_memory_describe(p, what, sizeof what);
        emu_fail("cudaFree(%p): %s", p, what);
    }
    open_block(b);
    emu_memory_close();
    ASAN_UNPOISON_MEMORY_REGION(b->map, b->map_bytes);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(b->map, b->map_bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED)
        emu_fail("mmap: %s", strerror(errno));
    if (b->record) munmap(b->record, b->recorded);
    memory.freed[memory.freed_next++ % REMEMBERED] = *b;
    memory.bytes -= b->bytes;
    memmove(b, b + 1, (size_t)(memory.blocks + memory.count - (b + 1)) * sizeof *b);
    memory.count--;
    return cudaSuccess;
}

void emu_memory_counts(int64_t *allocations, size_t *bytes) {
    *allocations = memory.count;
    *bytes = memory.bytes;
}
