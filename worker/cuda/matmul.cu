/* Matrix products. Quantised weights meet activations quantised to int8 per 32 values: product.cuh has the kernels and the
 * one order of sums that makes all of them give the CPU's bits; which runs is a matter of speed alone. Float
 * weights meet f32 activations: product_float.cu, or here. Reference: cpu/matmul.c. Not measured on a device yet. */
#include "worker/cuda/product.h"
#include "worker/cuda/quantise.cuh"

#define QUANTISE_WARPS 4

/* ---- activations ---- */

/* A warp for 32 values of a row. */
static __global__ void quantise_kernel(const float *x, uint32_t x_stride, struct quantise_to to)
{
    uint32_t tile = blockIdx.y * QUANTISE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    ptx_let_others_start();
    if (tile < to.n_tiles) {
        quantise_value(&to, blockIdx.x, tile, lane,
                       x[(uint64_t)blockIdx.x * x_stride + 32 * tile + lane]);
    }
}

/* ---- float weights off the tensor cores: f32, few rows, rows that are not whole pieces of 16 bytes ---- */

#define FLOAT_WARPS   4
#define FLOAT_COLUMNS 8   /* share a reading of W */
#define FLOAT_LANE    4   /* values of a lane, of every 128 */
#define SPLIT_ROWS    512 /* of all experts: fewer leave the device idle in groups of 16 */

struct float_args {
    struct device_matrix w;
    const float *x;
    uint32_t x_stride, x_share, n;
    uint32_t aligned;       /* W and x to 16 bytes, every row */
    const int32_t *experts; /* per row of y: then one column a block */
    const float *bias, *scales;
    float *y;
    uint32_t y_stride;
};

/* Values j .. j + n of a row, n at most FLOAT_LANE, zeros behind. */
template <enum dtype T>
static __device__ __forceinline__ void lane_weights(const uint8_t *row, uint32_t j, uint32_t n,
                                                    float w[FLOAT_LANE])
{
#pragma unroll
    for (uint32_t i = 0; i < FLOAT_LANE; i++) {
        w[i] = i < n ? row_float<T>(row, j + i) : 0.0f;
    }
}

static __device__ __forceinline__ void four_floats(const void *from, float to[FLOAT_LANE])
{
    uint4 v = get128((const uint8_t *)from);
    to[0] = float_of_bits(v.x);
    to[1] = float_of_bits(v.y);
    to[2] = float_of_bits(v.z);
    to[3] = float_of_bits(v.w);
}

/* A warp for a row of W and COLUMNS of x; a lane for a chain of four of every 128 values: the same sums for any COLUMNS. */
template <enum dtype T, uint32_t COLUMNS>
static __global__ void __launch_bounds__(FLOAT_WARPS *WARP) float_kernel(struct float_args a)
{
    /* All blocks in one row, as only x may pass 65535. */
    uint32_t n_blocks = (a.w.m + FLOAT_WARPS - 1) / FLOAT_WARPS, lane = threadIdx.x % WARP;
    uint32_t row = blockIdx.x % n_blocks * FLOAT_WARPS + threadIdx.x / WARP;
    uint32_t column0 = blockIdx.x / n_blocks * COLUMNS;
    uint32_t expert = a.experts ? (uint32_t)a.experts[column0] : 0;
    if (row >= a.w.m || expert >= a.w.n_experts) {
        return;
    }
    const uint8_t *weights = a.w.data + expert * a.w.expert_bytes + row * a.w.row_bytes;
    float acc[COLUMNS];
    const float *x[COLUMNS];
#pragma unroll
    for (uint32_t c = 0; c < COLUMNS; c++) {
        uint32_t column = column0 + c < a.n ? column0 + c : column0;
        x[c] = a.x + (uint64_t)(column / a.x_share) * a.x_stride;
        acc[c] = 0.0f;
    }
    uint32_t j = FLOAT_LANE * lane;
    if (T == DTYPE_F32 && a.aligned) {
#pragma unroll 4
        for (; j + FLOAT_LANE <= a.w.k; j += FLOAT_LANE * WARP) {
            float w[FLOAT_LANE], values[FLOAT_LANE];
            four_floats(weights + 4 * (uint64_t)j, w);
#pragma unroll
            for (uint32_t c = 0; c < COLUMNS; c++) {
                four_floats(x[c] + j, values);
#pragma unroll
                for (uint32_t i = 0; i < FLOAT_LANE; i++) {
                    acc[c] = fmaf(w[i], values[i], acc[c]);
                }
            }
        }
    }
    for (; j < a.w.k; j += FLOAT_LANE * WARP) {
        uint32_t n = a.w.k - j < FLOAT_LANE ? a.w.k - j : FLOAT_LANE;
        float w[FLOAT_LANE];
        lane_weights<T>(weights, j, n, w);
#pragma unroll
        for (uint32_t c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (uint32_t i = 0; i < FLOAT_LANE; i++) {
                if (i < n) {
                    acc[c] = fmaf(w[i], x[c][j + i], acc[c]);
                }
            }
        }
    }
#pragma unroll
    for (uint32_t c = 0; c < COLUMNS; c++) {
        float v = warp_sum(acc[c]);
        if (lane == 0 && column0 + c < a.n) {
            v = a.bias ? v + a.bias[(uint64_t)expert * a.w.m + row] : v;
            a.y[(uint64_t)(column0 + c) * a.y_stride + row] = a.scales ? v * a.scales[expert] : v;
        }
    }
}

