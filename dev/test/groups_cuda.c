/* groups_cuda.c: the groups of tests that only the CUDA backend has; they know its private headers.
 * One groups_*.c is linked, that of the backend. */
#include "dev/test/test.h"

const TestGroup extra_test_groups[] = {test_gemm, test_choose, NULL};
