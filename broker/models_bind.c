/* A model goes to the device and comes back: binding, state, unbinding, the death of its worker. */
#include "broker/models_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "proto/log.h"

static void bind_failed(struct broker *b, struct model *m, const struct err *why)
{
    m->bind = BIND_NONE;
    m->worker = 0;
    parks_unbound(b, m);
    m->next_bind_ms = b->now_ms + WORKERS_BACKOFF_MAX;
    m->error = *why;
    models_drop(b, &m->state_segment);
    m->state_made = false;
    log_error("model %s: %s", m->file.name, why->text);
    if (m->state == MODEL_RESIDENT) {
        models_move(m, MODEL_WARM, "the worker cannot use it any more");
    }
    m->pinned = false;
    m->unload = why->code == ERR_UNSUPPORTED || why->code == ERR_BAD_FILE; /* it will never do */
    models_fail_waiting(b, m, why);
    swap_left(m);
    swap_failed(b, m);
    m->next_bind_ms = b->now_ms; /* who comes now may try anew */
}

/* It does not fit beside others: nothing of it was taken yet, and it waits until they have left. */
static void bind_later(struct broker *b, struct model *m, const struct err *why)
{
    log_info("model %s: waits until its device is free: %s", m->file.name, why->text);
    m->bind = BIND_NONE;
    m->worker = 0;
    m->bind_segment = 0;
    parks_unbound(b, m);
    models_drop(b, &m->state_segment);
    m->state_made = false;
    broker_alarm(b, b->now_ms);
}

/* Its context was cut for want of room, and nobody was admitted to it: this time there may be more. */
static bool may_grow(const struct broker *b, const struct model *m)
{
    for (uint32_t i = 0; i < b->requests.n; i++) {
        const struct request *r = b->requests.list[i];
        if (r->model == m && r->admitted && !request_ended(r)) {
            return false;
        }
    }
    return !m->state_segment && m->info.ctx < (b->config.ctx ? b->config.ctx : m->info.ctx_train);
}

void models_say_bind(struct broker *b, struct model *m, struct worker *w)
{
    Hearth__WorkerBind bind = HEARTH__WORKER_BIND__INIT;
    bind.model = m->number;
    bind.segment = m->segment;
    bind.name = message_str(m->file.name);
    bind.has_ctx = true;
    bind.ctx = b->config.ctx && b->config.ctx < m->ctx_want ? m->ctx_want : b->config.ctx;
    bind.has_kv_k = bind.has_kv_v = true;
    bind.kv_k = message_str(m->kv_k);
    bind.kv_v = message_str(m->kv_v);
    bind.has_n_sequences = true;
    bind.n_sequences = b->config.sequences;
    uint64_t promised = swap_state_bytes(b, m), available = models_available(&b->models) / 2;
    promised = promised < available ? promised : available;
    bool grows = m->info.known && promised > m->state_want && may_grow(b, m);
    bind.has_state_bytes_max = true;
    bind.state_bytes_max = m->state_segment          ? m->state_bytes
                           : m->state_want && !grows ? m->state_want
                                                     : promised;
    if (grows) {
        m->info.golden[0] = 0; /* a longer context may turn its positions otherwise */
    } else if (m->info.known) {
        bind.ctx = m->info.ctx; /* requests were admitted to this context: it is not cut later */
        bind.has_golden = m->info.golden[0] != 0;
        bind.golden = message_str(m->info.golden);
    }
    bind.has_uploaded = m->window.segment != 0;
    bind.uploaded = m->window.segment;
    if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_BIND, &bind) == 0) {
        m->bind = BIND_ASKED;
        m->bind_segment = m->segment;
        keeps_on_bind(w, m->segment);
    } else {
        broker_alarm(b, b->now_ms + 10);
    }
}

