/* Keys, values and attention of the default path.
 *
 * In a page (backend.h): K of f32, f16, bf16 is [k_dim][16 keys], K of q8_0, q4_0 stands like 16 rows of weights
 * (proto/rows16.h), a key for a row: so both are a group of 16 rows and scores are matmul's products with the
 * queries as columns (q8_0, q4_0: queries as int8 per 32, dims padded with zeros). V is position after position, each a
 * row of its type.
 *
 * An item is a block of rows of one sequence with the query heads of one key head, at most ATTENTION_COLS columns. It
 * goes through blocks of 64 keys (a page) in order, each span of KV_SPAN positions from nothing, and merges spans in
 * order. A row's own range decides which keys count, and what a page gives to a column does not depend on its
 * neighbours: so neither batching, chunking nor the way spans are shared out changes a bit. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "proto/bytes.h"
#include "proto/rows16.h"
#include "worker/cpu/attention_kernels.h"
#include "worker/cpu/cpu.h"
#include "worker/cpu/matmul_kernels.h"
#include "worker/cpu/team.h"
#include "worker/cpu/vmath.h"
#include "worker/quant.h"

static_assert(ATTENTION_BLOCK == KV_PAGE_TOKENS && ATTENTION_TILE == KV_TILE, "a block is a page");
static_assert(KV_SPAN % KV_PAGE_TOKENS == 0, "spans are whole pages");

#define EXPAND_COLS      8 /* more columns: a tile of quantised V is widened once for all of them */
#define SLOTS_PER_MEMBER 8 /* partial results of spans that wait to be merged */

static const struct attention_kernels *kernels_of(const struct cpu_backend *c)
{
#if defined(__x86_64__)
    static const struct attention_kernels *const table[] = {
        [CPU_ISA_PORTABLE] = &attention_portable,
        [CPU_ISA_AVX2] = &attention_avx2,
        [CPU_ISA_AVX512] = &attention_avx512,
    };
    return table[c->isa];
#else
    (void)c;
    return &attention_portable;
#endif
}

static uint32_t padded(enum dtype dtype, uint32_t n)
{
    uint32_t block = dtype_get(dtype)->block_values;
    return (n + block - 1) / block * block;
}

int cpu_attention_check(struct backend *b, enum dtype k_type, enum dtype v_type, struct err *err)
{
    (void)b;
    const enum dtype types[2] = { k_type, v_type };
    for (int i = 0; i < 2; i++) {
        if (!quant_can_encode(types[i])) {
            return err_set(err, ERR_UNSUPPORTED, "KV type %s: f32, f16, bf16, q8_0 or q4_0",
                           dtype_get(types[i])->name);
        }
    }
    return 0;
}

/* ---- store ---- */

/* One row to blocks, its last block padded with zeros. blocks: as many bytes as the padded row has. */
static void encode_row(enum dtype dtype, const float *x, uint32_t n, float *pad, uint8_t *blocks)
{
    uint32_t wide = padded(dtype, n);
    if (wide > n) {
        memcpy(pad, x, n * sizeof *x);
        memset(pad + n, 0, (wide - n) * sizeof *x);
        x = pad;
    }
    quant_encode(dtype, x, wide, blocks, NULL);
}

int cpu_kv_store(struct backend *b, const struct op_kv_store *op, struct err *err)
{
    struct cpu_backend *c = cpu_of(b);
    const struct kv_layer *l = &op->layout->layer[op->layer];
    enum dtype k_type = op->layout->k_type, v_type = op->layout->v_type;
    uint32_t dim = l->k_dim > l->v_dim ? l->k_dim : l->v_dim;
    float *pad = (float *)(void *)c->scratch;
    uint8_t *blocks = (uint8_t *)(pad + align_up(dim, 32));
    if (align_up(dim, 32) * 2 * sizeof(float) > c->scratch_bytes) {
        return err_set(err, ERR_NO_FIT, "kv_store: heads of %u values", dim);
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        const struct kv_row *row = &op->rows[i];
        uint32_t at = (uint32_t)(row->pos % KV_PAGE_TOKENS), lane = at % KV_TILE;
        uint8_t *page = op->page_base +
                        row->pages[row->pos / KV_PAGE_TOKENS] * op->layout->page_bytes;
        for (uint32_t h = 0; h < l->n_kv_heads; h++) {
            const float *k = op->k + (size_t)i * op->k_stride + (size_t)h * l->k_dim;
            const float *v = op->v + (size_t)i * op->v_stride + (size_t)h * l->v_dim;
            encode_row(k_type, k, l->k_dim, pad, blocks);
            rows16_put_row(k_type, kv_k_tile(l, page, h, at), l->k_row_bytes, lane, blocks);
            encode_row(v_type, v, l->v_dim, pad, kv_v_tile(l, page, h, at) + lane * l->v_row_bytes);
        }
    }
    return 0;
}

