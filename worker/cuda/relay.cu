/* The file's rows to the device's tiles (tiles.cuh): a thread for a lane of a round. Runs once for each upload, so it reads
 * bytes one by one and is bound by nothing that matters: the bus is slower. */
#include "worker/cuda/tile_codes.cuh"

#define THREADS 128

struct relay_args {
    const uint8_t *rows; /* as in the file */
    uint64_t row_bytes;
    uint32_t n_rows, k, n_rounds;
    uint8_t *out;
};

static __device__ __forceinline__ uint32_t byte16(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8;
}

static __device__ __forceinline__ uint32_t byte32(const uint8_t *p)
{
    return byte16(p) | byte16(p + 2) << 16;
}

static __device__ __forceinline__ uint32_t bits_at(uint32_t word, uint32_t at, uint32_t n)
{
    return (word >> at) & ((1u << n) - 1);
}

/* Nibble e of 32 in 16 bytes: low ones first. */
static __device__ __forceinline__ uint32_t nibble(const uint8_t *p, uint32_t e)
{
    return bits_at(p[e % 16], 4 * (e / 16), 4);
}

/* ---- codes of the file's blocks, quant.c's formulas; e is an index into the block b ---- */

template <enum dtype T> static __device__ uint32_t file_code(const uint8_t *b, uint32_t e);

#define FILE_CODE(type)                                                                            \
    template <>                                                                                    \
    __device__ __forceinline__ uint32_t file_code<DTYPE_##type>(const uint8_t *b, uint32_t e)

FILE_CODE(Q4_0)
{
    return nibble(b + 2, e) - 8;
}

FILE_CODE(Q4_1)
{
    return nibble(b + 4, e);
}

FILE_CODE(Q5_0)
{
    return (nibble(b + 6, e) | bits_at(byte32(b + 2), e, 1) << 4) - 16;
}

FILE_CODE(Q5_1)
{
    return nibble(b + 8, e) | bits_at(byte32(b + 4), e, 1) << 4;
}

FILE_CODE(Q8_0)
{
    return b[2 + e];
}

FILE_CODE(IQ4_NL)
{
    return nibble(b + 2, e);
}

FILE_CODE(MXFP4)
{
    return nibble(b + 1, e);
}

FILE_CODE(NVFP4)
{
    return bits_at(b[4 + e / 16 * 8 + e % 8], 4 * (e % 16 / 8), 4);
}

FILE_CODE(Q1_0)
{
    return ~(uint32_t)b[2 + e / 8] >> e % 8; /* set: -1 */
}

FILE_CODE(Q2_0)
{
    return 1 - bits_at(b[2 + e / 4], 2 * (e % 4), 2);
}

FILE_CODE(Q2_K)
{
    return bits_at(b[16 + e / 128 * 32 + e % 32], e % 128 / 32 * 2, 2);
}

FILE_CODE(Q3_K)
{
    return (bits_at(b[32 + e / 128 * 32 + e % 32], e % 128 / 32 * 2, 2) |
            bits_at(b[e % 32], e / 32, 1) << 2) -
           4;
}

FILE_CODE(Q4_K)
{
    return bits_at(b[16 + e / 64 * 32 + e % 32], e % 64 / 32 * 4, 4);
}

FILE_CODE(Q5_K)
{
    return bits_at(b[48 + e / 64 * 32 + e % 32], e % 64 / 32 * 4, 4) |
           bits_at(b[16 + e % 32], e / 32, 1) << 4;
}

FILE_CODE(Q6_K)
{
    uint32_t half = e / 128, j = e % 128 / 32, l = e % 32;
    return (bits_at(b[64 * half + 32 * (j & 1) + l], 4 * (j >> 1), 4) |
            bits_at(b[128 + 32 * half + l], 2 * j, 2) << 4) -
           32;
}

FILE_CODE(IQ4_XS)
{
    return nibble(b + 8 + e / 32 * 16, e % 32);
}

static __device__ __forceinline__ uint32_t digit(uint32_t byte, uint32_t n)
{
    uint32_t power = n == 0 ? 1 : n == 1 ? 3 : n == 2 ? 9 : n == 3 ? 27 : 81;
    return ((byte * power & 255) * 3) >> 8;
}

