/* Attention without tensor cores, for K/V types and head sizes that attention_tiles.cu does not take.
 *
 * A block takes one row, one key head and up to HEADS of its query heads, so that a page is read once for the group. It
 * goes through pages of 64 keys in order, each span of KV_SPAN positions from nothing, and spans are merged in order.
 * Scores: a thread for a key and half of its components; values: a thread for a component. */
#include "worker/cuda/pages.cuh"

#define THREADS    128
#define HEADS      8 /* query heads of a block */
#define HALVES     (THREADS / KV_PAGE_TOKENS)
#define SHARED_MAX (44u << 10) /* of the 48 KiB that every device gives unasked */

/* A block's shared memory; acc of the span and of all spans so far. */
struct workspace {
    float *q, *scores, *acc, *total; /* [HEADS][k_dim], [HALVES][HEADS][64], [HEADS][v_dim] x 2 */
    float *max, *sum, *fade, *total_max, *total_sum; /* [HEADS] */
};

static __device__ struct workspace lay_out(float *at, uint32_t n, uint32_t k_dim, uint32_t v_dim)
{
    struct workspace w;
    w.q = at;
    w.scores = w.q + n * k_dim;
    w.acc = w.scores + HALVES * n * KV_PAGE_TOKENS;
    w.total = w.acc + n * v_dim;
    w.max = w.total + n * v_dim;
    w.sum = w.max + HEADS;
    w.fade = w.sum + HEADS;
    w.total_max = w.fade + HEADS;
    w.total_sum = w.total_max + HEADS;
    return w;
}

static uint32_t shared_bytes(uint32_t n, uint32_t k_dim, uint32_t v_dim)
{
    return (n * (k_dim + HALVES * KV_PAGE_TOKENS + 2 * v_dim) + 5 * HEADS) *
           (uint32_t)sizeof(float);
}

/* Positions lo .. hi - 1 of a page, for n query heads: scores, maximum, probabilities, values. */
static __device__ void add_page(const struct attention_args *a, const uint8_t *page,
                                uint32_t kv_head, uint32_t n, uint32_t lo, uint32_t hi,
                                const struct workspace *w)
{
    uint32_t key = threadIdx.x % KV_PAGE_TOKENS, part = threadIdx.x / KV_PAGE_TOKENS;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t middle = a->k.dim / 2, j0 = part == 0 ? 0 : middle, j1 = part == 0 ? middle : a->k.dim;
    if (key >= lo && key < hi) {
        const uint8_t *tile = page + tile_at(&a->k, kv_head, key);
        float s[HEADS] = { 0.0f };
        for (uint32_t j = j0; j < j1; j++) {
            float k = key_value(&a->k, tile, key % KV_TILE, j);
#pragma unroll
            for (uint32_t h = 0; h < HEADS; h++) {
                s[h] = h < n ? fmaf(w->q[h * a->k.dim + j], k, s[h]) : 0.0f;
            }
        }
#pragma unroll
        for (uint32_t h = 0; h < HEADS; h++) {
            if (h < n) {
                w->scores[(part * n + h) * KV_PAGE_TOKENS + key] = s[h];
            }
        }
    }
    __syncthreads();
    for (uint32_t h = warp; h < n; h += THREADS / WARP) {
        float s[2], old = w->max[h], max = old, sum = 0.0f;
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t u = lane + WARP * i;
            s[i] = infinity_below();
            if (u >= lo && u < hi) {
                s[i] = (w->scores[h * KV_PAGE_TOKENS + u] +
                        w->scores[(n + h) * KV_PAGE_TOKENS + u]) *
                       a->scale;
                s[i] = a->softcap > 0.0f ? a->softcap * vmath_tanh(s[i] / a->softcap) : s[i];
            }
            max = s[i] > max ? s[i] : max;
        }
        max = warp_max(max);
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t u = lane + WARP * i;
            float p = u >= lo && u < hi ? vmath_exp(s[i] - max) : 0.0f;
            w->scores[h * KV_PAGE_TOKENS + u] = p;
            sum += p;
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            float fade = vmath_exp(old - max);
            w->fade[h] = fade;
            w->sum[h] = w->sum[h] * fade + sum;
            w->max[h] = max;
        }
    }
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < a->v.dim; c += THREADS) {
        float acc[HEADS];
#pragma unroll
        for (uint32_t h = 0; h < HEADS; h++) {
            acc[h] = h < n ? w->acc[h * a->v.dim + c] * w->fade[h] : 0.0f;
        }
        for (uint32_t u = lo; u < hi; u++) {
            float v = value_value(&a->v, page + tile_at(&a->v, kv_head, u), u % KV_TILE, c);
#pragma unroll
            for (uint32_t h = 0; h < HEADS; h++) {
                acc[h] = h < n ? fmaf(w->scores[h * KV_PAGE_TOKENS + u], v, acc[h]) : 0.0f;
            }
        }
#pragma unroll
        for (uint32_t h = 0; h < HEADS; h++) {
            if (h < n) {
                w->acc[h * a->v.dim + c] = acc[h];
            }
        }
    }
    __syncthreads();
}

