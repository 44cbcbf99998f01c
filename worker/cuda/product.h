/* What product_*.cu and matmul.cu share: one launch of products over the same columns. */
#pragma once

#include "worker/cuda/quantise.cuh"

#define PRODUCTS_MAX OP_PRODUCTS_MAX

/* Rows of y that share an expert: order[begin .. begin + n). */
struct product_chunk {
    uint32_t expert, begin, n;
};

struct product_one {
    struct device_matrix w;
    const float *bias; /* or NULL */
    float *y;
    uint32_t y_stride;
    uint32_t first; /* group of 16 rows of this launch */
};

struct product_args {
    struct product_one products[PRODUCTS_MAX]; /* of one type and k */
    uint32_t n_products, n_groups, n, x_share;
    const struct tile_tables *tables;
    const int8_t *codes; /* of x, and their scales and sums: quantise.cuh */
    const float *columns;
    uint64_t plane;
    const float *x;               /* the rows themselves, for float weights */
    uint32_t x_stride, x_aligned; /* to 16 bytes, every row */
    /* Experts: chunks of rows that share one; NULL without. All in the device's memory. */
    const struct product_chunk *chunks;
    const uint32_t *n_chunks, *order;
    const float *scales; /* by expert, or NULL */
    /* Gate and up as products 0 and 1, of whole tiles of rows: y = act(gate) * up alone is written, and left quantised.
     * Few columns: blocks of GATED_WARPS. */
    uint32_t gated;
    enum op_act_kind act;
    float *y;
    uint32_t y_stride;
    struct quantise_to to;
};

#define GATED_WARPS 4 /* two groups of 16 rows of each: a tile of what follows */

/* columns: 8, 16, 32 or 128, no chunk is wider; n_chunks: blocks for that many. */
typedef int product_launch(const struct product_args *a, uint32_t columns, uint32_t n_chunks,
                           CUDA_STREAM stream, struct err *err);

struct product_instance {
    enum dtype dtype;
    product_launch *launch;
};

/* One list for each product_*.cu, ended by a row without a launch. */
extern const struct product_instance product_small[], product_k[], product_iq[], product_float[];
