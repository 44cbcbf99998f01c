/* What a model is wanted for, and the next thing to be done with it: looked up in the tables every turn (broker/README.md). */
#include "broker/models_parts.h"

#include <stdio.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "broker/route.h"
#include "proto/log.h"

static void wish(struct broker *b, struct model *m)
{
    m->want_warm = m->want_resident = m->pinned || m->swap.come_back;
    m->n_waiting = m->n_running = 0;
    m->oldest_ms = 0;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        const struct request *r = b->requests.list[i];
        if (r->model != m || r->gone || request_ended(r)) {
            continue;
        }
        m->want_resident = true;
        m->n_running += r->worker != 0;
        m->n_waiting += r->worker == 0;
        if (r->worker == 0 && (m->oldest_ms == 0 || r->born_ms < m->oldest_ms)) {
            m->oldest_ms = r->born_ms;
        }
    }
    uint32_t evals = evals_waiting(b, m, &m->oldest_ms);
    m->n_waiting += evals - evals_running(b, m);
    m->n_running += evals_running(b, m);
    m->want_resident |= evals > 0;
    uint32_t texts = texts_waiting(b, m);
    m->want_warm |= texts > 0;
    for (uint32_t i = 0; i < b->models.n_asks; i++) {
        const struct models_ask *a = &b->models.asks[i];
        if (a->model == m) {
            m->want_warm = true;
            m->want_resident |= a->resident;
            m->n_waiting++;
            if (m->oldest_ms == 0 || a->born_ms < m->oldest_ms) {
                m->oldest_ms = a->born_ms;
            }
        }
    }
    m->want_warm |= m->want_resident;
    m->want_resident |= m->want_warm && m->window.on; /* there is no other way to have it */
    if (texts && m->n_waiting == 0) {
        m->n_waiting = texts;
        m->oldest_ms = m->oldest_ms ? m->oldest_ms : b->now_ms;
    }
    if (m->want_warm) {
        m->used_ms = b->now_ms;
    }
}

/* State pages of a load that was to begin again at once. */
static void drop_kept_state(struct broker *b, struct model *m)
{
    models_drop(b, &m->state_segment);
    m->state_made = false;
}

static void act_cold(struct broker *b, struct model *m)
{
    struct err err = { 0 };
    m->unload = false;
    if (m->loader_spawning || m->loader) {
        return; /* a loader of the last attempt must be reaped first */
    }
    if (!m->want_warm || b->stopping) {
        drop_kept_state(b, m);
        return;
    }
    if (b->now_ms < m->next_load_ms) {
        broker_alarm(b, m->next_load_ms);
        return;
    }
    /* What the file is now: it may be another than the one that was asked for. */
    struct catalog_file now;
    if (catalog_stat(m->file.path, &now, &err) < 0) {
        m->error = err;
        m->pinned = false;
        models_fail_waiting(b, m, &err);
        swap_failed(b, m);
        return;
    }
    snprintf(now.name, sizeof now.name, "%s", m->file.name);
    if (!catalog_unchanged(&m->file, &now)) {
        m->info = (struct model_info){ 0 };
        m->state_want = m->ctx_want = 0;
        m->digest = 0;
    }
    m->file = now;
    int room = swap_load_room(b, m, &err);
    if (room <= 0) {
        drop_kept_state(b, m); /* what waits holds no memory */
    }
    if (room < 0) {
        m->error = err;
        log_error("%s", err.text);
        m->pinned = false;
        models_fail_waiting(b, m, &err);
        swap_failed(b, m);
    } else if (room > 0) {
        models_start_load(b, m);
    }
}

static void act_text(struct broker *b, struct model *m)
{
    struct model_text *t = &m->text;
    if (t->failed.code != ERR_NONE) {
        texts_fail(b, m, &t->failed);
        return;
    }
    if (t->child || t->spawning || !m->segment || !m->header || b->stopping) {
        return;
    }
    if (b->now_ms < t->next_ms) {
        broker_alarm(b, t->next_ms);
        return;
    }
    models_start_text(b, m);
}

static void act_bind(struct broker *b, struct model *m)
{
    struct worker *w = m->worker ? workers_find(&b->workers, m->worker) : workers_for(b, m);
    if (!w || w->state != WORKER_READY) {
        return; /* when it is ready, a turn comes */
    }
    if (m->bind == BIND_NONE && m->want_resident && !m->unload && swap_bind_room(b, m)) {
        m->worker = w->child;
        workers_grant(b, w, m->segment, false, false);
        if (m->window.on) {
            workers_grant(b, w, m->window.segment, true, false);
        }
        if (workers_granted(w, m->segment) &&
            (!m->window.on || workers_granted(w, m->window.segment))) {
            models_say_bind(b, m, w);
        }
    } else if (m->bind == BIND_NEEDS && m->state_made && workers_granted(w, m->state_segment)) {
        Hearth__WorkerState state = HEARTH__WORKER_STATE__INIT;
        state.model = m->number;
        state.segment = m->state_segment;
        state.fresh = m->state_fresh;
        if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_STATE, &state) == 0) {
            m->bind = BIND_STATE;
        } else {
            broker_alarm(b, b->now_ms + 10);
        }
    }
}

