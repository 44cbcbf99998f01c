#include "worker/quant.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "worker/quant_grids.h"

static uint16_t load16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint32_t load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static float half(const uint8_t *p)
{
    return dtype_f32_of_f16(load16(p));
}

float quant_f32_of_bf16(uint16_t bits)
{
    uint32_t u = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t quant_bf16_of_f32(float value)
{
    uint32_t u;
    memcpy(&u, &value, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((u >> 16) | 0x40);
    }
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* ---- 32-value types: element e is nibble e / 16 of byte e % 16 ---- */

static unsigned nib(const uint8_t *qs, int e)
{
    return (qs[e % 16] >> (4 * (e / 16))) & 15u;
}

static void split_q4_0(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 32; e++) {
        s->codes[e] = (int8_t)((int)nib(b + 2, e) - 8);
    }
    s->scale[0] = half(b);
}

static void split_q4_1(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 32; e++) {
        s->codes[e] = (int8_t)nib(b + 4, e);
    }
    s->scale[0] = half(b);
    s->min[0] = -half(b + 2);
}

static void split_q5_0(const uint8_t *b, struct quant_split *s)
{
    uint32_t qh = load32(b + 2);
    for (int e = 0; e < 32; e++) {
        s->codes[e] = (int8_t)((int)(nib(b + 6, e) | ((qh >> e) & 1) << 4) - 16);
    }
    s->scale[0] = half(b);
}

static void split_q5_1(const uint8_t *b, struct quant_split *s)
{
    uint32_t qh = load32(b + 4);
    for (int e = 0; e < 32; e++) {
        s->codes[e] = (int8_t)(nib(b + 8, e) | ((qh >> e) & 1) << 4);
    }
    s->scale[0] = half(b);
    s->min[0] = -half(b + 2);
}

static void split_q8_0(const uint8_t *b, struct quant_split *s)
{
    memcpy(s->codes, b + 2, 32);
    s->scale[0] = half(b);
}

static void split_q8_1(const uint8_t *b, struct quant_split *s)
{
    memcpy(s->codes, b + 4, 32);
    s->scale[0] = half(b);
}

static void split_iq4_nl(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 32; e++) {
        s->codes[e] = quant_iq4nl[nib(b + 2, e)];
    }
    s->scale[0] = half(b);
}

static void split_mxfp4(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 32; e++) {
        s->codes[e] = quant_fp4[nib(b + 1, e)];
    }
    s->scale[0] = ldexpf(1.0f, b[0] - 128); /* half of 2^(E-127): the codes are doubled */
}

float quant_ue4m3(unsigned x)
{
    unsigned exponent = (x >> 3) & 15, mantissa = x & 7;
    if ((x & 0x7f) == 0x7f) {
        return 0;
    }
    return exponent == 0 ? (float)mantissa * 0x1p-9f
                         : ldexpf(1.0f + (float)mantissa / 8.0f, (int)exponent - 7);
}

static void split_nvfp4(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 64; e++) {
        int sub = e / 16, r = e % 16;
        s->codes[e] = quant_fp4[(b[4 + 8 * sub + r % 8] >> (4 * (r / 8))) & 15];
    }
    for (int sub = 0; sub < 4; sub++) {
        s->scale[sub] = quant_ue4m3(b[sub]) * 0.5f;
    }
}

/* ---- K types: super-blocks of 256 ---- */

static void split_q2_k(const uint8_t *b, struct quant_split *s)
{
    float d = half(b + 80), dmin = half(b + 82);
    for (int e = 0; e < 256; e++) {
        int h = e / 128, j = (e / 32) % 4, l = e % 32;
        s->codes[e] = (int8_t)((b[16 + 32 * h + l] >> (2 * j)) & 3);
    }
    for (int g = 0; g < 16; g++) {
        s->scale[g] = d * (float)(b[g] & 15);
        s->min[g] = dmin * (float)(b[g] >> 4);
    }
}