FILE_CODE(TQ1_0)
{
    uint32_t t = e < 160   ? digit(b[e % 32], e / 32)
                 : e < 240 ? digit(b[32 + (e - 160) % 16], (e - 160) / 16)
                           : digit(b[48 + (e - 240) % 4], (e - 240) / 4);
    return 1 - t;
}

FILE_CODE(TQ2_0)
{
    return 1 - bits_at(b[e / 128 * 32 + e % 32], e % 128 / 32 * 2, 2);
}
#undef FILE_CODE

/* ---- indexes and signs of codebook types: octet o of the block ---- */

/* The eight signs of a seven-bit code: the count of negatives is even. */
static __device__ __forceinline__ uint32_t eight_signs(uint32_t code)
{
    uint32_t p = code ^ code >> 4;
    p ^= p >> 2;
    p ^= p >> 1;
    return code | (p & 1) << 7;
}

template <enum dtype T> static __device__ uint32_t file_signs(const uint8_t *b, uint32_t o)
{
    switch (T) {
    case DTYPE_IQ2_XXS:
        return eight_signs(bits_at(byte32(b + 2 + o / 4 * 8 + 4), 7 * (o % 4), 7));
    case DTYPE_IQ2_XS:
        return eight_signs(byte16(b + 2 + 2 * o) >> 9);
    case DTYPE_IQ2_S:
        return b[34 + o];
    case DTYPE_IQ3_XXS:
        return eight_signs(bits_at(byte32(b + 66 + o / 4 * 4), 7 * (o % 4), 7));
    case DTYPE_IQ3_S:
        return b[74 + o];
    default:
        return 0;
    }
}

/* Index of the octet, of quad o for IQ3. IQ1: with the sign of the offset as bit 11. */
template <enum dtype T> static __device__ uint32_t file_index(const uint8_t *b, uint32_t o)
{
    switch (T) {
    case DTYPE_IQ2_XXS:
        return b[2 + o / 4 * 8 + o % 4];
    case DTYPE_IQ2_XS:
        return byte16(b + 2 + 2 * o) & 511;
    case DTYPE_IQ2_S:
        return b[2 + o] | bits_at(b[66 + o / 4], 2 * (o % 4), 2) << 8;
    case DTYPE_IQ3_XXS:
        return b[2 + o];
    case DTYPE_IQ3_S:
        return b[2 + o] | bits_at(b[66 + o / 8], o % 8, 1) << 8;
    case DTYPE_IQ1_S: {
        uint32_t high = byte16(b + 34 + o / 4 * 2);
        return b[2 + o] | bits_at(high, 3 * (o % 4), 3) << 8 | high >> 15 << 11;
    }
    case DTYPE_IQ1_M:
        return b[o] | bits_at(b[32 + o / 2], 4 * (o % 2), 4) << 8;
    default:
        return 0;
    }
}

/* ---- a lane's body ---- */

#define BODY_WORDS 24 /* of the largest */

static __device__ __forceinline__ void put_bits(uint32_t *body, uint32_t byte, uint32_t bit,
                                                uint32_t value)
{
    body[byte / 4] |= value << (8 * (byte % 4) + bit);
}

