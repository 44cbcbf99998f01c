/* One generation over libhearth, as events that every dialect writes in its own way: begun, text (reasoning or content), tool
 * calls, the end. Chat answers are taken apart here: reasoning by its markers while it comes, and, where tools are offered or
 * the model's format moves things about, the whole answer at its end by the text service. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "clients/gateway/problem.h"
#include "clients/hearth.h"

struct exchange;

enum generate_part { GENERATE_CONTENT, GENERATE_REASONING };

struct generate_end {
    const char *finish_reason; /* "stop", "length", "tool_calls" */
    uint32_t n_prompt, n_cached, n_tokens, n_reasoning;
    double prompt_ms, predicted_ms;
};

/* Each returns -1 when nobody reads any more. */
struct generate_events {
    void *context;
    int (*begun)(void *context, const struct hearth_info *info);
    /* With logprobs only: a token, before the text that it releases, if any. pieces: its own text and its alternatives',
     * n_alternatives + 1 of them. */
    int (*token)(void *context, const struct hearth_token *token, const char *const *pieces,
                 const size_t *lens);
    int (*text)(void *context, enum generate_part part, const char *text, size_t len);
    int (*call)(void *context, size_t i, const char *id, const char *name, const char *arguments);
    int (*end)(void *context, const struct generate_end *end);
};

struct generation {
    struct hearth_ask ask;
    bool chat;                /* take reasoning out */
    const struct json *tools; /* and calls of these; borrowed; NULL: none */
};

/* Runs it. -1 with a problem; nothing is written then, and what was may have begun. */
int generate(struct exchange *x, struct hearth *h, const struct generation *g,
             const struct generate_events *events, struct problem *p);
