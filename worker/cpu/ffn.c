/* What stands between matrix products: activations, residual sums, row copies. The loops are in rows.inc. */
#include <string.h>

#include "worker/cpu/cpu.h"
#include "worker/cpu/rows.h"
#include "worker/cpu/vmath.h"

struct act_job {
    const struct rows_kernels *rows;
    const struct op_act *op;
};

static void act_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct act_job *job = arg;
    const struct op_act *op = job->op;
    (void)part;
    for (uint32_t i = begin; i < end; i++) {
        const float *g = op->g + (size_t)i * op->g_stride;
        const float *u = op->u ? op->u + (size_t)i * op->u_stride : NULL;
        float *y = op->y + (size_t)i * op->y_stride;
        if (op->g_width == 1 && op->width != 1) {
            float s = vmath_sigmoid(g[0]);
            for (uint32_t j = 0; j < op->width; j++) {
                y[j] = s * (u ? u[j] : 1.0f);
            }
        } else {
            job->rows->act(op->kind, g, u, y, op->width);
        }
    }
}

int cpu_act(struct backend *b, const struct op_act *op, struct err *err)
{
    (void)err;
    struct act_job job = { cpu_of(b)->rows, op };
    cpu_parallel(cpu_of(b), op->n_rows, 2, act_rows, &job);
    return 0;
}

struct add_job {
    const struct rows_kernels *rows;
    const struct op_add *op;
};

static void add_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct add_job *job = arg;
    const struct op_add *op = job->op;
    (void)part;
    for (uint32_t i = begin; i < end; i++) {
        const float *a = op->a + (size_t)i * op->a_stride;
        const float *b = op->b ? op->b + (op->b_rows == 1 ? 0 : (size_t)i * op->b_stride) : NULL;
        float *y = op->y + (size_t)i * op->y_stride;
        if (!b && op->y_scale == 1.0f && op->softcap <= 0.0f) {
            memmove(y, a, op->width * sizeof *y);
        } else {
            job->rows->add(a, b, op->b_scale, op->y_scale, op->softcap, y, op->width);
        }
    }
}

int cpu_add(struct backend *b, const struct op_add *op, struct err *err)
{
    (void)err;
    struct add_job job = { cpu_of(b)->rows, op };
    cpu_parallel(cpu_of(b), op->n_rows, 8, add_rows, &job);
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