static void split_q3_k(const uint8_t *b, struct quant_split *s)
{
    const uint8_t *scales = b + 96;
    float d = half(b + 108);
    for (int e = 0; e < 256; e++) {
        int h = e / 128, j = (e / 32) % 4, l = e % 32;
        int lo = (b[32 + 32 * h + l] >> (2 * j)) & 3, hi = (b[l] >> (4 * h + j)) & 1;
        s->codes[e] = (int8_t)(lo + 4 * hi - 4);
    }
    for (int g = 0; g < 16; g++) {
        int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
        int high = (scales[8 + g % 4] >> (2 * (g / 4))) & 3;
        s->scale[g] = d * (float)((low | high << 4) - 32);
    }
}

/* The twelve bytes of eight 6-bit scales and minimums, Q4_K and Q5_K. */
static void k_scales(const uint8_t *b, struct quant_split *s)
{
    const uint8_t *p = b + 4;
    float d = half(b), dmin = half(b + 2);
    for (int i = 0; i < 8; i++) {
        int sc = i < 4 ? p[i] & 63 : (p[i + 4] & 15) | (p[i - 4] >> 6) << 4;
        int mn = i < 4 ? p[i + 4] & 63 : (p[i + 4] >> 4) | (p[i] >> 6) << 4;
        s->scale[i] = d * (float)sc;
        s->min[i] = dmin * (float)mn;
    }
}

static void split_q4_k(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 256; e++) {
        int c = e / 64, p = (e / 32) % 2, l = e % 32;
        s->codes[e] = (int8_t)((b[16 + 32 * c + l] >> (4 * p)) & 15);
    }
    k_scales(b, s);
}

static void split_q5_k(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 256; e++) {
        int c = e / 64, p = (e / 32) % 2, l = e % 32;
        s->codes[e] = (int8_t)(((b[48 + 32 * c + l] >> (4 * p)) & 15) |
                               ((b[16 + l] >> (2 * c + p)) & 1) << 4);
    }
    k_scales(b, s);
}

static void split_q6_k(const uint8_t *b, struct quant_split *s)
{
    float d = half(b + 208);
    for (int e = 0; e < 256; e++) {
        int h = e / 128, j = (e / 32) % 4, l = e % 32;
        int lo = (b[64 * h + 32 * (j & 1) + l] >> (4 * (j >> 1))) & 15;
        int hi = (b[128 + 32 * h + l] >> (2 * j)) & 3;
        s->codes[e] = (int8_t)((lo | hi << 4) - 32);
    }
    for (int g = 0; g < 16; g++) {
        s->scale[g] = d * (float)(int8_t)b[192 + g];
    }
}

static void split_q8_k(const uint8_t *b, struct quant_split *s)
{
    float d;
    memcpy(&d, b, sizeof d);
    memcpy(s->codes, b + 4, 256);
    for (int i = 0; i < 8; i++) {
        s->scale[i] = d;
    }
}

/* ---- ternary ---- */

static int digit(unsigned byte, int n)
{
    static const unsigned power[5] = { 1, 3, 9, 27, 81 };
    return (int)((((byte * power[n]) & 255) * 3) >> 8);
}

static void split_tq1_0(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 256; e++) {
        int t;
        if (e < 160) {
            t = digit(b[e % 32], e / 32);
        } else if (e < 240) {
            t = digit(b[32 + (e - 160) % 16], (e - 160) / 16);
        } else {
            t = digit(b[48 + (e - 240) % 4], (e - 240) / 4);
        }
        s->codes[e] = (int8_t)(t - 1);
    }
    for (int i = 0; i < 8; i++) {
        s->scale[i] = half(b + 52);
    }
}

static void split_tq2_0(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 256; e++) {
        int h = e / 128, j = (e / 32) % 4, l = e % 32;
        s->codes[e] = (int8_t)(((b[32 * h + l] >> (2 * j)) & 3) - 1);
    }
    for (int i = 0; i < 8; i++) {
        s->scale[i] = half(b + 64);
    }
}

/* ---- codebooks ---- */

static void split_iq4_xs(const uint8_t *b, struct quant_split *s)
{
    float d = half(b);
    unsigned high = load16(b + 2);
    for (int e = 0; e < 256; e++) {
        int g = e / 32, r = e % 32;
        s->codes[e] = quant_iq4nl[(b[8 + 16 * g + r % 16] >> (4 * (r / 16))) & 15];
    }
    for (int g = 0; g < 8; g++) {
        int ls = ((b[4 + g / 2] >> (4 * (g % 2))) & 15) | (int)((high >> (2 * g)) & 3) << 4;
        s->scale[g] = d * (float)(ls - 32);
    }
}

