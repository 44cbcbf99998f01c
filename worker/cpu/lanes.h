/* Sixteen f32 or i32 lanes and 64 bytes on each instruction set, for kernels that are written once. A lane is an
 * output row (matmul) or a key (attention). lane_* operations are single IEEE operations: the same bits everywhere. For
 * files that are compiled once for each set; everything is static inline. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "proto/dtype.h"
#include "worker/cpu/vmath.h"

#if defined(__AVX512VNNI__)
#define LANES_AVX512 1
#else
#define LANES_AVX512 0
#endif
#if defined(__AVX2__) && !LANES_AVX512
#define LANES_AVX2 1
#else
#define LANES_AVX2 0
#endif

#define LANES_INLINE static inline __attribute__((always_inline, unused))

/* For bit work on whole tiles GCC's vectors do; they go through memory where the set is narrower. */
typedef uint8_t lanes_u8 __attribute__((vector_size(64)));
typedef uint16_t lanes_u16 __attribute__((vector_size(64)));
typedef uint32_t lanes_u32 __attribute__((vector_size(64)));
typedef int32_t lanes_i32 __attribute__((vector_size(64)));
typedef float lanes_f32 __attribute__((vector_size(64)));
typedef uint16_t lanes_half __attribute__((vector_size(32)));
typedef uint8_t lanes_byte __attribute__((vector_size(16)));

LANES_INLINE lanes_u8 lanes_load(const void *p)
{
    lanes_u8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

LANES_INLINE void lanes_store(void *p, lanes_u8 v)
{
    memcpy(p, &v, sizeof v);
}

LANES_INLINE lanes_u32 lanes_load_u32(const void *p)
{
    return (lanes_u32)lanes_load(p);
}

/* 16 u16 or u8, widened. */
LANES_INLINE lanes_u32 lanes_load_u16(const void *p)
{
    lanes_half v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, lanes_u32);
}

LANES_INLINE lanes_u32 lanes_load_u8(const void *p)
{
    lanes_byte v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, lanes_u32);
}

LANES_INLINE void lanes_store_f32(float *p, lanes_f32 v)
{
    memcpy(p, &v, sizeof v);
}

LANES_INLINE lanes_f32 lanes_float(lanes_u32 v)
{
    return __builtin_convertvector((lanes_i32)v, lanes_f32);
}

/* Each byte shifted right by n and masked. */
LANES_INLINE lanes_u8 lanes_bits(lanes_u8 v, int n, int mask)
{
    return (lanes_u8)((lanes_u16)v >> n) & (uint8_t)mask;
}

/* 16 binary16 to f32, exact. */
LANES_INLINE lanes_f32 lanes_half_f32(const void *p)
{
#if LANES_AVX512
    return (lanes_f32)_mm512_cvtph_ps(_mm256_loadu_si256(p));
#elif LANES_AVX2
    union {
        __m256 half[2];
        lanes_f32 all;
    } u;
    const __m128i *h = p;
    u.half[0] = _mm256_cvtph_ps(_mm_loadu_si128(h));
    u.half[1] = _mm256_cvtph_ps(_mm_loadu_si128(h + 1));
    return u.all;
#else
    lanes_f32 out;
    for (int i = 0; i < 16; i++) {
        uint16_t bits;
        memcpy(&bits, (const uint8_t *)p + 2 * i, 2);
        out[i] = dtype_f32_of_f16(bits);
    }
    return out;
#endif
}

/* table[v] for bytes v below 16. */
LANES_INLINE lanes_u8 lanes_lut16(lanes_u8 v, const uint8_t table[16])
{
#if LANES_AVX512
    __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table));
    return (lanes_u8)_mm512_shuffle_epi8(t, (__m512i)v);
#elif LANES_AVX2
    union {
        __m256i half[2];
        lanes_u8 all;
    } u = { .all = v };
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table));
    u.half[0] = _mm256_shuffle_epi8(t, u.half[0]);
    u.half[1] = _mm256_shuffle_epi8(t, u.half[1]);
    return u.all;