void models_on_need(struct broker *b, uint32_t child, const Hearth__WorkerNeed *need)
{
    struct model *m = models_find_number(&b->models, need->model);
    if (!m || m->worker != child || (m->bind != BIND_ASKED && m->bind != BIND_NEEDS)) {
        return;
    }
    char fingerprint[MODELS_FINGERPRINT];
    bool whole = message_copy(fingerprint, sizeof fingerprint, need->fingerprint);
    m->spilled_bytes = need->has_spilled_bytes ? need->spilled_bytes : 0;
    m->bind = BIND_NEEDS;
    if (m->state_segment && m->state_made && whole && m->state_bytes == need->state_bytes &&
        strcmp(fingerprint, m->fingerprint) == 0) {
        m->state_fresh = false; /* the dead worker's, trusted */
    } else {
        uint64_t available = models_available(&b->models);
        models_drop(b, &m->state_segment);
        m->state_made = false;
        if (need->state_bytes > available) {
            struct err why;
            err_set(&why, ERR_NO_FIT,
                    "model %s needs %.1f MiB for its state, %.1f MiB are "
                    "available; a smaller ctx or fewer sequences need less",
                    m->file.name, (double)need->state_bytes / 0x1p20, (double)available / 0x1p20);
            bind_failed(b, m, &why);
            return;
        }
        struct channel_msg create = { .op = CHANNEL_CREATE,
                                      .segment = broker_segment(b),
                                      .bytes = need->state_bytes,
                                      .flags = CHANNEL_SPARSE };
        strcpy(m->fingerprint, fingerprint);
        snprintf(create.tag, sizeof create.tag, "state %016" PRIx64 " %s", m->number,
                 m->fingerprint);
        m->state_segment = create.segment;
        m->state_bytes = m->state_want = need->state_bytes;
        m->state_fresh = true;
        keeper_line_ask(b->keeper, &create, NULL, 0, KEEPER_CREATE_STATE, m->number,
                        create.segment);
    }
    struct worker *w = workers_find(&b->workers, child);
    if (w) {
        workers_grant(b, w, m->state_segment, true, false);
    }
}

void models_on_state(struct broker *b, uint64_t number, uint64_t segment, const struct err *err)
{
    struct model *m = models_find_number(&b->models, number);
    if (!m || m->state_segment != segment) {
        return;
    }
    if (err->code == ERR_NONE) {
        m->state_made = true;
        return;
    }
    struct err why = *err;
    err_wrap(&why, "state of model %s", m->file.name);
    bind_failed(b, m, &why);
}

void models_on_bound(struct broker *b, uint32_t child, const Hearth__WorkerBound *bound)
{
    struct model *m = models_find_number(&b->models, bound->model);
    if (!m || m->worker != child || m->bind == BIND_LEAVING || m->bind_segment != m->segment ||
        (bound->has_segment && bound->segment != m->segment)) {
        return;
    }
    if (bound->has_code && bound->code.len && bound->code.data &&
        !(bound->code.len == 4 && memcmp(bound->code.data, "none", 4) == 0)) {
        char code[64];
        struct err why = { 0 };
        message_copy(code, sizeof code, bound->code);
        why.code = err_code_of_name(code);
        message_copy(why.text, sizeof why.text, bound->text);
        if (why.code == ERR_NO_FIT && swap_device_full(b, m)) {
            bind_later(b, m, &why);
        } else {
            bind_failed(b, m, &why);
        }
        return;
    }
    struct model_info before = m->info;
    m->info = (struct model_info){
        .known = true,
        .ctx = bound->ctx,
        .ctx_train = bound->ctx_train,
        .n_vocab = bound->n_vocab,
        .n_sequences = bound->n_sequences ? bound->n_sequences : 1,
        .n_embd = bound->n_embd,
        .piece_bytes_max = bound->piece_bytes_max,
        .token_bytes = bound->token_bytes,
        .generates = !bound->has_generates || bound->generates,
    };
    message_copy(m->info.arch, sizeof m->info.arch, bound->arch);
    message_copy(m->info.pooling, sizeof m->info.pooling, bound->pooling);
    if (before.golden[0] || !bound->has_golden ||
        !message_copy(m->info.golden, sizeof m->info.golden, bound->golden)) {
        memcpy(m->info.golden, before.golden, sizeof m->info.golden); /* the first one's word */
    }
    m->spilled_bytes = bound->has_spilled_bytes ? bound->spilled_bytes : 0;
    m->bind = BIND_BOUND;
    parks_bound(b, m, bound->has_park_key ? bound->park_key : 0);
    m->bind_deaths = 0;
    m->error = (struct err){ 0 };
    if (m->state == MODEL_WARM) {
        models_move(m, MODEL_RESIDENT, "the worker has it");
        swap_arrived(b, m);
    }
    broker_alarm(b, b->now_ms);
}