/* Eight codes of an IQ2 grid row with their signs. */
static void octet_iq2(unsigned row, unsigned signs, int8_t *codes)
{
    for (int j = 0; j < 8; j++) {
        int v = quant_level_iq2((row >> (2 * j)) & 3);
        codes[j] = (int8_t)(((signs >> j) & 1) ? -v : v);
    }
}

static void split_iq2_xxs(const uint8_t *b, struct quant_split *s)
{
    float d = half(b);
    for (int g = 0; g < 8; g++) {
        const uint8_t *qs = b + 2 + 8 * g;
        uint32_t w = load32(qs + 4);
        for (int l = 0; l < 4; l++) {
            octet_iq2(quant_grid_iq2xxs[qs[l]], quant_signs((w >> (7 * l)) & 127),
                      s->codes + 32 * g + 8 * l);
        }
        s->scale[g] = d * (float)(2 * (w >> 28) + 1) / 8.0f;
    }
}

static void split_iq2_xs(const uint8_t *b, struct quant_split *s)
{
    float d = half(b);
    for (int o = 0; o < 32; o++) {
        unsigned w = load16(b + 2 + 2 * o);
        octet_iq2(quant_grid_iq2xs[w & 511], quant_signs(w >> 9), s->codes + 8 * o);
    }
    for (int g = 0; g < 16; g++) {
        s->scale[g] = d * (float)(2 * ((b[66 + g / 2] >> (4 * (g % 2))) & 15) + 1) / 8.0f;
    }
}

static void split_iq2_s(const uint8_t *b, struct quant_split *s)
{
    float d = half(b);
    for (int o = 0; o < 32; o++) {
        unsigned idx = b[2 + o] | ((b[66 + o / 4] >> (2 * (o % 4))) & 3u) << 8;
        octet_iq2(quant_grid_iq2s[idx], b[34 + o], s->codes + 8 * o);
    }
    for (int g = 0; g < 16; g++) {
        s->scale[g] = d * (float)(2 * ((b[74 + g / 2] >> (4 * (g % 2))) & 15) + 1) / 8.0f;
    }
}

static void split_iq3_xxs(const uint8_t *b, struct quant_split *s)
{
    float d = half(b);
    for (int g = 0; g < 8; g++) {
        uint32_t w = load32(b + 66 + 4 * g);
        for (int e = 0; e < 32; e++) {
            unsigned signs = quant_signs((w >> (7 * (e / 8))) & 127);
            unsigned row = quant_grid_iq3xxs[b[2 + 8 * g + e / 4]];
            int v = quant_level_iq3xxs((row >> (3 * (e % 4))) & 7);
            s->codes[32 * g + e] = (int8_t)(((signs >> (e % 8)) & 1) ? -v : v);
        }
        s->scale[g] = d * (float)(2 * (w >> 28) + 1) / 4.0f;
    }
}

static void split_iq3_s(const uint8_t *b, struct quant_split *s)
{
    float d = half(b);
    for (int e = 0; e < 256; e++) {
        int quad = e / 4, octet = e / 8;
        unsigned idx = b[2 + quad] | ((b[66 + quad / 8] >> (quad % 8)) & 1u) << 8;
        int v = (int)(2 * ((quant_grid_iq3s[idx] >> (3 * (e % 4))) & 7) + 1);
        s->codes[e] = (int8_t)(((b[74 + octet] >> (e % 8)) & 1) ? -v : v);
    }
    for (int g = 0; g < 8; g++) {
        s->scale[g] = d * (float)(2 * ((b[106 + g / 2] >> (4 * (g % 2))) & 15) + 1);
    }
}

/* Eight codes of IQ1: 8 * grid + 8 * delta with delta +-1/8; the scale is divided by 8. */
static void octet_iq1(unsigned row, bool negative, int8_t *codes)
{
    for (int j = 0; j < 8; j++) {
        int v = (int)((row >> (2 * j)) & 3) - 1;
        codes[j] = (int8_t)(8 * v + (negative ? -1 : 1));
    }
}

