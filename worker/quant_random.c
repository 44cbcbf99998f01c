/* A pool of blocks is decoded to find the scale that gives the wanted spread, and the minimum that gives a mean of zero. */
#include "worker/quant_random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/quant.h"

#define TRIAL 256 /* blocks decoded to measure a pool */

/* Where the block's f16 scale and minimum stand; -1: none. */
static const struct scales {
    enum dtype dtype;
    int d, min;
} table[] = {
    { DTYPE_Q4_0, 0, -1 },   { DTYPE_Q4_1, 0, 2 },     { DTYPE_Q5_0, 0, -1 },
    { DTYPE_Q5_1, 0, 2 },    { DTYPE_Q8_0, 0, -1 },    { DTYPE_Q2_K, 80, 82 },
    { DTYPE_Q3_K, 108, -1 }, { DTYPE_Q4_K, 0, 2 },     { DTYPE_Q5_K, 0, 2 },
    { DTYPE_Q6_K, 208, -1 }, { DTYPE_IQ2_XXS, 0, -1 }, { DTYPE_IQ2_XS, 0, -1 },
    { DTYPE_IQ2_S, 0, -1 },  { DTYPE_IQ3_XXS, 0, -1 }, { DTYPE_IQ3_S, 0, -1 },
    { DTYPE_IQ1_S, 0, -1 },  { DTYPE_IQ4_NL, 0, -1 },  { DTYPE_IQ4_XS, 0, -1 },
    { DTYPE_TQ1_0, 52, -1 }, { DTYPE_TQ2_0, 64, -1 },
};

struct pool {
    enum dtype dtype;
    size_t n_blocks;
    uint8_t *blocks;
};

uint64_t quant_random_next(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15ull;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* The sum of eight 8-bit numbers. */
float quant_random_normal(uint64_t *state)
{
    uint64_t bits = quant_random_next(state);
    int sum = 0;
    for (int i = 0; i < 8; i++) {
        sum += (int)(bits >> 8 * i & 0xff);
    }
    return ((float)sum - 1020.0f) / 209.0f;
}

/* Writes a scale (and minimum) into each block of a pool. */
static void set_scales(const struct pool *p, float d, float min)
{
    size_t bytes = dtype_get(p->dtype)->block_bytes;
    const struct scales *s = NULL;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        s = table[i].dtype == p->dtype ? &table[i] : s;
    }
    uint16_t d16 = dtype_f16_of_f32(d), min16 = dtype_f16_of_f32(min);
    for (size_t b = 0; b < p->n_blocks; b++) {
        uint8_t *block = p->blocks + b * bytes;
        if (p->dtype == DTYPE_MXFP4) {
            block[0] = (uint8_t)(127.0f + roundf(log2f(d))); /* a power of two */
        } else if (p->dtype == DTYPE_IQ1_M) {
            for (int i = 0; i < 4; i++) { /* the scale is cut over the top nibbles of four words */
                uint8_t *high = block + 48 + 2 * i + 1;
                *high = (uint8_t)((*high & 0x0f) | (d16 >> 4 * i & 15) << 4);
            }
        } else if (s) {
            memcpy(block + s->d, &d16, sizeof d16);
            if (s->min >= 0) {
                memcpy(block + s->min, &min16, sizeof min16);
            }
        }
    }
}

/* Mean and spread of a pool as it stands. */
static void measure(const struct pool *p, float *values, double *mean, double *rms)
{
    size_t n_blocks = p->n_blocks < TRIAL ? p->n_blocks : TRIAL;
    size_t n = n_blocks * dtype_get(p->dtype)->block_values;
    quant_dequantise(p->dtype, p->blocks, n, values);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        sum += values[i];
        squares += (double)values[i] * values[i];
    }
    *mean = sum / (double)n;
    *rms = sqrt(squares / (double)n);
}

static int calibrate(const struct pool *p, double spread, struct err *err)
{
    float *values = malloc((size_t)TRIAL * QUANT_BLOCK_MAX * sizeof *values);
    if (!values) {
        return err_set(err, ERR_NO_MEMORY, "no memory for random blocks");
    }
    /* With the minimum alone the values are -min * m (or +min): find the one that brings the mean to zero. */
    double mean, rms, at_min;
    set_scales(p, 0, 1);
    measure(p, values, &at_min, &rms);
    set_scales(p, 1, 0);
    measure(p, values, &mean, &rms);
    double min = at_min != 0 && p->dtype != DTYPE_MXFP4 ? -mean / at_min : 0;
    set_scales(p, 1, (float)min);
    measure(p, values, &mean, &rms);
    double d = rms > 0 ? spread / rms : 0;
    set_scales(p, (float)d, (float)(min * d));
    free(values);
    return 0;
}

int quant_random_blocks(enum dtype dtype, size_t n_blocks, double spread, uint64_t *state,
                        uint8_t *blocks, struct err *err)
{
    const struct dtype_info *info = dtype_get(dtype);
    const struct pool pool = { dtype, n_blocks, blocks };
    if (!info->quantised) {
        for (size_t i = 0; i < n_blocks; i++) {
            float value = (float)(quant_random_normal(state) * spread);
            if (quant_encode(dtype, &value, 1, blocks + i * info->block_bytes, err) < 0) {
                return -1;
            }
        }
        return 0;
    }
    for (size_t i = 0; i < n_blocks * info->block_bytes; i += 8) {
        uint64_t bits = quant_random_next(state);
        memcpy(blocks + i, &bits, sizeof bits);
    }
    return calibrate(&pool, spread, err);
}
