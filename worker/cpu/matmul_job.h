/* A matrix product as work for the team: matmul.c makes a job of an op, matmul_run.c does its items. Nobody else's business.
 *
 * Work is cut into runs of up to RUN_GROUPS row groups of one matrix, with all columns of a segment. Per CHUNK values of k a run's
 * groups are unpacked, TILE_GROUPS at a time (12 KiB of tiles: with a panel they stay in the nearest cache), and meet every
 * panel; the sums of the run stay in acc between (256 KiB: the second cache). So the panels are read from afar once per
 * RUN_GROUPS groups. What a run computes for one output depends on that row of weights and that row of x alone: no
 * cutting shows. */
#pragma once

#include "worker/cpu/cpu.h"
#include "worker/cpu/matmul_kernels.h"

#define RUN_GROUPS   8   /* row groups of a run */
#define TILE_GROUPS  2   /* of which so many are unpacked at a time */
#define CHUNK        256 /* values of k unpacked at a time: whole blocks of every type */
#define CHUNK_TILES  (CHUNK / 32)
#define BLOCK_PANELS 44 /* panels whose sums a run holds at a time: 512 columns make 43 */
#define BLOCK_COLS   (BLOCK_PANELS * MATMUL_COLS_MAX)

/* What one member of the team needs for itself. */
struct lane_scratch {
    _Alignas(64) struct matmul_tile tiles[TILE_GROUPS][CHUNK_TILES];
    _Alignas(64) float acc[RUN_GROUPS][BLOCK_COLS][MATMUL_ROWS];
    _Alignas(64) uint8_t
        packed[TILE_GROUPS][CHUNK * MATMUL_ROWS * 4]; /* float weights; also one column of blocks */
};

struct panel {
    uint32_t col0, n_cols; /* columns col0 .. of the op, by `order` */
    uint32_t segment;
};

/* Columns that meet the same matrices: all of them, or those of one expert. */
struct segment {
    uint32_t expert;
    uint32_t panel0, n_panels;
    uint32_t col0, n_cols;
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
    uint32_t k, n_chunks, n_products, n_segments, n_panels;
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

/* team_job of a struct job: items are panels; fills them with the columns of x. */
void matmul_fill_panels(void *job, size_t begin, size_t end, unsigned member);

/* team_job of a struct job: items are the runs of all products, product after product. */
void matmul_run_items(void *job, size_t begin, size_t end, unsigned member);
