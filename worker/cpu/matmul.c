/* Matrix products of the default path: x quantised to int8 panels, weights unpacked tile by tile into the nearest cache,
 * lanes are output rows. matmul_kernels.h has the formats, matmul_lanes.inc the arithmetic, KERNELS.md the reasons.
 *
 * Work is cut into runs of up to RUN_GROUPS row groups of one matrix, with all columns. Per 256 values of k the
 * run's groups are unpacked (24 KiB) and meet every panel; the sums of the run stay in acc between. So one column
 * reads RUN_GROUPS streams of weights side by side, and many columns read each panel once per RUN_GROUPS groups. What a
 * run computes for one output depends on that row of weights and that row of x alone: neither cutting shows. */
#include <assert.h>
#include <pthread.h>
#include <string.h>

#include "proto/bytes.h"
#include "proto/rows16.h"
#include "worker/cpu/cpu.h"
#include "worker/cpu/matmul_kernels.h"
#include "worker/cpu/team.h"
#include "worker/quant.h"
#include "worker/quant_grids.h"

#define RUN_GROUPS  4   /* row groups of a run */
#define CHUNK       256 /* values of k unpacked at a time: whole blocks of every type */
#define CHUNK_TILES (CHUNK / 32)
#define BLOCK_COLS  256 /* columns whose sums a run holds at a time */

/* What one member of the team needs for itself. */
struct lane_scratch {
    _Alignas(64) struct matmul_tile tiles[RUN_GROUPS][CHUNK_TILES];
    _Alignas(64) float acc[RUN_GROUPS][BLOCK_COLS][MATMUL_ROWS];
    _Alignas(64) uint8_t
        packed[RUN_GROUPS][CHUNK * MATMUL_ROWS * 4]; /* float weights; also one column of blocks */
};

struct panel {
    uint32_t col0, n_cols; /* columns col0 .. of the op, by `order` */
};

/* Columns that meet the same matrices: all of them, or those of one expert. */
struct segment {
    uint32_t expert;
    uint32_t panel0, n_panels;
};

struct product {
    const struct matrix *w;
    const float *bias;
    float *y;
    uint32_t y_stride;
    bool floats, fours;
    unsigned flags, slot;
    uint32_t n_groups, run_groups, n_runs; /* per segment */
    size_t item0;                          /* first item of the job */
};

struct job {
    const struct matmul_kernels *kernels;
    uint32_t k, n_products, n_segments, n_panels;
    struct product products[OP_PRODUCTS_MAX];
    struct matmul_slot slots[MATMUL_SLOTS_MAX];
    unsigned n_slots;
    bool any_floats, any_fours;
    const float *x;
    uint32_t x_stride, x_share;
    const uint32_t *order;     /* column -> row of the op */
    const float *expert_scale; /* or NULL */
    struct panel *panels;
    struct segment *segments;
    uint8_t *int_panels;
    float *float_panels;
    struct lane_scratch *lanes; /* [members] */
};

/* ---- tables ---- */

uint32_t matmul_iq3xxs[256], matmul_iq3s[512], matmul_ue4m3[128];
uint32_t matmul_iq2xxs[512], matmul_iq2xs[1024], matmul_iq2s[2048], matmul_iq1s[4096];
struct matmul_grids matmul_grids;

/* n octets of two-bit levels; values: what the levels mean. */
static void expand_octets(const uint16_t *grid, unsigned n, const uint8_t values[3], uint32_t *out)
{
    for (unsigned i = 0; i < n; i++) {
        for (unsigned j = 0; j < 8; j++) {
            out[2 * i + j / 4] |= (uint32_t)values[(grid[i] >> (2 * j)) & 3] << (8 * (j % 4));
        }
    }
}

/* n octets of two-bit levels as nibbles: values 0..3 of all, then values 4..7. */
static void split_octets(const uint16_t *grid, unsigned n, uint8_t *low, uint8_t *high)
{
    for (unsigned i = 0; i < 2 * n; i++) {
        unsigned four = grid[i % n] >> (8 * (i / n));
        low[i] = (uint8_t)((four & 3) | (four >> 2 & 3) << 4);
        high[i] = (uint8_t)((four >> 4 & 3) | (four >> 6 & 3) << 4);
    }
}

