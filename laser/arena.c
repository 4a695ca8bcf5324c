/* arena.c: named tensors in one allocation. */
#include "laser/arena.h"

#include <stdlib.h>
#include <string.h>

#include "laser/base.h"

void arena_add(Arena *a, const char *name, void **slot, size_t count, size_t elem) {
    if (a->count == a->capacity) {
        int capacity = a->capacity ? 2 * a->capacity : 64;
        ArenaEntry *grown = (ArenaEntry *)xcalloc((size_t)capacity, sizeof *grown);
        for (int i = 0; i < a->count; i++) grown[i] = a->entries[i];
        free(a->entries);
        a->entries = grown;
        a->capacity = capacity;
    }
    ArenaEntry *e = &a->entries[a->count++];
    e->name = name;
    e->slot = slot;
    e->offset = a->bytes;
    e->bytes = size_mul(count, elem);
    a->bytes = size_add(a->bytes, size_add(e->bytes, 63) & ~(size_t)63);
}

void arena_bind(Arena *a, void *base) {
    for (int i = 0; i < a->count; i++) {
        if (!a->entries[i].slot) continue;
        void *p = (char *)base + a->entries[i].offset;
        memcpy(
            a->entries[i].slot, &p, sizeof p); /* the slot is a float ** or act_t **: no aliasing */
    }
}

void arena_free(Arena *a) {
    free(a->entries);
    a->entries = NULL;
    a->count = a->capacity = 0;
    a->bytes = 0;
}
