/* Names of requests, streams' events and calls. A request's id is libhearth's, 128 bits as hex; everything else is a function of
 * it, so that an answer picked up again is the same to the byte. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define IDS_KEY_BYTES   255 /* of an Idempotency-Key */
#define IDS_EVENT_BYTES 56  /* "ID-NUMBER" and its NUL */

/* The request that an Idempotency-Key of this owner (his Authorization) names. */
void ids_of_key(const char *owner, const char *key, char id[33]);

/* Answer i of several to one request; the first keeps the id. */
void ids_of_choice(const char *id, size_t i, char out[33]);

/* "call_...", for call `call` of answer `choice`. */
void ids_of_call(const char *id, size_t choice, size_t call, char out[32]);

/* "ID-NUMBER", as events have it. -1: it is none. */
int ids_read_event(const char *text, char id[33], uint64_t *number);
