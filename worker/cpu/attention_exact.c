/* Keys and values in f32, f16 or bf16, and attention over them as the formula says: scores, maximum, sums in
 * double, in order of position. The judge of attention.c, and setting --exact. Tiles are laid out as backend.h
 * says: K component-major, V position-major. */
#include <math.h>
#include <string.h>

#include "proto/bytes.h"
#include "worker/cpu/cpu.h"
#include "worker/cpu/vmath.h"
#include "worker/quant.h"

static float load(enum dtype dtype, const uint8_t *tile, uint32_t i)
{
    uint16_t half;
    float value;
    if (dtype == DTYPE_F32) {
        memcpy(&value, tile + (size_t)i * sizeof value, sizeof value);
        return value;
    }
    memcpy(&half, tile + (size_t)i * sizeof half, sizeof half);
    return dtype == DTYPE_F16 ? dtype_f32_of_f16(half) : quant_f32_of_bf16(half);
}

static void store(enum dtype dtype, uint8_t *tile, uint32_t i, float value)
{
    if (dtype == DTYPE_F32) {
        memcpy(tile + (size_t)i * sizeof value, &value, sizeof value);
        return;
    }
    uint16_t half = dtype == DTYPE_F16 ? dtype_f16_of_f32(value) : quant_bf16_of_f32(value);
    memcpy(tile + (size_t)i * sizeof half, &half, sizeof half);
}

int cpu_kv_store_exact(struct backend *b, const struct op_kv_store *op, struct err *err)
{
    const struct kv_layer *l = &op->layout->layer[op->layer];
    if (backend_before_store(b, op, err) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        const struct kv_row *row = &op->rows[i];
        uint32_t at = (uint32_t)(row->pos % KV_PAGE_TOKENS), lane = at % KV_TILE;
        uint8_t *page = op->page_base +
                        row->pages[row->pos / KV_PAGE_TOKENS] * op->layout->page_bytes;
        for (uint32_t h = 0; h < l->n_kv_heads; h++) {
            const float *k = op->k + (size_t)i * op->k_stride + (size_t)h * l->k_dim;
            const float *v = op->v + (size_t)i * op->v_stride + (size_t)h * l->v_dim;
            uint8_t *k_tile = kv_k_tile(l, page, h, at), *v_tile = kv_v_tile(l, page, h, at);
            for (uint32_t j = 0; j < l->k_dim; j++) {
                store(op->layout->k_type, k_tile, j * KV_TILE + lane, k[j]);
            }
            for (uint32_t j = 0; j < l->v_dim; j++) {
                store(op->layout->v_type, v_tile, lane * l->v_dim + j, v[j]);
            }
        }
    }
    return 0;
}

struct attention_job {
    struct cpu_backend *c;
    const struct op_attention *op;
    size_t part_floats;
};

/* Page of a position; the page tables name only pages of this cache. The tiles are only read here. */
static uint8_t *page_of(const struct op_attention *op, const struct kv_row *row, int64_t u)
{
    return (uint8_t *)(uintptr_t)op->page_base +
           row->pages[u / KV_PAGE_TOKENS] * op->layout->page_bytes;
}

static double score(const struct op_attention *op, const struct kv_layer *l,
                    const struct kv_row *row, uint32_t head, const float *q, int64_t u)
{
    uint32_t at = (uint32_t)(u % KV_PAGE_TOKENS), lane = at % KV_TILE;
    const uint8_t *tile = kv_k_tile(l, page_of(op, row, u), head, at);
    double s = 0.0;
    for (uint32_t j = 0; j < l->k_dim; j++) {
        s += (double)q[j] * (double)load(op->layout->k_type, tile, j * KV_TILE + lane);
    }
    return s * (double)op->scale;
}

static void attend(const struct attention_job *job, uint32_t i, uint32_t h, float *scores,
                   double *sums)
{
    const struct op_attention *op = job->op;
    const struct kv_layer *l = &op->layout->layer[op->layer];
    const struct kv_row *row = &op->rows[i];
    uint32_t kv_head = h / (op->n_heads / l->n_kv_heads);
    const float *q = op->q + (size_t)i * op->q_stride + (size_t)h * l->k_dim;
    float *o = op->o + (size_t)i * op->o_stride + (size_t)h * l->v_dim;
    int64_t lo = row->first_pos;
    if (op->window > 0 && row->pos - (int64_t)op->window + 1 > lo) {
        lo = row->pos - (int64_t)op->window + 1;
    }
    float max = op->sinks ? op->sinks[h] : -INFINITY;
    for (int64_t u = lo; u < row->end_pos; u++) {
        float s = (float)score(op, l, row, kv_head, q, u);
        s = op->softcap > 0.0f ? op->softcap * vmath_tanh(s / op->softcap) : s;
        scores[u - lo] = s;
        max = s > max ? s : max;
    }
    double total = op->sinks ? (double)vmath_exp(op->sinks[h] - max) : 0.0;
    memset(sums, 0, l->v_dim * sizeof *sums);
    for (int64_t u = lo; u < row->end_pos; u++) {
        double a = (double)vmath_exp(scores[u - lo] - max);
        uint32_t at = (uint32_t)(u % KV_PAGE_TOKENS), lane = at % KV_TILE;
        const uint8_t *tile = kv_v_tile(l, page_of(op, row, u), kv_head, at);
        total += a;
        for (uint32_t j = 0; j < l->v_dim; j++) {
            sums[j] += a * (double)load(op->layout->v_type, tile, lane * l->v_dim + j);
        }
    }
    for (uint32_t j = 0; j < l->v_dim; j++) {
        o[j] = (float)(sums[j] / total);
    }
}

static void attention_items(void *arg, uint32_t begin, uint32_t end, uint32_t part)
{
    const struct attention_job *job = arg;
    float *scores = (float *)(void *)job->c->scratch + part * job->part_floats;
    double *sums = (double *)(void *)(scores + align_up(job->c->limits.ctx_len, 16));
    for (uint32_t item = begin; item < end; item++) {
        attend(job, item / job->op->n_heads, item % job->op->n_heads, scores, sums);
    }
}

/* Floats of scratch for one part: the scores of a whole context, then the sums. */
static size_t part_floats(const struct backend_limits *limits)
{
    return align_up(limits->ctx_len, 16) + 2 * align_up(limits->max_v_dim, 16);
}

int cpu_attention_exact(struct backend *b, const struct op_attention *op, struct err *err)
{
    (void)err;
    struct cpu_backend *c = cpu_of(b);
    struct attention_job job = { .c = c, .op = op, .part_floats = part_floats(&c->limits) };
    cpu_parallel(c, op->n_rows * op->n_heads, 1, attention_items, &job);
    return 0;
}

size_t cpu_exact_scratch(const struct backend_limits *limits, uint32_t n_threads)
{
    size_t attention = part_floats(limits), product = (size_t)CPU_ROW_WORDS * limits->max_k;
    return n_threads * (attention > product ? attention : product) * sizeof(float);
}