/* The weights that the worker has bound are gone: their loader died, or the last broker's did. */
static void act_orphan(struct broker *b, struct model *m)
{
    struct worker *w = workers_find(&b->workers, m->worker);
    if (m->bind == BIND_NONE || m->bind == BIND_LEAVING || m->bind_segment == m->segment || !w) {
        return;
    }
    Hearth__WorkerUnbind unbind = HEARTH__WORKER_UNBIND__INIT;
    unbind.model = m->number;
    if (w->state == WORKER_READY &&
        post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_UNBIND, &unbind) == 0) {
        m->bind = BIND_LEAVING;
    } else {
        broker_alarm(b, b->now_ms + 10);
    }
}

static void act_draining(struct broker *b, struct model *m)
{
    bool idle = evals_running(b, m) == 0;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->model == m && r->worker && !r->gone) {
            idle = false;
            route_release(b, r, "its model is leaving");
        }
    }
    struct worker *w = workers_find(&b->workers, m->worker);
    if (idle && m->bind == BIND_BOUND && w && w->state == WORKER_READY && !parks_holds(b, m)) {
        Hearth__WorkerUnbind unbind = HEARTH__WORKER_UNBIND__INIT;
        unbind.model = m->number;
        if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_UNBIND, &unbind) == 0) {
            m->bind = BIND_LEAVING;
        }
    }
    if (m->bind == BIND_NONE && swap_keeps_weights(b, m)) {
        models_drop(b, &m->state_segment);
        m->state_made = m->unload = false;
        swap_left(m);
        models_move(m, MODEL_WARM, "its state makes room, its weights stay");
        broker_alarm(b, b->now_ms);
    } else if (m->bind == BIND_NONE && keeps_let_go(b, m->segment)) {
        models_forget(b, m, false, "nobody uses it any more");
        broker_alarm(b, b->now_ms);
    }
}

static void act_one(struct broker *b, struct model *m)
{
    uint64_t ttl_ms = (uint64_t)m->ttl_s * 1000;
    if (m->check.stale_ms) {
        uint64_t until = m->check.stale_ms + (uint64_t)b->config.swap_wait_max_s * 1000;
        bool idle = m->n_running + m->n_waiting == 0;
        if (m->state != MODEL_COLD && (idle || b->now_ms >= until)) {
            m->unload = true;
            m->info.known = m->text.ready = false; /* who comes now is the new one's */
        }
        m->check.stale_ms = m->unload || m->state == MODEL_COLD ? 0 : m->check.stale_ms;
        broker_alarm(b, until);
    }
    bool there = m->state == MODEL_WARM || m->state == MODEL_RESIDENT;
    if (ttl_ms && there && !m->pinned && !m->unload && !m->want_warm) {
        if (b->now_ms >= m->used_ms + ttl_ms) {
            models_evict(b, m, false, "nobody wanted it for a while");
        } else {
            broker_alarm(b, m->used_ms + ttl_ms);
        }
    }
    act_orphan(b, m);
    if (window_act(b, m)) {
        return;
    }
    switch (m->state) {
    case MODEL_COLD:
        act_cold(b, m);
        if (m->state == MODEL_COLD) {
            return;
        }
        break;
    case MODEL_LOADING:
        if (m->header && !m->adopting) {
            act_bind(b, m); /* it computes behind the reads */
        }
        break;
    case MODEL_WARM:
        if (m->unload && m->bind == BIND_NONE) {
            if (keeps_let_go(b, m->segment)) {
                models_forget(b, m, false, "it is unloaded");
                broker_alarm(b, b->now_ms);
            }
            return;
        }
        if (m->bind == BIND_BOUND) {
            /* It was bound while it was read, or before the keeper gave the segment that the last broker left. */
            models_move(m, MODEL_RESIDENT, "the worker has it");
            swap_arrived(b, m);
            break;
        }
        act_bind(b, m);
        break;
    case MODEL_RESIDENT:
        if (m->unload) {
            models_move(m, MODEL_DRAINING, "it is unloaded");
            act_draining(b, m);
        }
        break;
    case MODEL_DRAINING:
        act_draining(b, m);
        break;
    default:
        assert(!"model: no such state");
    }
    if (m->state != MODEL_COLD) {
        act_text(b, m);
        models_answer_asks(b, m, NULL);
    }
}

void models_act(struct broker *b)
{
    struct err down;
    bool all_down = workers_all_down(&b->workers, &down);
    for (uint32_t i = 0; i < b->models.n; i++) {
        wish(b, b->models.list[i]);
        if (all_down && b->models.list[i]->want_resident) {
            models_fail_waiting(b, b->models.list[i], &down);
        }
    }
    swap_begin(b);
    for (uint32_t i = 0; i < b->models.n; i++) {
        act_one(b, b->models.list[i]);
    }
}
