#include "broker/request.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "broker/submit.h"
#include "proto/log.h"

static const char *const names[REQUEST_N_STATES] = {
    [REQUEST_NEW] = "new",
    [REQUEST_RENDERING] = "rendering",
    [REQUEST_QUEUED] = "queued",
    [REQUEST_PREFILL] = "prefill",
    [REQUEST_DECODE] = "decode",
    [REQUEST_DONE] = "done",
    [REQUEST_CANCELLED] = "cancelled",
    [REQUEST_FAILED] = "failed",
};

#define TO(state) (1u << REQUEST_##state)
static const unsigned allowed[REQUEST_N_STATES] = {
    /* one bit per state that may follow */
    [REQUEST_NEW] = TO(RENDERING) | TO(FAILED),
    [REQUEST_RENDERING] = TO(QUEUED) | TO(CANCELLED) | TO(FAILED),
    [REQUEST_QUEUED] = TO(PREFILL) | TO(CANCELLED) | TO(FAILED) |
                       TO(DONE), /* its worker died after the end was committed */
    [REQUEST_PREFILL] = TO(DECODE) | TO(CANCELLED) | TO(FAILED) |
                        TO(QUEUED), /* its worker died, or it was taken from it */
    [REQUEST_DECODE] = TO(DONE) | TO(CANCELLED) | TO(FAILED) |
                       TO(QUEUED), /* the same: it goes on from the last committed token */
};

/* What the journal's words are for these; a state before admission has no slot. */
static const enum journal_state in_journal[REQUEST_N_STATES] = {
    [REQUEST_QUEUED] = JOURNAL_QUEUED,       [REQUEST_PREFILL] = JOURNAL_PREFILL,
    [REQUEST_DECODE] = JOURNAL_DECODE,       [REQUEST_DONE] = JOURNAL_DONE,
    [REQUEST_CANCELLED] = JOURNAL_CANCELLED, [REQUEST_FAILED] = JOURNAL_FAILED,
};

const char *request_state_name(enum request_state state)
{
    return (unsigned)state < REQUEST_N_STATES ? names[state] : "damaged";
}

bool request_may_move(enum request_state from, enum request_state to)
{
    return (unsigned)from < REQUEST_N_STATES && (unsigned)to < REQUEST_N_STATES &&
           (allowed[from] >> to & 1);
}

/* ---- the table ---- */

struct request *request_create(struct broker *b, struct err *err)
{
    struct requests *t = &b->requests;
    if (t->n == REQUESTS_MAX) {
        err_set(err, ERR_BUSY, "all %d requests that the broker keeps are taken", REQUESTS_MAX);
        return NULL;
    }
    if (t->n == t->room) {
        uint32_t room = t->room ? t->room * 2 : 64;
        struct request **grown = realloc(t->list, room * sizeof *grown);
        if (!grown) {
            err_set(err, ERR_NO_MEMORY, "no memory for a request");
            return NULL;
        }
        t->list = grown;
        t->room = room;
    }
    struct request *r = calloc(1, sizeof *r);
    if (!r) {
        err_set(err, ERR_NO_MEMORY, "no memory for a request");
        return NULL;
    }
    r->serial = broker_serial(b);
    r->born_ms = r->waits_ms = b->now_ms;
    t->list[t->n++] = r;
    return r;
}

static void draft_destroy(struct request_draft **draftp)
{
    struct request_draft *d = *draftp;
    if (!d) {
        return;
    }
    if (d->payload) {
        explicit_bzero(d->payload, d->payload_len); /* it held a prompt */
    }
    if (d->ids) {
        explicit_bzero(d->ids, d->n_ids * sizeof *d->ids);
    }
    free(d->payload);
    free(d->ids);
    free(d->strings);
    free(d);
    *draftp = NULL;
}

void requests_sweep(struct broker *b)
{
    struct requests *t = &b->requests;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        struct request *r = t->list[i];
        if (r->gone) {
            draft_destroy(&r->draft);
            free(r);
        } else {
            t->list[kept++] = r;
        }
    }
    t->n = kept;
}

void requests_clear(struct requests *t)
{
    for (uint32_t i = 0; i < t->n; i++) {
        draft_destroy(&t->list[i]->draft);
        free(t->list[i]);
    }
    free(t->list);
    *t = (struct requests){ 0 };
}

