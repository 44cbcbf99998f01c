/* Inside world.h: a worker that binds, takes, feeds, commits and gives back as worker/serve.c does. */
#pragma once

#include "tests/broker/world_base.h"

static inline void worker_say(struct world *w, Hearth__Envelope__BodyCase which, void *body)
{
    struct link_peer peer = peer_of('W', w->worker);
    say(w, &peer, which, body, NULL, 0);
}

static inline void worker_hello(struct world *w)
{
    Hearth__Hello hello = HEARTH__HELLO__INIT;
    Hearth__HeldRequest held[WORLD_HELD], *at[WORLD_HELD];
    uint64_t models[WORLD_MODELS];
    hello.role = HEARTH__ROLE__WORKER;
    hello.has_token = hello.has_child = hello.has_architectures = true;
    hello.token = message_bytes(child_of(w, w->worker)->token, LIMIT_TOKEN_BYTES);
    hello.child = w->worker;
    hello.architectures = message_str("llama ");
    hello.held = at;
    hello.models = models;
    for (int i = 0; i < WORLD_HELD; i++) {
        if (w->held[i].open) {
            hearth__held_request__init(&held[hello.n_held]);
            held[hello.n_held].shard = w->held[i].shard;
            held[hello.n_held].slot = w->held[i].slot;
            held[hello.n_held].generation = w->held[i].generation;
            at[hello.n_held] = &held[hello.n_held];
            hello.n_held++;
        }
    }
    for (int i = 0; i < WORLD_MODELS; i++) {
        if (w->bound[i].ready) {
            models[hello.n_models++] = w->bound[i].number;
        } else {
            w->bound[i] = (struct world_bound){ 0 }; /* half bound: a new broker asks again */
        }
    }
    worker_say(w, HEARTH__ENVELOPE__BODY_HELLO, &hello);
}

static inline struct world_held *held_of(struct world *w, uint64_t shard, uint32_t slot,
                                         uint32_t generation)
{
    for (int i = 0; i < WORLD_HELD; i++) {
        struct world_held *h = &w->held[i];
        if (h->open && h->shard == shard && h->slot == slot && h->generation == generation) {
            return h;
        }
    }
    return NULL;
}

static inline void say_finished(struct world *w, const struct world_held *h)
{
    Hearth__WorkerFinished m = HEARTH__WORKER_FINISHED__INIT;
    m.shard = h->shard;
    m.slot = h->slot;
    m.generation = h->generation;
    worker_say(w, HEARTH__ENVELOPE__BODY_WORKER_FINISHED, &m);
}

static inline void say_released(struct world *w, uint64_t shard, uint32_t slot, uint32_t generation,
                                const char *code)
{
    Hearth__WorkerReleased m = HEARTH__WORKER_RELEASED__INIT;
    m.shard = shard;
    m.slot = slot;
    m.generation = generation;
    m.has_code = m.has_text = code != NULL;
    m.code = m.text = message_str(code ? code : "");
    worker_say(w, HEARTH__ENVELOPE__BODY_WORKER_RELEASED, &m);
}

/* Commits one record; only an owner does. */
static inline uint64_t write_record(struct world *w, const struct world_held *h, unsigned flags,
                                    enum journal_end end, enum err_code code)
{
    struct journal_writer writer;
    struct err err;
    const struct journal_slot *slot = journal_slot_at(&w->journal, h->slot);
    if (atomic_load(&slot->owner) != w->worker || slot->generation != h->generation) {
        world_fail(w, "slot %u: the broker took a log back from a worker that lives", h->slot);
    }
    assert_ok(journal_writer_init(&writer, &w->journal, h->slot, h->generation, w->worker, &err),
              err);
    struct journal_record r = { .token = token_at(slot->id, writer.at.seq),
                                .flags = (uint16_t)flags,
                                .end = (uint16_t)end,
                                .code = (uint16_t)code };
    assert_ok(journal_append(&writer, &r, NULL, "x", end == JOURNAL_END_ERROR ? 1 : 0, &err), err);
    return writer.at.seq;
}

