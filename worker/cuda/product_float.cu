/* Products of f16 and bf16 weights with f32 activations on tensor cores (m16n8k16), few columns and many. Rows stand as in
 * the file: a lane reads 16 bytes of two rows, its share of both steps of a tile of 16 rows and 32 values (the order of k
 * inside a tile is free, activations are read in the same).
 *
 * An activation is two halves of the weights' type, what it rounds to and what is left: 22 bits beside f16, where a power of
 * two for each tile keeps them in range, 16 beside bf16. So a result is within 1e-6 of f32's, for twice the products: in decode
 * the tensor cores are idle; a 5090's bf16 peak halved is its f32 peak, which f32 instructions would not reach.
 *
 * One order of sums everywhere, as in product.cuh: four tensor instructions a tile from zero, low halves first, then one
 * addition into the output's only chain. A chain inside the tensor core would lose bits at each step: it cuts where an
 * addition rounds. Not the CPU's order: within 1e-5 of it. */
#include "worker/cuda/product.cuh"
#include "worker/cuda/reduce.cuh"

#define SPLIT_RING  12 /* tiles in flight of a warp, 1 KiB each: as many bytes as few_kernel's */
#define SPLIT_TILES 2  /* of the columns at a time, in split_wide_kernel */
#define HALF_BYTES  64 /* of a tile of a column */
#define TOP_BITS    13 /* the largest activation of a tile comes to 2^13 .. 2^14: f16 ends at 2^16 */

template <enum dtype T>
static __device__ __forceinline__ void mma_halves(float d[4], const uint32_t a[4],
                                                  const uint32_t b[2])
{
    if constexpr (T == DTYPE_F16) {
        ptx_mma_f16(d, a, b);
    } else {
        ptx_mma_bf16(d, a, b);
    }
}

/* Two values as halves, and what is left of them. */
template <enum dtype T>
static __device__ __forceinline__ void split_two(float x, float y, uint32_t *high, uint32_t *low)
{
    if constexpr (T == DTYPE_F16) {
        *high = ptx_f16x2(x, y);
        *low = ptx_f16x2(x - ptx_f32_of_f16(*high & 0xffff), y - ptx_f32_of_f16(*high >> 16));
    } else {
        *high = ptx_bf16x2(x, y);
        *low = ptx_bf16x2(x - float_of_bits(*high << 16), y - float_of_bits(*high & 0xffff0000u));
    }
}

/* Eight values of a tile that four neighbours of the warp hold together, as halves. Returns what their products are to be
 * multiplied with. */
template <enum dtype T>
static __device__ __forceinline__ float split_eight(const float x[8], uint32_t high[4],
                                                    uint32_t low[4])
{
    float scale = 1.0f, back = 1.0f;
    if constexpr (T == DTYPE_F16) {
        uint32_t top = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t bits;
            memcpy(&bits, &x[i], sizeof bits);
            bits &= 0x7fffffffu;
            top = bits > top ? bits : top;
        }
        for (int off = 1; off <= 2; off *= 2) {
            uint32_t other = __shfl_xor_sync(ALL_LANES, top, off);
            top = other > top ? other : top;
        }
        uint32_t exponent = top >> 23 > TOP_BITS + 1 ? top >> 23 : TOP_BITS + 1;
        scale = float_of_bits((254 + TOP_BITS - exponent) << 23);
        back = float_of_bits((exponent - TOP_BITS) << 23);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        split_two<T>(x[2 * i] * scale, x[2 * i + 1] * scale, &high[i], &low[i]);
    }
    return back;
}

static __device__ __forceinline__ uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* A tile: rows g and g + 8 of the weights, a column's halves, into acc as in add_tile. */
template <enum dtype T>
static __device__ __forceinline__ void add_halves(const uint4 w[2], const uint32_t high[4],
                                                  const uint32_t low[4], const float back[2],
                                                  float acc[4])
{
    float c[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t *x = half == 0 ? low : high;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const uint32_t a[4] = { word_of(w[0], i), word_of(w[1], i), word_of(w[0], i + 1),
                                    word_of(w[1], i + 1) };
            const uint32_t b[2] = { x[i], x[i + 1] };
            mma_halves<T>(c, a, b);
        }
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        acc[e] = T == DTYPE_F16 ? fmaf(c[e], back[e % 2], acc[e]) : acc[e] + c[e];
    }
}

