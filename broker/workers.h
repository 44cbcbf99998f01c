/* The workers, one for each device: births, back-off, deaths and whose fault they were.
 *
 *   ABSENT -> BORN (Hello awaited) -> READY -> ABSENT ... | DOWN
 *
 * A worker that dies is replaced at once, unless it died by its own fault before it was ready: then later and later.
 * Three deaths by a fault within a minute, with nothing committed in between, mark the device down; requests for it fail
 * with that reason until a minute has passed, or somebody loads a model, or SIGHUP comes. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "broker/keeps.h"
#include "broker/watch.h"
#include "proto/err.h"
#include "proto/link.h"
#include "proto/message.h"

struct broker;
struct model;

#define WORKERS_MAX         4    /* devices */
#define WORKERS_GRANTS_MAX  2048 /* segments that one worker may take */
#define WORKERS_STRIKES     3    /* deaths by a fault in WORKERS_STRIKE_MS: the device is down */
#define WORKERS_STRIKE_MS   60000
#define WORKERS_BACKOFF_MIN 100 /* ms, doubled by each death before ready */
#define WORKERS_BACKOFF_MAX 5000
#define WORKERS_HELLO_MS    60000 /* a worker that says nothing for so long after its birth is hung */

enum worker_state { WORKER_ABSENT, WORKER_BORN, WORKER_READY, WORKER_DOWN, WORKER_N_STATES };

const char *worker_state_name(enum worker_state state);

struct worker_grant {
    uint64_t segment;
    bool done, told; /* the keeper knows; the worker was told (readers) */
    bool reader;
};

struct worker {
    char device[64]; /* as configured, then as it says itself */
    char isa[32];
    char architectures[LIMIT_ARCH_NAMES_BYTES]; /* as Hello says them; empty: not said */
    enum worker_state state;
    bool spawning; /* SPAWN is out */
    uint32_t child;
    int32_t pid;
    struct link_peer peer;
    uint8_t token[LIMIT_TOKEN_BYTES];
    uint64_t memory_bytes;
    bool said_hello, own_memory; /* ever; weights are uploaded to it */
    uint32_t threads;
    uint32_t restarts, births;
    uint64_t born_ms, next_ms, backoff_ms;
    uint64_t strikes_ms[WORKERS_STRIKES]; /* the latest deaths by a fault; 0: none */
    bool killed;                          /* by our own watch */
    struct watch_worker watch;
    struct keeps keeps; /* weights that it may have mapped */
    struct err down;    /* why the device is down */
    struct worker_grant grants
        [WORKERS_GRANTS_MAX]; /* here from the start: a grant that is lost would be waited for */
    uint32_t n_grants;
};

struct workers {
    struct worker list[WORKERS_MAX];
    uint32_t n;
};

/* One for each device of the configuration ("cpu,cuda:0" are two). */
void workers_init(struct broker *b);
void workers_clear(struct workers *w);

struct worker *workers_find(struct workers *w, uint32_t child);

/* The worker that is to serve a model: where it is bound, else the one with the fewest models. NULL: none is ready. */
struct worker *workers_for(struct broker *b, const struct model *m);

/* False when every worker said what it computes and none said this; true while one of them is to come. */
bool workers_compute(const struct workers *w, const char *architecture);

/* True when no device can serve: why. */
bool workers_all_down(const struct workers *w, struct err *why);
/* A new attempt for devices that are down. */
void workers_revive(struct broker *b, const char *why);

/* Lets a worker take a segment; once. */
void workers_grant(struct broker *b, struct worker *w, uint64_t segment, bool writable,
                   bool reader);
bool workers_granted(const struct worker *w, uint64_t segment);

/* Whether it was told of this reader page, and so can wake who sleeps on it. */
bool workers_told(const struct worker *w, uint64_t segment);
void workers_on_grant(struct broker *b, uint32_t child, uint64_t segment, const struct err *err);
void workers_revoke(struct broker *b, uint64_t segment);

/* A child of the last broker. */
void workers_adopt(struct broker *b, uint32_t child, int32_t pid,
                   const uint8_t token[LIMIT_TOKEN_BYTES], const char *tag);

void workers_on_spawn(struct broker *b, uint32_t index, uint32_t child, int32_t pid,
                      const struct err *err);
/* false: the token is not of a worker. */
bool workers_on_hello(struct broker *b, const struct link_peer *peer, const Hearth__Hello *hello);
bool workers_on_died(struct broker *b, uint32_t child, int status);
/* Something was committed: the device works. */
void workers_proved(struct worker *w);

/* SIGKILL by our own watch: counts as a fault. */
void workers_kill(struct broker *b, struct worker *w, const char *why);

void workers_act(struct broker *b);
