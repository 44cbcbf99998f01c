/* A tiny model on a backend with a cache of its own, and steps over it. */
#pragma once

#include <time.h>

#include "tests/cuda/twins.h"

#include "tests/worker/tiny.h"
#include "worker/forward.h"

/* A test with longer prompts says so before it includes this. */
#ifndef RIG_CTX
#define RIG_CTX   256
#define RIG_ROWS  40
#define RIG_PAGES 16
#endif
#define RIG_SEQS 4

/* What rigs started from here on leave in the host's memory; NULL: nothing. */
static const struct spill *rig_spill;

struct rig {
    struct weights w;
    struct backend *backend;
    bool borrowed; /* the backend */
    struct model *m;
    struct forward *f;
    struct kvcache kv;
    void *memory;
    size_t memory_bytes;
};

/* What a worker does when it binds a model that is mapped, on a backend that is open: r->w, r->backend. */
static inline void rig_bind(struct rig *r, enum dtype kv)
{
    struct err err = { 0 };
    const struct model_options model = {
        .k_type = kv, .v_type = kv, .ctx_len = RIG_CTX, .spill = rig_spill
    };
    r->m = model_bind(&r->w, r->backend, &model, &err);
    r->f = r->m ? forward_create(r->m, r->backend, RIG_ROWS, 8, &err) : NULL;
    if (!r->f) {
        fail_msg("%s", err.text);
    }
    r->memory_bytes = kvcache_size(&r->m->kv, RIG_PAGES, RIG_SEQS, RIG_CTX);
    r->memory = aligned_alloc(4096, (r->memory_bytes + 4095) / 4096 * 4096);
    assert_non_null(r->memory);
    memset(r->memory, 0xff, r->memory_bytes);
    assert_ok(kvcache_init(&r->kv, &r->m->kv, r->memory, r->memory_bytes, RIG_PAGES, RIG_SEQS,
                           RIG_CTX, &err),
              err);
    assert_ok(kvcache_place(&r->kv, r->backend, &err), err);
}

static inline void rig_start_on(struct rig *r, const struct tiny *t, struct backend *backend,
                                enum dtype kv)
{
    *r = (struct rig){ .backend = backend, .borrowed = true };
    tiny_map(t, &r->w);
    rig_bind(r, kv);
}

static inline void rig_start(struct rig *r, const struct tiny *t, bool cuda, enum dtype kv)
{
    struct err err = { 0 };
    const struct backend_options options = { .n_threads = 1 };
    struct backend *b = cuda ? cuda_open("cuda", &options, &err)
                             : backend_open("cpu", &options, &err);
    if (!b) {
        fail_msg("%s", err.text);
    }
    rig_start_on(r, t, b, kv);
    r->borrowed = false;
}

static inline void rig_unbind(struct rig *r)
{
    kvcache_clear(&r->kv);
    free(r->memory);
    forward_destroy(&r->f);
    model_destroy(&r->m);
}

/* Weights that stay when their model goes (worker/kept.h): registered, so many bytes of them; given back. */
static inline void rig_pin(struct rig *r, uint64_t bytes)
{
    const struct timespec pause = { .tv_nsec = 200000 };
    time_t until = time(NULL) + 60;
    r->backend->ops->pin(r->backend, r->w.base, r->w.size);
    while (r->backend->ops->pinned(r->backend, r->w.base) < bytes) {
        assert_true(time(NULL) < until);
        nanosleep(&pause, NULL);
    }
}

static inline void rig_unpin(struct rig *r)
{
    const struct timespec pause = { .tv_nsec = 200000 };
    time_t until = time(NULL) + 60;
    while (!r->backend->ops->unpin(r->backend, r->w.base)) {
        assert_true(time(NULL) < until);
        nanosleep(&pause, NULL);
    }
}

static inline void rig_stop(struct rig *r)
{
    rig_unbind(r);
    if (!r->borrowed) {
        backend_close(&r->backend);
    }
    weights_unmap(&r->w);
}

static inline uint32_t rig_begin(struct rig *r, uint64_t tag)
{
    struct err err = { 0 };
    uint32_t seq;
    assert_ok(kvcache_begin(&r->kv, (struct kvcache_tag){ .lo = tag }, 0, &seq, &err), err);
    return seq;
}

/* Positions from .. to of n_seqs sequences in one step; logits of each sequence's last row. */
static inline void rig_step(struct rig *r, const uint32_t *seqs, uint32_t n_seqs, uint32_t from,
                            uint32_t to, float *logits)
{
    int32_t tokens[RIG_ROWS];
    uint32_t rows[RIG_ROWS], n = 0;
    int64_t positions[RIG_ROWS];
    uint8_t flags[RIG_ROWS];
    struct err err = { 0 };
    for (uint32_t s = 0; s < n_seqs; s++) {
        for (uint32_t i = from; i < to && n < RIG_ROWS; i++, n++) {
            tokens[n] = (int32_t)((i * 29 + seqs[s] * 7 + 3) % r->m->vocab_size);
            rows[n] = seqs[s];
            positions[n] = i;
            flags[n] = i + 1 == to ? FORWARD_LOGITS : 0;
        }
    }
    const struct forward_batch batch = { n, tokens, rows, positions, flags, NULL };
    assert_ok(forward_step(r->f, &r->kv, &batch, logits, NULL, &err), err);
}

/* One position of several sequences, each one further than the one before: at, at + 1, ... */
static inline void rig_step_at(struct rig *r, const uint32_t *seqs, uint32_t n_seqs, uint32_t at,
                               float *logits)
{
    int32_t tokens[RIG_SEQS];
    int64_t positions[RIG_SEQS];
    uint8_t flags[RIG_SEQS];
    struct err err = { 0 };
    for (uint32_t s = 0; s < n_seqs; s++) {
        tokens[s] = (int32_t)(((at + s) * 29 + seqs[s] * 7 + 3) % r->m->vocab_size);
        positions[s] = at + s;
        flags[s] = FORWARD_LOGITS;
    }
    const struct forward_batch batch = { n_seqs, tokens, seqs, positions, flags, NULL };
    assert_ok(forward_step(r->f, &r->kv, &batch, logits, NULL, &err), err);
}
