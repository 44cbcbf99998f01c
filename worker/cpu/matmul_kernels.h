/* What the instruction sets' twins of the matmul share: the tile that weights are unpacked into, the panel that
 * activations are quantised into, and the table of kernels (matmul_portable.c, matmul_avx2.c, matmul_avx512.c, all made from
 * matmul_lanes.inc). Only matmul.c calls these; any thread, pure functions of their arguments. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/dtype.h"

#define MATMUL_ROWS        16 /* lanes: output rows of a group */
#define MATMUL_STREAM_COLS 8  /* columns of a panel that a stream takes, at most */
#define MATMUL_COLS_MAX    12 /* columns of a panel: 12 sums and 12 results leave 8 of 32 registers */

/* 32 values of 16 rows as unsigned codes (code + bias), four values of a row side by side for one 8-bit
 * multiply-add; scale and negated minimum of values 0..15 and 16..31, [0] for all when 32 values share them. */
struct matmul_tile {
    uint8_t codes[8][4 * MATMUL_ROWS];
    float scale[2][MATMUL_ROWS];
    float nmin[2][MATMUL_ROWS];
};

/* How a type's tiles are multiplied. */
#define MATMUL_SUB16 1u /* two scales a tile */
#define MATMUL_MIN   2u /* has minimums */
#define MATMUL_WIDE  4u /* codes above 127: sums of two products do not fit 16 bits */

/* A panel holds up to MATMUL_COLS_MAX columns (rows of x), block of 32 after block of 32, each with
 *   int8 q[8][C][4], float d[C], float sum[3][C] (d * sum of codes 0..15, 16..31, all), int32 corr[n_slots][2][C],
 *   and where a product wants it int8 fours[8][C][4]
 * where corr is -bias * sum of codes, per slot: one slot for each different (bias, sub) among the products. fours has the
 * codes once more in the order of fours: piece 4 h + c is values 16 h + 4 i + c, i = 0..3, as a look-up of four values
 * for every fourth byte leaves them. */
#define MATMUL_SLOTS_MAX 4
struct matmul_slot {
    int bias;
    int sub16;
};
#define MATMUL_FOURS_OFF(n_slots)          (48 + 8 * (n_slots)) /* of one column */
#define MATMUL_BLOCK_BYTES(n_slots, fours) (MATMUL_FOURS_OFF(n_slots) + ((fours) ? 32 : 0))

/* A group of 16 rows as it stands in memory, with a panel of few columns: dot without a tile. n_blocks of 32 values;
 * x_off, corr_off as for dot. acc: [n_cols][16]. */
typedef void matmul_stream(const uint8_t *group, size_t n_blocks, const uint8_t *panel,
                           size_t block_stride, size_t x_off, size_t corr_off, float *acc);

struct matmul_kernels {
    const char *name;
    unsigned panel_cols; /* best width, at most MATMUL_COLS_MAX */

    /* One column of 16 blocks (rows16.h) to block_values / 32 tiles; NULL: no native kernel, matmul.c splits. */
    void (*unpack[DTYPE_N])(const uint8_t *column, struct matmul_tile *tiles);

    /* Types whose tiles have the order of fours. */
    bool fours[DTYPE_N];

    /* acc[c][row] += tiles . panel over n_blocks blocks, n_cols the panel's width. panel points at the first block of the
     * range; x_off at its codes in the tiles' order, corr_off at the slot's corrections within a block.
     * acc: [n_cols][16], 64-byte aligned. */
    void (*dot)(const struct matmul_tile *tiles, size_t n_blocks, const uint8_t *panel,
                size_t block_stride, size_t x_off, size_t corr_off, unsigned flags, unsigned n_cols,
                float *acc);

    /* The same for float weights [n][16] of type F32, F16 or BF16 and a panel of f32 [n][n_cols]. */
    void (*dot_float)(enum dtype dtype, const uint8_t *weights, size_t n, const float *panel,
                      unsigned n_cols, float *acc);

    /* By type and number of columns; NULL where there is none. */
    matmul_stream *stream[DTYPE_N][MATMUL_STREAM_COLS + 1];

    /* Column c of a panel of width n_cols from k values of x; n_slots slots. */
    void (*quantise)(const float *x, size_t k, const struct matmul_slot *slots, unsigned n_slots,
                     bool fours, unsigned n_cols, unsigned c, uint8_t *panel);
};

extern const struct matmul_kernels matmul_portable, matmul_avx2, matmul_avx512;

/* The table for an enum cpu_isa. */
const struct matmul_kernels *matmul_kernels_of(int isa);

/* The codebooks expanded for look-ups of four codes: one u32 for each index of IQ3, two for an octet of IQ2 (magnitudes)
 * and IQ1 (8 * grid + 64), and the f32 bits of NVFP4's scales. Constant after matmul_tables_init, which any thread may
 * call at any time. */
extern uint32_t matmul_iq3xxs[256], matmul_iq3s[512], matmul_ue4m3[128];
extern uint32_t matmul_iq2xxs[512], matmul_iq2xs[1024], matmul_iq2s[2048], matmul_iq1s[4096];

/* The same for look-ups of 64 bytes at once (matmul_grids.inc): of a table of four values [0] has the levels of values 0 and
 * 1 as nibbles, [1] of 2 and 3, three bits each. An octet of IQ2 is two entries, its second half after all first halves. */
struct matmul_grids {
    uint8_t iq3s[2][512], iq3xxs[2][256];
    uint8_t iq2xxs[2][512], iq2xs[2][1024], iq2s[2][2048];
    uint8_t
        signs[2]
             [64]; /* four sign bits (of six): those of values 0 and 1, 2 and 3 to bits 3 and 7 */
    uint8_t
        sign_code[2]
                 [128]; /* IQ2_XXS, IQ2_XS, IQ3_XXS: sign code to the signs of values 0..3, 4..7 */
    uint8_t code_iq3s[64], code_iq3xxs[64],
        code_iq2[64]; /* level (sign in bit 3, of six) to code */
};
extern struct matmul_grids matmul_grids;
void matmul_tables_init(void);
