/* What stands between matrix products: activations, residual sums, row copies. Elementwise, bound by reading and writing.
 * An activation leaves its result quantised too: the product that follows reads that. The steps are rows.inc's. */
#include "worker/cuda/act.cuh"
#include "worker/cuda/quantise.cuh"

#define THREADS 256


static __global__ void act_kernel(struct op_act op, struct quantise_to to)
{
    ptx_let_others_start();
    uint32_t j = blockIdx.y * THREADS + threadIdx.x, i = blockIdx.x;
    if (j < op.width) {
        float g = op.g[(uint64_t)i * op.g_stride + (op.g_width == 1 ? 0 : j)];
        float u = op.u ? op.u[(uint64_t)i * op.u_stride + j] : 1.0f;
        float y = act_one(op.kind, g, u);
        op.y[(uint64_t)i * op.y_stride + j] = y;
        if (to.codes) { /* whole warps: width is whole tiles */
            quantise_value(&to, i, j / 32, j % 32, y);
        }
    }
}

int cuda_act(struct backend *b, const struct op_act *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    cuda_forget(c);
    if (op->n_rows == 0) {
        return 0;
    }
    struct quantise_to to = quantise_room(c, op->n_rows, op->width);
    LAUNCH(act_kernel, dim3(op->n_rows, blocks_of(op->width, THREADS)), THREADS, 0, c->stream, *op,
           to);
    quantise_remember(c, &to, op->y, op->y_stride, op->n_rows);
    return cuda_launched("act", err);
}

static __global__ void add_kernel(struct op_add op)
{
    uint32_t j = blockIdx.y * THREADS + threadIdx.x, i = blockIdx.x;
    if (j >= op.width) {
        return;
    }
    float y = op.a[(uint64_t)i * op.a_stride + j];
    if (op.b) {
        y = y + op.b_scale * op.b[(op.b_rows == 1 ? 0 : (uint64_t)i * op.b_stride) + j];
    }
    y = op.y_scale == 1.0f ? y : op.y_scale * y;
    op.y[(uint64_t)i * op.y_stride + j] = op.softcap > 0.0f
                                              ? op.softcap * vmath_tanh(y / op.softcap)
                                              : y;
}

int cuda_add(struct backend *b, const struct op_add *op, struct err *err)
{
    cuda_forget(cuda_of(b));
    if (op->n_rows == 0) {
        return 0;
    }
    LAUNCH(add_kernel, dim3(op->n_rows, blocks_of(op->width, THREADS)), THREADS, 0,
           cuda_of(b)->stream, *op);
    return cuda_launched("add", err);
}

static __global__ void gather_kernel(struct op_gather op)
{
    uint32_t j = blockIdx.y * THREADS + threadIdx.x, i = blockIdx.x;
    if (j < op.width) {
        op.y[(uint64_t)i * op.y_stride + j] = op.x[(uint64_t)op.index[i] * op.x_stride + j];
    }
}

int cuda_gather(struct backend *b, const struct op_gather *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    cuda_forget(c);
    if (op->n_rows == 0) {
        return 0;
    }
    struct op_gather staged = *op;
    staged.index = (const uint32_t *)cuda_stage(c, op->index, op->n_rows * sizeof *op->index, err);
    if (!staged.index) {
        return -1;
    }
    LAUNCH(gather_kernel, dim3(op->n_rows, blocks_of(op->width, THREADS)), THREADS, 0, c->stream,
           staged);
    return cuda_launched("gather", err);
}
