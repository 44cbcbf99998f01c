/* Random blocks that decode to tame numbers, for every type, without an encoder: the codes are random bits, the scale
 * fields are set. A pool of blocks per type is decoded once to find the scale that gives the wanted spread, and the
 * minimum that gives a mean of zero; tensors are runs of blocks from random places of their pool. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "clients/direct/synth_model.h"
#include "worker/quant.h"

#define POOL_BLOCKS 8192
#define TRIAL       256 /* blocks decoded to measure a pool */
#define RUN_MAX     64  /* blocks copied at once */
#define POOLS_MAX   64

/* Where the block's f16 scale and minimum stand; -1: none. */
struct scales {
    enum dtype dtype;
    int d, min;
};

static const struct scales table[] = {
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
    uint64_t ne0;
    uint8_t *blocks;
};

struct synth_filler {
    struct pool pools[POOLS_MAX];
    int n_pools;
    uint64_t seed;
};

static uint64_t next(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15ull;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* Near enough to a normal distribution: the sum of eight 8-bit numbers, spread 1. */
static float normal(uint64_t *state)
{
    uint64_t bits = next(state);
    int sum = 0;
    for (int i = 0; i < 8; i++) {
        sum += (int)(bits >> 8 * i & 0xff);
    }
    return ((float)sum - 1020.0f) / 209.0f;
}

struct synth_filler *synth_filler_create(struct err *err)
{
    struct synth_filler *f = calloc(1, sizeof *f);
    if (!f) {
        err_set(err, ERR_NO_MEMORY, "no memory for random blocks");
        return NULL;
    }
    f->seed = 20240229;
    return f;
}

void synth_filler_destroy(struct synth_filler **f)
{
    if (!*f) {
        return;
    }
    for (int i = 0; i < (*f)->n_pools; i++) {
        free((*f)->pools[i].blocks);
    }
    free(*f);
    *f = NULL;
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
    for (size_t b = 0; b < POOL_BLOCKS; b++) {
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
    size_t n = (size_t)TRIAL * dtype_get(p->dtype)->block_values;
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

static int make_pool(struct synth_filler *f, struct pool *p, struct err *err)
{
    const struct dtype_info *info = dtype_get(p->dtype);
    size_t size = (size_t)POOL_BLOCKS * info->block_bytes;
    p->blocks = malloc(size + 8);
    if (!p->blocks) {
        return err_set(err, ERR_NO_MEMORY, "no memory for random blocks");
    }
    double spread = 1 / sqrt((double)p->ne0);
    if (!info->quantised) {
        for (size_t i = 0; i < POOL_BLOCKS; i++) {
            float value = (float)(normal(&f->seed) * spread);
            struct err ignored;
            quant_encode(p->dtype, &value, 1, p->blocks + i * info->block_bytes, &ignored);
        }
        return 0;
    }
    for (size_t i = 0; i < size; i += 8) {
        uint64_t bits = next(&f->seed);
        memcpy(p->blocks + i, &bits, sizeof bits);
    }
    return calibrate(p, spread, err);
}

static const struct pool *find_pool(struct synth_filler *f, enum dtype dtype, uint64_t ne0,
                                    struct err *err)
{
    for (int i = 0; i < f->n_pools; i++) {
        if (f->pools[i].dtype == dtype && f->pools[i].ne0 == ne0) {
            return &f->pools[i];
        }
    }
    if (f->n_pools == POOLS_MAX) {
        err_set(err, ERR_FULL, "more than %d kinds of rows", POOLS_MAX);
        return NULL;
    }
    struct pool *p = &f->pools[f->n_pools];
    *p = (struct pool){ .dtype = dtype, .ne0 = ne0 };
    if (make_pool(f, p, err) < 0) {
        free(p->blocks);
        return NULL;
    }
    f->n_pools++;
    return p;
}

/* Norms near 1, biases near 0, the factors of long contexts between 1 and 8. */
static void fill_vector(struct synth_filler *f, const struct synth_tensor *t, uint8_t *to)
{
    bool bias = strstr(t->name, ".bias") != NULL, freqs = strstr(t->name, "rope_freqs") != NULL;
    for (uint64_t i = 0; i < t->ne[0]; i++) {
        float noise = normal(&f->seed) * 0.02f;
        float value = bias ? noise : 1.0f + noise;
        if (freqs) {
            value = 1.0f + 7.0f * (float)i / (float)t->ne[0];
        }
        memcpy(to + i * sizeof value, &value, sizeof value);
    }
}

int synth_fill(struct synth_filler *f, const struct synth_tensor *t, uint64_t n_rows, uint8_t *to,
               struct err *err)
{
    if (t->n_dims == 1) {
        fill_vector(f, t, to);
        return 0;
    }
    const struct pool *p = find_pool(f, t->dtype, t->ne[0], err);
    if (!p) {
        return -1;
    }
    const struct dtype_info *info = dtype_get(t->dtype);
    uint64_t n = n_rows * (t->ne[0] / info->block_values);
    while (n) {
        uint64_t bits = next(&f->seed);
        uint64_t run = n < RUN_MAX ? n : RUN_MAX, at = bits % (POOL_BLOCKS - RUN_MAX);
        memcpy(to, p->blocks + at * info->block_bytes, (size_t)(run * info->block_bytes));
        to += run * info->block_bytes;
        n -= run;
    }
    return 0;
}
