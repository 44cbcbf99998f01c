/* Embedding look-up: rows of any weight type, widened and scaled. A block for each row; bound by a launch, not by memory. */
#include "worker/cuda/dequant.cuh"

#define THREADS 128

struct embed_args {
    struct device_matrix w;
    const int32_t *ids;
    const struct dequant_tables *tables;
    float scale;
    float *y;
};

template <enum dtype T> static __global__ void embed_kernel(struct embed_args a)
{
    const uint8_t *row = a.w.data + (uint64_t)a.ids[blockIdx.x] * a.w.row_bytes;
    float *y = a.y + (uint64_t)blockIdx.x * a.w.k;
    for (uint32_t at = threadIdx.x; at < a.w.k / 32; at += blockDim.x) {
        struct tile t;
        row_tile<T>(row, a.w.k, at, a.tables, &t);
        for (uint32_t e = 0; e < 32; e++) {
            float code = (float)(int8_t)(t.q[e / 4] >> (8 * (e % 4)));
            y[32 * at + e] = (t.scale[e / 16] * code + t.nmin[e / 16]) * a.scale;
        }
    }
}

template <enum dtype T> static __global__ void embed_float_kernel(struct embed_args a)
{
    const uint8_t *row = a.w.data + (uint64_t)a.ids[blockIdx.x] * a.w.row_bytes;
    float *y = a.y + (uint64_t)blockIdx.x * a.w.k;
    for (uint32_t j = threadIdx.x; j < a.w.k; j += blockDim.x) {
        y[j] = row_float<T>(row, j) * a.scale;
    }
}

int cuda_embed(struct backend *b, const struct op_embed *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct embed_args a = { device_matrix_of(op->w), NULL, c->tables, op->scale, op->y };
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
        DEQUANT_TYPES(CASE)
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
