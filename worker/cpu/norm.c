/* RMS and layer norms. Sums run in double over SUMS interleaved partial sums, joined in a fixed tree: the order
 * depends on the width alone, and no chain of dependent additions is longer than width / SUMS. */
#include <math.h>

#include "worker/cpu/cpu.h"

#define SUMS 8 /* two AVX2 registers of doubles; more gains nothing on rows of a few KiB */

static double join(const double s[SUMS])
{
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static double sum(const float *x, uint32_t n)
{
    double s[SUMS] = { 0 };
    uint32_t j = 0;
    for (; j + SUMS <= n; j += SUMS) {
        for (uint32_t l = 0; l < SUMS; l++) {
            s[l] += (double)x[j + l];
        }
    }
    for (uint32_t l = 0; j < n; j++, l++) {
        s[l] += (double)x[j];
    }
    return join(s);
}

static double sum_of_squares(const float *x, uint32_t n, double mean)
{
    double s[SUMS] = { 0 };
    uint32_t j = 0;
    for (; j + SUMS <= n; j += SUMS) {
        for (uint32_t l = 0; l < SUMS; l++) {
            double d = (double)x[j + l] - mean;
            s[l] += d * d;
        }
    }
    for (uint32_t l = 0; j < n; j++, l++) {
        double d = (double)x[j] - mean;
        s[l] += d * d;
    }
    return join(s);
}

static void norm_one(const struct op_norm *op, const float *x, const float *w, const float *b,
                     float *y)
{
    uint32_t n = op->width;
    double mean = op->kind == OP_NORM_LAYER ? sum(x, n) / n : 0.0;
    double variance = sum_of_squares(x, n, mean) / n;
    float scale = (float)(1.0 / sqrt(variance + (double)op->eps));
    float shift = (float)mean;
    for (uint32_t j = 0; j < n; j++) {
        float v = (x[j] - shift) * scale;
        v = w ? v * w[j] : v;
        y[j] = b ? v + b[j] : v;
    }
}

static void norm_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct op_norm *op = arg;
    (void)part;
    for (uint32_t i = begin; i < end; i++) {
        for (uint32_t g = 0; g < op->n_groups; g++) {
            size_t at = (size_t)g * op->width, own = op->w_per_group ? at : 0;
            norm_one(op, op->x + (size_t)i * op->x_stride + at, op->w ? op->w + own : NULL,
                     op->b ? op->b + own : NULL, op->y + (size_t)i * op->y_stride + at);
        }
    }
}

int cpu_norm(struct backend *b, const struct op_norm *op, struct err *err)
{
    (void)err;
    struct op_norm copy = *op;
    cpu_parallel(cpu_of(b), op->n_rows, 4, norm_rows, &copy);
    return 0;
}