#else
    lanes_u8 out;
    for (int i = 0; i < 64; i++) {
        out[i] = table[v[i]];
    }
    return out;
#endif
}

/* ---- 64 bytes of codes on their way: as GCC's vectors, but where those are wider than a register GCC moves them by eight
 * bytes, which costs more than the work ---- */

#if LANES_AVX2
typedef struct {
    __m256i v[2];
} lane_b;

LANES_INLINE lane_b lane_b_load(const void *p)
{
    const __m256i *from = p;
    return (lane_b){ { _mm256_loadu_si256(from), _mm256_loadu_si256(from + 1) } };
}
LANES_INLINE void lane_b_store(void *p, lane_b v)
{
    __m256i *to = p;
    _mm256_storeu_si256(to, v.v[0]);
    _mm256_storeu_si256(to + 1, v.v[1]);
}
LANES_INLINE lane_b lane_b_bits(lane_b v, int n, int mask)
{
    __m256i m = _mm256_set1_epi8((char)mask);
    return (lane_b){ { _mm256_and_si256(_mm256_srli_epi16(v.v[0], n), m),
                       _mm256_and_si256(_mm256_srli_epi16(v.v[1], n), m) } };
}
LANES_INLINE lane_b lane_b_join(lane_b low, lane_b high)
{
    return (lane_b){ { _mm256_or_si256(low.v[0], _mm256_slli_epi16(high.v[0], 4)),
                       _mm256_or_si256(low.v[1], _mm256_slli_epi16(high.v[1], 4)) } };
}
LANES_INLINE lane_b lane_b_lut16(lane_b v, const uint8_t table[16])
{
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table));
    return (lane_b){ { _mm256_shuffle_epi8(t, v.v[0]), _mm256_shuffle_epi8(t, v.v[1]) } };
}
#else
typedef lanes_u8 lane_b;

LANES_INLINE lane_b lane_b_load(const void *p)
{
    return lanes_load(p);
}
LANES_INLINE void lane_b_store(void *p, lane_b v)
{
    lanes_store(p, v);
}
/* Each byte shifted right by n and masked. */
LANES_INLINE lane_b lane_b_bits(lane_b v, int n, int mask)
{
    return lanes_bits(v, n, mask);
}
/* Nibbles to bytes. */
LANES_INLINE lane_b lane_b_join(lane_b low, lane_b high)
{
    return low | high << 4;
}
/* table[v] for bytes v below 16. */
LANES_INLINE lane_b lane_b_lut16(lane_b v, const uint8_t table[16])
{
    return lanes_lut16(v, table);
}
#endif

/* table[v] for each lane. */
LANES_INLINE lanes_u32 lanes_gather(lanes_u32 v, const uint32_t *table)
{
#if LANES_AVX512
    return (lanes_u32)_mm512_i32gather_epi32((__m512i)v, table, 4);
#else
    lanes_u32 out;
    for (int i = 0; i < 16; i++) {
        out[i] = table[v[i]];
    }
    return out;
#endif
}

/* ---- registers of the hot loops: 16 f32, 16 i32, 64 bytes of codes ---- */

#if LANES_AVX512
typedef __m512 lane_f;
typedef __m512i lane_i;
typedef __m512i lane_w;

