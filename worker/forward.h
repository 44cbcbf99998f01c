/* The forward pass, once, top to bottom, for every architecture and backend: token ids in, logits or
 * embeddings out. One step takes rows of many sequences: decode rows (one token) and prefill chunks (many)
 * mixed as the caller likes; each row's bits do not depend on the mixture. Worker, loop thread only.
 *
 *     struct model *m = model_bind(&weights, backend, &options, &err);
 *     struct forward *f = forward_create(m, backend, 512, 16, &err);
 *     kvcache_init(&kv, &m->kv, memory, size, n_pages, max_seqs, m->ctx_len, &err);
 *     kvcache_begin(&kv, tag, 0, &seq, &err);
 *     forward_step(f, &kv, &batch, logits, NULL, &err);
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "proto/err.h"
#include "worker/kvcache.h"
#include "worker/model.h"

#define FORWARD_LOGITS     0x1   /* this row's logits are wanted */
#define FORWARD_TOKENS_MAX 16384 /* rows of one step: beyond it only memory grows, not speed */
#define FORWARD_EMBED      0x2   /* this row's state after the output norm is wanted */
#define FORWARD_SAMPLE     0x4   /* this row's token is wanted, chosen where its logits are */

/* In place of a token: what a step before chose and left in this slot. */
#define FORWARD_FED(slot) (-1 - (int32_t)(slot))

/* For rows with FORWARD_SAMPLE, in batch order: how each is chosen (op_sample; `row` is filled in here), and what was. */
struct forward_sample {
    uint32_t n_changes;
    struct op_pick *picks;
    const struct op_pick_change *changes;
    struct op_picked *picked;
};

/* All arrays are the caller's, [n_tokens]. Rows of one sequence stand together, in order of position, the first
 * at kvcache_pos(seq). Encoders (model.causal false) take a whole sequence in one step. */
struct forward_batch {
    uint32_t n_tokens;
    const int32_t *tokens;
    const uint32_t *seqs; /* slots of the kvcache */
    const int64_t *positions;
    const uint8_t *flags;                /* FORWARD_* bits; NULL: none */
    const struct forward_sample *sample; /* NULL: no row has FORWARD_SAMPLE */
};

struct forward;

/* Work space for steps of at most max_tokens rows of which at most max_outputs give logits at a time (a step may
 * flag more: their logits are then computed in groups). model and backend are borrowed.
 * Errors: ERR_NO_MEMORY, ERR_UNSUPPORTED. */
struct forward *forward_create(const struct model *model, struct backend *backend,
                               uint32_t max_tokens, uint32_t max_outputs, struct err *err);

/* Accepts NULL inside. */
void forward_destroy(struct forward **f);

/* Computes the batch and commits its positions to the cache.
 * logits: (rows with FORWARD_LOGITS, vocab_size) f32 on the host, in batch order, or NULL when no row wants them;
 * embeddings: (rows with FORWARD_EMBED, dim). Allocates nothing.
 * ERR_BUSY from the model's wait: weights of a layer are still on their way. Called again with the same batch the step goes
 * on with that layer, and gives the bits it would have given; forward_abandon forgets it instead.
 * Errors: ERR_BAD_INPUT (a token id, an order, a position), ERR_NO_FIT or ERR_FULL from kvcache_reserve: nothing
 * is changed by these, the batch may be tried again smaller. Others (device, wait): the step did not happen for
 * the cache's committed positions, and the forward object is still good unless the backend says otherwise. */
int forward_step(struct forward *f, struct kvcache *kv, const struct forward_batch *batch,
                 float *logits, float *embeddings, struct err *err);

/* The same without waiting for the step, but only for the one that was left before it, whose `picked` are there afterwards; those
 * of this one after the next forward_leave, or the backend's finish. No row may want logits or embeddings, and all weights must be
 * there. Its positions count, but are not on their way to the mirror: kvcache_send, when all tokens are known that they were
 * computed from. Only where the backend has `leave`. */
int forward_leave(struct forward *f, struct kvcache *kv, const struct forward_batch *batch,
                  struct err *err);

/* The step that was stopped for want of weights will not go on: its batch has changed. */
void forward_abandon(struct forward *f);

/* A word that is counted up before every layer, for the watchdog that looks at it from outside; NULL: none. */
void forward_set_progress(struct forward *f, _Atomic uint32_t *progress);
