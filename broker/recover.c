#include "broker/recover.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/broker.h"
#include "proto/log.h"

/* The rows of the keeper's list; kept until it is complete, because what they mean depends on each other. */
static struct {
    struct {
        uint32_t child, role;
        int32_t pid;
        uint8_t token[LIMIT_TOKEN_BYTES];
        char tag[LIMIT_TAG_BYTES];
    } children[LIMIT_CHILDREN];
    struct {
        uint64_t segment, bytes;
        char tag[LIMIT_TAG_BYTES];
    } segments[LIMIT_SEGMENTS];
    uint32_t n_children, n_segments;
} list;

void recover_begin(struct broker *b)
{
    struct channel_msg msg = { .op = CHANNEL_LIST };
    list.n_children = list.n_segments = 0;
    keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_LIST, 0, 0);
}

void recover_row(struct broker *b, const struct channel_msg *msg)
{
    (void)b;
    if (msg->op == CHANNEL_CHILD && list.n_children < LIMIT_CHILDREN) {
        uint32_t i = list.n_children++;
        list.children[i].child = msg->child;
        list.children[i].role = msg->role;
        list.children[i].pid = msg->pid;
        memcpy(list.children[i].token, msg->token, LIMIT_TOKEN_BYTES);
        memcpy(list.children[i].tag, msg->tag, LIMIT_TAG_BYTES);
    } else if (msg->op == CHANNEL_SEGMENT && list.n_segments < LIMIT_SEGMENTS) {
        uint32_t i = list.n_segments++;
        list.segments[i].segment = msg->segment;
        list.segments[i].bytes = msg->bytes;
        memcpy(list.segments[i].tag, msg->tag, LIMIT_TAG_BYTES);
    }
}

static enum request_state state_of(enum journal_state state)
{
    switch (state) {
    case JOURNAL_QUEUED:
        return REQUEST_QUEUED;
    case JOURNAL_PREFILL:
        return REQUEST_PREFILL;
    case JOURNAL_DECODE:
        return REQUEST_DECODE;
    case JOURNAL_DONE:
        return REQUEST_DONE;
    case JOURNAL_CANCELLED:
        return REQUEST_CANCELLED;
    default:
        return REQUEST_FAILED;
    }
}

/* A slot's words are ours alone, but a broker that died in the middle of writing them, or a wild write, must not take
 * this one with it: a log out of bounds frees the slot. */
static bool slot_is_sound(const struct journal *j, const struct journal_slot *slot)
{
    uint64_t end = j->header.arena_off + j->header.arena_bytes;
    return slot->extent_off >= j->header.arena_off && slot->extent_off <= end &&
           slot->extent_bytes <= end - slot->extent_off && slot->log_off >= slot->extent_off &&
           slot->log_bytes >= sizeof(struct journal_log) &&
           slot->log_off + slot->log_bytes <= slot->extent_off + slot->extent_bytes &&
           slot->prompt_off >= slot->extent_off &&
           slot->prompt_off + slot->n_prompt * sizeof(int32_t) <= slot->log_off &&
           slot->log_off % 8 == 0 && memchr(slot->model.name, 0, sizeof slot->model.name);
}

/* Reserved and never published, or half freed: what was written of a prompt is scrubbed, as journal_free would have. */
static void free_slot(struct journal *j, struct journal_slot *slot)
{
    uint64_t end = j->header.arena_off + j->header.arena_bytes;
    if (slot->extent_off < j->header.arena_off || slot->extent_off > end ||
        slot->extent_bytes > end - slot->extent_off) {
        slot->extent_bytes = 0;
        return;
    }
    journal_free(j, slot);
}

static void recover_slot(struct broker *b, struct shard *shard, uint32_t i)
{
    struct journal *j = &shard->journal;
    struct journal_slot *slot = journal_slot_at(j, i);
    enum journal_state state = journal_get_state(slot);
    struct err err = { 0 };
    if (state == JOURNAL_FREE) {
        if (slot->extent_bytes) {
            free_slot(j, slot);
        }
        return;
    }
    struct request *r = state < JOURNAL_N_STATES && slot_is_sound(j, slot) ? request_create(b, &err)
                                                                           : NULL;
    if (!r) {
        log_error("journal: slot %u of uid %u is lost: %s", i, (unsigned)shard->uid,
                  err.code ? err.text : "it is damaged");
        journal_set_state(slot, JOURNAL_FREE);
        slot->extent_bytes = 0;
        return;
    }
    memcpy(r->id, slot->id, sizeof r->id);
    r->shard = shard;
    r->admitted = true;
    r->slot = i;
    r->generation = slot->generation;
    r->digest = slot->body_digest;
    r->flow = slot->flow;
    r->admit_seq = slot->admit_seq;
    r->priority = slot->params.priority <= QUEUE_BATCH ? slot->params.priority : QUEUE_NORMAL;
    r->detach = slot->params.detach;
    r->deadline_unix_ms = slot->params.deadline_unix_ms;
    r->state = state_of(state);
    r->billed = true;
    r->charged = r->n_taken = request_committed(r);
    if (slot->admit_seq > b->last_admit) {
        b->last_admit = slot->admit_seq;
    }
    uint64_t unix_ms = broker_unix_ms();
    uint64_t age = unix_ms > slot->admitted_unix_ms ? unix_ms - slot->admitted_unix_ms : 0;
    r->born_ms = b->now_ms > age ? b->now_ms - age : 1;
    uint64_t spoke_ms = request_spoke_ms(r);
    r->waits_ms = spoke_ms > r->born_ms && spoke_ms < b->now_ms ? spoke_ms : r->born_ms;
    /* Records go on when the client resumes; its old peer is no peer of this broker. */
    if (slot->records) {
        atomic_store(&slot->reader, b->records.reader);
    }
    if (request_ended(r)) {
        /* Kept from its end on, not from ours: brokers that die young would keep it for ever. */
        struct journal_record end;
        uint64_t ended_ms = request_find_end(r, &end) ? end.time_us / 1000 : b->now_ms;
        r->ended_ms = ended_ms < b->now_ms ? ended_ms : b->now_ms;
        return;
    }
    queue_enter(&b->queue, r->flow);
    r->held = true;
    if (slot->attached) {
        r->come_back_ms = b->now_ms + LIMIT_COME_BACK_S * 1000u;
    }
    uint64_t owner = atomic_load(&slot->owner);
    if (owner && workers_find(&b->workers, (uint32_t)owner)) {
        r->worker = (uint32_t)owner;
        if (r->state == REQUEST_QUEUED) {
            request_move(b, r, REQUEST_PREFILL, "the last broker gave it to a worker");
        }
    } else {
        request_return(b, r, "its worker is gone");
    }
    if (request_ended(r)) {
        return;
    }
    r->model = models_get(b, slot->model.name, NULL, &err);
    if (r->model) {
        models_promised(r->model, slot);
        swap_recovered(r->model, spoke_ms < b->now_ms ? spoke_ms : 0, r->born_ms);
    } else if (r->worker == 0) {
        request_end(b, r, JOURNAL_END_ERROR, &err);
    }
}

