#include "broker/door.h"

#include <unistd.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "broker/records.h"
#include "broker/stats.h"
#include "broker/submit.h"
#include "proto/log.h"

/* ---- clients ---- */

static struct model *model_named(struct broker *b, bool has, ProtobufCBinaryData name,
                                 struct err *err)
{
    char text[LIMIT_MODEL_NAME_BYTES] = "";
    if (has && !message_copy(text, sizeof text, name)) {
        err_set(err, ERR_NOT_FOUND, "a model name of %zu bytes is none", name.len);
        return NULL;
    }
    return models_get(b, text, NULL, err);
}

static struct request *request_named(struct broker *b, const struct client *c,
                                     ProtobufCBinaryData id, struct err *err)
{
    bool many = false;
    struct request *r = requests_find(&b->requests, c->shard, id.data, id.len, &many);
    if (many) {
        err_set(err, ERR_BAD_INPUT, "this beginning of an id names several requests");
    } else if (!r) {
        err_set(err, ERR_NOT_FOUND, "there is no such request");
    }
    return r;
}

static void on_resume(struct broker *b, const struct post_to *to, struct client *c,
                      const Hearth__Resume *resume)
{
    struct err err = { 0 };
    struct request *r = request_named(b, c, resume->id, &err);
    if (!r) {
        post_failed(b, to, resume->id.len == LIMIT_REQUEST_ID_BYTES ? resume->id.data : NULL, &err);
        return;
    }
    if (!clients_find(&b->clients, r->client)) {
        r->client = c->number;
        r->come_back_ms = 0;
    }
    if (!r->admitted) {
        r->peer = to->peer;
        r->has_cookie = to->has_cookie;
        r->cookie = to->cookie;
        return;
    }
    struct journal_slot *slot = request_slot(r);
    slot->attached = r->client;
    r->records = resume->has_records && resume->records;
    slot->records = r->records;
    request_wake_by(b, r, r->records ? b->records.reader : c->reader);
    if (r->records) {
        records_begin(b, r, &to->peer, resume->has_after ? resume->after : 0);
    }
    submit_accepted(b, to, r);
}

static void on_ack(struct broker *b, const struct post_to *to, struct client *c,
                   const Hearth__Ack *ack)
{
    struct err err = { 0 };
    struct request *r = request_named(b, c, ack->id, &err);
    struct journal_record end;
    if (r && !request_ended(r) && r->admitted && request_find_end(r, &end)) {
        /* Clients read the journal, so they are often faster than the worker's word to us. */
        request_slot(r)->acked = 1;
    } else if (r && !request_ended(r)) {
        err_set(&err, ERR_BAD_INPUT, "the request has not ended; cancel it first");
    } else if (r) {
        request_free(b, r);
    }
    if (to->has_cookie && err.code != ERR_NONE) {
        post_failed(b, to, NULL, &err);
    } else if (to->has_cookie) {
        post_done(b, to, NULL);
    }
}

static void on_cancel(struct broker *b, const struct post_to *to, struct client *c,
                      const Hearth__Cancel *cancel)
{
    struct err err = { 0 }, why;
    struct request *r = request_named(b, c, cancel->id, &err);
    if (r && request_ended(r)) {
        err_set(&err, ERR_NOT_FOUND, "the request has ended already");
    } else if (r) {
        err_set(&why, ERR_CANCELLED, "cancelled");
        request_cancel(b, r, &why);
    }
    if (err.code != ERR_NONE) {
        post_failed(b, to, NULL, &err);
    } else if (to->has_cookie) {
        post_done(b, to, NULL);
    }
}

