/* Tensors from the segment to the device: float types as they stand, quantised rows re-laid as tiles there (relay.cu),
 * through a ring of pinned buffers: while one travels the next is filled, by a few threads, as one alone copies slower than the
 * bus; and nothing waits but for a buffer. */
#include <stdlib.h>
#include <unistd.h>

#include "worker/cuda/upload.cuh"

extern "C" {
#include "proto/rows16.h"
#include "worker/cpu/team.h"
#include "worker/quant_grids.h"
}

#define THREADS_MAX 4 /* 40 GB/s of copying are 80 of memory, all that a desktop has */
#define PIECE_BYTES ((size_t)256 << 10) /* of a thread, at a time */

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
    struct tile_tables *t = (struct tile_tables *)calloc(1, sizeof *t);
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
    c->tables = (struct tile_tables *)cuda_alloc(&c->base, sizeof *t, err);
    int rc = c->tables ? c->base.ops->upload(&c->base, c->tables, t, sizeof *t, err) : -1;
    free(t);
    return rc;
}

/* ---- tensors ---- */

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

/* What the team does: rows from number `first` on, of one expert, in the file's layout, to the chunk. */
struct gather {
    const struct cuda_tensor *own;
    uint64_t first;
    uint8_t *rows; /* one for each member, for a row that is picked out of its group */
    uint8_t *chunk;
};

static void gather_rows(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct gather *g = (const struct gather *)arg;
    uint64_t bytes = g->own->row_bytes;
    for (size_t r = begin; r < end; r++) {
        memcpy(g->chunk + r * bytes,
               file_row(&g->own->from, bytes, g->first + r, g->rows + member * bytes), bytes);
    }
}

/* Or bytes as they stand, PIECE_BYTES an item. */
struct copy_job {
    uint8_t *to;
    const uint8_t *from;
    size_t size;
};

static void copy_pieces(void *arg, size_t begin, size_t end, unsigned)
{
    const struct copy_job *j = (const struct copy_job *)arg;
    size_t from = begin * PIECE_BYTES,
           to = end * PIECE_BYTES < j->size ? end * PIECE_BYTES : j->size;
    memcpy(j->to + from, j->from + from, to - from);
}

int cuda_uploads_create(struct cuda_backend *c, uint32_t n_threads, struct err *err)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t n = n_threads ? n_threads : cores > 0 ? (uint32_t)cores : 1;
    c->uploads = (struct cuda_uploads *)calloc(1, sizeof *c->uploads);
    if (!c->uploads) {
        return err_set(err, ERR_NO_MEMORY, "cuda: upload buffers");
    }
    c->uploads->team = team_create(n < THREADS_MAX ? n : THREADS_MAX, err);
    if (!c->uploads->team) {
        return -1;
    }
    for (struct buffer &b : c->uploads->buffers) {
        if (cuda_check(cudaHostAlloc((void **)&b.host, BUFFER_BYTES, cudaHostAllocDefault),
                       "pinned memory", err) < 0 ||
            cuda_check(cudaEventCreateWithFlags(&b.done, cudaEventDisableTiming), "an event", err) <
                0) {
            return -1;
        }
        b.device = (uint8_t *)cuda_alloc(&c->base, BUFFER_BYTES, err);
        if (!b.device) {
            return -1;
        }
    }
    return 0;
}

void cuda_uploads_destroy(struct cuda_backend *c)
{
    for (uint32_t i = 0; c->uploads && i < BUFFERS; i++) {
        struct buffer *b = &c->uploads->buffers[i];
        for (cudaEvent_t event : { b->done, b->fetched }) {
            if (event) {
                (void)cudaEventDestroy(event);
            }
        }
        if (b->host) {
            (void)cudaFreeHost(b->host);
        }
    }
    if (c->uploads) {
        team_destroy(&c->uploads->team);
    }
    free(c->uploads);
    c->uploads = NULL;
}

/* The next buffer, when the device is done with what it held. */
static struct buffer *take_buffer(struct cuda_backend *c, struct err *err)
{
    struct buffer *b = &c->uploads->buffers[c->uploads->turn++ % BUFFERS];
    return cuda_check(cudaEventSynchronize(b->done), "an upload", err) < 0 ? NULL : b;
}

/* The buffer's bytes on their way; to: where they go, or its own copy on the device. */
static int send_buffer(struct cuda_backend *c, const struct buffer *b, uint8_t *to, size_t size,
                       struct err *err)
{
    return cuda_step_flush(c, err) < 0
               ? -1
               : cuda_check(cudaMemcpyAsync(to, b->host, size, cudaMemcpyHostToDevice, c->stream),
                            "upload", err);
}

