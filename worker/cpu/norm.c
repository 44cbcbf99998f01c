/* RMS and layer norms, row by row; the sums are in rows.inc. */
#include "worker/cpu/cpu.h"
#include "worker/cpu/rows.h"

struct norm_job {
    const struct rows_kernels *rows;
    const struct op_norm *op;
};

static void norm_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct norm_job *job = arg;
    const struct op_norm *op = job->op;
    (void)part;
    for (uint32_t i = begin; i < end; i++) {
        const float *x = op->x + (size_t)i * op->x_stride;
        if (op->sum) {
            float *sum = op->sum + (size_t)i * op->x_stride;
            job->rows->add(x, op->plus + (size_t)i * op->plus_stride, op->plus_scale, 1.0f, 0.0f,
                           sum, op->width);
            x = sum;
        }
        for (uint32_t g = 0; g < op->n_groups; g++) {
            size_t at = (size_t)g * op->width, own = op->w_per_group ? at : 0;
            job->rows->norm(op->kind, x + at, op->w ? op->w + own : NULL,
                            op->b ? op->b + own : NULL, op->eps,
                            op->y + (size_t)i * op->y_stride + at, op->width);
        }
    }
}

int cpu_norm(struct backend *b, const struct op_norm *op, struct err *err)
{
    (void)err;
    struct norm_job job = { cpu_of(b)->rows, op };
    cpu_parallel(cpu_of(b), op->n_rows, 4, norm_rows, &job);
    return 0;
}
