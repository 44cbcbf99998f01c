/* What stands between matrix products: activations, residual sums, row copies. All elementwise: no order to
 * keep, only the shared exp and tanh (vmath.h). */
#include <string.h>

#include "worker/cpu/cpu.h"
#include "worker/cpu/vmath.h"

#define GELU_SCALE  0.7978845608f /* sqrt(2 / pi) */
#define GELU_CUBE   0.044715f
#define CLAMP_LIMIT 7.0f /* gpt-oss */
#define CLAMP_ALPHA 1.702f

static float act_one(enum op_act_kind kind, float g, float u)
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
        u = u > CLAMP_LIMIT ? CLAMP_LIMIT : u < -CLAMP_LIMIT ? -CLAMP_LIMIT : u;
        return g * vmath_sigmoid(CLAMP_ALPHA * g) * (u + 1.0f);
    case OP_ACT_SIGMOID:
        return vmath_sigmoid(g) * u;
    }
    return 0.0f;
}

static void act_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct op_act *op = arg;
    (void)part;
    for (uint32_t i = begin; i < end; i++) {
        const float *g = op->g + (size_t)i * op->g_stride;
        const float *u = op->u ? op->u + (size_t)i * op->u_stride : NULL;
        float *y = op->y + (size_t)i * op->y_stride;
        if (op->g_width == 1 && op->width != 1) {
            float s = act_one(op->kind, g[0], 1.0f);
            for (uint32_t j = 0; j < op->width; j++) {
                y[j] = s * (u ? u[j] : 1.0f);
            }
            continue;
        }
        for (uint32_t j = 0; j < op->width; j++) {
            y[j] = act_one(op->kind, g[j], u ? u[j] : 1.0f);
        }
    }
}

int cpu_act(struct backend *b, const struct op_act *op, struct err *err)
{
    (void)err;
    struct op_act copy = *op;
    cpu_parallel(cpu_of(b), op->n_rows, 2, act_rows, &copy);
    return 0;
}

static void add_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct op_add *op = arg;
    (void)part;
    for (uint32_t i = begin; i < end; i++) {
        const float *a = op->a + (size_t)i * op->a_stride;
        const float *b = op->b ? op->b + (op->b_rows == 1 ? 0 : (size_t)i * op->b_stride) : NULL;
        float *y = op->y + (size_t)i * op->y_stride;
        for (uint32_t j = 0; j < op->width; j++) {
            float v = b ? a[j] + op->b_scale * b[j] : a[j];
            v *= op->y_scale;
            y[j] = op->softcap > 0.0f ? op->softcap * vmath_tanh(v / op->softcap) : v;
        }
    }
}

int cpu_add(struct backend *b, const struct op_add *op, struct err *err)
{
    (void)err;
    struct op_add copy = *op;
    cpu_parallel(cpu_of(b), op->n_rows, 8, add_rows, &copy);
    return 0;
}

int cpu_gather(struct backend *b, const struct op_gather *op, struct err *err)
{
    (void)b;
    (void)err;
    for (uint32_t i = 0; i < op->n_rows; i++) {
        memcpy(op->y + (size_t)i * op->y_stride, op->x + (size_t)op->index[i] * op->x_stride,
               op->width * sizeof(float));
    }
    return 0;
}