/* Eight activations; zeros past the row's end, which no piece straddles. */
static __device__ __forceinline__ void load_eight(const float *x, bool inside, uint32_t aligned,
                                                  float to[8])
{
    if (!inside) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            to[i] = 0.0f;
        }
    } else if (aligned) {
        const uint4 v[2] = { get128((const uint8_t *)x), get128((const uint8_t *)(x + 4)) };
#pragma unroll
        for (int i = 0; i < 8; i++) {
            to[i] = float_of_bits(word_of(v[i / 4], i % 4));
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            to[i] = x[i];
        }
    }
}

/* Rows g and g + 8 of a group, where the lane's 16 bytes of the first tile stand. Rows past the end repeat the last: what
 * they give is not stored. */
static __device__ __forceinline__ void rows_of(const struct product_one *p, uint32_t expert,
                                               uint32_t group, uint32_t lane,
                                               const uint8_t *rows[2])
{
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t row = group * GROUP_ROWS + lane / 4 + 8 * r;
        row = row < p->w.m ? row : p->w.m - 1;
        rows[r] = p->w.data + expert * p->w.expert_bytes + row * p->w.row_bytes + lane % 4 * 16;
    }
}

template <uint32_t N>
static __device__ __forceinline__ void put_all(const struct product_args *a,
                                               const struct product_one *p,
                                               const struct chunk_view *v, uint32_t group,
                                               uint32_t lane, const float acc[N][4])
{
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            uint32_t row = group * GROUP_ROWS + lane / 4 + 8 * (e / 2);
            uint32_t c = 8 * n + 2 * (lane % 4) + e % 2;
            if (row < p->w.m && c < v->n) {
                put(a, p, v->expert, row, row_of_column(a, v, c), acc[n][e]);
            }
        }
    }
}

/* ---- few: N groups of 8 columns ---- */

template <enum dtype T, uint32_t N>
static __global__ void __launch_bounds__(FEW_WARPS *WARP, REGISTERS_128 / FEW_WARPS)
    split_few_kernel(const __grid_constant__ struct product_args a)
{
    DYNAMIC_SHARED(uint8_t, shared);
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    uint32_t group, k = a.products[0].w.k, n_tiles = (k + 31) / 32;
    const struct product_one *p = product_of(&a, blockIdx.x * FEW_WARPS + warp, &group);
    uint8_t *ring = shared + warp * (SPLIT_RING * 2 * WARP * 16) + lane * 16;
    if (a.chunks) {
        ptx_wait_for_others();
    }
    struct chunk_view v = chunk_of(&a, blockIdx.y, 8 * N);
    if (!p || v.n == 0) {
        ptx_wait_for_others();
        return; /* a warp together */
    }
    const uint8_t *rows[2];
    rows_of(p, v.expert, group, lane, rows);
    auto fetch = [=](uint32_t tile) { /* a lane copies what it will read itself */
        if (32 * tile + 8 * t < k) {
            uint8_t *to = ring + tile % SPLIT_RING * (2 * WARP * 16);
            ptx_copy16(to, rows[0] + 64 * (uint64_t)tile);
            ptx_copy16(to + WARP * 16, rows[1] + 64 * (uint64_t)tile);
        }
    };
    for (uint32_t i = 0; i + 1 < SPLIT_RING; i++) {
        if (i < n_tiles) {
            fetch(i);
        }
        ptx_copies_commit();
    }
    ptx_wait_for_others();
    const float *x[N];
    float acc[N][4], now[N][8];
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
        /* Columns past the end repeat the first. */
        uint32_t own = 8 * n + g < v.n ? 8 * n + g : 0;
        x[n] = a.x + (uint64_t)(row_of_column(&a, &v, own) / a.x_share) * a.x_stride + 8 * t;
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
        load_eight(x[n], 8 * t < k, a.x_aligned, now[n]);
    }
    for (uint32_t tile = 0; tile < n_tiles; tile++) {
        float next[N][8];
#pragma unroll
        for (uint32_t n = 0; n < N; n++) { /* a tile ahead: they come from L2 */
            load_eight(x[n] + 32 * (tile + 1), 32 * (tile + 1) + 8 * t < k, a.x_aligned, next[n]);
        }
        ptx_copies_wait<SPLIT_RING - 2>();
        __syncwarp();
        if (tile + SPLIT_RING - 1 < n_tiles) {
            fetch(tile + SPLIT_RING - 1);
        }
        ptx_copies_commit();
        const uint8_t *from = ring + tile % SPLIT_RING * (2 * WARP * 16);
        uint4 w[2] = {};
        if (32 * tile + 8 * t < k) {
            w[0] = get128(from);
            w[1] = get128(from + WARP * 16);
        }
#pragma unroll
        for (uint32_t n = 0; n < N; n++) {
            uint32_t high[4], low[4];
            float own = split_eight<T>(now[n], high, low), back[2] = { own, own };
            if constexpr (T == DTYPE_F16) {
                back[0] = __shfl_sync(ALL_LANES, own, 8 * t);
                back[1] = __shfl_sync(ALL_LANES, own, 8 * t + 4);
            }
            add_halves<T>(w, high, low, back, acc[n]);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                now[n][i] = next[n][i];
            }
        }
    }
    put_all<N>(&a, p, &v, group, lane, acc);
}

