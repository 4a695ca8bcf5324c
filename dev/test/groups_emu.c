/* groups_emu.c: the groups of tests that only the emulator has: those of the CUDA backend, and its
 * own. One groups_*.c is linked, that of the backend. */
#include "dev/test/test.h"

const TestGroup extra_test_groups[] = {test_gemm, test_choose, test_emu, test_emu_ends, NULL};
