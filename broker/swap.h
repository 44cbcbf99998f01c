/* Who may be in RAM and on the device when not all fit: turns.
 *
 * A model that is wanted and fits beside the others simply comes. Else it waits for its turn: of all that wait, the one that has
 * waited longest is first, and only the first may claim room and send others away, so no two models chase each other out.
 * It gets room from who is not wanted (least recently used first), then from one whose turn is over: it has been there
 * for min_residency, it has served something, and either the first has waited swap_wait_max or what waits is worth the
 * swap (n_waiting x waited >= 2 x cost x requests that are set aside; the cost is predicted from the last load's rate).
 * Waiting requests are so grouped by model, and the wait is bounded: by the turns before it, each at most
 * max(min_residency, swap_wait_max, SWAP_GRACE_MS) and a load.
 *
 * Where the budget has room for the first one's file but not for its state, the file is read while the worker still
 * computes for the other. Where it has room for both files, only the state of the leaving one goes.
 * What fits in RAM need not fit on a device with memory of its own: that says its worker when it is to bind it. Then who is there leaves
 * by the same rules, and its weights stay in RAM.
 * A model that was sent away for one which then fails comes back by itself. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"

struct broker;
struct model;

#define SWAP_SERVED_MIN 32           /* tokens and results that make a turn worth its load ... */
#define SWAP_GRACE_MS   2000         /* ... unless it has not come to that in so long */
#define SWAP_BIND_MS    100          /* predicted for everything but reading */
#define SWAP_RATE       200000000ull /* bytes a second, before a load has been measured */

/* A model's part. */
struct swap_model {
    uint64_t
        wants_since_ms;   /* wanted without having room since then; 0: it has, or is not wanted */
    bool spoke;           /* ... as the journal says, by its last token */
    bool in_turn;         /* it has room for weights and state */
    uint64_t turn_ms;     /* since when it can serve; 0: not yet */
    uint64_t served;      /* tokens and results in this turn */
    bool alone;           /* its device had no room for it beside others: they leave first */
    bool evicting;        /* it leaves for another's sake, not because somebody unloads it */
    uint64_t evicted_for; /* number of the model that it left for; 0: nobody's */
    bool come_back;       /* that one failed: it is wanted again, though nobody asks */
};

/* Bytes that models take or were promised. */
uint64_t swap_used(const struct broker *b);

/* The same without the models that are leaving. */
uint64_t swap_used_after(const struct broker *b);

/* Bytes of state that a model may take when it is bound. */
uint64_t swap_state_bytes(const struct broker *b, const struct model *m);

/* Every turn, after the wishes: who waits, and who is first. */
void swap_begin(struct broker *b);

/* May m start to load? Makes room as far as that is right; 1 yes, 0 not yet, -1 never (ERR_NO_FIT with the figures). */
int swap_load_room(struct broker *b, struct model *m, struct err *err);

/* Is there room for m's state, so that it may be bound? Makes room as far as that is right. */
bool swap_bind_room(struct broker *b, struct model *m);

/* The device said that m does not fit beside those that it has. true: they may leave, and m waits for its turn; false: they
 * may not, or there are none. */
bool swap_device_full(struct broker *b, struct model *m);

/* Whether a model that leaves for another's sake may keep its weights. */
bool swap_keeps_weights(const struct broker *b, const struct model *m);

/* Its loader died and begins again at once: m keeps its room, or its place among those that wait for one. Else a model whose loads
 * are killed would stand behind the others each time, and never come. */
void swap_interrupted(struct model *m);

/* The last broker died while m was wanted: it has waited since the last token of any of its requests, or since the oldest came. Else
 * brokers that die young would begin every wait anew. Once for each of its requests. */
void swap_recovered(struct model *m, uint64_t spoke_ms, uint64_t born_ms);

/* After all of them: a turn that the last broker began goes on, it does not begin anew. It began when the others' last token was,
 * but half the grace is left of it: whoever has just been loaded is not sent away by a broker that died in between. */
void swap_adopted(struct broker *b);

/* m lost its room; m is on its device; m failed for good: who left for it comes back. */
void swap_left(struct model *m);
void swap_arrived(struct broker *b, struct model *m);
void swap_failed(struct broker *b, struct model *m);
