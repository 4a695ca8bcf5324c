/* arena.h: named tensors in one allocation. First every tensor is declared (name, elements, where
 * its pointer lives), then the total is known and can be printed, then one block is bound and all
 * pointers are set. */
#ifndef LASER_ARENA_H
#define LASER_ARENA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ArenaEntry {
    const char *name;
    void **slot;   /* set by arena_bind */
    size_t offset; /* bytes */
    size_t bytes;
} ArenaEntry;

typedef struct Arena {
    ArenaEntry *entries;
    int count, capacity;
    size_t bytes; /* total, each entry aligned to 64 bytes */
} Arena;

/* Reserves count elements of elem bytes; *slot is set by arena_bind. slot may be NULL: planning
 * only. */
void arena_add(Arena *a, const char *name, void **slot, size_t count, size_t elem);
#define ARENA_ADD(a, slot, count) arena_add((a), #slot, (void **)&(slot), (count), sizeof *(slot))
void arena_bind(Arena *a, void *base); /* base: a->bytes bytes, 64-byte aligned */
void arena_free(Arena *a);             /* the list, not the block */

#ifdef __cplusplus
}
#endif
#endif
