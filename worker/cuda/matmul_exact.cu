/* Products for the setting --exact: weights widened to f32, products and sums in double, over the CPU's eight interleaved sums in its
 * order, so its bits too. Made to be plain, not fast. Reference: cpu/matmul_exact.c. */
#include "worker/cuda/tile_scales.cuh"

#define SUMS    8
#define COLUMNS 4 /* of a warp, over one group of 16 rows of tiles */
#define THREADS 128

struct exact_args {
    struct device_matrix w;
    const struct tile_tables *tables;
    const float *x;
    uint32_t x_stride, x_share, n;
    const int32_t *experts; /* [n], or NULL */
    const float *bias, *scales;
    float *y;
    uint32_t y_stride;
};

static __device__ __forceinline__ uint32_t expert_of(const struct exact_args *a, uint32_t c)
{
    return a->experts ? (uint32_t)a->experts[c] : 0;
}

static __device__ __forceinline__ void put_sums(const struct exact_args *a, uint32_t expert,
                                                uint32_t row, uint32_t c, const double s[SUMS])
{
    float y = (float)(((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])));
    y = a->bias ? y + a->bias[(uint64_t)expert * a->w.m + row] : y;
    a->y[(uint64_t)c * a->y_stride + row] = a->scales ? y * a->scales[expert] : y;
}

/* A thread for rows g and g + 8 of a group and one column. */
template <enum dtype T> static __global__ void exact_kernel(struct exact_args a)
{
    uint32_t n_groups = (a.w.m + GROUP_ROWS - 1) / GROUP_ROWS, g = threadIdx.x / COLUMNS;
    uint32_t group = blockIdx.x % n_groups;
    uint32_t c = blockIdx.x / n_groups * COLUMNS + threadIdx.x % COLUMNS;
    uint32_t expert = c < a.n ? expert_of(&a, c) : a.w.n_experts;
    if (expert >= a.w.n_experts) {
        return;
    }
    const uint8_t *from = a.w.data + expert * a.w.expert_bytes + group * a.w.row_bytes;
    const float *x = a.x + (uint64_t)(c / a.x_share) * a.x_stride;
    struct lane_book book = { codebook_source<T>(a.tables), 1, 0 };
    double s[2][SUMS] = {};
    for (uint32_t at = 0; at < a.w.k / 8; at++) {
        uint32_t tile = at / 4;
        float w[2][8];
        tile_values<T>(from + (uint64_t)(tile / format<T>::tiles) * format<T>::round, g, at % 4,
                       tile % format<T>::tiles, &book, w);
        for (uint32_t e = 0; e < 8; e++) {
            s[0][e] += (double)w[0][e] * (double)x[8 * at + e];
            s[1][e] += (double)w[1][e] * (double)x[8 * at + e];
        }
    }
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t row = group * GROUP_ROWS + g + 8 * r;
        if (row < a.w.m) {
            put_sums(&a, expert, row, c, s[r]);
        }
    }
}

/* A thread for a row and a column. */
template <enum dtype T> static __global__ void exact_float_kernel(struct exact_args a)
{
    uint32_t n_blocks = (a.w.m + THREADS - 1) / THREADS, c = blockIdx.x / n_blocks;
    uint32_t row = blockIdx.x % n_blocks * THREADS + threadIdx.x, expert = expert_of(&a, c);
    if (row >= a.w.m || expert >= a.w.n_experts) {
        return;
    }
    const uint8_t *from = a.w.data + expert * a.w.expert_bytes + row * a.w.row_bytes;
    const float *x = a.x + (uint64_t)(c / a.x_share) * a.x_stride;
    double s[SUMS] = {};
    for (uint32_t j0 = 0; j0 < a.w.k; j0 += SUMS) {
#pragma unroll
        for (uint32_t l = 0; l < SUMS; l++) {
            if (j0 + l < a.w.k) {
                s[l] += (double)row_float<T>(from, j0 + l) * (double)x[j0 + l];
            }
        }
    }
    put_sums(&a, expert, row, c, s);
}

static int launch(struct cuda_backend *c, const struct matrix *w, const struct exact_args *a,
                  struct err *err)
{
    uint32_t tiles = blocks_of(w->m, GROUP_ROWS) * blocks_of(a->n, COLUMNS);
    uint32_t floats = blocks_of(w->m, THREADS) * a->n;
    switch (w->dtype) {
#define CASE(type, ...)                                                                            \
    case DTYPE_##type:                                                                             \
        LAUNCH(exact_kernel<DTYPE_##type>, tiles, GROUP_ROWS / 2 * COLUMNS, 0, c->stream, *a);     \
        break;
        TILE_TYPES(CASE)
#undef CASE
    case DTYPE_F32:
        LAUNCH(exact_float_kernel<DTYPE_F32>, floats, THREADS, 0, c->stream, *a);
        break;
    case DTYPE_F16:
        LAUNCH(exact_float_kernel<DTYPE_F16>, floats, THREADS, 0, c->stream, *a);
        break;
    case DTYPE_BF16:
        LAUNCH(exact_float_kernel<DTYPE_BF16>, floats, THREADS, 0, c->stream, *a);
        break;
    default:
        return cuda_matmul_check(&c->base, w, err);
    }
    return cuda_launched("matmul", err);
}

int cuda_matmul_exact(struct backend *b, const struct op_matmul *op, struct err *err)
{
    for (uint32_t i = 0; i < op->n_products && op->n_rows > 0; i++) {
        const struct op_product *p = &op->products[i];
        struct exact_args a = {};
        a.w = device_matrix_of(p->w);
        a.tables = cuda_of(b)->tables;
        a.x = op->x;
        a.x_stride = op->x_stride;
        a.x_share = 1;
        a.n = op->n_rows;
        a.bias = p->bias;
        a.y = p->y;
        a.y_stride = p->y_stride;
        if (launch(cuda_of(b), p->w, &a, err) < 0) {
            return -1;
        }
    }
    return op->act && op->n_rows > 0 ? cuda_act(b, op->act, err) : 0;
}

int cuda_matmul_experts_exact(struct backend *b, const struct op_matmul_experts *op,
                              struct err *err)
{
    struct exact_args a = {};
    if (op->n_rows == 0) {
        return 0;
    }
    a.w = device_matrix_of(op->w);
    a.tables = cuda_of(b)->tables;
    a.x = op->x;
    a.x_stride = op->x_stride;
    a.x_share = op->x_share;
    a.n = op->n_rows;
    a.experts = op->experts;
    a.bias = op->bias;
    a.scales = op->scale;
    a.y = op->y;
    a.y_stride = op->y_stride;
    return launch(cuda_of(b), op->w, &a, err);
}
