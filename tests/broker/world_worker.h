/* Inside world.h: a worker that binds, takes, feeds, commits and gives back as worker/serve.c does. */
#pragma once

#include "tests/broker/world_base.h"

static inline void worker_say(struct world *w, Hearth__Envelope__BodyCase which, void *body)
{
    struct link_peer peer = worker_peer(w);
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
    hello.has_own_memory = true;
    hello.own_memory = world_by_window || world_one_fits;
    hello.held = at;
    hello.models = models;
    uint64_t kept[WORLD_KEPT];
    hello.has_keeps = true;
    hello.keeps = w->keeps;
    hello.kept = kept;
    for (int i = 0; i < WORLD_KEPT; i++) {
        if (w->kept[i].segment) {
            kept[hello.n_kept++] = w->kept[i].segment;
        }
    }
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
    struct journal_reader reader;
    struct err err;
    assert_ok(journal_reader_init(&reader, &w->journal, m->slot, m->generation, &err), err);
    *empty = (struct world_held){ .shard = m->shard,
                                  .slot = m->slot,
                                  .generation = m->generation,
                                  .n = (uint32_t)journal_committed(&reader),
                                  .open = true,
                                  .arrival = ++w->arrivals,
                                  .model = model };
}

/* It leaves its place; what it computed stays, as an idle sequence. */
static inline void leave_seat(struct world *w, struct world_held *h)
{
    w->bound[h->model].room_freed |= h->seated;
    h->seated = false;
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

/* It is mapped from now on, if this worker keeps anything. */
static inline void keep(struct world *w, uint64_t segment)
{
    int at = -1;
    for (int i = 0; i < WORLD_KEPT; i++) {
        if (w->kept[i].segment == segment) {
            return;
        }
        at = w->kept[i].segment == 0 ? i : at;
    }
    if (at < 0) {
        world_fail(w, "%d segments are to be kept", WORLD_KEPT + 1);
    }
    if (w->keeps) {
        w->kept[at].segment = segment;
        w->kept[at].leaving = false;
    }
}

/* What leaves and is not bound goes; answered is once more that it is not here. */
static inline void forget(struct world *w, uint64_t segment)
{
    bool here = false;
    for (int i = 0; i < WORLD_KEPT; i++) {
        bool bound = false;
        for (int k = 0; k < WORLD_MODELS; k++) {
            bound |= w->bound[k].number && w->bound[k].segment == segment;
        }
        if (w->kept[i].segment == segment) {
            here |= bound;
            w->kept[i].leaving = bound;
            w->kept[i].segment = bound ? segment : 0;
        }
    }
    if (!here) {
        Hearth__WorkerForgot m = HEARTH__WORKER_FORGOT__INIT;
        m.segment = segment;
        worker_say(w, HEARTH__ENVELOPE__BODY_WORKER_FORGOT, &m);
    }
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
                h->open = h->seated = false;
            }
        }
        w->bound[i] = (struct world_bound){ 0 };
    }
    for (int i = 0; i < WORLD_KEPT; i++) {
        if (w->kept[i].segment && w->kept[i].leaving) {
            forget(w, w->kept[i].segment);
        }
    }
}

static inline void say_need(struct world *w, const struct world_bound *at)
{
    Hearth__WorkerNeed need = HEARTH__WORKER_NEED__INIT;
    need.model = at->number;
    need.state_bytes = at->state_bytes;
    need.fingerprint = message_str("f");
    worker_say(w, HEARTH__ENVELOPE__BODY_WORKER_NEED, &need);
}

/* How long a part of a bind takes. */
static inline uint64_t bind_takes(struct world *w)
{
    return w->bind_ms ? draw(w, w->bind_ms) : 0;
}

static inline struct world_bound *bound_to(struct world *w, uint64_t segment)
{
    for (int i = 0; i < WORLD_MODELS; i++) {
        if (w->bound[i].number && w->bound[i].segment == segment) {
            return &w->bound[i];
        }
    }
    return NULL;
}

/* A loader that reads by a window comes to its end when the worker has taken all. */
static inline bool worker_takes_all(struct world *w, uint64_t segment)
{
    struct world_bound *at = bound_to(w, segment);
    if (!at || !w->worker || w->now_ms < w->silent_until_ms || w->now_ms < at->until_ms) {
        return false;
    }
    at->uploaded = true;
    return true;
}