/* Value j of a[q] of tile i. */
template <enum dtype T>
static __device__ __forceinline__ void put_code(uint32_t *body, uint32_t i, uint32_t q, uint32_t j,
                                                uint32_t code)
{
    constexpr enum tile_kind kind = format<T>::kind;
    constexpr uint32_t extra = format<T>::extra, tiles = format<T>::tiles;
    uint32_t low = code, high = 0; /* `extra` bits go to the plane behind */
    if (extra > 0 && format<T>::is_signed) {
        high = code & ((1u << extra) - 1);
        low = code >> extra;
    } else if (extra > 0) {
        high = code >> 4;
    }
    if (kind == TILE_BYTES) {
        put_bits(body, 16 * i + 4 * q + j, 0, code & 255);
    } else if (kind == TILE_LUT) {
        uint32_t n = j + 4 * (q / 2);
        put_bits(body, 8 * i + 4 * (q % 2) + n / 2, 4 * (n % 2), code & 15);
    } else if (kind == TILE_NIBBLES) {
        put_bits(body, 8 * i + 4 * (q % 2) + j, 4 * (q / 2), low & 15);
        if (extra == 2) {
            put_bits(body, 8 * tiles + 4 * i + j, 2 * q, high & 3);
        } else if (extra == 1) {
            put_bits(body, 8 * tiles + i / 2 * 4 + j, plane_shift<1>(i, q), high & 1);
        }
    } else if (kind == TILE_PAIRS) {
        put_bits(body, 4 * i + j, 2 * q, low & 3);
        if (extra == 1) {
            put_bits(body, 4 * tiles + i / 2 * 4 + j, plane_shift<1>(i, q), high & 1);
        }
    } else if (kind == TILE_SIGNS) {
        put_bits(body, i / 2 * 4 + j, 7 - plane_shift<1>(i, q), code & 1);
    }
}

/* Octet t of tile i of row g (r 0) or g + 8 (r 1): its index or indexes, its signs. */
template <enum dtype T>
static __device__ __forceinline__ void put_octet(uint32_t *body, uint32_t i, uint32_t r,
                                                 const uint8_t *b, uint32_t o)
{
    constexpr enum tile_kind kind = format<T>::kind;
    if (kind == TILE_IQ3) {
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t e = file_index<T>(b, 2 * o + h), q = 2 * h + r;
            put_bits(body, 4 * i + q, 0, e & 255);
            if (format<T>::extra) {
                put_bits(body, 48 + i / 2, 4 * (i % 2) + q, e >> 8);
            }
        }
    } else {
        uint32_t e = file_index<T>(b, o);
        put_bits(body, 2 * i + r, 0, e & 255);
        if (kind == TILE_IQ1) {
            put_bits(body, 16 + i, 4 * r, e >> 8);
        } else if (format<T>::extra) {
            put_bits(body, 32 + i / 2, 4 * (i % 2) + 2 * r, e >> 8);
        }
    }
    if (kind != TILE_IQ1) {
        uint32_t signs = file_signs<T>(b, o), plane = kind == TILE_IQ3 ? 32 : 16;
        for (uint32_t j = 0; j < 8; j++) {
            put_bits(body, plane + i / 2 * 4 + j % 4, 7 - plane_shift<1>(i, 2 * (j / 4) + r),
                     (signs >> j) & 1);
        }
    }
}

/* ---- metas: words of rows g (r 0) and g + 8 (r 1) ---- */

#define META_WORDS 10 /* of the largest */

static __device__ __forceinline__ uint32_t file_nibble_scale(enum dtype t, const uint8_t *b,
                                                             uint32_t i)
{
    switch (t) {
    case DTYPE_IQ2_XXS:
        return byte32(b + 2 + 8 * i + 4) >> 28;
    case DTYPE_IQ3_XXS:
        return byte32(b + 66 + 4 * i) >> 28;
    case DTYPE_IQ3_S:
        return bits_at(b[106 + i / 2], 4 * (i % 2), 4);
    case DTYPE_IQ1_S:
        return bits_at(byte16(b + 34 + 2 * i), 12, 3);
    case DTYPE_IQ2_XS:
        return bits_at(b[66 + i / 2], 4 * (i % 2), 4);
    case DTYPE_IQ2_S:
        return bits_at(b[74 + i / 2], 4 * (i % 2), 4);
    default: /* IQ1_M */
        return bits_at(byte16(b + 48 + i / 4 * 2), 3 * (i % 4), 3);
    }
}

static __device__ __forceinline__ uint32_t file_k3_scale(const uint8_t *s, uint32_t i)
{
    uint32_t low = i < 8 ? s[i] & 15u : s[i - 8] >> 4;
    return (low | bits_at(s[8 + i % 4], 2 * (i / 4), 2) << 4) - 32;
}

