/* The items of attention: scores, softmax and values page by page, spans merged in order. Any thread of the team; attention_job.h
 * has the order of it. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "proto/bytes.h"
#include "worker/cpu/attention_job.h"
#include "worker/cpu/vmath.h"
#include "worker/quant.h"

static_assert(ATTENTION_BLOCK == KV_PAGE_TOKENS && ATTENTION_TILE == KV_TILE, "a block is a page");

#define EXPAND_COLS 8 /* more columns: a tile of quantised V is widened once for all of them */

/* One member's memory, in the order in which it stands. */
struct workspace {
    struct attention_scores *scores;
    float (*lanes)[16]; /* partial sums [ATTENTION_COLS] */
    float *v;           /* a tile of V in f32, [16][v_pad] */
    float *q;           /* one query, padded */
    uint8_t *panels;    /* queries as matmul panels */
    struct partial *span, *total;
};

static size_t panel_bytes(size_t k_pad)
{
    size_t floats = k_pad * sizeof(float),
           ints = align_up(k_pad, 32) / 32 * MATMUL_BLOCK_BYTES(1, false);
    return ATTENTION_COLS * (floats > ints ? floats : ints);
}

size_t attention_partial_bytes(size_t v_pad)
{
    return align_up(sizeof(struct partial) + ATTENTION_COLS * v_pad * sizeof(float), 64);
}

static struct workspace lay_out(uint8_t *at, size_t k_pad, size_t v_pad, uint8_t **end)
{
    struct workspace w;
    w.scores = cpu_carve(&at, sizeof *w.scores);
    w.lanes = cpu_carve(&at, ATTENTION_COLS * sizeof *w.lanes);
    w.v = cpu_carve(&at, KV_TILE * v_pad * sizeof(float));
    w.q = cpu_carve(&at, k_pad * sizeof(float));
    w.panels = cpu_carve(&at, panel_bytes(k_pad));
    w.span = cpu_carve(&at, attention_partial_bytes(v_pad));
    w.total = cpu_carve(&at, attention_partial_bytes(v_pad));
    *end = at;
    return w;
}

size_t attention_member_bytes(size_t k_pad, size_t v_pad)
{
    /* Sizes alone: the addresses are counted from an arbitrary aligned one. */
    uint8_t *end, *base = (uint8_t *)(uintptr_t)64;
    lay_out(base, k_pad, v_pad, &end);
    return (size_t)((uintptr_t)end - (uintptr_t)base);
}

struct item attention_item(const struct job *job, size_t i)
{
    uint32_t group = job->op->n_heads / job->layer->n_kv_heads,
             per_block = job->layer->n_kv_heads / job->n_kv_item * job->n_chunks;
    struct item it = { .block = &job->blocks[i / per_block], .n_kv = job->n_kv_item };
    uint32_t rest = (uint32_t)(i % per_block), chunk = rest % job->n_chunks;
    it.kv_head = rest / job->n_chunks * job->n_kv_item;
    it.head0 = it.kv_head * group + chunk * job->n_heads_item;
    uint32_t left = group - chunk * job->n_heads_item;
    it.n_heads = left < job->n_heads_item ? left : job->n_heads_item;
    it.kv_cols = it.n_heads * it.block->n_rows;
    it.n_cols = it.n_kv * it.kv_cols;
    return it;
}

/* Row of the block and query head of a column. */
static uint32_t row_of(const struct item *it, uint32_t col)
{
    return col % it->kv_cols / it->n_heads;
}

static uint32_t head_of(const struct job *job, const struct item *it, uint32_t col)
{
    uint32_t group = job->op->n_heads / job->layer->n_kv_heads;
    return it->head0 + col / it->kv_cols * group + col % it->n_heads;
}

int64_t attention_row_lo(const struct op_attention *op, const struct kv_row *row)
{
    int64_t lo = row->pos - (int64_t)op->window + 1;
    return op->window > 0 && lo > row->first_pos ? lo : row->first_pos;
}

void attention_range(const struct job *job, const struct item *it, int64_t *lo, int64_t *hi)
{
    *lo = INT64_MAX;
    *hi = 0;
    for (uint32_t r = 0; r < it->block->n_rows; r++) {
        const struct kv_row *row = &job->op->rows[it->block->row0 + r];
        int64_t from = attention_row_lo(job->op, row);
        *lo = from < *lo ? from : *lo;
        *hi = row->end_pos > *hi ? row->end_pos : *hi;
    }
}

/* Panels of nearly equal width: columns of panel i of n. */
static uint32_t panel_cut(const struct job *job, uint32_t n_cols, uint32_t i, uint32_t *n_panels)
{
    uint32_t width = job->products->panel_cols, n = (n_cols + width - 1) / width;
    *n_panels = n;
    return n_cols / n + (i < n_cols % n ? 1 : 0);
}

