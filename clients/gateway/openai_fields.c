#include "clients/gateway/openai_fields.h"

#include <stdlib.h>

#include "clients/gateway/openai_raw.h"
#include "clients/gateway/server.h"

#define AT(member) offsetof(struct raw, member)
#define INT64_LOW  (-9007199254740992.0) /* JSON's integers that every client writes exactly */
#define INT64_HIGH 9007199254740992.0

/* Both endpoints have these. */
#define SHARED                                                                                     \
    { "model", FIELD_STRING, AT(model), 0, 0, NULL },                                              \
        { "stream", FIELD_BOOL, AT(stream), 0, 0, NULL },                                          \
        { "stream_options", FIELD_ANY, AT(stream_options), 0, 0, NULL },                           \
        { "max_tokens", FIELD_INT, AT(max_tokens), -1, LIMIT_CTX_TOKENS, NULL },                   \
        { "temperature", FIELD_NUMBER, AT(temperature), 0, 100, NULL },                            \
        { "top_p", FIELD_NUMBER, AT(top_p), 0, 1, NULL },                                          \
        { "top_k", FIELD_INT, AT(top_k), 0, 1 << 20, NULL },                                       \
        { "min_p", FIELD_NUMBER, AT(min_p), 0, 1, NULL },                                          \
        { "typical_p", FIELD_NUMBER, AT(typical_p), 0, 1, NULL },                                  \
        { "presence_penalty", FIELD_NUMBER, AT(presence), -100, 100, NULL },                       \
        { "frequency_penalty", FIELD_NUMBER, AT(frequency), -100, 100, NULL },                     \
        { "repeat_penalty", FIELD_NUMBER, AT(repeat), 0.01, 100, NULL },                           \
        { "repeat_last_n", FIELD_INT, AT(repeat_last_n), -1, LIMIT_CTX_TOKENS, NULL },             \
        { "seed", FIELD_INT, AT(seed), INT64_LOW, INT64_HIGH, NULL },                              \
        { "stop", FIELD_ANY, AT(stop), 0, 0, NULL }, { "n", FIELD_INT, AT(n), 1, 128, NULL },      \
        { "logit_bias", FIELD_ANY, AT(logit_bias), 0, 0, NULL },                                   \
        { "dynatemp_range", FIELD_NUMBER, AT(dynatemp_range), 0, 100, NULL },                      \
        { "dynatemp_exponent", FIELD_NUMBER, AT(dynatemp_exponent), 0, 100, NULL },                \
        { "top_n_sigma", FIELD_NUMBER, AT(top_n_sigma), -1, 100, NULL },                           \
        { "xtc_probability", FIELD_NUMBER, AT(xtc_probability), 0, 1, NULL },                      \
        { "xtc_threshold", FIELD_NUMBER, AT(xtc_threshold), 0, 1, NULL },                          \
        { "dry_multiplier", FIELD_NUMBER, AT(dry_multiplier), 0, 100, NULL },                      \
        { "dry_base", FIELD_NUMBER, AT(dry_base), 1, 100, NULL },                                  \
        { "mirostat_tau", FIELD_NUMBER, AT(mirostat_tau), 0, 100, NULL },                          \
        { "mirostat_eta", FIELD_NUMBER, AT(mirostat_eta), 0, 1, NULL },                            \
        { "adaptive_target", FIELD_NUMBER, AT(adaptive_target), -1, 1, NULL },                     \
        { "adaptive_decay", FIELD_NUMBER, AT(adaptive_decay), 0, 0.99, NULL },                     \
        { "dry_allowed_length", FIELD_INT, AT(dry_allowed_length), 1, LIMIT_CTX_TOKENS, NULL },    \
        { "dry_penalty_last_n", FIELD_INT, AT(dry_penalty_last_n), -1, LIMIT_CTX_TOKENS, NULL },   \
        { "mirostat", FIELD_INT, AT(mirostat), 0, 2, NULL },                                       \
        { "dry_sequence_breakers", FIELD_ANY, AT(dry_sequence_breakers), 0, 0, NULL },             \
        { "samplers", FIELD_ANY, AT(samplers), 0, 0, NULL },                                       \
        { "banned_strings", FIELD_ANY, AT(banned_strings), 0, 0, NULL },                           \
        { "banned_tokens", FIELD_ANY, AT(banned_tokens), 0, 0, NULL },                             \
        { "ignore_eos", FIELD_BOOL, AT(ignore_eos), 0, 0, NULL },                                  \
        { "logprobs", FIELD_ANY, AT(logprobs), 0, 0, NULL },                                       \
        { "user", FIELD_IGNORED, 0, 0, 0, NULL }, { "metadata", FIELD_IGNORED, 0, 0, 0, NULL },    \
        { "store", FIELD_IGNORED, 0, 0, 0, NULL },                                                 \
        { "service_tier", FIELD_IGNORED, 0, 0, 0, NULL },                                          \
        { "safety_identifier", FIELD_IGNORED, 0, 0, 0, NULL },                                     \
        { "prompt_cache_key", FIELD_IGNORED, 0, 0, 0, NULL },                                      \
        { "cache_prompt", FIELD_IGNORED, 0, 0, 0, NULL },                                          \
        { "keep_alive", FIELD_IGNORED, 0, 0, 0, NULL },                                            \
    {                                                                                              \
        0                                                                                          \
    }