void models_on_unbound(struct broker *b, uint32_t child, uint64_t number)
{
    struct model *m = models_find_number(&b->models, number);
    if (!m || m->worker != child || m->bind != BIND_LEAVING) {
        return;
    }
    m->bind = BIND_NONE;
    m->worker = 0;
    parks_unbound(b, m);
    broker_alarm(b, b->now_ms);
}

void models_worker_died(struct broker *b, uint32_t child, bool by_fault)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        if (m->worker != child) {
            continue;
        }
        if (m->bind == BIND_NONE) {
            m->worker = 0; /* it was chosen, and told nothing yet */
            continue;
        }
        parks_unbound(b, m);
        bool binding = m->bind != BIND_BOUND && m->bind != BIND_LEAVING;
        m->bind = BIND_NONE;
        m->worker = 0;
        if (by_fault && m->state_segment) {
            log_info("model %s: state pages of a worker that failed are not believed",
                     m->file.name);
            models_drop(b, &m->state_segment);
            m->state_made = false;
        }
        if (m->state == MODEL_RESIDENT) {
            models_move(m, MODEL_WARM, "its worker died");
        }
        if (by_fault && binding && ++m->bind_deaths >= MODELS_BIND_DEATHS_MAX) {
            struct err why;
            err_set(&why, ERR_FAILED, "the worker died %u times while it took model %s",
                    m->bind_deaths, m->file.name);
            m->bind_deaths = 0;
            bind_failed(b, m, &why);
        }
    }
}

void models_worker_lacks(struct broker *b, uint32_t child, const uint64_t *has, size_t n_has)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        size_t k = 0;
        while (k < n_has && has[k] != m->number) {
            k++;
        }
        if (m->worker != child || m->bind == BIND_NONE) {
            continue;
        }
        parks_unbound(b, m); /* what it was writing is forgotten too */
        if (k < n_has) {
            continue;
        }
        m->bind = BIND_NONE;
        m->worker = 0;
        if (m->state == MODEL_RESIDENT) {
            models_move(m, MODEL_WARM, "the worker does not have it");
        }
    }
}

void models_worker_has(struct broker *b, uint32_t child, uint64_t number)
{
    struct model *m = models_find_number(&b->models, number);
    struct worker *w = workers_find(&b->workers, child);
    /* Weights whose load has just begun are not what it has bound, and nothing yet that can be. */
    bool sized = m && m->segment && (m->header || (m->segment_bytes > 0 && !m->loader));
    if (sized && w && (m->worker == child || m->worker == 0)) {
        /* Its bind is known, its facts may not be: a bind again is answered with them. */
        bool serving = m->worker == child && m->bind == BIND_BOUND && m->info.known;
        m->worker = child;
        if (!serving) {
            workers_grant(b, w, m->segment, false, false);
            models_say_bind(b, m, w);
        }
    } else if (w && !sized) {
        Hearth__WorkerUnbind unbind = HEARTH__WORKER_UNBIND__INIT;
        unbind.model = number;
        post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_UNBIND, &unbind);
    }
}