/* ---- attention ---- */

/* Running result of the columns of an item over one span or several. */
struct partial {
    float max[ATTENTION_COLS];
    float sum[ATTENTION_COLS];
    bool started[ATTENTION_COLS]; /* some key was seen */
    float acc[];                  /* [ATTENTION_COLS][v_pad] */
};

struct block {
    uint32_t row0, n_rows; /* rows of one sequence, side by side */
};

struct job {
    const struct op_attention *op;
    const struct kv_layer *layer;
    const struct attention_kernels *kernels;
    const struct matmul_kernels *products;
    uint32_t n_heads_item, n_chunks,
        n_blocks; /* query heads of an item; items per key head and block */
    size_t n_items;
    uint32_t k_pad, v_pad;
    struct block *blocks;
    uint8_t *members; /* scratch of member i at i * member_bytes */
    size_t member_bytes, partial_bytes;
    uint8_t *slots;         /* partial results by (item, span of this wave) */
    int64_t span0, n_spans; /* of this wave */
    uint8_t *totals;        /* by item: the merged result of earlier waves */
    bool split;
};

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

static size_t partial_bytes(size_t v_pad)
{
    return align_up(sizeof(struct partial) + ATTENTION_COLS * v_pad * sizeof(float), 64);
}

static uint8_t *cut(uint8_t **at, size_t size)
{
    uint8_t *p = *at;
    *at += align_up(size, 64);
    return p;
}

static struct workspace lay_out(uint8_t *at, size_t k_pad, size_t v_pad, uint8_t **end)
{
    struct workspace w;
    w.scores = (void *)cut(&at, sizeof *w.scores);
    w.lanes = (void *)cut(&at, ATTENTION_COLS * sizeof *w.lanes);
    w.v = (void *)cut(&at, KV_TILE * v_pad * sizeof(float));
    w.q = (void *)cut(&at, k_pad * sizeof(float));
    w.panels = cut(&at, panel_bytes(k_pad));
    w.span = (void *)cut(&at, partial_bytes(v_pad));
    w.total = (void *)cut(&at, partial_bytes(v_pad));
    *end = at;
    return w;
}

static size_t member_bytes(size_t k_pad, size_t v_pad)
{
    /* Sizes alone: the addresses are counted from an arbitrary aligned one. */
    uint8_t *end, *base = (uint8_t *)(uintptr_t)64;
    lay_out(base, k_pad, v_pad, &end);
    return (size_t)((uintptr_t)end - (uintptr_t)base);
}

size_t cpu_attention_scratch(const struct backend_limits *l, uint32_t n_threads)
{
    size_t k_pad = align_up(l->max_k_dim, 32), v_pad = align_up(l->max_v_dim, 32);
    size_t store = (k_pad > v_pad ? k_pad : v_pad) * 2 * sizeof(float);
    size_t slots = (size_t)n_threads * (SLOTS_PER_MEMBER + 2);
    return store + n_threads * member_bytes(k_pad, v_pad) + slots * partial_bytes(v_pad) +
           align_up(l->max_rows * sizeof(struct block), 64);
}

/* An item by its number, and its columns: row by row, head by head. */
struct item {
    uint32_t kv_head, head0, n_heads;
    const struct block *block;
    uint32_t n_cols;
};

