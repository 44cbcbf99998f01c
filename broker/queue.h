/* The waiting room and fairness. Each flow (a program, an API key of the gateway) has a counter of the tokens it was
 * served, weighted by priority; whose counter is smallest is next. Who was away does not come back with credit: a flow
 * that begins to wait starts at least at the smallest counter of those that are here. Counters know no time: who has
 * waited too long goes by age instead (route.c). Pure tables; loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define QUEUE_FLOWS_MAX 4096 /* remembered; the longest unused one makes room */
#define QUEUE_QUANTUM                                                                              \
    2048 /* weighted tokens (512 of normal priority) that a flow may be ahead of one that waits */

#define QUEUE_AGED_MS                                                                              \
    1000 /* times 1, 4 or 16: who has waited so long for a token goes before the counters ... */
#define QUEUE_PLACE_MS 1000 /* ... and takes the place of one that has had it so long */

/* As in proto/hearth.proto. */
enum queue_priority { QUEUE_NORMAL = 0, QUEUE_INTERACTIVE = 1, QUEUE_BATCH = 2 };

struct queue_flow {
    uint64_t key;
    uint64_t served; /* tokens, weighted */
    uint32_t n_here; /* its requests that wait or run */
    uint64_t used;   /* a clock of uses, for making room */
};

struct queue {
    struct queue_flow *flows; /* owned */
    uint32_t n, room;
    uint64_t clock;
};

/* What the order looks at. */
struct queue_place {
    uint64_t flow;
    enum queue_priority priority;
    uint64_t admit_seq;
};

void queue_clear(struct queue *q);

/* A request of this flow is here (waiting or running), or left. */
void queue_enter(struct queue *q, uint64_t flow);
void queue_leave(struct queue *q, uint64_t flow);

/* Tokens were computed for a flow. */
void queue_charge(struct queue *q, uint64_t flow, enum queue_priority priority, uint64_t n_tokens);

/* How long a request of this priority waits at most before it goes by age. */
uint64_t queue_aged_ms(enum queue_priority priority);

/* a gives way to b, or stands level. */
bool queue_yields(enum queue_priority a, enum queue_priority b);

/* What a flow was served so far. */
uint64_t queue_served(const struct queue *q, uint64_t flow);

/* a is to be taken before b: smaller counter first; then by priority, by the smaller number of requests of its flow, by admission. */
bool queue_before(const struct queue *q, const struct queue_place *a, const struct queue_place *b);
