/* Products of quantised weights (tiles.cuh) with columns quantised to int8 per 32 values, for 1 to 16 columns (few) and for
 * more (wide). Instantiated by product_*.cu, launched by matmul.cu.
 *
 * One order of sums everywhere: the sum over the 32 values of a tile is exact in int32 and becomes one (or two, four) fmaf
 * into the output's only chain, tile after tile. That is the CPU's order too: the same bits for any number of columns,
 * alone or in a crowd, prefill or decode, and on the CPU.
 *
 * So a warp takes 16 rows from the first tile to the last, and its lanes hold the fragments as they come from memory:
 * no reduction, no unpacking through shared memory. What it costs in parallelism (m / 16 warps read a matrix) is paid
 * back by bytes in flight: a ring of rounds in shared memory, filled by cp.async. Decode is bound by reading W once. Per
 * tile of 512 weights and 8 columns a warp issues about 25 instructions beside the unpacking. */
#pragma once

#include "worker/cuda/act.cuh"
#include "worker/cuda/product.h"
#include "worker/cuda/tile_scales.cuh"

#define FEW_WARPS  2 /* of a block: m / 32 blocks spread over all multiprocessors */
#define BOOK_WARPS 4 /* where a codebook is copied first: 64 rows share it */
#define RING_BYTES                                                                                 \
    12288 /* of a warp: 2 warps on each of 170 multiprocessors have 3 MB in flight, twice what is needed */
#define BOOK_RING 7168 /* the same beside a codebook, within 48 KiB a block */
#define REGISTERS_128                                                                              \
    16 /* warps of a multiprocessor that leave a thread 128 registers; unasked the compiler spills at 40 */
#define WIDE_WARPS 8
#define GATED_STRIDE                                                                               \
    132 /* from column to column of 64 rows twice: lanes of a warp in different banks */
#define WIDE_STEP    4 /* tiles of the columns at a time */
#define COLUMN_BYTES 32
#define MAGIC                                                                                      \
    0x4b400000 /* 1.5 * 2^23: a sum starts here and its bits are a float, that much too large */
#define MAGIC_FLOAT 12582912.0f

/* ---- one tile ---- */

/* s - MAGIC as a float: exact, as |s| < 2^22 (32 * 127 * 128), and cheaper than a conversion. */
static __device__ __forceinline__ float float_of_sum(int s)
{
    float f;
    memcpy(&f, &s, sizeof f);
    return f - MAGIC_FLOAT;
}

/* Adds tile codes a times columns b (two words of the lane's column) to acc: rows g, g, g + 8, g + 8 of columns 2 t, 2 t + 1,
 * 2 t, 2 t + 1. d: scales of those two columns; sum: plane after plane, d times the sums of codes (all; both halves). */
template <enum dtype T>
static __device__ __forceinline__ void add_tile(const uint32_t a[4], const struct tile_scales *s,
                                                const uint32_t b[2], const float d[2],
                                                const float sum[2][2], float acc[4])
{
    const int zero[4] = { MAGIC, MAGIC, MAGIC, MAGIC };
    int c[4];
    if constexpr (format<T>::sub16) {
        /* Lanes t 0 and 1 hold the first 16 values, 2 and 3 the others. */
        int c2[4];
        bool second = threadIdx.x & 2;
        const uint32_t b_first[2] = { second ? 0 : b[0], second ? 0 : b[1] };
        const uint32_t b_second[2] = { second ? b[0] : 0, second ? b[1] : 0 };
        ptx_mma_k32(c, a, b_first, zero);
        ptx_mma_k32(c2, a, b_second, zero);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            acc[e] = fmaf(s->scale[e / 2][0], float_of_sum(c[e]) * d[e % 2], acc[e]);
            acc[e] = fmaf(s->scale[e / 2][1], float_of_sum(c2[e]) * d[e % 2], acc[e]);
            if constexpr (format<T>::has_min) {
                acc[e] = fmaf(s->nmin[e / 2][0], sum[0][e % 2], acc[e]);
                acc[e] = fmaf(s->nmin[e / 2][1], sum[1][e % 2], acc[e]);
            }
        }
    } else {
        ptx_mma_k32(c, a, b, zero);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            acc[e] = fmaf(s->scale[e / 2][0], float_of_sum(c[e]) * d[e % 2], acc[e]);
            if constexpr (format<T>::has_min) {
                acc[e] = fmaf(s->nmin[e / 2][0], sum[0][e % 2], acc[e]);
            }
        }
    }
}