/* Whether a live request's worker wakes a sleeper by this page. */
static bool reader_is_named(struct broker *b, uint64_t segment)
{
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (!request_ended(r) && atomic_load(&request_slot(r)->reader) == segment) {
            return true;
        }
    }
    return false;
}

static void drop_reader(struct broker *b, uint64_t segment)
{
    struct channel_msg drop = { .op = CHANNEL_DROP, .segment = segment };
    keeper_line_ask(b->keeper, &drop, NULL, 0, KEEPER_NOTHING, 0, 0);
}

/* Weights before what hangs on them: they name their model, and the keeper's rows stand in no order. */
static void recover_segments(struct broker *b, bool weights)
{
    for (uint32_t i = 0; i < list.n_segments; i++) {
        uint64_t segment = list.segments[i].segment;
        const char *tag = list.segments[i].tag;
        if (strncmp(tag, "shard ", 6) == 0 || (strncmp(tag, "weights ", 8) == 0) != weights) {
            continue; /* done before, or another time */
        }
        if (strncmp(tag, "reader ", 7) == 0 || strcmp(tag, "own reader") == 0) {
            /* Workers wake by it and clients sleep on it until they come anew. Others go now: brokers that die young would
             * heap them up. */
            struct clients *c = &b->clients;
            if (segment == b->records.reader) {
                continue; /* this broker's, deposited before it asked for the list */
            }
            if (!reader_is_named(b, segment)) {
                drop_reader(b, segment);
                continue;
            }
            if (!c->old_readers) {
                c->old_readers = calloc(LIMIT_SEGMENTS, sizeof *c->old_readers);
            }
            if (c->old_readers) {
                c->old_readers[c->n_old++] = segment;
                c->old_until_ms = b->now_ms + LIMIT_COME_BACK_S * 1000u;
            }
            continue;
        }
        if (lend_adopt(b, segment, tag)) {
            continue;
        }
        models_adopt_segment(b, segment, list.segments[i].bytes, tag);
    }
}

void recover_end(struct broker *b)
{
    uint32_t n_live = 0;
    if (shards_scan(&b->shards, &b->fatal) < 0) {
        err_wrap(&b->fatal, "the journal");
        return; /* the next broker may find it open */
    }
    for (uint32_t i = 0; i < list.n_segments; i++) {
        unsigned uid;
        struct shard *shard = sscanf(list.segments[i].tag, "shard %u", &uid) == 1
                                  ? shards_find(&b->shards, uid)
                                  : NULL;
        if (shard) {
            shard->segment = list.segments[i].segment;
            shard->deposited = true;
        }
    }
    for (uint32_t i = 0; i < b->shards.n; i++) {
        shards_deposit(b, &b->shards.list[i]);
    }
    for (uint32_t i = 0; i < list.n_children; i++) {
        if (list.children[i].role == HERITAGE_WORKER) {
            workers_adopt(b, list.children[i].child, list.children[i].pid, list.children[i].token,
                          list.children[i].tag);
        }
    }
    for (uint32_t i = 0; i < b->shards.n; i++) {
        for (uint32_t k = 0; k < b->shards.list[i].journal.header.n_slots; k++) {
            recover_slot(b, &b->shards.list[i], k);
        }
    }
    recover_segments(b, true);
    recover_segments(b, false);
    for (uint32_t i = 0; i < list.n_children; i++) {
        if (list.children[i].role == HERITAGE_HTTP) {
            gateway_adopt(b, list.children[i].child, list.children[i].pid, list.children[i].tag);
        }
        if (list.children[i].role == HERITAGE_LOADER || list.children[i].role == HERITAGE_TEXT) {
            models_adopt_child(b, list.children[i].role, list.children[i].child,
                               list.children[i].pid, list.children[i].token, list.children[i].tag);
        }
    }
    models_adopted(b);
    swap_adopted(b);
    for (uint32_t i = 0; i < b->requests.n; i++) {
        n_live += !request_ended(b->requests.list[i]);
    }
    if (b->heritage.broker_epoch > 1 || n_live) {
        log_info("epoch %u: %u requests in the journal, %u of them live; %u children, %u segments",
                 b->heritage.broker_epoch, b->requests.n, n_live, list.n_children, list.n_segments);
    }
    b->listed = true;
}
