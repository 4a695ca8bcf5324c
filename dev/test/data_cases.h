/* data_cases.h: what test_data.c (shards, vocabulary files), test_loader.c (which tokens a step
 * reads), test_files.c (what becomes of the files) and test_manifest*.c share: an independent
 * writer of the llm.c layout, and the cases of the others for the table. */
#ifndef DEV_TEST_DATA_CASES_H
#define DEV_TEST_DATA_CASES_H

#include "dev/test/test.h"

enum { DATA_PATH = 512 };

/* Header of 256 int32 (magic, version, count), then tokens of 2 or 4 bytes: nothing of ours. */
void plain_write(const char *path, const int32_t *tokens, int count, int token_bytes);

void test_manifest_read(Test *t);
void test_manifest_is(Test *t);
void test_manifest_layout(Test *t);
void test_manifest_hash(Test *t);
void test_manifest_torn(Test *t);
void test_manifest_changed(Test *t);

void test_loader_epochs(Test *t);
void test_loader_pure(Test *t);
void test_loader_worlds(Test *t);
void test_loader_seek(Test *t);
void test_loader_prefetch(Test *t);
void test_loader_file_order(Test *t);
void test_loader_uniform(Test *t);
void test_loader_wide(Test *t);
void test_loader_fingerprint(Test *t);
void test_loader_refuses(Test *t);
void test_loader_bad_token(Test *t);
void test_files_many(Test *t);
void test_files_large(Test *t);
void test_files_change(Test *t);
void test_manifest_totals(Test *t);
void test_manifest_others(Test *t);
void test_manifest_directories(Test *t);
void test_manifest_refuses(Test *t);
void test_manifest_many(Test *t);

#endif
