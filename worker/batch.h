/* Which sequences step next, and by how much: a pure decision over what each one still has to feed, and the pace at
 * which this device feeds. Loop thread; plain values.
 *
 * Decode rows first, all of them: one token each. Prefill fills what is left of the step's budget, shared evenly between
 * prompts, so that a short one passes a long one. The budget is rows that take about BATCH_SHARED_S when others
 * decode; it follows what steps were measured to take. Prompts alone get BATCH_ROWS_MAX: measured on two cores with a 1B model,
 * 256 rows a step cost 8 % of the prefill rate, and a newcomer or a cancel waits for one step at most either way.
 * How a prompt is cut changes no bit of its result (DESIGN.md section 8), so the pace may depend on the clock. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define BATCH_ROWS_MAX 512   /* of one step: beyond it larger matmuls gain nothing on a CPU */
#define BATCH_ROWS_MIN 16    /* a chunk this small still shares one pass over the weights */
#define BATCH_SHARED_S 0.050 /* what a prefill chunk may cost those who decode */

struct batch_item {
    uint32_t n_left; /* tokens to feed until logits are due: 1 is a decode row; 0: not now */
    uint32_t n_rows; /* out: rows of this step */
};

/* Fills n_rows of every item. rows_max bounds the step; budget its prefill rows. Items are taken in the order given.
 * Returns the rows in all. */
uint32_t batch_plan(struct batch_item *items, uint32_t n_items, uint32_t budget, uint32_t rows_max);

struct batch_pace {
    double shared_rows; /* prefill rows that take BATCH_SHARED_S */
};

void batch_pace_init(struct batch_pace *pace);

/* Prefill rows for the next step. */
uint32_t batch_budget(const struct batch_pace *pace, bool others_decode);

/* What a step with this budget took. Steps that did not use the budget say nothing and are ignored. */
void batch_observe(struct batch_pace *pace, bool others_decode, uint32_t prefill_rows,
                   double seconds);
