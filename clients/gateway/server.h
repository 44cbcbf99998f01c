/* HTTP in and out: listening, limits, one exchange for each request. libmicrohttpd is used here and nowhere else, in its
 * external epoll mode: one loop thread owns every connection. What a request means is found out by a hand of a pool
 * (pool.h), because libhearth's calls wait; a hand writes its answer into the exchange and rings the loop, which never waits.
 *
 * A client that leaves is seen by a watch of our own on its socket (EPOLLRDHUP), since libmicrohttpd does not look at a
 * connection that waits for us: the hand is interrupted and its request cancelled. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/gateway/guard.h"
#include "proto/err.h"
#include "proto/json.h"

#define SERVER_BODY_MAX (16u << 20) /* bytes of one request; beyond it is 413 */
#define SERVER_SWALLOW_MAX                                                                         \
    (64u << 20) /* read and thrown away, so that the 413 arrives; beyond it the line is cut */
#define SERVER_HEADER_BYTES                                                                        \
    (32u << 10) /* request line and headers; also libmicrohttpd's memory for a connection */
#define SERVER_CONNECTIONS 1100 /* 1,000 idle ones and some at work */
#define SERVER_IDLE_S      75   /* a connection that says nothing */
#define SERVER_BODY_S      120  /* a body has this long to arrive */
#define SERVER_OUT_MAX                                                                             \
    (32u << 20) /* written and not fetched: a client that does not read is cut off */
#define SERVER_PATH_BYTES 1024
#define SERVER_STREAM_AFTER_MS                                                                     \
    5000 /* a stream that still waits (a model loads) begins by then, with pings */
#define SERVER_PING_MS 8000 /* silence on a stream before a ping; clients count 10 s and more */
#define SERVER_DELIVER_S                                                                           \
    2 /* an answer that ended has so long to go out before its request is left to expire */
#define SERVER_STOP_MS 1000 /* answers in flight are told at the end, within this */

struct exchange;
struct hearth;

/* What a hand does with an exchange: it must end in exchange_reply or exchange_close. */
typedef void exchange_handler(struct exchange *x, struct hearth *h);

struct route {
    const char *method;
    const char *path; /* without /v1; with a trailing slash: the rest is the handler's */
    exchange_handler *handler;
    bool quick;  /* by the few hands that never wait for a model */
    bool no_key; /* answered without a key */
};

struct server_options {
    int listen_fd;   /* taken */
    int channel_fd;  /* the keeper's, its end is our end; -1: none */
    const char *run; /* the runtime directory, borrowed */
    const struct route *routes;
    size_t n_routes;
    struct guard *guard; /* borrowed */
    bool lenient;        /* fields that are not done are passed over, and named in a header */
    bool reasoning_content, reasoning; /* the names under which thoughts come */
};

/* Serves until SIGTERM or the keeper's end. Returns 0, or -1 when it could not begin. */
int server_run(const struct server_options *options, struct err *err);

/* ---- for hands ---- */

const char *exchange_id(const struct exchange *x); /* as x-request-id has it */
/* The id that this request must have because of its Idempotency-Key; NULL: none. 32 hex digits. */
const char *exchange_wanted_id(const struct exchange *x);
/* The request whose stream the client had up to event *n_events (Last-Event-ID); NULL: none. */
const char *exchange_last_event(const struct exchange *x, uint64_t *n_events);
/* How requests are read and answers written. */
const struct server_options *exchange_options(const struct exchange *x);
/* Whose fairness it counts for: its key's; NULL: no key was wanted. */
const char *exchange_flow(const struct exchange *x);
/* So many tokens more for it, of its key's quota. */
void exchange_spend(struct exchange *x, uint32_t n_tokens);
/* No more work for it: its place in its key's quota is free, before its client can know. The answer's end does it, too. */
void exchange_worked(struct exchange *x);
/* Waits until the answer, which has ended, went out to the client; false when it did not. */
bool exchange_delivered(struct exchange *x);
const char *exchange_rest(const struct exchange *x); /* of a route with a trailing slash */
const char *exchange_body(const struct exchange *x, size_t *len);
const char *exchange_run(const struct exchange *x);

/* The client left, or hearth stops: nobody reads an answer any more. */
bool exchange_left(struct exchange *x);
bool exchange_stopping(struct exchange *x);

/* A header of the answer, before it begins; both are copied. At most 4. */
void exchange_header(struct exchange *x, const char *name, const char *value);

/* The whole answer. body is copied. */
void exchange_reply(struct exchange *x, unsigned status, const char *type, const void *body,
                    size_t len);
/* Takes the value. */
void exchange_reply_json(struct exchange *x, unsigned status, struct json *take_value);

/* A stream of events may be this request's answer, from now on by itself when it takes long; ping is what keeps it alive,
 * borrowed for ever. */
void exchange_may_stream(struct exchange *x, const char *ping);
/* Begins it now, if it has not. */
void exchange_stream(struct exchange *x);
bool exchange_streams(struct exchange *x);
/* -1: nobody reads. */
int exchange_write(struct exchange *x, const void *data, size_t len);
void exchange_close(struct exchange *x);
