/* Keys and values into their pages: a block for a row and key head. Bound by a launch. */
#include "worker/cuda/pages.cuh"

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

int cuda_kv_store(struct backend *b, const struct op_kv_store *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    const struct kv_layer *l = &op->layout->layer[op->layer];
    struct store_args a = {};
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
    LAUNCH(store_kernel, dim3(op->n_rows, l->n_kv_heads), 64, 0, c->stream, a);
    return cuda_launched("kv store", err);
}
