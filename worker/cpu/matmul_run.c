/* The runs of a matrix product: unpack a piece of the weights, multiply it with every panel, write the sums. matmul_job.h has
 * the order of it and why. Any thread of the team. */
#include <string.h>

#include "proto/rows16.h"
#include "worker/cpu/matmul_job.h"
#include "worker/quant.h"

/* Asks for memory that will be read soon. */
static void ask(const void *from, size_t size_bytes)
{
    for (size_t off = 0; off < size_bytes; off += 64) {
        __builtin_prefetch((const uint8_t *)from + off);
    }
}

/* ---- unpacking ---- */

/* A block column of a type without a kernel of its own. */
static void unpack_split(enum dtype dtype, const uint8_t *column, struct matmul_tile *tiles)
{
    const struct dtype_info *d = dtype_get(dtype);
    const struct quant_info *q = quant_info(dtype);
    struct quant_split split;
    for (unsigned r = 0; r < MATMUL_ROWS; r++) {
        quant_split(dtype, column + r * d->block_bytes, &split);
        for (unsigned e = 0; e < d->block_values; e++) {
            tiles[e / 32].codes[(e % 32) / 4][4 * r + e % 4] = (uint8_t)(split.codes[e] + q->bias);
        }
        for (unsigned s = 0; s < (unsigned)d->block_values / q->sub; s++) {
            struct matmul_tile *t = &tiles[s * q->sub / 32];
            unsigned h = q->sub == 16 ? s % 2 : 0;
            t->scale[h][r] = split.scale[s];
            t->nmin[h][r] = -split.min[s];
        }
    }
}

/* Asks for what follows `size_bytes` at `from` one chunk (chunk_bytes of this group) later: the processor's own
 * prefetch loses its way between the groups of a run. After the last chunk that is the next run; past the
 * end of the tensor it does no harm. */
static void prefetch_next(const struct product *p, const uint8_t *from, uint64_t chunk_bytes,
                          uint64_t size_bytes, bool last_chunk)
{
    uint64_t skip = (uint64_t)(p->run_groups - 1) * MATMUL_ROWS * p->w->row_bytes;
    const uint8_t *next = from + chunk_bytes + (last_chunk ? skip : 0);
    for (uint64_t off = 0; off < size_bytes; off += 64) {
        __builtin_prefetch(next + off);
    }
}

/* Values k0 .. k0 + n - 1 of group g as tiles. */
static void unpack_group(const struct job *job, const struct product *p, const uint8_t *base,
                         uint32_t g, uint32_t k0, uint32_t n, bool ask, uint8_t *packed,
                         struct matmul_tile *tiles)
{
    const struct matrix *w = p->w;
    const struct dtype_info *d = dtype_get(w->dtype);
    uint32_t left = w->m - g * MATMUL_ROWS, n_rows = left < MATMUL_ROWS ? left : MATMUL_ROWS;
    const uint8_t *group = base + (uint64_t)g * MATMUL_ROWS * w->row_bytes;
    bool laid = w->layout == WEIGHTS_LAYOUT_ROWS16 && n_rows == MATMUL_ROWS;
    for (uint32_t b = k0 / d->block_values; b < (k0 + n) / d->block_values; b++) {
        const uint8_t *column = group + (uint64_t)b * MATMUL_ROWS * d->block_bytes;
        if (laid && ask) {
            prefetch_next(p, column, (uint64_t)n / d->block_values * MATMUL_ROWS * d->block_bytes,
                          MATMUL_ROWS * d->block_bytes, k0 + n == w->k);
        } else if (!laid) {
            rows16_pack_column(w->dtype, group + (uint64_t)b * d->block_bytes, w->row_bytes, n_rows,
                               packed);
            column = packed;
        }
        if (job->kernels->unpack[w->dtype]) {
            job->kernels->unpack[w->dtype](column, tiles);
        } else {
            unpack_split(w->dtype, column, tiles);
        }
        tiles += d->block_values / 32;
    }
}

