/* Which tensors stand how in the segment, and the re-laying itself. The CPU worker wants matrices in groups of 16
 * rows whose blocks alternate, so that one SIMD lane is one row (proto/rows16.h); a GPU takes the file's rows.
 * In place and of the same size: a group is copied out, laid, and written back behind the read mark.
 * Loader's main thread calls; helpers of its own lay groups beside it. */
#pragma once

#include <stdint.h>

#include "loader/gguf.h"
#include "proto/weights.h"

/* How a tensor will stand when `wanted` is the layout of the load. */
enum weights_layout layout_of(const struct gguf_tensor *t, enum weights_layout wanted);

struct layout; /* opaque: the work list of one segment */

/* Over a mapped manifest: every tensor of w that is not in the file's layout, by its place in the data. base is
 * the writable mapping of the same segment, borrowed. NULL: ERR_NO_MEMORY. */
struct layout *layout_create(const struct weights *w, uint8_t *base, struct err *err);
void layout_destroy(struct layout **l);

/* Lays every group that is there when n_read bytes are, in the order of reading (the tensors' data_end counts them too).
 * Returns what the watermark may say: at most n_read, equal to it when no tensor is cut. */
uint64_t layout_advance(struct layout *l, uint64_t n_read);
