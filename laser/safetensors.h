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

/* ---- writing: a file by one process, or by several that each write a part of it ----
 *
 * Files have no temporary name: the caller publishes what is whole. Errors die with EXIT_IO. */

/* Where everything lies: depends on nothing but the tensors and the metadata. */
typedef struct StLayout {
    const StTensor *tensors; /* (count), of the caller */
    int count;
    char *header; /* (data_offset), malloced: its length and itself, up to the data */
    uint64_t data_offset, file_bytes;
} StLayout;
/* metadata: flat string pairs "key", "value", ..., NULL; may be NULL. begin and end of tensors are
 * filled in, and they must live as long as the layout. */
void st_layout(StLayout *l, StTensor *tensors, int count, const char *const *metadata);
void st_layout_free(StLayout *l);

/* Makes the file, of its whole length, with its header, brings it to the disk, and returns the
 * header's CRC32C. Asks for all of the room at once, where the file system has a way to. */
uint32_t st_create(const char *path, const StLayout *l);
/* Writes tensors [first, end), brings them to the disk and returns the CRC32C of their bytes.
 * fill(user, i, dst) produces tensor i (its exact bytes) when its turn comes. The file has been
 * created; other tensors may be written meanwhile, by anyone. */
typedef void StFill(void *user, int index, void *dst);
uint32_t st_write_part(
    const char *path, const StLayout *l, int first, int end, StFill *fill, void *user);
/* All of it; returns the CRC32C of the file. */
uint32_t st_write(const char *path, StTensor *tensors, int count, const char *const *metadata,
    StFill *fill, void *user);

/* Deals tensors that lie one behind the other out in `parts` runs of about as many bytes: the first
 * of a part, which ends where the next begins. Part `parts` begins at count. */
int st_part_begin(const StTensor *tensors, int count, int part, int parts);
uint64_t st_bytes(const StTensor *tensors, int count); /* of tensors one behind the other */

/* ---- reading: dies (EXIT_INPUT) naming the file and what is wrong with it ---- */

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