/* Of a query in a panel. */
static size_t column_bytes(const struct job *job)
{
    return quant_info(job->op->layout->k_type)->sub
               ? (size_t)job->k_pad / 32 * MATMUL_BLOCK_BYTES(1, false)
               : (size_t)job->layer->k_dim * sizeof(float);
}

static struct matmul_slot slot_of(enum dtype dtype)
{
    return (struct matmul_slot){ quant_info(dtype)->bias, 0 };
}

static void fill_queries(const struct job *job, const struct item *it, struct workspace *w)
{
    const struct op_attention *op = job->op;
    enum dtype type = op->layout->k_type;
    struct matmul_slot slot = slot_of(type);
    uint32_t k = job->layer->k_dim, n_panels = 1, i = 0;
    uint8_t *panel = w->panels;
    for (uint32_t col = 0; col < it->n_cols; i = (i + 1) % n_panels) {
        uint32_t width = panel_cut(job, it->kv_cols, i, &n_panels);
        for (uint32_t c = 0; c < width; c++, col++) {
            const float *q = op->q + (size_t)(it->block->row0 + row_of(it, col)) * op->q_stride +
                             (size_t)head_of(job, it, col) * k;
            if (quant_info(type)->sub) {
                memcpy(w->q, q, k * sizeof *q);
                memset(w->q + k, 0, (job->k_pad - k) * sizeof *q);
                job->products->quantise(w->q, job->k_pad, &slot, 1, false, width, c, panel);
            } else {
                float *to = (float *)(void *)panel + c;
                for (uint32_t j = 0; j < k; j++) {
                    to[(size_t)j * width] = q[j];
                }
            }
        }
        panel += width * column_bytes(job);
    }
}

/* Products of the 16 keys of a tile with all columns of its key head, which begin at col0. */
static void score_tile(const struct job *job, const struct item *it, const uint8_t *tile,
                       unsigned t, uint32_t col0, struct workspace *w)
{
    enum dtype type = job->op->layout->k_type;
    const struct quant_info *q = quant_info(type);
    uint32_t n_panels = 1;
    const uint8_t *panel = w->panels + col0 * column_bytes(job);
    float *s = w->scores->s[t][col0];
    memset(s, 0, it->kv_cols * sizeof w->scores->s[t][0]);
    for (uint32_t i = 0; i < n_panels; i++) {
        uint32_t width = panel_cut(job, it->kv_cols, i, &n_panels);
        size_t stride = (size_t)width * MATMUL_BLOCK_BYTES(1, false), corr_off = 48 * (size_t)width;
        matmul_stream *stream = width <= MATMUL_STREAM_COLS ? job->products->stream[type][width]
                                                            : NULL;
        if (stream) {
            stream(tile, job->k_pad / 32, panel, stride, 0, corr_off, s);
        } else if (q->sub) {
            size_t column = (size_t)KV_TILE * dtype_get(type)->block_bytes;
            for (uint32_t b = 0; b < job->k_pad / 32; b++) {
                struct matmul_tile codes;
                job->products->unpack[type](tile + b * column, &codes);
                job->products->dot(&codes, 1, panel + b * stride, stride, 0, corr_off,
                                   q->codes_u7 ? 0 : MATMUL_WIDE, width, s);
            }
        } else {
            job->products->dot_float(type, tile, job->layer->k_dim, (const void *)panel, width, s);
        }
        panel += width * column_bytes(job);
        s += (size_t)width * ATTENTION_TILE;
    }
}

/* Keys u0 .. u1 - 1 of tile t times their probabilities, for columns col0 .. + n_cols - 1. */
static void add_values(const struct job *job, const uint8_t *v, unsigned t, unsigned u0,
                       unsigned u1, unsigned col0, unsigned n_cols, struct workspace *w,
                       struct partial *p)
{
    enum dtype type = job->op->layout->v_type;
    size_t row_bytes = job->layer->v_row_bytes;
    const uint8_t *tile = v + (size_t)t * KV_TILE * row_bytes;
    if ((quant_info(type)->sub && n_cols > EXPAND_COLS) || job->layer->v_dim % 16) {
        uint32_t n = attention_padded(type, job->layer->v_dim);
        for (unsigned u = u0; u < u1; u++) {
            float *row = w->v + u * job->v_pad;
            job->kernels->expand(type, tile + u * row_bytes, n, row);
            memset(row + n, 0, (job->v_pad - n) * sizeof *row);
        }
        type = DTYPE_F32;
        tile = (const void *)w->v;
        row_bytes = job->v_pad * sizeof(float);
    }
    job->kernels->values(type, tile, row_bytes, (job->layer->v_dim + 15) / 16, w->scores, t, u0, u1,
                         col0, n_cols, p->acc + (size_t)col0 * job->v_pad, job->v_pad);
}

