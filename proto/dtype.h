/* The table of tensor types: the numbers that GGUF files carry, their names and their block geometry.
 * Source: the GGUF type ids; ids with block_values 0 were removed and must be refused. Any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"

enum dtype {
    DTYPE_F32 = 0,
    DTYPE_F16 = 1,
    DTYPE_Q4_0 = 2,
    DTYPE_Q4_1 = 3,
    DTYPE_Q5_0 = 6,
    DTYPE_Q5_1 = 7,
    DTYPE_Q8_0 = 8,
    DTYPE_Q8_1 = 9,
    DTYPE_Q2_K = 10,
    DTYPE_Q3_K = 11,
    DTYPE_Q4_K = 12,
    DTYPE_Q5_K = 13,
    DTYPE_Q6_K = 14,
    DTYPE_Q8_K = 15,
    DTYPE_IQ2_XXS = 16,
    DTYPE_IQ2_XS = 17,
    DTYPE_IQ3_XXS = 18,
    DTYPE_IQ1_S = 19,
    DTYPE_IQ4_NL = 20,
    DTYPE_IQ3_S = 21,
    DTYPE_IQ2_S = 22,
    DTYPE_IQ4_XS = 23,
    DTYPE_I8 = 24,
    DTYPE_I16 = 25,
    DTYPE_I32 = 26,
    DTYPE_I64 = 27,
    DTYPE_F64 = 28,
    DTYPE_IQ1_M = 29,
    DTYPE_BF16 = 30,
    DTYPE_TQ1_0 = 34,
    DTYPE_TQ2_0 = 35,
    DTYPE_MXFP4 = 39,
    DTYPE_NVFP4 = 40,
    DTYPE_Q1_0 = 41,
    DTYPE_Q2_0 = 42,
    DTYPE_N = 43,
};

struct dtype_info {
    const char *name;      /* as people write it: "Q4_K"; NULL for a removed id */
    uint16_t block_values; /* values in a block; a row is whole blocks */
    uint16_t block_bytes;  /* bytes of a block, packed */
    bool quantised;
};

/* The row of a type, or NULL when the id is not known (to be refused: its size is unknown). */
const struct dtype_info *dtype_find(uint32_t id);

/* The row of a type that is known to exist. */
const struct dtype_info *dtype_get(enum dtype id);

/* The type of a name, upper or lower case; -1 when there is none. */
int dtype_of_name(const char *name);

/* Bytes of n_values consecutive values. n_values must be whole blocks and the size fit 63 bits, else
 * ERR_BAD_FILE. */
int dtype_size(enum dtype id, uint64_t n_values, uint64_t *size_bytes, struct err *err);

/* IEEE binary16 <-> binary32, round to nearest even; exact one way. */
float dtype_f32_of_f16(uint16_t bits);
uint16_t dtype_f16_of_f32(float value);
