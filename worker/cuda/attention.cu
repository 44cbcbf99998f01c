/* Keys, values and attention. Pages are arranged as on the CPU (backend.h; q8_0 and q4_0 keys as proto/rows16.h), so that a
 * page means the same on both.
 *
 * A block takes one row, one key head and up to HEADS of its query heads, so that a page is read once for the group. It
 * goes through pages of 64 keys in order, each span of KV_SPAN positions from nothing, and spans are merged in order.
 * Decode (few rows): a block for each span, partial results through global memory and a second kernel; else one
 * block for all spans of its row. Both do the same steps in the same order: the same bits. Scores: a thread for a
 * key and half of its components; values: a thread for a component. Tensor cores are for later; this form is bound by
 * its multiply-adds in prefill and by reading pages in decode. */
#include "worker/cuda/reduce.cuh"
#include "worker/cuda/tiles.cuh"
#include "worker/cuda/vmath.cuh"

#define THREADS      128
#define HEADS        8 /* query heads of a block */
#define HALVES       (THREADS / KV_PAGE_TOKENS)
#define SPLIT_ROWS   16                 /* above: blocks enough without splitting */
#define PARTIALS_MAX ((size_t)16 << 20) /* floats of partial results: 64 MiB */
#define SHARED_MAX   (44u << 10)        /* of the 48 KiB that every device gives unasked */

static __device__ __forceinline__ float infinity_below(void)
{
    return -INFINITY;
}

/* ---- pages ---- */

struct page_side {
    enum dtype type;
    uint32_t dim, row_bytes;
    uint64_t off; /* of the area in a page */
};

static __device__ __forceinline__ uint64_t tile_at(const struct page_side *s, uint32_t head,
                                                   uint32_t at)
{
    return s->off +
           ((uint64_t)head * (KV_PAGE_TOKENS / KV_TILE) + at / KV_TILE) * KV_TILE * s->row_bytes;
}

/* Where in a tile of keys the 4-byte piece of component j of a key stands, quantised types. */
static __device__ __forceinline__ uint32_t key_piece(uint32_t j, uint32_t block_bytes,
                                                     uint32_t lane, uint32_t byte)
{
    return j / 32 * (KV_TILE * block_bytes) + 2 * KV_TILE + (byte / 4 * KV_TILE + lane) * 4 +
           byte % 4;
}

static __device__ __forceinline__ float plain(enum dtype type, const uint8_t *p, uint64_t i)
{
    if (type == DTYPE_F32) {
        return ((const float *)(const void *)p)[i];
    }
    uint32_t bits = ((const uint16_t *)(const void *)p)[i];
    return type == DTYPE_F16 ? ptx_f32_of_f16(bits) : float_of_bits(bits << 16);
}

static __device__ __forceinline__ float scale_of(const uint8_t *p)
{
    return ptx_f32_of_f16(*(const uint16_t *)(const void *)p);
}

/* Component j of key `lane` of a tile. */
static __device__ __forceinline__ float key_value(const struct page_side *s, const uint8_t *tile,
                                                  uint32_t lane, uint32_t j)
{
    if (s->type == DTYPE_Q8_0) {
        uint8_t code = tile[key_piece(j, 34, lane, j % 32)];
        return scale_of(tile + j / 32 * (KV_TILE * 34) + 2 * lane) * (float)(int8_t)(code ^ 0x80);
    }
    if (s->type == DTYPE_Q4_0) {
        uint8_t pair = tile[key_piece(j, 18, lane, j % 16)];
        int code = (pair >> (4 * (j % 32 / 16))) & 15;
        return scale_of(tile + j / 32 * (KV_TILE * 18) + 2 * lane) * (float)(code - 8);
    }
    return plain(s->type, tile, (uint64_t)j * KV_TILE + lane);
}