/* The i-th scale of Q4_K and Q5_K and, above its six bits, the minimum. */
static __device__ __forceinline__ uint32_t file_k45_scale(const uint8_t *p, uint32_t i)
{
    if (i < 4) {
        return (p[i] & 63u) | (p[i + 4] & 63u) << 6;
    }
    return (p[i + 4] & 15u) | (uint32_t)(p[i - 4] >> 6) << 4 | (uint32_t)(p[i + 4] >> 4) << 6 |
           (uint32_t)(p[i] >> 6) << 10;
}

static __device__ __forceinline__ uint32_t file_iq1m_half(const uint8_t *b)
{
    uint32_t bits = 0;
    for (uint32_t i = 0; i < 4; i++) {
        bits |= byte16(b + 48 + 2 * i) >> 12 << (4 * i);
    }
    return bits;
}

/* b: the row's blocks of the round, n of them there. */
template <enum dtype T>
static __device__ __forceinline__ void put_meta(uint32_t *meta, uint32_t r, const uint8_t *b,
                                                uint32_t n)
{
    constexpr enum tile_meta form = format<T>::form;
    constexpr uint32_t block = format<T>::block;
    if (form == META_HALVES || form == META_HALVES_MIN || form == META_HALF_2) {
        for (uint32_t i = 0; i < n; i++) {
            meta[i] |= byte16(b + i * block) << (16 * r);
            if (form == META_HALVES_MIN) {
                meta[4 + i] |= byte16(b + i * block + 2) << (16 * r);
            }
        }
    } else if (form == META_HALF_ALL) {
        meta[0] |= byte16(b + (T == DTYPE_TQ1_0 ? 52 : T == DTYPE_TQ2_0 ? 64 : 0)) << (16 * r);
    } else if (form == META_E8M0) {
        for (uint32_t i = 0; i < n; i++) {
            put_bits(meta, 2 * i + r, 0, b[i * block]);
        }
    } else if (form == META_UE4M3) {
        for (uint32_t i = 0; i < 2 * n; i++) {
            put_bits(meta, 4 * i + 2 * r, 0, byte16(b + i / 2 * block + 2 * (i % 2)));
        }
    } else if (form == META_K2) {
        for (uint32_t i = 0; i < 16; i++) {
            put_bits(meta, 20 * r + i, 0, b[i]);
        }
        meta[5 * r + 4] = byte32(b + 80);
    } else if (form == META_K45) {
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t v = file_k45_scale(b + 4, i), at = 12 * i;
            meta[4 * r + at / 32] |= v << (at % 32);
            if (at % 32 > 20) {
                meta[4 * r + at / 32 + 1] |= v >> (32 - at % 32);
            }
        }
        meta[4 * r + 3] = byte32(b);
    } else if (form == META_BYTES) {
        for (uint32_t i = 0; i < 16; i++) {
            uint32_t v = T == DTYPE_Q3_K ? file_k3_scale(b + 96, i) : b[192 + i];
            put_bits(meta, 16 * r + i, 0, v & 255);
        }
        meta[8] |= byte16(b + (T == DTYPE_Q3_K ? 108 : 208)) << (16 * r);
    } else if (form == META_SIX) {
        uint32_t high = byte16(b + 2);
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t v = bits_at(b[4 + i / 2], 4 * (i % 2), 4) | bits_at(high, 2 * i, 2) << 4;
            meta[2 * r + 6 * i / 32] |= v << (6 * i % 32);
            if (6 * i % 32 > 26) {
                meta[2 * r + 1] |= v >> (32 - 6 * i % 32);
            }
        }
        meta[2 * r + 1] |= byte16(b) << 16;
    } else if (form == META_NIBBLES) {
        for (uint32_t i = 0; i < 8; i++) {
            meta[r] |= file_nibble_scale(T, b, i) << (4 * i);
        }
        meta[2] |= byte16(b) << (16 * r);
    } else {
        for (uint32_t i = 0; i < 16; i++) {
            meta[2 * r + i / 8] |= file_nibble_scale(T, b, i) << (4 * (i % 8));
        }
        meta[4] |= (T == DTYPE_IQ1_M ? file_iq1m_half(b) : byte16(b)) << (16 * r);
    }
}

/* ---- the kernel ---- */