static void split_iq1_s(const uint8_t *b, struct quant_split *s)
{
    float d = half(b);
    for (int g = 0; g < 8; g++) {
        unsigned qh = load16(b + 34 + 2 * g);
        for (int l = 0; l < 4; l++) {
            unsigned idx = b[2 + 4 * g + l] | ((qh >> (3 * l)) & 7) << 8;
            octet_iq1(quant_grid_iq1s[idx], qh >> 15, s->codes + 32 * g + 8 * l);
        }
        s->scale[g] = d * (float)(2 * ((qh >> 12) & 7) + 1) / 8.0f;
    }
}

static uint16_t iq1_m_scale(const uint8_t *b)
{
    unsigned bits = 0;
    for (int i = 0; i < 4; i++) {
        bits |= (unsigned)(load16(b + 48 + 2 * i) >> 12) << (4 * i);
    }
    return (uint16_t)bits;
}

static void split_iq1_m(const uint8_t *b, struct quant_split *s)
{
    float d = dtype_f32_of_f16(iq1_m_scale(b));
    for (int o = 0; o < 32; o++) {
        unsigned n = (b[32 + o / 2] >> (4 * (o % 2))) & 15u;
        octet_iq1(quant_grid_iq1s[b[o] | (n & 7) << 8], n >> 3, s->codes + 8 * o);
    }
    for (int g = 0; g < 16; g++) {
        unsigned c = load16(b + 48 + 2 * (g / 4));
        s->scale[g] = d * (float)(2 * ((c >> (3 * (g % 4))) & 7) + 1) / 8.0f;
    }
}

/* ---- linear types of one and two bits: consecutive elements in consecutive bits ---- */

static void split_q1_0(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 128; e++) {
        s->codes[e] = ((b[2 + e / 8] >> (e % 8)) & 1) ? 1 : -1;
    }
    for (int i = 0; i < 4; i++) {
        s->scale[i] = half(b);
    }
}

static void split_q2_0(const uint8_t *b, struct quant_split *s)
{
    for (int e = 0; e < 64; e++) {
        s->codes[e] = (int8_t)(((b[2 + e / 4] >> (2 * (e % 4))) & 3) - 1);
    }
    s->scale[0] = s->scale[1] = half(b);
}

/* ---- the table ---- */

static const struct row {
    struct quant_info info;
    void (*split)(const uint8_t *block, struct quant_split *split);
    uint8_t half_off[2]; /* f16 scale fields, for validation: offset + 1, 0 when there is none */
} table[DTYPE_N] = {
    [DTYPE_Q4_0] = { { 32, false, 8, true }, split_q4_0, { 1 } },
    [DTYPE_Q4_1] = { { 32, true, 0, true }, split_q4_1, { 1, 3 } },
    [DTYPE_Q5_0] = { { 32, false, 16, true }, split_q5_0, { 1 } },
    [DTYPE_Q5_1] = { { 32, true, 0, true }, split_q5_1, { 1, 3 } },
    [DTYPE_Q8_0] = { { 32, false, 128, false }, split_q8_0, { 1 } },
    [DTYPE_Q8_1] = { { 32, false, 128, false }, split_q8_1, { 1, 3 } },
    [DTYPE_Q2_K] = { { 16, true, 0, true }, split_q2_k, { 81, 83 } },
    [DTYPE_Q3_K] = { { 16, false, 4, true }, split_q3_k, { 109 } },
    [DTYPE_Q4_K] = { { 32, true, 0, true }, split_q4_k, { 1, 3 } },
    [DTYPE_Q5_K] = { { 32, true, 0, true }, split_q5_k, { 1, 3 } },
    [DTYPE_Q6_K] = { { 16, false, 32, true }, split_q6_k, { 209 } },
    [DTYPE_Q8_K] = { { 32, false, 128, false }, split_q8_k, { 0 } },
    [DTYPE_IQ2_XXS] = { { 32, false, 64, true }, split_iq2_xxs, { 1 } },
    [DTYPE_IQ2_XS] = { { 16, false, 64, true }, split_iq2_xs, { 1 } },
    [DTYPE_IQ3_XXS] = { { 32, false, 64, true }, split_iq3_xxs, { 1 } },
    [DTYPE_IQ1_S] = { { 32, false, 64, true }, split_iq1_s, { 1 } },
    [DTYPE_IQ4_NL] = { { 32, false, 128, false }, split_iq4_nl, { 1 } },
    [DTYPE_IQ3_S] = { { 32, false, 64, true }, split_iq3_s, { 1 } },
    [DTYPE_IQ2_S] = { { 16, false, 64, true }, split_iq2_s, { 1 } },
    [DTYPE_IQ4_XS] = { { 32, false, 128, false }, split_iq4_xs, { 1 } },
    [DTYPE_IQ1_M] = { { 16, false, 64, true }, split_iq1_m, { 0 } },
    [DTYPE_TQ1_0] = { { 32, false, 1, true }, split_tq1_0, { 53 } },
    [DTYPE_TQ2_0] = { { 32, false, 1, true }, split_tq2_0, { 65 } },
    [DTYPE_MXFP4] = { { 32, false, 64, true }, split_mxfp4, { 0 } },
    [DTYPE_NVFP4] = { { 16, false, 64, true }, split_nvfp4, { 0 } },
    [DTYPE_Q1_0] = { { 32, false, 1, true }, split_q1_0, { 1 } },
    [DTYPE_Q2_0] = { { 32, false, 1, true }, split_q2_0, { 1 } },
};