/* ---- wide: 8 warps of 16 rows each, N groups of 8 columns, split once for all of them ---- */

/* One step of the columns in shared memory: halves as [tile][high, low][column], then what to multiply with. */
template <uint32_t N> struct split_step {
    static constexpr uint32_t columns = 8 * N, plane = columns * HALF_BYTES;
    static constexpr uint32_t halves = SPLIT_TILES * 2 * plane;
    static constexpr uint32_t bytes = halves + SPLIT_TILES * columns * 4;
    static constexpr uint32_t items = columns * SPLIT_TILES * 4 / (WIDE_WARPS * WARP);
};

/* The thread's eighths of the step that begins at value k0. */
template <uint32_t N>
static __device__ __forceinline__ void load_step(const struct product_args *a, const uint32_t *rows,
                                                 uint32_t k0, float to[split_step<N>::items][8])
{
#pragma unroll
    for (uint32_t i = 0; i < split_step<N>::items; i++) {
        uint32_t item = threadIdx.x + i * WIDE_WARPS * WARP, k = k0 + item % (4 * SPLIT_TILES) * 8;
        const float *x = a->x + (uint64_t)rows[item / (4 * SPLIT_TILES)] * a->x_stride;
        load_eight(x + k, k < a->products[0].w.k, a->x_aligned, to[i]);
    }
}

template <enum dtype T, uint32_t N>
static __device__ __forceinline__ void store_step(uint8_t *to,
                                                  const float x[split_step<N>::items][8])
{
    using step = split_step<N>;
#pragma unroll
    for (uint32_t i = 0; i < step::items; i++) {
        uint32_t item = threadIdx.x + i * WIDE_WARPS * WARP, c = item / (4 * SPLIT_TILES);
        uint32_t piece = item % (4 * SPLIT_TILES), tile = piece / 4;
        uint32_t high[4], low[4];
        float back = split_eight<T>(x[i], high, low);
        uint4 *at = (uint4 *)(void *)(to + 2 * tile * step::plane + c * HALF_BYTES + piece % 4 * 16);
        at[0] = uint4{ high[0], high[1], high[2], high[3] };
        at[step::plane / 16] = uint4{ low[0], low[1], low[2], low[3] };
        if (T == DTYPE_F16 && piece % 4 == 0) {
            ((float *)(void *)(to + step::halves))[tile * step::columns + c] = back;
        }
    }
}