template <enum dtype T>
static __global__ void relay_kernel(const __grid_constant__ struct relay_args a)
{
    constexpr uint32_t tiles = format<T>::tiles, values = format<T>::values;
    constexpr uint32_t n_body = format<T>::body / 4, n_meta = format<T>::meta / 4;
    uint32_t at = blockIdx.x * THREADS + threadIdx.x, lane = at % WARP, g = lane / 4, t = lane % 4;
    uint32_t round = at / WARP % a.n_rounds, group = at / WARP / a.n_rounds;
    if (group * GROUP_ROWS >= a.n_rows) {
        return;
    }
    uint32_t body[BODY_WORDS] = { 0 }, meta[META_WORDS] = { 0 };
    uint32_t first = round * (tiles * 32 / values), n_blocks = a.k / values - first;
    n_blocks = n_blocks < tiles * 32 / values ? n_blocks : tiles * 32 / values;
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t row = group * GROUP_ROWS + g + 8 * r;
        if (row >= a.n_rows) {
            continue;
        }
        const uint8_t *b = a.rows + row * a.row_bytes + (uint64_t)first * format<T>::block;
        for (uint32_t i = 0; i < n_blocks * values / 32; i++) {
            const uint8_t *block = b + 32 * i / values * format<T>::block;
            uint32_t e = 32 * i % values + 8 * t;
            if constexpr (format<T>::kind >= TILE_IQ1) {
                put_octet<T>(body, i, r, block, e / 8);
            } else {
                for (uint32_t j = 0; j < 8; j++) {
                    put_code<T>(body, i, 2 * (j / 4) + r, j % 4, file_code<T>(block, e + j));
                }
            }
        }
        put_meta<T>(meta, r, b, n_blocks);
    }
    uint8_t *out = a.out + (uint64_t)(at / WARP) * format<T>::round;
    for (uint32_t w = 0; w < n_body; w++) {
        constexpr uint32_t whole = format<T>::body / 16 * 16;
        uint32_t place = 4 * w < whole ? body_at<T, 0>(lane, 4 * w)
                                       : body_at<T, whole>(lane, 4 * w - whole);
        *(uint32_t *)(void *)(out + place) = body[w];
    }
    for (uint32_t w = t; w < n_meta; w += 4) {
        *(uint32_t *)(void *)(out + meta_at<T>(g, 4 * w)) = meta[w];
    }
}

/* ---- the table ---- */

template <enum dtype T> static void launch(const struct relay_args *a, CUDA_STREAM stream)
{
    uint64_t n = round_up(a->n_rows, GROUP_ROWS) / GROUP_ROWS * a->n_rounds * WARP;
    LAUNCH_NOW(relay_kernel<T>, blocks_of(n, THREADS), THREADS, 0, stream, *a);
}

static const struct row {
    enum dtype dtype;
    uint32_t values, round_bytes;
    void (*launch)(const struct relay_args *, CUDA_STREAM);
} rows[] = {
#define ROW(type, n_values, n_bytes, n_tiles, ...)                                                 \
    { DTYPE_##type, 32 * (n_tiles), format<DTYPE_##type>::round, launch<DTYPE_##type> },
    TILE_TYPES(ROW)
#undef ROW
};

static const struct row *row_of(enum dtype dtype)
{
    for (const struct row &r : rows) {
        if (r.dtype == dtype) {
            return &r;
        }
    }
    return NULL;
}

uint64_t cuda_group_bytes(enum dtype dtype, uint64_t k)
{
    const struct row *r = row_of(dtype);
    return r ? (k + r->values - 1) / r->values * r->round_bytes : 0;
}

int cuda_relay(struct cuda_backend *c, enum dtype dtype, const uint8_t *from, uint64_t row_bytes,
               uint32_t n_rows, uint32_t k, uint8_t *out, struct err *err)
{
    const struct row *r = row_of(dtype);
    if (!r) {
        return err_set(err, ERR_UNSUPPORTED, "cuda: no tiles of %s", dtype_get(dtype)->name);
    }
    struct relay_args a = { from, row_bytes, n_rows, k, (k + r->values - 1) / r->values, out };
    if (cuda_step_flush(c, err) < 0) {
        return -1;
    }
    r->launch(&a, c->stream);
    return cuda_launched("relay", err);
}
