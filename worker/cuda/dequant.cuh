/* What the bits of a weight mean on the device: 32 consecutive values of a row at a time, as eight words of signed codes
 * and the scales (and negated minimums) of values 0..15 and 16..31. The twin of quant.c's split functions, by name and
 * formula, with the same roundings; the block's bytes stand cut in two planes (cuda.h). */
#pragma once

#include "worker/cuda/check.cuh"
#include "worker/cuda/ptx.cuh"

struct tile {
    uint32_t q[8]; /* codes in order, four to a word */
    float scale[2];
    float nmin[2]; /* 0 unless the format has minimums */
};

/* Codebooks expanded to bytes: magnitudes for IQ2 and IQ3, 8 * level for IQ1. Global memory: lanes read different rows. */
struct dequant_tables {
    uint32_t iq3xxs[256], iq3s[512];
    uint32_t iq2xxs[512], iq2xs[1024], iq2s[2048], iq1s[4096]; /* two words an octet */
};

/* type, values of a block, where its body begins, bytes of body and rest, two scales a tile, minimums */
#define DEQUANT_TYPES(X)                                                                           \
    X(Q4_0, 32, 2, 16, 2, false, false)                                                            \
    X(Q4_1, 32, 4, 16, 4, false, true)                                                             \
    X(Q5_0, 32, 6, 16, 6, false, false)                                                            \
    X(Q5_1, 32, 8, 16, 8, false, true)                                                             \
    X(Q8_0, 32, 2, 32, 2, false, false)                                                            \
    X(Q2_K, 256, 0, 80, 4, true, true)                                                             \
    X(Q3_K, 256, 0, 96, 14, true, false)                                                           \
    X(Q4_K, 256, 16, 128, 16, false, true)                                                         \
    X(Q5_K, 256, 16, 160, 16, false, true)                                                         \
    X(Q6_K, 256, 0, 208, 2, true, false)                                                           \
    X(IQ2_XXS, 256, 2, 64, 2, false, false)                                                        \
    X(IQ2_XS, 256, 2, 64, 10, true, false)                                                         \
    X(IQ3_XXS, 256, 2, 96, 2, false, false)                                                        \
    X(IQ1_S, 256, 2, 48, 2, false, false)                                                          \
    X(IQ4_NL, 32, 2, 16, 2, false, false)                                                          \
    X(IQ3_S, 256, 2, 64, 46, false, false)                                                         \
    X(IQ2_S, 256, 2, 64, 18, true, false)                                                          \
    X(IQ4_XS, 256, 8, 128, 8, false, false)                                                        \
    X(IQ1_M, 256, 0, 48, 8, true, false)                                                           \
    X(TQ1_0, 256, 0, 48, 6, false, false)                                                          \
    X(TQ2_0, 256, 0, 64, 2, false, false)                                                          \
    X(MXFP4, 32, 1, 16, 1, false, false)                                                           \
    X(NVFP4, 64, 4, 32, 4, true, false)                                                            \
    X(Q1_0, 128, 2, 16, 2, false, false)                                                           \
    X(Q2_0, 64, 2, 16, 2, false, false)

template <enum dtype T> struct format;
#define FORMAT(type, n_values, begin, n_body, n_rest, two, minimums)                               \
    template <> struct format<DTYPE_##type> {                                                      \
        static constexpr uint32_t values = n_values, body = n_body, rest = n_rest;                 \
        static constexpr bool sub16 = two, has_min = minimums;                                     \
    };
DEQUANT_TYPES(FORMAT)
#undef FORMAT

/* ---- four bytes at a time ---- */

static __device__ __forceinline__ uint32_t add4(uint32_t a, uint32_t b)
{
    return ((a & 0x7f7f7f7fu) + (b & 0x7f7f7f7fu)) ^ ((a ^ b) & 0x80808080u);
}

/* Bit i of four to the lowest bit of byte i. */
static __device__ __forceinline__ uint32_t spread(uint32_t bits)
{
    return ((bits & 15) * 0x00204081u) & 0x01010101u;
}

/* Negates the bytes whose bit of `bits` is set. */
static __device__ __forceinline__ uint32_t negate4(uint32_t v, uint32_t bits)
{
    uint32_t ones = spread(bits);
    return add4(v ^ (ones * 255u), ones);
}

/* Four entries of a table of 16 bytes, by the low nibbles of four bytes. */
static __device__ __forceinline__ uint32_t lut16(uint32_t nibbles, uint32_t t0, uint32_t t1,
                                                 uint32_t t2, uint32_t t3)
{
    uint32_t pairs = nibbles | nibbles >> 4;
    uint32_t pick = ptx_prmt(pairs, 0, 0x4420) & 0x7777u;
    uint32_t high = ((nibbles >> 3) & 0x01010101u) * 255u;
    return (ptx_prmt(t0, t1, pick) & ~high) | (ptx_prmt(t2, t3, pick) & high);
}

