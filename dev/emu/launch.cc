/* launch.cc: runs a kernel: each block in turn, each of its threads a fiber that runs until it must
 * wait. A stack is taken when a thread starts and is passed on when it ends, so that threads that
 * never wait share one. Says who waits where, instead of hanging. Knows nothing of memory's
 * insides. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "dev/emu/fiber.h"
#include "dev/emu/threads.h"

enum { STACK_BYTES = 256 * 1024, GUARD_BYTES = 4096 };

extern "C" {
EmuPlace emu_place_of_thread;
}
EmuMachine emu_machine;

/* ---- reports --------------------------------------------------------------------------------- */

bool emu_in_kernel(void) {
    return emu_machine.current != NULL;
}

void emu_host_call(const char *name) {
    if (emu_machine.current) emu_fail("%s is called in a kernel", name);
}

static size_t put(char *text, size_t capacity, size_t at, const char *fmt, ...) {
    if (at >= capacity) return at;
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(text + at, capacity - at, fmt, args);
    va_end(args);
    return n < 0 ? at : at + (size_t)n;
}

void emu_describe_place(char *text, size_t capacity) {
    text[0] = 0;
    if (!emu_machine.kernel.what) return;
    const uint3 b = emu_place.block, t = emu_place.thread;
    size_t n = put(text, capacity, 0, "kernel %s (%s:%d)", emu_machine.kernel.what,
        emu_machine.kernel.file, emu_machine.kernel.line);
    if (!emu_machine.running) return;
    n = put(text, capacity, n, ", block (%u, %u, %u)", b.x, b.y, b.z);
    if (emu_machine.current) put(text, capacity, n, ", thread (%u, %u, %u)", t.x, t.y, t.z);
}

void emu_fail(const char *fmt, ...) {
    char place[512];
    emu_describe_place(place, sizeof place);
    fflush(stdout);
    fprintf(stderr, "emulator: ");
    va_list args;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "%s%s\n", place[0] ? "; " : "", place);
    abort();
}

static bool same_wait(const EmuThread *a, const EmuThread *b) {
    return a->state == b->state &&
           (a->state == EMU_EXITED || (a->mask == b->mask && emu_same_site(&a->site, &b->site)));
}

/* Who waits where, in ranges of threads that wait for the same. */
void emu_report_waits(void) {
    for (int i = 0; i < emu_machine.count;) {
        const EmuThread *t = &emu_machine.threads[i];
        int end = i + 1;
        while (end < emu_machine.count && same_wait(t, &emu_machine.threads[end])) end++;
        fprintf(stderr, "  threads %d to %d: ", i, end - 1);
        if (t->state == EMU_EXITED)
            fprintf(stderr, "ended\n");
        else if (t->state == EMU_AT_WARP)
            fprintf(stderr, "wait in %s, mask %08x, %s:%d\n", t->site.what, t->mask, t->site.file,
                t->site.line);
        else if (t->state == EMU_AT_BARRIER)
            fprintf(stderr, "wait in %s, %s:%d\n", t->site.what, t->site.file, t->site.line);
        else
            fprintf(stderr, "may go on\n");
        i = end;
    }
}

static void deadlock(void) {
    fprintf(stderr, "emulator: these threads wait for each other for ever:\n");
    emu_report_waits();
    emu_machine.current = NULL;
    emu_fail("%s", "deadlock: a barrier or a warp operation that not all of its threads reach");
}

/* ---- stacks ---------------------------------------------------------------------------------- */

static void open_stacks(void) {
    const size_t each = STACK_BYTES + GUARD_BYTES, total = EMU_MAX_THREADS * each + GUARD_BYTES;
    void *p = mmap(
        NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) emu_fail("%s", "no memory for the threads' stacks");
    emu_machine.stacks = (char *)p;
    for (int i = 0; i < EMU_MAX_THREADS; i++)
        emu_machine.free_stacks[i] = (short)(EMU_MAX_THREADS - 1 - i);
    emu_machine.free_count = EMU_MAX_THREADS;
    for (int i = 0; i <= EMU_MAX_THREADS; i++)
        mprotect(emu_machine.stacks + (size_t)i * each, GUARD_BYTES, PROT_NONE);
}

