/* The exact matrix product: every weight widened to f32, products and sums in double. A product of two f32 is exact
 * in double, so the only roundings are the additions; they run over SUMS interleaved partial sums joined in a
 * fixed tree, the same for every machine. This is the judge of the fast kernels, and setting --exact. */
#include "proto/rows16.h"
#include "worker/cpu/cpu.h"
#include "worker/quant.h"

#define SUMS 8

static float dot(const float *w, const float *x, uint32_t k)
{
    double s[SUMS] = { 0 };
    uint32_t j = 0;
    for (; j + SUMS <= k; j += SUMS) {
        for (uint32_t l = 0; l < SUMS; l++) {
            s[l] += (double)w[j + l] * (double)x[j + l];
        }
    }
    for (uint32_t l = 0; j < k; j++, l++) {
        s[l] += (double)w[j] * (double)x[j];
    }
    return (float)(((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])));
}

const float *cpu_weight_row(struct cpu_backend *c, const struct matrix *w, uint32_t e, uint32_t i,
                            uint32_t part)
{
    const uint8_t *expert = matrix_expert(w, e);
    const uint8_t *row = expert + i * w->row_bytes;
    float *values = (float *)(void *)c->scratch + (size_t)part * CPU_ROW_WORDS * c->limits.max_k;
    uint8_t *bytes = (uint8_t *)(values + c->limits.max_k);
    uint32_t group = i / ROWS16_ROWS;
    if (w->layout == WEIGHTS_LAYOUT_ROWS16 && (group + 1) * ROWS16_ROWS <= w->m) {
        rows16_row(w->dtype, expert + (uint64_t)group * ROWS16_ROWS * w->row_bytes, w->row_bytes,
                   i % ROWS16_ROWS, bytes);
        row = bytes;
    }
    quant_dequantise(w->dtype, row, w->k, values);
    return values;
}

struct product_job {
    struct cpu_backend *c;
    const struct op_matmul *op;
    const struct op_product *product;
};

static void product_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct product_job *job = arg;
    const struct op_product *p = job->product;
    for (uint32_t i = begin; i < end; i++) {
        const float *w = cpu_weight_row(job->c, p->w, 0, i, part);
        for (uint32_t n = 0; n < job->op->n_rows; n++) {
            float y = dot(w, job->op->x + (size_t)n * job->op->x_stride, p->w->k);
            p->y[(size_t)n * p->y_stride + i] = p->bias ? y + p->bias[i] : y;
        }
    }
}

int cpu_matmul_exact(struct backend *b, const struct op_matmul *op, struct err *err)
{
    for (uint32_t i = 0; i < op->n_products; i++) {
        struct product_job job = { .c = cpu_of(b), .op = op, .product = &op->products[i] };
        cpu_parallel(cpu_of(b), job.product->w->m, 16, product_rows, &job);
    }
    return op->act ? cpu_act(b, op->act, err) : 0;
}

struct experts_job {
    struct cpu_backend *c;
    const struct op_matmul_experts *op;
};

/* One output of all rows at a time; a weight row is widened again for every row that wants it, which only the
 * exact setting can afford. */
static void expert_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct experts_job *job = arg;
    const struct op_matmul_experts *op = job->op;
    for (uint32_t i = begin; i < end; i++) {
        uint32_t have = UINT32_MAX;
        const float *w = NULL;
        for (uint32_t r = 0; r < op->n_rows; r++) {
            uint32_t e = (uint32_t)op->experts[r];
            if (e != have) {
                w = cpu_weight_row(job->c, op->w, e, i, part);
                have = e;
            }
            float y = dot(w, op->x + (size_t)(r / op->x_share) * op->x_stride, op->w->k);
            y = op->bias ? y + op->bias[(size_t)e * op->w->m + i] : y;
            op->y[(size_t)r * op->y_stride + i] = op->scale ? y * op->scale[e] : y;
        }
    }
}

int cpu_matmul_experts_exact(struct backend *b, const struct op_matmul_experts *op, struct err *err)
{
    (void)err;
    struct experts_job job = { .c = cpu_of(b), .op = op };
    cpu_parallel(cpu_of(b), op->w->m, 16, expert_rows, &job);
    return 0;
}
