/* The gated delta net as the plain recurrence: a block for a value head of a sequence, a thread for a column of its state,
 * token after token. Each sum over the state's rows is a thread's own, in index order, as on the CPU; norms in the
 * tree of reduce.cuh. A column of 64 or 128 stays in the thread's registers from the first token to the last, so the state
 * is read and written once a step (decode is bound by that); other sizes go through memory. */
#include <stdlib.h>

#include "worker/cuda/reduce.cuh"
#include "worker/cuda/vmath.cuh"

#define STATE_DIM_MAX 1024 /* as on the CPU; a block has a thread for each */

struct delta_args {
    struct op_delta_net op; /* with from and state as the device has them */
    const uint32_t *begins; /* first row of each sequence, and n_rows */
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

/* What one token brings to a thread: its value and the head's numbers; q and k are shared. */
struct token {
    float v, beta, decay;
};

static __device__ __forceinline__ struct token prepare(const struct op_delta_net *op,
                                                       uint32_t first, uint32_t i, const float *old,
                                                       float *q, float *k, double *slots)
{
    uint32_t ds = op->state_dim, hk = op->n_k_heads, hv = op->n_v_heads, h = blockIdx.x;
    uint32_t g = op->interleaved ? h % hk : h / (hv / hk), channels = 2 * hk * ds + hv * ds;
    uint32_t l = threadIdx.x;
    bool live = l < ds;
    struct token out;
    float own_q = live ? convolve(op, first, i, old, channels, g * ds + l) : 0.0f;
    float own_k = live ? convolve(op, first, i, old, channels, (hk + g) * ds + l) : 0.0f;
    out.v = live ? convolve(op, first, i, old, channels, 2 * hk * ds + h * ds + l) : 0.0f;
    float norm_q = (float)sqrt(block_sum((double)own_q * (double)own_q, slots));
    float norm_k = (float)sqrt(block_sum((double)own_k * (double)own_k, slots));
    float a = op->a[(uint64_t)i * op->a_stride + h] + op->dt_bias[h];
    out.beta = vmath_sigmoid(op->b[(uint64_t)i * op->b_stride + h]);
    out.decay = vmath_exp(softplus(a) * op->a_coef[h]);
    if (live) {
        q[l] = own_q * (1.0f / (fmaxf(norm_q, op->eps) * sqrtf((float)ds)));
        k[l] = own_k * (1.0f / fmaxf(norm_k, op->eps));
    }
    __syncthreads();
    return out;
}

/* The norm of the head's output and its gate. Ends with q and k free again. */
static __device__ __forceinline__ void leave(const struct op_delta_net *op, uint32_t i, float o,
                                             double *slots)
{
    uint32_t ds = op->state_dim, h = blockIdx.x, l = threadIdx.x;
    double squares = block_sum((double)o * (double)o, slots);
    float scale = (float)(1.0 / sqrt(squares / ds + (double)op->eps));
    if (l < ds) {
        float z = op->z[(uint64_t)i * op->z_stride + (uint64_t)h * ds + l];
        op->y[(uint64_t)i * op->y_stride + (uint64_t)h * ds + l] = o * scale * op->norm[l] *
                                                                   (z * vmath_sigmoid(z));
    }
    __syncthreads();
}

/* DS: size of a head's state, whose column the thread keeps; 0: any, in memory. */
template <uint32_t DS>
static __global__ void __launch_bounds__(DS ? DS : STATE_DIM_MAX, DS ? 2 : 1)
    delta_kernel(const __grid_constant__ struct delta_args args)
{
    __shared__ float q[STATE_DIM_MAX], k[STATE_DIM_MAX];
    __shared__ double slots[STATE_DIM_MAX / WARP];
    const struct op_delta_net &op = args.op;
    uint32_t ds = DS ? DS : op.state_dim, h = blockIdx.x, l = threadIdx.x;
    uint32_t first = args.begins[blockIdx.y], end = args.begins[blockIdx.y + 1];
    uint64_t at = h * (uint64_t)ds * ds + l;
    const float *from = op.from[first], *old = history(&op, from);
    [[maybe_unused]] float column[DS ? DS : 1];
    bool live = l < ds;
    if constexpr (DS > 0) {
#pragma unroll
        for (uint32_t j = 0; j < DS; j++) {
            column[j] = from[at + j * DS];
        }
    }
    for (uint32_t i = first; i < end; i++) {
        float *S = op.state[i] + at;
        struct token t = prepare(&op, first, i, old, q, k, slots);
        float e = 0.0f, o = 0.0f;
        if constexpr (DS > 0) {
#pragma unroll
            for (uint32_t j = 0; j < DS; j++) {
                if (j % 32 == 0) {
                    __syncwarp(); /* so that not all of k is loaded ahead: registers are scarce */
                }
                column[j] *= t.decay;
                e = fmaf(k[j], column[j], e);
            }
            e = t.beta * (t.v - e);
#pragma unroll
            for (uint32_t j = 0; j < DS; j++) {
                if (j % 32 == 0) {
                    __syncwarp();
                }
                column[j] = fmaf(k[j], e, column[j]);
                o = fmaf(q[j], column[j], o);
            }
            if (i + 1 == end || op.state[i + 1] != op.state[i]) {
#pragma unroll
                for (uint32_t j = 0; j < DS; j++) {
                    S[j * DS] = column[j];
                }
            }
        } else {
            const float *before = i == first ? from + at : S;
            for (uint32_t j = 0; live && j < ds; j++) {
                float s = before[(uint64_t)j * ds] * t.decay;
                S[(uint64_t)j * ds] = s;
                e = fmaf(k[j], s, e);
            }
            e = t.beta * (t.v - e);
            for (uint32_t j = 0; live && j < ds; j++) {
                float s = fmaf(k[j], e, S[(uint64_t)j * ds]);
                S[(uint64_t)j * ds] = s;
                o = fmaf(q[j], s, o);
            }
        }
        leave(&op, i, o, slots);
    }
}

/* The last taps - 1 inputs of each sequence, for its next step: a block for a sequence. */
static __global__ void history_kernel(const __grid_constant__ struct delta_args args)
{
    const struct op_delta_net &op = args.op;
    uint32_t channels = 2 * op.n_k_heads * op.state_dim + op.n_v_heads * op.state_dim;
    uint32_t first = args.begins[blockIdx.x], i = args.begins[blockIdx.x + 1] - 1;
    uint32_t keep = op.conv_taps - 1;
    const float *old = history(&op, op.from[first]);
    float *to = op.state[i] + (uint64_t)op.n_v_heads * op.state_dim * op.state_dim;
    for (uint32_t n = threadIdx.x; n < keep * channels; n += blockDim.x) {
        uint32_t j = n / channels, ch = n % channels;
        int64_t at = (int64_t)i - (int64_t)(keep - 1) + (int64_t)j;
        to[n] = at >= (int64_t)first
                    ? op.u[(uint64_t)at * op.u_stride + ch]
                    : old[(uint64_t)(at - (int64_t)first + (int64_t)keep) * channels + ch];
    }
}

/* First row of each sequence, then n_rows. n: sequences. */
static const uint32_t *stage_begins(struct cuda_backend *c, const struct op_delta_net *op,
                                    uint32_t *n, struct err *err)
{
    uint32_t *begins = (uint32_t *)calloc(op->n_rows + 1, sizeof *begins);
    const uint32_t *staged = NULL;
    *n = 0;
    if (!begins) {
        err_set(err, ERR_NO_MEMORY, "cuda: %u rows", op->n_rows);
        return NULL;
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        if (op->from[i]) {
            begins[(*n)++] = i;
        }
    }
    begins[*n] = op->n_rows;
    staged = (const uint32_t *)cuda_stage(c, begins, (*n + 1) * sizeof *begins, err);
    free(begins);
    return staged;
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
    uint32_t n_seqs;
    args.op = *op;
    args.op.from = (const float *const *)cuda_stage(c, op->from, op->n_rows * sizeof *op->from, err);
    args.op.state = (float *const *)cuda_stage(c, op->state, op->n_rows * sizeof *op->state, err);
    args.begins = stage_begins(c, op, &n_seqs, err);
    if (!args.op.from || !args.op.state || !args.begins) {
        return -1;
    }
    dim3 grid(op->n_v_heads, n_seqs);
    uint32_t threads = (uint32_t)round_up(op->state_dim, WARP);
    if (op->state_dim == 128) {
        LAUNCH(delta_kernel<128>, grid, threads, 0, c->stream, args);
    } else if (op->state_dim == 64) {
        LAUNCH(delta_kernel<64>, grid, threads, 0, c->stream, args);
    } else {
        LAUNCH(delta_kernel<0>, grid, threads, 0, c->stream, args);
    }
    LAUNCH(history_kernel, n_seqs, 256, 0, c->stream, args);
    return cuda_launched("delta net", err);
}