static __device__ __forceinline__ uint32_t lut_iq4nl(uint32_t nibbles)
{
    /* -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113 */
    return lut16(nibbles, 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
}

static __device__ __forceinline__ uint32_t lut_fp4(uint32_t nibbles)
{
    return lut16(nibbles, 0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
}

/* The sign byte of a seven-bit code: the count of negatives is even. */
static __device__ __forceinline__ uint32_t signs_of(uint32_t code)
{
    uint32_t p = code ^ code >> 4;
    p ^= p >> 2;
    p ^= p >> 1;
    return code | (p & 1) << 7;
}

static __device__ __forceinline__ float half_at(const uint8_t *p)
{
    return ptx_f32_of_f16(ptx_load16(p));
}

/* 32 bits that stand at an even address only. */
static __device__ __forceinline__ uint32_t load32_even(const uint8_t *p)
{
    return ptx_load16(p) | ptx_load16(p + 2) << 16;
}

static __device__ __forceinline__ void load_words(const uint8_t *p, uint32_t w[4])
{
    uint4 v = ptx_load_weights(p);
    w[0] = v.x;
    w[1] = v.y;
    w[2] = v.z;
    w[3] = v.w;
}

static __device__ __forceinline__ float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Low nibbles are values 0..15, high ones 16..31. */
static __device__ __forceinline__ void nibbles_at(const uint8_t *p, uint32_t q[8])
{
    uint32_t w[4];
    load_words(p, w);
    for (int i = 0; i < 4; i++) {
        q[i] = w[i] & 0x0f0f0f0fu;
        q[4 + i] = (w[i] >> 4) & 0x0f0f0f0fu;
    }
}

/* 32 bytes shifted down and masked. */
static __device__ __forceinline__ void fields_at(const uint8_t *p, uint32_t shift, uint32_t mask,
                                                 uint32_t q[8])
{
    load_words(p, q);
    load_words(p + 16, q + 4);
    for (int i = 0; i < 8; i++) {
        q[i] = (q[i] >> shift) & mask;
    }
}

static __device__ __forceinline__ void bias_by(uint32_t q[8], int bias)
{
    uint32_t all = ((uint32_t)bias & 255u) * 0x01010101u;
    for (int i = 0; i < 8; i++) {
        q[i] = add4(q[i], all);
    }
}

/* ---- the formats: tile i of a block whose parts stand at body and rest ---- */

template <enum dtype T>
static __device__ void tile_of(const uint8_t *body, const uint8_t *rest, uint32_t i,
                               const struct dequant_tables *tables, struct tile *t);

#define TILE(type)                                                                                 \
    template <>                                                                                    \
    __device__ __forceinline__ void tile_of<DTYPE_##type>(                                         \
        [[maybe_unused]] const uint8_t *body, [[maybe_unused]] const uint8_t *rest,                \
        [[maybe_unused]] uint32_t i, [[maybe_unused]] const struct dequant_tables *tables,         \
        struct tile *t)

static __device__ __forceinline__ void one_scale(struct tile *t, float scale)
{
    t->scale[0] = t->scale[1] = scale;
    t->nmin[0] = t->nmin[1] = 0.0f;
}

TILE(Q4_0)
{
    nibbles_at(body, t->q);
    bias_by(t->q, -8);
    one_scale(t, half_at(rest));
}

TILE(Q4_1)
{
    nibbles_at(body, t->q);
    one_scale(t, half_at(rest));
    t->nmin[0] = t->nmin[1] = half_at(rest + 2);
}

static __device__ __forceinline__ void fifth_bits(uint32_t high, uint32_t q[8])
{
    for (int i = 0; i < 8; i++) {
        q[i] |= spread(high >> (4 * i)) << 4;
    }
}

TILE(Q5_0)
{
    nibbles_at(body, t->q);
    fifth_bits(load32_even(rest + 2), t->q);
    bias_by(t->q, -16);
    one_scale(t, half_at(rest));
}

TILE(Q5_1)
{
    nibbles_at(body, t->q);
    fifth_bits(load32_even(rest + 4), t->q);
    one_scale(t, half_at(rest));
    t->nmin[0] = t->nmin[1] = half_at(rest + 2);
}

TILE(Q8_0)
{
    load_words(body, t->q);
    load_words(body + 16, t->q + 4);
    one_scale(t, half_at(rest));
}

TILE(Q2_K)
{
    float d = half_at(rest), dmin = half_at(rest + 2);
    fields_at(body + 16 + 32 * (i / 4), 2 * (i % 4), 0x03030303u, t->q);
    for (int h = 0; h < 2; h++) {
        uint32_t s = body[2 * i + h];
        t->scale[h] = d * (float)(s & 15);
        t->nmin[h] = -(dmin * (float)(s >> 4));
    }
}

TILE(Q3_K)
{
    float d = half_at(rest + 12);
    uint32_t high[8];
    fields_at(body + 32 + 32 * (i / 4), 2 * (i % 4), 0x03030303u, t->q);
    fields_at(body, i, 0x01010101u, high);
    for (int w = 0; w < 8; w++) {
        t->q[w] |= high[w] << 2;
    }
    bias_by(t->q, -4);
    for (int h = 0; h < 2; h++) {
        uint32_t g = 2 * i + h;
        uint32_t low = g < 8 ? rest[g] & 15 : rest[g - 8] >> 4;
        uint32_t top = (rest[8 + g % 4] >> (2 * (g / 4))) & 3;
        t->scale[h] = d * (float)((int)(low | top << 4) - 32);
        t->nmin[h] = 0.0f;
    }
}

/* The i-th of eight 6-bit scales and minimums, Q4_K and Q5_K. */
static __device__ __forceinline__ void k_scales(const uint8_t *rest, uint32_t i, struct tile *t)
{
    const uint8_t *p = rest + 4;
    float d = half_at(rest), dmin = half_at(rest + 2);
    uint32_t sc = i < 4 ? p[i] & 63 : (p[i + 4] & 15) | (p[i - 4] >> 6) << 4;
    uint32_t mn = i < 4 ? p[i + 4] & 63 : (p[i + 4] >> 4) | (p[i] >> 6) << 4;
    t->scale[0] = t->scale[1] = d * (float)sc;
    t->nmin[0] = t->nmin[1] = -(dmin * (float)mn);
}

TILE(Q4_K)
{
    fields_at(body + 32 * (i / 2), 4 * (i % 2), 0x0f0f0f0fu, t->q);
    k_scales(rest, i, t);
}

TILE(Q5_K)
{
    uint32_t high[8];
    fields_at(body + 32 + 32 * (i / 2), 4 * (i % 2), 0x0f0f0f0fu, t->q);
    fields_at(body, i, 0x01010101u, high);
    for (int w = 0; w < 8; w++) {
        t->q[w] |= high[w] << 4;
    }
    k_scales(rest, i, t);
}

TILE(Q6_K)
{
    float d = half_at(rest);
    uint32_t half = i / 4, j = i % 4, high[8];
    fields_at(body + 64 * half + 32 * (j & 1), 4 * (j >> 1), 0x0f0f0f0fu, t->q);
    fields_at(body + 128 + 32 * half, 2 * j, 0x03030303u, high);
    for (int w = 0; w < 8; w++) {
        t->q[w] |= high[w] << 4;
    }
    bias_by(t->q, -32);
    for (int h = 0; h < 2; h++) {
        t->scale[h] = d * (float)(int8_t)body[192 + 2 * i + h];
        t->nmin[h] = 0.0f;
    }
}

/* Ternary digits n of four bytes. */
static __device__ __forceinline__ uint32_t digits(uint32_t bytes, uint32_t n)
{
    uint32_t power = n == 0 ? 1 : n == 1 ? 3 : n == 2 ? 9 : n == 3 ? 27 : 81, q = 0;
    for (int j = 0; j < 4; j++) {
        uint32_t b = (bytes >> (8 * j)) & 255;
        q |= ((((b * power) & 255) * 3) >> 8) << (8 * j);
    }
    return q;
}

TILE(TQ1_0)
{
    for (uint32_t w = 0; w < 8; w++) {
        uint32_t r = 32 * i + 4 * w - 160; /* past the first run */
        if (i < 5) {
            t->q[w] = digits(ptx_load32(body + 4 * w), i);
        } else if (r < 80) {
            t->q[w] = digits(ptx_load32(body + 32 + r % 16), r / 16);
        } else {
            t->q[w] = digits(load32_even(rest), (r - 80) / 4);
        }
    }
    bias_by(t->q, -1);
    one_scale(t, half_at(rest + 4));
}

TILE(TQ2_0)
{
    fields_at(body + 32 * (i / 4), 2 * (i % 4), 0x03030303u, t->q);
    bias_by(t->q, -1);
    one_scale(t, half_at(rest));
}

static __device__ __forceinline__ void look_up_iq4nl(uint32_t q[8])
{
    for (int w = 0; w < 8; w++) {
        q[w] = lut_iq4nl(q[w]);
    }
}

TILE(IQ4_NL)
{
    nibbles_at(body, t->q);
    look_up_iq4nl(t->q);
    one_scale(t, half_at(rest));
}

TILE(IQ4_XS)
{
    uint32_t high = ptx_load16(rest + 2);
    uint32_t s = ((rest[4 + i / 2] >> (4 * (i % 2))) & 15u) | ((high >> (2 * i)) & 3) << 4;
    nibbles_at(body + 16 * i, t->q);
    look_up_iq4nl(t->q);
    one_scale(t, half_at(rest) * (float)((int)s - 32));
}

static __device__ __forceinline__ void octet(const uint32_t *row, uint32_t signs, uint32_t q[2])
{
    q[0] = negate4(ptx_load32(row), signs);
    q[1] = negate4(ptx_load32(row + 1), signs >> 4);
}

TILE(IQ2_XXS)
{
    const uint8_t *p = body + 8 * i;
    uint32_t index = ptx_load32(p), w = ptx_load32(p + 4);
    for (int l = 0; l < 4; l++) {
        octet(tables->iq2xxs + 2 * ((index >> (8 * l)) & 255), signs_of((w >> (7 * l)) & 127),
              t->q + 2 * l);
    }
    one_scale(t, half_at(rest) * (float)(2 * (w >> 28) + 1) / 8.0f);
}

TILE(IQ2_XS)
{
    float d = half_at(rest);
    uint32_t s = rest[2 + i];
    for (int l = 0; l < 4; l++) {
        uint32_t w = ptx_load16(body + 8 * i + 2 * l);
        octet(tables->iq2xs + 2 * (w & 511), signs_of(w >> 9), t->q + 2 * l);
    }
    one_scale(t, d * (float)(2 * (s & 15) + 1) / 8.0f);
    t->scale[1] = d * (float)(2 * (s >> 4) + 1) / 8.0f;
}

TILE(IQ2_S)
{
    float d = half_at(rest);
    uint32_t index = ptx_load32(body + 4 * i), signs = ptx_load32(body + 32 + 4 * i);
    uint32_t high = rest[2 + i], s = rest[10 + i];
    for (int l = 0; l < 4; l++) {
        uint32_t at = ((index >> (8 * l)) & 255) | ((high >> (2 * l)) & 3) << 8;
        octet(tables->iq2s + 2 * at, (signs >> (8 * l)) & 255, t->q + 2 * l);
    }
    one_scale(t, d * (float)(2 * (s & 15) + 1) / 8.0f);
    t->scale[1] = d * (float)(2 * (s >> 4) + 1) / 8.0f;
}

TILE(IQ3_XXS)
{
    uint32_t w = ptx_load32(body + 64 + 4 * i);
    for (int l = 0; l < 8; l++) {
        uint32_t signs = signs_of((w >> (7 * (l / 2))) & 127) >> (4 * (l % 2));
        t->q[l] = negate4(ptx_load32(tables->iq3xxs + body[8 * i + l]), signs);
    }
    one_scale(t, half_at(rest) * (float)(2 * (w >> 28) + 1) / 4.0f);
}

TILE(IQ3_S)
{
    uint32_t high = rest[2 + i], signs = load32_even(rest + 10 + 4 * i);
    uint32_t s = (rest[42 + i / 2] >> (4 * (i % 2))) & 15u;
    for (int l = 0; l < 8; l++) {
        uint32_t at = body[8 * i + l] | ((high >> l) & 1) << 8;
        t->q[l] = negate4(ptx_load32(tables->iq3s + at), signs >> (4 * l));
    }
    one_scale(t, half_at(rest) * (float)(2 * s + 1));
}

/* Eight codes of IQ1: 8 * level, plus or minus one. */
static __device__ __forceinline__ void octet_iq1(const uint32_t *row, uint32_t negative,
                                                 uint32_t q[2])
{
    uint32_t delta = negative ? 0xffffffffu : 0x01010101u;
    q[0] = add4(ptx_load32(row), delta);
    q[1] = add4(ptx_load32(row + 1), delta);
}

TILE(IQ1_S)
{
    uint32_t high = ptx_load16(body + 32 + 2 * i), index = ptx_load32(body + 4 * i);
    for (int l = 0; l < 4; l++) {
        uint32_t at = ((index >> (8 * l)) & 255) | ((high >> (3 * l)) & 7) << 8;
        octet_iq1(tables->iq1s + 2 * at, high >> 15, t->q + 2 * l);
    }
    one_scale(t, half_at(rest) * (float)(2 * ((high >> 12) & 7) + 1) / 8.0f);
}

TILE(IQ1_M)
{
    uint32_t bits = 0, index = ptx_load32(body + 4 * i), high = ptx_load16(body + 32 + 2 * i);
    for (int l = 0; l < 4; l++) {
        uint32_t n = (high >> (4 * l)) & 15;
        octet_iq1(tables->iq1s + 2 * (((index >> (8 * l)) & 255) | (n & 7) << 8), n >> 3,
                  t->q + 2 * l);
        bits |= (ptx_load16(rest + 2 * l) >> 12) << (4 * l);
    }
    float d = ptx_f32_of_f16(bits);
    uint32_t c = ptx_load16(rest + 2 * (i / 2)) >> (6 * (i % 2));
    one_scale(t, d * (float)(2 * (c & 7) + 1) / 8.0f);
    t->scale[1] = d * (float)(2 * ((c >> 3) & 7) + 1) / 8.0f;
}

TILE(MXFP4)
{
    uint32_t e = rest[0];
    nibbles_at(body, t->q);
    for (int w = 0; w < 8; w++) {
        t->q[w] = lut_fp4(t->q[w]);
    }
    /* Half of 2^(e - 127): the codes are doubled. The first two are subnormal. */
    one_scale(t, float_of_bits(e >= 2 ? (e - 1) << 23 : 0x00200000u << e));
}

static __device__ __forceinline__ float ue4m3(uint32_t x)
{
    uint32_t exponent = (x >> 3) & 15, mantissa = x & 7;
    if ((x & 0x7f) == 0x7f) {
        return 0.0f;
    }
    return exponent == 0 ? (float)mantissa * 0x1p-9f
                         : float_of_bits((exponent + 120) << 23 | mantissa << 20);
}

TILE(NVFP4)
{
    uint32_t w[4];
    load_words(body + 16 * i, w);
    for (int h = 0; h < 2; h++) {
        for (int j = 0; j < 2; j++) {
            t->q[4 * h + j] = lut_fp4(w[2 * h + j] & 0x0f0f0f0fu);
            t->q[4 * h + 2 + j] = lut_fp4((w[2 * h + j] >> 4) & 0x0f0f0f0fu);
        }
        t->scale[h] = ue4m3(rest[2 * i + h]) * 0.5f;
        t->nmin[h] = 0.0f;
    }
}

TILE(Q1_0)
{
    uint32_t bits = ptx_load32(body + 4 * i);
    for (int w = 0; w < 8; w++) {
        t->q[w] = spread(bits >> (4 * w)) << 1;
    }
    bias_by(t->q, -1);
    one_scale(t, half_at(rest));
}

TILE(Q2_0)
{
    for (int w = 0; w < 8; w++) {
        uint32_t b = body[8 * i + w];
        t->q[w] = (b | b << 6 | b << 12 | b << 18) & 0x03030303u;
    }
    bias_by(t->q, -1);
    one_scale(t, half_at(rest));
}
#undef TILE

/* ---- rows ---- */

/* A matrix as kernels see it. */
struct device_matrix {
    const uint8_t *data;
    uint64_t row_bytes, expert_bytes;
    uint32_t k, m, n_experts;
};

static inline struct device_matrix device_matrix_of(const struct matrix *w)
{
    struct device_matrix d = { w->data, w->row_bytes, w->expert_bytes, w->k, w->m, w->n_experts };
    return d;
}

/* Values 32 * at .. of the row that begins at `row`. */
template <enum dtype T>
static __device__ __forceinline__ void row_tile(const uint8_t *row, uint32_t k, uint32_t at,
                                                const struct dequant_tables *tables, struct tile *t)
{
    constexpr uint32_t tiles = format<T>::values / 32;
    uint32_t block = at / tiles;
    const uint8_t *rests = row + (uint64_t)(k / format<T>::values) * format<T>::body;
    tile_of<T>(row + (uint64_t)block * format<T>::body, rests + (uint64_t)block * format<T>::rest,
               at % tiles, tables, t);
}

/* One value of a float row. */
template <enum dtype T>
static __device__ __forceinline__ float row_float(const uint8_t *row, uint32_t j)
{
    if (T == DTYPE_F16) {
        return ptx_f32_of_f16(ptx_load16(row + 2 * (uint64_t)j));
    }
    if (T == DTYPE_BF16) {
        return float_of_bits(ptx_load16(row + 2 * (uint64_t)j) << 16);
    }
    return float_of_bits(ptx_load32(row + 4 * (uint64_t)j));
}
