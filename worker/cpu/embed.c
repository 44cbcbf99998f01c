/* Embedding look-up: one row of any tensor type, widened and scaled. */
#include <assert.h>

#include "worker/cpu/cpu.h"

int cpu_embed(struct backend *b, const struct op_embed *op, struct err *err)
{
    (void)err;
    const struct matrix *w = op->w;
    for (uint32_t i = 0; i < op->n_rows; i++) {
        float *y = op->y + (size_t)i * w->k;
        assert(op->ids[i] >= 0 && (uint32_t)op->ids[i] < w->m);
        const float *row = cpu_weight_row(cpu_of(b), w, 0, (uint32_t)op->ids[i], 0);
        for (uint32_t j = 0; j < w->k; j++) {
            y[j] = row[j] * op->scale;
        }
    }
    return 0;
}
