#include "proto/rows16.h"

#include <assert.h>
#include <string.h>

/* Pieces of 4 bytes carry codes (four values of a row for one 8-bit multiply-add); scales are 1, 2 or 4 bytes. */
static const struct rows16_field table[DTYPE_N][ROWS16_FIELDS_MAX + 1] = {
    [DTYPE_F32] = { { 0, 4, 1, 0 } },
    [DTYPE_F16] = { { 0, 2, 1, 0 } },
    [DTYPE_BF16] = { { 0, 2, 1, 0 } },
    [DTYPE_Q4_0] = { { 0, 2, 1, 0 }, { 2, 4, 4, 0 } },
    [DTYPE_Q4_1] = { { 0, 2, 2, 0 }, { 4, 4, 4, 0 } },
    [DTYPE_Q5_0] = { { 0, 2, 1, 0 }, { 2, 4, 1, 0 }, { 6, 4, 4, 0 } },
    [DTYPE_Q5_1] = { { 0, 2, 2, 0 }, { 4, 4, 1, 0 }, { 8, 4, 4, 0 } },
    [DTYPE_Q8_0] = { { 0, 2, 1, 0 }, { 2, 4, 8, 0x80 } },
    [DTYPE_Q2_K] = { { 80, 2, 2, 0 }, { 0, 4, 4, 0 }, { 16, 4, 16, 0 } },
    [DTYPE_Q3_K] = { { 108, 2, 1, 0 }, { 96, 4, 3, 0 }, { 0, 4, 8, 0 }, { 32, 4, 16, 0 } },
    [DTYPE_Q4_K] = { { 0, 2, 2, 0 }, { 4, 4, 3, 0 }, { 16, 4, 32, 0 } },
    [DTYPE_Q5_K] = { { 0, 2, 2, 0 }, { 4, 4, 3, 0 }, { 16, 4, 8, 0 }, { 48, 4, 32, 0 } },
    [DTYPE_Q6_K] = { { 208, 2, 1, 0 }, { 192, 4, 4, 0 }, { 128, 4, 16, 0 }, { 0, 4, 32, 0 } },
    [DTYPE_IQ4_NL] = { { 0, 2, 1, 0 }, { 2, 4, 4, 0 } },
    [DTYPE_IQ4_XS] = { { 0, 2, 1, 0 }, { 2, 2, 1, 0 }, { 4, 4, 1, 0 }, { 8, 4, 32, 0 } },
    [DTYPE_MXFP4] = { { 0, 1, 1, 0 }, { 1, 4, 4, 0 } },
    [DTYPE_IQ3_XXS] = { { 0, 2, 1, 0 }, { 66, 4, 8, 0 }, { 2, 4, 16, 0 } },
    [DTYPE_IQ3_S] = { { 0, 2, 1, 0 },
                      { 106, 4, 1, 0 },
                      { 66, 4, 2, 0 },
                      { 74, 4, 8, 0 },
                      { 2, 4, 16, 0 } },
    [DTYPE_IQ2_XXS] = { { 0, 2, 1, 0 }, { 2, 4, 16, 0 } },
    [DTYPE_IQ2_XS] = { { 0, 2, 1, 0 }, { 66, 4, 2, 0 }, { 2, 4, 16, 0 } },
    [DTYPE_IQ2_S] = { { 0, 2, 1, 0 },
                      { 74, 4, 2, 0 },
                      { 66, 4, 2, 0 },
                      { 34, 4, 8, 0 },
                      { 2, 4, 8, 0 } },
    [DTYPE_IQ1_S] = { { 0, 2, 1, 0 }, { 34, 4, 4, 0 }, { 2, 4, 8, 0 } },
    [DTYPE_IQ1_M] = { { 48, 4, 2, 0 }, { 32, 4, 4, 0 }, { 0, 4, 8, 0 } },
    [DTYPE_TQ1_0] = { { 52, 2, 1, 0 }, { 48, 4, 1, 0 }, { 0, 4, 12, 0 } },
    [DTYPE_TQ2_0] = { { 64, 2, 1, 0 }, { 0, 4, 16, 0 } },
    [DTYPE_NVFP4] = { { 0, 4, 1, 0 }, { 4, 4, 8, 0 } },
    [DTYPE_Q1_0] = { { 0, 2, 1, 0 }, { 2, 4, 4, 0 } },
    [DTYPE_Q2_0] = { { 0, 2, 1, 0 }, { 2, 4, 4, 0 } },
};

/* Types without a row: block after block of the 16 rows, each whole. */
static bool whole(enum dtype dtype)
{
    return table[dtype][0].pieces == 0;
}

const struct rows16_field *rows16_fields(enum dtype dtype)
{
    assert(dtype_find((uint32_t)dtype));
    return table[dtype];
}

bool rows16_wanted(const char *name, enum dtype dtype, uint32_t n_dims, const uint64_t *ne)
{
    /* Vectors, convolution taps and position tables are read as they stand; F32 matrices are small routers. */
    if (n_dims < 2 || ne[1] < ROWS16_ROWS || dtype == DTYPE_F32 || strstr(name, "conv1d") ||
        strncmp(name, "position_embd", 13) == 0 || strncmp(name, "token_types", 11) == 0) {
        return false;
    }
    return dtype == DTYPE_F16 || dtype == DTYPE_BF16 || dtype_get(dtype)->quantised;
}

typedef uint32_t quad __attribute__((vector_size(16)));

/* Four pieces of 4 bytes of all 16 rows, row by row to piece by piece: each four rows are a 4 by 4 transposition. A load's
 * re-laying would else cost as much as its reading. */
