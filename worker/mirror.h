/* The other half of kvcache.c, for a device that computes in memory of its own: where its pages and states stand there,
 * and how they come into the cache's memory, which the next worker maps after a death. Only kvcache.c uses it.
 *
 *   a step writes device pages -> kvcache_commit: positions count here
 *   kvcache_send: whole tiles of them are copied behind the step -> arrived: `committed` in the shared memory grows
 *
 * So a successor finds a sequence a few tokens short, and computes those again. Recurrent states are large: one is sent
 * every MIRROR_STATE_TOKENS positions and when a sequence rests, and only there does such a sequence's mirror end.
 * A page whose number is n_host_pages or more has no place in the mirror (its budget), nor has what follows it. */
#pragma once

#include "worker/kvcache.h"

#define MIRROR_STATE_TOKENS 256

/* Device memory for two states of so many sequences. */
uint64_t mirror_states_bytes(const struct kv_layout *layout, uint32_t max_seqs);

/* Memory on the device for all pages and states, and what the cache holds brought there. NULL: ERR_NO_MEMORY, the device's. */
struct mirror *mirror_create(const struct kvcache *kv, struct backend *backend, struct err *err);

/* Waits for what is on its way; gives the device's memory back. Accepts a cache without one. */
void mirror_destroy(struct kvcache *kv);

uint8_t *mirror_pages(const struct kvcache *kv);
uint8_t *mirror_state(const struct kvcache *kv, uint32_t seq, bool next);
int64_t mirror_pos(const struct kvcache *kv, uint32_t seq);

/* kvcache_begin, _end, _commit, _truncate, _take_back as the device sees them. truncate takes the mirror back, too. */
int mirror_begin(struct kvcache *kv, uint32_t seq, int64_t first_pos, struct err *err);
void mirror_end(struct kvcache *kv, uint32_t seq);
void mirror_commit(struct kvcache *kv, uint32_t seq, uint32_t n_tokens);
int mirror_truncate(struct kvcache *kv, uint32_t seq, int64_t pos, struct err *err);
int mirror_take_back(struct kvcache *kv, uint32_t seq, struct err *err);

/* dst now names src's pages up to pos, all of which src's mirror has if it has room. */
void mirror_share(struct kvcache *kv, uint32_t dst, uint32_t src, int64_t pos);

/* Page `from` into page `to`, here and there. */
int mirror_copy_page(struct kvcache *kv, uint32_t to, uint32_t from, struct err *err);

/* What the mirror holds of seq becomes what the device holds of it. */
int mirror_fetch(struct kvcache *kv, uint32_t seq, struct err *err);

/* See kvcache_send. */
int mirror_send(struct kvcache *kv, uint32_t seq, bool all, struct err *err);

/* kvcache.c: what the shared memory says of a sequence's end. */
void kvcache_set_end(struct kvcache_seq *s, int64_t end, uint32_t state);
