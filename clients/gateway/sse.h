/* A stream of server-sent events, written by a hand. With an id its events are numbered ("id: ID-1"), and those that the client
 * has already are not sent again. */
#pragma once

#include <stdint.h>

#include "proto/json.h"

#define SSE_PING ": ping\n\n" /* a comment: no client takes it for an event */

struct exchange;

struct sse {
    struct exchange *x;
    char id[33];      /* of the request; empty: events have no ids */
    uint64_t n, skip; /* events so far; those that the client has */
};

/* One event; takes the value. Begins the stream. -1: nobody reads. */
int sse_json(struct sse *s, struct json *take_value);

/* One event that has no number: an error. Takes the value. */
int sse_plain(struct exchange *x, struct json *take_value);

/* The last line of OpenAI's streams, and the end. */
void sse_done(struct exchange *x);
