/* One value of a feed-forward's activation, for ffn.cu and the products that end in one. The steps are rows.inc's. */
#pragma once

#include "worker/cuda/vmath.cuh"

#define GELU_SCALE  0.7978845608f /* sqrt(2 / pi) */
#define GELU_CUBE   0.044715f
#define CLAMP_LIMIT 7.0f /* gpt-oss */
#define CLAMP_ALPHA 1.702f

static __device__ __forceinline__ float act_one(enum op_act_kind kind, float g, float u)
{
    switch (kind) {
    case OP_ACT_SILU:
        return g * vmath_sigmoid(g) * u;
    case OP_ACT_GELU:
        return 0.5f * g * (1.0f + vmath_tanh(GELU_SCALE * (g + GELU_CUBE * g * g * g))) * u;
    case OP_ACT_RELU2:
        return g > 0.0f ? g * g * u : 0.0f;
    case OP_ACT_SWIGLU_CLAMP:
        g = g > CLAMP_LIMIT ? CLAMP_LIMIT : g;
        u = u > CLAMP_LIMIT ? CLAMP_LIMIT : u;
        u = u < -CLAMP_LIMIT ? -CLAMP_LIMIT : u;
        return g * vmath_sigmoid(CLAMP_ALPHA * g) * (u + 1.0f);
    case OP_ACT_SIGMOID:
        return vmath_sigmoid(g) * u;
    }
    return 0.0f;
}
