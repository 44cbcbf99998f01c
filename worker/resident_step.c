/* A step of a resident model: conversations come back from files, sequences take seats and pages, the batch runs, tokens are
 * sampled and committed. */
#include <assert.h>
#include <string.h>

#include "proto/log.h"
#include "worker/prefix.h"
#include "worker/resident_parts.h"

/* ---- conversations that come back ---- */

/* The next piece of the file that is being read; its request is seated when that has come to an end, well or not. */
static void fetch_piece(struct resident *r)
{
    struct err err;
    int got = park_read(&r->reading, &err);
    if (got < 0) {
        log_warn("a parked conversation is not believed: %s", err.text);
    }
    for (uint32_t i = 0; got && i < r->options.n_sequences; i++) {
        r->sequences[i].fetching = false;
    }
}

/* One file at a time: somebody's who waits for a seat. What is here already is not read. */
static void fetch(struct resident *r, struct sequence **order, uint32_t n)
{
    struct err err;
    for (uint32_t i = 0; i < n && !r->reading.state; i++) {
        struct sequence *s = order[i];
        if (s->parked_fd < 0 || s->kv != SEQUENCE_NO_KV) {
            continue;
        }
        uint32_t have = prefix_have(&r->state, s->name.shard, s->tag, s->tokens, s->n_tokens);
        int64_t will = park_read_begin(&r->reading, &r->state, s->name.shard, r->park_key,
                                       s->tokens, s->n_tokens, have, s->parked_fd, &err);
        s->parked_fd = -1;
        s->fetching = will > 0;
        if (will < 0) {
            log_warn("a parked conversation is not used: %s", err.text);
        }
    }
    if (r->reading.state) {
        fetch_piece(r);
    }
}

/* ---- a step ---- */

void resident_fail(struct sequence *s, enum err_code code, const char *reason)
{
    struct err err;
    if (!s->ended && sequence_end(s, JOURNAL_END_ERROR, code, reason, &err) < 0) {
        log_error("request in slot %u: its end cannot be written: %s", s->name.slot, err.text);
        s->ended = s->lost = true;
    }
}

static void hear_cancels(struct resident *r)
{
    struct err err;
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        struct sequence *s = &r->sequences[i];
        if (resident_runs(s) && sequence_cancelled(s) &&
            sequence_end(s, JOURNAL_END_CANCELLED, ERR_CANCELLED, NULL, &err) < 0) {
            resident_fail(s, err.code, err.text);
        }
    }
}

/* Those that run, the oldest first. */
static uint32_t by_arrival(struct resident *r, struct sequence **order)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        struct sequence *s = &r->sequences[i];
        if (!resident_runs(s)) {
            continue;
        }
        uint32_t at = n++;
        for (; at > 0 && order[at - 1]->arrival > s->arrival; at--) {
            order[at] = order[at - 1];
        }
        order[at] = s;
    }
    return n;
}

/* Gives sequences without a place in the cache one. Those that had to leave come back when room was freed, or when nobody
 * else is there. */
static void seat(struct resident *r, struct sequence **order, uint32_t n)
{
    bool anybody = false;
    struct err err;
    for (uint32_t i = 0; i < n; i++) {
        anybody |= order[i]->kv != SEQUENCE_NO_KV;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct sequence *s = order[i];
        if (s->kv != SEQUENCE_NO_KV || s->fetching || s->parked_fd >= 0 ||
            (s->parked && anybody && !r->room_freed)) {
            continue;
        }
        uint32_t seq, n_cached;
        if (prefix_begin(&r->state, s->name.shard, s->tag, s->tokens, s->n_tokens, &seq, &n_cached,
                         &err) < 0) {
            break; /* an evaluation has the last one; later */
        }
        s->kv = seq;
        s->n_cached = n_cached < s->n_prompt ? n_cached : s->n_prompt;
        if (s->parked) {
            s->parked = false;
            break; /* one at a time: it may need all that was freed */
        }
        anybody = true;
    }
    r->room_freed = false;
}

static void park(struct resident *r, struct sequence *s)
{
    state_drop(&r->state, (uint32_t)s->kv);
    s->kv = SEQUENCE_NO_KV;
    s->parked = true;
}

/* Pages for this step's rows of sequence i: from the free ones, from idle sequences, from younger ones. The oldest can
 * always go on: the pool holds at least one whole context. */