static const struct field chat_fields[] = {
    { "messages", FIELD_ANY, AT(messages), 0, 0, NULL },
    { "max_completion_tokens", FIELD_INT, AT(max_completion_tokens), 1, LIMIT_CTX_TOKENS, NULL },
    { "top_logprobs", FIELD_INT, AT(top_logprobs), 0, LIMIT_ALTERNATIVES, NULL },
    { "tools", FIELD_ANY, AT(tools), 0, 0, NULL },
    { "tool_choice", FIELD_ANY, AT(tool_choice), 0, 0, NULL },
    { "parallel_tool_calls", FIELD_BOOL, AT(parallel_tool_calls), 0, 0, NULL },
    { "response_format", FIELD_ANY, AT(response_format), 0, 0, NULL },
    { "reasoning_effort", FIELD_STRING, AT(reasoning_effort), 0, 0, NULL },
    { "reasoning", FIELD_ANY, AT(reasoning), 0, 0, NULL },
    { "chat_template_kwargs", FIELD_ANY, AT(template_kwargs), 0, 0, NULL },
    { "add_generation_prompt", FIELD_BOOL, AT(add_generation_prompt), 0, 0, NULL },
    { "continue_final_message", FIELD_BOOL, AT(continue_final_message), 0, 0, NULL },
    { "functions", FIELD_REFUSED, 0, 0, 0, "use 'tools'" },
    { "function_call", FIELD_REFUSED, 0, 0, 0, "use 'tool_choice'" },
    { "audio", FIELD_REFUSED, 0, 0, 0, "text only" },
    { "modalities", FIELD_ANY, AT(modalities), 0, 0, NULL },
    { "prediction", FIELD_IGNORED, 0, 0, 0, NULL },
    { "verbosity", FIELD_IGNORED, 0, 0, 0, NULL },
    { "web_search_options", FIELD_REFUSED, 0, 0, 0, "there is no search here" },
    SHARED,
};

static const struct field completion_fields[] = {
    { "prompt", FIELD_ANY, AT(prompt), 0, 0, NULL },
    { "best_of", FIELD_INT, AT(best_of), 1, 1, NULL },
    { "echo", FIELD_REFUSED, 0, 0, 0, "the answer is what comes after the prompt" },
    { "suffix", FIELD_ANY, AT(suffix), 0, 0, NULL },
    SHARED,
};

/* ---- prompts ---- */

/* Ids of one prompt, appended to r->ids at *at. */
static int read_ids(struct openai_request *r, const struct json *list, size_t *at,
                    struct generate_prompt *prompt, struct problem *p)
{
    size_t n = json_kind(list) == JSON_ARRAY ? json_len(list) : 0;
    prompt->at = r->ids + *at;
    prompt->len = n * sizeof *r->ids;
    if (n == 0) {
        return problem_set(p, 400, "prompt", "invalid_value", "'prompt' is empty");
    }
    if (fields_ids(list, "prompt", r->ids + *at, p) < 0) {
        return -1;
    }
    *at += n;
    return 0;
}

/* What stands before and behind the gap, as the text service wants it. */
static int read_infill(struct openai_request *r, const struct json *prompt,
                       const struct json *suffix, struct problem *p)
{
    if (json_kind(prompt) != JSON_STRING || json_kind(suffix) != JSON_STRING) {
        return problem_set(p, 400, "suffix", "invalid_type",
                           "with 'suffix' both it and 'prompt' are strings");
    }
    r->context = json_new_object();
    json_set(r->context, "prefix", json_share(prompt));
    json_set(r->context, "suffix", json_share(suffix));
    r->generation.ask.kind = HEARTH_INFILL;
    r->generation.n_prompts = 1;
    r->prompts[0].at = json_text(r->context, &r->prompts[0].len);
    return 0;
}

