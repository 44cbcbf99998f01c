/* Matrix products: quantised weights, read as they stand, meet activations quantised to int8 per 32 values.
 *
 * A sum over the 32 values of a tile is exact in int32; tiles are added in f32 by fmaf in a fixed order. Decode, 1 to 16
 * columns: tile t belongs to chain t mod 32, a chain adds its tiles in order, chains are joined by the tree of
 * reduce.cuh. One column: a chain is a lane, a warp is a row (bound by reading W once). 2 to 16 columns: eight warps, four
 * chains each, unpack 16 rows once for all columns and multiply on the int8 tensor cores (m16n8k32; m16n8k16 where a
 * tile has two scales). Same order, so the same bits for any number of columns up to 16. More columns (prefill): 64
 * rows by 64 columns a block, one chain: the CPU's own order, and its bits.
 *
 * Reference: cpu/matmul.c. Not measured on a device yet. */
#include "worker/cuda/dequant.cuh"
#include "worker/cuda/reduce.cuh"

#define CHAINS       32
#define VEC_WARPS    4 /* rows of a block: enough blocks for small m, few enough launches for large */
#define FEW_COLUMNS  16
#define FEW_WARPS    8
#define FEW_ROWS     16
#define WIDE_ROWS    64
#define WIDE_COLUMNS 64
#define CODE_WORDS   9 /* eight words of a tile and one so that neighbours lie in other banks */

struct product_args {
    struct device_matrix w;
    const struct dequant_tables *tables;
    const int8_t *codes;                /* [columns][k] */
    const struct column_block *columns; /* [columns][k / 32] */
    const float *x;                     /* float weights: the columns themselves */
    uint32_t x_stride, x_share, n;
    const int32_t *experts;     /* per row of y, or NULL */
    const float *bias, *scales; /* or NULL */
    float *y;
    uint32_t y_stride;
};

/* ---- activations ---- */

#define QUANTISE_WARPS   4
#define ROUND_MAGIC      0x1.8p23f /* leaves the nearest integer, ties to even, in the low bits */
#define ROUND_MAGIC_BITS 0x4b400000

/* A warp for 32 values, a lane for one. The CPU's steps (matmul_lanes.inc, quantise). */
static __global__ void quantise_kernel(const float *x, uint32_t x_stride, uint32_t k, int8_t *codes,
                                       struct column_block *columns)
{
    uint32_t block = blockIdx.y * QUANTISE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (block >= k / 32) {
        return;
    }
    float v = x[(uint64_t)blockIdx.x * x_stride + 32 * block + lane], d, inverse = 0.0f;
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    uint32_t top = warp_max(bits & 0x7fffffffu);
    float largest = float_of_bits(top);
    if (top >= 0x7f800000u) {
        d = float_of_bits(0x7fc00000u);
    } else if (largest < 1e-35f) {
        d = 0.0f;
    } else {
        d = largest / 127.0f;
        inverse = 1.0f / d;
    }
    int code = 0;
    if (inverse > 0.0f) {
        float shifted = v * inverse + ROUND_MAGIC;
        memcpy(&code, &shifted, sizeof code);
        code -= ROUND_MAGIC_BITS;
    }
    codes[(uint64_t)blockIdx.x * k + 32 * block + lane] = (int8_t)code;
    int sum = code;
    for (int off = 8; off > 0; off /= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, off);
    }
    int other = __shfl_xor_sync(ALL_LANES, sum, 16);
    if (lane == 0) {
        struct column_block *out = &columns[(uint64_t)blockIdx.x * (k / 32) + block];
        out->d = d;
        out->sum[0] = d * (float)sum;
        out->sum[1] = d * (float)other;
        out->sum[2] = d * (float)(sum + other);
    }
}

/* ---- one output ---- */

/* acc and what one tile gives: s, the sums of products (of both halves where the format has two scales). */
template <enum dtype T>
static __device__ __forceinline__ float add_tile(float acc, const float scale[2],
                                                 const float nmin[2], const int s[2],
                                                 const struct column_block *x)
{
    acc = fmaf(scale[0], (float)s[0] * x->d, acc);
    if (format<T>::sub16) {
        acc = fmaf(scale[1], (float)s[1] * x->d, acc);
    }
    if (format<T>::has_min && format<T>::sub16) {
        acc = fmaf(nmin[0], x->sum[0], acc);
        acc = fmaf(nmin[1], x->sum[1], acc);
    } else if (format<T>::has_min) {
        acc = fmaf(nmin[0], x->sum[2], acc);
    }
    return acc;
}

