/* Inside world.h: clients that submit until they are accepted, read the journal, acknowledge ends. */
#pragma once

#include "tests/broker/world_base.h"

static inline struct link_peer client_peer(const struct world *w, int i)
{
    return peer_of('C', (uint32_t)i + w->epoch * 100);
}

/* Submits, or submits again: the same id is the same request. */
static inline void client_submits(struct world *w, struct ask *a)
{
    static const char *const names[WORLD_MODELS] = { "a", "b", "c" };
    int32_t ids[2048];
    struct link_peer peer = client_peer(w, a->client);
    Hearth__Submit submit = HEARTH__SUBMIT__INIT;
    for (uint32_t i = 0; i < a->n_prompt; i++) {
        ids[i] = (int32_t)i % 1000;
    }
    submit.id = message_bytes(a->id, sizeof a->id);
    submit.has_model = submit.has_n_max = submit.has_priority = true;
    submit.model = message_str(names[a->model]);
    submit.kind = HEARTH__PROMPT_KIND__TOKENS;
    submit.n_max = a->n_max;
    submit.priority = (Hearth__Priority)a->priority;
    a->again_ms = w->now_ms + 2000;
    say(w, &peer, HEARTH__ENVELOPE__BODY_SUBMIT, &submit, ids, a->n_prompt * sizeof *ids);
}

/* Greets and attaches at once; its requests are put back to it. */
static inline void client_comes(struct world *w, int i)
{
    struct err err;
    struct clients *t = &w->b->clients;
    if (!t->list) {
        t->list = calloc(64, sizeof(struct client *));
        t->room = 64;
    }
    struct client *c = t->list[t->n++] = calloc(1, sizeof *c);
    w->clients[i].here = true;
    *c = (struct client){ .number = w->epoch * 1000u + (uint32_t)i + 1,
                          .flow = w->one_flow ? 1 : (uint64_t)i + 1,
                          .line = -1,
                          .eventfd = -1,
                          .state = CLIENT_ATTACHED,
                          .reader = w->epoch * 1000u + 500u + (uint32_t)i };
    c->peer = client_peer(w, i);
    c->shard = shards_get(w->b, getuid(), &err);
    assert_non_null(c->shard);
    shards_deposit(w->b, c->shard);
    t->n_attached++;
    if (!w->journal.base) {
        assert_ok(journal_map(&w->journal, c->shard->fd, true, &err), err);
    }
    for (uint32_t k = 0; k < w->n_asks; k++) {
        struct ask *a = &w->asks[k];
        if (a->client == i && a->accepted && !a->acked) {
            Hearth__Resume resume = HEARTH__RESUME__INIT;
            resume.id = message_bytes(a->id, sizeof a->id);
            say(w, &c->peer, HEARTH__ENVELOPE__BODY_RESUME, &resume, NULL, 0);
        } else if (a->client == i && !a->ended) {
            client_submits(w, a);
        }
    }
}

static inline struct ask *client_asks(struct world *w, int client, int model, uint32_t n_prompt,
                                      uint32_t n_max, int priority)
{
    assert_true(w->n_asks < WORLD_ASKS);
    uint32_t i = w->n_asks++;
    struct ask *a = &w->asks[i];
    *a = (struct ask){ .client = client,
                       .model = model,
                       .n_prompt = n_prompt,
                       .n_max = n_max,
                       .priority = priority,
                       .asked_ms = w->now_ms };
    a->id[0] = (uint8_t)i;
    a->id[1] = (uint8_t)(i >> 8);
    a->id[2] = 1;
    client_submits(w, a);
    return a;
}

static inline void client_hears(struct world *w, const Hearth__Envelope *e)
{
    if (e->body_case == HEARTH__ENVELOPE__BODY_ACCEPTED) {
        for (uint32_t i = 0; i < w->n_asks; i++) {
            struct ask *a = &w->asks[i];
            if (memcmp(a->id, e->accepted->id.data, LIMIT_REQUEST_ID_BYTES) == 0) {
                a->accepted_ms = a->accepted ? a->accepted_ms : w->now_ms;
                a->accepted = true;
                a->slot = e->accepted->slot;
                a->generation = e->accepted->generation;
            }
        }
    } else if (e->body_case == HEARTH__ENVELOPE__BODY_FAILED && e->failed->has_id) {
        for (uint32_t i = 0; i < w->n_asks; i++) {
            struct ask *a = &w->asks[i];
            if (memcmp(a->id, e->failed->id.data, LIMIT_REQUEST_ID_BYTES) == 0 && !a->ended) {
                char code[32] = "";
                message_copy(code, sizeof code, e->failed->code);
                a->code = err_code_of_name(code);
                a->end = JOURNAL_END_ERROR;
                a->ended = a->acked = true;
                a->ended_ms = w->now_ms;
            }
        }
    }
}