/* Range of page positions that row r of the item counts, within the page at `base`. */
static void page_range(const struct op_attention *op, const struct kv_row *row, int64_t base,
                       unsigned *lo, unsigned *hi)
{
    int64_t from = attention_row_lo(op, row) - base, to = row->end_pos - base;
    *lo = (unsigned)(from < 0 ? 0 : from > KV_PAGE_TOKENS ? KV_PAGE_TOKENS : from);
    *hi = (unsigned)(to < 0 ? 0 : to > KV_PAGE_TOKENS ? KV_PAGE_TOKENS : to);
}

/* Asks for a tile of 16 rows. */
static void ask(const uint8_t *tile, size_t row_bytes)
{
    for (size_t off = 0; off < KV_TILE * row_bytes; off += 64) {
        __builtin_prefetch(tile + off, 0, 2);
    }
}

static void add_page(const struct job *job, const struct item *it, int64_t base,
                     struct workspace *w, struct partial *p)
{
    const struct op_attention *op = job->op;
    const struct kv_row *rows = &op->rows[it->block->row0];
    const struct kv_layer *l = job->layer;
    unsigned lo[ATTENTION_COLS], hi[ATTENTION_COLS], min = KV_PAGE_TOKENS, max = 0;
    bool whole = true;
    for (uint32_t r = 0; r < it->block->n_rows; r++) {
        page_range(op, &rows[r], base, &lo[r], &hi[r]);
        if (lo[r] < hi[r]) {
            min = lo[r] < min ? lo[r] : min;
            max = hi[r] > max ? hi[r] : max;
        }
        whole &= lo[r] == 0 && hi[r] == KV_PAGE_TOKENS;
    }
    if (min >= max) {
        return;
    }
    /* kv_k_tile wants a page it may write; nothing is written. */
    uint8_t *page = (uint8_t *)(uintptr_t)op->page_base +
                    rows[0].pages[base / KV_PAGE_TOKENS] * op->layout->page_bytes;
    /* The next page is read while this one is computed: a head's part of a page is too short for the processor's own
     * prefetch. */
    uint8_t *next = base + KV_PAGE_TOKENS < rows[0].end_pos
                        ? (uint8_t *)(uintptr_t)op->page_base +
                              rows[0].pages[base / KV_PAGE_TOKENS + 1] * op->layout->page_bytes
                        : NULL;
    unsigned tile0 = min / KV_TILE, tile1 = (max - 1) / KV_TILE;
    for (uint32_t h = 0; h < it->n_kv; h++) {
        for (unsigned t = tile0; t <= tile1; t++) {
            if (next) {
                ask(kv_k_tile(l, next, it->kv_head + h, t * KV_TILE), l->k_row_bytes);
            }
            score_tile(job, it, kv_k_tile(l, page, it->kv_head + h, t * KV_TILE), t,
                       h * it->kv_cols, w);
        }
    }
    for (uint32_t c = 0; c < it->n_cols; c++) {
        uint32_t r = row_of(it, c);
        if (lo[r] < hi[r]) {
            job->kernels->softmax(w->scores, c, lo[r], hi[r], op->scale, op->softcap, &p->max[c],
                                  w->lanes[c], p->acc + (size_t)c * job->v_pad, job->v_pad);
            p->started[c] = true;
        }
    }
    for (uint32_t h = 0; h < it->n_kv; h++) {
        const uint8_t *v = kv_v_tile(l, page, it->kv_head + h, 0);
        uint32_t col0 = h * it->kv_cols;
        for (unsigned t = tile0; t <= tile1; t++) {
            if (next) {
                ask(kv_v_tile(l, next, it->kv_head + h, t * KV_TILE), l->v_row_bytes);
            }
            if (whole) {
                add_values(job, v, t, 0, KV_TILE, col0, it->kv_cols, w, p);
                continue;
            }
            /* Each row for itself: keys outside its range are not even read. */
            for (uint32_t r = 0; r < it->block->n_rows; r++) {
                unsigned t0 = t * KV_TILE, u0 = lo[r] > t0 ? lo[r] - t0 : 0;
                unsigned u1 = hi[r] > t0 ? hi[r] - t0 : 0;
                u1 = u1 < KV_TILE ? u1 : KV_TILE;
                if (u0 < u1) {
                    add_values(job, v, t, u0, u1, col0 + r * it->n_heads, it->n_heads, w, p);
                }
            }
        }
    }
}

void attention_clear(struct partial *p, uint32_t n_cols, size_t v_pad)
{
    for (uint32_t c = 0; c < n_cols; c++) {
        p->max[c] = -INFINITY;
        p->sum[c] = 0;
        p->started[c] = false;
    }
    memset(p->acc, 0, n_cols * v_pad * sizeof *p->acc);
}