static inline void on_take(struct world *w, const Hearth__WorkerTake *m)
{
    struct world_held *h = held_of(w, m->shard, m->slot, m->generation), *empty = NULL;
    uint32_t n = 0;
    int model = -1;
    if (h) {
        if (h->finished) {
            say_finished(w, h);
        }
        return;
    }
    for (int i = 0; i < WORLD_MODELS; i++) {
        model = w->bound[i].ready && w->bound[i].number == m->model ? i : model;
    }
    for (int i = 0; i < WORLD_HELD; i++) {
        n += w->held[i].open && !w->held[i].finished && w->held[i].model == model;
        empty = !w->held[i].open ? &w->held[i] : empty;
    }
    const struct journal_slot *slot = journal_slot_at(&w->journal, m->slot);
    if (model < 0 || n >= w->n_sequences || !empty || slot->generation != m->generation ||
        atomic_load(&slot->owner) != w->worker) {
        say_released(w, m->shard, m->slot, m->generation, "busy");
        return;
    }
    if (slot->params.n_ctx > WORLD_CTX(w->bound[model].state_bytes)) {
        world_fail(w, "slot %u: its context of %u positions has shrunk", m->slot,
                   slot->params.n_ctx);
    }
    *empty = (struct world_held){ .shard = m->shard,
                                  .slot = m->slot,
                                  .generation = m->generation,
                                  .left = slot->n_prompt,
                                  .open = true,
                                  .model = model };
    if (w->fed[m->slot].generation == m->generation) {
        empty->left -= w->fed[m->slot].n;
    }
}

static inline void say_bound(struct world *w, uint64_t model)
{
    const struct world_bound *at = w->bound;
    while (at->number != model) {
        at++;
    }
    Hearth__WorkerBound bound = HEARTH__WORKER_BOUND__INIT;
    bound.model = model;
    bound.has_ctx = bound.has_n_vocab = bound.has_n_sequences = true;
    bound.has_piece_bytes_max = bound.has_generates = bound.generates = true;
    bound.ctx = WORLD_CTX(at->state_bytes);
    bound.has_ctx_train = bound.has_segment = true;
    bound.segment = at->segment;
    bound.ctx_train = 100000;
    bound.n_vocab = 1000;
    bound.n_sequences = w->n_sequences;
    bound.piece_bytes_max = 16;
    worker_say(w, HEARTH__ENVELOPE__BODY_WORKER_BOUND, &bound);
}

/* Everything in flight on a model goes back, and the model goes. */
static inline void let_go(struct world *w, uint64_t model)
{
    for (int i = 0; i < WORLD_MODELS; i++) {
        if (w->bound[i].number != model) {
            continue;
        }
        for (int k = 0; k < WORLD_HELD; k++) {
            struct world_held *h = &w->held[k];
            if (h->open && h->model == i && !h->finished) {
                say_released(w, h->shard, h->slot, h->generation, NULL);
                h->open = false;
            }
        }
        w->bound[i] = (struct world_bound){ 0 };
    }
}

static inline void on_bind(struct world *w, const Hearth__WorkerBind *m)
{
    struct world_bound *at = NULL;
    for (int i = 0; i < WORLD_MODELS; i++) {
        if (w->bound[i].number == m->model && w->bound[i].segment == m->segment) {
            if (w->bound[i].ready) {
                say_bound(w, m->model);
            }
            return;
        }
        if (w->bound[i].number == m->model) {
            let_go(w, m->model);
        }
        at = w->bound[i].number == 0 ? &w->bound[i] : at;
    }
    if (!at) {
        world_fail(w, "a fourth model is bound");
    }
    if (m->state_bytes_max < WORLD_STATE_MIN) {
        world_fail(w, "%llu bytes of state for a model, whose budget has more",
                   (unsigned long long)m->state_bytes_max);
    }
    *at = (struct world_bound){ .number = m->model,
                                .segment = m->segment,
                                .state_bytes = m->state_bytes_max };
    Hearth__WorkerNeed need = HEARTH__WORKER_NEED__INIT;
    need.model = m->model;
    need.state_bytes = m->state_bytes_max;
    need.fingerprint = message_str("f");
    worker_say(w, HEARTH__ENVELOPE__BODY_WORKER_NEED, &need);
}

static inline void on_state(struct world *w, const Hearth__WorkerState *m)
{
    for (int i = 0; i < WORLD_MODELS; i++) {
        if (w->bound[i].number != m->model || w->bound[i].ready) {
            continue;
        }
        w->bound[i].ready = true;
        w->bound[i].since_ms = w->now_ms;
        w->n_swaps++;
        say_bound(w, m->model);
    }
}