/* A string, token ids, or an array of either. */
static int read_prompt(struct openai_request *r, const struct raw *raw, struct problem *p)
{
    const struct json *prompt = raw->prompt, *first = json_at(prompt, 0);
    struct generation *g = &r->generation;
    bool list = json_kind(prompt) == JSON_ARRAY &&
                (json_kind(first) == JSON_STRING || json_kind(first) == JSON_ARRAY);
    const struct json *one = list ? first : prompt;
    size_t n_ids = 0, at = 0;
    if (raw->suffix) {
        return read_infill(r, list && json_len(prompt) == 1 ? first : prompt, raw->suffix, p);
    }
    g->n_prompts = list ? json_len(prompt) : 1;
    if (g->n_prompts > GENERATE_CHOICES_MAX) {
        return problem_set(p, 400, "prompt", "invalid_value", "%zu prompts, at most %d",
                           g->n_prompts, GENERATE_CHOICES_MAX);
    }
    g->ask.kind = json_kind(one) == JSON_STRING ? HEARTH_TEXT : HEARTH_TOKENS;
    for (size_t i = 0; i < g->n_prompts; i++) {
        n_ids += json_len(list ? json_at(prompt, i) : prompt);
    }
    r->ids = g->ask.kind == HEARTH_TOKENS ? malloc((n_ids + 1) * sizeof *r->ids) : NULL;
    for (size_t i = 0; i < g->n_prompts; i++) {
        one = list ? json_at(prompt, i) : prompt;
        enum json_kind kind = json_kind(one);
        if (kind != (g->ask.kind == HEARTH_TEXT ? JSON_STRING : JSON_ARRAY)) {
            return problem_set(p, 400, "prompt", "invalid_type",
                               "'prompt' is a string, an array of token ids, or an array of one of "
                               "these");
        }
        if (kind == JSON_STRING) {
            r->prompts[i].at = json_as_str(one, &r->prompts[i].len);
        } else if (!r->ids || read_ids(r, one, &at, &r->prompts[i], p) < 0) {
            return r->ids ? -1 : problem_set(p, 500, NULL, NULL, "no memory for a prompt");
        }
    }
    return 0;
}

static int read_stream(struct openai_request *r, const struct raw *raw, struct problem *p)
{
    const struct json *usage = json_find(raw->stream_options, "include_usage");
    if (raw->stream_options && json_kind(raw->stream_options) != JSON_OBJECT) {
        return problem_set(p, 400, "stream_options", "invalid_type",
                           "'stream_options' is an object");
    }
    if (json_kind(usage) != JSON_NULL && json_kind(usage) != JSON_BOOL) {
        return problem_set(p, 400, "stream_options.include_usage", "invalid_type",
                           "'include_usage' must be true or false");
    }
    r->stream = raw->stream;
    r->include_usage = raw->stream && json_as_bool(usage);
    return 0;
}

int openai_request_read(struct openai_request *r, struct exchange *x, bool chat, struct problem *p)
{
    struct raw raw = { 0 };
    *r = (struct openai_request){ .chat = chat };
    r->body = fields_body(x, p);
    if (!r->body || fields_read(chat ? chat_fields : completion_fields, r->body, &raw, x, p) < 0 ||
        read_stream(r, &raw, p) < 0 || openai_read_sampling(r, &raw, p) < 0 ||
        (chat ? openai_read_chat(r, &raw, p) : read_prompt(r, &raw, p)) < 0) {
        return -1;
    }
    if (r->generation.n * r->generation.n_prompts > GENERATE_CHOICES_MAX) {
        return problem_set(p, 400, "n", "invalid_value",
                           "%zu answers to %zu prompts; at most %d in all", r->generation.n,
                           r->generation.n_prompts, GENERATE_CHOICES_MAX);
    }
    r->generation.prompts = r->prompts;
    r->model = raw.model && *raw.model ? raw.model : NULL;
    r->generation.ask.model = r->model;
    return 0;
}

void openai_request_clear(struct openai_request *r)
{
    json_destroy(&r->context);
    json_destroy(&r->body);
    free(r->ids);
}
