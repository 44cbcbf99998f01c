/* Routing of tokens to experts, and the weighted sum of what they gave back. */
#include <math.h>
#include <string.h>

#include "worker/cpu/cpu.h"
#include "worker/cpu/rows.h"
#include "worker/cpu/vmath.h"

#define EXPERTS_MAX 1024 /* more than any published model; checked when the model is bound */

/* Scores of one row: softmax over all, sigmoid, or the logits. */
static void score(const struct op_moe_route *op, const float *logits, float *p)
{
    uint32_t n = op->n_experts;
    if (op->gating != OP_GATING_SOFTMAX) {
        for (uint32_t e = 0; e < n; e++) {
            p[e] = op->gating == OP_GATING_SIGMOID ? vmath_sigmoid(logits[e]) : logits[e];
        }
        return;
    }
    float max = logits[0];
    for (uint32_t e = 1; e < n; e++) {
        max = logits[e] > max ? logits[e] : max;
    }
    double sum = 0.0;
    for (uint32_t e = 0; e < n; e++) {
        p[e] = vmath_exp(logits[e] - max);
        sum += (double)p[e];
    }
    for (uint32_t e = 0; e < n; e++) {
        p[e] = (float)((double)p[e] / sum);
    }
}

/* Takes the runs of experts that did not make it out of the choice. */
static void keep_best_groups(const struct op_moe_route *op, float *choice)
{
    uint32_t size = op->n_experts / op->n_groups;
    float best[EXPERTS_MAX];
    for (uint32_t g = 0; g < op->n_groups; g++) {
        float first = -INFINITY, second = -INFINITY;
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
    for (uint32_t g = 0; g < op->n_groups; g++) {
        uint32_t rank = 0;
        for (uint32_t o = 0; o < op->n_groups; o++) {
            rank += best[o] > best[g] || (best[o] == best[g] && o < g);
        }
        for (uint32_t e = g * size; rank >= op->n_groups_used && e < (g + 1) * size; e++) {
            choice[e] = -INFINITY;
        }
    }
}

static void route_row(const struct op_moe_route *op, uint32_t i)
{
    float p[EXPERTS_MAX], choice[EXPERTS_MAX];
    int32_t *experts = op->experts + (size_t)i * op->n_used;
    float *weights = op->weights + (size_t)i * op->n_used;
    score(op, op->logits + (size_t)i * op->logits_stride, p);
    for (uint32_t e = 0; e < op->n_experts; e++) {
        float c = op->choice_bias ? p[e] + op->choice_bias[e] : p[e];
        choice[e] = c == c ? c : -INFINITY; /* a NaN must not leave a slot without an expert */
    }
    if (op->n_groups > 1) {
        keep_best_groups(op, choice);
    }
    bool taken[EXPERTS_MAX] = { false };
    for (uint32_t s = 0; s < op->n_used; s++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t e = 0; e < op->n_experts; e++) {
            if (!taken[e] && (best == UINT32_MAX || choice[e] > choice[best])) {
                best = e;
            }
        }
        taken[best] = true;
        experts[s] = (int32_t)best;
        weights[s] = p[best];
    }
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

int cpu_moe_route(struct backend *b, const struct op_moe_route *op, struct err *err)
{
    (void)b;
    if (op->n_experts > EXPERTS_MAX || op->n_used > op->n_experts) {
        return err_set(err, ERR_UNSUPPORTED, "%u experts, %u used: at most %d", op->n_experts,
                       op->n_used, EXPERTS_MAX);
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        route_row(op, i);
    }
    return 0;
}

struct sum_job {
    const struct rows_kernels *rows;
    const struct op_moe_sum *op;
};

static void sum_rows(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct sum_job *job = arg;
    const struct op_moe_sum *op = job->op;
    (void)part;
    for (uint32_t i = begin; i < end; i++) {
        float *y = op->y + (size_t)i * op->y_stride;
        memset(y, 0, op->width * sizeof *y);
        for (uint32_t s = 0; s < op->n_used; s++) {
            uint64_t slot = (uint64_t)i * op->n_used + s;
            job->rows->fma(op->weights[slot], op->x + slot * op->x_stride, y, op->width);
        }
    }
}

int cpu_moe_sum(struct backend *b, const struct op_moe_sum *op, struct err *err)
{
    (void)err;
    struct sum_job job = { cpu_of(b)->rows, op };
    cpu_parallel(cpu_of(b), op->n_rows, 4, sum_rows, &job);
    return 0;
}
