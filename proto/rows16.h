/* The layout of weights for wide loads on a CPU: groups of 16 rows, so that one 64-byte load feeds 16 lanes and a lane is
 * an output row. Same bytes as the file's layout, in another order; the loader re-lays, the worker reads.
 *
 * A matrix (each expert of a 3-D tensor by itself) of m rows has m / 16 groups, group g in the place of rows 16 g to
 * 16 g + 15; rows past the last whole group stand as in the file. A group is block column after block column; block column
 * b holds block b of its 16 rows, 16 * block_bytes, field after field. A field is a run of bytes of the block cut into
 * pieces of 1, 2 or 4 bytes: piece 0 of row 0 .. row 15, then piece 1 of row 0 .. row 15, and so on. rows16.c has the
 * table of fields; some code bytes are stored with their top bit flipped, so that they are unsigned.
 * Pure functions, any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/dtype.h"

#define ROWS16_ROWS       16
#define ROWS16_FIELDS_MAX 5

struct rows16_field {
    uint16_t off;   /* of the run in the file's block */
    uint8_t width;  /* bytes of a piece */
    uint8_t pieces; /* the run is width * pieces bytes */
    uint8_t flip;   /* xor of every byte */
};

/* The fields of a type in the order in which they stand, ended by one with pieces 0. */
const struct rows16_field *rows16_fields(enum dtype dtype);

/* Whether the loader should re-lay a tensor: a matrix that is multiplied, of a type that gains. ne: n_dims sizes. */
bool rows16_wanted(const char *name, enum dtype dtype, uint32_t n_dims, const uint64_t *ne);

/* 16 rows, row_bytes apart and row_bytes long (whole blocks), to one group of 16 * row_bytes, and back.
 * No overlap. */
void rows16_pack(enum dtype dtype, const uint8_t *rows, uint64_t row_bytes, uint8_t *group);
void rows16_unpack(enum dtype dtype, const uint8_t *group, uint64_t row_bytes, uint8_t *rows);

/* One row of a group in the file's layout, row_bytes. */
void rows16_row(enum dtype dtype, const uint8_t *group, uint64_t row_bytes, unsigned row,
                uint8_t *out);

/* The other way: one row into its place. */
void rows16_put_row(enum dtype dtype, uint8_t *group, uint64_t row_bytes, unsigned row,
                    const uint8_t *blocks);

/* One block column: n_rows (up to 16) blocks, stride_bytes apart, to 16 * block_bytes; missing rows are zero. */
void rows16_pack_column(enum dtype dtype, const uint8_t *blocks, uint64_t stride_bytes,
                        unsigned n_rows, uint8_t *column);

/* Re-lays the whole groups of n_rows rows in place; scratch holds 16 * row_bytes. Rows past the last group stay. */
void rows16_pack_in_place(enum dtype dtype, uint8_t *data, uint64_t n_rows, uint64_t row_bytes,
                          uint8_t *scratch);
