/* Attention: which kernel, and the merging of spans.
 *
 * Positions are taken in spans of KV_SPAN from absolute position 0, each from nothing, merged in order. A step of few rows has a
 * block for each span, partial results through global memory and merge_kernel; else a block goes through all spans
 * of its rows. Both do the same steps in the same order: the same bits. Which of the two kernels runs depends on K/V types and
 * head sizes alone, so a row has the same bits alone, in a crowd, in a prompt. */
#include "worker/cuda/pages.cuh"

#define THREADS      128
#define SPLIT_ROWS   16                 /* above: blocks enough without splitting */
#define PARTIALS_MAX ((size_t)16 << 20) /* floats of partial results: 64 MiB */

/* The spans of a row in order, a block for a row and head. */
static __global__ void merge_kernel(struct attention_args a)
{
    const struct device_row *row = &a.rows[blockIdx.x];
    uint32_t head = blockIdx.y;
    int64_t first = row_lo(row->first_pos, row->pos, a.window) / KV_SPAN;
    int64_t n = (row->end_pos + KV_SPAN - 1) / KV_SPAN - first;
    const float *from = a.partials +
                        ((uint64_t)blockIdx.x * a.n_heads + head) * a.n_spans * (2 + a.v.dim);
    for (uint32_t c = threadIdx.x; c < a.v.dim; c += THREADS) {
        float max = infinity_below(), sum = 0.0f, acc = 0.0f;
        for (int64_t i = 0; i < n; i++) {
            const float *p = from + (uint64_t)i * (2 + a.v.dim);
            float keep, take;
            weigh(max, p[0], &keep, &take);
            acc = acc * keep + p[2 + c] * take;
            sum = sum * keep + p[1] * take;
            max = p[0] > max ? p[0] : max;
        }
        a.o[(uint64_t)blockIdx.x * a.o_stride + (uint64_t)head * a.v.dim + c] = finish(
            &a, head, max, sum, acc);
    }
}

/* ---- launchers ---- */

int cuda_attention_check(struct backend *, enum dtype k_type, enum dtype v_type, struct err *err)
{
    const enum dtype types[2] = { k_type, v_type };
    for (enum dtype type : types) {
        if (!quant_can_encode(type)) {
            return err_set(err, ERR_UNSUPPORTED, "KV type %s: f32, f16, bf16, q8_0 or q4_0",
                           dtype_get(type)->name);
        }
    }
    return 0;
}

int cuda_attention_reserve(struct cuda_backend *c, struct err *err)
{
    const struct backend_limits *l = &c->limits;
    size_t spans = l->ctx_len / KV_SPAN + 2;
    size_t want = (size_t)SPLIT_ROWS * l->max_heads * spans * (2 + l->max_v_dim);
    size_t have = c->n_partials * sizeof(float);
    want = want < PARTIALS_MAX ? want : PARTIALS_MAX;
    if (cuda_grow(c, (void **)&c->partials, &have, want * sizeof(float), err) < 0) {
        return -1;
    }
    c->n_partials = have / sizeof(float);
    return 0;
}

int attention_args_of(struct cuda_backend *c, const struct op_attention *op,
                      struct attention_args *to, struct err *err)
{
    const struct kv_layer *l = &op->layout->layer[op->layer];
    struct attention_args a = {};
    a.rows = pages_stage_rows(c, op->rows, op->n_rows, err);
    if (!a.rows) {
        return -1;
    }
    a.page_base = op->page_base;
    a.page_bytes = op->layout->page_bytes;
    a.k = side_of(op->layout->k_type, l->k_dim, l->k_row_bytes, l->k_off);
    a.v = side_of(op->layout->v_type, l->v_dim, l->v_row_bytes, l->v_off);
    a.n_heads = op->n_heads;
    a.group = op->n_heads / l->n_kv_heads;
    a.q = op->q;
    a.q_stride = op->q_stride;
    a.o = op->o;
    a.o_stride = op->o_stride;
    a.scale = op->scale;
    a.softcap = op->softcap;
    a.window = op->window;
    a.sinks = op->sinks;
    *to = a;
    return 0;
}

int cuda_attention(struct backend *b, const struct op_attention *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    const struct kv_layer *l = &op->layout->layer[op->layer];
    struct attention_args a;
    cuda_forget(c);
    if (op->n_rows == 0) {
        return 0;
    }
    if (attention_args_of(c, op, &a, err) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        const struct kv_row *row = &op->rows[i];
        int64_t n = (row->end_pos + KV_SPAN - 1) / KV_SPAN -
                    row_lo(row->first_pos, row->pos, op->window) / KV_SPAN;
        a.n_spans = n > (int64_t)a.n_spans ? (uint32_t)n : a.n_spans;
    }
    size_t need = (size_t)op->n_rows * op->n_heads * a.n_spans * (2 + l->v_dim);
    bool split = a.n_spans > 1 && op->n_rows <= SPLIT_ROWS && need <= c->n_partials;
    a.partials = split ? c->partials : NULL;
    int rc = attention_tiles_fit(&a) ? attention_tiles(c, &a, op->rows, op->n_rows, split, err)
                                     : attention_plain(c, &a, op->n_rows, split, err);
    if (rc == 0 && split) {
        LAUNCH(merge_kernel, dim3(op->n_rows, op->n_heads), THREADS, 0, c->stream, a);
    }
    return rc < 0 ? rc : cuda_launched("attention", err);
}