struct request *requests_find_serial(const struct requests *t, uint64_t serial)
{
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->list[i]->serial == serial && !t->list[i]->gone) {
            return t->list[i];
        }
    }
    return NULL;
}

struct request *requests_find(const struct requests *t, const struct shard *shard,
                              const uint8_t *id, size_t len, bool *many)
{
    struct request *found = NULL;
    *many = false;
    for (uint32_t i = 0; i < t->n && len > 0 && len <= LIMIT_REQUEST_ID_BYTES; i++) {
        struct request *r = t->list[i];
        if (!r->gone && r->shard == shard && memcmp(r->id, id, len) == 0) {
            *many = found != NULL;
            found = r;
        }
    }
    return *many ? NULL : found;
}

struct request *requests_find_slot(const struct requests *t, const struct shard *shard,
                                   uint32_t slot, uint32_t generation)
{
    for (uint32_t i = 0; i < t->n; i++) {
        struct request *r = t->list[i];
        if (!r->gone && r->admitted && r->shard == shard && r->slot == slot &&
            r->generation == generation) {
            return r;
        }
    }
    return NULL;
}

/* ---- the mover ---- */

struct journal_slot *request_slot(const struct request *r)
{
    assert(r->admitted);
    return journal_slot_at(&r->shard->journal, r->slot);
}

bool request_ended(const struct request *r)
{
    return r->state >= REQUEST_DONE;
}

static const char *short_id(const struct request *r, char out[17])
{
    for (int i = 0; i < 8; i++) {
        snprintf(out + 2 * i, 3, "%02x", r->id[i]);
    }
    return out;
}

void request_move(struct broker *b, struct request *r, enum request_state to, const char *why)
{
    char id[17];
    assert(request_may_move(r->state, to));
    log_debug("request %s: %s -> %s%s%s", short_id(r, id), names[r->state], names[to],
              why ? ": " : "", why ? why : "");
    if (!r->held && to >= REQUEST_QUEUED && to < REQUEST_DONE) {
        queue_enter(&b->queue, r->flow);
        r->held = true;
    }
    if (r->held && to >= REQUEST_DONE) {
        queue_leave(&b->queue, r->flow);
        r->held = false;
    }
    r->state = to;
    if (r->admitted) {
        journal_set_state(request_slot(r), in_journal[to]);
    }
    if (to >= REQUEST_DONE) {
        r->ended_ms = b->now_ms;
        quota_ended(b);
    }
}

/* ---- the log ---- */

uint64_t request_committed(const struct request *r)
{
    struct journal_reader reader;
    struct err err;
    if (!r->admitted ||
        journal_reader_init(&reader, &r->shard->journal, r->slot, r->generation, &err) < 0) {
        return 0;
    }
    return journal_committed(&reader);
}

/* The last record of a log: 1, 0 without any, -1 when it is damaged. */
static int find_last(const struct request *r, struct journal_record *last)
{
    static struct journal_view view; /* 16 KiB: not on the stack; one thread */
    struct journal_reader reader;
    struct err err = { 0 };
    int found = 0,
        got = journal_reader_init(&reader, &r->shard->journal, r->slot, r->generation, &err);
    if (got == 0) {
        while ((got = journal_read(&reader, &view, &err)) > 0) {
            *last = view.record;
            found = 1;
        }
    }
    if (got < 0) {
        char id[17];
        log_error("request %s: %s", short_id(r, id), err.text);
    }
    return got < 0 ? -1 : found;
}

int request_find_end(const struct request *r, struct journal_record *end)
{
    return find_last(r, end) == 1 && end->flags & JOURNAL_ENDED;
}

uint64_t request_spoke_ms(const struct request *r)
{
    struct journal_record last;
    return find_last(r, &last) == 1 ? last.time_us / 1000 : 0;
}

void request_wake_by(struct broker *b, struct request *r, uint64_t reader)
{
    struct worker *w = r->worker ? workers_find(&b->workers, r->worker) : NULL;
    bool keeps = w && !workers_told(w, reader) &&
                 atomic_load_explicit(&request_slot(r)->reader, memory_order_relaxed) != 0;
    r->next_reader = keeps ? reader : 0;
    if (!keeps) {
        atomic_store_explicit(&request_slot(r)->reader, reader, memory_order_release);
    }
}

void request_wake(struct broker *b, const struct request *r)
{
    struct client *c = clients_find_reader(
        &b->clients, atomic_load_explicit(&request_slot(r)->reader, memory_order_relaxed));
    uint64_t one = 1;
    if (c && c->eventfd >= 0 && write(c->eventfd, &one, sizeof one) < 0) {
        return; /* the counter is full: it is awake already */
    }
}