static void copy_quads(uint8_t *to, const uint8_t *from, uint64_t stride, uint8_t flip)
{
    uint32_t mask = flip * 0x01010101u;
    for (unsigned r = 0; r < ROWS16_ROWS; r += 4) {
        quad row[4], piece[4];
        for (unsigned i = 0; i < 4; i++) {
            memcpy(&row[i], from + (r + i) * stride, sizeof row[i]);
        }
        quad a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
        quad b = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
        quad c = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
        quad d = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
        piece[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
        piece[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
        piece[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
        piece[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
        for (unsigned i = 0; i < 4; i++) {
            piece[i] ^= mask;
            memcpy(to + (i * ROWS16_ROWS + r) * 4, &piece[i], sizeof piece[i]);
        }
    }
}

/* Pieces of one width between a block with `stride` from row to row and its place in the column. */
static void copy_in(uint8_t *to, const uint8_t *from, uint64_t stride, unsigned n_rows,
                    const struct rows16_field *f)
{
    unsigned p = 0;
    for (; f->width == 4 && n_rows == ROWS16_ROWS && p + 4 <= f->pieces; p += 4) {
        copy_quads(to + p * ROWS16_ROWS * 4, from + p * 4, stride, f->flip);
    }
    for (; p < f->pieces; p++) {
        for (unsigned r = 0; r < n_rows; r++) {
            const uint8_t *s = from + r * stride + p * f->width;
            uint8_t *d = to + (p * ROWS16_ROWS + r) * f->width;
            if (f->width == 4) {
                uint32_t v;
                memcpy(&v, s, 4);
                v ^= f->flip * 0x01010101u;
                memcpy(d, &v, 4);
            } else {
                memcpy(d, s, f->width);
            }
        }
    }
}

static void copy_out(uint8_t *to, const uint8_t *from, const struct rows16_field *f, unsigned row)
{
    for (unsigned p = 0; p < f->pieces; p++) {
        const uint8_t *s = from + (p * ROWS16_ROWS + row) * f->width;
        for (unsigned i = 0; i < f->width; i++) {
            to[p * f->width + i] = s[i] ^ f->flip;
        }
    }
}

void rows16_pack_column(enum dtype dtype, const uint8_t *blocks, uint64_t stride_bytes,
                        unsigned n_rows, uint8_t *column)
{
    uint64_t block_bytes = dtype_get(dtype)->block_bytes;
    assert(n_rows <= ROWS16_ROWS);
    if (n_rows < ROWS16_ROWS) {
        memset(column, 0, ROWS16_ROWS * block_bytes);
    }
    if (whole(dtype)) {
        for (unsigned r = 0; r < n_rows; r++) {
            memcpy(column + r * block_bytes, blocks + r * stride_bytes, block_bytes);
        }
        return;
    }
    for (const struct rows16_field *f = table[dtype]; f->pieces; f++) {
        copy_in(column, blocks + f->off, stride_bytes, n_rows, f);
        column += (uint64_t)f->pieces * f->width * ROWS16_ROWS;
    }
}

void rows16_pack(enum dtype dtype, const uint8_t *rows, uint64_t row_bytes, uint8_t *group)
{
    uint64_t block_bytes = dtype_get(dtype)->block_bytes;
    for (uint64_t off = 0; off < row_bytes; off += block_bytes) {
        rows16_pack_column(dtype, rows + off, row_bytes, ROWS16_ROWS, group + ROWS16_ROWS * off);
    }
}

void rows16_row(enum dtype dtype, const uint8_t *group, uint64_t row_bytes, unsigned row,
                uint8_t *out)
{
    uint64_t block_bytes = dtype_get(dtype)->block_bytes;
    assert(row < ROWS16_ROWS);
    for (uint64_t off = 0; off < row_bytes; off += block_bytes) {
        const uint8_t *column = group + ROWS16_ROWS * off;
        if (whole(dtype)) {
            memcpy(out + off, column + row * block_bytes, block_bytes);
        }
        for (const struct rows16_field *f = table[dtype]; f->pieces; f++) {
            copy_out(out + off + f->off, column, f, row);
            column += (uint64_t)f->pieces * f->width * ROWS16_ROWS;
        }
    }
}

void rows16_put_row(enum dtype dtype, uint8_t *group, uint64_t row_bytes, unsigned row,
                    const uint8_t *blocks)
{
    uint64_t block_bytes = dtype_get(dtype)->block_bytes;
    assert(row < ROWS16_ROWS);
    for (uint64_t off = 0; off < row_bytes; off += block_bytes) {
        uint8_t *column = group + ROWS16_ROWS * off;
        if (whole(dtype)) {
            memcpy(column + row * block_bytes, blocks + off, block_bytes);
        }
        for (const struct rows16_field *f = table[dtype]; f->pieces; f++) {
            /* A column with one row, which stands at the row's lane. */
            copy_in(column + row * f->width, blocks + off + f->off, 0, 1, f);
            column += (uint64_t)f->pieces * f->width * ROWS16_ROWS;
        }
    }
}

void rows16_unpack(enum dtype dtype, const uint8_t *group, uint64_t row_bytes, uint8_t *rows)
{
    for (unsigned r = 0; r < ROWS16_ROWS; r++) {
        rows16_row(dtype, group, row_bytes, r, rows + r * row_bytes);
    }
}

void rows16_pack_in_place(enum dtype dtype, uint8_t *data, uint64_t n_rows, uint64_t row_bytes,
                          uint8_t *scratch)
{
    for (uint64_t r = 0; r + ROWS16_ROWS <= n_rows; r += ROWS16_ROWS) {
        uint8_t *group = data + r * row_bytes;
        memcpy(scratch, group, ROWS16_ROWS * row_bytes);
        rows16_pack(dtype, scratch, row_bytes, group);
    }
}
