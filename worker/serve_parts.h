/* Inside serve.c and its parts: the state of the loop, what is said (serve_say.c), what is heard (serve_hear.c). Loop thread. */
#pragma once

#include "proto/channel.h"
#include "proto/link.h"
#include "proto/message.h"
#include "worker/kept.h"
#include "worker/resident.h"
#include "worker/serve.h"

struct out_message {
    size_t len;
    uint8_t *data;
};

struct finished {
    struct sequence_name name;
    const struct journal_slot *slot; /* in a mapped shard */
};

struct serve {
    struct serve_options options;
    struct backend *backend;
    struct link *link;
    struct message_arena arena;
    uint8_t packed[LIMIT_ENVELOPE_BYTES];
    struct shards shards;
    struct readers readers;
    struct kept kept; /* weights */
    struct resident resident[SERVE_RESIDENTS_MAX];
    uint32_t turn; /* whose step comes next */
    struct finished finished[SERVE_FINISHED_MAX];
    uint32_t n_finished;
    struct out_message outbox[SERVE_OUTBOX_MAX]; /* a ring */
    uint32_t out_first, n_out;
    uint32_t epoch;   /* the broker's, 0 before Welcome */
    uint64_t n_heard; /* messages from the broker */
    bool broker_new, stop;
};

/* ---- serve_say.c ---- */

void serve_outbox_pop(struct serve *s);

void serve_say_need(struct serve *s, const struct resident *r);

void serve_say_bound(struct serve *s, uint64_t model, const struct resident *r,
                     const struct err *error);

void serve_outbox_flush(struct serve *s);

void serve_say_evaluated(struct serve *s, uint64_t work, const struct evaluate *e,
                         const struct err *error);

/* Who we are and what we hold, ends that were not taken back included. */
void serve_say_hello(struct serve *s);

void serve_say_finished(struct serve *s, struct sequence_name name);

void serve_say_released(struct serve *s, struct sequence_name name, const struct err *why);

/* Packs and queues a message; it leaves in order, now or when the line takes it. */
void serve_say(struct serve *s, Hearth__Envelope__BodyCase which, void *body);

/* Nothing of a weights segment is here any more. */
void serve_say_forgot(struct serve *s, uint64_t segment);

void serve_say_parked(struct serve *s, uint64_t model, uint64_t segment, uint64_t shard,
                      const struct err *error);

/* ---- serve_hear.c ---- */

void serve_fail_resident(struct serve *s, struct resident *r, const struct err *why);

/* Up to a bound, so that a flood does not stop the device. Returns false when there may be more. */
bool serve_drain_link(struct serve *s);

/* ---- serve.c ---- */

bool serve_is_finished(const struct serve *s, struct sequence_name name);

/* The broker took a log back when it is no longer ours by name. */
void serve_sweep_finished(struct serve *s);

/* After a step, or anything that may have written: wakes readers, reports ends. */
void serve_collect(struct serve *s, struct resident *r);

/* It gives everything back; its weights may stay (kept.h). Accepts a free one. */
void serve_close_resident(struct serve *s, struct resident *r);

struct resident *serve_find_resident(struct serve *s, uint64_t model);

struct sequence *serve_find_sequence(struct serve *s, struct sequence_name name,
                                     struct resident **owner);

/* Whether a request in flight still uses this shard; arg is the struct serve. */
bool serve_shard_in_use(void *arg, uint64_t segment);