static void make_pages(struct resident *r, struct sequence **order, struct batch_item *items,
                       uint32_t n, uint32_t i)
{
    struct err err;
    while (kvcache_reserve(&r->state.kv, (uint32_t)order[i]->kv, items[i].n_rows, &err) < 0) {
        if (err.code == ERR_FULL && state_evict(&r->state)) {
            continue;
        }
        uint32_t victim = n - 1;
        while (victim > i && order[victim]->kv == SEQUENCE_NO_KV) {
            victim--;
        }
        if (err.code != ERR_FULL || (victim == i && i == 0 && r->n_evaluations == 0)) {
            resident_fail(order[i], ERR_NO_FIT, err.text);
            items[i].n_rows = 0;
            return;
        }
        park(r, order[victim]);
        items[victim].n_rows = 0;
        if (victim == i) {
            return;
        }
    }
}

/* Fills the step's arrays; returns its rows. */
static uint32_t fill(struct resident *r, struct sequence **order, const struct batch_item *items,
                     uint32_t n)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct sequence *s = order[i];
        if (items[i].n_rows == 0) {
            continue;
        }
        int64_t pos = kvcache_pos(&r->state.kv, (uint32_t)s->kv);
        int32_t *kept = state_tokens(&r->state, (uint32_t)s->kv);
        for (uint32_t k = 0; k < items[i].n_rows; k++, pos++, rows++) {
            bool known = pos < s->n_tokens;
            kept[pos] = known ? s->tokens[pos] : -1;
            r->tokens[rows] = known ? s->tokens[pos] : FORWARD_FED(s - r->sequences);
            r->seqs[rows] = (uint32_t)s->kv;
            r->positions[rows] = pos;
            r->flags[rows] = 0;
        }
        if (items[i].n_rows == items[i].n_left) {
            bool picks = ahead_picks(r, s);
            r->flags[rows - 1] = picks ? FORWARD_SAMPLE : FORWARD_LOGITS;
            if (picks) {
                ahead_pick(r, s);
            }
        }
    }
    return rows;
}

/* After tokens were taken back: the logits of the last one that stays are needed again, so it is fed again. */
static void rewind_cache(struct resident *r, struct sequence *s)
{
    struct err err;
    s->rewound = false;
    if (kvcache_truncate(&r->state.kv, (uint32_t)s->kv, s->n_tokens - 1, &err) < 0) {
        /* A recurrent state does not go back: begun anew, from what others may hold of it. */
        state_drop(&r->state, (uint32_t)s->kv);
        s->kv = SEQUENCE_NO_KV;
        r->room_freed = true;
    }
}

static void answer(struct resident *r, struct sequence *s, const float *logits)
{
    struct sampler_choice choice;
    struct err err;
    uint32_t at = s->n_tokens;
    do {
        s->rewound = false;
        struct sampler_refused refused = sequence_refused(s);
        if (sampler_choose(r->sampling, &s->sampler, logits, s->tokens, s->n_tokens, &refused,
                           &choice, &err) < 0 ||
            sequence_accept(s, &choice, &err) < 0) {
            resident_fail(s, err.code, err.text);
            return;
        }
    } while (s->rewound && s->n_tokens == at); /* another token from the same logits */
    if (s->rewound) {
        rewind_cache(r, s);
    }
}

/* Sequences that ended keep what they computed, as idle ones. */
static void leave_seats(struct resident *r)
{
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        struct sequence *s = &r->sequences[i];
        if (s->open && s->ended && s->kv != SEQUENCE_NO_KV) {
            state_idle(&r->state, (uint32_t)s->kv);
            s->kv = SEQUENCE_NO_KV;
            r->room_freed = true;
        }
    }
}

/* Chooses what steps now: r->batch and the step's arrays. */
static void plan_step(struct resident *r)
{
    struct resident_batch *b = &r->batch;
    b->n = by_arrival(r, b->order);
    b->n_decode = b->n_picks = r->n_changes = 0;
    fetch(r, b->order, b->n);
    seat(r, b->order, b->n);
    for (uint32_t i = 0; i < b->n; i++) {
        const struct sequence *s = b->order[i];
        uint32_t n_tokens = s->n_tokens + s->in_flight;
        b->items[i] = (struct batch_item){ 0 };
        if (s->kv != SEQUENCE_NO_KV && !(s->in_flight && sequence_at_length(s, n_tokens))) {
            b->items[i].n_left = n_tokens - (uint32_t)kvcache_pos(&r->state.kv, (uint32_t)s->kv);
            b->n_decode += b->items[i].n_left == 1;
        }
    }
    b->shared = b->n_decode > 0 || r->n_evaluations > 0;
    batch_plan(b->items, b->n, batch_budget(&r->pace, b->shared), r->rows_max);
    for (uint32_t i = 0; i < b->n; i++) {
        if (b->items[i].n_rows > 0) {
            make_pages(r, b->order, b->items, b->n, i);
        }
    }
    b->n_rows = fill(r, b->order, b->items, b->n);
}