/* What only attached clients may ask. False: not such a question. */
static bool from_attached(struct broker *b, const struct post_to *to, struct client *c,
                          const Hearth__Envelope *e, const struct link_msg *msg, struct err *err)
{
    struct model *m;
    switch (e->body_case) {
    case HEARTH__ENVELOPE__BODY_SUBMIT:
        submit_take(b, to, c, e->submit, msg->payload, msg->payload_len);
        return true;
    case HEARTH__ENVELOPE__BODY_RESUME:
        on_resume(b, to, c, e->resume);
        return true;
    case HEARTH__ENVELOPE__BODY_ACK:
        on_ack(b, to, c, e->ack);
        return true;
    case HEARTH__ENVELOPE__BODY_CANCEL:
        on_cancel(b, to, c, e->cancel);
        return true;
    case HEARTH__ENVELOPE__BODY_YIELD:
        if (c->uid != geteuid() && c->uid != 0) {
            err_set(err, ERR_REFUSED, "memory is lent by the service's own user, not by user %u",
                    (unsigned)c->uid);
            return false;
        }
        lend_ask(b, to, e->yield);
        return true;
    case HEARTH__ENVELOPE__BODY_EVALUATE:
        m = model_named(b, e->evaluate->has_model, e->evaluate->model, err);
        if (m) {
            evals_ask(b, to, c, m, e->evaluate, msg->payload, msg->payload_len);
        }
        return m != NULL;
    default:
        err_set(err, ERR_BAD_INPUT, "%s is not a client's to say", message_name(e->body_case));
        return false;
    }
}

static void from_client(struct broker *b, const struct post_to *to, struct client *c,
                        const Hearth__Envelope *e, const struct link_msg *msg)
{
    struct err err = { 0 };
    struct model *m;
    c->seen_ms = b->now_ms;
    switch (e->body_case) {
    case HEARTH__ENVELOPE__BODY_STATUS_ASK:
        stats_status(b, to, e->status_ask);
        return;
    case HEARTH__ENVELOPE__BODY_MODEL_LOAD:
        m = model_named(b, true, e->model_load->model, &err);
        if (m) {
            models_load(b, to, m, e->model_load->has_pin && e->model_load->pin,
                        !e->model_load->has_resident || e->model_load->resident);
            return;
        }
        break;
    case HEARTH__ENVELOPE__BODY_MODEL_UNLOAD:
        m = model_named(b, true, e->model_unload->model, &err);
        if (m && models_unload(b, m, &err) == 0) {
            post_done(b, to, m->file.name);
            return;
        }
        break;
    case HEARTH__ENVELOPE__BODY_TEXT_ASK:
        m = model_named(b, e->text_ask->has_model, e->text_ask->model, &err);
        if (m) {
            char name[LIMIT_MODEL_NAME_BYTES] = "";
            if (e->text_ask->has_model) {
                message_copy(name, sizeof name, e->text_ask->model);
            }
            texts_ask(b, to, m, config_find_alias(&b->config, name), e->text_ask, msg->payload,
                      msg->payload_len);
            return;
        }
        break;
    default:
        if (c->state != CLIENT_ATTACHED) {
            err_set(&err, ERR_REFUSED, "%s is for clients that attached",
                    message_name(e->body_case));
        } else if (from_attached(b, to, c, e, msg, &err)) {
            return;
        }
    }
    post_failed(b, to, NULL, &err);
}

/* ---- workers ---- */

/* Only the owner gives a log back. */
static struct request *held_request(struct broker *b, const struct worker *w, uint64_t segment,
                                    uint32_t slot, uint32_t generation)
{
    struct shard *shard = shards_find_segment(&b->shards, segment);
    struct request *r = shard ? requests_find_slot(&b->requests, shard, slot, generation) : NULL;
    return r && r->worker == w->child ? r : NULL;
}

