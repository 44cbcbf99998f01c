/* Embedding look-up: rows of any weight type, widened and scaled. A block for each row; bound by a launch, not by memory. */
#include "worker/cuda/tile_scales.cuh"

#define THREADS 128

struct embed_args {
    struct device_matrix w;
    const int32_t *ids, *fed;
    const struct tile_tables *tables;
    float scale;
    float *y;
};

/* Of the row: as the host says, or as the last step's sample kernel does. */
static __device__ uint32_t id_of(const struct embed_args &a)
{
    int32_t id = a.ids[blockIdx.x];
    id = id < 0 ? a.fed[-1 - id] : id;
    return id < 0 ? 0 : (uint32_t)id; /* no token: its row is thrown away */
}

/* A thread for the eight values that a lane holds of the row's tile. */
template <enum dtype T> static __global__ void embed_kernel(struct embed_args a)
{
    uint32_t id = id_of(a), g = id % 8, bottom = id % GROUP_ROWS / 8;
    const uint8_t *group = a.w.data + (uint64_t)(id / GROUP_ROWS) * a.w.row_bytes;
    float *y = a.y + (uint64_t)blockIdx.x * a.w.k;
    struct lane_book book = { codebook_source<T>(a.tables), 1, 0 };
    for (uint32_t at = threadIdx.x; at < a.w.k / 8; at += blockDim.x) {
        uint32_t tile = at / 4;
        float v[2][8];
        tile_values<T>(group + (uint64_t)(tile / format<T>::tiles) * format<T>::round, g, at % 4,
                       tile % format<T>::tiles, &book, v);
        for (uint32_t e = 0; e < 8; e++) {
            y[8 * at + e] = (bottom ? v[1][e] : v[0][e]) * a.scale;
        }
    }
}

template <enum dtype T> static __global__ void embed_float_kernel(struct embed_args a)
{
    const uint8_t *row = a.w.data + (uint64_t)id_of(a) * a.w.row_bytes;
    float *y = a.y + (uint64_t)blockIdx.x * a.w.k;
    for (uint32_t j = threadIdx.x; j < a.w.k; j += blockDim.x) {
        y[j] = row_float<T>(row, j) * a.scale;
    }
}

int cuda_embed(struct backend *b, const struct op_embed *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct embed_args a = { device_matrix_of(op->w), NULL, op->fed, c->tables, op->scale, op->y };
    cuda_forget(c);
    c->sorted.experts = NULL; /* a step begins */
    if (op->n_rows == 0) {
        return 0;
    }
    a.ids = (const int32_t *)cuda_stage(c, op->ids, op->n_rows * sizeof *op->ids, err);
    if (!a.ids) {
        return -1;
    }
    switch (op->w->dtype) {
#define CASE(type, ...)                                                                            \
    case DTYPE_##type:                                                                             \
        LAUNCH(embed_kernel<DTYPE_##type>, op->n_rows, THREADS, 0, c->stream, a);                  \
        break;
        TILE_TYPES(CASE)
#undef CASE
    case DTYPE_F32:
        LAUNCH(embed_float_kernel<DTYPE_F32>, op->n_rows, THREADS, 0, c->stream, a);
        break;
    case DTYPE_F16:
        LAUNCH(embed_float_kernel<DTYPE_F16>, op->n_rows, THREADS, 0, c->stream, a);
        break;
    case DTYPE_BF16:
        LAUNCH(embed_float_kernel<DTYPE_BF16>, op->n_rows, THREADS, 0, c->stream, a);
        break;
    default:
        return err_set(err, ERR_UNSUPPORTED, "tensor %s: cuda does not look up %s", op->w->name,
                       dtype_get(op->w->dtype)->name);
    }
    return cuda_launched("embed", err);
}
