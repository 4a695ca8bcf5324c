/* optim_cases.h: what the files of the "optim" group share. */
#ifndef DEV_TEST_OPTIM_CASES_H
#define DEV_TEST_OPTIM_CASES_H

#include "dev/test/tensor.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

StepState *state_new(Bench *b, StepState s); /* in backend memory; backend_free it */
StepState state_read(Bench *b, const StepState *p);

void test_adam_equals(Test *t);
void test_adam_large(Test *t);
void test_adam_skips(Test *t);
void test_adam_no_gradient(Test *t);
void test_adam_bad_weights(Test *t);
void test_adam_ten_steps(Test *t);
void test_adam_per_tensor(Test *t);

#endif
