/* What a model takes on a device before a byte of it is loaded. Everything that takes memory at load runs once with the
 * backend counting instead of allocating (backend.dry), so the plan is what the load then does: hearth plan prints it,
 * the worker binds by it, and tests hold both to the same bytes. Loop thread only. */
#pragma once

#include <stdint.h>

#include "proto/err.h"
#include "worker/backend.h"
#include "worker/model.h"
#include "worker/state.h"

#define PLAN_ENCODER_ROWS 8192 /* the longest text of an encoder, taken in one step */

struct plan_question {
    uint32_t ctx_len; /* 0: the file's; shortened to what fits */
    enum dtype k_type, v_type;
    uint32_t n_sequences;
    uint64_t
        state_bytes_max; /* host memory for the state: all of it on a CPU, the mirror's budget on a device */
    struct model_wait wait; /* as in model_options */
};

enum plan_part {
    PLAN_BEFORE,    /* the backend's own, and other models' */
    PLAN_WEIGHTS,   /* on a CPU they stand in the segment, and are counted here all the same */
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
    uint32_t rows_max;                /* of one step */
    uint32_t n_layers, train_ctx_len;
    struct state_shape shape;
};

extern const char *const plan_part_names[PLAN_N_PARTS];

/* Answers, or ERR_NO_FIT with the figures (plan is filled as far as it is known); model_bind's errors. */
int plan_compute(const struct weights *w, struct backend *backend, const struct plan_question *q,
                 struct plan *plan, struct err *err);

/* Rows of one step of this model. */
uint32_t plan_rows_max(const struct model *m, uint32_t ctx_len);