/* Bytes that stand here as they do there. spilled: to is the host's memory. */
static int upload_bytes(struct cuda_backend *c, uint8_t *to, const uint8_t *from, uint64_t size,
                        bool spilled, struct err *err)
{
    for (uint64_t at = 0; at < size; at += BUFFER_BYTES) {
        size_t n = size - at < BUFFER_BYTES ? (size_t)(size - at) : BUFFER_BYTES;
        struct buffer *b = take_buffer(c, err);
        if (!b) {
            return -1;
        }
        struct copy_job job = { spilled ? to + at : b->host, from + at, n };
        team_run(c->uploads->team, copy_pieces, &job, (n + PIECE_BYTES - 1) / PIECE_BYTES, 1);
        if (spilled) {
            continue;
        }
        if (send_buffer(c, b, to + at, n, err) < 0 ||
            cuda_check(cudaEventRecord(b->done, c->stream), "upload", err) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Rows that have come, to tiles at `to`; for the host's memory by way of the other buffer's place on the device, which nobody
 * needs while this one is worked on. */
static int relay_rows(struct cuda_backend *c, const struct cuda_tensor *own, const struct buffer *b,
                      uint64_t n, uint8_t *to, struct err *err)
{
    const struct buffer *other = &c->uploads->buffers[b == &c->uploads->buffers[0]];
    uint64_t size = round_up(n, GROUP_ROWS) / GROUP_ROWS * own->group_bytes;
    uint8_t *tiles = own->spilled_bytes ? other->device : to;
    static_assert(BUFFERS == 2, "this one and the other");
    if (cuda_relay(c, own->from.dtype, b->device, own->row_bytes, (uint32_t)n,
                   (uint32_t)own->from.ne[0], tiles, err) < 0) {
        return -1;
    }
    return tiles == to ? 0
                       : cuda_check(cudaMemcpyAsync(to, tiles, size, cudaMemcpyDeviceToHost,
                                                    c->stream),
                                    "spill", err);
}

/* All rows, whole groups at a time: import has seen that a group fits a buffer. */
static int upload_rows(struct cuda_backend *c, const struct cuda_tensor *own, struct err *err)
{
    const struct weights_tensor *t = &own->from;
    uint64_t row_bytes = own->row_bytes, m = t->ne[1];
    uint64_t at_once = BUFFER_BYTES / row_bytes / GROUP_ROWS * GROUP_ROWS;
    if (own->spilled_bytes && own->group_bytes) {
        uint64_t tiles = BUFFER_BYTES / own->group_bytes * GROUP_ROWS;
        at_once = tiles < at_once ? tiles : at_once;
    }
    struct team *team = c->uploads->team;
    uint8_t *rows = (uint8_t *)malloc(team_size(team) * row_bytes), *to = own->device;
    int rc = rows ? 0 : err_set(err, ERR_NO_MEMORY, "a row for each thread");
    for (uint64_t i = 0, n; rc == 0 && i < m * t->ne[2]; i += n) {
        struct buffer *b = take_buffer(c, err);
        if (!b) {
            rc = -1;
            break;
        }
        n = m - i % m < at_once ? m - i % m : at_once;
        bool stays = own->spilled_bytes && !own->group_bytes;
        struct gather job = { own, i, rows, stays ? to : b->host };
        team_run(team, gather_rows, &job, n, team_grain(team, n, 4));
        if (stays) {
            to += n * row_bytes;
        } else if (own->group_bytes) {
            rc = send_buffer(c, b, b->device, n * row_bytes, err);
            rc = rc == 0 ? relay_rows(c, own, b, n, to, err) : rc;
            to += round_up(n, GROUP_ROWS) / GROUP_ROWS * own->group_bytes;
        } else {
            rc = send_buffer(c, b, to, n * row_bytes, err);
            to += n * row_bytes;
        }
        rc = rc == 0 ? cuda_check(cudaEventRecord(b->done, c->stream), "upload", err) : rc;
    }
    free(rows);
    return rc;
}

static int upload_tensor(struct cuda_backend *c, const struct cuda_tensor *own, struct err *err)
{
    uint64_t n_rows = own->from.ne[1] * own->from.ne[2];
    if (own->row_bytes * n_rows == 0) {
        return 0;
    }
    if (own->group_bytes || own->from.layout == WEIGHTS_LAYOUT_ROWS16) {
        return upload_rows(c, own, err);
    }
    return upload_bytes(c, own->device, own->from.data, own->row_bytes * n_rows,
                        own->spilled_bytes > 0, err);
}

static void free_place(struct cuda_backend *c, uint8_t *place, uint64_t spilled_bytes)
{
    if (spilled_bytes) {
        cuda_spill_free(c, place, spilled_bytes);
    } else {
        cuda_free(&c->base, place);
    }
}

/* n tensors side by side; where: one of them to the host's memory, or NULL. */
static int import(struct backend *b, const struct weights_tensor *const *tensors, uint32_t n,
                  const struct backend_spilled *where, struct matrix *m, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    const struct weights_tensor *t = tensors[0];
    uint64_t row_bytes;
    if (t->ne[0] > UINT32_MAX || t->ne[1] > UINT32_MAX || t->ne[2] > UINT32_MAX || t->ne[3] != 1) {
        return err_set(err, ERR_UNSUPPORTED, "tensor %s: shape beyond 32 bits", t->name);
    }
    if (dtype_size(t->dtype, t->ne[0], &row_bytes, err) < 0) {
        return err_wrap(err, "tensor %s", t->name);
    }
    uint64_t group_bytes = cuda_group_bytes(t->dtype, t->ne[0]);
    if ((group_bytes || t->layout == WEIGHTS_LAYOUT_ROWS16) &&
        (row_bytes > BUFFER_BYTES / GROUP_ROWS || (where && group_bytes > BUFFER_BYTES))) {
        return err_set(err, ERR_UNSUPPORTED, "tensor %s: rows of %llu bytes, at most %zu", t->name,
                       (unsigned long long)row_bytes, BUFFER_BYTES / GROUP_ROWS);
    }
    uint64_t expert_bytes = group_bytes ? round_up(t->ne[1], GROUP_ROWS) / GROUP_ROWS * group_bytes
                                        : row_bytes * t->ne[1];
    uint64_t bytes = expert_bytes * t->ne[2];
    uint8_t *device = where ? cuda_spill_alloc(c, bytes, err)
                            : (uint8_t *)cuda_alloc(b, bytes * n, err);
    if (!device) {
        return err_wrap(err, "tensor %s", t->name);
    }
    for (uint32_t e = 0; e < n; e++) {
        struct cuda_tensor *own = (struct cuda_tensor *)calloc(1, sizeof *own);
        if (!own) {
            free_place(c, e == 0 ? device : NULL, where ? bytes : 0);
            return err_set(err, ERR_NO_MEMORY, "tensor %s", t->name);
        }
        own->from = *tensors[e];
        own->device = device + e * bytes;
        own->spilled_bytes = where ? bytes : 0;
        own->row_bytes = row_bytes;
        own->group_bytes = group_bytes;
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
    out.row_bytes = group_bytes ? group_bytes : row_bytes;
    out.expert_bytes = expert_bytes;
    out.data = device;
    if (where && where->slot_bytes) {
        out.streamed = cuda_spill_stream(c, where, device, bytes, &out.data, err);
        if (!out.streamed) {
            return err_wrap(err, "tensor %s", t->name); /* its place goes with the model */
        }
        c->tensors->streamed = (struct cuda_streamed *)out.streamed;
    }
    *m = out;
    return 0;
}

int cuda_import_experts(struct backend *b, const struct weights_tensor *const *tensors, uint32_t n,
                        const uint8_t **places, struct matrix *m, struct err *err)
{
    (void)places; /* they come to lie side by side */
    return import(b, tensors, n, NULL, m, err);
}

int cuda_import(struct backend *b, const struct weights_tensor *t, struct matrix *m,
                struct err *err)
{
    return import(b, &t, 1, NULL, m, err);
}

int cuda_import_spilled(struct backend *b, const struct weights_tensor *t,
                        const struct backend_spilled *where, struct matrix *m, struct err *err)
{
    return import(b, &t, 1, where, m, err);
}

int cuda_arrived(struct backend *b, const uint8_t *base, size_t size_bytes, uint64_t data_end,
                 struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct err also;
    for (struct cuda_tensor *own = c->tensors; own; own = own->next) {
        bool ours = (uintptr_t)own->from.data - (uintptr_t)base < size_bytes;
        if (ours && !own->there && own->from.data_end <= data_end) {
            int fetched = cuda_fetch(c, own, err);
            if (fetched < 0 ||
                (fetched == 0 && (cuda_fetch_end(c, err) < 0 || upload_tensor(c, own, err) < 0))) {
                (void)cuda_fetch_end(c, &also);
                return err_wrap(err, "tensor %s", own->from.name);
            }
            own->there = true;
            if (own->streamed) {
                cuda_spill_arrived(own->streamed);
            }
        }
    }
    return cuda_fetch_end(c, err);
}

void cuda_release(struct backend *b, const uint8_t *base, size_t size_bytes)
{
    cuda_spill_release(cuda_of(b), base, size_bytes);
    for (struct cuda_tensor **at = &cuda_of(b)->tensors; *at;) {
        struct cuda_tensor *own = *at;
        if ((uintptr_t)own->from.data - (uintptr_t)base < size_bytes) {
            *at = own->next;
            free_place(cuda_of(b), own->device, own->spilled_bytes);
            free(own);
        } else {
            at = &own->next;
        }
    }
}