LANES_INLINE lane_f lane_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
LANES_INLINE void lane_store(float *p, lane_f v)
{
    _mm512_storeu_ps(p, v);
}
LANES_INLINE lane_f lane_set(float v)
{
    return _mm512_set1_ps(v);
}
LANES_INLINE lane_f lane_fma(lane_f a, lane_f b, lane_f c)
{
    return _mm512_fmadd_ps(a, b, c);
}
LANES_INLINE lane_f lane_mul(lane_f a, lane_f b)
{
    return _mm512_mul_ps(a, b);
}
LANES_INLINE lane_f lane_add(lane_f a, lane_f b)
{
    return _mm512_add_ps(a, b);
}
LANES_INLINE lane_f lane_of_int(lane_i v)
{
    return _mm512_cvtepi32_ps(v);
}
/* The larger; b where either is no number. */
LANES_INLINE lane_f lane_max(lane_f a, lane_f b)
{
    return _mm512_max_ps(a, b);
}
/* The largest lane of numbers. */
LANES_INLINE float lane_top(lane_f a)
{
    return _mm512_reduce_max_ps(a);
}
/* The smaller; b where either is no number. */
LANES_INLINE lane_f lane_min(lane_f a, lane_f b)
{
    return _mm512_min_ps(a, b);
}
LANES_INLINE lane_f lane_sub(lane_f a, lane_f b)
{
    return _mm512_sub_ps(a, b);
}
/* To the nearest whole number, ties to even. */
LANES_INLINE lane_f lane_round(lane_f a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* 2^n of whole n in -126 .. 127. */
LANES_INLINE lane_f lane_pow2(lane_f n)
{
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
/* v, but 0 where x < limit. */
LANES_INLINE lane_f lane_zero_below(lane_f x, lane_f limit, lane_f v)
{
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), _mm512_setzero_ps());
}
LANES_INLINE lane_i lane_set_int(int32_t v)
{
    return _mm512_set1_epi32(v);
}
LANES_INLINE lane_w lane_codes(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}
/* acc + codes (unsigned) . the four int8 at p, per lane. */
LANES_INLINE lane_i lane_dot(lane_i acc, lane_w codes, const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    return _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(four));
}
LANES_INLINE lane_f lane_of_half(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
LANES_INLINE lane_f lane_of_bf16(const uint8_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

#elif LANES_AVX2
typedef struct {
    __m256 v[2];
} lane_f;
typedef struct {
    __m256i v[2];
} lane_i;
typedef lane_i lane_w;

LANES_INLINE lane_f lane_load(const float *p)
{
    return (lane_f){ { _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) } };
}
LANES_INLINE void lane_store(float *p, lane_f v)
{
    _mm256_storeu_ps(p, v.v[0]);
    _mm256_storeu_ps(p + 8, v.v[1]);
}
LANES_INLINE lane_f lane_set(float v)
{
    return (lane_f){ { _mm256_set1_ps(v), _mm256_set1_ps(v) } };
}
LANES_INLINE lane_f lane_fma(lane_f a, lane_f b, lane_f c)
{
    return (lane_f){ { _mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]),
                       _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1]) } };
}
LANES_INLINE lane_f lane_mul(lane_f a, lane_f b)
{
    return (lane_f){ { _mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1]) } };
}
LANES_INLINE lane_f lane_add(lane_f a, lane_f b)
{
    return (lane_f){ { _mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1]) } };
}
LANES_INLINE lane_f lane_of_int(lane_i v)
{
    return (lane_f){ { _mm256_cvtepi32_ps(v.v[0]), _mm256_cvtepi32_ps(v.v[1]) } };
}
LANES_INLINE lane_f lane_max(lane_f a, lane_f b)
{
    return (lane_f){ { _mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1]) } };
}
LANES_INLINE float lane_top(lane_f a)
{
    __m256 wide = _mm256_max_ps(a.v[0], a.v[1]);
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(wide), _mm256_extractf128_ps(wide, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
LANES_INLINE lane_f lane_min(lane_f a, lane_f b)
{
    return (lane_f){ { _mm256_min_ps(a.v[0], b.v[0]), _mm256_min_ps(a.v[1], b.v[1]) } };
}
LANES_INLINE lane_f lane_sub(lane_f a, lane_f b)
{
    return (lane_f){ { _mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1]) } };
}
LANES_INLINE lane_f lane_round(lane_f a)
{
    for (int i = 0; i < 2; i++) {
        a.v[i] = _mm256_round_ps(a.v[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    return a;
}
LANES_INLINE lane_f lane_pow2(lane_f n)
{
    for (int i = 0; i < 2; i++) {
        __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v[i]), _mm256_set1_epi32(127));
        n.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
    }
    return n;
}
LANES_INLINE lane_f lane_zero_below(lane_f x, lane_f limit, lane_f v)
{
    for (int i = 0; i < 2; i++) {
        v.v[i] = _mm256_andnot_ps(_mm256_cmp_ps(x.v[i], limit.v[i], _CMP_LT_OQ), v.v[i]);
    }
    return v;
}
LANES_INLINE lane_i lane_set_int(int32_t v)
{
    return (lane_i){ { _mm256_set1_epi32(v), _mm256_set1_epi32(v) } };
}
LANES_INLINE lane_w lane_codes(const uint8_t *p)
{
    return (lane_w){ { _mm256_loadu_si256((const void *)p),
                       _mm256_loadu_si256((const void *)(p + 32)) } };
}
/* Codes at most 127: a pair of products is at most 2 * 127 * 127, which fits 16 bits. */
LANES_INLINE lane_i lane_dot(lane_i acc, lane_w codes, const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    __m256i a = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; i++) {
        __m256i pairs = _mm256_maddubs_epi16(codes.v[i], a);
        acc.v[i] = _mm256_add_epi32(acc.v[i], _mm256_madd_epi16(pairs, ones));
    }
    return acc;
}
/* Codes biased by 128: made signed again, then magnitude times the activation with the code's sign. */
LANES_INLINE lane_i lane_dot_wide(lane_i acc, lane_w codes, const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    __m256i a = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1), top = _mm256_set1_epi8(-128);
    for (int i = 0; i < 2; i++) {
        __m256i w = _mm256_xor_si256(codes.v[i], top);
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
        acc.v[i] = _mm256_add_epi32(acc.v[i], _mm256_madd_epi16(pairs, ones));
    }
    return acc;
}
LANES_INLINE lane_f lane_of_half(const uint8_t *p)
{
    const __m128i *h = (const void *)p;
    return (
        lane_f){ { _mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1)) } };
}
LANES_INLINE lane_f lane_of_bf16(const uint8_t *p)
{
    lane_f out;
    for (int i = 0; i < 2; i++) {
        __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p + 16 * i)));
        out.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    return out;
}

