/* Random blocks of every type that decode to tame numbers, without an encoder: the codes are random bits, the scale
 * fields are set. For models that are made up: benchmarks, a device's trial. Pure functions of their seed. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/dtype.h"
#include "proto/err.h"

/* The next random word; *state is the seed, then where the sequence is. */
uint64_t quant_random_next(uint64_t *state);

/* Near enough to a normal distribution of mean 0 and spread 1. */
float quant_random_normal(uint64_t *state);

/* n_blocks blocks to `blocks`, which has 8 bytes more than they take; their values have mean 0 and the given spread. Any
 * dtype that dtype_find knows. ERR_NO_MEMORY. */
int quant_random_blocks(enum dtype dtype, size_t n_blocks, double spread, uint64_t *state,
                        uint8_t *blocks, struct err *err);
