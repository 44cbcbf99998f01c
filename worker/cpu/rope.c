/* Rotary positions (Su et al. 2021): a table of cosines and sines made once for a step, then turns in place.
 * Angles are made in double from position times frequency, never by recurrence. */
#include <math.h>

#include "worker/cpu/cpu.h"

static void table_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct op_rope_table *op = arg;
    (void)part;
    for (uint32_t i = begin; i < end; i++) {
        float *cs = op->cs + (size_t)i * op->n_pairs * 2;
        for (uint32_t j = 0; j < op->n_pairs; j++) {
            double theta = (double)op->pos[i] * op->freq[j];
            cs[2 * j] = (float)(cos(theta) * op->mag);
            cs[2 * j + 1] = (float)(sin(theta) * op->mag);
        }
    }
}

int cpu_rope_table(struct backend *b, const struct op_rope_table *op, struct err *err)
{
    (void)err;
    struct op_rope_table copy = *op;
    cpu_parallel(cpu_of(b), op->n_rows, 16, table_rows, &copy);
    return 0;
}

static void turn(float *a, float *b, float c, float s)
{
    float x = *a, y = *b;
    *a = x * c - y * s;
    *b = x * s + y * c;
}

static void rope_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct op_rope *op = arg;
    (void)part;
    for (uint32_t i = begin; i < end; i++) {
        const float *cs = op->cs + (size_t)i * op->n_pairs * 2;
        float *row = op->x + (size_t)i * op->x_stride;
        for (uint32_t h = 0; h < op->n_heads; h++) {
            float *x = row + (size_t)h * op->head_dim;
            for (uint32_t j = 0; j < op->n_pairs; j++) {
                uint32_t first = op->neox ? j : 2 * j;
                uint32_t second = op->neox ? j + op->n_pairs : 2 * j + 1;
                turn(x + first, x + second, cs[2 * j], cs[2 * j + 1]);
            }
        }
        if (op->row_scale) {
            for (uint32_t j = 0; j < op->n_heads * op->head_dim; j++) {
                row[j] *= op->row_scale[i];
            }
        }
    }
}

int cpu_rope(struct backend *b, const struct op_rope *op, struct err *err)
{
    (void)err;
    struct op_rope copy = *op;
    cpu_parallel(cpu_of(b), op->n_rows, 4, rope_rows, &copy);
    return 0;
}