static inline void on_bind(struct world *w, const Hearth__WorkerBind *m)
{
    struct world_bound *at = NULL;
    for (int i = 0; i < WORLD_MODELS; i++) {
        if (w->bound[i].number == m->model && w->bound[i].segment == m->segment) {
            if (w->bound[i].ready) {
                say_bound(w, m->model);
            } else if (w->bound[i].needing) {
                say_need(w, &w->bound[i]);
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
    for (int i = 0; i < WORLD_MODELS && world_one_fits; i++) {
        if (w->bound[i].number) {
            Hearth__WorkerBound refused = HEARTH__WORKER_BOUND__INIT;
            refused.model = m->model;
            refused.has_code = refused.has_text = true;
            refused.code = message_str(err_name(ERR_NO_FIT));
            refused.text = message_str("the device has room for one");
            worker_say(w, HEARTH__ENVELOPE__BODY_WORKER_BOUND, &refused);
            return;
        }
    }
    if (m->state_bytes_max < WORLD_STATE_MIN) {
        world_fail(w, "%llu bytes of state for a model, whose budget has more",
                   (unsigned long long)m->state_bytes_max);
    }
    keep(w, m->segment);
    *at = (struct world_bound){ .number = m->model,
                                .segment = m->segment,
                                .state_bytes = m->state_bytes_max,
                                .until_ms = w->now_ms + bind_takes(w),
                                .asked = true };
    struct world_segment *weights = segment_of(w, m->segment);
    if (weights && weights->windowed) {
        if (weights->taken_by || !m->has_uploaded || !segment_of(w, m->uploaded)) {
            world_fail(w, "weights that went to worker %u are bound again", weights->taken_by);
        }
        weights->taken_by = w->worker;
    }
}

static inline void on_state(struct world *w, const Hearth__WorkerState *m)
{
    for (int i = 0; i < WORLD_MODELS; i++) {
        struct world_bound *at = &w->bound[i];
        if (at->number != m->model || !at->needing) {
            continue;
        }
        at->needing = false;
        at->until_ms = w->now_ms + bind_takes(w);
        for (uint32_t k = 0; m->fresh && k < LIMIT_SHARD_SLOTS; k++) {
            if (w->fed[k].model == m->model) {
                w->fed[k].n = 0;
            }
        }
    }
}

/* What has been read needs its state; what has its state is ready. */
static inline void bind_on(struct world *w)
{
    for (int i = 0; i < WORLD_MODELS; i++) {
        struct world_bound *at = &w->bound[i];
        if (at->number == 0 || at->ready || at->needing || w->now_ms < at->until_ms) {
            continue;
        }
        struct world_segment *weights = segment_of(w, at->segment);
        if (at->asked && weights && weights->windowed && !at->uploaded) {
            continue;
        }
        if (at->asked) {
            at->asked = false;
            at->needing = true;
            say_need(w, at);
        } else {
            at->ready = true;
            at->since_ms = w->now_ms;
            w->n_swaps++;
            say_bound(w, at->number);
        }
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
            leave_seat(w, h);
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
            leave_seat(w, h);
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
    case HEARTH__ENVELOPE__BODY_WORKER_KEEP:
        if (!w->keeps) {
            world_fail(w, "a hint for a worker that keeps nothing");
        }
        keep(w, e->worker_keep->segment);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_FORGET:
        forget(w, e->worker_forget->segment);
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

/* ---- a step, as worker/resident_step.c has it ---- */

static inline uint32_t pages_of(uint32_t n)
{
    return (n + WORLD_PAGE - 1) / WORLD_PAGE;
}

/* Those of a model that run, the oldest first; ends and cancels are heard. */
static inline uint32_t those_that_run(struct world *w, int model, struct world_held **order)
{
    uint32_t n = 0;
    for (int i = 0; i < WORLD_HELD; i++) {
        struct world_held *h = &w->held[i];
        const struct journal_slot *slot = journal_slot_at(&w->journal, h->slot);
        if (!h->open || h->model != model) {
            continue;
        }
        if (h->finished) { /* taken back when the name is no longer ours */
            h->open = atomic_load(&slot->owner) == w->worker && slot->generation == h->generation;
            continue;
        }
        if (atomic_load(&slot->cancel)) {
            write_record(w, h, JOURNAL_ENDED, JOURNAL_END_CANCELLED, ERR_CANCELLED);
            leave_seat(w, h);
            h->finished = true;
            say_finished(w, h);
            continue;
        }
        uint32_t at = n++;
        for (; at > 0 && order[at - 1]->arrival > h->arrival; at--) {
            order[at] = order[at - 1];
        }
        order[at] = h;
    }
    return n;
}

static inline void seat(struct world *w, struct world_held **order, uint32_t n)
{
    bool anybody = false;
    for (uint32_t i = 0; i < n; i++) {
        anybody |= order[i]->seated;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct world_held *h = order[i];
        struct world_bound *b = &w->bound[h->model];
        if (h->seated || (h->parked && anybody && !b->room_freed)) {
            continue;
        }
        h->seated = anybody = true;
        if (w->fed[h->slot].generation != h->generation || w->fed[h->slot].model != b->number) {
            w->fed[h->slot].n = 0;
        }
        w->fed[h->slot].generation = h->generation;
        w->fed[h->slot].model = b->number;
        if (h->parked) {
            h->parked = false;
            break;
        }
    }
    if (n > 0) {
        w->bound[order[0]->model].room_freed = false;
    }
}

/* The idle sequence used longest ago goes. */
static inline bool evict(struct world *w, uint64_t model)
{
    uint32_t oldest = LIMIT_SHARD_SLOTS;
    for (uint32_t k = 0; k < LIMIT_SHARD_SLOTS; k++) {
        bool busy = w->fed[k].model != model || w->fed[k].n == 0;
        for (int i = 0; i < WORLD_HELD && !busy; i++) {
            busy = w->held[i].open && w->held[i].seated && w->held[i].slot == k;
        }
        if (!busy && (oldest == LIMIT_SHARD_SLOTS || w->fed[k].used < w->fed[oldest].used)) {
            oldest = k;
        }
    }
    if (oldest < LIMIT_SHARD_SLOTS) {
        w->fed[oldest].n = 0;
    }
    return oldest < LIMIT_SHARD_SLOTS;
}

/* From the free ones, from idle sequences, from younger ones. */
static inline void make_pages(struct world *w, struct world_held **order, struct batch_item *items,
                              uint32_t n, uint32_t i)
{
    uint64_t model = w->bound[order[i]->model].number;
    while (w->cache) {
        uint32_t all = pages_of(w->fed[order[i]->slot].n + items[i].n_rows);
        for (uint32_t k = 0; k < LIMIT_SHARD_SLOTS; k++) {
            all += w->fed[k].model == model && k != order[i]->slot ? pages_of(w->fed[k].n) : 0;
        }
        if (all <= w->cache / WORLD_PAGE) {
            return;
        }
        if (evict(w, model)) {
            continue;
        }
        uint32_t victim = n - 1;
        while (victim > i && !order[victim]->seated) {
            victim--;
        }
        if (victim == i && i == 0) {
            world_fail(w, "slot %u: the oldest has no room", order[i]->slot);
        }
        w->fed[order[victim]->slot].n = 0;
        order[victim]->seated = false;
        order[victim]->parked = true;
        items[victim].n_rows = 0;
        if (victim == i) {
            return;
        }
    }
}

/* A token for each that decodes, the rest of the rows for prompts. */
static inline void model_step(struct world *w, int model)
{
    struct world_held *order[WORLD_HELD];
    struct batch_item items[WORLD_HELD] = { 0 };
    uint32_t n = those_that_run(w, model, order);
    seat(w, order, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct journal_slot *slot = journal_slot_at(&w->journal, order[i]->slot);
        uint32_t all = (uint32_t)slot->n_prompt + order[i]->n;
        items[i].n_left = order[i]->seated ? all - w->fed[order[i]->slot].n : 0;
    }
    batch_plan(items, n, w->rows, w->rows + WORLD_HELD);
    for (uint32_t i = 0; i < n; i++) {
        if (items[i].n_rows > 0) {
            make_pages(w, order, items, n, i);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        struct world_held *h = order[i];
        const struct journal_slot *slot = journal_slot_at(&w->journal, h->slot);
        if (items[i].n_rows == 0) {
            continue;
        }
        atomic_fetch_add(w->progress, 1);
        int ask = ask_in(w, h);
        uint64_t *served = &w->served[ask >= 0 ? w->asks[ask].client : 0];
        *served += h->n == 0 ? items[i].n_rows : 0;
        w->fed[h->slot].n += items[i].n_rows;
        w->fed[h->slot].used = ++w->arrivals;
        if (items[i].n_rows < items[i].n_left) {
            continue;
        }
        h->n = (uint32_t)write_record(w, h, JOURNAL_TOKEN, JOURNAL_END_NONE, ERR_NONE);
        ++*served;
        if (h->n >= slot->params.n_max) {
            write_record(w, h, JOURNAL_ENDED, JOURNAL_END_LENGTH, ERR_NONE);
            leave_seat(w, h);
            h->finished = true;
            say_finished(w, h);
        }
    }
}

/* It hears that there is a new broker, which it has greeted by its old link already: anew. */
static inline void worker_greets_anew(struct world *w)
{
    struct link_peer old = worker_peer(w);
    lose_letters(w, &old);
    w->hears_ms = 0;
    w->link++;
    worker_hello(w);
}

static inline void worker_step(struct world *w)
{
    if (w->worker == 0 || w->now_ms < w->silent_until_ms) {
        return;
    }
    if (w->hears_ms && w->now_ms >= w->hears_ms) {
        worker_greets_anew(w);
    }
    bind_on(w);
    for (int i = 0; i < WORLD_MODELS; i++) {
        if (w->bound[i].ready) {
            model_step(w, i);
        }
    }
}
