/* How a lane unpacks the codes of a tile (tiles.cuh): planes of bits, tables of 16, codebooks in shared memory. */
#pragma once

#include "worker/cuda/tiles.cuh"

/* Entries of a table of 16 by the low four nibbles of `n`. */
static __device__ __forceinline__ uint32_t lut16(uint32_t n, const uint32_t table[4])
{
    uint32_t at = n & 0x7777u, pick = 0x3210u | ((n >> 1) & 0x4444u);
    return ptx_prmt(ptx_prmt(table[0], table[1], at), ptx_prmt(table[2], table[3], at), pick);
}

template <enum dtype T>
static __device__ __forceinline__ void look_up16(uint32_t nibbles, uint32_t *low, uint32_t *high)
{
    /* IQ4: -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113. FP4: doubled values. */
    constexpr bool fp4 = T == DTYPE_MXFP4 || T == DTYPE_NVFP4;
    const uint32_t table[4] = { fp4 ? 0x03020100u : 0xbfad9881u, fp4 ? 0x0c080604u : 0xf6eaddcfu,
                                fp4 ? 0xfdfeff00u : 0x26190d01u, fp4 ? 0xf4f8fafcu : 0x71594535u };
    *low = lut16(nibbles, table);
    *high = lut16(nibbles >> 16, table);
}

/* 0xff in each byte whose sign is set: bit 7 - s of the bytes of w. */
static __device__ __forceinline__ uint32_t sign_mask(uint32_t w, uint32_t s)
{
    return ptx_prmt(w << s, 0, 0xba98);
}

/* Negates bytes of 1 .. 127 where the mask is 0xff; no carry leaves a byte. */
static __device__ __forceinline__ uint32_t negate(uint32_t v, uint32_t mask)
{
    return (v ^ mask) + (mask & 0x01010101u);
}

/* A plane of 1 or 2 bits: the word that holds those of tile i, and where in each byte those of a[q] stand. */
template <enum dtype T, uint32_t PLANE, uint32_t BITS>
static __device__ __forceinline__ uint32_t plane_word(const uint8_t *round, uint32_t lane,
                                                      uint32_t i)
{
    return get32(round + body_at<T, PLANE>(lane, BITS == 2 ? 4 * i : i / 2 * 4));
}

template <uint32_t BITS>
static __host__ __device__ __forceinline__ uint32_t plane_shift(uint32_t i, uint32_t q)
{
    return BITS == 2 ? 2 * q : 4 * (i % 2) + q;
}

/* Where in the tables a type's codebook is, and how far it is copied: `copies` side by side, so that lanes of a
 * warp meet fewer others in their bank. */
struct codebook {
    uint32_t words, entry, copies; /* of the table; of an entry */
};

template <enum dtype T> static __host__ __device__ constexpr struct codebook codebook_of()
{
    return T == DTYPE_IQ3_S              ? codebook{ 512, 1, 8 }
           : T == DTYPE_IQ3_XXS          ? codebook{ 256, 1, 8 }
           : T == DTYPE_IQ2_XXS          ? codebook{ 512, 2, 4 }
           : T == DTYPE_IQ2_XS           ? codebook{ 1024, 2, 2 }
           : T == DTYPE_IQ2_S            ? codebook{ 2048, 2, 1 }
           : format<T>::kind == TILE_IQ1 ? codebook{ 4096, 2, 1 }
                                         : codebook{ 0, 0, 0 };
}

template <enum dtype T>
static __device__ __forceinline__ const uint32_t *codebook_source(const struct tile_tables *t)
{
    return T == DTYPE_IQ3_S     ? t->iq3s
           : T == DTYPE_IQ3_XXS ? t->iq3xxs
           : T == DTYPE_IQ2_XXS ? t->iq2xxs
           : T == DTYPE_IQ2_XS  ? t->iq2xs
           : T == DTYPE_IQ2_S   ? t->iq2s
                                : t->iq1s;
}

/* A lane's codebook: entry e at word (e * copies + copy) * entry. */
struct lane_book {
    const uint32_t *words;
    uint32_t copies, copy;
};

static __device__ __forceinline__ uint32_t quad(const struct lane_book *b, uint32_t e)
{
    return b->words[e * b->copies + b->copy];
}

static __device__ __forceinline__ uint2 octet(const struct lane_book *b, uint32_t e)
{
    return get64((const uint8_t *)(b->words + 2 * (e * b->copies + b->copy)));
}

template <enum dtype T>
static __device__ __forceinline__ void iq2_codes(const uint8_t *round, uint32_t lane, uint32_t i,
                                                 const struct lane_book *book, uint32_t a[4])
{
    uint32_t index = get16(round + body_at<T, 0>(lane, 2 * i));
    uint32_t signs = get32(round + body_at<T, 16>(lane, i / 2 * 4)), s = 4 * (i % 2);
    uint32_t e0 = index & 255, e1 = index >> 8;
    if (format<T>::extra) {
        uint32_t high = get32(round + body_at<T, 32>(lane, 0)) >> (4 * i);
        e0 |= (high & 3) << 8;
        e1 |= (high & 12) << 6;
    }
    uint2 top = octet(book, e0), bottom = octet(book, e1);
    a[0] = negate(top.x, sign_mask(signs, s));
    a[1] = negate(bottom.x, sign_mask(signs, s + 1));
    a[2] = negate(top.y, sign_mask(signs, s + 2));
    a[3] = negate(bottom.y, sign_mask(signs, s + 3));
}

