#include "broker/lend.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>

#include "broker/broker.h"
#include "broker/models_parts.h"
#include "broker/post.h"
#include "proto/log.h"

uint64_t lend_budget(const struct broker *b)
{
    uint64_t budget = b->config.ram_budget;
    return b->lend.bytes < budget ? budget - b->lend.bytes : 0;
}

static void set(struct broker *b, uint64_t bytes, uint64_t until_unix_ms)
{
    struct lend *l = &b->lend;
    models_drop(b, &l->segment);
    l->bytes = bytes;
    l->until_unix_ms = until_unix_ms;
    if (bytes) {
        struct channel_msg create = { .op = CHANNEL_CREATE,
                                      .segment = broker_segment(b),
                                      .bytes = 4096 };
        snprintf(create.tag, sizeof create.tag, "lent %" PRIu64 " %" PRIu64, bytes, until_unix_ms);
        l->segment = create.segment;
        keeper_line_ask(b->keeper, &create, NULL, 0, KEEPER_NOTHING, 0, 0);
    }
    broker_alarm(b, b->now_ms);
}

bool lend_adopt(struct broker *b, uint64_t segment, const char *tag)
{
    struct lend *l = &b->lend;
    if (l->segment || sscanf(tag, "lent %" SCNu64 " %" SCNu64, &l->bytes, &l->until_unix_ms) != 2) {
        return false;
    }
    l->segment = segment;
    return true;
}

void lend_ask(struct broker *b, const struct post_to *to, const Hearth__Yield *ask)
{
    struct lend *l = &b->lend;
    struct err err = { 0 };
    bool all = ask->has_all && ask->all;
    uint64_t bytes = all ? UINT64_MAX : ask->has_bytes ? ask->bytes : 0;
    if (l->n_asks == LEND_ASKS_MAX) {
        err_set(&err, ERR_BUSY, "%d wait for memory already", LEND_ASKS_MAX);
        post_failed(b, to, NULL, &err);
        return;
    }
    if (bytes != l->bytes || (ask->has_for_s && ask->for_s)) {
        uint64_t until = ask->has_for_s && ask->for_s && bytes
                             ? broker_unix_ms() + ask->for_s * 1000ull
                             : 0;
        log_info(bytes ? "memory is lent: %.1f MiB are left for models"
                       : "memory is taken back: %.1f MiB for models",
                 (double)(bytes < b->config.ram_budget ? b->config.ram_budget - bytes : 0) /
                     0x1p20);
        set(b, bytes, until);
    }
    l->asks[l->n_asks++] = (struct lend_ask){ to->peer, to->has_cookie, to->cookie };
}

/* Who goes first: who is not wanted, then who is not pinned, then the least recently used. */
static struct model *choose(struct broker *b)
{
    struct model *victim = NULL;
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        if ((m->state != MODEL_WARM && m->state != MODEL_RESIDENT) || m->unload) {
            continue;
        }
        unsigned rank = 2u * m->pinned + m->want_warm;
        unsigned best = victim ? 2u * victim->pinned + victim->want_warm : 4;
        if (rank < best || (rank == best && m->used_ms < victim->used_ms)) {
            victim = m;
        }
    }
    return victim;
}

/* Somebody is on the way out; a load that has no room any more is ended. */
static bool is_leaving(struct broker *b)
{
    bool leaving = false;
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        leaving |= m->state == MODEL_DRAINING || (m->unload && m->segment);
        if (m->state == MODEL_LOADING) {
            models_kill(b, m->loader, SIGKILL);
            leaving = true;
        }
    }
    return leaving;
}

void lend_act(struct broker *b)
{
    struct lend *l = &b->lend;
    if (l->bytes && l->until_unix_ms) {
        uint64_t now = broker_unix_ms();
        if (now >= l->until_unix_ms) {
            log_info("the time is over: lent memory is taken back");
            set(b, 0, 0);
        } else {
            broker_alarm(b, b->now_ms + (l->until_unix_ms - now));
        }
    }
    bool over = l->bytes && swap_used(b) > lend_budget(b);
    if (over && !is_leaving(b)) {
        struct model *victim = choose(b);
        if (victim) {
            models_evict(b, victim, false, "its memory is lent to another application");
            broker_alarm(b, b->now_ms);
        }
    }
    if (over) {
        return;
    }
    while (l->n_asks > 0) {
        const struct lend_ask *a = &l->asks[--l->n_asks];
        struct post_to to = { a->peer, a->has_cookie, a->cookie };
        char text[64];
        uint64_t left = lend_budget(b);
        snprintf(text, sizeof text, "%" PRIu64 " of %" PRIu64, left, b->config.ram_budget);
        post_done(b, &to, text);
    }
}
