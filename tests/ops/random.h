/* Random weights and activations for the op tests: any bit pattern is a legal code, only the floating-point scales are
 * kept small, so that results stay near 1. Deterministic in the seed. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "proto/dtype.h"
#include "worker/quant.h"

static inline uint32_t random_u32(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)(x >> 32);
}

/* In [-1, 1). */
static inline float random_f32(uint64_t *state)
{
    return (float)(int32_t)random_u32(state) * 0x1p-31f;
}

/* Offsets + 1 of the f16 fields of a block. */
static inline void random_scales(enum dtype dtype, uint8_t *b, uint64_t *state)
{
    static const uint8_t offs[DTYPE_N][2] = {
        [DTYPE_Q4_0] = { 1 },    [DTYPE_Q4_1] = { 1, 3 }, [DTYPE_Q5_0] = { 1 },
        [DTYPE_Q5_1] = { 1, 3 }, [DTYPE_Q8_0] = { 1 },    [DTYPE_Q2_K] = { 81, 83 },
        [DTYPE_Q3_K] = { 109 },  [DTYPE_Q4_K] = { 1, 3 }, [DTYPE_Q5_K] = { 1, 3 },
        [DTYPE_Q6_K] = { 209 },  [DTYPE_IQ2_XXS] = { 1 }, [DTYPE_IQ2_XS] = { 1 },
        [DTYPE_IQ3_XXS] = { 1 }, [DTYPE_IQ1_S] = { 1 },   [DTYPE_IQ4_NL] = { 1 },
        [DTYPE_IQ3_S] = { 1 },   [DTYPE_IQ2_S] = { 1 },   [DTYPE_IQ4_XS] = { 1 },
        [DTYPE_TQ1_0] = { 53 },  [DTYPE_TQ2_0] = { 65 },  [DTYPE_Q1_0] = { 1 },
        [DTYPE_Q2_0] = { 1 },
    };
    for (int i = 0; i < 2; i++) {
        if (offs[dtype][i]) {
            uint16_t bits = dtype_f16_of_f32(random_f32(state) * 0.01f);
            memcpy(b + offs[dtype][i] - 1, &bits, 2);
        }
    }
    if (dtype == DTYPE_MXFP4) {
        b[0] = (uint8_t)(115 + b[0] % 12);
    } else if (dtype == DTYPE_NVFP4) {
        for (int i = 0; i < 4; i++) {
            b[i] &= 0x3f;
        }
    } else if (dtype == DTYPE_IQ1_M) {
        b[55] = (uint8_t)((b[55] & 0x8f) | 0x10); /* exponent bits of the spread f16 scale: small */
    }
}

static inline void random_weights(enum dtype dtype, uint64_t n_values, uint8_t *out, uint64_t seed)
{
    const struct dtype_info *info = dtype_get(dtype);
    uint64_t state = seed, n_blocks = n_values / info->block_values;
    if (dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16) {
        for (uint64_t i = 0; i < n_values; i++) {
            float v = random_f32(&state);
            uint16_t bits = dtype == DTYPE_F16 ? dtype_f16_of_f32(v) : quant_bf16_of_f32(v);
            memcpy(out + i * info->block_bytes, dtype == DTYPE_F32 ? (void *)&v : (void *)&bits,
                   info->block_bytes);
        }
        return;
    }
    for (uint64_t i = 0; i < n_blocks; i++) {
        uint8_t *b = out + i * info->block_bytes;
        for (unsigned j = 0; j < info->block_bytes; j++) {
            b[j] = (uint8_t)random_u32(&state);
        }
        random_scales(dtype, b, &state);
    }
}
