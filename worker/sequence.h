/* One generation in flight: a request's log as its owner sees it. It reads the slot, the prompt and what is committed
 * from the journal, turns choices of the sampler into records, and knows when it is over. All that it keeps is a
 * function of the slot and the committed records, so another worker continues exactly here. Loop thread only.
 *
 *   sequence_open -> (tokens beyond kv's position are fed: prompt, then what is committed)
 *                 -> sequence_accept per token -> ended -> sequence_close
 *
 * With banned strings a token is committed when no string can have begun in it any more; until then it is held, in
 * `tokens` like the others. When one is complete, the tokens from its beginning on are taken back. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/journal.h"
#include "proto/pieces.h"
#include "worker/held.h"
#include "worker/kvcache.h"
#include "worker/sampler.h"
#include "worker/stops.h"

#define SEQUENCE_NO_KV (-1)

/* Names a request for good. */
struct sequence_name {
    uint64_t shard; /* segment number */
    uint32_t slot, generation;
};

struct sequence {
    bool open;
    bool ended;   /* its end is committed */
    bool lost;    /* its end could not be written: the log is given back */
    bool spoke;   /* committed something since its reader was woken */
    bool rewound; /* tokens were taken back: the cache must not stand beyond n_tokens - 1 */
    struct sequence_name name;
    struct journal_slot *slot; /* in the shared mapping: owner, reader, cancel */
    struct journal_writer writer;
    struct kvcache_tag tag; /* the request's id */
    struct sampler sampler;
    struct stops stops;
    const struct pieces *pieces; /* borrowed */
    struct held *held;           /* owned; NULL without banned strings */
    int32_t *tokens;             /* owned [n_room]: prompt, generated, held */
    uint32_t n_room, n_prompt, n_tokens;
    uint32_t n_max;    /* tokens to generate at most */
    uint32_t n_ctx;    /* positions at most */
    bool cut;          /* fewer than it was admitted to, and it may want them */
    uint32_t n_cached; /* prompt positions that were not computed again */
    int64_t kv;        /* its slot in the cache, or SEQUENCE_NO_KV while it waits for room */
    bool parked;       /* it had a place and gave it to an older one */
    int parked_fd;     /* owned: a file that it begins like, not looked at yet; -1: none */
    bool fetching;     /* that file is being read */
    bool in_flight;    /* the token after `tokens` is chosen on the device, and not read yet */
    uint64_t arrival;  /* order of taking: the younger one gives way */
};

/* Reads everything of a request that this worker owns and continues its log. n_vocab bounds token ids, ctx_len positions.
 * Everything read is checked and copied. After success `ended` may already be set.
 * Errors: ERR_NOT_FOUND (another generation), ERR_REFUSED (not ours), ERR_BAD_FILE (a damaged slot or log), ERR_NO_MEMORY: nothing
 * is open then. A request that cannot be run (an id beyond the vocabulary, beyond the context) is ended with a record. */
int sequence_open(struct sequence *s, const struct journal *journal, struct sequence_name name,
                  uint32_t epoch, const struct pieces *pieces, uint32_t n_vocab, uint32_t ctx_len,
                  struct err *err);

/* Frees what is owned; the log stays. Accepts a closed one. */
void sequence_close(struct sequence *s);

/* Tokens generated and committed. */
static inline uint32_t sequence_generated(const struct sequence *s)
{
    return s->n_tokens - s->n_prompt - (s->held ? s->held->n : 0);
}

/* Whether this many tokens, prompt included, are all there may be. */
bool sequence_at_length(const struct sequence *s, uint32_t n_tokens);

/* What must not come next, for sampler_choose. */
struct sampler_refused sequence_refused(const struct sequence *s);

/* Commits the next token with what it releases; the last one together with the end. An end token commits the end
 * alone. With banned strings it is held instead, or taken back with others (`rewound`, n_tokens falls), or others are
 * committed with it. Errors: ERR_FULL when the log has no room, ERR_FAILED when the banned strings leave no way on (the
 * caller fails the request). */
int sequence_accept(struct sequence *s, const struct sampler_choice *choice, struct err *err);

/* Commits an end without a token: JOURNAL_END_CANCELLED, or JOURNAL_END_ERROR with code and reason.
 * What was held back is released, except by an error, whose bytes are the reason. */
int sequence_end(struct sequence *s, enum journal_end end, enum err_code code, const char *reason,
                 struct err *err);

/* Whether the client wants it to end; cheap, asked before every step. */
bool sequence_cancelled(const struct sequence *s);