static enum request_state state_of_end(enum journal_end end)
{
    return end == JOURNAL_END_CANCELLED ? REQUEST_CANCELLED
           : end == JOURNAL_END_ERROR   ? REQUEST_FAILED
                                        : REQUEST_DONE;
}

/* The move to an end, by way of DECODE when it was so quick that nobody saw it decode. */
static void move_to_end(struct broker *b, struct request *r, enum journal_end end, const char *why)
{
    enum request_state to = state_of_end(end);
    if (!request_may_move(r->state, to) && r->state == REQUEST_PREFILL) {
        request_move(b, r, REQUEST_DECODE, NULL);
    }
    request_move(b, r, to, why);
}

void request_end(struct broker *b, struct request *r, enum journal_end end, const struct err *why)
{
    char id[17];
    if (request_ended(r)) {
        return;
    }
    if (!r->admitted) {
        struct post_to to = { r->peer, r->has_cookie, r->cookie };
        if (r->state == REQUEST_NEW || end == JOURNAL_END_ERROR) {
            request_move(b, r, REQUEST_FAILED, why->text);
        } else {
            request_move(b, r, state_of_end(end), why->text);
        }
        post_failed(b, &to, r->id, why);
        r->gone = true;
        return;
    }
    assert(r->worker == 0);
    struct journal_writer writer;
    struct journal_record record = { .flags = JOURNAL_ENDED,
                                     .end = (uint16_t)end,
                                     .code = (uint16_t)why->code };
    struct err err = { 0 };
    size_t len = strnlen(why->text, LIMIT_REASON_BYTES);
    if (journal_writer_init(&writer, &r->shard->journal, r->slot, r->generation, 0, &err) < 0 ||
        journal_append(&writer, &record, NULL, why->text,
                       end == JOURNAL_END_ERROR ? (uint32_t)len : 0, &err) < 0) {
        /* The state word says it all the same; a reader sees a slot in state FAILED without an end. */
        log_error("request %s: its end cannot be written: %s", short_id(r, id), err.text);
    }
    move_to_end(b, r, end, why->text);
    request_wake(b, r);
}

void request_cancel(struct broker *b, struct request *r, const struct err *why)
{
    if (request_ended(r) || r->gone) {
        return;
    }
    enum journal_end end = why->code == ERR_CANCELLED ? JOURNAL_END_CANCELLED : JOURNAL_END_ERROR;
    if (!r->admitted || r->worker == 0) {
        request_end(b, r, end, why);
        return;
    }
    if (end == JOURNAL_END_CANCELLED) {
        /* The worker sees the word before the message; any other end has its reason only there. */
        atomic_store_explicit(&request_slot(r)->cancel, 1, memory_order_release);
    }
    struct worker *w = workers_find(&b->workers, r->worker);
    if (w && w->state == WORKER_READY && !r->ending) {
        Hearth__WorkerCancel cancel = HEARTH__WORKER_CANCEL__INIT;
        cancel.shard = r->shard->segment;
        cancel.slot = r->slot;
        cancel.generation = r->generation;
        cancel.has_code = cancel.has_text = true;
        cancel.code = message_str(err_name(why->code));
        cancel.text = message_str(why->text);
        post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_CANCEL, &cancel);
        r->ending = true;
    }
}

void request_return(struct broker *b, struct request *r, const char *why)
{
    struct journal_record end;
    struct journal_slot *slot = request_slot(r);
    /* Ownership first: from here on the log is ours, and a broker that dies now finds it so. */
    atomic_store_explicit(&slot->owner, 0, memory_order_release);
    r->worker = 0;
    r->releasing = r->ending = r->told = false;
    if (r->next_reader) {
        request_wake_by(b, r, r->next_reader);
    }
    if (r->model) {
        parks_touched(b, r->model);
    }
    if (request_ended(r)) {
        return;
    }
    uint64_t committed = request_committed(r);
    /* A token, or the place that it had for a while and gives up, is what it waited for. A turn of its model in which it came to
     * nothing is not: it goes first in the next one. */
    if (committed > r->n_taken || r->yields) {
        r->waits_ms = b->now_ms;
    }
    r->yields = false;
    if (committed > r->charged) {
        queue_charge(&b->queue, r->flow, (enum queue_priority)r->priority, committed - r->charged);
        if (r->model) {
            r->model->swap.served += committed - r->charged;
        }
        r->charged = committed;
    }
    if (request_find_end(r, &end)) {
        move_to_end(b, r, (enum journal_end)end.end, journal_end_name((enum journal_end)end.end));
        request_wake(b, r);
        return;
    }
    if (r->state != REQUEST_QUEUED) {
        request_move(b, r, REQUEST_QUEUED, why);
    }
    if (atomic_load_explicit(&slot->cancel, memory_order_acquire)) {
        struct err cancelled;
        err_set(&cancelled, ERR_CANCELLED, "cancelled");
        request_end(b, r, JOURNAL_END_CANCELLED, &cancelled);
    }
}