template <enum dtype T> static void launch_float(const struct float_args *a, CUDA_STREAM stream)
{
    uint32_t n_blocks = blocks_of(a->w.m, FLOAT_WARPS);
    if (a->n == 1 || a->experts) {
        LAUNCH((float_kernel<T, 1>), n_blocks * a->n, FLOAT_WARPS * WARP, 0, stream, *a);
    } else {
        LAUNCH((float_kernel<T, FLOAT_COLUMNS>), n_blocks * blocks_of(a->n, FLOAT_COLUMNS),
               FLOAT_WARPS * WARP, 0, stream, *a);
    }
}

/* ---- the table ---- */

static const struct float_instance {
    enum dtype dtype;
    void (*launch)(const struct float_args *, CUDA_STREAM);
} floats[] = { { DTYPE_F32, launch_float<DTYPE_F32> },
               { DTYPE_F16, launch_float<DTYPE_F16> },
               { DTYPE_BF16, launch_float<DTYPE_BF16> } };

static const struct float_instance *float_of(enum dtype dtype)
{
    for (const struct float_instance &i : floats) {
        if (i.dtype == dtype) {
            return &i;
        }
    }
    return NULL;
}

/* f16 and bf16 go to the tensor cores by their shape alone, whatever the number of columns. */
static bool splits(const struct matrix *w)
{
    return (w->dtype == DTYPE_F16 || w->dtype == DTYPE_BF16) && w->k % 8 == 0 &&
           (uint64_t)w->m * w->n_experts >= SPLIT_ROWS;
}

static product_launch *launch_of(enum dtype dtype)
{
    static const struct product_instance *const lists[] = { product_small, product_k, product_iq,
                                                            product_float };
    for (const struct product_instance *list : lists) {
        for (; list->launch; list++) {
            if (list->dtype == dtype) {
                return list->launch;
            }
        }
    }
    return NULL;
}

int cuda_matmul_check(struct backend *, const struct matrix *w, struct err *err)
{
    if (!float_of(w->dtype) && !launch_of(w->dtype)) {
        return err_set(err, ERR_UNSUPPORTED, "tensor %s: cuda does not multiply %s", w->name,
                       dtype_get(w->dtype)->name);
    }
    return 0;
}

int cuda_matmul_reserve(struct cuda_backend *c, struct err *err)
{
    const struct backend_limits *l = &c->limits;
    /* What an activation leaves stands beside what it came from; experts' rows come in pieces. */
    size_t codes = round_up(l->max_rows, 8) * (l->max_k + round_up(l->max_k_act, 32));
    size_t columns_have = c->max_codes / 32 * 4 * sizeof *c->columns, codes_have = c->max_codes;
    size_t order_have = c->max_order * sizeof *c->order;
    size_t chunks_have = c->max_order * sizeof *c->chunks, order = l->max_rows_wide + 1;
    if (cuda_grow(c, (void **)&c->codes, &codes_have, codes, err) < 0 ||
        cuda_grow(c, (void **)&c->columns, &columns_have, codes / 32 * 4 * sizeof *c->columns,
                  err) < 0 ||
        cuda_grow(c, (void **)&c->order, &order_have, order * sizeof *c->order, err) < 0 ||
        cuda_grow(c, (void **)&c->chunks, &chunks_have, order * sizeof *c->chunks, err) < 0) {
        return -1;
    }
    c->max_codes = codes_have;
    c->max_order = (uint32_t)(order_have / sizeof *c->order);
    cuda_forget(c);
    c->sorted.experts = NULL;
    return 0;
}

