/* Token records as ZeroMQ frames, for clients that do not read the journal themselves: remote ones, and who prefers it.
 * The broker has a reader page and an eventfd of its own, so the worker wakes it as it wakes any reader.
 * Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/journal.h"
#include "proto/link.h"

struct broker;
struct request;

struct records {
    int eventfd;     /* polled by the loop; -1: none */
    uint64_t reader; /* segment of page and eventfd */
    bool made;       /* the keeper has it */
    struct journal_reader_page *page;
};

void records_init(struct broker *b);
void records_clear(struct records *t);
void records_on_deposit(struct broker *b, const struct err *err);

/* From now on the peer gets what comes after sequence number `after`. */
void records_begin(struct broker *b, struct request *r, const struct link_peer *peer,
                   uint64_t after);

/* Every turn: sends what is new. */
void records_act(struct broker *b);
