#include "clients/gateway/quota.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "clients/gateway/problem.h"

#define MINUTE_MS 60000.0

struct quota *quota_create(const struct http_key *key)
{
    struct quota *q = calloc(1, sizeof *q);
    if (q) {
        q->key = *key;
        q->left = key->tokens_per_minute;
        atomic_init(&q->refs, 1);
        snprintf(q->flow, sizeof q->flow, "key:%s", key->name);
        pthread_mutex_init(&q->lock, NULL);
    }
    return q;
}

struct quota *quota_ref(struct quota *q)
{
    atomic_fetch_add(&q->refs, 1);
    return q;
}

void quota_unref(struct quota **qp)
{
    struct quota *q = *qp;
    *qp = NULL;
    if (q && atomic_fetch_sub(&q->refs, 1) == 1) {
        pthread_mutex_destroy(&q->lock);
        free(q);
    }
}

/* What time has brought since; the lock is held. */
static void refill(struct quota *q, uint64_t now_ms)
{
    double most = q->key.tokens_per_minute;
    if (now_ms > q->at_ms) {
        q->left += (double)(now_ms - q->at_ms) * most / MINUTE_MS;
        q->left = q->left > most ? most : q->left;
        q->at_ms = now_ms;
    }
}

int quota_begin(struct quota *q, uint64_t now_ms, struct problem *p)
{
    const struct http_key *key = &q->key;
    int result = 0;
    pthread_mutex_lock(&q->lock);
    refill(q, now_ms);
    if (key->requests && q->n_live >= key->requests) {
        result = problem_set(p, 429, NULL, "key_requests_limit",
                             "key %s has %u requests at once, its limit is %u", key->name,
                             q->n_live, key->requests);
    } else if (key->tokens_per_minute && q->left < 1) {
        double wait_ms = (1 - q->left) * MINUTE_MS / key->tokens_per_minute;
        result = problem_set(p, 429, NULL, "key_tokens_limit",
                             "key %s has had its %u tokens of this minute, again in %.1f s",
                             key->name, key->tokens_per_minute, wait_ms / 1e3);
        p->retry_s = (unsigned)(wait_ms / 1e3) + 1;
    } else {
        q->n_live++;
    }
    pthread_mutex_unlock(&q->lock);
    return result;
}

void quota_end(struct quota *q)
{
    pthread_mutex_lock(&q->lock);
    assert(q->n_live > 0);
    q->n_live--;
    pthread_mutex_unlock(&q->lock);
}

void quota_spend(struct quota *q, uint32_t n_tokens, uint64_t now_ms)
{
    pthread_mutex_lock(&q->lock);
    refill(q, now_ms);
    q->left -= q->key.tokens_per_minute ? n_tokens : 0;
    pthread_mutex_unlock(&q->lock);
}