/* Tokens of the rows that want one, from logits or from the device. */
static void answers(struct resident *r)
{
    const struct resident_batch *b = &r->batch;
    const float *row = r->logits;
    const struct op_picked *picked = r->ahead.picked[r->ahead.turn];
    for (uint32_t i = 0; i < b->n; i++) {
        if (b->items[i].n_rows == 0 || b->items[i].n_rows != b->items[i].n_left) {
            continue;
        }
        if (ahead_picks(r, b->order[i])) {
            ahead_take(b->order[i], picked++);
        } else {
            answer(r, b->order[i], row);
            row += r->model->vocab_size;
        }
    }
}

static int generate(struct resident *r, struct err *err)
{
    struct resident_batch *b = &r->batch;
    bool goes_on = b->set_aside, ahead = ahead_may(r);
    if (!ahead && ahead_settle(r, err) < 0) {
        return -1;
    }
    if (!goes_on) {
        plan_step(r);
    }
    b->set_aside = false;
    if (b->n_rows == 0) {
        int settled = ahead_settle(r, err);
        leave_seats(r);
        return settled;
    }
    const struct forward_sample sample = { .n_changes = r->n_changes,
                                           .picks = r->picks,
                                           .changes = r->changes,
                                           .picked = r->ahead.picked[r->ahead.turn] };
    const struct forward_batch batch = { .n_tokens = b->n_rows,
                                         .tokens = r->tokens,
                                         .seqs = r->seqs,
                                         .positions = r->positions,
                                         .flags = r->flags,
                                         .sample = b->n_picks > 0 ? &sample : NULL };
    if (ahead) {
        int begun = ahead_step(r, &batch, err);
        leave_seats(r);
        return begun;
    }
    double before = resident_now_s();
    r->data_wanted = 0;
    if (forward_step(r->forward, &r->state.kv, &batch, r->logits, NULL, err) < 0) {
        b->set_aside = r->data_wanted > 0;
        return b->set_aside ? 0 : err_wrap(err, "a step of %u rows", batch.n_tokens);
    }
    if (!goes_on) {
        batch_observe(&r->pace, b->shared, batch.n_tokens - b->n_decode, resident_now_s() - before);
    }
    answers(r);
    leave_seats(r);
    return 0;
}

void resident_abandon_step(struct resident *r)
{
    if (r->batch.set_aside) {
        r->batch.set_aside = false;
        forward_abandon(r->forward);
    }
}

/* ---- the loop's view ---- */

static bool generates_now(const struct resident *r)
{
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        if (resident_runs(&r->sequences[i])) {
            return true;
        }
    }
    return false;
}

/* An evaluation is not set aside half-way: it begins when all is there. */
static bool evaluates_now(const struct resident *r)
{
    return r->n_evaluations > 0 && resident_all_read(r);
}

bool resident_has_work(const struct resident *r)
{
    return r->phase == RESIDENT_READY && (evaluates_now(r) || r->reading.state || r->ahead.flying ||
                                          (generates_now(r) && !resident_wants_data(r)));
}

bool resident_waits(struct resident *r)
{
    bool waits = r->phase == RESIDENT_READY && !resident_all_read(r) &&
                 (r->n_evaluations > 0 || (generates_now(r) && resident_wants_data(r)));
    if (waits) {
        hear_cancels(r);
        atomic_fetch_add_explicit(&r->state.header->progress, 1, memory_order_relaxed);
    }
    return waits;
}

int resident_step(struct resident *r, struct err *err)
{
    assert(r->phase == RESIDENT_READY);
    hear_cancels(r);
    for (uint32_t i = 0; i < r->batch.n; i++) {
        if (r->batch.set_aside && !resident_runs(r->batch.order[i])) {
            resident_abandon_step(r);
        }
    }
    leave_seats(r);
    bool shared = generates_now(r);
    if (evaluates_now(r) && !r->batch.set_aside && (r->evaluate_next || !shared)) {
        r->evaluate_next = false;
        resident_evaluate_piece(r, shared);
        return 0;
    }
    r->evaluate_next = true;
    return generate(r, err);
}
