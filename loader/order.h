/* In which order the bytes of a model are read: as the forward pass needs them, whatever order the file has. The first
 * prefill then begins while the last layers are still on their way.
 *
 * The segment keeps the file's order; only the reads jump. A page is read once, for whoever of the tensors in it comes
 * first. The watermark counts bytes in the order of reading, and each tensor says what it must reach (`ready`).
 * Offsets are within the data section. Loader's main thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

/* One tensor, and one file of the model: where its data stands. Files come in order and share no page. */
struct order_tensor {
    const char *name;
    uint32_t name_len;
    uint64_t off, size_bytes;
};
struct order_file {
    uint64_t off, size_bytes;
};

/* One piece to read in one go. */
struct order_run {
    uint32_t file_idx, group;
    uint64_t off, size_bytes;
    uint64_t at; /* bytes read before it */
};

struct order {
    struct order_run *reads; /* owned, in the order of reading, neighbours joined */
    struct order_run *by_off;
    size_t n_reads, n_by_off;
    uint64_t total_bytes; /* of all of them */
};

/* tensors (sorted by off here, so the array is the caller's to give) lie inside of the files; data begins `phase` bytes
 * into a page. ERR_NO_MEMORY. */
int order_init(struct order *o, struct order_tensor *tensors, size_t n_tensors,
               const struct order_file *files, uint32_t n_files, uint64_t phase, struct err *err);
void order_clear(struct order *o);

/* By off, as order_init leaves them. */
void order_sort(struct order_tensor *tensors, size_t n_tensors);

/* What the count of bytes read must reach for [off, off + size_bytes) to be there. */
uint64_t order_ready(const struct order *o, uint64_t off, uint64_t size_bytes);

/* ORDER_FIRST for what a worker needs to bind the model (rotary factors), 1 for what else comes before the layers, 2 + N for layer N,
 * UINT32_MAX for the output. */
#define ORDER_FIRST 0u
uint32_t order_group(const char *name, size_t len);
