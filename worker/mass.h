/* What a logit weighs in a draw, as an integer, so that a sum of weights is the same in whatever order it is made: the host
 * (candidates.c) and a device (cuda/sample.cu) find the same token among a hundred thousand, each in its own way. Steps of plain
 * IEEE arithmetic as in cpu/vmath.h; here no step is fused, so that it is quick without FMA too.
 *
 *   mass(l) = floor(2^40 * exp((l - max) / scale)), relative error below 3e-7 near the best; e^-28 of the best and less: 0
 *
 * The best weighs 2^40, so masses of 2^22 tokens stay below 2^63. */
#pragma once

#include <stdint.h>

#include "worker/cpu/vmath.h"

#define MASS_BITS       40
#define MASS_TOKENS_MAX (1u << 22)

/* below: l - max, never positive; scale: the temperature, > 0. */
VMATH_INLINE uint64_t mass_of(float below, float scale)
{
    float t = below / scale * VMATH_LOG2E;
    float k = t + VMATH_ROUND, f = t - (k - VMATH_ROUND);
    float p = 1.54035304e-4f; /* ln(2)^i / i! */
    p = p * f + 1.33335581e-3f;
    p = p * f + 9.61812911e-3f;
    p = p * f + 5.55041087e-2f;
    p = p * f + 2.40226507e-1f;
    p = p * f + 6.93147181e-1f;
    p = p * f + 1.0f;
    float power = vmath_of_bits((vmath_bits(k) - VMATH_ROUND_BITS + 127u + MASS_BITS) << 23);
    return t > -(float)MASS_BITS - 1.0f ? (uint64_t)(int64_t)(p * power) : 0; /* NaN: 0 */
}

/* The sum that the last of the likeliest must pass so that together they have the share p of it. */
VMATH_INLINE uint64_t mass_share(double p, uint64_t sum)
{
    double enough = ceil(p * (double)sum);
    uint64_t most = sum - 1;
    return enough < 1.0 ? 0 : enough >= (double)most ? most : (uint64_t)enough - 1;
}

/* floor(u * sum), u = draw / 2^64. */
VMATH_INLINE uint64_t mass_mark(uint64_t draw, uint64_t sum)
{
    uint64_t low = sum & UINT32_MAX, high = sum >> 32;
    uint64_t a = (draw >> 32) * low + ((draw & UINT32_MAX) * low >> 32);
    uint64_t b = (draw & UINT32_MAX) * high + (a & UINT32_MAX);
    return (draw >> 32) * high + (a >> 32) + (b >> 32);
}

/* A random number in [0, 1) as mass_mark takes it; exact for 53 bits. */
VMATH_INLINE uint64_t mass_draw(double u)
{
    return (uint64_t)(u * 0x1p53) << 11;
}
