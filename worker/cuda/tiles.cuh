/* How quantised weights stand on the device, and how a lane reads them. relay.cu writes this layout from the file's.
 *
 * A tile is 16 rows by 32 values: the left operand of one m16n8k32. Lane 4 g + t of a warp holds values 8 t .. 8 t + 7 of
 * rows g and g + 8 (the order of k inside a tile is free, columns stand in the same). A round is 4 tiles of types
 * with small blocks, 8 of the others; a group of 16 rows is one run of rounds, so a warp that multiplies it reads
 * memory from one end to the other. In a round:
 *
 *   bodies  for each lane `body` bytes, cut in pieces of 16 (a rest of 8 or 4): piece after piece, lane after lane
 *   metas   for each g `meta` bytes: scales of rows g and g + 8
 *
 * Rows are padded to 16 and k to whole rounds with zeros. Codes are planes of 8, 4, 2 and 1 bits. Signed ones hold two's
 * complement and are unpacked into the top of a byte: the product is `times` too large and the scale that much
 * smaller, both powers of two. Codebook types hold indexes and signs. */
#pragma once

#include "worker/cuda/check.cuh"
#include "worker/cuda/ptx.cuh"

#define GROUP_ROWS 16

enum tile_kind {
    TILE_BYTES,
    TILE_NIBBLES, /* four bits, and `extra` more in a plane behind */
    TILE_PAIRS,   /* two bits, and `extra` more */
    TILE_LUT,     /* nibbles that index a table of 16 */
    TILE_SIGNS,   /* one bit: 1 or -1 */
    TILE_IQ1,     /* octets: index and sign of the offset */
    TILE_IQ2,     /* octets: index and signs; `extra` bits of the index in a plane behind */
    TILE_IQ3,     /* quads */
};

enum tile_meta {
    META_HALVES, /* f16 a tile */
    META_HALVES_MIN,
    META_HALF_2,   /* f16 for two tiles */
    META_HALF_ALL, /* f16 for the round */
    META_E8M0,
    META_UE4M3,     /* a byte for 16 values */
    META_K2,        /* Q2_K */
    META_K45,       /* Q4_K, Q5_K: 12 bits a tile, then two f16 */
    META_BYTES,     /* a signed byte for 16 values, then f16 */
    META_SIX,       /* six bits a tile, then f16 */
    META_NIBBLES,   /* four bits a tile, f16 */
    META_NIBBLES_2, /* four bits for 16 values, f16 */
};

/* type, values and bytes of the file's block, tiles of a round, kind, extra bits, signed, times, bytes of a body,
 * form and bytes of a meta, two scales a tile, minimums */
#define TILE_TYPES_SMALL(X)                                                                        \
    X(Q4_0, 32, 18, 4, TILE_NIBBLES, 0, true, 16, 32, META_HALVES, 16, false, false)               \
    X(Q4_1, 32, 20, 4, TILE_NIBBLES, 0, false, 1, 32, META_HALVES_MIN, 32, false, true)            \
    X(Q5_0, 32, 22, 4, TILE_NIBBLES, 1, true, 8, 40, META_HALVES, 16, false, false)                \
    X(Q5_1, 32, 24, 4, TILE_NIBBLES, 1, false, 1, 40, META_HALVES_MIN, 32, false, true)            \
    X(Q8_0, 32, 34, 4, TILE_BYTES, 0, true, 1, 64, META_HALVES, 16, false, false)                  \
    X(IQ4_NL, 32, 18, 4, TILE_LUT, 0, true, 1, 32, META_HALVES, 16, false, false)                  \
    X(MXFP4, 32, 17, 4, TILE_LUT, 0, true, 1, 32, META_E8M0, 8, false, false)                      \
    X(NVFP4, 64, 36, 4, TILE_LUT, 0, true, 1, 32, META_UE4M3, 16, true, false)                     \
    X(Q1_0, 128, 18, 4, TILE_SIGNS, 0, true, 1, 8, META_HALF_ALL, 4, false, false)                 \
    X(Q2_0, 64, 18, 4, TILE_PAIRS, 0, true, -64, 16, META_HALF_2, 8, false, false)
#define TILE_TYPES_K(X)                                                                            \
    X(Q2_K, 256, 84, 8, TILE_PAIRS, 0, false, 1, 32, META_K2, 40, true, true)                      \
    X(Q3_K, 256, 110, 8, TILE_PAIRS, 1, true, 32, 48, META_BYTES, 36, true, false)                 \
    X(Q4_K, 256, 144, 8, TILE_NIBBLES, 0, false, 1, 64, META_K45, 32, false, true)                 \
    X(Q5_K, 256, 176, 8, TILE_NIBBLES, 1, false, 1, 80, META_K45, 32, false, true)                 \
    X(Q6_K, 256, 210, 8, TILE_NIBBLES, 2, true, 4, 96, META_BYTES, 36, true, false)                \
    X(IQ4_XS, 256, 136, 8, TILE_LUT, 0, true, 1, 64, META_SIX, 16, false, false)                   \
    X(TQ1_0, 256, 54, 8, TILE_PAIRS, 0, true, -64, 32, META_HALF_ALL, 4, false, false)             \
    X(TQ2_0, 256, 66, 8, TILE_PAIRS, 0, true, -64, 32, META_HALF_ALL, 4, false, false)