template <enum dtype T, uint32_t N>
static __global__ void __launch_bounds__(WIDE_WARPS *WARP, 1)
    split_wide_kernel(const __grid_constant__ struct product_args a)
{
    using step = split_step<N>;
    DYNAMIC_SHARED(uint8_t, shared);
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    uint32_t *rows = (uint32_t *)(void *)(shared + 2 * step::bytes);
    uint32_t k = a.products[0].w.k, n_steps = (k + 32 * SPLIT_TILES - 1) / (32 * SPLIT_TILES);
    uint32_t group;
    struct chunk_view v = chunk_of(&a, blockIdx.y, step::columns);
    if (v.n == 0) {
        return; /* the whole block */
    }
    const struct product_one *p = product_of(&a, blockIdx.x * WIDE_WARPS + warp, &group);
    for (uint32_t c = threadIdx.x; c < step::columns; c += WIDE_WARPS * WARP) {
        rows[c] = row_of_column(&a, &v, c < v.n ? c : 0) / a.x_share;
    }
    __syncthreads();
    const uint8_t *from[2] = { NULL, NULL };
    if (p) {
        rows_of(p, v.expert, group, lane, from);
    }
    auto load_weights = [=](uint32_t u, uint4 to[SPLIT_TILES][2]) {
#pragma unroll
        for (uint32_t i = 0; i < SPLIT_TILES; i++) {
            uint32_t tile = u * SPLIT_TILES + i;
            bool inside = p && 32 * tile + 8 * t < k;
            to[i][0] = inside ? get128(from[0] + 64 * (uint64_t)tile) : uint4{};
            to[i][1] = inside ? get128(from[1] + 64 * (uint64_t)tile) : uint4{};
        }
    };
    float x[step::items][8], acc[N][4];
    uint4 next[SPLIT_TILES][2];
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
    }
    load_step<N>(&a, rows, 0, x);
    load_weights(0, next);
    for (uint32_t u = 0; u < n_steps; u++) {
        uint8_t *columns = shared + u % 2 * step::bytes;
        uint4 w[SPLIT_TILES][2];
#pragma unroll
        for (uint32_t i = 0; i < 2 * SPLIT_TILES; i++) {
            w[i / 2][i % 2] = next[i / 2][i % 2];
        }
        store_step<T, N>(columns, x);
        __syncthreads(); /* who still reads the step before reads the other half */
        if (u + 1 < n_steps) {
            load_step<N>(&a, rows, (u + 1) * 32 * SPLIT_TILES, x);
            load_weights(u + 1, next);
        }
        if (!p) {
            continue;
        }
#pragma unroll
        for (uint32_t i = 0; i < SPLIT_TILES; i++) {
            const uint8_t *at = columns + 2 * i * step::plane + g * HALF_BYTES + 16 * t;
            const uint8_t *backs = columns + step::halves + (i * step::columns + 2 * t) * 4;
#pragma unroll
            for (uint32_t n = 0; n < N; n++) {
                if (8 * n >= v.n) {
                    continue;
                }
                uint4 h = get128(at + 8 * n * HALF_BYTES);
                uint4 l = get128(at + step::plane + 8 * n * HALF_BYTES);
                const uint32_t high[4] = { h.x, h.y, h.z, h.w }, low[4] = { l.x, l.y, l.z, l.w };
                float back[2] = { 1.0f, 1.0f };
                if constexpr (T == DTYPE_F16) {
                    uint2 both = get64(backs + 8 * n * 4);
                    back[0] = float_of_bits(both.x);
                    back[1] = float_of_bits(both.y);
                }
                add_halves<T>(w[i], high, low, back, acc[n]);
            }
        }
    }
    if (p) {
        put_all<N>(&a, p, &v, group, lane, acc);
    }
}

/* ---- launchers ---- */

template <enum dtype T>
static int launch_split(const struct product_args *a, uint32_t n_columns, uint32_t n_chunks,
                        CUDA_STREAM stream, struct err *err)
{
    constexpr uint32_t few_shared = FEW_WARPS * SPLIT_RING * 2 * WARP * 16;
    constexpr uint32_t medium = 2 * split_step<4>::bytes + 32 * 4,
                       large = 2 * split_step<16>::bytes + 128 * 4;
    static_assert(few_shared <= 48u << 10 && large <= 99u << 10, "shared memory of a block");
    dim3 few(blocks_of(a->n_groups, FEW_WARPS), n_chunks);
    dim3 wide(blocks_of(a->n_groups, WIDE_WARPS), n_chunks);
    if (n_columns == 8) {
        LAUNCH_EARLY((split_few_kernel<T, 1>), few, FEW_WARPS * WARP, few_shared, stream, *a);
    } else if (n_columns == 16) {
        LAUNCH_EARLY((split_few_kernel<T, 2>), few, FEW_WARPS * WARP, few_shared, stream, *a);
    } else if (n_columns == 32) {
        LAUNCH((split_wide_kernel<T, 4>), wide, WIDE_WARPS * WARP, medium, stream, *a);
    } else {
        if (cuda_allow_shared((const void *)split_wide_kernel<T, 16>, large, err) < 0) {
            return -1;
        }
        LAUNCH((split_wide_kernel<T, 16>), wide, WIDE_WARPS * WARP, large, stream, *a);
    }
    return 0;
}

extern const struct product_instance product_float[] = {
    { DTYPE_F16, launch_split<DTYPE_F16> },
    { DTYPE_BF16, launch_split<DTYPE_BF16> },
    { DTYPE_F32, NULL },
};
