/* Which weights segments a worker may have mapped. A worker whose device reads the host's memory by itself (Hello: keeps) goes on holding a
 * model's weights when the model is unbound, mapped and registered with its device, so that the next bind needs neither; a segment
 * that leaves RAM is free only when the worker has let go of it.
 *
 * The list errs on one side: what was named to the worker, in a bind or a hint, stands here until it says that it has
 * nothing of it (WorkerForgot), or dies. It is asked (WorkerForget) when the model is to leave RAM, and keeps its segment and so its
 * room until the answer; the watch kills a worker that does not answer. A new broker has the list from Hello; before that a worker
 * which outlived the last broker may have anything. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/message.h"

struct broker;
struct worker;

#define KEEPS_MAX                                                                                  \
    64 /* twice what a worker keeps: those that it let go without a word stand here too */

struct keep {
    uint64_t segment;
    bool told;         /* a hint went out */
    bool asked;        /* WorkerForget is out ... */
    uint64_t quiet_ms; /* ... and unanswered for so long */
};

/* A worker's part. */
struct keeps {
    bool able;    /* it keeps weights of unbound models */
    bool unknown; /* it is the last broker's and has not said Hello */
    uint32_t n;
    struct keep list[KEEPS_MAX];
};

void keeps_on_hello(struct broker *b, struct worker *w, const Hearth__Hello *hello);
void keeps_on_forgot(struct broker *b, struct worker *w, uint64_t segment);

/* It was told to bind this segment. */
void keeps_on_bind(struct worker *w, uint64_t segment);

bool keeps_has(const struct worker *w, uint64_t segment);

/* Whether any worker may have it. */
bool keeps_held(const struct broker *b, uint64_t segment);

/* The segment leaves RAM: whoever has it is asked to let go. True when nobody has it any more. */
bool keeps_let_go(struct broker *b, uint64_t segment);

/* Counts ms of waiting for answers. Returns true when one is overdue; *waits: one is awaited. */
bool keeps_hung(struct broker *b, struct worker *w, uint64_t ms, bool *waits);

/* Every turn, after the models: hints for models that became WARM; segments that are no model's any more are asked back. */
void keeps_act(struct broker *b);