static void on_released(struct broker *b, struct worker *w, const Hearth__WorkerReleased *msg)
{
    struct request *r = held_request(b, w, msg->shard, msg->slot, msg->generation);
    struct err why = { 0 };
    if (!r) {
        return;
    }
    if (msg->has_code && msg->code.len) {
        char code[64];
        message_copy(code, sizeof code, msg->code);
        why.code = err_code_of_name(code);
        message_copy(why.text, sizeof why.text, msg->text);
    }
    request_return(b, r, "the worker gave it back");
    if (request_ended(r) || why.code == ERR_NONE) {
        return;
    }
    if (why.code == ERR_BUSY || why.code == ERR_FULL) {
        r->not_before_ms = b->now_ms + 50; /* it has no sequence free: others must end first */
    } else {
        request_end(b, r, JOURNAL_END_ERROR, &why);
    }
}

static void on_finished(struct broker *b, struct worker *w, const Hearth__WorkerFinished *msg)
{
    struct request *r = held_request(b, w, msg->shard, msg->slot, msg->generation);
    if (r) {
        workers_proved(w);
        request_return(b, r, "the worker says it is finished, but its log has no end");
    }
}

static void from_worker(struct broker *b, struct worker *w, const Hearth__Envelope *e)
{
    switch (e->body_case) {
    case HEARTH__ENVELOPE__BODY_WORKER_NEED:
        models_on_need(b, w->child, e->worker_need);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_BOUND:
        models_on_bound(b, w->child, e->worker_bound);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_UNBOUND:
        models_on_unbound(b, w->child, e->worker_unbound->model);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_RELEASED:
        on_released(b, w, e->worker_released);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_FINISHED:
        on_finished(b, w, e->worker_finished);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_PARKED:
        parks_on_parked(b, w->child, e->worker_parked);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_FORGOT:
        keeps_on_forgot(b, w, e->worker_forgot->segment);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_EVALUATED:
        evals_done(b, w->child, e->worker_evaluated);
        break;
    case HEARTH__ENVELOPE__BODY_FAILED:
        log_warn("worker %u did not understand: %.*s", w->child, (int)e->failed->text.len,
                 (const char *)e->failed->text.data);
        break;
    default:
        log_warn("worker %u: %s is not its to say", w->child, message_name(e->body_case));
    }
}

/* ---- everybody ---- */

void door_on_message(struct broker *b, const struct link_msg *msg)
{
    struct err err = { 0 };
    struct post_to to = { .peer = msg->peer };
    Hearth__Envelope *e = message_unpack(&b->arena, msg->envelope, msg->envelope_len, &err);
    if (!e) {
        door_on_bad(b, &msg->peer, &err);
        return;
    }
    to.has_cookie = e->has_cookie;
    to.cookie = e->cookie;
    if (e->body_case == HEARTH__ENVELOPE__BODY_HELLO) {
        clients_on_hello(b, &to, e->hello);
        return;
    }
    struct client *c = clients_find_peer(&b->clients, &msg->peer);
    if (c) {
        from_client(b, &to, c, e, msg);
        return;
    }
    for (uint32_t i = 0; i < b->workers.n; i++) {
        struct worker *w = &b->workers.list[i];
        if (w->state == WORKER_READY && link_peer_equal(&w->peer, &msg->peer)) {
            from_worker(b, w, e);
            return;
        }
    }
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        if (m->text.ready && link_peer_equal(&m->text.peer, &msg->peer)) {
            if (e->body_case == HEARTH__ENVELOPE__BODY_TEXT_DONE) {
                texts_done(b, m->text.child, e->text_done, msg->payload, msg->payload_len);
            }
            return;
        }
    }
    /* A client of the last broker whose socket found its way here by itself: this code tells it to greet anew. */
    err_set(&err, ERR_CLOSED, "%s before Hello", message_name(e->body_case));
    post_failed(b, &to, NULL, &err);
}

void door_on_bad(struct broker *b, const struct link_peer *peer, const struct err *why)
{
    struct post_to to = { .peer = *peer };
    if (b->n_bad++ == 0) {
        log_warn("a frame is refused: %s; more such are counted, not logged", why->text);
    }
    if (peer->len) {
        post_failed(b, &to, NULL, why);
    }
}
