/* The life of a request, as the broker sees it.
 *
 *   NEW -> RENDERING -> QUEUED -> PREFILL -> DECODE -> DONE | CANCELLED | FAILED
 *                         ^----------+---------+
 *
 * Until QUEUED a request is memory of this broker alone, and its client submits again when the broker dies. From QUEUED on
 * its slot in the journal is the truth and this struct is a note about it. PREFILL and DECODE go back to QUEUED when the
 * worker died, the model is swapped out, or somebody else's turn has come: it goes on after its last committed token.
 * Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "broker/shards.h"
#include "proto/journal.h"
#include "proto/link.h"

struct broker;
struct model;
struct post_to;

#define REQUESTS_MAX         4096 /* known at once, ended ones included */
#define REQUEST_DEATHS_ALONE 2    /* after so many deaths it runs alone */
#define REQUEST_DEATHS_MAX   3    /* so many make it poison */

enum request_state {
    REQUEST_NEW,
    REQUEST_RENDERING, /* its prompt becomes tokens; its model's limits are not known yet */
    REQUEST_QUEUED,
    REQUEST_PREFILL,
    REQUEST_DECODE,
    REQUEST_DONE,
    REQUEST_CANCELLED,
    REQUEST_FAILED,
    REQUEST_N_STATES,
};

const char *request_state_name(enum request_state state);

/* What is needed until admission only. */
struct request_draft {
    struct journal_params params;
    bool has_n_max, has_seed;
    uint32_t ctx_limit; /* the alias's context; 0: none */
    struct journal_bias biases[LIMIT_LOGIT_BIASES];
    uint8_t *strings; /* owned: { uint32_t length; bytes } each, as struct journal_extra has them */
    uint32_t strings_bytes;
    char model_name[LIMIT_MODEL_NAME_BYTES]; /* alias or file, for the next broker */
    uint32_t kind;                           /* Hearth__PromptKind */
    uint8_t *payload;                        /* owned */
    size_t payload_len;
    int32_t *ids; /* owned; the prompt's tokens when they are known */
    uint32_t n_ids;
    bool has_ids, text_asked;
};

struct request {
    uint64_t serial; /* names it within this broker */
    uint8_t id[LIMIT_REQUEST_ID_BYTES];
    enum request_state state;
    struct shard *shard;
    bool admitted; /* slot and generation are valid */
    uint32_t slot, generation;
    uint64_t digest;
    struct model *model;         /* NULL only when it ended before this broker */
    struct request_draft *draft; /* owned; NULL after admission */
    uint64_t client;             /* whose line's end matters; 0: nobody's */
    bool left;                   /* its client's line ended: it will hardly be acknowledged */
    uint64_t come_back_ms; /* after a broker's restart: its client has until then; 0: no matter */
    struct link_peer peer; /* who waits for Accepted, until admission */
    bool has_cookie;
    uint64_t cookie;
    uint64_t flow, admit_seq;
    uint8_t priority;
    bool detach;
    uint32_t worker; /* child that owns the log; 0: the broker */
    bool releasing;  /* WorkerRelease is out */
    /* ... because its place, which it had for a while, goes to one that has waited too long. */
    bool yields;
    bool by_age;            /* it has its place because it had waited too long */
    bool ending;            /* WorkerCancel is out */
    bool told;              /* WorkerTake went out to this worker (or its Hello listed it) */
    bool held;              /* counted in its flow */
    bool billed;            /* its prompt is charged to its flow */
    uint64_t not_before_ms; /* the worker could not take it: not again at once */
    uint64_t parked;        /* segment of a file that its prompt begins like; 0: none */
    uint64_t charged;       /* committed records already counted for fairness */
    uint64_t n_taken;       /* committed when it was taken */
    uint64_t born_ms, ended_ms;
    uint64_t waits_ms; /* since it came or was last served: what its age is counted from */
    uint64_t taken_ms; /* since when it has its place */
    uint64_t deadline_unix_ms;
    bool records; /* Records frames go to records_peer */
    struct link_peer records_peer;
    struct journal_reader records_at;
    uint64_t
        next_reader; /* takes the slot's place for readers once the worker can wake it; 0: none */
    bool gone;       /* swept at the end of the turn */
};

struct requests {
    struct request **list; /* owned */
    uint32_t n, room;
};

/* A new one in state NEW; NULL: ERR_BUSY. Owned by the table. */
struct request *request_create(struct broker *b, struct err *err);

/* Frees those that are gone, and their slots are not touched. */
void requests_sweep(struct broker *b);
void requests_clear(struct requests *r);

struct request *requests_find_serial(const struct requests *r, uint64_t serial);

/* A request of a principal by its id or a prefix of it. NULL: none, or several (then *many). */
struct request *requests_find(const struct requests *r, const struct shard *shard,
                              const uint8_t *id, size_t len, bool *many);
struct request *requests_find_slot(const struct requests *r, const struct shard *shard,
                                   uint32_t slot, uint32_t generation);

/* The one mover: asserts that the move is allowed, writes it into the slot, logs it. why may be NULL. */
void request_move(struct broker *b, struct request *r, enum request_state to, const char *why);
bool request_may_move(enum request_state from, enum request_state to);

struct journal_slot *request_slot(const struct request *r);
bool request_ended(const struct request *r);

/* Records committed so far. */
uint64_t request_committed(const struct request *r);

/* The end record when the log has one: 1, else 0. */
int request_find_end(const struct request *r, struct journal_record *end);

/* When its last record was written (CLOCK_MONOTONIC); 0: none is. */
uint64_t request_spoke_ms(const struct request *r);

/* Ends a request whose log is the broker's: commits the end, moves the state, wakes the reader. Before admission the
 * client is told instead and the request is gone. */
void request_end(struct broker *b, struct request *r, enum journal_end end, const struct err *why);

/* Wishes it to end, whoever owns the log. code: ERR_CANCELLED, ERR_TIMEOUT. */
void request_cancel(struct broker *b, struct request *r, const struct err *why);

/* An end was acknowledged, or expired: the slot is free. */
void request_free(struct broker *b, struct request *r);

/* Frees the oldest end that a client which is gone left behind unacknowledged; false when there is none. */
bool requests_free_left(struct broker *b, const struct shard *shard);

/* The log is the broker's again: to its end when it has one, else to the queue. */
void request_return(struct broker *b, struct request *r, const char *why);

/* Every turn: rendering, admission, ends, deadlines, expiry. */
void requests_act(struct broker *b);

/* From now on this reader page is the request's. While its worker has not been told of it the old one stays in the slot: after a
 * broker's death that is the same client's, and a wake-up by it reaches who sleeps. */
void request_wake_by(struct broker *b, struct request *r, uint64_t reader);

/* Wakes the reader of a slot by its eventfd, if its client is here. */
void request_wake(struct broker *b, const struct request *r);
