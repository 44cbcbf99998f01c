/* The state segment of one model: what the sequences of a worker have computed, in memory that outlives it. It adds to the
 * cache (kvcache.h) what a successor needs to believe it: the token ids that the cached positions were computed from, and
 * the shard (principal) that they belong to. A successor trusts content, not names: a sequence is used for exactly the
 * leading tokens that it holds. Loop thread only.
 *
 *   struct state_header              magic, sizes, fingerprint; the watchdog's progress word
 *   struct state_row [max_seqs]      shard, last use
 *   int32 [max_seqs][row_tokens]     token at each position
 *   cache                            kvcache.h
 *
 * Order at every instruction: a row's shard is written while its cache sequence is empty; tokens are written before
 * the step that commits their positions; so for any committed position, shard and token are right. */
#pragma once

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/progress.h"
#include "worker/kvcache.h"

#define STATE_MAGIC      0x3145544154534848ull
#define STATE_VERSION    2
#define STATE_SHARD_NONE 0 /* nobody's: an evaluation's; dropped when it is adopted */

struct state_shape {
    uint32_t max_seqs; /* in flight and idle together */
    uint32_t ctx_len;
    uint32_t n_pages;
    uint32_t n_unmirrored; /* pages that only a device has, the last ones (mirror.h) */
};

struct state_header {
    uint64_t magic;
    uint32_t version;
    uint32_t max_seqs, ctx_len, n_pages;
    uint64_t fingerprint;
    uint64_t rows_off, tokens_off, kv_off, total_bytes;
    _Atomic uint64_t clock;    /* counts uses, for the least recently used */
    _Atomic uint32_t progress; /* counted up before every layer; the broker may look at it */
    uint32_t n_unmirrored;
};

static_assert(offsetof(struct state_header, progress) == PROGRESS_OFF, "where the broker looks");

struct state_row {
    uint64_t shard;
    uint64_t used; /* clock when last used */
    uint64_t
        parked; /* that clock when it was last written to a file (park.h); not `used`: it has changed since */
};

struct state {
    uint8_t *base; /* borrowed mapping */
    struct state_header *header;
    struct state_row *rows;
    int32_t *tokens;
    struct kvcache kv;
    bool *busy; /* owned [max_seqs]: in use by this worker now */
};

/* Bytes of a segment of this shape; UINT64_MAX when it does not fit 63 bits. */
uint64_t state_size(const struct kv_layout *layout, const struct state_shape *shape);

/* The largest shape within bytes_max: room for n_sequences of ctx_len if it fits, else fewer pages, else a shorter
 * context, down to one page. Errors: ERR_NO_FIT with the figures. */
int state_fit(const struct kv_layout *layout, uint32_t n_sequences, uint32_t ctx_len,
              uint64_t bytes_max, struct state_shape *shape, struct err *err);

/* For a device whose pages are settled: as many of them mirrored as bytes_max holds. Errors: ERR_NO_FIT. */
int state_fit_mirror(const struct kv_layout *layout, uint64_t bytes_max, struct state_shape *shape,
                     struct err *err);

/* An empty state in memory of at least state_size bytes. The memory is borrowed until state_clear. */
int state_init(struct state *s, const struct kv_layout *layout, const struct state_shape *shape,
               uint64_t fingerprint, void *memory, size_t bytes, struct err *err);

/* Takes over what a predecessor left. ERR_CHANGED when it is of another model, shape or build. */
int state_adopt(struct state *s, const struct kv_layout *layout, const struct state_shape *shape,
                uint64_t fingerprint, void *memory, size_t bytes, struct err *err);

/* Frees what is private; what was computed stays. Accepts a zeroed one. */
void state_clear(struct state *s);

/* The tokens of a sequence by position; kvcache_pos of them are valid. */
int32_t *state_tokens(const struct state *s, uint32_t seq);

/* A new, empty, busy sequence for a shard. Drops the least recently used idle one when none is free.
 * ERR_FULL when all are busy. */
int state_begin(struct state *s, uint64_t shard, struct kvcache_tag tag, int64_t first_pos,
                uint32_t *seq, struct err *err);

/* An idle sequence becomes busy, under a new name. */
void state_resume(struct state *s, uint32_t seq, struct kvcache_tag tag);

/* A busy sequence is kept until its room is needed. */
void state_idle(struct state *s, uint32_t seq);

/* A busy sequence and what it computed are forgotten. */
void state_drop(struct state *s, uint32_t seq);

/* Forgets the least recently used idle sequence; false when there is none. */
bool state_evict(struct state *s);

/* Whether slot seq holds anything at all. */
bool state_in_use(const struct state *s, uint32_t seq);
