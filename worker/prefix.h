/* Work that need not be done again: which cached sequence of the same shard (principal) begins with the same tokens.
 * Never across shards: the time to the first token would tell what others asked. Loop thread only. */
#pragma once

#include <stdint.h>

#include "proto/err.h"
#include "worker/state.h"

/* How many leading positions that would give, whole pages or a sequence to take over. */
uint32_t prefix_have(const struct state *s, uint64_t shard, struct kvcache_tag tag,
                     const int32_t *tokens, uint32_t n_tokens);

/* Gives a busy sequence of the state to a request that has n_tokens so far, holding as many of its leading positions as the
 * cache has (*n_cached), but never the last one: its logits are still to be computed. In order: the
 * sequence that holds the most, taken over when it is idle and nothing else is lost by it (all that it holds is a
 * prefix of the request, or it is the request's own), else its whole pages shared with a new sequence; else a new one.
 * Errors: ERR_FULL when all sequences are busy. */
int prefix_begin(struct state *s, uint64_t shard, struct kvcache_tag tag, const int32_t *tokens,
                 uint32_t n_tokens, uint32_t *seq, uint32_t *n_cached, struct err *err);
