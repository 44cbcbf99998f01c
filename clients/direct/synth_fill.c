/* Tensors as runs of blocks from random places of a pool of their type (worker/quant_random.h). */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "clients/direct/synth_model.h"
#include "worker/quant_random.h"

#define POOL_BLOCKS 8192
#define RUN_MAX     64 /* blocks copied at once */
#define POOLS_MAX   64

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

static int make_pool(struct synth_filler *f, struct pool *p, struct err *err)
{
    p->blocks = malloc((size_t)POOL_BLOCKS * dtype_get(p->dtype)->block_bytes + 8);
    return p->blocks ? quant_random_blocks(p->dtype, POOL_BLOCKS, 1 / sqrt((double)p->ne0),
                                           &f->seed, p->blocks, err)
                     : err_set(err, ERR_NO_MEMORY, "no memory for random blocks");
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
        float noise = quant_random_normal(&f->seed) * 0.02f;
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
        uint64_t bits = quant_random_next(&f->seed);
        uint64_t run = n < RUN_MAX ? n : RUN_MAX, at = bits % (POOL_BLOCKS - RUN_MAX);
        memcpy(to, p->blocks + at * info->block_bytes, (size_t)(run * info->block_bytes));
        to += run * info->block_bytes;
        n -= run;
    }
    return 0;
}