/* Reads on in the journal; the end is acknowledged. */
static inline void client_reads(struct world *w, struct ask *a)
{
    static struct journal_view view;
    struct journal_reader reader;
    struct err err;
    if (!a->accepted || a->ended) {
        return;
    }
    if (journal_reader_init(&reader, &w->journal, a->slot, a->generation, &err) < 0) {
        world_fail(w, "request %u: its slot is gone: %s", a->id[0], err.text);
    }
    if (journal_committed(&reader) <= a->n_read) {
        return;
    }
    uint64_t gap = w->now_ms - (a->n_read ? a->last_ms : a->asked_ms);
    a->gap_ms = gap > a->gap_ms ? gap : a->gap_ms;
    a->last_ms = w->now_ms;
    int got = 0;
    while (!a->ended && (got = journal_read(&reader, &view, &err)) > 0) {
        if (view.record.seq <= a->n_read) {
            continue;
        }
        a->n_read = (uint32_t)view.record.seq;
        if (view.record.flags & JOURNAL_TOKEN) {
            if (view.record.token != token_at(a->id, a->n_read - 1)) {
                world_fail(w, "request %u: another token at %u", a->id[0], a->n_read);
            }
            a->first_ms = a->first_ms ? a->first_ms : w->now_ms;
        }
        if (view.record.flags & JOURNAL_ENDED) {
            a->ended = true;
            a->end = (enum journal_end)view.record.end;
            a->code = (enum err_code)view.record.code;
            a->ended_ms = w->now_ms;
        }
    }
    if (got < 0) {
        world_fail(w, "request %u: %s", a->id[0], err.text);
    }
    if (a->ended && a->end == JOURNAL_END_LENGTH && a->n_read != a->n_max + 1) {
        world_fail(w, "request %u: %u records of %u", a->id[0], a->n_read, a->n_max + 1);
    }
}

/* What the broker thinks of it all. */
static inline void world_tell(const struct world *w)
{
    for (uint32_t i = 0; i < w->b->models.n; i++) {
        const struct model *m = w->b->models.list[i];
        printf(
            "model %s: %s, bind %d, worker %u, %u wait, %u run, in turn %d, first %d, unload %d\n",
            m->file.name, model_state_name(m->state), m->bind, m->worker, m->n_waiting,
            m->n_running, m->swap.in_turn, m == w->b->models.first, m->unload);
    }
    for (uint32_t i = 0; i < w->b->requests.n; i++) {
        const struct request *r = w->b->requests.list[i];
        if (!request_ended(r)) {
            printf("request %02x%02x of %s: %s, worker %u, %u committed%s%s%s, waits %llu ms\n",
                   r->id[0], r->id[1], r->model ? r->model->file.name : "nobody",
                   request_state_name(r->state), r->worker, (unsigned)request_committed(r),
                   r->told ? ", told" : "", r->releasing ? ", releasing" : "",
                   r->ending ? ", ending" : "", (unsigned long long)(w->now_ms - r->waits_ms));
        }
    }
    for (int i = 0; i < WORLD_HELD; i++) {
        const struct world_held *h = &w->held[i];
        if (h->open) {
            printf("worker holds slot %u of model %d: %u tokens, %u positions%s%s%s\n", h->slot,
                   h->model, h->n, w->fed[h->slot].n, h->seated ? ", seated" : "",
                   h->parked ? ", set aside" : "", h->finished ? ", finished" : "");
        }
    }
}

/* How long a request has had nothing, the pauses that faults make of themselves aside. */
static inline void client_waits(struct world *w, uint32_t i)
{
    const struct ask *a = &w->asks[i];
    uint64_t since = a->n_read ? a->last_ms : a->accepted ? a->accepted_ms : a->asked_ms;
    uint64_t ms = w->now_ms > since ? w->now_ms - since : 0;
    if (a->ended || a->cancelled) {
        return;
    }
    w->longest_ms = a->accepted && ms > w->longest_ms ? ms : w->longest_ms;
    since = since > w->trouble_ms ? since : w->trouble_ms;
    if ((w->bound_ms && w->now_ms > since + w->bound_ms) ||
        (w->most_ms && a->accepted && ms > w->most_ms)) {
        world_tell(w);
        world_fail(w, "request %u of client %d for model %d has had nothing for %llu ms", i,
                   a->client, a->model, (unsigned long long)ms);
    }
}

static inline void clients_step(struct world *w)
{
    for (uint32_t i = 0; i < w->n_asks; i++) {
        struct ask *a = &w->asks[i];
        if (!w->clients[a->client].here || a->acked) {
            continue;
        }
        client_reads(w, a);
        client_waits(w, i);
        struct link_peer peer = client_peer(w, a->client);
        if (a->ended) {
            Hearth__Ack ack = HEARTH__ACK__INIT;
            ack.id = message_bytes(a->id, sizeof a->id);
            a->acked = true;
            say(w, &peer, HEARTH__ENVELOPE__BODY_ACK, &ack, NULL, 0);
        } else if (!a->accepted && w->now_ms >= a->again_ms) {
            client_submits(w, a);
        }
    }
}