const struct quant_info *quant_info(enum dtype dtype)
{
    assert(dtype_find((uint32_t)dtype));
    return &table[dtype].info;
}

void quant_split(enum dtype dtype, const void *block, struct quant_split *split)
{
    assert(table[dtype].split);
    if (!table[dtype].info.has_min) {
        memset(split->min, 0, sizeof split->min);
    }
    table[dtype].split(block, split);
}

/* One plain value; i is its index. */
static float plain(enum dtype dtype, const uint8_t *p, uint64_t i)
{
    switch (dtype) {
    case DTYPE_F16:
        return half(p + 2 * i);
    case DTYPE_BF16:
        return quant_f32_of_bf16(load16(p + 2 * i));
    case DTYPE_I8:
        return (float)(int8_t)p[i];
    case DTYPE_I16:
        return (float)(int16_t)load16(p + 2 * i);
    case DTYPE_I32:
        return (float)(int32_t)load32(p + 4 * i);
    case DTYPE_I64: {
        int64_t v;
        memcpy(&v, p + 8 * i, sizeof v);
        return (float)v;
    }
    case DTYPE_F64: {
        double v;
        memcpy(&v, p + 8 * i, sizeof v);
        return (float)v;
    }
    default:
        assert(!"quant: a type without a decoder");
        return 0;
    }
}

void quant_dequantise(enum dtype dtype, const void *blocks, uint64_t n_values, float *out)
{
    const struct dtype_info *info = dtype_get(dtype);
    const struct row *row = &table[dtype];
    const uint8_t *p = blocks;
    assert(n_values % info->block_values == 0);
    if (dtype == DTYPE_F32) {
        memcpy(out, blocks, n_values * sizeof *out);
        return;
    }
    if (!row->split) {
        for (uint64_t i = 0; i < n_values; i++) {
            out[i] = plain(dtype, p, i);
        }
        return;
    }
    struct quant_split split;
    for (uint64_t i = 0; i < n_values; i += info->block_values, p += info->block_bytes) {
        quant_split(dtype, p, &split);
        for (int e = 0; e < info->block_values; e++) {
            int sub = e / row->info.sub;
            out[i + (uint64_t)e] = split.scale[sub] * (float)split.codes[e] - split.min[sub];
        }
    }
}

/* ---- encoders ---- */

