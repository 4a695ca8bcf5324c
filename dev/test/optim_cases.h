/* optim_cases.h: what the files of the "optim" group share. */
#ifndef DEV_TEST_OPTIM_CASES_H
#define DEV_TEST_OPTIM_CASES_H

#include "dev/test/tensor.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

StepState *state_new(Bench *b, StepState s); /* in backend memory; backend_free it */
StepState state_read(Bench *b, const StepState *p);

/* What an update needs beside the five arrays: n elements of an arena, all held here. */
typedef struct Tables {
    OptTensors x;     /* params, grads, master, m and v are the caller's to set */
    double *measures; /* (x.blocks + 1) squares, bad weights */
    double *losses;   /* (1) 0 */
    StepState *state;
} Tables;
/* held and tensor of the ranges are not looked at. */
void tables_open(Bench *b, Tables *t, const OptRange *ranges, int count, size_t n);
void tables_close(Bench *b, Tables *t);
void tables_decide(Bench *b, Tables *t); /* from x.grads; writes state */
void tables_update(Bench *b, Tables *t, const AdamArgs *a);

void test_adam_equals(Test *t);
void test_adam_large(Test *t);
void test_adam_skips(Test *t);
void test_adam_no_gradient(Test *t);
void test_adam_bad_weights(Test *t);
void test_adam_ten_steps(Test *t);
void test_adam_per_tensor(Test *t);
void test_shards_equal(Test *t);
void test_shards_bad_weights(Test *t);

#endif