static struct item item_of(const struct job *job, size_t i)
{
    uint32_t group = job->op->n_heads / job->layer->n_kv_heads;
    struct item it;
    it.block = &job->blocks[i / ((size_t)job->n_chunks * job->layer->n_kv_heads)];
    uint32_t rest = (uint32_t)(i % ((size_t)job->n_chunks * job->layer->n_kv_heads));
    uint32_t chunk = rest % job->n_chunks;
    it.kv_head = rest / job->n_chunks;
    it.head0 = it.kv_head * group + chunk * job->n_heads_item;
    uint32_t left = group - chunk * job->n_heads_item;
    it.n_heads = left < job->n_heads_item ? left : job->n_heads_item;
    it.n_cols = it.n_heads * it.block->n_rows;
    return it;
}

/* First and one past the last position that a row reads. */
static int64_t row_lo(const struct op_attention *op, const struct kv_row *row)
{
    int64_t lo = row->pos - (int64_t)op->window + 1;
    return op->window > 0 && lo > row->first_pos ? lo : row->first_pos;
}

static void item_range(const struct job *job, const struct item *it, int64_t *lo, int64_t *hi)
{
    *lo = INT64_MAX;
    *hi = 0;
    for (uint32_t r = 0; r < it->block->n_rows; r++) {
        const struct kv_row *row = &job->op->rows[it->block->row0 + r];
        int64_t from = row_lo(job->op, row);
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

static struct matmul_slot slot_of(enum dtype dtype)
{
    return (struct matmul_slot){ quant_info(dtype)->bias, 0 };
}

static void fill_queries(const struct job *job, const struct item *it, struct workspace *w)
{
    const struct op_attention *op = job->op;
    enum dtype type = op->layout->k_type;
    struct matmul_slot slot = slot_of(type);
    uint32_t k = job->layer->k_dim, n_panels = 1;
    uint8_t *panel = w->panels;
    for (uint32_t i = 0, col = 0; i < n_panels; i++) {
        uint32_t width = panel_cut(job, it->n_cols, i, &n_panels);
        for (uint32_t c = 0; c < width; c++, col++) {
            const float *q = op->q + (size_t)(it->block->row0 + col / it->n_heads) * op->q_stride +
                             (size_t)(it->head0 + col % it->n_heads) * k;
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
        panel += quant_info(type)->sub
                     ? (size_t)width * job->k_pad / 32 * MATMUL_BLOCK_BYTES(1, false)
                     : (size_t)width * k * sizeof(float);
    }
}

/* Products of the 16 keys of a tile with all columns. */
static void score_tile(const struct job *job, const struct item *it, const uint8_t *tile,
                       unsigned t, struct workspace *w)
{
    enum dtype type = job->op->layout->k_type;
    const struct quant_info *q = quant_info(type);
    uint32_t k = job->layer->k_dim, n_panels = 1;
    const uint8_t *panel = w->panels;
    memset(w->scores->s[t], 0, it->n_cols * sizeof w->scores->s[t][0]);
    for (uint32_t i = 0, col = 0; i < n_panels; i++) {
        uint32_t width = panel_cut(job, it->n_cols, i, &n_panels);
        float *s = w->scores->s[t][col];
        matmul_stream *stream = width <= MATMUL_STREAM_COLS ? job->products->stream[type][width]
                                                            : NULL;
        if (stream) {
            size_t stride = (size_t)width * MATMUL_BLOCK_BYTES(1, false);
            stream(tile, job->k_pad / 32, panel, stride, 0, 48 * (size_t)width, s);
            panel += stride * (job->k_pad / 32);
        } else if (q->sub) {
            size_t stride = (size_t)width * MATMUL_BLOCK_BYTES(1, false);
            size_t column = (size_t)KV_TILE * dtype_get(type)->block_bytes;
            for (uint32_t b = 0; b < job->k_pad / 32; b++) {
                struct matmul_tile codes;
                job->products->unpack[type](tile + b * column, &codes);
                job->products->dot(&codes, 1, panel + b * stride, stride, 0, 48 * (size_t)width,
                                   q->codes_u7 ? 0 : MATMUL_WIDE, width, s);
            }
            panel += stride * (job->k_pad / 32);
        } else {
            job->products->dot_float(type, tile, k, (const void *)panel, width, s);
            panel += (size_t)width * k * sizeof(float);
        }
        col += width;
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
        uint32_t n = padded(type, job->layer->v_dim);
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
    int64_t from = row_lo(op, row) - base, to = row->end_pos - base;
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
    for (unsigned t = min / KV_TILE; t <= (max - 1) / KV_TILE; t++) {
        if (next) {
            ask(kv_k_tile(l, next, it->kv_head, t * KV_TILE), l->k_row_bytes);
        }
        score_tile(job, it, kv_k_tile(l, page, it->kv_head, t * KV_TILE), t, w);
    }
    for (uint32_t c = 0; c < it->n_cols; c++) {
        uint32_t r = c / it->n_heads;
        if (lo[r] < hi[r]) {
            job->kernels->softmax(w->scores, c, lo[r], hi[r], op->scale, op->softcap, &p->max[c],
                                  w->lanes[c], p->acc + (size_t)c * job->v_pad, job->v_pad);
            p->started[c] = true;
        }
    }
    const uint8_t *v = kv_v_tile(l, page, it->kv_head, 0);
    for (unsigned t = min / KV_TILE; t <= (max - 1) / KV_TILE; t++) {
        if (next) {
            ask(kv_v_tile(l, next, it->kv_head, t * KV_TILE), l->v_row_bytes);
        }
        if (whole) {
            add_values(job, v, t, 0, KV_TILE, 0, it->n_cols, w, p);
            continue;
        }
        /* Each row for itself: keys outside its range are not even read. */
        for (uint32_t r = 0; r < it->block->n_rows; r++) {
            unsigned t0 = t * KV_TILE, u0 = lo[r] > t0 ? lo[r] - t0 : 0;
            unsigned u1 = hi[r] > t0 ? hi[r] - t0 : 0;
            u1 = u1 < KV_TILE ? u1 : KV_TILE;
            if (u0 < u1) {
                add_values(job, v, t, u0, u1, r * it->n_heads, it->n_heads, w, p);
            }
        }
    }
}

static void clear_partial(struct partial *p, uint32_t n_cols, size_t v_pad)
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
    item_range(job, it, &lo, &hi);
    lo = lo > span * KV_SPAN ? lo : span * KV_SPAN;
    hi = hi < (span + 1) * KV_SPAN ? hi : (span + 1) * KV_SPAN;
    clear_partial(p, it->n_cols, job->v_pad);
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

static void finish(const struct job *job, const struct item *it, const struct partial *total)
{
    const struct op_attention *op = job->op;
    uint32_t v_dim = job->layer->v_dim;
    for (uint32_t c = 0; c < it->n_cols; c++) {
        uint32_t head = it->head0 + c % it->n_heads;
        float *o = op->o + (size_t)(it->block->row0 + c / it->n_heads) * op->o_stride +
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

/* Whole items: their spans one after another. */
static void run_items(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct job *job = arg;
    uint8_t *unused;
    struct workspace w = lay_out(job->members + member * job->member_bytes, job->k_pad, job->v_pad,
                                 &unused);
    for (size_t i = begin; i < end; i++) {
        struct item it = item_of(job, i);
        int64_t lo, hi;
        item_range(job, &it, &lo, &hi);
        fill_queries(job, &it, &w);
        clear_partial(w.total, it.n_cols, job->v_pad);
        for (int64_t span = lo / KV_SPAN; span * KV_SPAN < hi; span++) {
            compute_span(job, &it, span, &w, w.span);
            merge(w.total, w.span, it.n_cols, job->v_pad);
        }
        finish(job, &it, w.total);
    }
}

/* Few items, long contexts: (item, span) pairs of one wave. */
static void run_spans(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct job *job = arg;
    uint8_t *unused;
    struct workspace w = lay_out(job->members + member * job->member_bytes, job->k_pad, job->v_pad,
                                 &unused);
    for (size_t i = begin; i < end; i++) {
        struct item it = item_of(job, i / (size_t)job->n_spans);
        fill_queries(job, &it, &w);
        compute_span(job, &it, job->span0 + (int64_t)(i % (size_t)job->n_spans), &w,
                     (void *)(job->slots + i * job->partial_bytes));
    }
}

static void merge_wave(const struct job *job)
{
    for (size_t i = 0; i < job->n_items; i++) {
        struct item it = item_of(job, i);
        struct partial *total = (void *)(job->totals + i * job->partial_bytes);
        for (size_t s = 0; s < (size_t)job->n_spans; s++) {
            merge(total, (void *)(job->slots + (i * (size_t)job->n_spans + s) * job->partial_bytes),
                  it.n_cols, job->v_pad);
        }
    }
}

/* Rows of one sequence that stand side by side, up to max_rows a block. */
static uint32_t cut_blocks(const struct op_attention *op, uint32_t max_rows, struct block *blocks)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < op->n_rows; i++) {
        struct block *last = n ? &blocks[n - 1] : NULL;
        if (last && last->n_rows < max_rows && op->rows[i].pages == op->rows[last->row0].pages) {
            last->n_rows++;
        } else {
            blocks[n++] = (struct block){ i, 1 };
        }
    }
    return n;
}

static void run_waves(struct cpu_backend *c, struct job *job, size_t n_slots)
{
    int64_t lo = INT64_MAX, hi = 0;
    for (size_t i = 0; i < job->n_items; i++) {
        struct item it = item_of(job, i);
        int64_t from, to;
        item_range(job, &it, &from, &to);
        lo = from < lo ? from : lo;
        hi = to > hi ? to : hi;
        clear_partial((void *)(job->totals + i * job->partial_bytes), it.n_cols, job->v_pad);
    }
    int64_t first = lo / KV_SPAN, end = (hi + KV_SPAN - 1) / KV_SPAN,
            wave = (int64_t)(n_slots / job->n_items);
    for (int64_t s = first; s < end; s += wave) {
        job->span0 = s;
        job->n_spans = end - s < wave ? end - s : wave;
        team_run(c->team, run_spans, job, job->n_items * (size_t)job->n_spans, 1);
        merge_wave(job);
    }
    for (size_t i = 0; i < job->n_items; i++) {
        struct item it = item_of(job, i);
        finish(job, &it, (void *)(job->totals + i * job->partial_bytes));
    }
}

int cpu_attention(struct backend *b, const struct op_attention *op, struct err *err)
{
    struct cpu_backend *c = cpu_of(b);
    const struct kv_layer *l = &op->layout->layer[op->layer];
    uint32_t group = op->n_heads / l->n_kv_heads;
    struct job job = { .op = op,
                       .layer = l,
                       .kernels = kernels_of(c),
                       .products = matmul_kernels_of((int)c->isa),
                       .k_pad = (uint32_t)align_up(l->k_dim, 32),
                       .v_pad = (uint32_t)align_up(l->v_dim, 32) };
    if (op->n_rows == 0) {
        return 0;
    }
    job.n_heads_item = group < ATTENTION_COLS ? group : ATTENTION_COLS;
    job.n_chunks = (group + job.n_heads_item - 1) / job.n_heads_item;
    job.member_bytes = member_bytes(job.k_pad, job.v_pad);
    job.partial_bytes = partial_bytes(job.v_pad);
    uint8_t *at = c->scratch;
    size_t n_slots = (size_t)c->n_threads * SLOTS_PER_MEMBER;
    job.blocks = (void *)cut(&at, op->n_rows * sizeof *job.blocks);
    job.members = cut(&at, c->n_threads * job.member_bytes);
    job.slots = cut(&at, n_slots * job.partial_bytes);
    job.totals = cut(&at, 2 * (size_t)c->n_threads * job.partial_bytes);
    if ((size_t)(at - c->scratch) > c->scratch_bytes) {
        return err_set(err, ERR_NO_FIT, "attention: %zu bytes of scratch, %zu reserved",
                       (size_t)(at - c->scratch), c->scratch_bytes);
    }
    job.n_blocks = cut_blocks(op, ATTENTION_COLS / job.n_heads_item, job.blocks);
    job.n_items = (size_t)job.n_blocks * job.n_chunks * l->n_kv_heads;
    if (c->n_threads > 1 && job.n_items < 2 * (size_t)c->n_threads) {
        run_waves(c, &job, n_slots);
    } else {
        team_run(c->team, run_items, &job, job.n_items, 1);
    }
    return 0;
}
