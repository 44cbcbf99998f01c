/* The loader's view of the interleaved layout: which types can be laid. proto/rows16.h holds the permutation. */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/dtype.h"

#define ROWS_GROUP 16

/* No type is laid until its permutation exists. */
static inline bool rows_can_lay(enum dtype dtype)
{
    (void)dtype;
    return false;
}

static inline void rows_lay(enum dtype dtype, uint64_t n_blocks, const uint8_t *from, uint8_t *to)
{
    (void)dtype, (void)n_blocks, (void)from, (void)to;
    assert(!"rows: a type that cannot be laid");
}