static __device__ __forceinline__ void put(const struct product_args *a, uint32_t expert,
                                           uint32_t row, uint32_t column, float v)
{
    v = a->bias ? v + a->bias[(uint64_t)expert * a->w.m + row] : v;
    a->y[(uint64_t)column * a->y_stride + row] = a->scales ? v * a->scales[expert] : v;
}

/* ---- one column: a warp for a row, a lane for a chain; all blocks in one row, as only x may pass 65535 ---- */

template <enum dtype T>
static __global__ void __launch_bounds__(VEC_WARPS *WARP) matvec_kernel(struct product_args a)
{
    uint32_t n_blocks = (a.w.m + VEC_WARPS - 1) / VEC_WARPS, lane = threadIdx.x % WARP;
    uint32_t row = blockIdx.x % n_blocks * VEC_WARPS + threadIdx.x / WARP;
    uint32_t column = blockIdx.x / n_blocks, from = column / a.x_share;
    uint32_t expert = a.experts ? (uint32_t)a.experts[column] : 0;
    if (row >= a.w.m || expert >= a.w.n_experts) {
        return;
    }
    const uint8_t *weights = a.w.data + expert * a.w.expert_bytes + row * a.w.row_bytes;
    const int8_t *codes = a.codes + (uint64_t)from * a.w.k;
    const struct column_block *x = a.columns + (uint64_t)from * (a.w.k / 32);
    float acc = 0.0f;
    for (uint32_t at = lane; at < a.w.k / 32; at += CHAINS) {
        struct tile t;
        row_tile<T>(weights, a.w.k, at, a.tables, &t);
        int s[2] = { 0, 0 };
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int half = format<T>::sub16 ? i / 4 : 0;
            s[half] = ptx_dp4a(t.q[i], ptx_load32(codes + 32 * at + 4 * i), s[half]);
        }
        acc = add_tile<T>(acc, t.scale, t.nmin, s, x + at);
    }
    acc = warp_sum(acc);
    if (lane == 0) {
        put(&a, expert, row, column, acc);
    }
}

/* ---- tiles on the tensor cores ---- */

struct unpacked {
    float scale[2], nmin[2];
};

/* The sums of 16 rows (their tiles at `codes`, rows stride words apart) with 8 columns of 32 codes: element i of the
 * thread's four is s[i][0] (and s[i][1]). b: the thread's column codes. */
template <enum dtype T>
static __device__ __forceinline__ void multiply(const uint32_t *codes, const uint32_t b[2],
                                                int s[4][2])
{
    uint32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const uint32_t *top = codes + g * CODE_WORDS, *bottom = codes + (g + 8) * CODE_WORDS;
    const uint32_t frag[4] = { top[t], bottom[t], top[4 + t], bottom[4 + t] };
    int c[2][4] = { { 0, 0, 0, 0 }, { 0, 0, 0, 0 } };
    if (format<T>::sub16) {
        ptx_mma_k16(c[0], frag, b[0]);
        ptx_mma_k16(c[1], frag + 2, b[1]);
    } else {
        ptx_mma_k32(c[0], frag, b);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        s[i][0] = c[0][i];
        s[i][1] = c[1][i];
    }
}

/* Unpacks tile `at` of a row into shared memory. */
template <enum dtype T>
static __device__ __forceinline__ void unpack(const struct product_args *a, uint32_t row,
                                              uint32_t at, uint32_t *codes, struct unpacked *u)
{
    struct tile t;
    row = row < a->w.m ? row : a->w.m - 1; /* rows past the end compute what nobody reads */
    row_tile<T>(a->w.data + (uint64_t)row * a->w.row_bytes, a->w.k, at, a->tables, &t);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        codes[i] = t.q[i];
    }
    u->scale[0] = t.scale[0];
    u->scale[1] = t.scale[1];
    u->nmin[0] = t.nmin[0];
    u->nmin[1] = t.nmin[1];
}

/* ---- 2 to 16 columns ---- */

#define FEW_TILES  2 /* unpacked at a time by a warp: a lane for each row and tile */
#define FEW_CHAINS (CHAINS / FEW_WARPS) /* of a warp */

