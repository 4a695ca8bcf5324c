/* fiber.cc: how a fiber begins, for each architecture that fiber.S knows, and all of it by ucontext
 * for the others (-DEMU_UCONTEXT: for these too), twenty times slower. Knows nothing of threads and
 * blocks. */
#include "dev/emu/fiber.h"

#include <stdint.h>

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)

/* Six registers, where to begin, and the return address of a function that does not return. */
void *emu_fiber_new(void *top, void (*entry)(void)) {
    uintptr_t *sp = (uintptr_t *)top - 8;
    for (int i = 0; i < 8; i++) sp[i] = 0;
    sp[6] = (uintptr_t)entry;
    return sp;
}

#elif defined(__aarch64__) && !defined(EMU_UCONTEXT)

void *emu_fiber_new(void *top, void (*entry)(void)) {
    uintptr_t *sp = (uintptr_t *)top - 20;
    for (int i = 0; i < 20; i++) sp[i] = 0;
    sp[11] = (uintptr_t)entry; /* x30 */
    return sp;
}

#else

#include <ucontext.h>

enum { STACK = 64 * 1024 }; /* makecontext wants to know; fiber.h does not */

void emu_fiber_switch(void **save, void *to) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, (ucontext_t *)to);
}

void *emu_fiber_new(void *top, void (*entry)(void)) {
    const uintptr_t at = ((uintptr_t)top - sizeof(ucontext_t)) & ~(uintptr_t)63;
    ucontext_t *context = (ucontext_t *)at;
    getcontext(context);
    context->uc_stack.ss_sp = (char *)context - STACK;
    context->uc_stack.ss_size = STACK;
    context->uc_link = 0;
    makecontext(context, entry, 0);
    return context;
}

#endif
