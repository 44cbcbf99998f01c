/* Activations as int8, 32 to a scale: what norm, act and matmul write and products read. Rows stand in eights, so that the
 * right operand of a tile of products is one run of 256 bytes. */
#pragma once

#include "worker/cuda/reduce.cuh"
#include "worker/cuda/tiles.cuh"

#define ROUND_MAGIC      0x1.8p23f /* leaves the nearest integer, ties to even, in the low bits */
#define ROUND_MAGIC_BITS 0x4b400000

struct quantise_to {
    int8_t *codes; /* [rows / 8][k / 32][8][32]; NULL: nothing is wanted */
    float *
        columns; /* planes of [rows / 8][k / 32][8]: d; d times the sums of codes: all, first half, second */
    uint64_t plane; /* floats from plane to plane */
    uint32_t n_tiles;
};

/* Value `lane` of tile `tile` of a row; a warp together. The CPU's steps (matmul_lanes.inc, quantise). */
static __device__ __forceinline__ void quantise_value(const struct quantise_to *to, uint32_t row,
                                                      uint32_t tile, uint32_t lane, float v)
{
    float d, inverse = 0.0f;
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    uint32_t top = warp_max(bits & 0x7fffffffu);
    float largest = float_of_bits(top);
    if (top >= 0x7f800000u) {
        d = float_of_bits(0x7fc00000u);
    } else if (largest < 1e-35f) {
        d = 0.0f;
    } else {
        d = largest / 127.0f;
        inverse = 1.0f / d;
    }
    int code = 0;
    if (inverse > 0.0f) {
        float shifted = v * inverse + ROUND_MAGIC;
        memcpy(&code, &shifted, sizeof code);
        code -= ROUND_MAGIC_BITS;
    }
    uint64_t at = ((uint64_t)(row / 8) * to->n_tiles + tile) * 8 + row % 8;
    to->codes[at * 32 + lane] = (int8_t)code;
    int sum = code;
    for (int off = 8; off > 0; off /= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, off);
    }
    int other = __shfl_xor_sync(ALL_LANES, sum, 16);
    if (lane == 0) {
        to->columns[at] = d;
        to->columns[at + to->plane] = d * (float)(sum + other);
        to->columns[at + 2 * to->plane] = d * (float)sum;
        to->columns[at + 3 * to->plane] = d * (float)other;
    }
}

/* Where n rows of k values go, behind `tile` others; codes NULL when they do not fit or are not whole tiles. */
static inline struct quantise_to quantise_room_at(const struct cuda_backend *c, uint32_t n,
                                                  uint32_t k, uint32_t tile)
{
    struct quantise_to to = {};
    uint64_t plane = round_up(n, 8) * (k / 32);
    if (k % 32 == 0 && (tile + plane) * 32 <= c->max_codes) {
        to.codes = c->codes + 32ull * tile;
        to.columns = c->columns + 4ull * tile;
        to.plane = plane;
        to.n_tiles = k / 32;
    }
    return to;
}

static inline struct quantise_to quantise_room(const struct cuda_backend *c, uint32_t n, uint32_t k)
{
    return quantise_room_at(c, n, k, 0);
}

/* The rows of x are in c->codes, until the next op forgets it. */
static inline void quantise_remember(struct cuda_backend *c, const struct quantise_to *to,
                                     const float *x, uint32_t x_stride, uint32_t n)
{
    c->quantised.x = to->codes ? x : NULL;
    c->quantised.x_stride = x_stride;
    c->quantised.n = n;
    c->quantised.k = 32 * to->n_tiles;
    c->quantised.tile = to->codes ? (uint32_t)((to->codes - c->codes) / 32) : 0;
}
