/* Arrays that grow by doubling, for every file of this folder. Header only; the array's owner frees it. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "proto/err.h"

/* data with room for need elements of size bytes, where *cap is the room it has now; the contents stay. NULL
 * when memory is refused: data then stands as it was. Errors: ERR_NO_MEMORY. */
static inline void *grow_array(void *data, size_t *cap, size_t need, size_t size, struct err *err)
{
    need = need ? need : 1; /* so that NULL always means refused */
    if (need <= *cap) {
        return data;
    }
    size_t next = *cap < 16 ? 16 : *cap;
    while (next < need && next <= SIZE_MAX / 2) {
        next *= 2;
    }
    size_t bytes;
    void *moved = NULL;
    if (next >= need && !__builtin_mul_overflow(next, size, &bytes)) {
        moved = realloc(data, bytes);
    }
    if (!moved) {
        err_set(err, ERR_NO_MEMORY, "%zu elements of %zu bytes", next, size);
        return NULL;
    }
    *cap = next;
    return moved;
}

/* A typed front, 0 or -1: GROW(&x->items, &x->cap, need, err). */
#define GROW(items, cap, need, err)                                                                \
    __extension__({                                                                                \
        void *grown_ = grow_array(*(items), (cap), (need), sizeof **(items), (err));               \
        if (grown_) {                                                                              \
            *(items) = grown_;                                                                     \
        }                                                                                          \
        grown_ ? 0 : -1;                                                                           \
    })
