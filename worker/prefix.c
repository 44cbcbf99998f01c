#include "worker/prefix.h"

#include <assert.h>
#include <string.h>

/* Leading tokens that sequence seq and the request have in common, up to n. */
static uint32_t in_common(const struct state *s, uint32_t seq, const int32_t *tokens, uint32_t n)
{
    const int32_t *have = state_tokens(s, seq);
    int64_t pos = kvcache_pos(&s->kv, seq);
    uint32_t most = pos < (int64_t)n ? (uint32_t)pos : n;
    uint32_t i = 0;
    while (i < most && have[i] == tokens[i]) {
        i++;
    }
    return i;
}

struct hit {
    int64_t seq;
    uint32_t n;     /* positions that can be used */
    bool take_over; /* in place; else a copy of its pages */
};

static struct hit find(const struct state *s, uint64_t shard, struct kvcache_tag tag,
                       const int32_t *tokens, uint32_t n_tokens)
{
    struct hit best = { .seq = -1 };
    bool recurrent = s->kv.layout->state_bytes > 0;
    for (uint32_t seq = 0; seq < s->header->max_seqs; seq++) {
        const struct kvcache_seq *row = &s->kv.seqs[seq];
        if (!state_in_use(s, seq) || s->rows[seq].shard != shard || row->first_pos != 0) {
            continue;
        }
        struct hit hit = { .seq = seq, .n = in_common(s, seq, tokens, n_tokens - 1) };
        bool exact = (int64_t)hit.n == kvcache_pos(&s->kv, seq);
        bool own = row->tag.hi == tag.hi && row->tag.lo == tag.lo;
        hit.take_over = !s->busy[seq] && (exact || (own && !recurrent));
        if (!hit.take_over) {
            hit.n = recurrent ? 0 : hit.n / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
        }
        if (hit.n > best.n || (hit.n == best.n && hit.n > 0 && hit.take_over && !best.take_over)) {
            best = hit;
        }
    }
    return best;
}

uint32_t prefix_have(const struct state *s, uint64_t shard, struct kvcache_tag tag,
                     const int32_t *tokens, uint32_t n_tokens)
{
    return find(s, shard, tag, tokens, n_tokens).n;
}

int prefix_begin(struct state *s, uint64_t shard, struct kvcache_tag tag, const int32_t *tokens,
                 uint32_t n_tokens, uint32_t *seq, uint32_t *n_cached, struct err *err)
{
    assert(n_tokens > 0);
    *n_cached = 0;
    struct hit hit = find(s, shard, tag, tokens, n_tokens);
    if (hit.seq >= 0 && hit.take_over) {
        *seq = (uint32_t)hit.seq;
        state_resume(s, *seq, tag);
        *n_cached = hit.n;
        if (kvcache_truncate(&s->kv, *seq, hit.n, err) < 0) {
            state_drop(s,
                       *seq); /* not reached: recurrent ones are taken over only where they stand */
            return -1;
        }
        return 0;
    }
    if (hit.seq < 0) {
        return state_begin(s, shard, tag, 0, seq, err);
    }
    uint32_t from = (uint32_t)hit.seq;
    bool was_busy = s->busy[from];
    s->busy[from] = true; /* not to be evicted for the one that copies it */
    int status = state_begin(s, shard, tag, 0, seq, err);
    s->busy[from] = was_busy;
    if (status < 0) {
        return -1;
    }
    memcpy(state_tokens(s, *seq), tokens, hit.n * sizeof *tokens);
    atomic_thread_fence(memory_order_release);
    if (kvcache_copy_prefix(&s->kv, *seq, from, hit.n, n_cached, err) < 0) {
        state_drop(s, *seq);
        return -1;
    }
    return 0;
}
