/* Memory for another application: `hearth yield SIZE|--all [--for DURATION]`. What is lent is taken off ram_budget; models leave until
 * the rest holds what stays, pinned ones too, and come back when the memory does. Nobody's request fails by it: those that run are set
 * aside and go on after their last token, those that come wait. The keeper remembers what is lent (in the tag of a
 * small segment), so a broker's death gives nothing back. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/link.h"
#include "proto/message.h"

struct broker;
struct post_to;

#define LEND_ASKS_MAX 16

struct lend_ask {
    struct link_peer peer;
    bool has_cookie;
    uint64_t cookie;
};

struct lend {
    uint64_t bytes;                      /* UINT64_MAX: all; 0: nothing */
    uint64_t until_unix_ms;              /* 0: until it is taken back */
    uint64_t segment;                    /* the keeper's memory of it */
    struct lend_ask asks[LEND_ASKS_MAX]; /* who waits for the memory to be free */
    uint32_t n_asks;
};

/* What models may take now. */
uint64_t lend_budget(const struct broker *b);

/* Lends, or takes back (neither bytes nor all); answered when the memory is free. */
void lend_ask(struct broker *b, const struct post_to *to, const Hearth__Yield *ask);

/* The last broker lent: the tag of the keeper's segment. False: it is not such a tag. */
bool lend_adopt(struct broker *b, uint64_t segment, const char *tag);

void lend_act(struct broker *b);
