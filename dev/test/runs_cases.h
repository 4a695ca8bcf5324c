/* runs_cases.h: what the files of the "runs" group share. */
#ifndef DEV_TEST_RUNS_CASES_H
#define DEV_TEST_RUNS_CASES_H

#include "dev/test/test.h"
#include "laser/safetensors.h"

enum { PATH_BYTES = 512, SAMPLES = 5 };

/* Tensors of every type and odd shape, with their values and metadata. */
extern const char *const sample_metadata[];
void sample_tensors(StTensor *s /* (SAMPLES) */);
void sample_fill(void *user /* the tensors, laid out */, int index, void *dst);

void write_file(const char *path, const void *data, size_t n);

void test_st_round_trip(Test *t);
void test_st_malformed(Test *t);
void test_st_lengths(Test *t);
void test_st_beyond_4_gib(Test *t);
void test_st_parts(Test *t);
void test_st_dealing(Test *t);
void test_st_write_failures(Test *t);
void test_st_alignment(Test *t);
void test_utf8(Test *t);

#endif