/* Component j of the value at position `lane` of a tile. */
static __device__ __forceinline__ float value_value(const struct page_side *s, const uint8_t *tile,
                                                    uint32_t lane, uint32_t j)
{
    const uint8_t *row = tile + (uint64_t)lane * s->row_bytes;
    if (s->type == DTYPE_Q8_0) {
        const uint8_t *b = row + j / 32 * 34;
        return scale_of(b) * (float)(int8_t)b[2 + j % 32];
    }
    if (s->type == DTYPE_Q4_0) {
        const uint8_t *b = row + j / 32 * 18;
        return scale_of(b) * (float)(((b[2 + j % 16] >> (4 * (j % 32 / 16))) & 15) - 8);
    }
    return plain(s->type, row, j);
}

/* ---- store ---- */

struct device_row {
    const uint32_t *pages;
    int64_t first_pos, pos, end_pos;
};

struct store_args {
    const struct device_row *rows;
    uint8_t *page_base;
    uint64_t page_bytes;
    struct page_side k, v;
    const float *k_from, *v_from;
    uint32_t k_stride, v_stride;
};

static __device__ __forceinline__ uint16_t bf16_of_f32(float value)
{
    uint32_t u;
    memcpy(&u, &value, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((u >> 16) | 0x40);
    }
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static __device__ __forceinline__ void put_plain(enum dtype type, uint8_t *p, uint64_t i, float v)
{
    if (type == DTYPE_F32) {
        ((float *)(void *)p)[i] = v;
    } else {
        ((uint16_t *)(void *)p)[i] = type == DTYPE_F16 ? ptx_f16_of_f32(v) : bf16_of_f32(v);
    }
}

/* The block of 32 values from x (n of them, the rest zeros) as quant.c encodes it: scale and codes. */
static __device__ uint16_t encode(enum dtype type, const float *x, uint32_t n, uint8_t codes[32])
{
    float top = 0.0f, most = 0.0f;
    for (uint32_t e = 0; e < n; e++) {
        top = fmaxf(top, fabsf(x[e]));
        most = fabsf(x[e]) > fabsf(most) ? x[e] : most;
    }
    if (type == DTYPE_Q8_0) {
        float d = top / 127.0f;
        float inverse = top < INFINITY && d != 0.0f ? 1.0f / d : 0.0f;
        for (uint32_t e = 0; e < 32; e++) {
            float v = e < n ? roundf(x[e] * inverse) : 0.0f;
            codes[e] = (uint8_t)(int8_t)(v >= -127.0f && v <= 127.0f ? v : 0.0f);
        }
        return ptx_f16_of_f32(d);
    }
    float d = most / -8.0f;
    float inverse = fabsf(most) < INFINITY && d != 0.0f ? 1.0f / d : 0.0f;
    for (uint32_t e = 0; e < 16; e++) {
        codes[e] = 0;
    }
    for (uint32_t e = 0; e < 32; e++) {
        float v = (e < n ? x[e] : 0.0f) * inverse + 8.5f;
        uint32_t code = v >= 0.0f && v < 16.0f ? (uint32_t)v : v >= 16.0f ? 15u : 0u;
        codes[e % 16] = (uint8_t)(codes[e % 16] | code << (4 * (e / 16)));
    }
    return ptx_f16_of_f32(d);
}

static __device__ void store_side(const struct page_side *s, uint8_t *tile, uint32_t lane,
                                  const float *x, bool keys)
{
    if (s->type != DTYPE_Q8_0 && s->type != DTYPE_Q4_0) {
        uint8_t *row = tile + (uint64_t)lane * s->row_bytes;
        for (uint32_t j = threadIdx.x; j < s->dim; j += blockDim.x) {
            if (keys) {
                put_plain(s->type, tile, (uint64_t)j * KV_TILE + lane, x[j]);
            } else {
                put_plain(s->type, row, j, x[j]);
            }
        }
        return;
    }
    uint32_t block_bytes = s->type == DTYPE_Q8_0 ? 34 : 18, n_codes = block_bytes - 2;
    for (uint32_t b = threadIdx.x; b < (s->dim + 31) / 32; b += blockDim.x) {
        uint8_t codes[32];
        uint32_t left = s->dim - 32 * b;
        uint16_t d = encode(s->type, x + 32 * b, left < 32 ? left : 32, codes);
        uint8_t *row = tile + (uint64_t)lane * s->row_bytes + b * block_bytes;
        uint8_t *scale = keys ? tile + b * (KV_TILE * block_bytes) + 2 * lane : row;
        *(uint16_t *)(void *)scale = d;
        for (uint32_t e = 0; e < n_codes; e++) {
            if (keys) {
                uint8_t flip = s->type == DTYPE_Q8_0 ? 0x80 : 0;
                tile[key_piece(32 * b, block_bytes, lane, e)] = codes[e] ^ flip;
            } else {
                row[2 + e] = codes[e];
            }
        }
    }
}

static __global__ void store_kernel(struct store_args a)
{
    const struct device_row *row = &a.rows[blockIdx.x];
    uint32_t h = blockIdx.y, at = (uint32_t)(row->pos % KV_PAGE_TOKENS), lane = at % KV_TILE;
    uint8_t *page = a.page_base + row->pages[row->pos / KV_PAGE_TOKENS] * a.page_bytes;
    store_side(&a.k, page + tile_at(&a.k, h, at), lane,
               a.k_from + (uint64_t)blockIdx.x * a.k_stride + (uint64_t)h * a.k.dim, true);
    store_side(&a.v, page + tile_at(&a.v, h, at), lane,
               a.v_from + (uint64_t)blockIdx.x * a.v_stride + (uint64_t)h * a.v.dim, false);
}

/* ---- attention ---- */

struct attention_args {
    const struct device_row *rows;
    const uint8_t *page_base;
    uint64_t page_bytes;
    struct page_side k, v;
    uint32_t n_heads, group, n_chunks; /* query heads; of one key head; blocks for those */
    const float *q, *sinks;
    uint32_t q_stride;
    float *o;
    uint32_t o_stride;
    float scale, softcap;
    uint32_t window;
    float *partials; /* [row][head][span of the row][2 + v_dim], or NULL: no splitting */
    uint32_t n_spans;
};

/* First position that a row reads. */
static __host__ __device__ __forceinline__ int64_t row_lo(int64_t first_pos, int64_t pos,
                                                          uint32_t window)
{
    int64_t lo = pos - (int64_t)window + 1;
    return window > 0 && lo > first_pos ? lo : first_pos;
}

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

/* How much of what was and of what comes is left under the common maximum. */
static __device__ __forceinline__ void weigh(float was, float comes, float *keep, float *take)
{
    float max = was > comes ? was : comes;
    *keep = was == infinity_below() ? 0.0f : vmath_exp(was - max);
    *take = comes == infinity_below() ? 0.0f : vmath_exp(comes - max);
}

/* The end of a head: the sink's share and the division. acc may be any component's. */
static __device__ __forceinline__ float finish(const struct attention_args *a, uint32_t head,
                                               float max, float sum, float acc)
{
    float scale = 1.0f;
    if (max == infinity_below()) {
        return 0.0f; /* nothing to see */
    }
    if (a->sinks) {
        float sink = a->sinks[head], top = max > sink ? max : sink;
        scale = vmath_exp(max - top);
        sum = sum * scale + vmath_exp(sink - top);
    }
    return acc * (scale / sum);
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

static struct page_side side_of(enum dtype type, uint32_t dim, uint32_t row_bytes, uint64_t off)
{
    struct page_side s = { type, dim, row_bytes, off };
    return s;
}

/* The rows and their page tables where kernels can read them. One table for rows that share theirs. */
static const struct device_row *stage_rows(struct cuda_backend *c, const struct kv_row *rows,
                                           uint32_t n_rows, struct err *err)
{
    struct device_row *out = (struct device_row *)calloc(n_rows, sizeof *out);
    const struct device_row *staged = NULL;
    if (!out) {
        err_set(err, ERR_NO_MEMORY, "cuda: %u rows", n_rows);
        return NULL;
    }
    for (uint32_t begin = 0, end; begin < n_rows; begin = end) {
        int64_t last = 0;
        for (end = begin; end < n_rows && rows[end].pages == rows[begin].pages; end++) {
            int64_t reach = rows[end].end_pos > rows[end].pos ? rows[end].end_pos - 1
                                                              : rows[end].pos;
            last = reach > last ? reach : last;
        }
        size_t n_pages = (size_t)(last / KV_PAGE_TOKENS) + 1;
        const uint32_t *pages = (const uint32_t *)cuda_stage(c, rows[begin].pages,
                                                             n_pages * sizeof *pages, err);
        if (!pages) {
            goto done;
        }
        for (uint32_t i = begin; i < end; i++) {
            struct device_row row = { pages, rows[i].first_pos, rows[i].pos, rows[i].end_pos };
            out[i] = row;
        }
    }
    staged = (const struct device_row *)cuda_stage(c, out, n_rows * sizeof *out, err);
done:
    free(out);
    return staged;
}

int cuda_kv_store(struct backend *b, const struct op_kv_store *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    const struct kv_layer *l = &op->layout->layer[op->layer];
    struct store_args a = {};
    if (op->n_rows == 0) {
        return 0;
    }
    a.rows = stage_rows(c, op->rows, op->n_rows, err);
    if (!a.rows) {
        return -1;
    }
    a.page_base = op->page_base;
    a.page_bytes = op->layout->page_bytes;
    a.k = side_of(op->layout->k_type, l->k_dim, l->k_row_bytes, l->k_off);
    a.v = side_of(op->layout->v_type, l->v_dim, l->v_row_bytes, l->v_off);
    a.k_from = op->k;
    a.v_from = op->v;
    a.k_stride = op->k_stride;
    a.v_stride = op->v_stride;
    LAUNCH(store_kernel, dim3(op->n_rows, l->n_kv_heads), 64, 0, c->stream, a);
    return cuda_launched("kv store", err);
}

int cuda_attention(struct backend *b, const struct op_attention *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    const struct kv_layer *l = &op->layout->layer[op->layer];
    struct attention_args a = {};
    cuda_forget(c);
    if (op->n_rows == 0) {
        return 0;
    }
    a.rows = stage_rows(c, op->rows, op->n_rows, err);
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
    uint32_t per = a.group < HEADS ? a.group : HEADS;
    while (per > 1 && shared_bytes(per, l->k_dim, l->v_dim) > SHARED_MAX) {
        per--;
    }
    uint32_t bytes = shared_bytes(per, l->k_dim, l->v_dim);
    if (bytes > SHARED_MAX) {
        return err_set(err, ERR_UNSUPPORTED, "cuda: attention over heads of %u and %u values",
                       l->k_dim, l->v_dim);
    }
    a.n_chunks = (a.group + per - 1) / per;
    for (uint32_t i = 0; i < op->n_rows; i++) {
        const struct kv_row *row = &op->rows[i];
        int64_t n = (row->end_pos + KV_SPAN - 1) / KV_SPAN -
                    row_lo(row->first_pos, row->pos, op->window) / KV_SPAN;
        a.n_spans = n > (int64_t)a.n_spans ? (uint32_t)n : a.n_spans;
    }
    size_t need = (size_t)op->n_rows * op->n_heads * a.n_spans * (2 + l->v_dim);
    bool split = a.n_spans > 1 && op->n_rows <= SPLIT_ROWS && need <= c->n_partials;
    a.partials = split ? c->partials : NULL;
    LAUNCH(attention_kernel, dim3(op->n_rows, l->n_kv_heads * a.n_chunks, split ? a.n_spans : 1),
           THREADS, bytes, c->stream, a);
    if (split) {
        LAUNCH(merge_kernel, dim3(op->n_rows, op->n_heads), THREADS, 0, c->stream, a);
    }
    return cuda_launched("attention", err);
}
