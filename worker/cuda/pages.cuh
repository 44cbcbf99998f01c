/* Pages of keys and values as kernels see them (backend.h; q8_0 and q4_0 keys as proto/rows16.h), and what all attention kernels
 * share: the same on both backends, byte for byte. */
#pragma once

#include "worker/cuda/reduce.cuh"
#include "worker/cuda/tiles.cuh"
#include "worker/cuda/vmath.cuh"

static __device__ __forceinline__ float infinity_below(void)
{
    return -INFINITY;
}

struct page_side {
    enum dtype type;
    uint32_t dim, row_bytes;
    uint64_t off; /* of the area in a page */
};

static __device__ __forceinline__ uint64_t tile_at(const struct page_side *s, uint32_t head,
                                                   uint32_t at)
{
    return s->off +
           ((uint64_t)head * (KV_PAGE_TOKENS / KV_TILE) + at / KV_TILE) * KV_TILE * s->row_bytes;
}

/* Where in a tile of keys the 4-byte piece of component j of a key stands, quantised types. */
static __device__ __forceinline__ uint32_t key_piece(uint32_t j, uint32_t block_bytes,
                                                     uint32_t lane, uint32_t byte)
{
    return j / 32 * (KV_TILE * block_bytes) + 2 * KV_TILE + (byte / 4 * KV_TILE + lane) * 4 +
           byte % 4;
}

static __device__ __forceinline__ float plain(enum dtype type, const uint8_t *p, uint64_t i)
{
    if (type == DTYPE_F32) {
        return ((const float *)(const void *)p)[i];
    }
    uint32_t bits = ((const uint16_t *)(const void *)p)[i];
    return type == DTYPE_F16 ? ptx_f32_of_f16(bits) : float_of_bits(bits << 16);
}

static __device__ __forceinline__ float scale_of(const uint8_t *p)
{
    return ptx_f32_of_f16(*(const uint16_t *)(const void *)p);
}

/* Component j of key `lane` of a tile. */
static __device__ __forceinline__ float key_value(const struct page_side *s, const uint8_t *tile,
                                                  uint32_t lane, uint32_t j)
{
    if (s->type == DTYPE_Q8_0) {
        uint8_t code = tile[key_piece(j, 34, lane, j % 32)];
        return scale_of(tile + j / 32 * (KV_TILE * 34) + 2 * lane) * (float)(int8_t)(code ^ 0x80);
    }
    if (s->type == DTYPE_Q4_0) {
        uint8_t pair = tile[key_piece(j, 18, lane, j % 16)];
        int code = (pair >> (4 * (j % 32 / 16))) & 15;
        return scale_of(tile + j / 32 * (KV_TILE * 18) + 2 * lane) * (float)(code - 8);
    }
    return plain(s->type, tile, (uint64_t)j * KV_TILE + lane);
}

/* Component j of the value at position `lane` of a tile. */
static __device__ __forceinline__ float value_value(const struct page_side *s, const uint8_t *tile,
                                                    uint32_t lane, uint32_t j)
{
    const uint8_t *row = tile + (uint64_t)lane * s->row_bytes;
    if (s->type == DTYPE_Q8_0) {
        const uint8_t *b = row + j / 32 * 34;
        return scale_of(b) * (float)(int8_t)b[2 + j % 32];
    }
    if (s->type == DTYPE_Q4_0) {
        const uint8_t *b = row + j / 32 * 18;
        return scale_of(b) * (float)(((b[2 + j % 16] >> (4 * (j % 32 / 16))) & 15) - 8);
    }
    return plain(s->type, row, j);
}

struct device_row {
    const uint32_t *pages;
    int64_t first_pos, pos, end_pos;
};

/* The rows and their page tables where kernels can read them. kv_store.cu */
const struct device_row *pages_stage_rows(struct cuda_backend *c, const struct kv_row *rows,
                                          uint32_t n_rows, struct err *err);

static inline struct page_side side_of(enum dtype type, uint32_t dim, uint32_t row_bytes,
                                       uint64_t off)
{
    struct page_side s = { type, dim, row_bytes, off };
    return s;
}

/* ---- attention ---- */

struct attention_args {
    const struct device_row *rows;
    const uint8_t *page_base;
    uint64_t page_bytes;
    struct page_side k, v;
    uint32_t n_heads, group, n_chunks; /* query heads; of one key head; blocks for those */
    const float *q, *sinks;
    uint32_t q_stride;
    float *o;
    uint32_t o_stride;
    float scale, softcap;
    uint32_t window;
    float *partials; /* [row][head][span of the row][2 + v_dim], or NULL: no splitting */
    uint32_t n_spans;
};

/* First position that a row reads. */
static __host__ __device__ __forceinline__ int64_t row_lo(int64_t first_pos, int64_t pos,
                                                          uint32_t window)
{
    int64_t lo = pos - (int64_t)window + 1;
    return window > 0 && lo > first_pos ? lo : first_pos;
}

/* How much of what was and of what comes is left under the common maximum. */
static __device__ __forceinline__ void weigh(float was, float comes, float *keep, float *take)
{
    float max = was > comes ? was : comes;
    *keep = was == infinity_below() ? 0.0f : vmath_exp(was - max);
    *take = comes == infinity_below() ? 0.0f : vmath_exp(comes - max);
}

/* The end of a head: the sink's share and the division. acc may be any component's. */
static __device__ __forceinline__ float finish(const struct attention_args *a, uint32_t head,
                                               float max, float sum, float acc)
{
    float scale = 1.0f;
    if (max == infinity_below()) {
        return 0.0f; /* nothing to see */
    }
    if (a->sinks) {
        float sink = a->sinks[head], top = max > sink ? max : sink;
        scale = vmath_exp(max - top);
        sum = sum * scale + vmath_exp(sink - top);
    }
    return acc * (scale / sum);
}

/* What the op says, its rows staged; n_chunks, partials and n_spans are left 0. attention.cu */
int attention_args_of(struct cuda_backend *c, const struct op_attention *op,
                      struct attention_args *to, struct err *err);

/* attention_plain.cu: any types and sizes. attention_tiles.cu: on tensor cores; partials: a block for each span. */
int attention_plain(struct cuda_backend *c, struct attention_args *a, uint32_t n_rows, bool split,
                    struct err *err);
bool attention_tiles_fit(const struct attention_args *a);
int attention_tiles(struct cuda_backend *c, struct attention_args *a, const struct kv_row *rows,
                    uint32_t n_rows, bool split, struct err *err);
