/* Rotary positions (Su et al. 2021): the table once for a step, in double; then turns in place, a thread for a pair. */
#include "worker/cuda/heads.cuh"

#define THREADS 128

static __global__ void rope_table_kernel(const int64_t *pos, const double *freq, uint32_t n_pairs,
                                         double mag, float *cs)
{
    uint32_t j = blockIdx.y * THREADS + threadIdx.x;
    if (j < n_pairs) {
        double theta = (double)pos[blockIdx.x] * freq[j];
        float *out = cs + ((uint64_t)blockIdx.x * n_pairs + j) * 2;
        out[0] = (float)(cos(theta) * mag);
        out[1] = (float)(sin(theta) * mag);
    }
}

int cuda_rope_table(struct backend *b, const struct op_rope_table *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    if (op->n_rows == 0 || op->n_pairs == 0) {
        return 0;
    }
    const int64_t *pos = (const int64_t *)cuda_stage(c, op->pos, op->n_rows * sizeof *pos, err);
    const double *freq = (const double *)cuda_stage(c, op->freq, op->n_pairs * sizeof *freq, err);
    if (!pos || !freq) {
        return -1;
    }
    LAUNCH(rope_table_kernel, dim3(op->n_rows, blocks_of(op->n_pairs, THREADS)), THREADS, 0,
           c->stream, pos, freq, op->n_pairs, op->mag, op->cs);
    return cuda_launched("rope table", err);
}

static __global__ void rope_kernel(struct op_rope op)
{
    uint32_t at = blockIdx.y * THREADS + threadIdx.x, i = blockIdx.x;
    if (at >= op.n_heads * op.n_pairs) {
        return;
    }
    uint32_t h = at / op.n_pairs, j = at % op.n_pairs;
    turn_pair(&op, i, j, op.x + (uint64_t)i * op.x_stride + (uint64_t)h * op.head_dim);
}

static __global__ void scale_kernel(float *x, uint32_t x_stride, uint32_t width,
                                    const float *row_scale)
{
    uint32_t j = blockIdx.y * THREADS + threadIdx.x;
    if (j < width) {
        x[(uint64_t)blockIdx.x * x_stride + j] *= row_scale[blockIdx.x];
    }
}

int cuda_rope(struct backend *b, const struct op_rope *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    uint32_t pairs = op->n_heads * op->n_pairs, width = op->n_heads * op->head_dim;
    cuda_forget(c);
    if (op->n_rows == 0) {
        return 0;
    }
    if (pairs > 0) {
        LAUNCH(rope_kernel, dim3(op->n_rows, blocks_of(pairs, THREADS)), THREADS, 0, c->stream,
               *op);
    }
    if (op->row_scale) {
        const float *scale = (const float *)cuda_stage(c, op->row_scale, op->n_rows * sizeof *scale,
                                                       err);
        if (!scale) {
            return -1;
        }
        LAUNCH(scale_kernel, dim3(op->n_rows, blocks_of(width, THREADS)), THREADS, 0, c->stream,
               op->x, op->x_stride, width, scale);
    }
    return cuda_launched("rope", err);
}
