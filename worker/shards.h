/* What the worker maps of others: journal shards, to write its logs, and reader pages, to wake who sleeps. Both are taken
 * from the keeper by their segment numbers when they are first named. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/journal.h"
#include "worker/sequence.h"

#define SHARDS_MAX  64   /* principals at once */
#define READERS_MAX 4096 /* attached clients at once: as many as there may be segments */

/* How a segment is got: the keeper's channel, or a table in a test. Fills up to two owned descriptors, -1 where none. */
struct segments {
    int (*take)(void *arg, uint64_t segment, int fds[2], struct err *err);
    void *arg;
};

struct shard {
    uint64_t segment; /* 0: the place is free */
    uint64_t used;
    struct journal journal;
};

struct shards {
    const struct segments *from; /* borrowed */
    uint64_t clock;
    struct shard shard[SHARDS_MAX];
};

/* The mapped shard of a number; takes and maps it the first time. When all places are taken, the one least recently used
 * that `in_use` does not want goes. NULL with the reason. */
struct journal *shards_get(struct shards *s, uint64_t segment,
                           bool (*in_use)(void *arg, uint64_t segment), void *arg, struct err *err);
void shards_clear(struct shards *s);

struct reader {
    uint64_t segment; /* 0: the place is free */
    int event_fd;     /* owned, or -1: could not be taken; not asked for again until named again */
    struct journal_reader_page *
        page; /* owned mapping, or NULL: a page that could shrink under us; then every record wakes */
    size_t page_bytes;
};

struct readers {
    const struct segments *from;
    uint32_t n;
    struct reader reader[READERS_MAX];
};

/* The reader of this number is there now (again), or gone. */
void readers_know(struct readers *r, uint64_t segment);
void readers_forget(struct readers *r, uint64_t segment);

/* Wakes the reader when it sleeps. What it handed in is its own: nothing of it can stop or break this process. */
void readers_wake(struct readers *r, uint64_t segment);
void readers_clear(struct readers *r);
