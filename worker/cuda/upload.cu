/* Tensors from the segment to the device: float types as they stand, quantised rows cut in their two planes (cuda.h). The
 * cut is made by the host, a few MiB at a time; a kernel behind a ring of pinned buffers is to take its place. */
#include <stdlib.h>

#include "worker/cuda/dequant.cuh"

extern "C" {
#include "proto/rows16.h"
#include "proto/weights.h"
#include "worker/quant_grids.h"
}

#define CHUNK_BYTES ((size_t)4 << 20)
#define ROW_ALIGN   16 /* of a row on the device: the widest load */

struct cuda_tensor {
    struct cuda_tensor *next;
    struct weights_tensor from; /* data in the mapping: read when it has arrived */
    uint8_t *device;            /* owned; by the first one of a stack of experts */
    uint64_t row_bytes, stride; /* there and here */
    bool there;
};

struct cut {
    enum dtype dtype;
    uint32_t begin, body, rest; /* of a block: the body's place, and what is left around it */
};

static const struct cut cuts[] = {
#define CUT(type, n_values, begin, n_body, n_rest, two, minimums)                                  \
    { DTYPE_##type, begin, n_body, n_rest },
    DEQUANT_TYPES(CUT)
#undef CUT
};

static const struct cut *cut_of(enum dtype dtype)
{
    for (const struct cut &c : cuts) {
        if (c.dtype == dtype) {
            return &c;
        }
    }
    return NULL;
}

/* ---- codebooks ---- */

static void expand_octets(const uint16_t *grid, uint32_t n, const uint8_t values[3], uint32_t *out)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < 8; j++) {
            out[2 * i + j / 4] |= (uint32_t)values[(grid[i] >> (2 * j)) & 3] << (8 * (j % 4));
        }
    }
}

int cuda_tables_create(struct cuda_backend *c, struct err *err)
{
    static const uint8_t iq2[3] = { 8, 25, 43 }, iq1[3] = { 0xf8, 0, 8 };
    struct dequant_tables *t = (struct dequant_tables *)calloc(1, sizeof *t);
    if (!t) {
        return err_set(err, ERR_NO_MEMORY, "cuda: codebooks");
    }
    expand_octets(quant_grid_iq2xxs, 256, iq2, t->iq2xxs);
    expand_octets(quant_grid_iq2xs, 512, iq2, t->iq2xs);
    expand_octets(quant_grid_iq2s, 1024, iq2, t->iq2s);
    expand_octets(quant_grid_iq1s, 2048, iq1, t->iq1s);
    for (uint32_t i = 0; i < 512; i++) {
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t xxs = (quant_grid_iq3xxs[i % 256] >> (3 * j)) & 7u;
            t->iq3s[i] |= (2 * ((quant_grid_iq3s[i] >> (3 * j)) & 7u) + 1) << (8 * j);
            if (i < 256) {
                t->iq3xxs[i] |= (uint32_t)quant_level_iq3xxs(xxs) << (8 * j);
            }
        }
    }
    c->tables = (struct dequant_tables *)cuda_alloc(&c->base, sizeof *t, err);
    int rc = c->tables ? c->base.ops->upload(&c->base, c->tables, t, sizeof *t, err) : -1;
    free(t);
    return rc;
}

/* ---- tensors ---- */

/* One row of blocks to its planes. */
static void cut_row(const struct cut *cut, const uint8_t *row, uint32_t n_blocks, uint8_t *out)
{
    uint8_t *rest = out + (size_t)n_blocks * cut->body;
    uint32_t after = cut->rest - cut->begin;
    for (uint32_t b = 0; b < n_blocks; b++) {
        memcpy(out, row + cut->begin, cut->body);
        memcpy(rest, row, cut->begin);
        memcpy(rest + cut->begin, row + cut->begin + cut->body, after);
        out += cut->body;
        rest += cut->rest;
        row += cut->body + cut->rest;
    }
}

/* Row i of a tensor in the file's layout; buffer takes one that has to be picked out of its group. */
static const uint8_t *file_row(const struct weights_tensor *t, uint64_t row_bytes, uint64_t i,
                               uint8_t *buffer)
{
    uint64_t m = t->ne[1], in = i % m, group = in / ROWS16_ROWS;
    const uint8_t *expert = t->data + i / m * m * row_bytes;
    if (t->layout != WEIGHTS_LAYOUT_ROWS16 || (group + 1) * ROWS16_ROWS > m) {
        return expert + in * row_bytes;
    }
    rows16_row(t->dtype, expert + group * ROWS16_ROWS * row_bytes, row_bytes,
               (unsigned)(in % ROWS16_ROWS), buffer);
    return buffer;
}

