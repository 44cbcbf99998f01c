/* What a chat or completion request asks for: its fields read, checked and turned into libhearth's question. */
#pragma once

#include <stdbool.h>

#include "clients/gateway/generate.h"
#include "clients/gateway/problem.h"
#include "proto/json.h"
#include "proto/limits.h"

struct openai_request {
    struct json *body;    /* owned; what follows borrows from it */
    struct json *context; /* owned: the template's, of a chat; or prefix and suffix */
    int32_t *ids;         /* owned: prompts of tokens */
    struct generate_prompt prompts[GENERATE_CHOICES_MAX];
    bool chat, stream, include_usage;
    bool logprobs;
    const char *model; /* as asked for; NULL: the default */
    struct generation generation;
    const char *stops[LIMIT_STOP_STRINGS];
    size_t stop_lens[LIMIT_STOP_STRINGS];
    struct hearth_bias biases[LIMIT_LOGIT_BIASES];
    const char *breakers[LIMIT_DRY_BREAKERS], *banned_strings[LIMIT_BANNED_STRINGS];
    int32_t banned_tokens[LIMIT_LOGIT_BIASES];
    char samplers[400];
};

/* Reads the exchange's body. -1 with a problem. */
int openai_request_read(struct openai_request *r, struct exchange *x, bool chat, struct problem *p);
void openai_request_clear(struct openai_request *r);

/* The template's context of "messages", "tools" and their like, owned; NULL with a problem. Also for /apply-template. */
struct json *openai_context(const struct json *body, struct problem *p);