#else
typedef struct {
    float v[16];
} lane_f;
typedef struct {
    int32_t v[16];
} lane_i;
typedef const uint8_t *lane_w;

LANES_INLINE lane_f lane_load(const float *p)
{
    lane_f out;
    memcpy(&out, p, sizeof out);
    return out;
}
LANES_INLINE void lane_store(float *p, lane_f v)
{
    memcpy(p, &v, sizeof v);
}
LANES_INLINE lane_f lane_set(float v)
{
    lane_f out;
    for (int i = 0; i < 16; i++) {
        out.v[i] = v;
    }
    return out;
}
LANES_INLINE lane_f lane_fma(lane_f a, lane_f b, lane_f c)
{
    for (int i = 0; i < 16; i++) {
        c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    }
    return c;
}
LANES_INLINE lane_f lane_mul(lane_f a, lane_f b)
{
    for (int i = 0; i < 16; i++) {
        a.v[i] *= b.v[i];
    }
    return a;
}
LANES_INLINE lane_f lane_add(lane_f a, lane_f b)
{
    for (int i = 0; i < 16; i++) {
        a.v[i] += b.v[i];
    }
    return a;
}
LANES_INLINE lane_f lane_of_int(lane_i v)
{
    lane_f out;
    for (int i = 0; i < 16; i++) {
        out.v[i] = (float)v.v[i];
    }
    return out;
}
LANES_INLINE lane_f lane_max(lane_f a, lane_f b)
{
    for (int i = 0; i < 16; i++) {
        a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    }
    return a;
}
LANES_INLINE float lane_top(lane_f a)
{
    float top = a.v[0];
    for (int i = 1; i < 16; i++) {
        top = a.v[i] > top ? a.v[i] : top;
    }
    return top;
}
LANES_INLINE lane_f lane_min(lane_f a, lane_f b)
{
    for (int i = 0; i < 16; i++) {
        a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    }
    return a;
}
LANES_INLINE lane_f lane_sub(lane_f a, lane_f b)
{
    for (int i = 0; i < 16; i++) {
        a.v[i] -= b.v[i];
    }
    return a;
}
LANES_INLINE lane_f lane_round(lane_f a)
{
    for (int i = 0; i < 16; i++) {
        a.v[i] = rintf(a.v[i]);
    }
    return a;
}
LANES_INLINE lane_f lane_pow2(lane_f n)
{
    for (int i = 0; i < 16; i++) {
        /* No number is turned into 1, as the instruction does; what it multiplies is no number either. */
        int32_t e = n.v[i] == n.v[i] ? (int32_t)n.v[i] : 0;
        uint32_t bits = (uint32_t)(e + 127) << 23;
        memcpy(&n.v[i], &bits, 4);
    }
    return n;
}
LANES_INLINE lane_f lane_zero_below(lane_f x, lane_f limit, lane_f v)
{
    for (int i = 0; i < 16; i++) {
        v.v[i] = x.v[i] < limit.v[i] ? 0.0f : v.v[i];
    }
    return v;
}
LANES_INLINE lane_i lane_set_int(int32_t v)
{
    lane_i out;
    for (int i = 0; i < 16; i++) {
        out.v[i] = v;
    }
    return out;
}
LANES_INLINE lane_w lane_codes(const uint8_t *p)
{
    return p;
}
LANES_INLINE lane_i lane_dot(lane_i acc, lane_w codes, const uint8_t *p)
{
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 4; j++) {
            acc.v[i] += (int32_t)codes[4 * i + j] * (int8_t)p[j];
        }
    }
    return acc;
}
LANES_INLINE lane_f lane_of_half(const uint8_t *p)
{
    lanes_f32 v = lanes_half_f32(p);
    lane_f out;
    memcpy(&out, &v, sizeof out);
    return out;
}
LANES_INLINE lane_f lane_of_bf16(const uint8_t *p)
{
    lane_f out;
    for (int i = 0; i < 16; i++) {
        uint16_t bits;
        memcpy(&bits, p + 2 * i, 2);
        uint32_t wide = (uint32_t)bits << 16;
        memcpy(&out.v[i], &wide, 4);
    }
    return out;
}
#endif

/* vmath_exp in lanes: its steps, in its order. */
LANES_INLINE lane_f lane_exp(lane_f x0)
{
    lane_f x = lane_min(lane_set(VMATH_EXP_MAX), x0);
    lane_f n = lane_round(lane_mul(x, lane_set(VMATH_LOG2E)));
    n = lane_max(lane_set(-126.0f), n); /* lanes below the minimum become 0 in the end */
    lane_f r = lane_fma(n, lane_set(-VMATH_LN2_HI), x);
    r = lane_fma(n, lane_set(-VMATH_LN2_LO), r);
    lane_f p = lane_set(VMATH_P0);
    p = lane_fma(p, r, lane_set(VMATH_P1));
    p = lane_fma(p, r, lane_set(VMATH_P2));
    p = lane_fma(p, r, lane_set(VMATH_P3));
    p = lane_fma(p, r, lane_set(VMATH_P4));
    p = lane_fma(p, r, lane_set(VMATH_P5));
    p = lane_fma(p, lane_mul(r, r), r);
    p = lane_add(p, lane_set(1.0f));
    return lane_zero_below(x0, lane_set(VMATH_EXP_MIN), lane_mul(p, lane_pow2(n)));
}