/* The same for float weights: where [n][16] of them stand. */
static const uint8_t *float_group(const struct product *p, const uint8_t *base, uint32_t g,
                                  uint32_t k0, uint32_t n, uint8_t *packed)
{
    const struct matrix *w = p->w;
    uint32_t size = dtype_get(w->dtype)->block_bytes;
    uint32_t left = w->m - g * MATMUL_ROWS, n_rows = left < MATMUL_ROWS ? left : MATMUL_ROWS;
    const uint8_t *group = base + (uint64_t)g * MATMUL_ROWS * w->row_bytes;
    if (w->layout == WEIGHTS_LAYOUT_ROWS16 && n_rows == MATMUL_ROWS) {
        const uint8_t *at = group + (uint64_t)k0 * MATMUL_ROWS * size;
        uint64_t chunk_bytes = (uint64_t)n * MATMUL_ROWS * size;
        prefetch_next(p, at, chunk_bytes, chunk_bytes, k0 + n == w->k);
        return at;
    }
    if (n_rows < MATMUL_ROWS) {
        memset(packed, 0, (size_t)n * MATMUL_ROWS * size);
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *from = group + r * w->row_bytes + (uint64_t)k0 * size;
        uint8_t *to = packed + r * size;
        if (size == 4) {
            for (uint32_t j = 0; j < n; j++) {
                memcpy(to + (size_t)j * MATMUL_ROWS * 4, from + (size_t)j * 4, 4);
            }
        } else {
            for (uint32_t j = 0; j < n; j++) {
                memcpy(to + (size_t)j * MATMUL_ROWS * 2, from + (size_t)j * 2, 2);
            }
        }
    }
    return packed;
}

/* ---- one run ---- */

/* Where the chunk of the panel from k0 on stands: chunk after chunk, in each the panels of a segment side by side, so that
 * a pass over them is one stream. With one panel its blocks follow each other through all of k. */
static uint8_t *int_panel(const struct job *job, const struct panel *panel, uint32_t k0)
{
    const struct segment *seg = &job->segments[panel->segment];
    uint32_t left = job->k - k0, n = left < CHUNK ? left : CHUNK;
    size_t blocks = (size_t)seg->col0 * (job->k / 32) + (size_t)seg->n_cols * (k0 / 32) +
                    (size_t)(panel->col0 - seg->col0) * (n / 32);
    return job->int_panels + blocks * MATMUL_BLOCK_BYTES(job->n_slots, job->any_fours);
}

/* Of a panel of n_cols columns, in bytes: a block of 32, and in it the codes and corrections that the product wants. */
struct offsets {
    size_t stride, x, corr;
};

static struct offsets offsets_of(const struct job *job, const struct product *p, uint32_t n_cols)
{
    return (struct offsets){ .stride = MATMUL_BLOCK_BYTES(job->n_slots, job->any_fours) * n_cols,
                             .x = p->fours ? MATMUL_FOURS_OFF(job->n_slots) * n_cols : 0,
                             .corr = (48 + 8 * (size_t)p->slot) * n_cols };
}

/* The sums of groups g0 .. and columns col0 .., `at` .. in acc, to y, with bias and scale. */
static void write_groups(const struct job *job, const struct product *p, uint32_t expert,
                         uint32_t g0, uint32_t n_groups, uint32_t col0, uint32_t n_cols,
                         float (*sums)[BLOCK_COLS][MATMUL_ROWS], uint32_t at)
{
    const struct matrix *w = p->w;
    const float *bias = p->bias ? p->bias + (size_t)expert * w->m : NULL;
    bool plain = !bias && !job->expert_scale && (g0 + n_groups) * MATMUL_ROWS <= w->m;
    for (uint32_t c = 0; c < n_cols; c++) {
        float *y = p->y + (size_t)job->order[col0 + c] * p->y_stride;
        for (uint32_t g = 0; g < n_groups; g++) {
            const float *acc = sums[g][at + c];
            uint32_t row0 = (g0 + g) * MATMUL_ROWS;
            if (plain) {
                memcpy(y + row0, acc, sizeof sums[g][c]);
                continue;
            }
            for (uint32_t r = row0; r < row0 + MATMUL_ROWS && r < w->m; r++) {
                float v = acc[r - row0];
                v = bias ? v + bias[r] : v;
                y[r] = job->expert_scale ? v * job->expert_scale[expert] : v;
            }
        }
    }
}

