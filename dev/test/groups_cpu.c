/* groups_cpu.c: the groups of tests that only the CPU backend has: none. One groups_*.c is linked,
 * that of the backend. */
#include "dev/test/test.h"

const TestGroup extra_test_groups[] = {NULL};