/* One span from nothing. */
static __device__ void compute_span(const struct attention_args *a, const struct device_row *row,
                                    uint32_t kv_head, uint32_t n, int64_t span,
                                    const struct workspace *w)
{
    int64_t lo = row_lo(row->first_pos, row->pos, a->window), hi = row->end_pos;
    lo = lo > span * KV_SPAN ? lo : span * KV_SPAN;
    hi = hi < (span + 1) * KV_SPAN ? hi : (span + 1) * KV_SPAN;
    for (uint32_t i = threadIdx.x; i < n * a->v.dim; i += THREADS) {
        w->acc[i] = 0.0f;
    }
    for (uint32_t h = threadIdx.x; h < n; h += THREADS) {
        w->max[h] = infinity_below();
        w->sum[h] = 0.0f;
    }
    __syncthreads();
    for (int64_t base = lo / KV_PAGE_TOKENS * KV_PAGE_TOKENS; base < hi; base += KV_PAGE_TOKENS) {
        const uint8_t *page = a->page_base + row->pages[base / KV_PAGE_TOKENS] * a->page_bytes;
        int64_t from = lo - base, to = hi - base;
        add_page(a, page, kv_head, n, (uint32_t)(from < 0 ? 0 : from),
                 (uint32_t)(to > KV_PAGE_TOKENS ? KV_PAGE_TOKENS : to), w);
    }
}

/* Four blocks to a multiprocessor: 128 registers a thread; left alone the compiler takes 72 and spills. */
static __global__ void __launch_bounds__(THREADS, 4) attention_kernel(struct attention_args a)
{
    DYNAMIC_SHARED(float, shared);
    const struct device_row *row = &a.rows[blockIdx.x];
    uint32_t kv_head = blockIdx.y / a.n_chunks, chunk = blockIdx.y % a.n_chunks;
    uint32_t per = (a.group + a.n_chunks - 1) / a.n_chunks, begin = chunk * per;
    if (begin >= a.group) {
        return;
    }
    uint32_t n = a.group - begin < per ? a.group - begin : per, head0 = kv_head * a.group + begin;
    struct workspace w = lay_out(shared, n, a.k.dim, a.v.dim);
    int64_t first = row_lo(row->first_pos, row->pos, a.window) / KV_SPAN;
    int64_t end = (row->end_pos + KV_SPAN - 1) / KV_SPAN;
    for (uint32_t i = threadIdx.x; i < n * a.k.dim; i += THREADS) {
        w.q[i] = a.q[(uint64_t)blockIdx.x * a.q_stride + (uint64_t)head0 * a.k.dim + i];
    }
    if (a.partials) {
        int64_t span = first + blockIdx.z;
        if (span >= end) {
            return;
        }
        compute_span(&a, row, kv_head, n, span, &w);
        for (uint32_t i = threadIdx.x; i < n * a.v.dim; i += THREADS) {
            uint32_t h = i / a.v.dim, c = i % a.v.dim;
            float *out = a.partials +
                         (((uint64_t)blockIdx.x * a.n_heads + head0 + h) * a.n_spans + blockIdx.z) *
                             (2 + a.v.dim);
            out[2 + c] = w.acc[i];
            if (c == 0) {
                out[0] = w.max[h];
                out[1] = w.sum[h];
            }
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < n * a.v.dim; i += THREADS) {
        w.total[i] = 0.0f;
    }
    for (uint32_t h = threadIdx.x; h < n; h += THREADS) {
        w.total_max[h] = infinity_below();
        w.total_sum[h] = 0.0f;
    }
    for (int64_t span = first; span < end; span++) {
        compute_span(&a, row, kv_head, n, span, &w);
        for (uint32_t i = threadIdx.x; i < n * a.v.dim; i += THREADS) {
            float keep, take;
            weigh(w.total_max[i / a.v.dim], w.max[i / a.v.dim], &keep, &take);
            w.total[i] = w.total[i] * keep + w.acc[i] * take;
        }
        __syncthreads();
        for (uint32_t h = threadIdx.x; h < n; h += THREADS) {
            float keep, take;
            weigh(w.total_max[h], w.max[h], &keep, &take);
            w.total_sum[h] = w.total_sum[h] * keep + w.sum[h] * take;
            w.total_max[h] = w.max[h] > w.total_max[h] ? w.max[h] : w.total_max[h];
        }
        __syncthreads();
    }
    for (uint32_t i = threadIdx.x; i < n * a.v.dim; i += THREADS) {
        uint32_t h = i / a.v.dim;
        a.o[(uint64_t)blockIdx.x * a.o_stride + (uint64_t)head0 * a.v.dim + i] = finish(
            &a, head0 + h, w.total_max[h], w.total_sum[h], w.total[i]);
    }
}

int attention_plain(struct cuda_backend *c, struct attention_args *a, uint32_t n_rows, bool split,
                    struct err *err)
{
    uint32_t per = a->group < HEADS ? a->group : HEADS;
    while (per > 1 && shared_bytes(per, a->k.dim, a->v.dim) > SHARED_MAX) {
        per--;
    }
    uint32_t bytes = shared_bytes(per, a->k.dim, a->v.dim);
    if (bytes > SHARED_MAX) {
        return err_set(err, ERR_UNSUPPORTED, "cuda: attention over heads of %u and %u values",
                       a->k.dim, a->v.dim);
    }
    a->n_chunks = (a->group + per - 1) / per;
    LAUNCH(attention_kernel,
           dim3(n_rows, a->n_heads / a->group * a->n_chunks, split ? a->n_spans : 1), THREADS,
           bytes, c->stream, *a);
    return 0;
}
