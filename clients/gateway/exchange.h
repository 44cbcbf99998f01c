/* Inside of an exchange: shared by server.c (the loop's side) and exchange.c (the hands' side). The loop owns the
 * connection; what stands below `lock` is shared under it. */
#pragma once

#include <microhttpd.h>
#include <pthread.h>

#include "clients/gateway/server.h"

#define EXCHANGE_HEADERS 4

struct hand;
struct server;

struct exchange {
    struct server *server;
    const struct route *route;
    struct MHD_Connection *connection;
    int fd;
    char id[40], origin[128], rest[SERVER_PATH_BYTES], method[12], path[SERVER_PATH_BYTES];
    char *body;
    size_t body_len, body_room;
    char wanted_id[33], event_id[33]; /* by Idempotency-Key, by Last-Event-ID; empty: none */
    uint64_t n_events;                /* that the client has of event_id's stream */
    uint64_t swallowed;
    struct quota *quota;     /* its key's, a reference; NULL: none */
    struct problem *refusal; /* owned: known before the body has come */
    uint64_t born_ms;
    bool begun;  /* a hand has it, or waits for it */
    bool queued; /* libmicrohttpd has the answer */
    bool watched;
    struct exchange *next, *prev; /* of the server's list */

    pthread_mutex_t lock;
    int refs;
    struct hand *hand; /* at work on it */
    bool counts;       /* in its quota */
    bool suspended, rung, gone, done;
    bool delivered;           /* all of the answer has gone out, and connection is NULL */
    pthread_cond_t completed; /* connection became NULL */
    struct exchange *next_rung;
    bool may_stream, streams;
    const char *ping;
    unsigned status; /* 0: not known yet */
    char type[64];
    struct {
        char name[40], value[200];
    } headers[EXCHANGE_HEADERS];
    int n_headers;
    char *out;
    size_t out_len, out_off, out_room;
    uint64_t out_ms; /* when something was last written */
};

uint64_t exchange_now_ms(void);
void exchange_init_condition(struct exchange *x);
void exchange_unref(struct exchange **x);
/* The client left: the hand is interrupted. Loop thread. */
void exchange_leave(struct exchange *x);
/* Tells the loop that there is something new; x->lock is held. */
void server_ring(struct exchange *x);
bool server_stopping(const struct server *s);
const struct server_options *server_options_of(const struct server *s);
