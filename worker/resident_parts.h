/* What the three files of a resident model share. Nobody else's. */
#pragma once

#include <time.h>

#include "worker/resident.h"

static inline double resident_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline bool resident_all_read(const struct resident *r)
{
    return weights_watermark(r->weights) >= r->weights->header->data_bytes;
}

/* Binding, or the step that was set aside, needs data that is not there. */
static inline bool resident_wants_data(const struct resident *r)
{
    return r->data_wanted > weights_watermark(r->weights);
}

static inline bool resident_runs(const struct sequence *s)
{
    return s->open && !s->ended;
}

/* Ends a request by an error of its own; if even that has no room in the log, the log is given back as it is. (resident_step.c) */
void resident_fail(struct sequence *s, enum err_code code, const char *reason);

/* The step that was set aside is forgotten when one of its sequences is: nothing of it is committed. (resident_step.c) */
void resident_abandon_step(struct resident *r);

/* One piece of the first evaluation that has not ended. shared: generations want the device too. (resident_evaluate.c) */
void resident_evaluate_piece(struct resident *r, bool shared);

/* ---- resident_window.c ---- */

/* Whether this device can take weights as they come. */
int resident_check_window(const struct resident *r, struct err *err);

/* All tensors up to here have left the segment. */
void resident_tell_uploaded(struct resident *r, uint64_t bytes);

/* ---- resident_ahead.c ---- */

/* What a device that chooses tokens needs for it. */
int ahead_create(struct resident *r, struct err *err);
void ahead_destroy(struct resident *r);

/* Whether the device can choose this one's next token. */
bool ahead_picks(const struct resident *r, const struct sequence *s);

/* Whether the next step may begin before the tokens of the last one are read. */
bool ahead_may(const struct resident *r);

/* How the next token of s is chosen: the next of this step's picks. */
void ahead_pick(struct resident *r, struct sequence *s);

/* Takes what the device chose for s. */
void ahead_take(struct sequence *s, const struct op_picked *picked);

/* Begins the step and ends the one before. */
int ahead_step(struct resident *r, const struct forward_batch *batch, struct err *err);

/* Waits for the step that the device computes, if there is one, and takes its tokens. */
int ahead_settle(struct resident *r, struct err *err);
