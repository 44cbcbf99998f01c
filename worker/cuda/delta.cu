/* The gated delta net as the plain recurrence: a block for a value head, a thread for a column of its state, token after
 * token. Each sum over the state's rows is a thread's own, in index order, as on the CPU; norms in the tree of
 * reduce.cuh. Bound by reading and writing S once a token; S of 128 x 128 stays in cache. */
#include "worker/cuda/reduce.cuh"
#include "worker/cuda/vmath.cuh"

#define STATE_DIM_MAX 1024 /* as on the CPU; a block has a thread for each */

struct delta_args {
    struct op_delta_net op;
    const float *const *from; /* device copies of the op's arrays */
    float *const *state;
};

static __device__ __forceinline__ const float *history(const struct op_delta_net *op,
                                                       const float *state)
{
    return state + (uint64_t)op->n_v_heads * op->state_dim * op->state_dim;
}

static __device__ __forceinline__ float softplus(float x)
{
    return x > 20.0f ? x : log1pf(vmath_exp(x));
}

/* silu of the convolution of one channel at row i of a sequence that begins at row first. */
static __device__ float convolve(const struct op_delta_net *op, uint32_t first, uint32_t i,
                                 const float *old, uint32_t channels, uint32_t ch)
{
    uint32_t taps = op->conv_taps;
    float s = 0.0f;
    for (uint32_t j = 0; j < taps; j++) {
        int64_t at = (int64_t)i - (int64_t)(taps - 1) + (int64_t)j;
        float u = at >= (int64_t)first
                      ? op->u[(uint64_t)at * op->u_stride + ch]
                      : old[(uint64_t)(at - (int64_t)first + (int64_t)taps - 1) * channels + ch];
        s = fmaf(op->conv[(uint64_t)ch * taps + j], u, s);
    }
    return s * vmath_sigmoid(s);
}

static __global__ void delta_kernel(struct delta_args args)
{
    __shared__ float q[STATE_DIM_MAX], k[STATE_DIM_MAX];
    __shared__ double slots[STATE_DIM_MAX / WARP];
    const struct op_delta_net &op = args.op;
    uint32_t ds = op.state_dim, hk = op.n_k_heads, hv = op.n_v_heads, h = blockIdx.x;
    uint32_t g = op.interleaved ? h % hk : h / (hv / hk), channels = 2 * hk * ds + hv * ds;
    uint32_t l = threadIdx.x, first = 0;
    uint64_t size = (uint64_t)ds * ds;
    bool live = l < ds;
    for (uint32_t i = 0; i < op.n_rows; i++) {
        float *S = args.state[i] + h * size;
        if (args.from[i]) {
            first = i;
            for (uint32_t j = 0; live && j < ds; j++) {
                S[(uint64_t)j * ds + l] = args.from[i][h * size + (uint64_t)j * ds + l];
            }
        }
        const float *old = history(&op, args.from[first]);
        float own_q = live ? convolve(&op, first, i, old, channels, g * ds + l) : 0.0f;
        float own_k = live ? convolve(&op, first, i, old, channels, (hk + g) * ds + l) : 0.0f;
        float v = live ? convolve(&op, first, i, old, channels, 2 * hk * ds + h * ds + l) : 0.0f;
        float norm_q = (float)sqrt(block_sum((double)own_q * (double)own_q, slots));
        float norm_k = (float)sqrt(block_sum((double)own_k * (double)own_k, slots));
        float beta = vmath_sigmoid(op.b[(uint64_t)i * op.b_stride + h]);
        float a = op.a[(uint64_t)i * op.a_stride + h] + op.dt_bias[h];
        float decay = vmath_exp(softplus(a) * op.a_coef[h]), e = 0.0f, o = 0.0f;
        if (live) {
            q[l] = own_q * (1.0f / (fmaxf(norm_q, op.eps) * sqrtf((float)ds)));
            k[l] = own_k * (1.0f / fmaxf(norm_k, op.eps));
        }
        __syncthreads();
        for (uint32_t j = 0; live && j < ds; j++) {
            float s = S[(uint64_t)j * ds + l] * decay;
            S[(uint64_t)j * ds + l] = s;
            e = fmaf(k[j], s, e);
        }
        e = beta * (v - e);
        for (uint32_t j = 0; live && j < ds; j++) {
            float s = fmaf(k[j], e, S[(uint64_t)j * ds + l]);
            S[(uint64_t)j * ds + l] = s;
            o = fmaf(q[j], s, o);
        }
        double squares = block_sum((double)o * (double)o, slots);
        float scale = (float)(1.0 / sqrt(squares / ds + (double)op.eps));
        if (live) {
            float z = op.z[(uint64_t)i * op.z_stride + (uint64_t)h * ds + l];
            op.y[(uint64_t)i * op.y_stride + (uint64_t)h * ds + l] = o * scale * op.norm[l] *
                                                                     (z * vmath_sigmoid(z));
        }
        __syncthreads(); /* q and k are free again */
    }
}

/* The last taps - 1 inputs of each sequence, for its next step: a block for a row, only sequences' last ones work. */
static __global__ void history_kernel(struct delta_args args)
{
    const struct op_delta_net &op = args.op;
    uint32_t channels = 2 * op.n_k_heads * op.state_dim + op.n_v_heads * op.state_dim;
    uint32_t keep = op.conv_taps - 1, i = blockIdx.x, first = i;
    if (i + 1 < op.n_rows && !args.from[i + 1]) {
        return;
    }
    while (first > 0 && !args.from[first]) {
        first--;
    }
    const float *old = history(&op, args.from[first]);
    float *to = args.state[i] + (uint64_t)op.n_v_heads * op.state_dim * op.state_dim;
    for (uint32_t n = threadIdx.x; n < keep * channels; n += blockDim.x) {
        uint32_t j = n / channels, ch = n % channels;
        int64_t at = (int64_t)i - (int64_t)(keep - 1) + (int64_t)j;
        to[n] = at >= (int64_t)first
                    ? op.u[(uint64_t)at * op.u_stride + ch]
                    : old[(uint64_t)(at - (int64_t)first + (int64_t)keep) * channels + ch];
    }
}

int cuda_delta_net(struct backend *b, const struct op_delta_net *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    if (op->state_dim > STATE_DIM_MAX) {
        return err_set(err, ERR_UNSUPPORTED, "delta net state of %u", op->state_dim);
    }
    cuda_forget(c);
    if (op->n_rows == 0) {
        return 0;
    }
    struct delta_args args = {};
    args.op = *op;
    args.from = (const float *const *)cuda_stage(c, op->from, op->n_rows * sizeof *op->from, err);
    args.state = (float *const *)cuda_stage(c, op->state, op->n_rows * sizeof *op->state, err);
    if (!args.from || !args.state) {
        return -1;
    }
    LAUNCH(delta_kernel, op->n_v_heads, (unsigned)round_up(op->state_dim, WARP), 0, c->stream,
           args);
    LAUNCH(history_kernel, op->n_rows, 256, 0, c->stream, args);
    return cuda_launched("delta net", err);
}