/* ---- products that share x ---- */

/* Unless the op before has left these rows quantised. */
static int quantise(struct cuda_backend *c, const float *x, uint32_t x_stride, uint32_t n,
                    uint32_t k, struct product_args *a, struct err *err)
{
    bool have = c->quantised.x == x && c->quantised.x_stride == x_stride && c->quantised.n == n &&
                c->quantised.k == k;
    struct quantise_to to = quantise_room_at(c, n, k, have ? c->quantised.tile : 0);
    if (!to.codes) {
        return err_set(err, ERR_NO_FIT, "cuda: %u columns of %u values, more than was reserved", n,
                       k);
    }
    if (!have) {
        LAUNCH(quantise_kernel, dim3(n, blocks_of(k / 32, QUANTISE_WARPS)), QUANTISE_WARPS * WARP,
               0, c->stream, x, x_stride, to);
        quantise_remember(c, &to, x, x_stride, n);
    }
    a->codes = to.codes;
    a->columns = to.columns;
    a->plane = to.plane;
    return 0;
}

/* Products write y: what was quantised from there is old. */
static void written(struct cuda_backend *c, const float *y)
{
    const float *x = c->quantised.x;
    if (x && y >= x && y < x + (uint64_t)c->quantised.n * c->quantised.x_stride) {
        cuda_forget(c);
    }
}

/* Columns of the kernel that takes n at once: more than 16 are worth a block's shared memory. */
static uint32_t columns_for(uint32_t n)
{
    return n <= 8 ? 8 : n <= 16 ? 16 : n <= 32 ? 32 : 128;
}

static void add_product(struct product_args *a, const struct matrix *w, const float *bias, float *y,
                        uint32_t y_stride)
{
    struct product_one *p = &a->products[a->n_products++];
    p->w = device_matrix_of(w);
    p->bias = bias;
    p->y = y;
    p->y_stride = y_stride;
    p->first = a->n_groups;
    a->n_groups += blocks_of(w->m, GROUP_ROWS);
}

/* Whether every row begins at a multiple of 16 bytes. */
static bool aligned(const void *at, uint64_t row_bytes)
{
    return ((uintptr_t)at | row_bytes) % 16 == 0;
}

/* The products of one type from number `first` on, in one launch: small matrices fill the device together. */
static int multiply_alike(struct cuda_backend *c, const struct op_matmul *op, uint32_t first,
                          const struct product_args *columns, struct err *err)
{
    enum dtype dtype = op->products[first].w->dtype;
    bool split = splits(op->products[first].w);
    struct product_args a = *columns;
    a.tables = c->tables;
    a.n = op->n_rows;
    a.x = op->x;
    a.x_stride = op->x_stride;
    a.x_aligned = aligned(op->x, 4ull * op->x_stride);
    a.x_share = 1;
    for (uint32_t i = first; i < op->n_products; i++) {
        const struct op_product *p = &op->products[i];
        if (p->w->dtype == dtype && splits(p->w) == split) {
            add_product(&a, p->w, p->bias, p->y, p->y_stride);
        }
    }
    uint32_t n_columns = columns_for(op->n_rows);
    return launch_of(dtype)(&a, n_columns, blocks_of(op->n_rows, n_columns), c->stream, err);
}

static void multiply_floats(struct cuda_backend *c, const struct op_matmul *op,
                            const struct op_product *p)
{
    struct float_args a = {};
    a.w = device_matrix_of(p->w);
    a.x = op->x;
    a.x_stride = op->x_stride;
    a.x_share = 1;
    a.n = op->n_rows;
    a.aligned = aligned(p->w->data, p->w->row_bytes) && aligned(op->x, 4ull * op->x_stride);
    a.bias = p->bias;
    a.y = p->y;
    a.y_stride = p->y_stride;
    float_of(p->w->dtype)->launch(&a, c->stream);
}

/* Whether op's two products and what follows them are one launch: gate and up of one quantised type, whole tiles, and room for what comes out quantised beside what goes in. */
static bool gated_fits(const struct cuda_backend *c, const struct op_matmul *op)
{
    const struct op_act *act = op->act;
    if (!act || op->n_products != 2 || !act->u || act->g_width != act->width) {
        return false;
    }
    const struct op_product *up = &op->products[0], *gate = &op->products[1];
    uint32_t m = up->w->m, x_tiles = (uint32_t)round_up(op->n_rows, 8) * (op->k / 32);
    return act->g == gate->y && act->u == up->y && act->width == m && gate->w->m == m &&
           m % 32 == 0 && up->w->dtype == gate->w->dtype && !float_of(up->w->dtype) &&
           launch_of(up->w->dtype) && (c->quantised.x != op->x || c->quantised.tile == 0) &&
           quantise_room_at(c, op->n_rows, m, x_tiles).codes;
}

