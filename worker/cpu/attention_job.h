/* Attention as work for the team: attention.c makes a job of an op, attention_item.c does its items. Nobody else's business.
 *
 * An item is a block of rows of one sequence with the query heads of one key head or, where there are few rows, of several, at most
 * ATTENTION_COLS columns. It goes through blocks of 64 keys (a page) in order, each span of KV_SPAN positions from
 * nothing, and merges spans in order. A row's own range decides which keys count, and what a page gives to a column does
 * not depend on its neighbours: so neither batching, chunking nor the way spans are shared out changes a bit. */
#pragma once

#include "worker/cpu/attention_kernels.h"
#include "worker/cpu/cpu.h"
#include "worker/cpu/matmul_kernels.h"

/* Running result of the columns of an item over one span or several. */
struct partial {
    float max[ATTENTION_COLS];
    float sum[ATTENTION_COLS];
    bool started[ATTENTION_COLS]; /* some key was seen */
    float acc[];                  /* [ATTENTION_COLS][v_pad] */
};

struct block {
    uint32_t row0, n_rows; /* rows of one sequence, side by side */
};

struct job {
    const struct op_attention *op;
    const struct kv_layer *layer;
    const struct attention_kernels *kernels;
    const struct matmul_kernels *products;
    uint32_t n_heads_item, n_chunks,
        n_blocks;       /* query heads of an item and key head; items for all of them */
    uint32_t n_kv_item; /* key heads of an item */
    size_t n_items;
    uint32_t k_pad, v_pad;
    struct block *blocks;
    uint8_t *members; /* scratch of member i at i * member_bytes */
    size_t member_bytes, partial_bytes;
    uint8_t *slots;         /* partial results by (item, span of this wave) */
    int64_t span0, n_spans; /* of this wave */
    uint8_t *totals;        /* by item: the merged result of earlier waves */
    bool split;
};

/* An item by its number, and its columns: key head by key head, row by row, head by head. */
struct item {
    uint32_t kv_head, n_kv, head0, n_heads; /* n_heads of each of n_kv key heads */
    const struct block *block;
    uint32_t kv_cols, n_cols; /* of one key head, of all */
};

struct item attention_item(const struct job *job, size_t i);

/* n values of a type, up to whole blocks. */
static inline uint32_t attention_padded(enum dtype dtype, uint32_t n)
{
    uint32_t block = dtype_get(dtype)->block_values;
    return (n + block - 1) / block * block;
}

/* First position that a row reads. */
int64_t attention_row_lo(const struct op_attention *op, const struct kv_row *row);

/* First and one past the last position that an item's rows read. */
void attention_range(const struct job *job, const struct item *it, int64_t *lo, int64_t *hi);

/* Bytes of one member's scratch, and of one struct partial. */
size_t attention_member_bytes(size_t k_pad, size_t v_pad);
size_t attention_partial_bytes(size_t v_pad);

/* team_jobs of a struct job. Whole items, their spans one after another, to the result: */
void attention_run_items(void *job, size_t begin, size_t end, unsigned member);

/* Few items, long contexts: (item, span) pairs of one wave, each to its slot; then, on the owner's thread, in order to the
 * totals, and at the end to the result. */
void attention_run_spans(void *job, size_t begin, size_t end, unsigned member);
void attention_merge(const struct job *job);
void attention_clear(struct partial *p, uint32_t n_cols, size_t v_pad);
void attention_finish(const struct job *job, const struct item *it, const struct partial *total);
