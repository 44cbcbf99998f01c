/* The hands' side of an exchange: reading the request, writing the answer. */
#include "clients/gateway/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/gateway/pool.h"
#include "clients/gateway/problem.h"

uint64_t exchange_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void exchange_init_condition(struct exchange *x)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&x->completed, &attributes);
    pthread_condattr_destroy(&attributes);
}

void exchange_unref(struct exchange **xp)
{
    struct exchange *x = *xp;
    *xp = NULL;
    pthread_mutex_lock(&x->lock);
    int refs = --x->refs;
    pthread_mutex_unlock(&x->lock);
    if (refs > 0) {
        return;
    }
    exchange_worked(x); /* nobody answered it: its client left before its turn */
    pthread_mutex_destroy(&x->lock);
    pthread_cond_destroy(&x->completed);
    if (x->body) {
        explicit_bzero(x->body, x->body_len); /* a prompt */
    }
    free(x->body);
    free(x->out);
    free(x->refusal);
    quota_unref(&x->quota);
    free(x);
}

void exchange_leave(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    x->gone = true;
    pthread_cond_broadcast(&x->completed);
    if (x->hand) {
        pool_interrupt(x->hand);
    }
    pthread_mutex_unlock(&x->lock);
}

const char *exchange_id(const struct exchange *x)
{
    return x->id;
}

const char *exchange_wanted_id(const struct exchange *x)
{
    return x->wanted_id[0] ? x->wanted_id : NULL;
}

const char *exchange_last_event(const struct exchange *x, uint64_t *n_events)
{
    *n_events = x->n_events;
    return x->event_id[0] ? x->event_id : NULL;
}

bool exchange_delivered(struct exchange *x)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += SERVER_DELIVER_S;
    pthread_mutex_lock(&x->lock);
    while (x->connection && !x->gone &&
           pthread_cond_timedwait(&x->completed, &x->lock, &until) == 0) {
    }
    bool delivered = !x->connection && x->delivered;
    pthread_mutex_unlock(&x->lock);
    return delivered;
}

const char *exchange_flow(const struct exchange *x)
{
    return x->quota ? x->quota->flow : NULL;
}

void exchange_spend(struct exchange *x, uint32_t n_tokens)
{
    if (x->quota) {
        quota_spend(x->quota, n_tokens, exchange_now_ms());
    }
}

void exchange_worked(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool counts = x->counts;
    x->counts = false;
    pthread_mutex_unlock(&x->lock);
    if (counts) {
        quota_end(x->quota);
    }
}

const char *exchange_rest(const struct exchange *x)
{
    return x->rest;
}

const char *exchange_run(const struct exchange *x)
{
    return server_options_of(x->server)->run;
}

const struct server_options *exchange_options(const struct exchange *x)
{
    return server_options_of(x->server);
}

const char *exchange_body(const struct exchange *x, size_t *len)
{
    *len = x->body_len;
    return x->body ? x->body : "";
}

bool exchange_stopping(struct exchange *x)
{
    return server_stopping(x->server);
}

bool exchange_left(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool left = x->gone;
    pthread_mutex_unlock(&x->lock);
    return left || server_stopping(x->server);
}

void exchange_header(struct exchange *x, const char *name, const char *value)
{
    pthread_mutex_lock(&x->lock);
    if (x->n_headers < EXCHANGE_HEADERS && x->status == 0) {
        snprintf(x->headers[x->n_headers].name, sizeof x->headers[0].name, "%s", name);
        snprintf(x->headers[x->n_headers].value, sizeof x->headers[0].value, "%s", value);
        x->n_headers++;
    }
    pthread_mutex_unlock(&x->lock);
}

/* Appends under the lock; false when nobody reads or there is no room. */
static bool append(struct exchange *x, const void *data, size_t len)
{
    if (x->gone || x->done || len > SERVER_OUT_MAX) {
        return false;
    }
    if (x->out_off == x->out_len) {
        x->out_off = x->out_len = 0;
    }
    if (x->out_len + len > x->out_room) {
        size_t room = 2 * x->out_room + len + 256;
        char *larger = x->out_len - x->out_off + len <= SERVER_OUT_MAX ? realloc(x->out, room)
                                                                       : NULL;
        if (!larger) {
            return false;
        }
        x->out = larger;
        x->out_room = room;
    }
    if (len) { /* an empty answer has no buffer */
        memcpy(x->out + x->out_len, data, len);
    }
    x->out_len += len;
    x->out_ms = exchange_now_ms();
    return true;
}

void exchange_reply(struct exchange *x, unsigned status, const char *type, const void *body,
                    size_t len)
{
    exchange_worked(x);
    pthread_mutex_lock(&x->lock);
    if (x->status == 0) {
        x->status = append(x, body, len) ? status : 500;
        snprintf(x->type, sizeof x->type, "%s", type);
    }
    x->done = true;
    server_ring(x);
    pthread_mutex_unlock(&x->lock);
}

void exchange_reply_json(struct exchange *x, unsigned status, struct json *value)
{
    size_t len;
    const char *text = json_text(value, &len);
    exchange_reply(x, status, "application/json", text, len);
    json_destroy(&value);
}

void exchange_may_stream(struct exchange *x, const char *ping)
{
    pthread_mutex_lock(&x->lock);
    x->may_stream = true;
    x->ping = ping;
    pthread_mutex_unlock(&x->lock);
}

void exchange_stream(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    if (x->status == 0) {
        x->status = 200;
        x->streams = true;
        strcpy(x->type, "text/event-stream");
        x->out_ms = exchange_now_ms();
        server_ring(x);
    }
    pthread_mutex_unlock(&x->lock);
}

bool exchange_streams(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool streams = x->streams;
    pthread_mutex_unlock(&x->lock);
    return streams;
}

int exchange_write(struct exchange *x, const void *data, size_t len)
{
    pthread_mutex_lock(&x->lock);
    bool kept = append(x, data, len);
    if (!kept) {
        x->gone = true; /* it does not read: cut off */
    }
    server_ring(x);
    pthread_mutex_unlock(&x->lock);
    return kept ? 0 : -1;
}

void exchange_close(struct exchange *x)
{
    exchange_worked(x);
    pthread_mutex_lock(&x->lock);
    x->done = true;
    server_ring(x);
    pthread_mutex_unlock(&x->lock);
}