/* Planes of column floats that a type reads beside d. */
template <enum dtype T> static __host__ __device__ constexpr uint32_t n_sums()
{
    return !format<T>::has_min ? 0 : format<T>::sub16 ? 2 : 1;
}

template <enum dtype T> static __host__ __device__ constexpr uint32_t first_sum()
{
    return format<T>::sub16 ? 2 : 1;
}

/* ---- what a block works on ---- */

/* Which rows of the columns' memory and of y: all in order, or an expert's share of them (order, chunks). */
struct chunk_view {
    uint32_t expert, begin, n;
};

static __device__ __forceinline__ struct chunk_view chunk_of(const struct product_args *a,
                                                             uint32_t i, uint32_t width)
{
    struct chunk_view v = { 0, i * width, a->n - i * width < width ? a->n - i * width : width };
    if (a->chunks) {
        const struct product_chunk *c = &a->chunks[i];
        v.n = i < *a->n_chunks ? c->n : 0;
        v.expert = v.n ? c->expert : 0;
        v.begin = v.n ? c->begin : 0;
    }
    return v;
}

/* Row of y of column c. */
static __device__ __forceinline__ uint32_t row_of_column(const struct product_args *a,
                                                         const struct chunk_view *v, uint32_t c)
{
    return a->chunks ? a->order[v->begin + c] : v->begin + c;
}

/* Codes of row r of x; its tiles lie COLUMN_BYTES * 8 apart, its floats 8 apart. */
static __device__ __forceinline__ const int8_t *codes_of(const struct product_args *a,
                                                         uint32_t n_tiles, uint32_t r)
{
    return a->codes + (uint64_t)(r / 8) * n_tiles * (8 * COLUMN_BYTES) + r % 8 * COLUMN_BYTES;
}

static __device__ __forceinline__ const float *floats_of(const struct product_args *a,
                                                         uint32_t n_tiles, uint32_t r)
{
    return a->columns + (uint64_t)(r / 8) * n_tiles * 8 + r % 8;
}

/* The product and the group of 16 rows in it that number `at` of the launch is; NULL past the end. */
static __device__ __forceinline__ const struct product_one *product_of(const struct product_args *a,
                                                                       uint32_t at, uint32_t *group)
{
    const struct product_one *p = &a->products[0];
#pragma unroll
    for (uint32_t i = 1; i < PRODUCTS_MAX; i++) {
        p = i < a->n_products && at >= a->products[i].first ? &a->products[i] : p;
    }
    *group = at - p->first;
    return at < a->n_groups ? p : NULL;
}

static __device__ __forceinline__ void put(const struct product_args *a,
                                           const struct product_one *p, uint32_t expert,
                                           uint32_t row, uint32_t y_row, float v)
{
    v = p->bias ? v + p->bias[(uint64_t)expert * p->w.m + row] : v;
    p->y[(uint64_t)y_row * p->y_stride + row] = a->scales ? v * a->scales[expert] : v;
}

/* The warp's share of one round to shared memory: asked for, not waited for. */
template <enum dtype T>
static __device__ __forceinline__ void fetch_round(uint8_t *to, const uint8_t *from, uint32_t lane)
{
    constexpr uint32_t pieces = format<T>::round / 16;
#pragma unroll
    for (uint32_t i = 0; i < (pieces + WARP - 1) / WARP; i++) {
        if (WARP * (i + 1) <= pieces || lane + WARP * i < pieces) {
            ptx_copy16(to + 16 * (lane + WARP * i), from + 16 * (lane + WARP * i));
        }
    }
}

template <enum dtype T> static __host__ __device__ constexpr uint32_t book_bytes()
{
    return codebook_of<T>().words * codebook_of<T>().copies * 4;
}

template <enum dtype T> static __host__ __device__ constexpr uint32_t ring_rounds()
{
    return (book_bytes<T>() ? BOOK_RING : RING_BYTES) / format<T>::round;
}

template <enum dtype T> static __host__ __device__ constexpr uint32_t few_warps()
{
    return book_bytes<T>() ? BOOK_WARPS : FEW_WARPS;
}

template <enum dtype T> static constexpr uint32_t few_bytes(uint32_t warps)
{
    return book_bytes<T>() + warps * ring_rounds<T>() * format<T>::round;
}

