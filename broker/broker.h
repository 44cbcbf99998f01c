/* The broker: decides who gets what, when; the one address that clients know. One process, one thread, one loop.
 * This is the table of everything that its files share; each part's header says what it is. No file of this room keeps
 * state of its own, so a test builds a struct broker and drives one part of it.
 *
 * A turn of the loop: wait; drain each source up to a bound (keeper, ZeroMQ, attach lines); then act, in a fixed order:
 * texts, evaluations, models, kept weights, workers, watch, requests, route. Events only change tables; what to do about them is decided by
 * the acting functions from the tables alone, every turn anew. So nothing can be forgotten when an event is lost. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "broker/catalog.h"
#include "broker/clients.h"
#include "broker/config.h"
#include "broker/evals.h"
#include "broker/gateway.h"
#include "broker/keeper_line.h"
#include "broker/lend.h"
#include "broker/models.h"
#include "broker/parks.h"
#include "broker/queue.h"
#include "broker/quota.h"
#include "broker/records.h"
#include "broker/request.h"
#include "broker/shards.h"
#include "broker/texts.h"
#include "broker/watch.h"
#include "broker/workers.h"
#include "proto/heritage.h"
#include "proto/link.h"
#include "proto/message.h"

struct broker {
    struct heritage heritage;
    int argc;
    char **argv; /* borrowed; read again on SIGHUP */
    struct config config;
    struct catalog catalog;
    struct keeper_line *keeper;
    struct link *link; /* NULL in tests: what would be said is only counted */
    uint64_t n_said;   /* messages out */
    uint64_t n_bad;    /* frames that were not understood */

    uint64_t now_ms;   /* CLOCK_MONOTONIC, read once a turn */
    uint64_t alarm_ms; /* when the next turn must come at the latest */
    uint64_t born_ms;
    uint64_t last_serial;  /* numbers of requests, works and evaluations */
    uint64_t last_segment; /* under this epoch */
    uint64_t last_admit;   /* order of admission */

    struct shards shards;
    struct clients clients;
    struct requests requests;
    struct queue queue;
    struct quota quota;
    struct models models;
    struct parks parks;
    struct lend lend;
    struct workers workers;
    struct gateway gateway;
    struct texts texts;
    struct evals evals;
    struct records records;

    bool listed;      /* the keeper told what it holds: recovered */
    bool ready;       /* and a worker said Hello */
    bool stopping;    /* TERM came */
    struct err fatal; /* why the loop must end, if so */

    struct message_arena arena; /* of the message being handled */
    uint8_t out[LIMIT_ENVELOPE_BYTES];
};

/* Opens everything from what main read: catalog, lines, journal directory. b is zeroed but for heritage, argv, config. */
int broker_open(struct broker *b, struct err *err);
void broker_close(struct broker *b);

/* Runs until TERM or until the keeper is gone; the exit code. */
int broker_loop(struct broker *b, int signal_fd);

/* The acting half of a turn, for tests too. */
void broker_act(struct broker *b);

/* The reading half for the keeper's line: at most a bound of messages. */
void broker_drain_keeper(struct broker *b);

/* The next turn comes at the latest then. */
void broker_alarm(struct broker *b, uint64_t at_ms);

/* New numbers. */
uint64_t broker_serial(struct broker *b);
uint64_t broker_segment(struct broker *b);

/* Milliseconds since 1970: for what outlives a boot's clock. */
uint64_t broker_unix_ms(void);

/* Random bytes; never fails (the kernel's generator is ready long before us). */
void broker_random(void *out, size_t n);

/* 64-bit digest of bytes, continued from `seed` (FNV-1a): names and bodies, not a defence. */
uint64_t broker_digest(uint64_t seed, const void *data, size_t n);
