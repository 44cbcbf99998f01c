/* The gated delta net as the plain recurrence, token by token: order of sums fixed by the state's own size.
 * Value heads are independent and spread over the team. Formula: architecture pages, 9.1. */
#include <math.h>
#include <string.h>

#include "worker/cpu/cpu.h"
#include "worker/cpu/rows.h"
#include "worker/cpu/vmath.h"

#define STATE_DIM_MAX 1024 /* checked when the model is bound */

/* log(1 + exp(x)); the libm call is the same on every instruction set of one machine. */
static float softplus(float x)
{
    return x > 20.0f ? x : log1pf(vmath_exp(x));
}

static const float *history(const struct op_delta_net *op, const float *state)
{
    return state + (size_t)op->n_v_heads * op->state_dim * op->state_dim;
}

/* silu of the convolution of one channel at row i; `back` rows earlier than the step come from the old state. */
static float convolve(const struct op_delta_net *op, uint32_t first, uint32_t i, const float *old,
                      uint32_t channels, uint32_t ch)
{
    uint32_t taps = op->conv_taps;
    float s = 0.0f;
    for (uint32_t j = 0; j < taps; j++) {
        int64_t at = (int64_t)i - (taps - 1) + j;
        float u = at >= (int64_t)first
                      ? op->u[(size_t)at * op->u_stride + ch]
                      : old[(size_t)(at - (int64_t)first + taps - 1) * channels + ch];
        s = fmaf(op->conv[(size_t)ch * taps + j], u, s);
    }
    return s * vmath_sigmoid(s);
}

static float norm_of(const float *x, uint32_t n)
{
    double s = 0.0;
    for (uint32_t j = 0; j < n; j++) {
        s += (double)x[j] * (double)x[j];
    }
    return (float)sqrt(s);
}

static void step_head(const struct rows_kernels *rows, const struct op_delta_net *op,
                      uint32_t first, uint32_t i, const float *old, float *S, uint32_t h)
{
    uint32_t ds = op->state_dim, hk = op->n_k_heads, hv = op->n_v_heads;
    uint32_t g = op->interleaved ? h % hk : h / (hv / hk), channels = 2 * hk * ds + hv * ds;
    float q[STATE_DIM_MAX], k[STATE_DIM_MAX], v[STATE_DIM_MAX];
    float e[STATE_DIM_MAX], o[STATE_DIM_MAX];
    for (uint32_t j = 0; j < ds; j++) {
        q[j] = convolve(op, first, i, old, channels, g * ds + j);
        k[j] = convolve(op, first, i, old, channels, (hk + g) * ds + j);
        v[j] = convolve(op, first, i, old, channels, 2 * hk * ds + h * ds + j);
    }
    float q_scale = 1.0f / (fmaxf(norm_of(q, ds), op->eps) * sqrtf((float)ds));
    float k_scale = 1.0f / fmaxf(norm_of(k, ds), op->eps);
    float beta = vmath_sigmoid(op->b[(size_t)i * op->b_stride + h]);
    float a = op->a[(size_t)i * op->a_stride + h] + op->dt_bias[h];
    float decay = vmath_exp(softplus(a) * op->a_coef[h]);
    for (uint32_t j = 0; j < ds; j++) {
        q[j] *= q_scale;
        k[j] *= k_scale;
    }
    rows->delta(decay, beta, q, k, v, S, e, o, ds);
    double squares = 0.0;
    for (uint32_t l = 0; l < ds; l++) {
        squares += (double)o[l] * (double)o[l];
    }
    float scale = (float)(1.0 / sqrt(squares / ds + (double)op->eps));
    const float *z = op->z + (size_t)i * op->z_stride + (size_t)h * ds;
    float *y = op->y + (size_t)i * op->y_stride + (size_t)h * ds;
    for (uint32_t l = 0; l < ds; l++) {
        y[l] = o[l] * scale * op->norm[l] * (z[l] * vmath_sigmoid(z[l]));
    }
}

struct delta_job {
    const struct rows_kernels *rows;
    const struct op_delta_net *op;
};

static void run_heads(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct delta_job *job = arg;
    const struct op_delta_net *op = job->op;
    size_t size = (size_t)op->state_dim * op->state_dim;
    (void)part;
    for (uint32_t h = begin; h < end; h++) {
        uint32_t first = 0;
        for (uint32_t i = 0; i < op->n_rows; i++) {
            if (op->from[i]) {
                first = i;
                memcpy(op->state[i] + h * size, op->from[i] + h * size, size * sizeof(float));
            }
            step_head(job->rows, op, first, i, history(op, op->from[first]),
                      op->state[i] + h * size, h);
        }
    }
}

/* The last taps - 1 inputs of each sequence, for its next step. */
static void keep_history(const struct op_delta_net *op)
{
    uint32_t channels = 2 * op->n_k_heads * op->state_dim + op->n_v_heads * op->state_dim;
    uint32_t keep = op->conv_taps - 1, first = 0;
    for (uint32_t i = 0; i < op->n_rows; i++) {
        first = op->from[i] ? i : first;
        if (i + 1 < op->n_rows && !op->from[i + 1]) {
            continue; /* not the sequence's last row */
        }
        const float *old = history(op, op->from[first]);
        float *to = op->state[i] + (size_t)op->n_v_heads * op->state_dim * op->state_dim;
        for (uint32_t j = 0; j < keep; j++) {
            int64_t at = (int64_t)i - (keep - 1) + j;
            const float *u = at >= (int64_t)first
                                 ? op->u + (size_t)at * op->u_stride
                                 : old + (size_t)(at - (int64_t)first + keep) * channels;
            memcpy(to + (size_t)j * channels, u, channels * sizeof(float));
        }
    }
}

int cpu_delta_net(struct backend *b, const struct op_delta_net *op, struct err *err)
{
    struct delta_job job = { cpu_of(b)->rows, op };
    if (op->state_dim > STATE_DIM_MAX) {
        return err_set(err, ERR_UNSUPPORTED, "delta net state of %u", op->state_dim);
    }
    cpu_parallel(cpu_of(b), op->n_v_heads, 1, run_heads, &job);
    keep_history(op);
    return 0;
}
