#include "broker/queue.h"

#include <assert.h>
#include <stdlib.h>

/* A token costs so much; a lower priority pays more, so it is served less. */
static uint64_t cost_of(enum queue_priority priority)
{
    return priority == QUEUE_INTERACTIVE ? 1 : priority == QUEUE_NORMAL ? 4 : 16;
}

static unsigned rank_of(enum queue_priority priority)
{
    return priority == QUEUE_INTERACTIVE ? 0 : priority == QUEUE_NORMAL ? 1 : 2;
}

uint64_t queue_aged_ms(enum queue_priority priority)
{
    return cost_of(priority) * QUEUE_AGED_MS;
}

bool queue_yields(enum queue_priority a, enum queue_priority b)
{
    return rank_of(a) >= rank_of(b);
}

void queue_clear(struct queue *q)
{
    free(q->flows);
    *q = (struct queue){ 0 };
}

static struct queue_flow *find(const struct queue *q, uint64_t key)
{
    for (uint32_t i = 0; i < q->n; i++) {
        if (q->flows[i].key == key) {
            return &q->flows[i];
        }
    }
    return NULL;
}

/* The row of a flow, made when it is new. NULL only without memory: fairness is then by admission alone. */
static struct queue_flow *get(struct queue *q, uint64_t key)
{
    struct queue_flow *flow = find(q, key);
    if (!flow && q->n == q->room && q->room < QUEUE_FLOWS_MAX) {
        uint32_t room = q->room ? q->room * 2 : 16;
        struct queue_flow *grown = realloc(q->flows, room * sizeof *grown);
        if (grown) {
            q->flows = grown;
            q->room = room;
        }
    }
    if (!flow && q->n < q->room) {
        flow = &q->flows[q->n++];
        *flow = (struct queue_flow){ .key = key };
    }
    for (uint32_t i = 0; !flow && i < q->n; i++) {
        struct queue_flow *f = &q->flows[i];
        if (f->n_here == 0) {
            flow = f;
            for (uint32_t k = i + 1; k < q->n; k++) {
                if (q->flows[k].n_here == 0 && q->flows[k].used < flow->used) {
                    flow = &q->flows[k];
                }
            }
            *flow = (struct queue_flow){ .key = key };
        }
    }
    if (flow) {
        flow->used = ++q->clock;
    }
    return flow;
}

void queue_enter(struct queue *q, uint64_t key)
{
    struct queue_flow *flow = get(q, key);
    if (!flow) {
        return;
    }
    if (flow->n_here++ == 0) {
        uint64_t least = UINT64_MAX;
        for (uint32_t i = 0; i < q->n; i++) {
            if (&q->flows[i] != flow && q->flows[i].n_here > 0 && q->flows[i].served < least) {
                least = q->flows[i].served;
            }
        }
        if (least != UINT64_MAX && flow->served < least) {
            flow->served = least;
        }
    }
}

void queue_leave(struct queue *q, uint64_t key)
{
    struct queue_flow *flow = find(q, key);
    if (flow && flow->n_here > 0) {
        flow->n_here--;
    }
}

void queue_charge(struct queue *q, uint64_t key, enum queue_priority priority, uint64_t n_tokens)
{
    struct queue_flow *flow = get(q, key);
    if (flow) {
        flow->served += n_tokens * cost_of(priority);
    }
}

uint64_t queue_served(const struct queue *q, uint64_t key)
{
    const struct queue_flow *flow = find(q, key);
    return flow ? flow->served : 0;
}

static uint32_t n_here(const struct queue *q, uint64_t key)
{
    const struct queue_flow *flow = find(q, key);
    return flow ? flow->n_here : 0;
}

bool queue_before(const struct queue *q, const struct queue_place *a, const struct queue_place *b)
{
    if (a->flow != b->flow) {
        uint64_t sa = queue_served(q, a->flow), sb = queue_served(q, b->flow);
        if (sa != sb) {
            return sa < sb;
        }
    }
    if (a->priority != b->priority) {
        return rank_of(a->priority) < rank_of(b->priority);
    }
    /* Who has just come stands level with the least served one. Against a crowd in its first prompts, which is charged nothing
     * for seconds, it would wait by order of admission: the smaller flow goes first. */
    uint32_t na = n_here(q, a->flow), nb = n_here(q, b->flow);
    if (na != nb) {
        return na < nb;
    }
    return a->admit_seq < b->admit_seq;
}