/* One span of an item from nothing. */
static void compute_span(const struct job *job, const struct item *it, int64_t span,
                         struct workspace *w, struct partial *p)
{
    int64_t lo, hi;
    attention_range(job, it, &lo, &hi);
    lo = lo > span * KV_SPAN ? lo : span * KV_SPAN;
    hi = hi < (span + 1) * KV_SPAN ? hi : (span + 1) * KV_SPAN;
    attention_clear(p, it->n_cols, job->v_pad);
    memset(w->lanes, 0, it->n_cols * sizeof *w->lanes);
    for (int64_t base = lo / KV_PAGE_TOKENS * KV_PAGE_TOKENS; base < hi; base += KV_PAGE_TOKENS) {
        add_page(job, it, base, w, p);
    }
    for (uint32_t c = 0; c < it->n_cols; c++) {
        float *s = w->lanes[c];
        for (int n = 8; n > 0; n /= 2) {
            for (int i = 0; i < n; i++) {
                s[i] += s[i + n];
            }
        }
        p->sum[c] = s[0];
    }
}

/* total = total and the next span. */
static void merge(struct partial *total, const struct partial *p, uint32_t n_cols, size_t v_pad)
{
    for (uint32_t c = 0; c < n_cols; c++) {
        float *to = total->acc + c * v_pad;
        const float *from = p->acc + c * v_pad;
        if (!p->started[c]) {
            continue;
        }
        if (!total->started[c]) {
            total->started[c] = true;
            total->max[c] = p->max[c];
            total->sum[c] = p->sum[c];
            memcpy(to, from, v_pad * sizeof *to);
            continue;
        }
        float max = total->max[c] > p->max[c] ? total->max[c] : p->max[c];
        float a = vmath_exp(total->max[c] - max), b = vmath_exp(p->max[c] - max);
        total->max[c] = max;
        total->sum[c] = total->sum[c] * a + p->sum[c] * b;
        for (size_t j = 0; j < v_pad; j++) {
            to[j] = to[j] * a + from[j] * b;
        }
    }
}

void attention_finish(const struct job *job, const struct item *it, const struct partial *total)
{
    const struct op_attention *op = job->op;
    uint32_t v_dim = job->layer->v_dim;
    for (uint32_t c = 0; c < it->n_cols; c++) {
        uint32_t head = head_of(job, it, c);
        float *o = op->o + (size_t)(it->block->row0 + row_of(it, c)) * op->o_stride +
                   (size_t)head * v_dim;
        const float *acc = total->acc + (size_t)c * job->v_pad;
        float scale = 1, sum = total->sum[c];
        if (!total->started[c]) {
            memset(o, 0, v_dim * sizeof *o);
            continue;
        }
        if (op->sinks) {
            float sink = op->sinks[head], max = total->max[c] > sink ? total->max[c] : sink;
            scale = vmath_exp(total->max[c] - max);
            sum = sum * scale + vmath_exp(sink - max);
        }
        scale = scale / sum;
        for (uint32_t j = 0; j < v_dim; j++) {
            o[j] = acc[j] * scale;
        }
    }
}

void attention_run_items(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct job *job = arg;
    uint8_t *unused;
    struct workspace w = lay_out(job->members + member * job->member_bytes, job->k_pad, job->v_pad,
                                 &unused);
    for (size_t i = begin; i < end; i++) {
        struct item it = attention_item(job, i);
        int64_t lo, hi;
        attention_range(job, &it, &lo, &hi);
        fill_queries(job, &it, &w);
        attention_clear(w.total, it.n_cols, job->v_pad);
        for (int64_t span = lo / KV_SPAN; span * KV_SPAN < hi; span++) {
            compute_span(job, &it, span, &w, w.span);
            merge(w.total, w.span, it.n_cols, job->v_pad);
        }
        attention_finish(job, &it, w.total);
    }
}

void attention_run_spans(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct job *job = arg;
    uint8_t *unused;
    struct workspace w = lay_out(job->members + member * job->member_bytes, job->k_pad, job->v_pad,
                                 &unused);
    for (size_t i = begin; i < end; i++) {
        struct item it = attention_item(job, i / (size_t)job->n_spans);
        fill_queries(job, &it, &w);
        compute_span(job, &it, job->span0 + (int64_t)(i % (size_t)job->n_spans), &w,
                     (void *)(job->slots + i * job->partial_bytes));
    }
}

void attention_merge(const struct job *job)
{
    for (size_t i = 0; i < job->n_items; i++) {
        struct item it = attention_item(job, i);
        struct partial *total = (void *)(job->totals + i * job->partial_bytes);
        for (size_t s = 0; s < (size_t)job->n_spans; s++) {
            merge(total, (void *)(job->slots + (i * (size_t)job->n_spans + s) * job->partial_bytes),
                  it.n_cols, job->v_pad);
        }
    }
}