static void fill_grids(void)
{
    struct matmul_grids *g = &matmul_grids;
    split_octets(quant_grid_iq2xxs, 256, g->iq2xxs[0], g->iq2xxs[1]);
    split_octets(quant_grid_iq2xs, 512, g->iq2xs[0], g->iq2xs[1]);
    split_octets(quant_grid_iq2s, 1024, g->iq2s[0], g->iq2s[1]);
    for (unsigned i = 0; i < 512; i++) {
        unsigned s = quant_grid_iq3s[i], xxs = quant_grid_iq3xxs[i % 256];
        for (unsigned h = 0; h < 2; h++) {
            g->iq3s[h][i] = (uint8_t)((s >> (6 * h) & 7) | (s >> (6 * h + 3) & 7) << 4);
            g->iq3xxs[h][i % 256] = (uint8_t)((xxs >> (6 * h) & 7) | (xxs >> (6 * h + 3) & 7) << 4);
        }
    }
    for (unsigned i = 0; i < 64; i++) {
        unsigned level = i & 7, iq2 = (unsigned)quant_level_iq2(level);
        unsigned iq3xxs = (unsigned)quant_level_iq3xxs(level), iq3s = 2 * level + 1;
        bool minus = i & 8;
        g->signs[0][i] = (uint8_t)((i & 1) << 3 | (i >> 1 & 1) << 7);
        g->signs[1][i] = (uint8_t)((i >> 2 & 1) << 3 | (i >> 3 & 1) << 7);
        g->code_iq2[i] = (uint8_t)(minus ? 64 - iq2 : 64 + iq2);
        g->code_iq3xxs[i] = (uint8_t)(minus ? 64 - iq3xxs : 64 + iq3xxs);
        g->code_iq3s[i] = (uint8_t)(minus ? 64 - iq3s : 64 + iq3s);
    }
    for (unsigned i = 0; i < 128; i++) {
        g->sign_code[0][i] = (uint8_t)(quant_signs(i) & 15);
        g->sign_code[1][i] = (uint8_t)(quant_signs(i) >> 4);
    }
}

static void fill_tables(void)
{
    static const uint8_t iq2[3] = { 8, 25, 43 }, iq1[3] = { 56, 64, 72 };
    expand_octets(quant_grid_iq2xxs, 256, iq2, matmul_iq2xxs);
    expand_octets(quant_grid_iq2xs, 512, iq2, matmul_iq2xs);
    expand_octets(quant_grid_iq2s, 1024, iq2, matmul_iq2s);
    expand_octets(quant_grid_iq1s, 2048, iq1, matmul_iq1s);
    for (unsigned i = 0; i < 512; i++) {
        uint32_t s = 0, xxs = 0;
        for (unsigned j = 0; j < 4; j++) {
            s |= (2 * ((quant_grid_iq3s[i] >> (3 * j)) & 7u) + 1) << (8 * j);
            xxs |= (uint32_t)quant_level_iq3xxs((quant_grid_iq3xxs[i % 256] >> (3 * j)) & 7)
                   << (8 * j);
        }
        matmul_iq3s[i] = s;
        matmul_iq3xxs[i % 256] = xxs;
    }
    for (unsigned i = 0; i < 128; i++) {
        float scale = quant_ue4m3(i);
        memcpy(&matmul_ue4m3[i], &scale, sizeof scale);
    }
    fill_grids();
}

void matmul_tables_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_tables);
}

