/* One answer of a generation: its tokens become events. Used by generate.c; a hand's thread. */
#pragma once

#include "clients/gateway/generate.h"
#include "clients/gateway/problem.h"
#include "clients/gateway/text.h"
#include "proto/parse/stream.h"

/* What all answers of a generation have. */
struct choices {
    struct hearth *h;
    const struct generation *g;
    const struct generate_events *events;
    const struct parse_format *format; /* a chat's */
    bool reasoning_open;               /* the prompt has it think already */
    char id[33];                       /* of the first one's request */
    struct generate_end end;
    double asked_ms, first_ms, last_ms;
};

struct choice {
    size_t index;
    struct hearth_request *request; /* NULL: not begun, or ended */
    bool begun;
    struct parse_stream *parser; /* a chat's */
    struct text raw, clean; /* bytes so far that are no whole characters; characters to be said */
    size_t n_calls;
    uint32_t n_tokens;
    bool thinks;
};

/* How this model writes, and whether this prompt has it think already: asks the text service. -1 with a problem. */
int choices_learn_format(struct choices *all, struct problem *p);

/* A token of this answer. 1: it was the last one, 0: more come; -1 with a problem. */
int choice_take(struct choices *all, struct choice *c, const struct hearth_token *token,
                struct problem *p);

/* Not its request. */
void choice_clear(struct choice *c);
