/* The codebooks of the IQ types (quant_grids.c), packed, and what their levels mean. Source: the GGUF formats
 * IQ1 to IQ4 and FP4. Read-only data: any thread. */
#pragma once

#include <stdint.h>

/* Eight levels of two bits: 0, 1, 2 mean 8, 25, 43. */
extern const uint16_t quant_grid_iq2xxs[256], quant_grid_iq2xs[512], quant_grid_iq2s[1024];
/* Eight levels of two bits: 0, 1, 2 mean -1, 0, 1. */
extern const uint16_t quant_grid_iq1s[2048];
/* Four levels of three bits: 8 * level + 4, but level 7 is 62. */
extern const uint16_t quant_grid_iq3xxs[256];
/* Four levels of three bits: 2 * level + 1. */
extern const uint16_t quant_grid_iq3s[512];

/* Value of a four-bit code of IQ4_NL and IQ4_XS. */
static const int8_t quant_iq4nl[16] = { -127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113 };

/* Twice the E2M1 value of a four-bit code of MXFP4 and NVFP4. */
static const int8_t quant_fp4[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

static inline int quant_level_iq2(unsigned level)
{
    return level == 0 ? 8 : level == 1 ? 25 : 43;
}

static inline int quant_level_iq3xxs(unsigned level)
{
    return level == 7 ? 62 : (int)(8 * level + 4);
}

/* The sign byte of a seven-bit sign code: bit 7 makes the number of negative elements even. */
static inline unsigned quant_signs(unsigned code)
{
    return code | ((unsigned)__builtin_parity(code) << 7);
}