/* With many panels: before panel i of n, the i-th share of the groups' next chunk. In one burst, as for few columns, the requests
 * would fill every buffer between the core and its memory. */
static void ask_share(const struct product *p, const uint8_t *group, uint32_t n_groups, uint32_t k0,
                      uint32_t n, uint32_t i, uint32_t n_panels)
{
    const struct dtype_info *d = dtype_get(p->w->dtype);
    uint64_t chunk_bytes = (uint64_t)n / d->block_values * MATMUL_ROWS * d->block_bytes;
    uint64_t from = chunk_bytes * i / n_panels & ~(uint64_t)63,
             to = chunk_bytes * (i + 1) / n_panels;
    group += (uint64_t)k0 / d->block_values * MATMUL_ROWS * d->block_bytes;
    for (uint32_t g = 0; g < n_groups; g++, group += MATMUL_ROWS * p->w->row_bytes) {
        for (uint64_t off = from; off < to; off += 64) {
            __builtin_prefetch(group + off, 0, 2);
        }
    }
}

/* Few columns of a type with a stream for them, groups laid and whole: the stream, else NULL. */
static matmul_stream *stream_of(const struct job *job, const struct product *p, uint32_t g0,
                                uint32_t n_groups, uint32_t n_cols)
{
    bool whole = p->w->layout == WEIGHTS_LAYOUT_ROWS16 &&
                 (g0 + n_groups) * MATMUL_ROWS <= p->w->m && n_cols <= MATMUL_STREAM_COLS;
    return whole ? job->kernels->stream[p->w->dtype][n_cols] : NULL;
}

/* The chunk at k0 of up to TILE_GROUPS groups, whose sums begin at acc[at], for panels panel0 .. panel1 - 1. */
static void run_tiles(const struct job *job, const struct product *p, uint32_t expert, uint32_t g0,
                      uint32_t n_groups, uint32_t at, uint32_t panel0, uint32_t panel1, uint32_t k0,
                      struct lane_scratch *s)
{
    const uint8_t *base = matrix_expert(p->w, expert),
                  *group0 = base + (uint64_t)g0 * MATMUL_ROWS * p->w->row_bytes;
    uint32_t left = job->k - k0, n = left < CHUNK ? left : CHUNK,
             n_next = left - n < CHUNK ? left - n : CHUNK;
    bool wide = panel0 + 1 < panel1;
    const uint8_t *floats[TILE_GROUPS];
    for (uint32_t g = 0; g < n_groups; g++) {
        if (p->floats) {
            floats[g] = float_group(p, base, g0 + g, k0, n, s->packed[g]);
        } else {
            unpack_group(job, p, base, g0 + g, k0, n, !wide, s->packed[g], s->tiles[g]);
        }
    }
    for (uint32_t i = panel0; i < panel1; i++) {
        const struct panel *panel = &job->panels[i];
        uint32_t col = panel->col0 - job->panels[panel0].col0, n_cols = panel->n_cols;
        if (wide && n_next > 0) {
            ask_share(p, group0, n_groups, k0 + n, n_next, i - panel0, panel1 - panel0);
        }
        for (uint32_t g = 0; g < n_groups; g++) {
            float *acc = s->acc[at + g][col];
            if (p->floats) {
                const float *x = job->float_panels + (size_t)panel->col0 * job->k +
                                 (size_t)k0 * n_cols;
                job->kernels->dot_float(p->w->dtype, floats[g], n, x, n_cols, acc);
            } else {
                const struct offsets o = offsets_of(job, p, n_cols);
                job->kernels->dot(s->tiles[g], n / 32, int_panel(job, panel, k0), o.stride, o.x,
                                  o.corr, p->flags, n_cols, acc);
            }
        }
        if (n_next == 0) { /* while they are near; the stores drain under the next sums */
            write_groups(job, p, expert, g0, n_groups, panel->col0, n_cols, &s->acc[at], col);
        }
    }
}

