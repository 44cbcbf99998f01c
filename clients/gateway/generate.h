/* One generation over libhearth, of one or several answers, as events that every dialect writes in its own way: begun, text
 * (reasoning or content), tool calls, an answer's end, the end. A chat's answers are taken apart here, while they come, by the
 * parser of the model's format (proto/parse, a library without a process: the text service says which format it is).
 *
 * Events are a function of the request's log alone: who picks an answer up after a death gets the same ones in the same order. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "clients/hearth.h"
#include "proto/json.h"
#include "proto/limits.h"

#define GENERATE_CHOICES_MAX LIMIT_WORKER_SEQUENCES /* answers of one request */

struct exchange;

enum generate_part { GENERATE_CONTENT, GENERATE_REASONING };

/* Of all answers together. */
struct generate_end {
    uint32_t n_prompt, n_cached, n_tokens, n_reasoning;
    double prompt_ms, predicted_ms;
};

/* Each returns -1 when nobody reads any more. choice: which answer; those to the first prompt come first. */
struct generate_events {
    void *context;
    int (*begun)(void *context, const struct hearth_info *info); /* of the first answer */
    /* With logprobs only: a token, before the text that it releases, if any. pieces: its own text and its alternatives',
     * n_alternatives + 1 of them. */
    int (*token)(void *context, size_t choice, const struct hearth_token *token,
                 const char *const *pieces, const size_t *lens);
    int (*text)(void *context, size_t choice, enum generate_part part, const char *text,
                size_t len);
    int (*call)(void *context, size_t choice, size_t i, const char *id, const char *name,
                const char *arguments);
    int (*end_choice)(void *context, size_t choice,
                      const char *finish_reason); /* "stop", "length", "tool_calls" */
    int (*end)(void *context, const struct generate_end *end);
};

struct generate_prompt {
    const void *at;
    size_t len;
};

struct generation {
    struct hearth_ask
        ask; /* of every answer, but for prompt and seed; id and detach are set here */
    const struct generate_prompt *prompts; /* borrowed */
    size_t n_prompts, n;                   /* so many answers to each */
    bool chat;                             /* take reasoning out */
    const struct json *tools;              /* and calls of these; borrowed; NULL: none */
};

/* Runs it: begins it, or the one that the exchange's ids name goes on. Answer i of a prompt has the seed + i; those after the
 * first begin when it has its first token, so that they share the prompt's work. A problem is the exchange's answer, or its
 * stream's last event. Returns when the answer has gone out or its client has left. */
void generate(struct exchange *x, struct hearth *h, const struct generation *g,
              const struct generate_events *events);