/* The codebook to shared memory, `copies` of each entry side by side. */
template <enum dtype T>
static __device__ __forceinline__ void copy_book(const struct product_args *a, uint32_t *to)
{
    constexpr struct codebook book = codebook_of<T>();
    const uint32_t *from = codebook_source<T>(a->tables);
    for (uint32_t i = threadIdx.x; i < book.words * book.copies; i += blockDim.x) {
        uint32_t e = i / book.entry / book.copies;
        to[i] = ptx_load32(from + e * book.entry + i % book.entry);
    }
}

template <enum dtype T>
static __device__ __forceinline__ struct lane_book lane_book_of(const uint32_t *words)
{
    constexpr uint32_t copies = book_bytes<T>() ? codebook_of<T>().copies : 1;
    struct lane_book b = { words, copies, threadIdx.x % copies };
    return b;
}

/* The tile of 32 rows that a gated block has multiplied, `apart` floats from warp to warp: a warp for a column at a time. */
static __device__ __forceinline__ void end_gated(const struct product_args *a,
                                                 const struct chunk_view *v, const float *products,
                                                 uint32_t apart)
{
    uint32_t lane = threadIdx.x % WARP;
    const float *own = products + lane / GROUP_ROWS * apart + lane % GROUP_ROWS;
#pragma unroll 1
    for (uint32_t c = threadIdx.x / WARP; c < v->n; c += GATED_WARPS) {
        uint32_t i = v->begin + c;
        float y = act_one(a->act, own[c * GROUP_ROWS], own[2 * apart + c * GROUP_ROWS]);
        a->y[(uint64_t)i * a->y_stride + 32 * blockIdx.x + lane] = y;
        quantise_value(&a->to, i, blockIdx.x, lane, y);
    }
}

/* ---- few: N groups of 8 columns ---- */

template <enum dtype T, uint32_t N>
static __global__ void __launch_bounds__(GATED_WARPS *WARP, REGISTERS_128 / GATED_WARPS)
    few_kernel(const __grid_constant__ struct product_args a)
{
    constexpr uint32_t ring = ring_rounds<T>(), tiles = format<T>::tiles, sums = n_sums<T>();
    DYNAMIC_SHARED(uint8_t, shared);
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    uint32_t group, at = blockIdx.x * few_warps<T>() + warp;
    if (a.gated) { /* warps 0 and 1: gate, 2 and 3: the same rows of up */
        at = warp / 2 * a.products[1].first + 2 * blockIdx.x + warp % 2;
    }
    const struct product_one *p = product_of(&a, at, &group);
    uint8_t *rounds = shared + book_bytes<T>() + warp * (ring * format<T>::round);
    struct lane_book book = lane_book_of<T>((const uint32_t *)(const void *)shared);
    uint32_t n_tiles = a.products[0].w.k / 32, n_rounds = (n_tiles + tiles - 1) / tiles;
    /* Weights are asked for before what other kernels still compute; whose weights, only routing tells. */
    if (a.chunks) {
        ptx_wait_for_others();
    }
    struct chunk_view v = chunk_of(&a, blockIdx.y, 8 * N);
    if constexpr (book_bytes<T>() > 0) {
        copy_book<T>(&a, (uint32_t *)(void *)shared);
        __syncthreads();
    }
    if (!p || v.n == 0) {
        ptx_wait_for_others();
        return; /* a warp together; the others meet no barrier of the block any more */
    }
    const uint8_t *from = p->w.data + v.expert * p->w.expert_bytes + group * p->w.row_bytes;
#pragma unroll
    for (uint32_t i = 0; i + 1 < ring; i++) {
        if (i < n_rounds) {
            fetch_round<T>(rounds + i * format<T>::round, from + i * format<T>::round, lane);
        }
        ptx_copies_commit();
    }
    ptx_wait_for_others();
    const int8_t *x[N];
    const float *d[N][2];
    float acc[N][4];
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
        /* Columns past the end repeat the first: what they give is not stored. */
        uint32_t own = 8 * n + g < v.n ? 8 * n + g : 0;
        x[n] = codes_of(&a, n_tiles, row_of_column(&a, &v, own) / a.x_share) + 8 * t;
#pragma unroll
        for (uint32_t e = 0; e < 2; e++) {
            uint32_t c = 8 * n + 2 * t + e < v.n ? 8 * n + 2 * t + e : 0;
            d[n][e] = floats_of(&a, n_tiles, row_of_column(&a, &v, c) / a.x_share);
        }
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
    }
    for (uint32_t r = 0; r < n_rounds; r++) {
        ptx_copies_wait<ring - 2>();
        __syncwarp();
        if (r + ring - 1 < n_rounds) {
            fetch_round<T>(rounds + (r + ring - 1) % ring * format<T>::round,
                           from + (uint64_t)(r + ring - 1) * format<T>::round, lane);
        }
        ptx_copies_commit();
        const uint8_t *round = rounds + r % ring * format<T>::round;
#pragma unroll
        for (uint32_t i = 0; i < tiles; i++) {
            uint32_t tile = r * tiles + i;
            if (tile < n_tiles) {
                uint32_t codes[4];
                struct tile_scales s;
                tile_codes<T>(round, lane, i, &book, codes);
                tile_scales_of<T>(round, g, i, &s);
#pragma unroll
                for (uint32_t n = 0; n < N; n++) {
                    uint2 words = get64((const uint8_t *)x[n] + tile * (8 * COLUMN_BYTES));
                    const uint32_t b[2] = { words.x, words.y };
                    const float scale[2] = { d[n][0][tile * 8], d[n][1][tile * 8] };
                    float sum[2][2];
#pragma unroll
                    for (uint32_t i2 = 0; i2 < sums; i2++) {
                        uint64_t off = (first_sum<T>() + i2) * a.plane + tile * 8;
                        sum[i2][0] = d[n][0][off];
                        sum[i2][1] = d[n][1][off];
                    }
                    add_tile<T>(codes, &s, b, scale, sum, acc[n]);
                }
            }
        }
    }
    __syncwarp();
    float *mine = (float *)(void *)rounds; /* gated: [column][16 rows], where the ring was */
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            uint32_t row = group * GROUP_ROWS + g + 8 * (e / 2), c = 8 * n + 2 * t + e % 2;
            if (a.gated) {
                mine[c * GROUP_ROWS + row % GROUP_ROWS] = p->bias ? acc[n][e] + p->bias[row]
                                                                  : acc[n][e];
            } else if (row < p->w.m && c < v.n) {
                put(&a, p, v.expert, row, row_of_column(&a, &v, c), acc[n][e]);
            }
        }
    }
    if (a.gated) {
        __syncthreads();
        end_gated(&a, &v, (const float *)(const void *)(shared + book_bytes<T>()),
                  ring * format<T>::round / 4);
    }
}