template <enum dtype T>
static __device__ __forceinline__ void iq3_codes(const uint8_t *round, uint32_t lane, uint32_t i,
                                                 const struct lane_book *book, uint32_t a[4])
{
    uint32_t index = get32(round + body_at<T, 0>(lane, 4 * i));
    uint32_t signs = get32(round + body_at<T, 32>(lane, i / 2 * 4)), s = 4 * (i % 2), high = 0;
    if (format<T>::extra) {
        high = get32(round + body_at<T, 48>(lane, 0)) >> (4 * i);
    }
#pragma unroll
    for (uint32_t q = 0; q < 4; q++) {
        uint32_t e = (index >> (8 * q)) & 255;
        if (format<T>::extra) {
            e |= (high << (8 - q)) & 256;
        }
        a[q] = negate(quad(book, e), sign_mask(signs, s + q));
    }
}

/* 8 * level, plus or minus one: no byte of a row is odd, so the offset never carries but through -8 + 1 and 0 - 1. */
static __device__ __forceinline__ uint32_t offset4(uint32_t v, uint32_t negative)
{
    uint32_t delta = negative ? 0xffffffffu : 0x01010101u;
    return ((v & 0x7f7f7f7fu) + (delta & 0x7f7f7f7fu)) ^ ((v ^ delta) & 0x80808080u);
}

template <enum dtype T>
static __device__ __forceinline__ void iq1_codes(const uint8_t *round, uint32_t lane, uint32_t i,
                                                 const struct lane_book *book, uint32_t a[4])
{
    uint32_t index = get16(round + body_at<T, 0>(lane, 2 * i));
    uint32_t high = get8(round + body_at<T, 16>(lane, i));
    uint2 top = octet(book, (index & 255) | (high & 7) << 8);
    uint2 bottom = octet(book, index >> 8 | ((high >> 4) & 7) << 8);
    a[0] = offset4(top.x, high & 8);
    a[1] = offset4(bottom.x, high & 128);
    a[2] = offset4(top.y, high & 8);
    a[3] = offset4(bottom.y, high & 128);
}

/* Tile i of the round at `round` (shared or global memory): the lane's 16 codes, a[0] values 0..3 of row g, a[1] of row
 * g + 8, a[2] and a[3] values 4..7: the fragment of ptx_mma_k32. */
template <enum dtype T>
static __device__ __forceinline__ void tile_codes(const uint8_t *round, uint32_t lane, uint32_t i,
                                                  [[maybe_unused]] const struct lane_book *book,
                                                  uint32_t a[4])
{
    constexpr enum tile_kind kind = format<T>::kind;
    constexpr uint32_t extra = format<T>::extra;
    if constexpr (kind == TILE_BYTES) {
        uint4 v = get128(round + body_at<T, 0>(lane, 16 * i));
        a[0] = v.x;
        a[1] = v.y;
        a[2] = v.z;
        a[3] = v.w;
    } else if constexpr (kind == TILE_LUT) {
        uint2 v = get64(round + body_at<T, 0>(lane, 8 * i));
        look_up16<T>(v.x, &a[0], &a[2]);
        look_up16<T>(v.y, &a[1], &a[3]);
    } else if constexpr (kind == TILE_NIBBLES) {
        constexpr uint32_t mask = format<T>::is_signed ? 0xf0f0f0f0u : 0x0f0f0f0fu;
        uint2 v = get64(round + body_at<T, 0>(lane, 8 * i));
        a[0] = (format<T>::is_signed ? v.x << 4 : v.x) & mask;
        a[1] = (format<T>::is_signed ? v.y << 4 : v.y) & mask;
        a[2] = (format<T>::is_signed ? v.x : v.x >> 4) & mask;
        a[3] = (format<T>::is_signed ? v.y : v.y >> 4) & mask;
        if constexpr (extra > 0) {
            constexpr uint32_t off = 8 * format<T>::tiles;
            constexpr uint32_t to = format<T>::is_signed ? 4 - extra : 4;
            constexpr uint32_t bits = ((1u << extra) - 1) * 0x01010101u << to;
            uint32_t w = plane_word<T, off, extra>(round, lane, i);
#pragma unroll
            for (uint32_t q = 0; q < 4; q++) {
                uint32_t s = plane_shift<extra>(i, q);
                a[q] |= (s < to ? w << (to - s) : w >> (s - to)) & bits;
            }
        }
    } else if constexpr (kind == TILE_PAIRS) {
        constexpr int to = format<T>::is_signed ? 6 : 0;
        uint32_t w = get32(round + body_at<T, 0>(lane, 4 * i));
#pragma unroll
        for (int q = 0; q < 4; q++) {
            a[q] = (to > 2 * q ? w << (to - 2 * q) : w >> (2 * q - to)) & (0x03030303u << to);
        }
        if constexpr (extra > 0) {
            uint32_t high = plane_word<T, 4 * format<T>::tiles, 1>(round, lane, i);
#pragma unroll
            for (uint32_t q = 0; q < 4; q++) {
                uint32_t s = plane_shift<1>(i, q);
                a[q] |= (s < 5 ? high << (5 - s) : high >> (s - 5)) & 0x20202020u;
            }
        }
    } else if constexpr (kind == TILE_SIGNS) {
        uint32_t w = get32(round + body_at<T, 0>(lane, i / 2 * 4));
#pragma unroll
        for (uint32_t q = 0; q < 4; q++) {
            a[q] = sign_mask(w, 4 * (i % 2) + q) | 0x01010101u;
        }
    } else if constexpr (kind == TILE_IQ2) {
        iq2_codes<T>(round, lane, i, book, a);
    } else if constexpr (kind == TILE_IQ3) {
        iq3_codes<T>(round, lane, i, book, a);
    } else {
        iq1_codes<T>(round, lane, i, book, a);
    }
}
