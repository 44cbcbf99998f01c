/* Keys and values into their pages, normed and turned on the way, and the queries of the same rows normed and turned in place: one
 * launch, a block for a row and head. Bound by that launch in decode; in prefill q, k and v are read once, q written once.
 * The steps are norm.cu's and rope.cu's (heads.cuh), the bits as well. */
#include "worker/cuda/heads.cuh"
#include "worker/cuda/pages.cuh"

#define SHARED_MAX (44u << 10) /* of the 48 KiB that every device gives unasked */

/* Heads that change before they are used: `dim` values of each, `pitch` apart. */
struct head_args {
    float *x;
    uint32_t x_stride, n_heads, pitch, dim;
    struct op_norm norm; /* of the first values; width 0: none */
    struct op_rope rope; /* n_pairs 0: none; row_scale in device memory */
    uint32_t rope_at;    /* from value number .. */
    bool changes;
};

struct store_args {
    const struct device_row *rows;
    uint8_t *page_base;
    uint64_t page_bytes;
    struct page_side k, v;
    const float *k_from, *v_from;
    uint32_t k_stride, v_stride;
    struct head_args q_heads, k_heads, v_heads;
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

/* One head as it is to be, in shared memory; a block together. */
static __device__ void change_head(const struct head_args *a, uint32_t row, uint32_t h,
                                   float *values, double *slots)
{
    const float *x = a->x + (uint64_t)row * a->x_stride + (uint64_t)h * a->pitch;
    for (uint32_t j = threadIdx.x; j < a->dim; j += NORM_THREADS) {
        values[j] = x[j];
    }
    __syncthreads();
    if (a->norm.width) {
        struct norm_moments m = norm_moments_of(&a->norm, values, slots);
        uint64_t w = a->norm.w_per_group ? (uint64_t)h * a->norm.width : 0;
        for (uint32_t j = threadIdx.x; j < a->norm.width; j += NORM_THREADS) {
            values[j] = norm_one(&a->norm, &m, w, j, values[j]);
        }
        __syncthreads();
    }
    for (uint32_t j = threadIdx.x; j < a->rope.n_pairs; j += NORM_THREADS) {
        turn_pair(&a->rope, row, j, values + a->rope_at);
    }
    __syncthreads();
    if (a->rope.row_scale) {
        for (uint32_t j = threadIdx.x; j < a->dim; j += NORM_THREADS) {
            values[j] *= a->rope.row_scale[row];
        }
        __syncthreads();
    }
}

static __global__ void __launch_bounds__(NORM_THREADS) store_kernel(struct store_args a)
{
    DYNAMIC_SHARED(float, values);
    __shared__ double slots[NORM_THREADS / WARP];
    uint32_t i = blockIdx.x, h = blockIdx.y;
    if (h < a.q_heads.n_heads) {
        const struct head_args *q = &a.q_heads;
        change_head(q, i, h, values, slots);
        for (uint32_t j = threadIdx.x; j < q->dim; j += NORM_THREADS) {
            q->x[(uint64_t)i * q->x_stride + (uint64_t)h * q->pitch + j] = values[j];
        }
        return;
    }
    h -= a.q_heads.n_heads;
    const struct device_row *row = &a.rows[i];
    uint32_t at = (uint32_t)(row->pos % KV_PAGE_TOKENS), lane = at % KV_TILE;
    uint8_t *page = a.page_base + row->pages[row->pos / KV_PAGE_TOKENS] * a.page_bytes;
    const float *k = a.k_from + (uint64_t)i * a.k_stride + (uint64_t)h * a.k.dim;
    const float *v = a.v_from + (uint64_t)i * a.v_stride + (uint64_t)h * a.v.dim;
    if (a.k_heads.changes) {
        change_head(&a.k_heads, i, h, values, slots);
        v = v == k ? values : v;
        k = values;
    }
    if (a.v_heads.changes) {
        change_head(&a.v_heads, i, h, values + a.k.dim, slots);
        v = values + a.k.dim;
    }
    store_side(&a.k, page + tile_at(&a.k, h, at), lane, k, true);
    store_side(&a.v, page + tile_at(&a.v, h, at), lane, v, false);
}

/* ---- launchers ---- */

/* One table for rows that share theirs. */
const struct device_row *pages_stage_rows(struct cuda_backend *c, const struct kv_row *rows,
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

/* A norm and a turn of all heads as the kernel does them. *norm and *rope are cleared when it will. A norm over all heads at once
 * stays for itself; where the turn does, the norm before it must. */
static void take(struct head_args *to, const struct op_norm **norm, const struct op_rope **rope)
{
    const struct op_norm *n = *norm;
    const struct op_rope *r = *rope;
    bool one = to->n_heads == 1;
    if (r) {
        int64_t at = r->x - to->x;
        if (at < 0 || at + 2 * (int64_t)r->n_pairs > to->dim || r->x_stride != to->x_stride ||
            r->n_heads != to->n_heads || (!one && r->head_dim != to->pitch) ||
            (r->row_scale && (at > 0 || r->head_dim != to->dim))) {
            return;
        }
        to->rope = *r;
        to->rope_at = (uint32_t)at;
        to->changes = true;
        *rope = NULL;
    }
    if (n && !n->sum && n->x == to->x && n->y == to->x && n->x_stride == to->x_stride &&
        n->y_stride == to->x_stride && n->n_groups == to->n_heads && n->width <= to->dim &&
        (one || n->width == to->pitch)) {
        to->norm = *n;
        to->changes = true;
        *norm = NULL;
    }
}

static struct head_args stored_heads(const float *x, uint32_t x_stride, uint32_t n_heads,
                                     uint32_t dim)
{
    struct head_args heads = {};
    heads.x = (float *)(uintptr_t)x; /* only read */
    heads.x_stride = x_stride;
    heads.n_heads = n_heads;
    heads.pitch = heads.dim = dim;
    return heads;
}

/* What the op says of queries; only the values that change are touched. */
static struct head_args query_heads(const struct op_norm *n, const struct op_rope *r)
{
    struct head_args q = {};
    if (r) {
        q.x = r->x;
        q.x_stride = r->x_stride;
        q.n_heads = r->n_heads;
        q.pitch = r->head_dim;
        q.dim = n || r->row_scale ? r->head_dim : 2 * r->n_pairs;
    } else if (n) {
        q.x = n->y;
        q.x_stride = n->y_stride;
        q.n_heads = n->n_groups;
        q.pitch = q.dim = n->width;
    }
    return q;
}

int cuda_kv_store(struct backend *b, const struct op_kv_store *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    const struct kv_layer *l = &op->layout->layer[op->layer];
    struct op_kv_store before = *op; /* what stays for itself */
    struct store_args a = {};
    cuda_forget(c);
    if (op->n_rows == 0) {
        return 0;
    }
    a.rows = pages_stage_rows(c, op->rows, op->n_rows, err);
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
    a.q_heads = query_heads(op->q_norm, op->q_rope);
    a.k_heads = stored_heads(op->k, op->k_stride, l->n_kv_heads, l->k_dim);
    a.v_heads = stored_heads(op->v, op->v_stride, l->n_kv_heads, l->v_dim);
    uint32_t dim = a.q_heads.dim > l->k_dim + l->v_dim ? a.q_heads.dim : l->k_dim + l->v_dim;
    if (dim * sizeof(float) <= SHARED_MAX) {
        const struct op_rope *none = NULL;
        take(&a.q_heads, &before.q_norm, &before.q_rope);
        take(&a.k_heads, &before.k_norm, &before.k_rope);
        take(&a.v_heads, &before.v_norm, &none);
    }
    if (backend_before_store(b, &before, err) < 0) {
        return -1;
    }
    a.q_heads.n_heads = a.q_heads.changes ? a.q_heads.n_heads : 0;
    if (a.q_heads.rope.row_scale) {
        a.q_heads.rope.row_scale = (const float *)cuda_stage(c, op->q_rope->row_scale,
                                                             op->n_rows * sizeof(float), err);
        if (!a.q_heads.rope.row_scale) {
            return -1;
        }
    }
    bool changes = a.q_heads.changes || a.k_heads.changes || a.v_heads.changes;
    LAUNCH(store_kernel, dim3(op->n_rows, a.q_heads.n_heads + l->n_kv_heads), NORM_THREADS,
           changes ? dim * (uint32_t)sizeof(float) : 0, c->stream, a);
    return cuda_launched("kv store", err);
}
