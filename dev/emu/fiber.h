/* fiber.h: a second flow of control on a stack of its own. A fiber is where its stack pointer was
 * saved. Knows nothing of threads and blocks. */
#ifndef DEV_EMU_FIBER_H
#define DEV_EMU_FIBER_H

#ifdef __cplusplus
extern "C" {
#endif

/* Stops here, keeping the place in *save; goes on where `to` was kept, or begins there. Returns
 * when something switches back. */
void emu_fiber_switch(void **save, void *to);
/* A fiber that will begin with entry(), which may not return; top is 16-byte aligned. */
void *emu_fiber_new(void *top, void (*entry)(void));

#ifdef __cplusplus
}
#endif
#endif
