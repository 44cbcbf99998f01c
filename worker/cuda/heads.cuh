/* What norms and turns do to one vector: norm.cu and rope.cu by themselves, kv_store.cu on the way to the pages. A norm's block
 * has NORM_THREADS threads wherever it stands, so that its sums have one order. */
#pragma once

#include "worker/cuda/reduce.cuh"

#define NORM_THREADS 128

struct norm_moments {
    float scale, shift;
};

/* Sums in double, in the tree of reduce.cuh; x twice. slots: shared, one for each warp; free at the end. */
static __device__ __forceinline__ struct norm_moments norm_moments_of(const struct op_norm *op,
                                                                      const float *x, double *slots)
{
    double mean = 0.0, squares = 0.0;
    if (op->kind == OP_NORM_LAYER) {
        for (uint32_t j = threadIdx.x; j < op->width; j += NORM_THREADS) {
            mean += (double)x[j];
        }
        mean = block_sum(mean, slots) / op->width;
    }
    for (uint32_t j = threadIdx.x; j < op->width; j += NORM_THREADS) {
        double d = (double)x[j] - mean;
        squares += d * d;
    }
    squares = block_sum(squares, slots);
    struct norm_moments m = { (float)(1.0 / sqrt(squares / op->width + (double)op->eps)),
                              (float)mean };
    return m;
}

/* w: what op->w and op->b begin with for this vector. */
static __device__ __forceinline__ float
norm_one(const struct op_norm *op, const struct norm_moments *m, uint64_t w, uint32_t j, float x)
{
    float v = (x - m->shift) * m->scale;
    v = op->w ? v * op->w[w + j] : v;
    return op->b ? v + op->b[w + j] : v;
}

/* Pair j of a head of row i, x its first value. */
static __device__ __forceinline__ void turn_pair(const struct op_rope *op, uint32_t i, uint32_t j,
                                                 float *x)
{
    const float *cs = op->cs + ((uint64_t)i * op->n_pairs + j) * 2;
    uint32_t first = op->neox ? j : 2 * j, second = op->neox ? j + op->n_pairs : 2 * j + 1;
    float u = x[first], v = x[second];
    x[first] = u * cs[0] - v * cs[1];
    x[second] = u * cs[1] + v * cs[0];
}