static inline void on_unbind(struct world *w, uint64_t model)
{
    let_go(w, model);
    Hearth__WorkerUnbound m = HEARTH__WORKER_UNBOUND__INIT;
    m.model = model;
    worker_say(w, HEARTH__ENVELOPE__BODY_WORKER_UNBOUND, &m);
}

static inline void worker_hears(struct world *w, const Hearth__Envelope *e)
{
    struct world_held *h;
    switch (e->body_case) {
    case HEARTH__ENVELOPE__BODY_WELCOME:
        for (int i = 0; i < WORLD_MODELS; i++) {
            if (w->bound[i].ready) {
                say_bound(w, w->bound[i].number);
            }
        }
        for (int i = 0; i < WORLD_HELD; i++) {
            if (w->held[i].open && w->held[i].finished) {
                say_finished(w, &w->held[i]);
            }
        }
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_TAKE:
        on_take(w, e->worker_take);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_CANCEL:
        h = held_of(w, e->worker_cancel->shard, e->worker_cancel->slot,
                    e->worker_cancel->generation);
        if (h && !h->finished) {
            write_record(w, h, JOURNAL_ENDED, JOURNAL_END_CANCELLED, ERR_CANCELLED);
            h->finished = true;
        }
        if (h) {
            say_finished(w, h);
        }
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_RELEASE:
        h = held_of(w, e->worker_release->shard, e->worker_release->slot,
                    e->worker_release->generation);
        if (h && h->finished) {
            say_finished(w, h);
            break;
        }
        if (h) {
            h->open = false;
        }
        say_released(w, e->worker_release->shard, e->worker_release->slot,
                     e->worker_release->generation, NULL);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_BIND:
        on_bind(w, e->worker_bind);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_STATE:
        on_state(w, e->worker_state);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_UNBIND:
        on_unbind(w, e->worker_unbind->model);
        break;
    default:
        break;
    }
}

/* Whose request stands in a slot, or -1. */
static inline int ask_in(const struct world *w, const struct world_held *h)
{
    const uint8_t *id = journal_slot_at(&w->journal, h->slot)->id;
    for (uint32_t i = 0; i < w->n_asks; i++) {
        if (memcmp(w->asks[i].id, id, LIMIT_REQUEST_ID_BYTES) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* One step, planned as the real worker plans it: a token for each that decodes, the rest of the rows for prompts. */
static inline void worker_step(struct world *w)
{
    struct batch_item items[WORLD_HELD] = { 0 };
    if (w->worker == 0 || w->now_ms < w->silent_until_ms) {
        return;
    }
    for (int i = 0; i < WORLD_HELD; i++) {
        if (w->held[i].open && !w->held[i].finished) {
            items[i].n_left = w->held[i].left + 1;
        }
    }
    batch_plan(items, WORLD_HELD, w->rows, w->rows + WORLD_HELD);
    for (int i = 0; i < WORLD_HELD; i++) {
        struct world_held *h = &w->held[i];
        const struct journal_slot *slot = journal_slot_at(&w->journal, h->slot);
        if (!h->open) {
            continue;
        }
        atomic_fetch_add(w->progress, 1);
        if (h->finished) { /* taken back when the name is no longer ours */
            h->open = atomic_load(&slot->owner) == w->worker && slot->generation == h->generation;
            continue;
        }
        int ask = ask_in(w, h);
        if (atomic_load(&slot->cancel)) {
            write_record(w, h, JOURNAL_ENDED, JOURNAL_END_CANCELLED, ERR_CANCELLED);
            h->finished = true;
            say_finished(w, h);
            continue;
        }
        if (h->left > 0) {
            uint32_t n = h->left < items[i].n_rows ? h->left : items[i].n_rows;
            h->left -= n;
            w->fed[h->slot].generation = h->generation;
            w->fed[h->slot].n = slot->n_prompt - h->left;
            w->served[ask >= 0 ? w->asks[ask].client : 0] += n;
            continue;
        }
        uint64_t n = write_record(w, h, JOURNAL_TOKEN, JOURNAL_END_NONE, ERR_NONE);
        w->served[ask >= 0 ? w->asks[ask].client : 0]++;
        if (n >= slot->params.n_max) {
            write_record(w, h, JOURNAL_ENDED, JOURNAL_END_LENGTH, ERR_NONE);
            h->finished = true;
            say_finished(w, h);
        }
    }
}