static int multiply_gated(struct cuda_backend *c, const struct op_matmul *op, struct err *err)
{
    const struct op_product *up = &op->products[0], *gate = &op->products[1];
    const struct op_act *act = op->act;
    struct product_args a = {};
    if (quantise(c, op->x, op->x_stride, op->n_rows, op->k, &a, err) < 0) {
        return -1;
    }
    a.tables = c->tables;
    a.n = op->n_rows;
    a.x_share = 1;
    a.gated = 1;
    a.act = act->kind;
    a.y = act->y;
    a.y_stride = act->y_stride;
    a.to = quantise_room_at(c, op->n_rows, act->width, (uint32_t)a.plane);
    add_product(&a, gate->w, gate->bias, gate->y, gate->y_stride);
    add_product(&a, up->w, up->bias, up->y, up->y_stride);
    uint32_t n_columns = columns_for(op->n_rows);
    if (launch_of(up->w->dtype)(&a, n_columns, blocks_of(op->n_rows, n_columns), c->stream, err) <
        0) {
        return -1;
    }
    quantise_remember(c, &a.to, act->y, act->y_stride, op->n_rows);
    return cuda_launched("matmul", err);
}

int cuda_matmul(struct backend *b, const struct op_matmul *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct product_args columns = {};
    if (op->n_rows == 0) {
        return 0;
    }
    if (gated_fits(c, op)) {
        return multiply_gated(c, op, err);
    }
    for (uint32_t i = 0; i < op->n_products; i++) {
        const struct op_product *p = &op->products[i];
        bool done = false;
        if (cuda_matmul_check(b, p->w, err) < 0) {
            return -1;
        }
        bool split = splits(p->w);
        if (float_of(p->w->dtype) && !split) {
            multiply_floats(c, op, p);
            continue;
        }
        for (uint32_t j = 0; j < i; j++) {
            done |= op->products[j].w->dtype == p->w->dtype && splits(op->products[j].w) == split;
        }
        if ((!split && !columns.codes &&
             quantise(c, op->x, op->x_stride, op->n_rows, op->k, &columns, err) < 0) ||
            (!done && multiply_alike(c, op, i, &columns, err) < 0)) {
            return -1;
        }
    }
    for (uint32_t i = 0; i < op->n_products; i++) {
        written(c, op->products[i].y);
    }
    return op->act ? cuda_act(b, op->act, err) : cuda_launched("matmul", err);
}

/* ---- experts ---- */

#define SORT_THREADS 1024 /* as many experts at most (moe.cu) */

struct sort_args {
    const int32_t *experts; /* [n] */
    uint32_t n, n_experts, width;
    uint32_t *order; /* [n], then the number of chunks */
    struct product_chunk *chunks;
};

/* Rows by expert, in chunks of at most `width`: each expert's weights are read once for a chunk. The order of rows inside an
 * expert is left to chance: no row's result depends on its neighbours. One block, a thread for an expert. */
static __global__ void __launch_bounds__(SORT_THREADS) sort_kernel(struct sort_args a)
{
    __shared__ uint32_t counts[SORT_THREADS], rows[SORT_THREADS], chunks[SORT_THREADS];
    uint32_t e = threadIdx.x;
    counts[e] = 0;
    __syncthreads();
    for (uint32_t i = e; i < a.n; i += SORT_THREADS) {
        uint32_t expert = (uint32_t)a.experts[i];
        if (expert < a.n_experts) {
            atomicAdd(&counts[expert], 1u);
        }
    }
    __syncthreads();
    rows[e] = counts[e];
    chunks[e] = (counts[e] + a.width - 1) / a.width;
    __syncthreads();
    for (uint32_t off = 1; off < SORT_THREADS; off *= 2) { /* sums of what stands before and here */
        uint32_t r = e >= off ? rows[e - off] : 0, n = e >= off ? chunks[e - off] : 0;
        __syncthreads();
        rows[e] += r;
        chunks[e] += n;
        __syncthreads();
    }
    uint32_t n = counts[e], row = rows[e] - n, chunk = chunks[e] - (n + a.width - 1) / a.width;
    for (uint32_t i = 0; i < n; i += a.width, chunk++) {
        struct product_chunk out = { e, row + i, n - i < a.width ? n - i : a.width };
        a.chunks[chunk] = out;
    }
    if (e == SORT_THREADS - 1) {
        a.order[a.n] = chunks[e];
    }
    __syncthreads();
    counts[e] = row;
    __syncthreads();
    for (uint32_t i = e; i < a.n; i += SORT_THREADS) {
        uint32_t expert = (uint32_t)a.experts[i];
        if (expert < a.n_experts) {
            a.order[atomicAdd(&counts[expert], 1u)] = i;
        }
    }
}