/* ---- wide: 8 warps of 16 rows each, N groups of 8 columns, columns through shared memory ---- */

/* One step of the columns: codes as [tile][column], then floats as [plane][tile][column]. */
template <enum dtype T, uint32_t N> struct wide_step {
    static constexpr uint32_t columns = 8 * N, planes = 1 + n_sums<T>();
    static constexpr uint32_t codes = WIDE_STEP * columns * COLUMN_BYTES;
    static constexpr uint32_t bytes = codes + planes * WIDE_STEP * columns * 4;
};

template <enum dtype T, uint32_t N> static constexpr uint32_t wide_bytes()
{
    return book_bytes<T>() + 2 * WIDE_WARPS * format<T>::round + 2 * wide_step<T, N>::bytes +
           8 * N * 4;
}

template <enum dtype T, uint32_t N>
static __device__ __forceinline__ void fetch_columns(const struct product_args *a, uint8_t *to,
                                                     const uint32_t *rows, uint32_t first,
                                                     uint32_t n_tiles)
{
    using step = wide_step<T, N>;
    for (uint32_t i = threadIdx.x; i < step::codes / 16; i += WIDE_WARPS * WARP) {
        uint32_t tile = first + i / (2 * step::columns), c = i / 2 % step::columns;
        if (tile < n_tiles) {
            ptx_copy16(to + 16 * i,
                       codes_of(a, n_tiles, rows[c]) + tile * (8 * COLUMN_BYTES) + i % 2 * 16);
        }
    }
    for (uint32_t i = threadIdx.x; i < step::planes * WIDE_STEP * step::columns;
         i += WIDE_WARPS * WARP) {
        uint32_t tile = first + i / step::columns % WIDE_STEP, c = i % step::columns;
        uint32_t plane = i / (WIDE_STEP * step::columns);
        plane = plane == 0 ? 0 : plane - 1 + first_sum<T>();
        if (tile < n_tiles) {
            ptx_copy4(to + step::codes + 4 * i,
                      floats_of(a, n_tiles, rows[c]) + plane * a->plane + tile * 8);
        }
    }
}

