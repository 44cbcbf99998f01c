/* What the three files of a resident model share. Nobody else's. */
#pragma once

#include "worker/resident.h"

static inline bool resident_all_read(const struct resident *r)
{
    return weights_watermark(&r->weights) >= r->weights.header->data_bytes;
}

/* Binding, or the step that was set aside, needs data that is not there. */
static inline bool resident_wants_data(const struct resident *r)
{
    return r->data_wanted > weights_watermark(&r->weights);
}

/* The step that was set aside is forgotten when one of its sequences is: nothing of it is committed. (resident_step.c) */
void resident_abandon_step(struct resident *r);

/* One piece of the first evaluation that has not ended. shared: generations want the device too. (resident_evaluate.c) */
void resident_evaluate_piece(struct resident *r, bool shared);
