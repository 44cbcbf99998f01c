#include "broker/keeps.h"

#include <inttypes.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "proto/log.h"

static struct keep *find(struct worker *w, uint64_t segment)
{
    for (uint32_t i = 0; i < w->keeps.n; i++) {
        if (w->keeps.list[i].segment == segment) {
            return &w->keeps.list[i];
        }
    }
    return NULL;
}

/* The row of a segment, made when it is new; NULL when there is no room. */
static struct keep *note(struct worker *w, uint64_t segment)
{
    struct keep *k = find(w, segment);
    if (!k && w->keeps.n < KEEPS_MAX) {
        k = &w->keeps.list[w->keeps.n++];
        *k = (struct keep){ .segment = segment };
    }
    return k;
}

void keeps_on_hello(struct broker *b, struct worker *w, const Hearth__Hello *hello)
{
    w->keeps.able = hello->has_keeps && hello->keeps;
    w->keeps.unknown = false;
    for (uint32_t i = 0; i < w->keeps.n; i++) { /* what was said went to another socket */
        w->keeps.list[i].told = w->keeps.list[i].asked = false;
    }
    for (size_t i = 0; i < hello->n_kept && w->keeps.able; i++) {
        note(w, hello->kept[i]);
    }
    broker_alarm(b, b->now_ms);
}

void keeps_on_forgot(struct broker *b, struct worker *w, uint64_t segment)
{
    struct keep *k = find(w, segment);
    if (k) {
        *k = w->keeps.list[--w->keeps.n];
        broker_alarm(b, b->now_ms);
    }
}

void keeps_on_bind(struct worker *w, uint64_t segment)
{
    if (w->keeps.able) {
        note(w, segment);
    }
}

bool keeps_has(const struct worker *w, uint64_t segment)
{
    for (uint32_t i = 0; i < w->keeps.n; i++) {
        if (w->keeps.list[i].segment == segment) {
            return true;
        }
    }
    return false;
}

bool keeps_held(const struct broker *b, uint64_t segment)
{
    bool held = false;
    for (uint32_t i = 0; i < b->workers.n; i++) {
        held |= b->workers.list[i].keeps.unknown || keeps_has(&b->workers.list[i], segment);
    }
    return held;
}

static void ask_back(struct broker *b, struct worker *w, struct keep *k)
{
    Hearth__WorkerForget forget = HEARTH__WORKER_FORGET__INIT;
    forget.segment = k->segment;
    if (k->asked || w->state != WORKER_READY) {
        return;
    }
    if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_FORGET, &forget) == 0) {
        k->asked = true;
        k->quiet_ms = 0;
    } else {
        broker_alarm(b, b->now_ms + 10);
    }
}

bool keeps_let_go(struct broker *b, uint64_t segment)
{
    for (uint32_t i = 0; i < b->workers.n; i++) {
        struct worker *w = &b->workers.list[i];
        struct keep *k = find(w, segment);
        if (k) {
            ask_back(b, w, k);
        }
    }
    return !keeps_held(b, segment);
}

bool keeps_hung(struct broker *b, struct worker *w, uint64_t ms, bool *waits)
{
    bool hung = false;
    for (uint32_t i = 0; i < w->keeps.n; i++) {
        struct keep *k = &w->keeps.list[i];
        if (!k->asked) {
            continue;
        }
        uint64_t bytes = 0;
        for (uint32_t j = 0; j < b->models.n; j++) {
            const struct model *m = b->models.list[j];
            bytes = m->segment == k->segment ? m->segment_bytes : bytes;
        }
        k->quiet_ms += ms;
        hung |= k->quiet_ms > WATCH_BIND_MS + bytes / WATCH_BIND_RATE;
        *waits = true;
    }
    return hung;
}

/* A model's weights, or what one of its binds still stands on. */
static bool is_wanted(const struct broker *b, const struct worker *w, uint64_t segment)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        bool bound = m->worker == w->child && m->bind != BIND_NONE && m->bind_segment == segment;
        if (m->segment == segment || bound) {
            return true;
        }
    }
    return false;
}

/* The worker may register the weights with its device before anybody binds them. One that is about to bind them does so first:
 * the answer waits for the upload, not for the registration. */
static void hint(struct broker *b, const struct model *m)
{
    struct worker *w = workers_for(b, m);
    if (!w || !w->keeps.able) {
        return;
    }
    struct keep *k = find(w, m->segment);
    if (k && (k->told || k->asked)) {
        return;
    }
    workers_grant(b, w, m->segment, false, false);
    if (!workers_granted(w, m->segment)) {
        return;
    }
    Hearth__WorkerKeep keep = HEARTH__WORKER_KEEP__INIT;
    keep.segment = m->segment;
    k = note(w, m->segment);
    if (k && post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_KEEP, &keep) == 0) {
        k->told = true;
    }
}

void keeps_act(struct broker *b)
{
    for (uint32_t i = 0; i < b->models.n && !b->stopping; i++) {
        const struct model *m = b->models.list[i];
        if (m->state == MODEL_WARM && m->bind == BIND_NONE && !m->unload && !m->window.on) {
            hint(b, m);
        }
    }
    for (uint32_t i = 0; i < b->workers.n; i++) {
        struct worker *w = &b->workers.list[i];
        for (uint32_t j = 0; j < w->keeps.n; j++) {
            if (!is_wanted(b, w, w->keeps.list[j].segment)) {
                ask_back(b, w, &w->keeps.list[j]);
            }
        }
    }
}