void request_free(struct broker *b, struct request *r)
{
    (void)b;
    assert(request_ended(r));
    if (r->admitted) {
        journal_free(&r->shard->journal, request_slot(r));
    }
    r->admitted = false; /* the slot may be another's by the end of this turn */
    r->gone = true;
}

bool requests_free_left(struct broker *b, const struct shard *shard)
{
    struct request *oldest = NULL;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->shard == shard && !r->gone && r->left && r->client == 0 && !r->detach &&
            r->admitted && request_ended(r) && (!oldest || r->ended_ms < oldest->ended_ms)) {
            oldest = r;
        }
    }
    if (oldest) {
        request_free(b, oldest);
    }
    return oldest != NULL;
}

/* ---- every turn ---- */

/* How long an end is kept. A client that did not ask to be detached and does not come back has no use for it: its Ack was
 * on its way when it ended, or it died. */
static uint64_t kept_ms(const struct broker *b, const struct request *r)
{
    uint64_t keep_s = b->config.keep_s;
    if (r->client == 0 && !r->detach && keep_s > LIMIT_COME_BACK_S) {
        keep_s = LIMIT_COME_BACK_S;
    }
    return keep_s * 1000;
}

static void act_one(struct broker *b, struct request *r, uint64_t unix_ms)
{
    struct err why = { 0 };
    if (r->next_reader && r->admitted) {
        request_wake_by(b, r, r->next_reader);
    }
    if (request_ended(r)) {
        uint64_t until = r->ended_ms + kept_ms(b, r);
        if (r->admitted && request_slot(r)->acked) {
            request_free(b, r);
        } else if (b->now_ms >= until && r->admitted) {
            log_debug("an end that nobody acknowledged expires");
            request_free(b, r);
        } else {
            broker_alarm(b, until);
        }
        return;
    }
    if (r->come_back_ms && b->now_ms >= r->come_back_ms) {
        r->come_back_ms = 0;
        if (!r->detach) {
            err_set(&why, ERR_CANCELLED, "its client did not come back");
            request_cancel(b, r, &why);
            return;
        }
    } else if (r->come_back_ms) {
        broker_alarm(b, r->come_back_ms);
    }
    if (r->deadline_unix_ms && unix_ms >= r->deadline_unix_ms) {
        err_set(&why, ERR_TIMEOUT, "its deadline has passed");
        request_cancel(b, r, &why);
    } else if (r->deadline_unix_ms) {
        broker_alarm(b, b->now_ms + (r->deadline_unix_ms - unix_ms));
    }
    if (r->state == REQUEST_RENDERING) {
        submit_advance(b, r);
    }
    if (r->state == REQUEST_PREFILL || r->state == REQUEST_DECODE) {
        uint64_t committed = request_committed(r);
        if (committed > r->charged) {
            queue_charge(&b->queue, r->flow, (enum queue_priority)r->priority,
                         committed - r->charged);
            r->model->swap.served += committed - r->charged;
            r->charged = committed;
        }
        if (r->state == REQUEST_PREFILL && committed > r->n_taken) {
            request_move(b, r, REQUEST_DECODE, NULL);
            struct worker *w = workers_find(&b->workers, r->worker);
            if (w) {
                workers_proved(w);
            }
        }
        broker_alarm(b, b->now_ms + LIMIT_SLEEP_MS);
    }
}

void requests_act(struct broker *b)
{
    uint64_t unix_ms = broker_unix_ms();
    for (uint32_t i = 0; i < b->requests.n; i++) {
        if (!b->requests.list[i]->gone) {
            act_one(b, b->requests.list[i], unix_ms);
        }
    }
}
