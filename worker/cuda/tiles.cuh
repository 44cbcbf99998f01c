/* How quantised weights stand on the device: relay.cu writes this layout from the file's, tile_codes.cuh and tile_scales.cuh say how a
 * lane reads it.
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

static __device__ __forceinline__ float low_half(uint32_t w)
{
    return ptx_f32_of_f16(w & 0xffffu);
}

static __device__ __forceinline__ float high_half(uint32_t w)
{
    return ptx_f32_of_f16(w >> 16);
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
