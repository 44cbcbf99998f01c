/* RMS and layer norms: a block for each vector. Sums in double as on the CPU, in the tree of reduce.cuh; reads x twice, the
 * second time from cache. A whole row's result is left quantised too: products mostly come next. A residual sum that comes
 * before is a part of it: a thread reads back what it wrote itself. */
#include "worker/cuda/heads.cuh"
#include "worker/cuda/quantise.cuh"

static __global__ void norm_kernel(struct op_norm op, struct quantise_to to)
{
    ptx_let_others_start();
    __shared__ double slots[NORM_THREADS / WARP];
    uint64_t at = (uint64_t)blockIdx.y * op.width, own = op.w_per_group ? at : 0;
    const float *x = op.x + (uint64_t)blockIdx.x * op.x_stride + at;
    float *y = op.y + (uint64_t)blockIdx.x * op.y_stride + at;
    if (op.sum) {
        float *sum = op.sum + (uint64_t)blockIdx.x * op.x_stride;
        const float *plus = op.plus + (uint64_t)blockIdx.x * op.plus_stride;
        for (uint32_t j = threadIdx.x; j < op.width; j += NORM_THREADS) {
            sum[j] = x[j] + op.plus_scale * plus[j];
        }
        x = sum;
    }
    struct norm_moments m = norm_moments_of(&op, x, slots);
    for (uint32_t j = threadIdx.x; j < op.width; j += NORM_THREADS) {
        float v = norm_one(&op, &m, own, j, x[j]);
        y[j] = v;
        if (to.codes) { /* whole warps: width is whole tiles */
            quantise_value(&to, blockIdx.x, j / 32, j % 32, v);
        }
    }
}

int cuda_norm(struct backend *b, const struct op_norm *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    cuda_forget(c);
    if (op->n_rows == 0) {
        return 0;
    }
    struct quantise_to to = {};
    if (op->n_groups == 1) {
        to = quantise_room(c, op->n_rows, op->width);
    }
    LAUNCH(norm_kernel, dim3(op->n_rows, op->n_groups), NORM_THREADS, 0, c->stream, *op, to);
    quantise_remember(c, &to, op->y, op->y_stride, op->n_rows);
    return cuda_launched("norm", err);
}