/* All rows, in chunks; stride: of a row on the device. */
static int upload_rows(struct cuda_backend *c, const struct cuda_tensor *own, const struct cut *cut,
                       struct err *err)
{
    const struct weights_tensor *t = &own->from;
    uint64_t row_bytes = own->row_bytes, stride = own->stride;
    uint64_t n_rows = t->ne[1] * t->ne[2], at_once = CHUNK_BYTES / stride;
    at_once = at_once < 1 ? 1 : at_once < n_rows ? at_once : n_rows;
    uint8_t *chunk = (uint8_t *)calloc(at_once, stride), *row = (uint8_t *)malloc(row_bytes);
    int rc = chunk && row ? 0 : err_set(err, ERR_NO_MEMORY, "a chunk of rows");
    for (uint64_t i = 0; rc == 0 && i < n_rows; i += at_once) {
        uint64_t n = n_rows - i < at_once ? n_rows - i : at_once;
        for (uint64_t r = 0; r < n; r++) {
            const uint8_t *from = file_row(t, row_bytes, i + r, row);
            if (cut) {
                cut_row(cut, from, (uint32_t)(row_bytes / (cut->body + cut->rest)),
                        chunk + r * stride);
            } else {
                memcpy(chunk + r * stride, from, row_bytes);
            }
        }
        rc = c->base.ops->upload(&c->base, own->device + i * stride, chunk, n * stride, err);
    }
    free(chunk);
    free(row);
    return rc;
}

static int upload_tensor(struct cuda_backend *c, const struct cuda_tensor *own, struct err *err)
{
    const struct cut *cut = cut_of(own->from.dtype);
    uint64_t n_rows = own->from.ne[1] * own->from.ne[2];
    if (own->row_bytes * n_rows == 0) {
        return 0;
    }
    if (cut || own->from.layout == WEIGHTS_LAYOUT_ROWS16) {
        return upload_rows(c, own, cut, err);
    }
    return c->base.ops->upload(&c->base, own->device, own->from.data, own->row_bytes * n_rows, err);
}

int cuda_import_experts(struct backend *b, const struct weights_tensor *const *tensors, uint32_t n,
                        const uint8_t **places, struct matrix *m, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    const struct weights_tensor *t = tensors[0];
    uint64_t row_bytes;
    (void)places; /* they come to lie side by side */
    if (t->ne[0] > UINT32_MAX || t->ne[1] > UINT32_MAX || t->ne[2] > UINT32_MAX || t->ne[3] != 1) {
        return err_set(err, ERR_UNSUPPORTED, "tensor %s: shape beyond 32 bits", t->name);
    }
    if (dtype_size(t->dtype, t->ne[0], &row_bytes, err) < 0) {
        return err_wrap(err, "tensor %s", t->name);
    }
    /* Vectors and tables of floats are read as one run of values. */
    uint64_t stride = cut_of(t->dtype) ? round_up(row_bytes, ROW_ALIGN) : row_bytes;
    uint64_t bytes = stride * t->ne[1] * t->ne[2];
    uint8_t *device = (uint8_t *)cuda_alloc(b, bytes * n, err);
    if (!device) {
        return err_wrap(err, "tensor %s", t->name);
    }
    for (uint32_t e = 0; e < n; e++) {
        struct cuda_tensor *own = (struct cuda_tensor *)calloc(1, sizeof *own);
        if (!own) {
            cuda_free(b, e == 0 ? device : NULL);
            return err_set(err, ERR_NO_MEMORY, "tensor %s", t->name);
        }
        own->from = *tensors[e];
        own->device = device + e * bytes;
        own->row_bytes = row_bytes;
        own->stride = stride;
        own->next = c->tensors;
        c->tensors = own;
    }
    struct matrix out = {};
    out.name = t->name;
    out.dtype = t->dtype;
    out.layout = WEIGHTS_LAYOUT_FILE;
    out.k = (uint32_t)t->ne[0];
    out.m = (uint32_t)t->ne[1];
    out.n_experts = (uint32_t)t->ne[2] * n;
    out.row_bytes = stride;
    out.expert_bytes = stride * t->ne[1];
    out.data = device;
    *m = out;
    return 0;
}

int cuda_import(struct backend *b, const struct weights_tensor *t, struct matrix *m,
                struct err *err)
{
    return cuda_import_experts(b, &t, 1, NULL, m, err);
}

int cuda_arrived(struct backend *b, uint64_t data_end, struct err *err)
{
    for (struct cuda_tensor *own = cuda_of(b)->tensors; own; own = own->next) {
        if (!own->there && own->from.data_end <= data_end) {
            if (upload_tensor(cuda_of(b), own, err) < 0) {
                return err_wrap(err, "tensor %s", own->from.name);
            }
            own->there = true;
        }
    }
    return 0;
}

void cuda_release(struct backend *b, const uint8_t *base, size_t size_bytes)
{
    for (struct cuda_tensor **at = &cuda_of(b)->tensors; *at;) {
        struct cuda_tensor *own = *at;
        if ((uintptr_t)own->from.data - (uintptr_t)base < size_bytes) {
            *at = own->next;
            cuda_free(b, own->device);
            free(own);
        } else {
            at = &own->next;
        }
    }
}
