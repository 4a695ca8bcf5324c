/* checkpoint_tensors.h: the weights and moments of a run, to the files of a checkpoint and back.
 * The files do not tell how many processes wrote them. Knows nothing of where checkpoints lie and
 * when they are whole: that is checkpoint.c's. */
#ifndef LASER_CHECKPOINT_TENSORS_H
#define LASER_CHECKPOINT_TENSORS_H

#include "laser/parallel.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TENSOR_FILES = 2 };
extern const char *const tensor_file_names[TENSOR_FILES];

/* Writes the files into the directory, which only rank 0 must see yet, and brings them to the disk.
 * All processes call it; with a dealt out optimizer each writes tensors of its own, else rank 0
 * all. crcs: (TENSOR_FILES) CRC32C of the files, on rank 0 when all of them are whole. Errors die
 * with EXIT_IO. */
void tensor_files_write(const char *dir, Parallel *p, uint32_t *crcs);

/* The weights and moments that this process holds; the weights alone, of a model that holds them
 * whole. Dies with EXIT_INPUT when a tensor is missing or of another shape. */
void tensor_files_read(const char *dir, Parallel *p);
void tensor_files_read_weights(const char *dir, Model *m);

#ifdef __cplusplus
}
#endif
#endif