bool emu_is_stack_guard(const void *p) {
    const size_t each = STACK_BYTES + GUARD_BYTES;
    if (!emu_machine.stacks || (const char *)p < emu_machine.stacks) return false;
    const size_t at = (size_t)((const char *)p - emu_machine.stacks);
    return at <= EMU_MAX_THREADS * each && at % each < GUARD_BYTES;
}

/* Tops are staggered: at equal offsets the threads' frames would share few sets of the cache. */
static void *stack_top(int stack) {
    const size_t end = ((size_t)stack + 1) * (STACK_BYTES + GUARD_BYTES);
    return emu_machine.stacks + end - (size_t)(stack % 61) * 64;
}

/* ---- turns ----------------------------------------------------------------------------------- */

/* Threads that may run, in a ring. */
static EmuThread *next_turn(void) {
    if (!emu_machine.queued) return NULL;
    EmuThread *t = &emu_machine.threads[emu_machine.queue[emu_machine.head++ % EMU_MAX_THREADS]];
    emu_machine.queued--;
    return t;
}

void emu_ready(int *threads, int count) {
    emu_order_threads(threads, count);
    const bool first = emu_order_first();
    if (first) emu_machine.head -= (unsigned)count;
    const unsigned at = first ? emu_machine.head : emu_machine.head + (unsigned)emu_machine.queued;
    for (int i = 0; i < count; i++) {
        emu_machine.queue[(at + (unsigned)i) % EMU_MAX_THREADS] = (short)threads[i];
        emu_machine.threads[threads[i]].state = EMU_READY;
    }
    emu_machine.queued += count;
}

static void become(EmuThread *t) {
    emu_machine.current = t;
    emu_place_of_thread.thread = t->index;
}

static void thread_main(void);

/* Where to switch to so that t runs; a new thread gets a stack. */
static void *place_of(EmuThread *t) {
    if (t->state == EMU_NEW) {
        t->stack = emu_machine.free_stacks[--emu_machine.free_count];
        t->sp = emu_fiber_new(stack_top(t->stack), thread_main);
    }
    t->state = EMU_READY;
    emu_machine.switches++;
    return t->sp;
}

void emu_wait(void) {
    EmuThread *me = emu_machine.current, *t = next_turn();
    if (!t) deadlock();
    become(t);
    if (t == me) return;
    emu_fiber_switch(&me->sp, place_of(t));
}

