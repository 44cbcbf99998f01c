/* What the instruction sets' twins of attention share (attention_portable.c, attention_avx2.c, attention_avx512.c, made
 * from attention_lanes.inc). Scores are products of keys and queries by matmul's kernels: a tile of K is a group of 16
 * rows. Only attention.c calls these; any thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/dtype.h"

#define ATTENTION_BLOCK 64 /* keys between two looks at the maximum: a page */
#define ATTENTION_TILE  16
#define ATTENTION_COLS  48 /* columns (queries) of an item */

/* Scores of a block, then probabilities: tile t, column c, key u of the tile. */
struct attention_scores {
    float s[ATTENTION_BLOCK / ATTENTION_TILE][ATTENTION_COLS][ATTENTION_TILE];
};

struct attention_kernels {
    /* Column c of a block of which keys lo .. hi - 1 (at least one) count: s * scale, soft-capped when softcap > 0, to
     * exp(s - max), 0 outside. max, sum (16 partial sums) and acc (n_acc floats) go on; they are rescaled when the
     * maximum grows. */
    void (*softmax)(struct attention_scores *s, unsigned c, unsigned lo, unsigned hi, float scale,
                    float softcap, float *max, float *sum, float *acc, size_t n_acc);

    /* acc[c][..] += sum over keys u0 .. u1 - 1 of tile t, in order, of probability * v[u], for columns col0 .. +
     * n_cols - 1. v: rows of any KV type, row_bytes apart; n_groups of 16 components. acc: [cols][stride]. */
    void (*values)(enum dtype dtype, const uint8_t *v, size_t row_bytes, unsigned n_groups,
                   const struct attention_scores *s, unsigned t, unsigned u0, unsigned u1,
                   unsigned col0, unsigned n_cols, float *acc, size_t stride);

    /* One row of V of any KV type to f32, n components (blocks padded by the caller). */
    void (*expand)(enum dtype dtype, const uint8_t *row, size_t n, float *out);
};

extern const struct attention_kernels attention_portable, attention_avx2, attention_avx512;