static void encode_q8_0(const float *x, uint8_t *b)
{
    float amax = 0;
    for (int i = 0; i < 32; i++) {
        amax = fmaxf(amax, fabsf(x[i]));
    }
    /* A sum that overflowed must not become an undefined conversion; the cache then holds NaN, as it should. */
    bool ok = isfinite(amax);
    float d = amax / 127.0f, inv = ok && d != 0 ? 1.0f / d : 0;
    uint16_t bits = dtype_f16_of_f32(d);
    memcpy(b, &bits, sizeof bits);
    for (int i = 0; i < 32; i++) {
        float v = roundf(x[i] * inv);
        b[2 + i] = (uint8_t)(int8_t)(v >= -127.0f && v <= 127.0f ? v : 0);
    }
}

static void encode_q4_0(const float *x, uint8_t *b)
{
    float m = 0;
    for (int i = 0; i < 32; i++) {
        if (fabsf(x[i]) > fabsf(m)) {
            m = x[i];
        }
    }
    float d = m / -8.0f, inv = isfinite(m) && d != 0 ? 1.0f / d : 0;
    uint16_t bits = dtype_f16_of_f32(d);
    memcpy(b, &bits, sizeof bits);
    memset(b + 2, 0, 16);
    for (int i = 0; i < 32; i++) {
        float v = x[i] * inv + 8.5f;
        unsigned code = v >= 0 && v < 16.0f ? (unsigned)v : v >= 16.0f ? 15u : 0u;
        b[2 + i % 16] = (uint8_t)(b[2 + i % 16] | code << (4 * (i / 16)));
    }
}

bool quant_can_encode(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16 || dtype == DTYPE_Q8_0 ||
           dtype == DTYPE_Q4_0;
}

int quant_encode(enum dtype dtype, const float *x, uint64_t n_values, void *blocks, struct err *err)
{
    uint8_t *p = blocks;
    if (!quant_can_encode(dtype)) {
        return err_set(err, ERR_UNSUPPORTED, "nothing here encodes %s", dtype_get(dtype)->name);
    }
    assert(n_values % dtype_get(dtype)->block_values == 0);
    if (dtype == DTYPE_F32) {
        memcpy(p, x, n_values * sizeof *x);
    } else if (dtype == DTYPE_F16 || dtype == DTYPE_BF16) {
        for (uint64_t i = 0; i < n_values; i++) {
            uint16_t bits = dtype == DTYPE_F16 ? dtype_f16_of_f32(x[i]) : quant_bf16_of_f32(x[i]);
            memcpy(p + 2 * i, &bits, sizeof bits);
        }
    } else {
        for (uint64_t i = 0; i < n_values; i += 32) {
            if (dtype == DTYPE_Q8_0) {
                encode_q8_0(x + i, p + i / 32 * 34);
            } else {
                encode_q4_0(x + i, p + i / 32 * 18);
            }
        }
    }
    return 0;
}

/* ---- validation ---- */

static bool half_finite(uint16_t bits)
{
    return (bits & 0x7c00) != 0x7c00;
}

static bool block_finite(enum dtype dtype, const uint8_t *b)
{
    uint64_t wide;
    switch (dtype) {
    case DTYPE_F32:
    case DTYPE_Q8_K:
        return (load32(b) & 0x7f800000u) != 0x7f800000u;
    case DTYPE_F64:
        memcpy(&wide, b, sizeof wide);
        return (wide & 0x7ff0000000000000u) != 0x7ff0000000000000u;
    case DTYPE_F16:
        return half_finite(load16(b));
    case DTYPE_BF16:
        return (load16(b) & 0x7f80) != 0x7f80;
    case DTYPE_IQ1_M:
        return half_finite(iq1_m_scale(b));
    case DTYPE_MXFP4:
        return b[0] != 255;
    default:
        for (int i = 0; i < 2; i++) {
            unsigned off = table[dtype].half_off[i];
            if (off && !half_finite(load16(b + off - 1))) {
                return false;
            }
        }
        return true;
    }
}

int quant_validate(enum dtype dtype, const void *blocks, uint64_t n_values, struct err *err)
{
    const struct dtype_info *info = dtype_get(dtype);
    const uint8_t *b = blocks;
    for (uint64_t i = 0; i < n_values / info->block_values; i++, b += info->block_bytes) {
        if (!block_finite(dtype, b)) {
            return err_set(err, ERR_BAD_FILE,
                           "block %" PRIu64 " of %s has a scale that is not finite", i, info->name);
        }
    }
    return 0;
}
