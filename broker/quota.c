#include "broker/quota.h"

#include <inttypes.h>

#include "broker/broker.h"

#define SMOOTH 12 /* ends that the interval remembers */

const struct config_limits *quota_limits(const struct broker *b, uid_t uid)
{
    for (uint32_t i = 0; i < b->config.n_users; i++) {
        if (b->config.users[i].uid == uid) {
            return &b->config.users[i].limits;
        }
    }
    return &b->config.limits;
}

uint32_t quota_retry_ms(const struct broker *b, uint32_t n)
{
    uint64_t interval = b->quota.end_interval_ms ? b->quota.end_interval_ms : 1000;
    uint64_t ms = interval * n;
    return ms < QUOTA_RETRY_MIN_MS   ? QUOTA_RETRY_MIN_MS
           : ms > QUOTA_RETRY_MAX_MS ? QUOTA_RETRY_MAX_MS
                                     : (uint32_t)ms;
}

void quota_ended(struct broker *b)
{
    struct quota *q = &b->quota;
    uint64_t since = b->now_ms - q->last_end_ms;
    if (q->last_end_ms) {
        since = since > QUOTA_RETRY_MAX_MS ? QUOTA_RETRY_MAX_MS : since;
        q->end_interval_ms =
            q->end_interval_ms
                ? (uint32_t)(((SMOOTH - 1) * (uint64_t)q->end_interval_ms + since) / SMOOTH)
                : (uint32_t)since;
    }
    q->last_end_ms = b->now_ms;
}

int quota_client(struct broker *b, uid_t uid, struct err *err)
{
    uint32_t most = quota_limits(b, uid)->clients, n = 0;
    for (uint32_t i = 0; i < b->clients.n; i++) {
        const struct client *c = b->clients.list[i];
        n += c->uid == uid && !c->gone && c->state != CLIENT_GREETED;
    }
    return !most || n < most
               ? 0
               : err_set(err, ERR_BUSY, "user %u has %u clients connected, the limit is %u",
                         (unsigned)uid, n, most);
}

static bool waits(const struct request *r)
{
    return !r->gone && !request_ended(r) && r->worker == 0;
}

static int refuse(struct broker *b, uint32_t n_before, uint32_t position, const char *what,
                  uint64_t have, uint64_t most, const struct shard *shard, struct err *err)
{
    b->quota.retry_ms = quota_retry_ms(b, n_before);
    b->quota.position = position;
    return err_set(err, ERR_BUSY,
                   "user %u has %" PRIu64 " %s, the limit is %" PRIu64
                   "; %u requests are before this one, try again in %.1f s",
                   (unsigned)shard->uid, have, what, most, position - 1,
                   b->quota.retry_ms / 1000.0);
}

/* The place that a request of m would get: those that wait for the model, and itself. */
static uint32_t place_of(const struct broker *b, const struct model *m)
{
    uint32_t n = 1;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        n += waits(b->requests.list[i]) && b->requests.list[i]->model == m;
    }
    return n;
}

int quota_request(struct broker *b, const struct shard *shard, const struct model *m,
                  struct err *err)
{
    uint32_t most = quota_limits(b, shard->uid)->waiting, n = 0;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        n += b->requests.list[i]->shard == shard && waits(b->requests.list[i]);
    }
    if (!most || n < most) {
        return 0;
    }
    return refuse(b, n - most + 1, place_of(b, m), "requests waiting", n, most, shard, err);
}

int quota_tokens(struct broker *b, const struct shard *shard, uint64_t n, struct err *err)
{
    uint64_t most = quota_limits(b, shard->uid)->tokens, have = 0;
    uint32_t n_live = 0;
    if (!most) {
        return 0;
    }
    if (n > most) {
        return err_set(err, ERR_NO_FIT,
                       "prompt and answer need %" PRIu64 " tokens, user %u may have %" PRIu64
                       " in flight",
                       n, (unsigned)shard->uid, most);
    }
    for (uint32_t i = 0; i < b->requests.n; i++) {
        const struct request *r = b->requests.list[i];
        if (r->shard == shard && r->admitted && !r->gone && !request_ended(r)) {
            const struct journal_slot *slot = request_slot(r);
            have += slot->n_prompt + slot->params.n_max;
            n_live++;
        }
    }
    return have + n <= most ? 0
                            : refuse(b, 1, n_live + 1, "tokens in flight", have, most, shard, err);
}