/* N: groups of 8 columns, 1 or 2. */
template <enum dtype T, int N>
static __global__ void __launch_bounds__(FEW_WARPS *WARP) few_kernel(struct product_args a)
{
    __shared__ uint32_t codes[FEW_WARPS][FEW_TILES * FEW_ROWS * CODE_WORDS];
    __shared__ struct unpacked scales[FEW_WARPS][FEW_TILES * FEW_ROWS];
    __shared__ float sums[CHAINS][FEW_ROWS * 8];
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    uint32_t row0 = blockIdx.x * FEW_ROWS, n_tiles = a.w.k / 32;
    float acc[FEW_CHAINS][N][4];
#pragma unroll
    for (int i = 0; i < FEW_CHAINS * N * 4; i++) {
        acc[i / (N * 4)][i / 4 % N][i % 4] = 0.0f;
    }
    for (uint32_t base = 0; base < n_tiles; base += CHAINS) {
#pragma unroll
        for (uint32_t j = 0; j < FEW_CHAINS; j += FEW_TILES) {
            uint32_t first = base + FEW_CHAINS * warp + j, mine = first + lane / FEW_ROWS;
            if (mine < n_tiles) {
                unpack<T>(&a, row0 + lane % FEW_ROWS, mine, codes[warp] + lane * CODE_WORDS,
                          &scales[warp][lane]);
            }
            __syncwarp();
#pragma unroll
            for (uint32_t i = 0; i < FEW_TILES; i++) {
                uint32_t at = first + i;
                if (at >= n_tiles) {
                    continue; /* the whole warp */
                }
#pragma unroll
                for (uint32_t n = 0; n < N; n++) {
                    uint32_t b[2] = { 0, 0 }, column = 8 * n + g;
                    if (column < a.n) {
                        const int8_t *x = a.codes + (uint64_t)column * a.w.k + 32 * at + 4 * t;
                        b[0] = ptx_load32(x);
                        b[1] = ptx_load32(x + 16);
                    }
                    int s[4][2];
                    multiply<T>(codes[warp] + i * FEW_ROWS * CODE_WORDS, b, s);
#pragma unroll
                    for (uint32_t e = 0; e < 4; e++) {
                        uint32_t to = 8 * n + 2 * t + e % 2;
                        const struct unpacked *u = &scales[warp][i * FEW_ROWS + g + 8 * (e / 2)];
                        if (to < a.n) {
                            acc[j + i][n][e] = add_tile<T>(acc[j + i][n][e], u->scale, u->nmin,
                                                           s[e],
                                                           &a.columns[(uint64_t)to * n_tiles + at]);
                        }
                    }
                }
            }
            __syncwarp();
        }
    }
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
#pragma unroll
        for (uint32_t j = 0; j < FEW_CHAINS; j++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                sums[FEW_CHAINS * warp + j][(g + 8 * (e / 2)) * 8 + 2 * t + e % 2] = acc[j][n][e];
            }
        }
        __syncthreads();
        for (uint32_t off = CHAINS / 2; off > 0; off /= 2) {
            for (uint32_t i = threadIdx.x; i < off * FEW_ROWS * 8; i += blockDim.x) {
                sums[i / (FEW_ROWS * 8)][i % (FEW_ROWS * 8)] +=
                    sums[i / (FEW_ROWS * 8) + off][i % (FEW_ROWS * 8)];
            }
            __syncthreads();
        }
        for (uint32_t i = threadIdx.x; i < FEW_ROWS * 8; i += blockDim.x) {
            uint32_t row = row0 + i / 8, column = 8 * n + i % 8;
            if (row < a.w.m && column < a.n) {
                put(&a, 0, row, column, sums[0][i]);
            }
        }
        __syncthreads();
    }
}

/* ---- prefill ---- */

#define WIDE_WARPS (WIDE_ROWS / 16)
#define WIDE_TILES 2 /* of k at a time: a thread unpacks one tile of weights and copies one of x */

