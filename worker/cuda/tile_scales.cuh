/* The scales and minima of a tile (tiles.cuh) as a lane needs them, and with its codes the values that the file's format means. */
#pragma once

#include "worker/cuda/tile_codes.cuh"

/* Of rows g and g + 8, values 0..15 and 16..31; the second and the minimums only where the format has them. */
struct tile_scales {
    float scale[2][2], nmin[2][2];
};

static __device__ __forceinline__ float ue4m3(uint32_t x)
{
    uint32_t exponent = (x >> 3) & 15, mantissa = x & 7;
    if ((x & 0x7f) == 0x7f) {
        return 0.0f;
    }
    return exponent == 0 ? (float)mantissa * 0x1p-9f
                         : float_of_bits((exponent + 120) << 23 | mantissa << 20);
}

/* What stands for the scales of IQ types: (2 s + 1) parts of d. */
template <enum dtype T> static __device__ __forceinline__ float odd_scale(float d, uint32_t s)
{
    constexpr float part = T == DTYPE_IQ3_S ? 1.0f : T == DTYPE_IQ3_XXS ? 4.0f : 8.0f;
    return d * (float)(2 * s + 1) / part;
}

template <enum dtype T>
static __device__ __forceinline__ void tile_scales_of(const uint8_t *round, uint32_t g, uint32_t i,
                                                      struct tile_scales *s)
{
    constexpr enum tile_meta form = format<T>::form;
    constexpr float part = 1.0f / (float)format<T>::times;
    const uint8_t *m = round + meta_at<T>(g, 0);
    if constexpr (form == META_HALVES || form == META_HALVES_MIN || form == META_HALF_2 ||
                  form == META_HALF_ALL) {
        constexpr uint32_t per = form == META_HALF_ALL ? format<T>::tiles
                                 : form == META_HALF_2 ? 2
                                                       : 1;
        uint32_t w = get32(m + i / per * 4);
        s->scale[0][0] = low_half(w) * part;
        s->scale[1][0] = high_half(w) * part;
        if constexpr (form == META_HALVES_MIN) {
            w = get32(m + 16 + 4 * i);
            s->nmin[0][0] = low_half(w);
            s->nmin[1][0] = high_half(w);
        }
    } else if constexpr (form == META_E8M0) {
        uint32_t w = get16(m + 2 * i);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            /* Half of 2^(e - 127): the codes are doubled. The first two are subnormal. */
            uint32_t e = (w >> (8 * r)) & 255;
            s->scale[r][0] = float_of_bits(e >= 2 ? (e - 1) << 23 : 0x00200000u << e);
        }
    } else if constexpr (form == META_UE4M3) {
        uint32_t w = get32(m + 4 * i);
#pragma unroll
        for (int b = 0; b < 4; b++) {
            s->scale[b / 2][b % 2] = ue4m3((w >> (8 * b)) & 255) * 0.5f;
        }
    } else if constexpr (form == META_K2) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t d = get32(m + 20 * r + 16), w = get16(m + 20 * r + 2 * i);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                s->scale[r][h] = low_half(d) * (float)((w >> (8 * h)) & 15);
                s->nmin[r][h] = -(high_half(d) * (float)((w >> (8 * h + 4)) & 15));
            }
        }
    } else if constexpr (form == META_K45) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t d = get32(m + 16 * r + 12), at = 12 * i, w = at / 32, off = at % 32;
            uint32_t bits = get32(m + 16 * r + 4 * w) >> off;
            if (off > 20) {
                bits |= get32(m + 16 * r + 4 * w + 4) << (32 - off);
            }
            s->scale[r][0] = low_half(d) * (float)(bits & 63);
            s->nmin[r][0] = -(high_half(d) * (float)((bits >> 6) & 63));
        }
    } else if constexpr (form == META_BYTES) {
        uint32_t d = get32(m + 32);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t w = get16(m + 16 * r + 2 * i);
            float own = r == 0 ? low_half(d) : high_half(d);
            s->scale[r][0] = own * (float)(int8_t)(w & 255) * part;
            s->scale[r][1] = own * (float)(int8_t)(w >> 8) * part;
        }
    } else if constexpr (form == META_SIX) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t w0 = get32(m + 8 * r), w1 = get32(m + 8 * r + 4), at = 6 * i;
            uint32_t bits = at >= 32 ? w1 >> (at - 32) : w0 >> at;
            if (at > 26 && at < 32) {
                bits |= w1 << (32 - at);
            }
            s->scale[r][0] = high_half(w1) * (float)((int)(bits & 63) - 32);
        }
    } else if constexpr (form == META_NIBBLES) {
        uint32_t d = get32(m + 8);
        s->scale[0][0] = odd_scale<T>(low_half(d), (get32(m) >> (4 * i)) & 15);
        s->scale[1][0] = odd_scale<T>(high_half(d), (get32(m + 4) >> (4 * i)) & 15);
    } else {
        uint32_t d = get32(m + 16);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t w = get32(m + 8 * r + i / 4 * 4) >> (8 * (i % 4));
            float own = r == 0 ? low_half(d) : high_half(d);
            s->scale[r][0] = odd_scale<T>(own, w & 15);
            s->scale[r][1] = odd_scale<T>(own, (w >> 4) & 15);
        }
    }
}

/* Values 8 t .. 8 t + 7 of rows g and g + 8 of a tile, as the file's format means them: what lane 4 g + t holds. */
template <enum dtype T>
static __device__ __forceinline__ void tile_values(const uint8_t *round, uint32_t g, uint32_t t,
                                                   uint32_t i, const struct lane_book *book,
                                                   float v[2][8])
{
    constexpr bool sub16 = format<T>::sub16, has_min = format<T>::has_min;
    uint32_t codes[4];
    struct tile_scales s;
    tile_codes<T>(round, 4 * g + t, i, book, codes);
    tile_scales_of<T>(round, g, i, &s);
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        float scale = sub16 && t >= 2 ? s.scale[r][1] : s.scale[r][0], nmin = 0.0f;
        if constexpr (has_min) {
            nmin = sub16 && t >= 2 ? s.nmin[r][1] : s.nmin[r][0];
        }
#pragma unroll
        for (uint32_t e = 0; e < 8; e++) {
            v[r][e] = scale * (float)(int8_t)(codes[e / 4 * 2 + r] >> (8 * (e % 4))) + nmin;
        }
    }
}
