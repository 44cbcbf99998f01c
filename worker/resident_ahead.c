/* One step ahead: while a device computes a step, the next one is made and handed to it, so that it never waits for the host.
 *
 * Where the tokens are chosen on the device (pick.h), a decode row needs no token from the host: it reads the one that the step
 * before left in its sequence's slot. So a turn of the loop is
 *
 *     plan step k+1 as if every sequence of step k went on          (resident_step.c; `in_flight`: one token more than is known)
 *     hand it to the device, which still computes step k            (forward_leave; this waits until step k has ended)
 *     take step k's tokens: commit them, as always
 *     what ended there was computed in vain in step k+1: its position is taken back, its token of step k+1 never looked at
 *     send what is known now to the mirror
 *
 * A request sees no difference: a token is committed when its step has ended, a moment after the next one has begun. What is
 * computed in vain is one row of one step for each request. What must hold:
 *   - a position whose token is not known yet says -1 in the state's tokens, and is not sent to the mirror before it is known: a
 *     successor believes no position that has a wrong name;
 *   - between two turns all positions in the cache have known tokens; only a choice may be under way. So a request can be released or
 *     cancelled, and a sequence can lose its seat, at any time: its row of the step under way is recognised by its arrival, and dropped;
 *   - a request that needs the host (logits with alternatives, banned strings, what pick_can refuses) makes steps wait for their
 *     tokens as on a CPU as long as it runs; the others' tokens are chosen on the device all the same.
 * HEARTH_AHEAD=0 leaves all choices to the host; the tokens are the same (tests/cuda/test_ahead.c). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/resident_parts.h"

int ahead_create(struct resident *r, struct err *err)
{
    const char *told = getenv("HEARTH_AHEAD");
    const struct backend_ops *ops = r->backend->ops;
    uint32_t n = r->options.n_sequences;
    if (!ops->sample || !ops->leave || !r->model->causal || (told && strcmp(told, "0") == 0)) {
        return 0;
    }
    static_assert(LIMIT_WORKER_SEQUENCES <= OP_PICK_ROWS_MAX, "a slot for each sequence");
    r->picks = calloc(n, sizeof *r->picks);
    r->changes = calloc((size_t)n * OP_PICK_CHANGES_MAX, sizeof *r->changes);
    if (!r->picks || !r->changes) {
        return err_set(err, ERR_NO_MEMORY, "no memory to choose tokens of %u sequences", n);
    }
    r->picker = picker_create(r->model->vocab_size, &r->pieces, err);
    return r->picker ? 0 : -1;
}

void ahead_destroy(struct resident *r)
{
    struct err err;
    if (r->ahead.flying) {
        (void)r->backend->ops->finish(r->backend, &err); /* it writes to memory that goes now */
    }
    picker_destroy(&r->picker);
    free(r->picks);
    free(r->changes);
}

bool ahead_picks(const struct resident *r, const struct sequence *s)
{
    return r->picker && !s->held && pick_can(r->picker, &s->sampler, s->n_tokens + s->in_flight);
}

bool ahead_may(const struct resident *r)
{
    if (!r->picker || r->batch.set_aside || !resident_all_read(r)) {
        return false;
    }
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        if (resident_runs(&r->sequences[i]) && !ahead_picks(r, &r->sequences[i])) {
            return false;
        }
    }
    return true;
}

void ahead_pick(struct resident *r, struct sequence *s)
{
    struct op_pick *pick = &r->picks[r->batch.n_picks++];
    pick->slot = (uint32_t)(s - r->sequences);
    uint32_t n = pick_make(r->picker, &s->sampler, s->tokens, s->n_tokens, s->in_flight, pick,
                           r->changes + r->n_changes);
    pick->first_change = r->n_changes;
    r->n_changes += n;
}

void ahead_take(struct sequence *s, const struct op_picked *picked)
{
    struct err err;
    if (picked->token < 0) {
        err_set(&err, ERR_FAILED, "the model gave no finite logit at position %u", s->n_tokens);
        resident_fail(s, err.code, err.text);
        return;
    }
    const struct sampler_choice choice = pick_choice(&s->sampler, picked);
    if (sequence_accept(s, &choice, &err) < 0) {
        resident_fail(s, err.code, err.text);
    }
}

/* The tokens of the step that has ended, which was `picked`. */
static void take_all(struct resident *r, const struct op_picked *picked)
{
    struct resident_ahead *a = &r->ahead;
    for (uint32_t i = 0; i < a->n; i++) {
        struct sequence *s = a->rows[i].s;
        if (!s->open || s->arrival != a->rows[i].arrival) {
            continue;
        }
        s->in_flight = false;
        if (!s->ended) {
            ahead_take(s, &picked[a->rows[i].pick]);
        }
    }
    a->n = 0;
    a->flying = false;
}

/* A sequence of the step that has begun: what of it is known now. */
static int follow(struct resident *r, struct sequence *s, bool fed, struct err *err)
{
    struct kvcache *kv = &r->state.kv;
    uint32_t seq = (uint32_t)s->kv;
    if (fed && s->ended) {
        return kvcache_take_back(kv, seq, err);
    }
    if (fed) {
        state_tokens(&r->state, seq)[s->n_tokens - 1] = s->tokens[s->n_tokens - 1];
    }
    return kvcache_send(kv, seq, false, err);
}

int ahead_step(struct resident *r, const struct forward_batch *batch, struct err *err)
{
    struct resident_ahead *a = &r->ahead;
    const struct resident_batch *b = &r->batch;
    bool fed[LIMIT_WORKER_SEQUENCES], flew = a->flying;
    for (uint32_t i = 0; i < b->n; i++) {
        fed[i] = b->order[i]->in_flight;
    }
    double began = resident_now_s();
    if (forward_leave(r->forward, &r->state.kv, batch, err) < 0) {
        return err_wrap(err, "a step of %u rows", batch->n_tokens);
    }
    double now = resident_now_s();
    if (flew) {
        batch_observe(&r->pace, a->shared, a->prefill_rows, now - a->began);
        began = now; /* of this one, as the device sees it */
    }
    take_all(r, a->picked[a->turn ^ 1]);
    for (uint32_t i = 0, pick = 0; i < b->n; i++) {
        struct sequence *s = b->order[i];
        if (b->items[i].n_rows == 0) {
            continue;
        }
        if (follow(r, s, fed[i], err) < 0) {
            return -1;
        }
        if (b->items[i].n_rows == b->items[i].n_left) {
            if (resident_runs(s)) {
                s->in_flight = true;
                a->rows[a->n].s = s;
                a->rows[a->n].arrival = s->arrival;
                a->rows[a->n++].pick = pick;
            }
            pick++;
        }
    }
    a->flying = true;
    a->turn ^= 1;
    a->shared = b->shared;
    a->prefill_rows = batch->n_tokens - b->n_decode;
    a->began = began;
    return 0;
}

int ahead_settle(struct resident *r, struct err *err)
{
    struct resident_ahead *a = &r->ahead;
    if (!a->flying) {
        return 0;
    }
    if (r->backend->ops->finish(r->backend, err) < 0) {
        return -1;
    }
    take_all(r, a->picked[a->turn ^ 1]);
    return 0;
}