const struct matmul_kernels *matmul_kernels_of(int isa)
{
#if defined(__x86_64__)
    static const struct matmul_kernels *const table[] = {
        [CPU_ISA_PORTABLE] = &matmul_portable,
        [CPU_ISA_AVX2] = &matmul_avx2,
        [CPU_ISA_AVX512] = &matmul_avx512,
    };
    return table[isa];
#else
    (void)isa;
    return &matmul_portable;
#endif
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
                         uint32_t g, uint32_t k0, uint32_t n, uint8_t *packed,
                         struct matmul_tile *tiles)
{
    const struct matrix *w = p->w;
    const struct dtype_info *d = dtype_get(w->dtype);
    uint32_t left = w->m - g * MATMUL_ROWS, n_rows = left < MATMUL_ROWS ? left : MATMUL_ROWS;
    const uint8_t *group = base + (uint64_t)g * MATMUL_ROWS * w->row_bytes;
    bool laid = w->layout == WEIGHTS_LAYOUT_ROWS16 && n_rows == MATMUL_ROWS;
    for (uint32_t b = k0 / d->block_values; b < (k0 + n) / d->block_values; b++) {
        const uint8_t *column = group + (uint64_t)b * MATMUL_ROWS * d->block_bytes;
        if (laid) {
            prefetch_next(p, column, (uint64_t)n / d->block_values * MATMUL_ROWS * d->block_bytes,
                          MATMUL_ROWS * d->block_bytes, k0 + n == w->k);
        } else {
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

/* The sums of group g to y, with bias and scale. */
static void write_group(const struct job *job, const struct product *p, uint32_t expert, uint32_t g,
                        uint32_t col0, uint32_t n_cols, float (*acc)[MATMUL_ROWS])
{
    const struct matrix *w = p->w;
    uint32_t row0 = g * MATMUL_ROWS, left = w->m - row0,
             n = left < MATMUL_ROWS ? left : MATMUL_ROWS;
    const float *bias = p->bias ? p->bias + (size_t)expert * w->m + row0 : NULL;
    for (uint32_t c = 0; c < n_cols; c++) {
        float *y = p->y + (size_t)job->order[col0 + c] * p->y_stride + row0;
        for (uint32_t r = 0; r < n; r++) {
            float v = acc[c][r];
            v = bias ? v + bias[r] : v;
            y[r] = job->expert_scale ? v * job->expert_scale[expert] : v;
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

/* Groups g0 .. g0 + n_groups - 1 for panels panel0 .. panel1 - 1, at most BLOCK_COLS columns. */
static void run_block(const struct job *job, const struct product *p, uint32_t expert, uint32_t g0,
                      uint32_t n_groups, uint32_t panel0, uint32_t panel1, struct lane_scratch *s)
{
    const uint8_t *base = matrix_expert(p->w, expert);
    uint32_t block_col0 = job->panels[panel0].col0;
    const struct panel *last = &job->panels[panel1 - 1];
    uint32_t n_cols = last->col0 + last->n_cols - block_col0;
    size_t col_bytes = MATMUL_BLOCK_BYTES(job->n_slots, job->any_fours); /* of a block of 32 */
    size_t x_off = p->fours ? MATMUL_FOURS_OFF(job->n_slots) : 0,
           corr_off = 48 + 8 * (size_t)p->slot;
    matmul_stream *stream = stream_of(job, p, g0, n_groups, n_cols);
    for (uint32_t g = 0; g < n_groups; g++) {
        memset(s->acc[g], 0, n_cols * sizeof s->acc[g][0]);
    }
    if (stream) {
        const uint8_t *x = job->int_panels + (size_t)block_col0 * (job->k / 32) * col_bytes;
        for (uint32_t g = 0; g < n_groups; g++) {
            stream(base + (uint64_t)(g0 + g) * MATMUL_ROWS * p->w->row_bytes, job->k / 32, x,
                   col_bytes * n_cols, x_off * n_cols, corr_off * n_cols, s->acc[g][0]);
        }
        goto write;
    }
    for (uint32_t k0 = 0; k0 < job->k; k0 += CHUNK) {
        uint32_t n = job->k - k0 < CHUNK ? job->k - k0 : CHUNK;
        const uint8_t *floats[RUN_GROUPS];
        for (uint32_t g = 0; g < n_groups; g++) {
            if (p->floats) {
                floats[g] = float_group(p, base, g0 + g, k0, n, s->packed[g]);
            } else {
                unpack_group(job, p, base, g0 + g, k0, n, s->packed[g], s->tiles[g]);
            }
        }
        for (const struct panel *panel = &job->panels[panel0]; panel <= last; panel++) {
            uint32_t at = panel->col0 - block_col0;
            size_t stride = col_bytes * panel->n_cols;
            for (uint32_t g = 0; g < n_groups; g++) {
                float *acc = s->acc[g][at];
                if (p->floats) {
                    const float *x = job->float_panels + (size_t)panel->col0 * job->k +
                                     (size_t)k0 * panel->n_cols;
                    job->kernels->dot_float(p->w->dtype, floats[g], n, x, panel->n_cols, acc);
                } else {
                    const uint8_t *x = job->int_panels +
                                       (size_t)panel->col0 * (job->k / 32) * col_bytes +
                                       (k0 / 32) * stride;
                    job->kernels->dot(s->tiles[g], n / 32, x, stride, x_off * panel->n_cols,
                                      corr_off * panel->n_cols, p->flags, panel->n_cols, acc);
                }
            }
        }
    }
write:
    for (uint32_t g = 0; g < n_groups; g++) {
        write_group(job, p, expert, g0 + g, block_col0, n_cols, s->acc[g]);
    }
}

static void run_items(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct job *job = arg;
    struct lane_scratch *s = &job->lanes[member];
    uint32_t block_panels = BLOCK_COLS / MATMUL_COLS_MAX;
    for (size_t item = begin; item < end; item++) {
        const struct product *p = job->products;
        while (p + 1 < job->products + job->n_products && item >= p[1].item0) {
            p++;
        }
        size_t i = item - p->item0;
        const struct segment *seg = &job->segments[i / p->n_runs];
        uint32_t g0 = (uint32_t)(i % p->n_runs) * p->run_groups;
        uint32_t left = p->n_groups - g0, n = left < p->run_groups ? left : p->run_groups;
        for (uint32_t at = 0; at < seg->n_panels; at += block_panels) {
            uint32_t to = at + block_panels < seg->n_panels ? at + block_panels : seg->n_panels;
            run_block(job, p, seg->expert, g0, n, seg->panel0 + at, seg->panel0 + to, s);
        }
    }
}

/* ---- activations ---- */

static void fill_panels(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct job *job = arg;
    (void)member;
    for (size_t i = begin; i < end; i++) {
        const struct panel *panel = &job->panels[i];
        for (uint32_t c = 0; c < panel->n_cols; c++) {
            const float *x = job->x +
                             (size_t)(job->order[panel->col0 + c] / job->x_share) * job->x_stride;
            if (job->n_slots) {
                uint8_t *to = job->int_panels +
                              (size_t)panel->col0 * (job->k / 32) *
                                  MATMUL_BLOCK_BYTES(job->n_slots, job->any_fours);
                job->kernels->quantise(x, job->k, job->slots, job->n_slots, job->any_fours,
                                       panel->n_cols, c, to);
            }
            if (job->any_floats) {
                float *to = job->float_panels + (size_t)panel->col0 * job->k + c;
                for (uint32_t j = 0; j < job->k; j++) {
                    to[(size_t)j * panel->n_cols] = x[j];
                }
            }
        }
    }
}

/* Panels of nearly equal width over n_cols columns from col0 on. */
static void cut_panels(struct job *job, struct segment *seg, uint32_t col0, uint32_t n_cols)
{
    uint32_t width = job->kernels->panel_cols, n = (n_cols + width - 1) / width;
    seg->panel0 = job->n_panels;
    seg->n_panels = n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t w = n_cols / n + (i < n_cols % n ? 1 : 0);
        job->panels[job->n_panels++] = (struct panel){ col0, w };
        col0 += w;
    }
}

/* ---- an op ---- */

static int check_weights(const struct matrix *w, struct err *err)
{
    bool floats = w->dtype == DTYPE_F32 || w->dtype == DTYPE_F16 || w->dtype == DTYPE_BF16;
    bool helper = w->dtype == DTYPE_Q8_1 || w->dtype == DTYPE_Q8_K;
    if (!floats && (helper || quant_info(w->dtype)->sub == 0)) {
        return err_set(err, ERR_UNSUPPORTED, "tensor %s: %s cannot be multiplied", w->name,
                       dtype_get(w->dtype)->name);
    }
    return 0;
}

int cpu_matmul_check(struct backend *b, const struct matrix *w, struct err *err)
{
    (void)b;
    return check_weights(w, err);
}

static void add_product(struct job *job, const struct matrix *w, const float *bias, float *y,
                        uint32_t y_stride, uint32_t n_cols, unsigned n_threads)
{
    struct product *p = &job->products[job->n_products];
    *p = (struct product){ .w = w, .bias = bias, .y = y, .y_stride = y_stride };
    const struct quant_info *q = quant_info(w->dtype);
    p->floats = q->sub == 0;
    job->any_floats |= p->floats;
    p->fours = job->kernels->fours[w->dtype];
    job->any_fours |= p->fours;
    if (!p->floats) {
        struct matmul_slot slot = { q->bias, q->sub == 16 };
        while (p->slot < job->n_slots &&
               (job->slots[p->slot].bias != slot.bias || job->slots[p->slot].sub16 != slot.sub16)) {
            p->slot++;
        }
        if (p->slot == job->n_slots) {
            job->slots[job->n_slots++] = slot;
        }
        p->flags = (q->sub == 16 ? MATMUL_SUB16 : 0) | (q->has_min ? MATMUL_MIN : 0) |
                   (q->codes_u7 ? 0 : MATMUL_WIDE);
    }
    p->n_groups = (w->m + MATMUL_ROWS - 1) / MATMUL_ROWS;
    /* Many columns: a panel is read once for all groups of a run. Few: one stream of weights at a time lets the
     * processor's prefetch keep up. But everybody should get several runs. */
    bool wide = n_cols > MATMUL_COLS_MAX;
    uint32_t share = p->n_groups * job->n_segments / (4 * n_threads);
    p->run_groups = !wide || share < 1 ? 1 : share < RUN_GROUPS ? share : RUN_GROUPS;
    p->n_runs = (p->n_groups + p->run_groups - 1) / p->run_groups;
    job->n_products++;
}

/* Parts of the scratch memory, each 64-byte aligned. */
static void *carve(uint8_t **at, size_t size)
{
    void *p = *at;
    *at += align_up(size, 64);
    return p;
}

static size_t panels_bytes(size_t rows, size_t k, bool floats, unsigned n_slots, bool fours)
{
    return rows * (k / 32) * MATMUL_BLOCK_BYTES(n_slots, fours) +
           (floats ? rows * k * sizeof(float) : 0);
}

static size_t lists_bytes(size_t rows, size_t n_experts)
{
    return rows * (sizeof(uint32_t) + sizeof(struct panel)) +
           n_experts * (sizeof(struct segment) + sizeof(uint32_t)) + 8 * 64;
}

size_t cpu_matmul_scratch(const struct backend_limits *l, uint32_t n_threads)
{
    size_t plain = panels_bytes(l->max_rows, l->max_k, true, MATMUL_SLOTS_MAX, true);
    size_t wide = panels_bytes(l->max_rows_wide, l->max_k, true, 0, true);
    size_t rows = l->max_rows > l->max_rows_wide ? l->max_rows : l->max_rows_wide;
    return n_threads * sizeof(struct lane_scratch) + (plain > wide ? plain : wide) +
           lists_bytes(rows, l->max_experts + 1u);
}

static void run_job(struct cpu_backend *c, struct job *job, size_t n_cols)
{
    size_t n_items = 0;
    for (uint32_t i = 0; i < job->n_products; i++) {
        job->products[i].item0 = n_items;
        n_items += (size_t)job->products[i].n_runs * job->n_segments;
    }
    /* Waking the team costs about as much as quantising 16k values. */
    size_t grain = n_cols * job->k < 16384 ? job->n_panels : 1;
    team_run(c->team, fill_panels, job, job->n_panels, grain);
    /* Neighbouring runs on one thread: what is prefetched at a run's end is then used. */
    team_run(c->team, run_items, job, n_items, n_cols < 32 ? team_grain(c->team, n_items, 8) : 1);
}

static int check_scratch(const struct cpu_backend *c, const uint8_t *end, struct err *err)
{
    if ((size_t)(end - c->scratch) > c->scratch_bytes) {
        return err_set(err, ERR_NO_FIT, "matmul: %zu bytes of scratch, %zu reserved",
                       (size_t)(end - c->scratch), c->scratch_bytes);
    }
    return 0;
}

int cpu_matmul(struct backend *b, const struct op_matmul *op, struct err *err)
{
    struct cpu_backend *c = cpu_of(b);
    struct job job = { .kernels = matmul_kernels_of((int)c->isa),
                       .k = op->k,
                       .n_segments = 1,
                       .x = op->x,
                       .x_stride = op->x_stride,
                       .x_share = 1 };
    if (op->n_rows == 0) {
        return 0;
    }
    matmul_tables_init();
    for (uint32_t i = 0; i < op->n_products; i++) {
        const struct op_product *p = &op->products[i];
        assert(p->w->k == op->k);
        if (check_weights(p->w, err) < 0) {
            return -1;
        }
        add_product(&job, p->w, p->bias, p->y, p->y_stride, op->n_rows, c->n_threads);
    }
    uint8_t *at = c->scratch;
    job.lanes = carve(&at, c->n_threads * sizeof *job.lanes);
    uint32_t *order = carve(&at, op->n_rows * sizeof *order);
    job.panels = carve(&at, op->n_rows * sizeof *job.panels);
    job.segments = carve(&at, sizeof *job.segments);
    job.int_panels = carve(
        &at, panels_bytes(op->n_rows, job.n_slots ? op->k : 0, false, job.n_slots, job.any_fours));
    job.float_panels = carve(&at, job.any_floats ? (size_t)op->n_rows * op->k * sizeof(float) : 0);
    if (check_scratch(c, at, err) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        order[i] = i;
    }
    job.order = order;
    job.segments[0].expert = 0;
    cut_panels(&job, &job.segments[0], 0, op->n_rows);
    run_job(c, &job, op->n_rows);
    return 0;
}

int cpu_matmul_experts(struct backend *b, const struct op_matmul_experts *op, struct err *err)
{
    struct cpu_backend *c = cpu_of(b);
    const struct matrix *w = op->w;
    struct job job = { .kernels = matmul_kernels_of((int)c->isa),
                       .k = w->k,
                       .x = op->x,
                       .x_stride = op->x_stride,
                       .x_share = op->x_share,
                       .expert_scale = op->scale };
    if (op->n_rows == 0) {
        return 0;
    }
    matmul_tables_init();
    if (check_weights(w, err) < 0) {
        return -1;
    }
    uint8_t *at = c->scratch;
    job.lanes = carve(&at, c->n_threads * sizeof *job.lanes);
    uint32_t *order = carve(&at, op->n_rows * sizeof *order);
    uint32_t *count = carve(&at, w->n_experts * sizeof *count);
    job.panels = carve(&at, op->n_rows * sizeof *job.panels);
    job.segments = carve(&at, w->n_experts * sizeof *job.segments);
    if (check_scratch(c, at, err) < 0) {
        return -1;
    }
    /* Rows by expert, each expert's in their own order. */
    memset(count, 0, w->n_experts * sizeof *count);
    for (uint32_t i = 0; i < op->n_rows; i++) {
        uint32_t e = (uint32_t)op->experts[i];
        if (e >= w->n_experts) {
            return err_set(err, ERR_FAILED, "tensor %s: expert %d of %u", w->name, op->experts[i],
                           w->n_experts);
        }
        count[e]++;
    }
    for (uint32_t e = 0, col = 0; e < w->n_experts; e++) {
        uint32_t n = count[e];
        if (n > 0) {
            struct segment *seg = &job.segments[job.n_segments++];
            seg->expert = e;
            cut_panels(&job, seg, col, n);
        }
        count[e] = col; /* from here on: where the expert's next row goes */
        col += n;
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        order[count[op->experts[i]]++] = i;
    }
    job.order = order;
    add_product(&job, w, op->bias, op->y, op->y_stride, op->n_rows, c->n_threads);
    job.int_panels = carve(
        &at, panels_bytes(op->n_rows, job.n_slots ? w->k : 0, false, job.n_slots, job.any_fours));
    job.float_panels = carve(&at, job.any_floats ? (size_t)op->n_rows * w->k * sizeof(float) : 0);
    if (check_scratch(c, at, err) < 0) {
        return -1;
    }
    run_job(c, &job, op->n_rows);
    return 0;
}
