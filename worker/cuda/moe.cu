/* Routing of tokens to experts, a warp for each token, and the weighted sum of what they gave back. Choices go to the
 * larger value, ties to the lower index; sums in double. */
#include "worker/cuda/reduce.cuh"
#include "worker/cuda/vmath.cuh"

#define EXPERTS_MAX 1024 /* as on the CPU */
#define THREADS     256

static __device__ float negative_infinity(void)
{
    return -INFINITY;
}

/* Scores of the row: softmax over all, sigmoid, or the logits. */
static __device__ void score(const struct op_moe_route *op, const float *logits, float *p)
{
    uint32_t lane = threadIdx.x;
    if (op->gating != OP_GATING_SOFTMAX) {
        for (uint32_t e = lane; e < op->n_experts; e += WARP) {
            p[e] = op->gating == OP_GATING_SIGMOID ? vmath_sigmoid(logits[e]) : logits[e];
        }
        return;
    }
    float max = negative_infinity();
    for (uint32_t e = lane; e < op->n_experts; e += WARP) {
        max = logits[e] > max ? logits[e] : max;
    }
    max = warp_max(max);
    double sum = 0.0;
    for (uint32_t e = lane; e < op->n_experts; e += WARP) {
        p[e] = vmath_exp(logits[e] - max);
        sum += (double)p[e];
    }
    sum = warp_sum(sum);
    for (uint32_t e = lane; e < op->n_experts; e += WARP) {
        p[e] = (float)((double)p[e] / sum);
    }
}

/* Takes the runs of experts that did not make it out of the choice. best: shared, a value for each group. */
static __device__ void keep_best_groups(const struct op_moe_route *op, float *choice, float *best)
{
    uint32_t size = op->n_experts / op->n_groups;
    for (uint32_t g = threadIdx.x; g < op->n_groups; g += WARP) {
        float first = negative_infinity(), second = first;
        for (uint32_t e = g * size; e < (g + 1) * size; e++) {
            if (choice[e] > first) {
                second = first;
                first = choice[e];
            } else if (choice[e] > second) {
                second = choice[e];
            }
        }
        best[g] = size > 1 ? first + second : first;
    }
    __syncwarp();
    for (uint32_t g = threadIdx.x; g < op->n_groups; g += WARP) {
        uint32_t rank = 0;
        for (uint32_t o = 0; o < op->n_groups; o++) {
            rank += best[o] > best[g] || (best[o] == best[g] && o < g);
        }
        for (uint32_t e = g * size; rank >= op->n_groups_used && e < (g + 1) * size; e++) {
            choice[e] = negative_infinity();
        }
    }
    __syncwarp();
}

/* The best of what is left, the same in every lane. taken: one bit an expert, this lane's own. */
static __device__ uint32_t choose(const float *choice, uint32_t n, uint32_t taken)
{
    float best = negative_infinity();
    uint32_t at = 0xffffffffu;
    for (uint32_t e = threadIdx.x, i = 0; e < n; e += WARP, i++) {
        if (!((taken >> i) & 1) && (at == 0xffffffffu || choice[e] > best)) {
            best = choice[e];
            at = e;
        }
    }
    for (int off = WARP / 2; off > 0; off /= 2) {
        float value = __shfl_xor_sync(ALL_LANES, best, off);
        uint32_t other = __shfl_xor_sync(ALL_LANES, at, off);
        if (other != 0xffffffffu &&
            (at == 0xffffffffu || value > best || (value == best && other < at))) {
            best = value;
            at = other;
        }
    }
    return at;
}

static __device__ void finish(const struct op_moe_route *op, float *weights)
{
    double sum = 0.0;
    if (op->softmax_chosen) {
        float max = weights[0];
        for (uint32_t s = 1; s < op->n_used; s++) {
            max = weights[s] > max ? weights[s] : max;
        }
        for (uint32_t s = 0; s < op->n_used; s++) {
            weights[s] = vmath_exp(weights[s] - max);
        }
    }
    for (uint32_t s = 0; s < op->n_used; s++) {
        sum += (double)weights[s];
    }
    if (!op->softmax_chosen && !op->normalise) {
        sum = 1.0;
    }
    for (uint32_t s = 0; s < op->n_used; s++) {
        weights[s] = (float)((double)weights[s] / sum * (double)op->scale);
    }
}

static __global__ void route_kernel(struct op_moe_route op)
{
    __shared__ float p[EXPERTS_MAX], choice[EXPERTS_MAX], best_group[EXPERTS_MAX];
    uint32_t lane = threadIdx.x, taken = 0;
    int32_t *experts = op.experts + (uint64_t)blockIdx.x * op.n_used;
    float *weights = op.weights + (uint64_t)blockIdx.x * op.n_used;
    score(&op, op.logits + (uint64_t)blockIdx.x * op.logits_stride, p);
    for (uint32_t e = lane; e < op.n_experts; e += WARP) {
        float v = op.choice_bias ? p[e] + op.choice_bias[e] : p[e];
        choice[e] = v == v ? v : negative_infinity(); /* a NaN leaves no slot without an expert */
    }
    __syncwarp();
    if (op.n_groups > 1) {
        keep_best_groups(&op, choice, best_group);
    }
    for (uint32_t s = 0; s < op.n_used; s++) {
        uint32_t e = choose(choice, op.n_experts, taken);
        if (e % WARP == lane) {
            taken |= 1u << (e / WARP);
        }
        if (lane == 0) {
            experts[s] = (int32_t)e;
            weights[s] = p[e];
        }
    }
    if (lane == 0) {
        finish(&op, weights);
    }
}

int cuda_moe_route(struct backend *b, const struct op_moe_route *op, struct err *err)
{
    if (op->n_experts > EXPERTS_MAX || op->n_used > op->n_experts) {
        return err_set(err, ERR_UNSUPPORTED, "%u experts, %u used: at most %d", op->n_experts,
                       op->n_used, EXPERTS_MAX);
    }
    cuda_of(b)->sorted.experts = NULL;
    if (op->n_rows == 0) {
        return 0;
    }
    LAUNCH(route_kernel, op->n_rows, WARP, 0, cuda_of(b)->stream, *op);
    return cuda_launched("moe route", err);
}

static __global__ void sum_kernel(struct op_moe_sum op)
{
    uint32_t j = blockIdx.y * THREADS + threadIdx.x, i = blockIdx.x;
    if (j >= op.width) {
        return;
    }
    float y = 0.0f;
    for (uint32_t s = 0; s < op.n_used; s++) {
        uint64_t slot = (uint64_t)i * op.n_used + s;
        y = fmaf(op.weights[slot], op.x[slot * op.x_stride + j], y);
    }
    op.y[(uint64_t)i * op.y_stride + j] = y;
}

int cuda_moe_sum(struct backend *b, const struct op_moe_sum *op, struct err *err)
{
    cuda_forget(cuda_of(b));
    if (op->n_rows == 0) {
        return 0;
    }
    LAUNCH(sum_kernel, dim3(op->n_rows, blocks_of(op->width, THREADS)), THREADS, 0,
           cuda_of(b)->stream, *op);
    return cuda_launched("moe sum", err);
}