/* Once for the products that one routing serves: cuda_moe_route forgets it. */
static void sort_rows(struct cuda_backend *c, const int32_t *experts, uint32_t n,
                      uint32_t n_experts, uint32_t width)
{
    if (c->sorted.experts == experts && c->sorted.n == n && c->sorted.width == width) {
        return;
    }
    struct sort_args sort = { experts, n, n_experts, width, c->order, c->chunks };
    LAUNCH(sort_kernel, 1, SORT_THREADS, 0, c->stream, sort);
    c->sorted.experts = experts;
    c->sorted.n = n;
    c->sorted.width = width;
}

/* n rows from row `begin` on, x from its row of that. */
static int multiply_experts(struct cuda_backend *c, const struct op_matmul_experts *op,
                            uint32_t begin, uint32_t n, struct err *err)
{
    const float *x = op->x + (uint64_t)(begin / op->x_share) * op->x_stride;
    float *y = op->y + (uint64_t)begin * op->y_stride;
    bool split = splits(op->w), x_aligned = aligned(x, 4ull * op->x_stride);
    if (float_of(op->w->dtype) && !split) {
        struct float_args f = {};
        f.w = device_matrix_of(op->w);
        f.x = x;
        f.x_stride = op->x_stride;
        f.x_share = op->x_share;
        f.n = n;
        f.aligned = x_aligned && aligned(op->w->data, op->w->row_bytes);
        f.experts = op->experts + begin;
        f.bias = op->bias;
        f.scales = op->scale;
        f.y = y;
        f.y_stride = op->y_stride;
        float_of(op->w->dtype)->launch(&f, c->stream);
        return 0;
    }
    struct product_args a = {};
    uint32_t n_x = (n + op->x_share - 1) / op->x_share, n_experts = op->w->n_experts;
    if (!split && quantise(c, x, op->x_stride, n_x, op->w->k, &a, err) < 0) {
        return -1;
    }
    a.x = x;
    a.x_stride = op->x_stride;
    a.x_aligned = x_aligned;
    uint32_t width = columns_for((n + n_experts - 1) / n_experts); /* of a chunk, on average */
    sort_rows(c, op->experts + begin, n, n_experts, width);
    a.tables = c->tables;
    a.n = n;
    a.x_share = op->x_share;
    a.chunks = c->chunks;
    a.order = c->order;
    a.n_chunks = c->order + n;
    a.scales = op->scale;
    add_product(&a, op->w, op->bias, y, op->y_stride);
    uint32_t n_chunks = n / width + (n < n_experts ? n : n_experts); /* at most */
    return launch_of(op->w->dtype)(&a, width, n_chunks, c->stream, err);
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
    if (op->w->n_experts > SORT_THREADS) {
        return err_set(err, ERR_UNSUPPORTED, "tensor %s: %u experts, at most %d", op->w->name,
                       op->w->n_experts, SORT_THREADS);
    }
    /* As many rows at a time as their activations have room for, in whole rows of x. */
    uint64_t room = c->max_codes / op->w->k / 8 * 8, wide = (c->max_order - 1) / op->x_share;
    room = (room < wide ? room : wide) * op->x_share;
    uint32_t at_once = room < op->n_rows ? (uint32_t)room : op->n_rows;
    if (at_once == 0) {
        return err_set(err, ERR_NO_FIT, "cuda: a row of %u values, more than was reserved",
                       op->w->k);
    }
    for (uint32_t begin = 0; begin < op->n_rows; begin += at_once) {
        uint32_t n = op->n_rows - begin < at_once ? op->n_rows - begin : at_once;
        if (multiply_experts(c, op, begin, n, err) < 0) {
            return -1;
        }
    }
    written(c, op->y);
    return cuda_launched("matmul of experts", err);
}
