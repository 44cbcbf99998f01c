/* Idle conversations leave for a file and come back (proto/parked.h says how it looks): between a state and a descriptor that
 * the broker chose. Both ways go in pieces of bounded size between two steps, so that nobody who decodes waits for a disk. Nothing is
 * locked meanwhile: a sequence that is taken up again while it is being written ends the writing, not the other way round.
 * Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/parked.h"
#include "worker/state.h"

#define PARK_PIECE_BYTES (4u << 20)     /* moved between two steps: about a millisecond of memory */
#define PARK_TOKENS_MIN  KV_PAGE_TOKENS /* less is computed again sooner than it is read */

/* What of an engine decides the bits of a state: with the model's digest and shapes it is a file's key. */
uint64_t park_engine(void);

/* One way or the other. Zeroed: nothing is under way. */
struct park {
    struct state *state; /* borrowed; NULL: nothing is under way */
    int fd;              /* owned */
    struct parked file;
    uint32_t seq, n_pages; /* n_pages: wanted, when it is read */
    uint32_t n_tokens;     /* positions that will stand */
    uint64_t used;         /* the sequence's clock when it began */
    uint32_t next;         /* page; n_pages: the recurrent state */
};

/* The idle sequence used last of those that have changed since they were parked; -1: none. */
int64_t park_next(const struct state *s);

/* Begins to write sequence seq (idle) to fd (taken, also on failure). */
int park_write_begin(struct park *p, struct state *s, uint32_t seq, uint64_t key, int fd,
                     struct err *err);

/* The next piece: 1 whole (and marked as parked), 0 not yet, -1 failed: ERR_CHANGED when somebody took the sequence up. After 1 and
 * -1 the park is cleared. */
int park_write(struct park *p, struct err *err);

/* Begins to read fd (taken, also on failure) for a request with these tokens: makes a sequence of shard and reserves its pages.
 * Returns the positions that it will have, or 0 when the file is no use beyond have positions that are here already; -1 failed:
 * ERR_BAD_FILE, ERR_CHANGED (another key), ERR_FULL. */
int64_t park_read_begin(struct park *p, struct state *s, uint64_t shard, uint64_t key,
                        const int32_t *tokens, uint32_t n_tokens, uint32_t have, int fd,
                        struct err *err);

/* The next piece: 1 the sequence stands, idle; 0 not yet; -1 failed and nothing of it is left. */
int park_read(struct park *p, struct err *err);

/* Ends whatever is under way; a half-read sequence goes. Accepts a zeroed one. */
void park_clear(struct park *p);