/* Groups g0 .. g0 + n_groups - 1 for panels panel0 .. panel1 - 1, at most BLOCK_COLS columns. */
static void run_block(const struct job *job, const struct product *p, uint32_t expert, uint32_t g0,
                      uint32_t n_groups, uint32_t panel0, uint32_t panel1, struct lane_scratch *s)
{
    const struct panel *first = &job->panels[panel0], *last = &job->panels[panel1 - 1];
    uint32_t n_cols = last->col0 + last->n_cols - first->col0;
    matmul_stream *stream = stream_of(job, p, g0, n_groups, n_cols);
    for (uint32_t g = 0; g < n_groups; g++) {
        memset(s->acc[g], 0, n_cols * sizeof s->acc[g][0]);
    }
    if (stream) {
        const struct offsets o = offsets_of(job, p, n_cols);
        for (uint32_t g = g0; g < g0 + n_groups; g++) {
            stream(matrix_expert(p->w, expert) + (uint64_t)g * MATMUL_ROWS * p->w->row_bytes,
                   job->k / 32, int_panel(job, first, 0), o.stride, o.x, o.corr, s->acc[g - g0][0]);
        }
        write_groups(job, p, expert, g0, n_groups, first->col0, n_cols, s->acc, 0);
        return;
    }
    for (uint32_t k0 = 0; k0 < job->k; k0 += CHUNK) {
        for (uint32_t g = 0; g < n_groups; g += TILE_GROUPS) {
            uint32_t left = n_groups - g;
            run_tiles(job, p, expert, g0 + g, left < TILE_GROUPS ? left : TILE_GROUPS, g, panel0,
                      panel1, k0, s);
        }
    }
}

void matmul_run_items(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct job *job = arg;
    struct lane_scratch *s = &job->lanes[member];
    for (size_t item = begin; item < end; item++) {
        const struct product *p = job->products;
        while (p + 1 < job->products + job->n_products && item >= p[1].item0) {
            p++;
        }
        size_t i = item - p->item0;
        const struct segment *seg = &job->segments[i / p->n_runs];
        uint32_t g0 = (uint32_t)(i % p->n_runs) * p->run_groups;
        uint32_t left = p->n_groups - g0, n = left < p->run_groups ? left : p->run_groups;
        uint32_t n_blocks = (seg->n_panels + BLOCK_PANELS - 1) / BLOCK_PANELS;
        for (uint32_t b = 0; b < n_blocks; b++) {
            run_block(job, p, seg->expert, g0, n, seg->panel0 + seg->n_panels * b / n_blocks,
                      seg->panel0 + seg->n_panels * (b + 1) / n_blocks, s);
        }
    }
}

/* ---- activations ---- */

void matmul_fill_panels(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct job *job = arg;
    (void)member;
    for (size_t i = begin * job->n_chunks; i < end * job->n_chunks; i++) {
        const struct panel *panel = &job->panels[i / job->n_chunks];
        uint32_t k0 = (uint32_t)(i % job->n_chunks) * CHUNK, left = job->k - k0,
                 n = left < CHUNK ? left : CHUNK;
        uint8_t *ints = job->n_slots ? int_panel(job, panel, k0) : NULL;
        for (uint32_t c = 0; c < panel->n_cols; c++) {
            size_t row = job->order[panel->col0 + c] / job->x_share;
            const float *x = job->x + row * job->x_stride + k0;
            /* Rows lie too far apart for the processor's own prefetch. */
            if (c + 1 < panel->n_cols) {
                row = job->order[panel->col0 + c + 1] / job->x_share;
                ask(job->x + row * job->x_stride + k0, n * sizeof *x);
            }
            if (ints) {
                job->kernels->quantise(x, n, job->slots, job->n_slots, job->any_fours,
                                       panel->n_cols, c, ints);
            }
            if (job->any_floats) {
                float *to = job->float_panels + (size_t)panel->col0 * job->k + c;
                for (uint32_t j = 0; j < n; j++) {
                    to[(size_t)(k0 + j) * panel->n_cols] = x[j];
                }
            }
        }
    }
}