#define TILE_TYPES_IQ(X)                                                                           \
    X(IQ2_XXS, 256, 66, 8, TILE_IQ2, 0, true, 1, 32, META_NIBBLES, 12, false, false)               \
    X(IQ2_XS, 256, 74, 8, TILE_IQ2, 2, true, 1, 36, META_NIBBLES_2, 20, true, false)               \
    X(IQ2_S, 256, 82, 8, TILE_IQ2, 2, true, 1, 36, META_NIBBLES_2, 20, true, false)                \
    X(IQ3_XXS, 256, 98, 8, TILE_IQ3, 0, true, 1, 48, META_NIBBLES, 12, false, false)               \
    X(IQ3_S, 256, 110, 8, TILE_IQ3, 1, true, 1, 52, META_NIBBLES, 12, false, false)                \
    X(IQ1_S, 256, 50, 8, TILE_IQ1, 0, true, 1, 24, META_NIBBLES, 12, false, false)                 \
    X(IQ1_M, 256, 56, 8, TILE_IQ1, 0, true, 1, 24, META_NIBBLES_2, 20, true, false)
#define TILE_TYPES(X) TILE_TYPES_SMALL(X) TILE_TYPES_K(X) TILE_TYPES_IQ(X)

template <enum dtype T> struct format;
#define FORMAT(type, n_values, n_bytes, n_tiles, k, n_extra, s, by, n_body, m, n_meta, two, mins)  \
    template <> struct format<DTYPE_##type> {                                                      \
        static constexpr uint32_t values = n_values, block = n_bytes, tiles = n_tiles;             \
        static constexpr uint32_t extra = n_extra, body = n_body, meta = n_meta;                   \
        static constexpr uint32_t round = WARP * n_body + 8 * n_meta;                              \
        static constexpr enum tile_kind kind = k;                                                  \
        static constexpr enum tile_meta form = m;                                                  \
        static constexpr bool is_signed = s, sub16 = two, has_min = mins;                          \
        static constexpr int times = by;                                                           \
    };
TILE_TYPES(FORMAT)
#undef FORMAT

/* Codebooks expanded to bytes: magnitudes for IQ2 and IQ3, 8 * level for IQ1. Global memory; products copy what they
 * use to shared memory. */
struct tile_tables {
    uint32_t iq3xxs[256], iq3s[512];
    uint32_t iq2xxs[512], iq2xs[1024], iq2s[2048], iq1s[4096]; /* two words an octet */
};

/* ---- places ---- */

/* Byte `off` of the plane that begins at byte PLANE of a lane's body; a plane lies in whole pieces or in the rest. */
template <enum dtype T, uint32_t PLANE>
static __host__ __device__ __forceinline__ uint32_t body_at(uint32_t lane, uint32_t off)
{
    constexpr uint32_t whole = format<T>::body / 16 * 16, rest = format<T>::body % 16;
    if constexpr (PLANE < whole) {
        off += PLANE;
        return off / 16 * (16 * WARP) + lane * 16 + off % 16;
    }
    return whole * WARP + lane * rest + (PLANE - whole) + off;
}

template <enum dtype T>
static __host__ __device__ __forceinline__ uint32_t meta_at(uint32_t g, uint32_t off)
{
    return WARP * format<T>::body + g * format<T>::meta + off;
}

static __device__ __forceinline__ uint32_t get8(const uint8_t *p)
{
    return *p;
}

static __device__ __forceinline__ uint32_t get16(const uint8_t *p)
{
    ptx_aligned(p, 2);
    return *(const uint16_t *)(const void *)p;
}

static __device__ __forceinline__ uint32_t get32(const uint8_t *p)
{
    ptx_aligned(p, 4);
    return *(const uint32_t *)(const void *)p;
}

static __device__ __forceinline__ uint2 get64(const uint8_t *p)
{
    ptx_aligned(p, 8);
    return *(const uint2 *)(const void *)p;
}

static __device__ __forceinline__ uint4 get128(const uint8_t *p)
{
    ptx_aligned(p, 16);
    return *(const uint4 *)(const void *)p;
}

static __device__ __forceinline__ float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* ---- codes ---- */

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

/* ---- scales ---- */

/* Of rows g and g + 8, values 0..15 and 16..31; the second and the minimums only where the format has them. */
struct tile_scales {
    float scale[2][2], nmin[2][2];
};

static __device__ __forceinline__ float low_half(uint32_t w)
{
    return ptx_f32_of_f16(w & 0xffffu);
}

static __device__ __forceinline__ float high_half(uint32_t w)
{
    return ptx_f32_of_f16(w >> 16);
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

/* ---- matrices ---- */

/* A matrix as kernels see it. */
struct device_matrix {
    const uint8_t *data;
    uint64_t row_bytes,
        expert_bytes; /* row_bytes: of a group of 16 rows where rows are quantised */
    uint32_t k, m, n_experts;
};

static inline struct device_matrix device_matrix_of(const struct matrix *w)
{
    struct device_matrix d = { w->data, w->row_bytes, w->expert_bytes, w->k, w->m, w->n_experts };
    return d;
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
