/* Which weights stand in the host's memory when a device has no room for all of them. Tables that are looked up by rows are
 * read there, a few rows a step. Some matrices are streamed: pinned in the host's memory as they would stand on the device, and
 * copied over the bus into slots there one ahead of the product that needs them, so that the copies hide under the
 * products between. plan.c decides from sizes alone, binding follows, the backend does it (import_spilled). Loop thread.
 *
 * What is streamed has at most one product in a launch: a slot is read while the next one is filled. Experts stay: which of
 * them a step needs is not known ahead. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/weights.h"
#include "worker/model.h"

/* What can be streamed of a layer, in the order in which a step needs it. */
enum spill_part { SPILL_ATTN_IN, SPILL_ATTN_OUT, SPILL_FFN_IN, SPILL_FFN_OUT, SPILL_N_PARTS };

struct spill {
    bool narrow;         /* steps of fewer rows, whose work space is smaller (plan.h) */
    bool tables;         /* of token_embd, where it is no output, and gemma4's per layer */
    uint64_t slot_bytes; /* whole pages; 0: nothing is streamed */
    uint8_t streamed[MODEL_LAYERS_MAX]; /* bit p: part p */
};

/* Bytes of each part as it stands on a device; 0: it is not there, or cannot be streamed. */
struct spill_sizes {
    uint32_t n_layers;
    uint64_t bytes[MODEL_LAYERS_MAX][SPILL_N_PARTS];
};

/* By importing into a backend that only counts (backend.dry); what was imported goes with the model of w. */
void spill_measure(const struct weights *w, struct backend *dry, uint32_t n_layers,
                   struct spill_sizes *sizes);

/* Chooses matrices of at least `wanted` bytes and their slots' too, evenly over the layers and as few bytes as can be; slots
 * as small as that allows. Returns the bytes that are streamed; 0: it would be more than `most`. Keeps s->tables. */
uint64_t spill_choose(const struct spill_sizes *sizes, uint64_t wanted, uint64_t most,
                      struct spill *s);

/* Whether the matrix "blk.LAYER.PART.weight" is streamed, and its turn among those that are. */
bool spill_streams(const struct spill *s, const struct weights *w, uint32_t layer, const char *part,
                   uint32_t *turn);
