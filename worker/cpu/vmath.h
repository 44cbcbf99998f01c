/* exp, tanh, sigmoid and the rest in plain f32 arithmetic: the same bits on every instruction set, because
 * every step is one IEEE operation or an explicit fmaf. SIMD twins in kernels must perform these steps,
 * in this order (clamp, round to nearest even, two-part reduction, Horner, scale by two powers). */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

/* worker/cuda compiles these steps for its device. */
#ifndef VMATH_INLINE
#define VMATH_INLINE static inline
#endif

#define VMATH_EXP_MIN -87.0f /* below: exp is 0 for our purposes; result exactly 0 */
#define VMATH_EXP_MAX 88.0f
#define VMATH_LOG2E   1.44269504088896341f
#define VMATH_LN2_HI  0.693359375f /* few bits, so n * hi is exact */
#define VMATH_LN2_LO  -2.12194440e-4f

/* Polynomial of (exp(r) - 1 - r) / r^2 on |r| <= ln2 / 2 (Cephes expf). */
#define VMATH_P0 1.9875691500E-4f
#define VMATH_P1 1.3981999507E-3f
#define VMATH_P2 8.3334519073E-3f
#define VMATH_P3 4.1665795894E-2f
#define VMATH_P4 1.6666665459E-1f
#define VMATH_P5 5.0000001201E-1f

/* Adding it rounds a small float to an integer, to nearest even, and leaves that integer in the low bits. */
#define VMATH_ROUND      12582912.0f /* 1.5 * 2^23 */
#define VMATH_ROUND_BITS 0x4b400000u

VMATH_INLINE uint32_t vmath_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

VMATH_INLINE float vmath_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Relative error below 2e-7; x < VMATH_EXP_MIN gives 0; x above VMATH_EXP_MAX is clamped to it; NaN stays NaN.
 * Without branches, so that loops over it become vector code. */
VMATH_INLINE float vmath_exp(float x)
{
    float c = x > VMATH_EXP_MAX ? VMATH_EXP_MAX : x;
    c = c < VMATH_EXP_MIN ? VMATH_EXP_MIN : c;
    float t = c * VMATH_LOG2E + VMATH_ROUND;
    float n = t - VMATH_ROUND;
    float r = fmaf(n, -VMATH_LN2_HI, c);
    r = fmaf(n, -VMATH_LN2_LO, r);
    float p = VMATH_P0;
    p = fmaf(p, r, VMATH_P1);
    p = fmaf(p, r, VMATH_P2);
    p = fmaf(p, r, VMATH_P3);
    p = fmaf(p, r, VMATH_P4);
    p = fmaf(p, r, VMATH_P5);
    p = fmaf(p, r * r, r);
    p = p + 1.0f;
    float power = vmath_of_bits((vmath_bits(t) - VMATH_ROUND_BITS + 127u) << 23);
    return x < VMATH_EXP_MIN ? 0.0f : p * power;
}

VMATH_INLINE float vmath_sigmoid(float x)
{
    return 1.0f / (1.0f + vmath_exp(-x));
}

/* Odd; near zero by the series, so that small arguments keep their relative precision. */
VMATH_INLINE float vmath_tanh(float x)
{
    float a = fabsf(x), z = a * a;
    float p = -0.053968254f; /* -17/315 */
    p = fmaf(p, z, 0.13333333f);
    p = fmaf(p, z, -0.33333333f);
    float q = z * z * z * z * 0.021869488f; /* 62/2835 */
    float small = fmaf(a, fmaf(p, z, q), a);
    float e = vmath_exp(-2.0f * (a > 20.0f ? 20.0f : a));
    float large = (1.0f - e) / (1.0f + e);
    return copysignf(a < 0.25f ? small : large, x);
}