template <enum dtype T>
static __global__ void __launch_bounds__(WIDE_WARPS *WARP) wide_kernel(struct product_args a)
{
    __shared__ uint32_t codes[WIDE_TILES][WIDE_ROWS * CODE_WORDS];
    __shared__ struct unpacked scales[WIDE_TILES][WIDE_ROWS];
    __shared__ uint32_t x[WIDE_TILES][WIDE_COLUMNS * CODE_WORDS];
    __shared__ struct column_block blocks[WIDE_TILES][WIDE_COLUMNS];
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    uint32_t row0 = blockIdx.x * WIDE_ROWS, column0 = blockIdx.y * WIDE_COLUMNS;
    uint32_t n_tiles = a.w.k / 32, own = threadIdx.x % WIDE_ROWS, part = threadIdx.x / WIDE_ROWS;
    float acc[WIDE_COLUMNS / 8][4];
#pragma unroll
    for (int i = 0; i < WIDE_COLUMNS / 8 * 4; i++) {
        acc[i / 4][i % 4] = 0.0f;
    }
    for (uint32_t base = 0; base < n_tiles; base += WIDE_TILES) {
        uint32_t mine = base + part;
        if (mine < n_tiles) {
            uint32_t column = column0 + own < a.n ? column0 + own : a.n - 1;
            unpack<T>(&a, row0 + own, mine, codes[part] + own * CODE_WORDS, &scales[part][own]);
            const int8_t *from = a.codes + (uint64_t)column * a.w.k + 32 * mine;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[part][own * CODE_WORDS + i] = ptx_load32(from + 4 * i);
            }
            blocks[part][own] = a.columns[(uint64_t)column * n_tiles + mine];
        }
        __syncthreads();
        for (uint32_t i = 0; i < WIDE_TILES && base + i < n_tiles; i++) {
#pragma unroll
            for (uint32_t n = 0; n < WIDE_COLUMNS / 8; n++) {
                const uint32_t *word = x[i] + (8 * n + g) * CODE_WORDS + t;
                const uint32_t b[2] = { word[0], word[4] };
                int s[4][2];
                multiply<T>(codes[i] + 16 * warp * CODE_WORDS, b, s);
#pragma unroll
                for (uint32_t e = 0; e < 4; e++) {
                    const struct unpacked *u = &scales[i][16 * warp + g + 8 * (e / 2)];
                    acc[n][e] = add_tile<T>(acc[n][e], u->scale, u->nmin, s[e],
                                            &blocks[i][8 * n + 2 * t + e % 2]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (uint32_t n = 0; n < WIDE_COLUMNS / 8; n++) {
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            uint32_t row = row0 + 16 * warp + g + 8 * (e / 2);
            uint32_t column = column0 + 8 * n + 2 * t + e % 2;
            if (row < a.w.m && column < a.n) {
                put(&a, 0, row, column, acc[n][e]);
            }
        }
    }
}

/* ---- float weights: f32 activations, a lane for a chain of every 32nd value ---- */

template <enum dtype T>
static __global__ void __launch_bounds__(VEC_WARPS *WARP) float_kernel(struct product_args a)
{
    uint32_t n_blocks = (a.w.m + VEC_WARPS - 1) / VEC_WARPS, lane = threadIdx.x % WARP;
    uint32_t row = blockIdx.x % n_blocks * VEC_WARPS + threadIdx.x / WARP;
    uint32_t column = blockIdx.x / n_blocks;
    uint32_t expert = a.experts ? (uint32_t)a.experts[column] : 0;
    if (row >= a.w.m || expert >= a.w.n_experts) {
        return;
    }
    const uint8_t *weights = a.w.data + expert * a.w.expert_bytes + row * a.w.row_bytes;
    const float *x = a.x + (uint64_t)(column / a.x_share) * a.x_stride;
    float acc = 0.0f;
    for (uint32_t j = lane; j < a.w.k; j += CHAINS) {
        acc = fmaf(row_float<T>(weights, j), x[j], acc);
    }
    acc = warp_sum(acc);
    if (lane == 0) {
        put(&a, expert, row, column, acc);
    }
}

/* ---- launchers ---- */

/* n_rows rows of y; few and wide only where all share one matrix. */
template <enum dtype T> static void launch(const struct product_args *a, CUDA_STREAM stream)
{
    uint32_t m = a->w.m;
    if (a->n == 1 || a->experts) {
        LAUNCH(matvec_kernel<T>, blocks_of(m, VEC_WARPS) * a->n, VEC_WARPS * WARP, 0, stream, *a);
    } else if (a->n <= 8) {
        LAUNCH((few_kernel<T, 1>), blocks_of(m, FEW_ROWS), FEW_WARPS * WARP, 0, stream, *a);
    } else if (a->n <= FEW_COLUMNS) {
        LAUNCH((few_kernel<T, 2>), blocks_of(m, FEW_ROWS), FEW_WARPS * WARP, 0, stream, *a);
    } else {
        LAUNCH(wide_kernel<T>, dim3(blocks_of(m, WIDE_ROWS), blocks_of(a->n, WIDE_COLUMNS)),
               WIDE_WARPS * WARP, 0, stream, *a);
    }
}

template <enum dtype T> static void launch_float(const struct product_args *a, CUDA_STREAM stream)
{
    LAUNCH(float_kernel<T>, blocks_of(a->w.m, VEC_WARPS) * a->n, VEC_WARPS * WARP, 0, stream, *a);
}

static const struct instance {
    enum dtype dtype;
    bool floats;
    void (*launch)(const struct product_args *, CUDA_STREAM);
} instances[] = { { DTYPE_F32, true, launch_float<DTYPE_F32> },
                  { DTYPE_F16, true, launch_float<DTYPE_F16> },
                  { DTYPE_BF16, true, launch_float<DTYPE_BF16> },
#define ROW(type, ...) { DTYPE_##type, false, launch<DTYPE_##type> },
                  DEQUANT_TYPES(ROW)
#undef ROW
};

static const struct instance *instance_of(enum dtype dtype)
{
    for (const struct instance &i : instances) {
        if (i.dtype == dtype) {
            return &i;
        }
    }
    return NULL;
}

int cuda_matmul_check(struct backend *, const struct matrix *w, struct err *err)
{
    if (!instance_of(w->dtype)) {
        return err_set(err, ERR_UNSUPPORTED, "tensor %s: cuda does not multiply %s", w->name,
                       dtype_get(w->dtype)->name);
    }
    return 0;
}

static int quantise(struct cuda_backend *c, const float *x, uint32_t x_stride, uint32_t n,
                    uint32_t k, struct err *err)
{
    if ((size_t)n * k > c->max_codes) {
        return err_set(err, ERR_NO_FIT, "cuda: %u columns of %u values, more than was reserved", n,
                       k);
    }
    LAUNCH(quantise_kernel, dim3(n, blocks_of(k / 32, QUANTISE_WARPS)), QUANTISE_WARPS * WARP, 0,
           c->stream, x, x_stride, k, c->codes, c->columns);
    return 0;
}

static struct product_args args_of(struct cuda_backend *c, const struct matrix *w)
{
    struct product_args a = {};
    a.w = device_matrix_of(w);
    a.tables = c->tables;
    a.codes = c->codes;
    a.columns = c->columns;
    a.x_share = 1;
    return a;
}

int cuda_matmul(struct backend *b, const struct op_matmul *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    bool quantised = false;
    if (op->n_rows == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < op->n_products; i++) {
        const struct op_product *p = &op->products[i];
        const struct instance *instance = instance_of(p->w->dtype);
        if (cuda_matmul_check(b, p->w, err) < 0 ||
            (!instance->floats && !quantised &&
             quantise(c, op->x, op->x_stride, op->n_rows, op->k, err) < 0)) {
            return -1;
        }
        quantised |= !instance->floats;
        struct product_args a = args_of(c, p->w);
        a.x = op->x;
        a.x_stride = op->x_stride;
        a.n = op->n_rows;
        a.bias = p->bias;
        a.y = p->y;
        a.y_stride = p->y_stride;
        instance->launch(&a, c->stream);
    }
    return cuda_launched("matmul", err);
}

int cuda_matmul_experts(struct backend *b, const struct op_matmul_experts *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    if (op->n_rows == 0) {
        return 0;
    }
    if (cuda_matmul_check(b, op->w, err) < 0) {
        return -1;
    }
    const struct instance *instance = instance_of(op->w->dtype);
    /* As many rows at a time as their activations have room for. */
    uint64_t room = c->max_codes / op->w->k * op->x_share;
    uint32_t at_once = room < op->n_rows ? (uint32_t)room : op->n_rows;
    if (at_once == 0) {
        return err_set(err, ERR_NO_FIT, "cuda: a row of %u values, more than was reserved",
                       op->w->k);
    }
    for (uint32_t begin = 0; begin < op->n_rows; begin += at_once) {
        uint32_t n = op->n_rows - begin < at_once ? op->n_rows - begin : at_once;
        const float *x = op->x + (uint64_t)(begin / op->x_share) * op->x_stride;
        if (!instance->floats &&
            quantise(c, x, op->x_stride, (n + op->x_share - 1) / op->x_share, op->w->k, err) < 0) {
            return -1;
        }
        struct product_args a = args_of(c, op->w);
        a.x = x;
        a.x_stride = op->x_stride;
        a.x_share = op->x_share;
        a.n = n;
        a.experts = op->experts + begin;
        a.bias = op->bias;
        a.scales = op->scale;
        a.y = op->y + (uint64_t)begin * op->y_stride;
        a.y_stride = op->y_stride;
        instance->launch(&a, c->stream);
    }
    return cuda_launched("matmul of experts", err);
}
