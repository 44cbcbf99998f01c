/* Evaluations on a resident model: logits or embeddings of given tokens, a piece at a time between the generations' steps. */
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "proto/shm.h"
#include "worker/resident_parts.h"

int resident_evaluate(struct resident *r, uint64_t work, enum evaluate_kind kind,
                      const uint32_t *lens, uint32_t n_lens, int64_t start, int bulk_fd,
                      uint64_t ids_bytes, uint64_t n_ids, struct err *err)
{
    assert(r->phase == RESIDENT_READY);
    if (r->n_evaluations == RESIDENT_EVALUATIONS) {
        return err_set(err, ERR_BUSY, "%d evaluations wait already", RESIDENT_EVALUATIONS);
    }
    struct resident_evaluation *v = &r->evaluations[r->n_evaluations];
    *v = (struct resident_evaluation){ .work = work };
    v->bulk = shm_map(bulk_fd, true, &v->bulk_bytes, err);
    if (!v->bulk) {
        return -1;
    }
    if (ids_bytes % sizeof(float) || ids_bytes > v->bulk_bytes ||
        n_ids > ids_bytes / sizeof(int32_t)) {
        err_set(err, ERR_BAD_INPUT, "%" PRIu64 " ids in %" PRIu64 " bytes of %zu", n_ids, ids_bytes,
                v->bulk_bytes);
        goto fail;
    }
    if (evaluate_init(&v->e, r->model, kind, v->bulk, n_ids, lens, n_lens, start, r->shape.ctx_len,
                      r->rows_max, err) < 0) {
        goto fail;
    }
    uint64_t room = (v->bulk_bytes - ids_bytes) / sizeof(float);
    if (v->e.n_rows > 0 && v->e.n_rows > room / v->e.n_cols) {
        err_set(err, ERR_NO_FIT, "%" PRIu64 " rows of %" PRIu64 " values, the segment has %" PRIu64,
                v->e.n_rows, v->e.n_cols, room);
        evaluate_clear(&v->e);
        goto fail;
    }
    v->e.out = (float *)(void *)((uint8_t *)v->bulk + ids_bytes);
    r->n_evaluations++;
    return 0;
fail:
    shm_unmap(v->bulk, v->bulk_bytes);
    *v = (struct resident_evaluation){ 0 };
    return -1;
}

void resident_evaluation_close(struct resident *r, uint32_t i)
{
    assert(i < r->n_evaluations);
    struct resident_evaluation *v = &r->evaluations[i];
    if (v->e.seq >= 0) {
        state_drop(&r->state, (uint32_t)v->e.seq);
        r->room_freed = true;
    }
    evaluate_clear(&v->e);
    shm_unmap(v->bulk, v->bulk_bytes);
    r->n_evaluations--;
    memmove(v, v + 1, (r->n_evaluations - i) * sizeof *v);
}

void resident_evaluate_piece(struct resident *r, bool shared)
{
    struct resident_evaluation *v = NULL;
    for (uint32_t i = 0; i < r->n_evaluations && !v; i++) {
        v = r->evaluations[i].ended ? NULL : &r->evaluations[i];
    }
    if (!v) {
        return;
    }
    struct evaluate *e = &v->e;
    struct kvcache_tag tag = { .hi = UINT64_MAX, .lo = v->work };
    uint32_t seq, rows = batch_budget(&r->pace, shared);
    if (e->seq < 0) {
        if (state_begin(&r->state, STATE_SHARD_NONE, tag, e->start, &seq, &v->error) < 0) {
            v->ended = true;
            return;
        }
        e->seq = seq;
    }
    rows = evaluate_rows(e, r->model, rows < r->rows_max ? rows : r->rows_max);
    while (kvcache_reserve(&r->state.kv, (uint32_t)e->seq, rows, &v->error) < 0) {
        if (v->error.code == ERR_FULL && state_evict(&r->state)) {
            continue;
        }
        if (v->error.code == ERR_FULL && shared) {
            v->error.code = ERR_NONE;
            return; /* those who generate will leave pages */
        }
        v->ended = true;
        return;
    }
    v->error = (struct err){ 0 };
    if (evaluate_step(e, r->model, r->forward, &r->state.kv, rows, &v->error) < 0) {
        v->ended = true;
        return;
    }
    if (e->seq_ended) {
        state_drop(&r->state, (uint32_t)e->seq);
        e->seq = -1;
        e->seq_ended = false;
        r->room_freed = true;
    }
    v->ended = evaluate_done(e);
}