/* A gated block's end: warps 0 to 3 have gate's 64 rows, 4 to 7 the same rows of up. Half of the columns after the other, both go to
 * shared memory, and a warp ends 32 rows of a column at a time. acc: the warp's 16 rows; p NULL: there are none. */
template <uint32_t N>
static __device__ __forceinline__ void
end_gated_wide(const struct product_args *a, const struct chunk_view *v,
               const struct product_one *p, uint32_t group, const float acc[N][4], float *shared)
{
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    float *own = shared + warp * GROUP_ROWS + g + 2 * t * GATED_STRIDE;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t first = half * 4 * N;
        __syncthreads(); /* nobody reads what stands there any more */
#pragma unroll
        for (uint32_t i = 0; i < 2 * N && p; i++) {
            uint32_t n = half * (N / 2) + i / 4, e = i % 4, row = 8 * (e / 2);
            own[(i / 4 * 8 + e % 2) * GATED_STRIDE + row] =
                p->bias ? acc[n][e] + p->bias[group * GROUP_ROWS + g + row] : acc[n][e];
        }
        __syncthreads();
#pragma unroll 1
        for (uint32_t i = warp; i < 8 * N; i += WIDE_WARPS) {
            uint32_t c = v->begin + first + i / 2, tile = 2 * blockIdx.x + i % 2;
            if (first + i / 2 < v->n && tile < a->to.n_tiles) {
                const float *gate = shared + i / 2 * GATED_STRIDE + i % 2 * 32 + lane;
                float y = act_one(a->act, gate[0], gate[WIDE_WARPS / 2 * GROUP_ROWS]);
                a->y[(uint64_t)c * a->y_stride + 32 * tile + lane] = y;
                quantise_value(&a->to, c, tile, lane, y);
            }
        }
    }
}

