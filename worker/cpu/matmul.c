/* Matrix products of the default path: x quantised to int8 panels, weights unpacked tile by tile into the nearest cache,
 * lanes are output rows. Here an op becomes a job for the team; matmul_run.c does it. matmul_kernels.h has the formats,
 * matmul_lanes.inc the arithmetic, KERNELS.md the reasons. */
#include <assert.h>
#include <string.h>

#include "proto/bytes.h"
#include "worker/cpu/matmul_job.h"
#include "worker/cpu/team.h"
#include "worker/quant.h"

/* Panels of nearly equal width over n_cols columns from col0 on. */
static void cut_panels(struct job *job, struct segment *seg, uint32_t col0, uint32_t n_cols)
{
    uint32_t width = job->kernels->panel_cols, n = (n_cols + width - 1) / width;
    seg->panel0 = job->n_panels;
    seg->n_panels = n;
    seg->col0 = col0;
    seg->n_cols = n_cols;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t w = n_cols / n + (i < n_cols % n ? 1 : 0);
        job->panels[job->n_panels++] = (struct panel){ col0, w, (uint32_t)(seg - job->segments) };
        col0 += w;
    }
}

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
    job->n_chunks = (job->k + CHUNK - 1) / CHUNK;
    size_t n_items = 0;
    for (uint32_t i = 0; i < job->n_products; i++) {
        job->products[i].item0 = n_items;
        n_items += (size_t)job->products[i].n_runs * job->n_segments;
    }
    /* Waking the team costs about as much as quantising 16k values. */
    size_t grain = n_cols * job->k < 16384 ? job->n_panels : 1;
    team_run(c->team, matmul_fill_panels, job, job->n_panels, grain);
    /* Neighbouring runs on one thread: what is prefetched at a run's end is then used. */
    team_run(c->team, matmul_run_items, job, n_items,
             n_cols < 32 ? team_grain(c->team, n_items, 8) : 1);
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
    job.lanes = cpu_carve(&at, c->n_threads * sizeof *job.lanes);
    uint32_t *order = cpu_carve(&at, op->n_rows * sizeof *order);
    job.panels = cpu_carve(&at, op->n_rows * sizeof *job.panels);
    job.segments = cpu_carve(&at, sizeof *job.segments);
    job.int_panels = cpu_carve(
        &at, panels_bytes(op->n_rows, job.n_slots ? op->k : 0, false, job.n_slots, job.any_fours));
    job.float_panels = cpu_carve(&at,
                                 job.any_floats ? (size_t)op->n_rows * op->k * sizeof(float) : 0);
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
    return op->act ? cpu_act(b, op->act, err) : 0;
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
    job.lanes = cpu_carve(&at, c->n_threads * sizeof *job.lanes);
    uint32_t *order = cpu_carve(&at, op->n_rows * sizeof *order);
    uint32_t *count = cpu_carve(&at, w->n_experts * sizeof *count);
    job.panels = cpu_carve(&at, op->n_rows * sizeof *job.panels);
    job.segments = cpu_carve(&at, w->n_experts * sizeof *job.segments);
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
    job.int_panels = cpu_carve(
        &at, panels_bytes(op->n_rows, job.n_slots ? w->k : 0, false, job.n_slots, job.any_fours));
    job.float_panels = cpu_carve(&at,
                                 job.any_floats ? (size_t)op->n_rows * w->k * sizeof(float) : 0);
    if (check_scratch(c, at, err) < 0) {
        return -1;
    }
    run_job(c, &job, op->n_rows);
    return 0;
}
