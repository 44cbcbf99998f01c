/* Block formats: what the bits of every tensor type mean. Used by the CPU backend, by embedding look-ups, by the KV
 * cache and by tests. Source: the GGML tensor types as GGUF files carry them; the decoded value of an element is the
 * exact real number of the format's formula, rounded once to f32. All functions are pure: any thread, no failure
 * except where they say so. Blocks are packed: no pointer here needs an alignment. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/dtype.h"
#include "proto/err.h"

#define QUANT_BLOCK_MAX 256 /* values of the largest block */
#define QUANT_SUBS_MAX  16  /* scales of the largest block */

/* One block taken apart into integers: value e is scale[e / sub] * codes[e] - min[e / sub], where the product is
 * exact in f32, so that the subtraction is the only rounding. */
struct quant_split {
    int8_t codes[QUANT_BLOCK_MAX];
    float scale[QUANT_SUBS_MAX];
    float min[QUANT_SUBS_MAX]; /* all 0 unless has_min */
};

struct quant_info {
    uint16_t sub; /* values that share a scale: 16 or 32; 0: not an integer type */
    bool has_min; /* values have an offset */
    uint8_t
        bias; /* codes + bias are 0 or more; with at most 127 where 8-bit products can be summed in 16 bits */
    bool codes_u7; /* codes + bias are at most 127 */
};

/* How a type splits; sub is 0 for plain types (F32, F16, BF16, F64, integers). */
const struct quant_info *quant_info(enum dtype dtype);

/* Splits one block of a type whose sub is not 0. */
void quant_split(enum dtype dtype, const void *block, struct quant_split *split);

/* n_values values, whole blocks, to f32. Any dtype that dtype_find knows. */
void quant_dequantise(enum dtype dtype, const void *blocks, uint64_t n_values, float *out);

/* f32 to blocks of F32, F16, BF16, Q8_0 or Q4_0 (KV cache, test data); n_values whole blocks.
 * Anything else: ERR_UNSUPPORTED. Same bytes as the format's reference encoder. */
int quant_encode(enum dtype dtype, const float *x, uint64_t n_values, void *blocks,
                 struct err *err);

/* true when quant_encode takes the type. */
bool quant_can_encode(enum dtype dtype);

/* Whether every floating-point field is finite (format pages, "data validation"); other bits are always legal.
 * ERR_BAD_FILE names the block. */
int quant_validate(enum dtype dtype, const void *blocks, uint64_t n_values, struct err *err);

/* bf16 bits <-> f32, to nearest even; NaN stays NaN. */
uint16_t quant_bf16_of_f32(float value);
float quant_f32_of_bf16(uint16_t bits);

/* The value of an NVFP4 scale byte; bit 7 is ignored. */
float quant_ue4m3(unsigned x);