template <enum dtype T, uint32_t N>
static __global__ void __launch_bounds__(WIDE_WARPS *WARP, 1)
    wide_kernel(const __grid_constant__ struct product_args a)
{
    using step = wide_step<T, N>;
    constexpr uint32_t tiles = format<T>::tiles, per = tiles / WIDE_STEP, columns = step::columns;
    DYNAMIC_SHARED(uint8_t, shared);
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    uint8_t *rounds = shared + book_bytes<T>() + warp * (2 * format<T>::round);
    uint8_t *steps = shared + book_bytes<T>() + 2 * WIDE_WARPS * format<T>::round;
    uint32_t *rows = (uint32_t *)(void *)(steps + 2 * step::bytes);
    struct lane_book book = lane_book_of<T>((const uint32_t *)(const void *)shared);
    uint32_t n_tiles = a.products[0].w.k / 32, n_steps = (n_tiles + WIDE_STEP - 1) / WIDE_STEP;
    uint32_t n_rounds = (n_tiles + tiles - 1) / tiles, group;
    struct chunk_view v = chunk_of(&a, blockIdx.y, columns);
    if (v.n == 0) {
        return; /* the whole block */
    }
    uint32_t at = blockIdx.x * WIDE_WARPS + warp;
    if (a.gated) { /* the upper warps: the same rows of up */
        at = blockIdx.x * (WIDE_WARPS / 2) + warp % (WIDE_WARPS / 2);
        at = at >= a.products[1].first ? a.n_groups
             : warp >= WIDE_WARPS / 2  ? at + a.products[1].first
                                       : at;
    }
    const struct product_one *p = product_of(&a, at, &group);
    const uint8_t *from = p ? p->w.data + v.expert * p->w.expert_bytes + group * p->w.row_bytes
                            : NULL;
    if constexpr (book_bytes<T>() > 0) {
        copy_book<T>(&a, (uint32_t *)(void *)shared);
    }
    for (uint32_t c = threadIdx.x; c < columns; c += WIDE_WARPS * WARP) {
        rows[c] = row_of_column(&a, &v, c < v.n ? c : 0) / a.x_share;
    }
    __syncthreads();
    float acc[N][4];
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
    }
    fetch_columns<T, N>(&a, steps, rows, 0, n_tiles);
    if (p) {
        fetch_round<T>(rounds, from, lane);
    }
    ptx_copies_commit();
    for (uint32_t u = 0; u < n_steps; u++) {
        uint32_t r = u / per;
        ptx_copies_wait<0>();
        __syncthreads(); /* this step's copies are there, and nobody reads the step before */
        if (u + 1 < n_steps) {
            fetch_columns<T, N>(&a, steps + (u + 1) % 2 * step::bytes, rows, (u + 1) * WIDE_STEP,
                                n_tiles);
        }
        if (p && u % per == 0 && r + 1 < n_rounds) {
            fetch_round<T>(rounds + (r + 1) % 2 * format<T>::round,
                           from + (uint64_t)(r + 1) * format<T>::round, lane);
        }
        ptx_copies_commit();
        if (!p) {
            continue;
        }
        const uint8_t *round = rounds + r % 2 * format<T>::round;
        const uint8_t *x = steps + u % 2 * step::bytes;
#pragma unroll 1
        for (uint32_t i = 0; i < WIDE_STEP; i++) {
            if (u * WIDE_STEP + i >= n_tiles) {
                break;
            }
            uint32_t codes[4];
            struct tile_scales s;
            tile_codes<T>(round, lane, u % per * WIDE_STEP + i, &book, codes);
            tile_scales_of<T>(round, g, u % per * WIDE_STEP + i, &s);
#pragma unroll
            for (uint32_t n = 0; n < N; n++) {
                if (8 * n >= v.n) {
                    continue;
                }
                uint32_t c = 8 * n + 2 * t;
                uint2 words = get64(x + (i * columns + 8 * n + g) * COLUMN_BYTES + 8 * t);
                const uint32_t b[2] = { words.x, words.y };
                float scale[2], sum[2][2];
#pragma unroll
                for (uint32_t plane = 0; plane < step::planes; plane++) {
                    uint2 w = get64(x + step::codes + ((plane * WIDE_STEP + i) * columns + c) * 4);
                    float *to = plane == 0 ? scale : sum[plane - 1];
                    to[0] = float_of_bits(w.x);
                    to[1] = float_of_bits(w.y);
                }
                add_tile<T>(codes, &s, b, scale, sum, acc[n]);
            }
        }
    }
    if (a.gated) {
        static_assert(columns / 2 * GATED_STRIDE * 4 <= 2 * step::bytes, "where columns were");
        end_gated_wide<N>(&a, &v, p, group, acc, (float *)(void *)steps);
        return;
    }
    if (!p) {
        return;
    }
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            uint32_t row = group * GROUP_ROWS + g + 8 * (e / 2), c = 8 * n + 2 * t + e % 2;
            if (row < p->w.m && c < v.n) {
                put(&a, p, v.expert, row, row_of_column(&a, &v, c), acc[n][e]);
            }
        }
    }
}

/* ---- launchers ---- */

/* Which kernel: by the number of columns of the widest chunk. */
template <enum dtype T>
static int launch_product(const struct product_args *a, uint32_t n_columns, uint32_t n_chunks,
                          CUDA_STREAM stream, struct err *err)
{
    constexpr uint32_t medium = wide_bytes<T, 4>(), large = wide_bytes<T, 16>();
    static_assert(few_bytes<T>(GATED_WARPS) <= 48u << 10 && large <= 99u << 10,
                  "shared memory of a block");
    uint32_t warps = a->gated ? GATED_WARPS : few_warps<T>(), bytes = few_bytes<T>(warps);
    dim3 few(blocks_of(a->n_groups, warps), n_chunks);
    dim3 wide(blocks_of(a->n_groups, WIDE_WARPS), n_chunks);
    if (n_columns == 8) {
        LAUNCH_EARLY((few_kernel<T, 1>), few, warps * WARP, bytes, stream, *a);
    } else if (n_columns == 16) {
        LAUNCH_EARLY((few_kernel<T, 2>), few, warps * WARP, bytes, stream, *a);
    } else if (n_columns == 32) {
        if (cuda_allow_shared((const void *)wide_kernel<T, 4>, medium, err) < 0) {
            return -1;
        }
        LAUNCH((wide_kernel<T, 4>), wide, WIDE_WARPS * WARP, medium, stream, *a);
    } else {
        if (cuda_allow_shared((const void *)wide_kernel<T, 16>, large, err) < 0) {
            return -1;
        }
        LAUNCH((wide_kernel<T, 16>), wide, WIDE_WARPS * WARP, large, stream, *a);
    }
    return 0;
}
