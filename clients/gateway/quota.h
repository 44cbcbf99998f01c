/* What one API key may have: requests at once, tokens in a minute. Also its flow: the broker's fairness counts keys, not
 * connections. Requests that have a hand or wait for one count; tokens count as they come (a prompt when it is admitted, an
 * answer token by token), so a request may overdraw the minute that it began in, and the next one waits until that is made up
 * for. Each call from any thread. Who holds a reference keeps it, also when the configuration has let its key go. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "proto/http_key.h"

struct problem;

struct quota {
    struct http_key key;
    char flow[HTTP_KEY_NAME_BYTES + 4]; /* "key:NAME" */
    atomic_uint refs;
    uint32_t n_hands, n_queued; /* the pool's, under its lock */
    pthread_mutex_t lock;
    uint32_t n_live; /* requests */
    double left;     /* tokens; grows with time up to a minute's; below 0: overdrawn */
    uint64_t at_ms;  /* when `left` was true; CLOCK_MONOTONIC */
};

/* With one reference. NULL: no memory. */
struct quota *quota_create(const struct http_key *key);
struct quota *quota_ref(struct quota *q);
void quota_unref(struct quota **q); /* NULL is fine */

/* One more request: 0, or -1 with a problem (429 that names the limit, and after how long). Each begin has one end. */
int quota_begin(struct quota *q, uint64_t now_ms, struct problem *p);
void quota_end(struct quota *q);

void quota_spend(struct quota *q, uint32_t n_tokens, uint64_t now_ms);