/* Runs the current thread, and then all that have not begun and come before one that waits. */
static void thread_main(void) {
    for (;;) {
        EmuThread *me = emu_machine.current;
        emu_machine.body(emu_machine.arguments);
        me->state = EMU_EXITED;
        emu_machine.ended[(me - emu_machine.threads) / EMU_WARP] |=
            1u << (me - emu_machine.threads) % EMU_WARP;
        emu_machine.exited++;
        EmuThread *t = next_turn();
        if (!t && emu_machine.exited < emu_machine.count) deadlock();
        if (t && t->state == EMU_NEW) {
            t->stack = me->stack;
            t->state = EMU_READY;
            become(t);
            continue;
        }
        emu_machine.free_stacks[emu_machine.free_count++] = (short)me->stack;
        if (t) become(t);
        emu_fiber_switch(&emu_machine.dropped, t ? place_of(t) : emu_machine.host);
    }
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static void begin_threads(void) {
    int order[EMU_MAX_THREADS];
    const dim3 d = emu_place.threads;
    uint3 index = {0, 0, 0};
    for (int i = 0; i < emu_machine.count; i++) {
        EmuThread *t = &emu_machine.threads[i];
        t->state = EMU_NEW;
        t->index = index;
        order[i] = i;
        if (++index.x == d.x) index.x = 0, index.y++;
        if (index.y == d.y) index.y = 0, index.z++;
    }
    for (int i = 0; i < EMU_MAX_WARPS; i++) emu_machine.waiting[i] = emu_machine.ended[i] = 0;
    emu_machine.exited = emu_machine.arrived = 0;
    emu_machine.head = 0;
    emu_order_threads(order, emu_machine.count);
    for (int i = 0; i < emu_machine.count; i++) emu_machine.queue[i] = (short)order[i];
    emu_machine.queued = emu_machine.count;
}

static void run_block(uint64_t number, size_t smem) {
    const dim3 g = emu_place.blocks;
    emu_place_of_thread.block = {
        (unsigned)(number % g.x), (unsigned)(number / g.x % g.y), (unsigned)(number / g.x / g.y)};
    emu_place_of_thread.serial++;
    emu_shared_begin(smem);
    begin_threads();
    EmuThread *first = next_turn();
    become(first);
    emu_fiber_switch(&emu_machine.host, place_of(first));
    emu_machine.current = NULL;
    emu_shared_end();
    emu_machine.counts.blocks++;
    emu_machine.counts.threads += emu_machine.count;
}

/* ---- launches -------------------------------------------------------------------------------- */

static void require_shape(const EmuShape *s) {
    const dim3 g = s->grid, b = s->block;
    const uint64_t threads = (uint64_t)b.x * b.y * b.z;
    if (!threads || threads > EMU_MAX_THREADS || b.x > 1024 || b.y > 1024 || b.z > 64)
        emu_fail("a block of (%u, %u, %u) threads; at most %d", b.x, b.y, b.z, EMU_MAX_THREADS);
    if (!g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535)
        emu_fail("a grid of (%u, %u, %u) blocks; at most (2^31-1, 65535, 65535)", g.x, g.y, g.z);
    if (s->smem > EMU_SHARED_BLOCK)
        emu_fail("%zu bytes of dynamic shared memory, at most %d", s->smem, EMU_SHARED_BLOCK);
}

void emu_launch_begin(const EmuSite &kernel, const EmuShape &shape) {
    if (emu_machine.kernel.what) emu_fail("%s is launched within a kernel", kernel.what);
    emu_machine.kernel = kernel;
    emu_machine.shape = shape;
    if (!emu_machine.stacks) open_stacks();
    require_shape(&shape);
    emu_require_stream(shape.stream);
    emu_device_begin();
}

void emu_launch_pointer(int argument, const void *p) {
    if (!p) return;
    char what[256];
    emu_memory_describe(p, what, sizeof what);
    if (!emu_memory_holds(p, 0)) emu_fail("argument %d is %p, %s", argument + 1, p, what);
    emu_memory_open(p);
}

/* Words that are addresses of freed device memory, or of the host's. What lies in padding may look
 * like the latter. */
void emu_launch_struct(int argument, const void *p, size_t bytes, bool padded) {
    for (size_t i = 0; i + sizeof(void *) <= bytes; i += sizeof(void *)) {
        const void *word;
        memcpy(&word, (const char *)p + i, sizeof word);
        const bool host = !padded && emu_is_host(word);
        if (host || emu_memory_was_freed(word)) {
            char what[256];
            emu_memory_describe(word, what, sizeof what);
            emu_fail("argument %d holds %p at byte %zu, %s", argument + 1, word, i,
                host ? "host memory" : what);
        }
        emu_memory_open(word);
    }
}

void emu_launch_run(void (*body)(void *arguments), void *arguments) {
    const dim3 g = emu_machine.shape.grid, b = emu_machine.shape.block;
    const uint64_t blocks = (uint64_t)g.x * g.y * g.z;
    emu_place_of_thread.blocks = g;
    emu_place_of_thread.threads = b;
    emu_machine.count = (int)(b.x * b.y * b.z);
    emu_machine.body = body;
    emu_machine.arguments = arguments;
    emu_machine.running = true;
    emu_order_launch(blocks);
    for (uint64_t i = 0; i < blocks; i++) run_block(emu_order_block(i), emu_machine.shape.smem);
    emu_machine.running = false;
    emu_device_end();
    emu_machine.kernel.what = NULL;
    emu_machine.counts.launches++;
}

EmuCounts emu_counts(void) {
    EmuCounts c = emu_machine.counts;
    c.switches = emu_machine.switches;
    emu_memory_counts(&c.allocations, &c.bytes);
    return c;
}
