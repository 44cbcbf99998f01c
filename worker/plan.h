/* What a model takes on a device before a byte of it is loaded. Everything that takes memory at load runs once with the
 * backend counting instead of allocating (backend.dry), so the plan is what the load then does: hearth plan prints it,
 * the worker binds by it, and tests hold both to the same bytes. Loop thread only. */
#pragma once

#include <stdint.h>

#include "proto/err.h"
#include "worker/backend.h"
#include "worker/model.h"
#include "worker/spill.h"
#include "worker/state.h"

/* A shorter context than this, where a longer one was asked for, does not count as room: weights leave the device first.
 * Nor is a longer one paid for with bandwidth that nobody asked for. */
#define PLAN_CTX_LEAST 2048
/* At most one byte in so many of the weights is streamed: a 32B model at 56 GB/s then still gives 5 tokens a second, as fast as one
 * reads; where more would be needed a file of a smaller type is the better answer. */
#define PLAN_STREAMED_SHARE 3

/* Rows of a prompt in one step where weights are streamed: the work space of more would cost bandwidth for ever. As many as
 * the widest product takes at once; their computation lasts about as long as weights take to come. */
#define PLAN_STREAMED_ROWS 128

#define PLAN_ENCODER_ROWS 8192 /* the longest text of an encoder, taken in one step */

struct plan_question {
    uint32_t ctx_len; /* 0: the file's; shortened to what fits */
    enum dtype k_type, v_type;
    uint32_t n_sequences;
    uint64_t
        state_bytes_max; /* host memory for the state: all of it on a CPU, the mirror's budget on a device */
    struct model_wait wait; /* as in model_options */
    uint32_t n_pages_least; /* 0: of one context */
};

enum plan_part {
    PLAN_BEFORE,    /* the backend's own, and other models' */
    PLAN_WEIGHTS,   /* on a CPU they stand in the segment, and are counted here all the same */
    PLAN_RING,      /* slots of weights that are streamed */
    PLAN_KV,        /* pages of keys and values */
    PLAN_RECURRENT, /* two states of every sequence, in flight and idle */
    PLAN_WORKSPACE, /* activations of a step, what ops need beside them */
    PLAN_MARGIN,    /* kept free: what the runtime takes unasked, graphs */
    PLAN_N_PARTS
};

struct plan {
    uint64_t bytes[PLAN_N_PARTS];
    uint64_t total_bytes, room_bytes; /* of the device; room UINT64_MAX: not known */
    uint64_t host_bytes;              /* the state segment */
    uint64_t host_weights_bytes;      /* weights in the host's memory instead of the device's */
    uint64_t streamed_bytes;          /* of these: come over the bus in every step */
    uint64_t step_bytes; /* of weights that a step of one row reads, wherever they stand */
    struct spill spill;  /* which ones; for model_options */
    uint32_t rows_max;   /* of one step */
    uint32_t n_layers, train_ctx_len;
    struct state_shape shape;
};

extern const char *const plan_part_names[PLAN_N_PARTS];

/* Answers, or ERR_NO_FIT with the figures (plan is filled as far as it is known); model_bind's errors. */
int plan_compute(const struct weights *w, struct backend *backend, const struct plan_question *q,
                 struct plan *plan, struct err *err);

/* Rows of one step of this model. */
uint32_t plan_rows_max(const struct model *m, uint32_t ctx_len, const struct spill *spill);

/* Bytes of weights that a step of one row reads: matrices whole, experts by one token's share, tables only as output. */
double plan_step_bytes(const struct weights *w, const struct model *m);
