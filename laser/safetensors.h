/* safetensors.h: read and write the safetensors format (u64 header length, JSON header, data;
 * little-endian, C order, no holes). The reader trusts nothing: every length is checked against the
 * file before use. */
#ifndef LASER_SAFETENSORS_H
#define LASER_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum StType { ST_F32, ST_BF16, ST_I64 } StType;
size_t st_type_bytes(StType t);

typedef struct StTensor {
    char name[128];
    StType type;
    int ndim; /* 0..4 */
    int64_t shape[4];
    uint64_t begin, end; /* bytes in the data section */
} StTensor;

/* Writing: fill(user, i, dst) produces tensor i (its exact bytes) when its turn comes. Writes PATH
 * (no temporary name: the caller publishes), fsyncs it, dies (EXIT_IO) on failure, and returns the
 * CRC32C of the file. metadata: flat string pairs "key", "value", ..., NULL; may be NULL. begin and
 * end of tensors are filled in. */
typedef void StFill(void *user, int index, void *dst);
uint32_t st_write(const char *path, StTensor *tensors, int count, const char *const *metadata,
    StFill *fill, void *user);

/* Reading: dies (EXIT_INPUT) naming the file and what is wrong with it. */
typedef struct StFile {
    char *path;
    StTensor *tensors;
    int count;
    uint64_t data_offset, file_bytes;
    int fd;
} StFile;
void st_open(StFile *f, const char *path);
const StTensor *st_find(const StFile *f, const char *name);  /* NULL when absent */
void st_read(const StFile *f, const StTensor *t, void *dst); /* its exact bytes */
void st_close(StFile *f);

#ifdef __cplusplus
}
#endif
#endif
