/* The keeper's table of memory that must outlive everybody: segments by number, each one or two descriptors, and who may
 * take which. Libc only; the keeper's one thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/channel.h"

struct segment {
    uint64_t number;          /* chosen by the broker; 0: the row is free */
    int fds[CHANNEL_FDS_MAX]; /* -1 where none */
    char tag[LIMIT_TAG_BYTES];
};

struct grant {
    uint32_t child; /* 0: the row is free */
    uint32_t flags;
    uint64_t segment;
};

#define SEGMENTS_GRANTS_MAX (4 * LIMIT_SEGMENTS)

struct segments {
    struct segment rows[LIMIT_SEGMENTS];
    struct grant grants[SEGMENTS_GRANTS_MAX];
};

void segments_init(struct segments *s);

/* A new memfd (bytes 0: unsized, sealable by its writer; else reserved, unless sparse, and sealed). */
int segments_create(struct segments *s, uint64_t number, uint64_t bytes, bool sparse,
                    const char *tag, struct err *err);

/* Descriptors that came from the broker; taken, also on failure. */
int segments_deposit(struct segments *s, uint64_t number, const int fds[CHANNEL_FDS_MAX],
                     const char *tag, struct err *err);

/* Closes the descriptors and forgets the grants; a number that is not there is no error (idempotent). */
void segments_drop(struct segments *s, uint64_t number);

int segments_grant(struct segments *s, uint64_t number, uint32_t child, uint32_t flags,
                   struct err *err);

/* New descriptors of a segment for a child, owned by the caller: read-only unless granted writable.
 * child 0 is the broker, which may take any. */
int segments_take(const struct segments *s, uint64_t number, uint32_t child,
                  int fds[CHANNEL_FDS_MAX], struct err *err);

/* A dead child's grants go. */
void segments_forget_child(struct segments *s, uint32_t child);
