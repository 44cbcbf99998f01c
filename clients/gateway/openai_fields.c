#include "clients/gateway/openai_fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/fields.h"
#include "clients/gateway/server.h"
#include "clients/gateway/text.h"

/* Everything of the table below, as it came. */
struct raw {
    const char *model, *reasoning_effort;
    const struct json *messages, *prompt, *stop, *tools, *tool_choice, *response_format,
        *stream_options, *logit_bias, *template_kwargs, *logprobs, *modalities;
    bool stream, ignore_eos, parallel_tool_calls, add_generation_prompt;
    struct field_number dynatemp_range, dynatemp_exponent, top_n_sigma, xtc_probability,
        xtc_threshold, dry_multiplier, dry_base, mirostat_tau, mirostat_eta;
    struct field_int dry_allowed_length, dry_penalty_last_n, mirostat;
    struct field_number temperature, top_p, min_p, typical_p, presence, frequency, repeat;
    struct field_int max_tokens, max_completion_tokens, n, best_of, seed, top_k, repeat_last_n,
        top_logprobs;
};

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
        { "dry_allowed_length", FIELD_INT, AT(dry_allowed_length), 1, LIMIT_CTX_TOKENS, NULL },    \
        { "dry_penalty_last_n", FIELD_INT, AT(dry_penalty_last_n), -1, LIMIT_CTX_TOKENS, NULL },   \
        { "mirostat", FIELD_INT, AT(mirostat), 0, 2, NULL },                                       \
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
    { "chat_template_kwargs", FIELD_ANY, AT(template_kwargs), 0, 0, NULL },
    { "add_generation_prompt", FIELD_BOOL, AT(add_generation_prompt), 0, 0, NULL },
    { "continue_final_message", FIELD_REFUSED, 0, 0, 0, "the last message is always whole" },
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
    { "best_of", FIELD_INT, AT(best_of), 1, 128, NULL },
    { "echo", FIELD_REFUSED, 0, 0, 0, "the answer is what comes after the prompt" },
    { "suffix", FIELD_REFUSED, 0, 0, 0, "filling in the middle is not there yet" },
    SHARED,
};

/* ---- sampling ---- */

static int read_stops(struct openai_request *r, const struct json *stop, struct problem *p)
{
    struct hearth_ask *ask = &r->generation.ask;
    bool list = json_kind(stop) == JSON_ARRAY;
    size_t n = !stop ? 0 : list ? json_len(stop) : 1;
    if (n > LIMIT_STOP_STRINGS) {
        return problem_set(p, 400, "stop", "invalid_value", "%zu stop strings, at most %d", n,
                           LIMIT_STOP_STRINGS);
    }
    for (size_t i = 0; i < n; i++) {
        const struct json *one = list ? json_at(stop, i) : stop;
        size_t len = 0;
        const char *text = json_kind(one) == JSON_STRING ? json_as_str(one, &len) : NULL;
        if (!text || len == 0 || len > LIMIT_STOP_BYTES) {
            return problem_set(p, 400, "stop", "invalid_value",
                               "'stop' is a string, or an array of strings, of 1 to %d bytes",
                               LIMIT_STOP_BYTES);
        }
        r->stops[i] = text;
        r->stop_lens[i] = len;
    }
    ask->stops = r->stops;
    ask->stop_lens = r->stop_lens;
    ask->n_stops = n;
    return 0;
}

static int read_biases(struct openai_request *r, const struct json *map, struct problem *p)
{
    const char *key;
    const struct json *value;
    size_t n = 0;
    if (map && json_kind(map) != JSON_OBJECT) {
        return problem_set(p, 400, "logit_bias", "invalid_type",
                           "'logit_bias' is an object: token ids to numbers");
    }
    for (struct json_walk w = json_walk_of(map); json_walk_next(&w, &key, &value);) {
        char *end;
        long id = strtol(key, &end, 10);
        enum json_kind kind = json_kind(value);
        if (!*key || *end || id < 0 || id > INT32_MAX || n == LIMIT_LOGIT_BIASES ||
            (kind != JSON_INT && kind != JSON_DOUBLE) || !(json_as_double(value) >= -100) ||
            !(json_as_double(value) <= 100)) {
            return problem_set(p, 400, "logit_bias", "invalid_value",
                               "'logit_bias' has at most %d entries, each a token id and a number "
                               "from -100 to 100",
                               LIMIT_LOGIT_BIASES);
        }
        r->biases[n++] = (struct hearth_bias){ (int32_t)id, (float)json_as_double(value) };
    }
    r->generation.ask.sampling.biases = r->biases;
    r->generation.ask.sampling.n_biases = n;
    return 0;
}

/* Chat: a bool and top_logprobs beside it. Completions: a number. */
static int read_logprobs(struct openai_request *r, const struct raw *raw, struct problem *p)
{
    struct hearth_sampling *s = &r->generation.ask.sampling;
    enum json_kind kind = json_kind(raw->logprobs);
    int64_t n = raw->top_logprobs.value;
    if (r->chat && kind != JSON_NULL && kind != JSON_BOOL) {
        return problem_set(p, 400, "logprobs", "invalid_type", "'logprobs' must be true or false");
    }
    if (r->chat && raw->top_logprobs.given && !json_as_bool(raw->logprobs)) {
        return problem_set(p, 400, "top_logprobs", "invalid_value",
                           "'top_logprobs' wants 'logprobs': true");
    }
    if (!r->chat && kind == JSON_BOOL) {
        kind = json_as_bool(raw->logprobs) ? JSON_INT : JSON_NULL;
        n = 0;
    } else if (!r->chat && kind != JSON_NULL) {
        n = json_as_int(raw->logprobs);
        if (kind != JSON_INT || n < 0 || n > LIMIT_ALTERNATIVES) {
            return problem_set(p, 400, "logprobs", "invalid_value", "'logprobs' goes from 0 to %d",
                               LIMIT_ALTERNATIVES);
        }
    }
    r->logprobs = r->chat ? json_as_bool(raw->logprobs) : kind != JSON_NULL;
    s->has_logprobs = r->logprobs;
    s->logprobs = r->logprobs ? (uint32_t)n : 0;
    return 0;
}

static int read_sampling(struct openai_request *r, const struct raw *raw, struct problem *p)
{
    struct hearth_ask *ask = &r->generation.ask;
    struct hearth_sampling *s = &ask->sampling;
#define NUMBER(name, from)                                                                         \
    s->has_##name = raw->from.given;                                                               \
    s->name = (float)raw->from.value
    NUMBER(temp, temperature);
    NUMBER(top_p, top_p);
    NUMBER(min_p, min_p);
    NUMBER(typical_p, typical_p);
    NUMBER(presence_penalty, presence);
    NUMBER(frequency_penalty, frequency);
    NUMBER(repeat_penalty, repeat);
    NUMBER(dynatemp_range, dynatemp_range);
    NUMBER(dynatemp_exponent, dynatemp_exponent);
    NUMBER(top_n_sigma, top_n_sigma);
    NUMBER(xtc_probability, xtc_probability);
    NUMBER(xtc_threshold, xtc_threshold);
    NUMBER(dry_multiplier, dry_multiplier);
    NUMBER(dry_base, dry_base);
    NUMBER(mirostat_tau, mirostat_tau);
    NUMBER(mirostat_eta, mirostat_eta);
#undef NUMBER
#define INTEGER(name, type)                                                                        \
    s->has_##name = raw->name.given;                                                               \
    s->name = (type)raw->name.value
    INTEGER(dry_allowed_length, int32_t);
    INTEGER(dry_penalty_last_n, int32_t);
    INTEGER(mirostat, uint32_t);
#undef INTEGER
    s->has_top_k = raw->top_k.given;
    s->top_k = (int32_t)raw->top_k.value;
    s->has_repeat_last_n = raw->repeat_last_n.given;
    s->repeat_last_n = (int32_t)raw->repeat_last_n.value;
    s->has_seed = raw->seed.given &&
                  raw->seed.value != -1; /* -1: whatever comes, as others have it */
    s->seed = (uint64_t)raw->seed.value;
    s->ignore_eos = raw->ignore_eos;
    const struct field_int *most = raw->max_completion_tokens.given ? &raw->max_completion_tokens
                                                                    : &raw->max_tokens;
    if (most->given && most->value == 0) {
        return problem_set(p, 400, "max_tokens", "invalid_value", "'max_tokens' begins at 1");
    }
    ask->has_n_max = most->given && most->value > 0; /* -1: to the end of the context */
    ask->n_max = ask->has_n_max ? (uint32_t)most->value : 0;
    if (raw->n.value > 1 || raw->best_of.value > 1) {
        return problem_set(p, 400, raw->n.value > 1 ? "n" : "best_of", "unsupported_parameter",
                           "'%s' above 1 is not supported", raw->n.value > 1 ? "n" : "best_of");
    }
    if (read_stops(r, raw->stop, p) < 0 || read_biases(r, raw->logit_bias, p) < 0) {
        return -1;
    }
    return read_logprobs(r, raw, p);
}

/* ---- messages ---- */

/* Text, or parts of text joined by line breaks; null is nothing. A new string value; NULL with a problem. */
static struct json *content_of(const struct json *content, size_t i, struct problem *p)
{
    struct text all = { 0 };
    char where[48];
    size_t len;
    snprintf(where, sizeof where, "messages[%zu].content", i);
    if (json_kind(content) == JSON_STRING) {
        const char *text = json_as_str(content, &len);
        return json_new_str(text, len);
    }
    if (json_kind(content) != JSON_NULL && json_kind(content) != JSON_ARRAY) {
        problem_set(p, 400, where, "invalid_type", "'%s' is a string, null or an array of parts",
                    where);
        return NULL;
    }
    for (size_t k = 0; k < json_len(content); k++) {
        const struct json *part = json_at(content, k), *type = json_find(part, "type"),
                          *text = json_find(part, "text");
        const char *name = json_kind(type) == JSON_STRING ? json_as_str(type, NULL) : "";
        if (json_kind(text) != JSON_STRING ||
            (strcmp(name, "text") != 0 && strcmp(name, "input_text") != 0)) {
            problem_set(p, 400, where, "unsupported_parameter",
                        "part %zu of '%s' is '%.40s'; only parts of text are supported", k, where,
                        name);
            text_clear(&all);
            return NULL;
        }
        const char *bytes = json_as_str(text, &len);
        if (k > 0) {
            text_add(&all, "\n", 1);
        }
        text_add(&all, bytes, len);
    }
    struct json *value = json_new_str(text_str(&all), all.len);
    text_clear(&all);
    return value;
}

static struct json *copy_of(const struct json *value)
{
    struct err err;
    size_t len;
    const char *text = json_text(value, &len);
    return value ? json_parse(text, len, &err) : NULL;
}

/* Templates want a call's arguments as an object; OpenAI writes them as a string. */
static struct json *calls_of(const struct json *calls)
{
    struct json *list = copy_of(calls);
    struct err err;
    for (size_t i = 0; i < json_len(list); i++) {
        struct json *function = json_find(json_at(list, i), "function");
        const struct json *arguments = json_find(function, "arguments");
        if (json_kind(arguments) == JSON_STRING) {
            size_t len;
            const char *text = json_as_str(arguments, &len);
            struct json *object = json_parse(text, len, &err);
            if (json_kind(object) == JSON_OBJECT) {
                json_set(function, "arguments", object);
            } else {
                json_destroy(&object);
            }
        }
    }
    return list;
}

static const char *const roles[] = { "system", "developer", "user", "assistant", "tool" };

static struct json *message_of(const struct json *message, size_t i, struct problem *p)
{
    const struct json *role = json_find(message, "role");
    const char *name = json_kind(role) == JSON_STRING ? json_as_str(role, NULL) : "";
    char where[48];
    size_t k = 0, n_roles = sizeof roles / sizeof roles[0];
    snprintf(where, sizeof where, "messages[%zu].role", i);
    while (k < n_roles && strcmp(roles[k], name) != 0) {
        k++;
    }
    if (k == n_roles) {
        problem_set(p, 400, where, "invalid_value",
                    "'%s' is none of system, developer, user, assistant, tool", where);
        return NULL;
    }
    struct json *content = content_of(json_find(message, "content"), i, p);
    if (!content) {
        return NULL;
    }
    struct json *out = json_new_object();
    const char *as = strcmp(name, "developer") == 0 ? "system" : name;
    json_set(out, "role", json_new_str(as, strlen(as)));
    json_set(out, "content", content);
    const struct json *reasoning = json_find(message, "reasoning_content");
    reasoning = json_kind(reasoning) == JSON_NULL ? json_find(message, "reasoning") : reasoning;
    if (json_kind(reasoning) == JSON_STRING) {
        json_set(out, "reasoning_content", copy_of(reasoning));
    }
    if (json_kind(json_find(message, "tool_calls")) == JSON_ARRAY) {
        json_set(out, "tool_calls", calls_of(json_find(message, "tool_calls")));
    }
    static const char *const kept[] = { "tool_call_id", "name" };
    for (size_t j = 0; j < sizeof kept / sizeof kept[0]; j++) {
        if (json_kind(json_find(message, kept[j])) == JSON_STRING) {
            json_set(out, kept[j], copy_of(json_find(message, kept[j])));
        }
    }
    return out;
}

static bool says(const struct json *value, const char *word)
{
    return json_kind(value) == JSON_STRING && strcmp(json_as_str(value, NULL), word) == 0;
}

/* Members of chat_template_kwargs, but not those that are the conversation. */
static void add_kwargs(struct json *context, const struct json *kwargs)
{
    const char *key;
    const struct json *value;
    for (struct json_walk w = json_walk_of(kwargs); json_walk_next(&w, &key, &value);) {
        if (strcmp(key, "messages") != 0 && strcmp(key, "tools") != 0) {
            json_set(context, key, copy_of(value));
        }
    }
}

struct json *openai_context(const struct json *body, struct problem *p)
{
    const struct json *messages = json_find(body, "messages"), *tools = json_find(body, "tools"),
                      *effort = json_find(body, "reasoning_effort"),
                      *kwargs = json_find(body, "chat_template_kwargs"),
                      *prompt = json_find(body, "add_generation_prompt");
    if (json_kind(messages) != JSON_ARRAY || json_len(messages) == 0) {
        problem_set(p, 400, "messages", "invalid_value",
                    "'messages' is an array with at least one message");
        return NULL;
    }
    if (json_kind(kwargs) != JSON_NULL && json_kind(kwargs) != JSON_OBJECT) {
        problem_set(p, 400, "chat_template_kwargs", "invalid_type",
                    "'chat_template_kwargs' is an object");
        return NULL;
    }
    struct json *context = json_new_object(), *list = json_new_array();
    json_set(context, "messages", list);
    for (size_t i = 0; i < json_len(messages); i++) {
        struct json *message = message_of(json_at(messages, i), i, p);
        if (!message) {
            json_destroy(&context);
            return NULL;
        }
        json_push(list, message);
    }
    add_kwargs(context, kwargs);
    if (json_len(tools) && !says(json_find(body, "tool_choice"), "none")) {
        json_set(context, "tools", copy_of(tools));
    }
    if (json_kind(effort) == JSON_STRING) {
        json_set(context, "reasoning_effort", copy_of(effort));
    }
    json_set(context, "add_generation_prompt",
             json_new_bool(json_kind(prompt) != JSON_BOOL || json_as_bool(prompt)));
    return context;
}

static int check_tools(const struct raw *raw, struct problem *p)
{
    if (raw->tools && json_kind(raw->tools) != JSON_ARRAY) {
        return problem_set(p, 400, "tools", "invalid_type", "'tools' is an array");
    }
    for (size_t i = 0; i < json_len(raw->tools); i++) {
        const struct json *tool = json_at(raw->tools, i), *function = json_find(tool, "function");
        const struct json *name = json_find(function, "name");
        if (!says(json_find(tool, "type"), "function") || json_kind(name) != JSON_STRING) {
            return problem_set(p, 400, "tools", "invalid_value",
                               "tool %zu is no function with a name", i);
        }
    }
    if (raw->tool_choice && !says(raw->tool_choice, "auto") && !says(raw->tool_choice, "none")) {
        return problem_set(p, 400, "tool_choice", "unsupported_parameter",
                           "'tool_choice' may be \"auto\" or \"none\"; forcing a call is not "
                           "supported");
    }
    return 0;
}

static int read_chat(struct openai_request *r, const struct raw *raw, struct problem *p)
{
    struct generation *g = &r->generation;
    const struct json *format = json_find(raw->response_format, "type");
    if (raw->response_format && !says(format, "text")) {
        return problem_set(p, 400, "response_format", "unsupported_parameter",
                           "'response_format' may only be {\"type\":\"text\"}; constrained output "
                           "is not supported");
    }
    if (raw->modalities &&
        !(json_len(raw->modalities) == 1 && says(json_at(raw->modalities, 0), "text"))) {
        return problem_set(p, 400, "modalities", "unsupported_parameter",
                           "'modalities' may only be [\"text\"]");
    }
    if (check_tools(raw, p) < 0) {
        return -1;
    }
    r->context = openai_context(r->body, p);
    if (!r->context) {
        return -1;
    }
    g->chat = true;
    g->tools = json_find(r->context, "tools");
    g->ask.kind = HEARTH_MESSAGES;
    g->ask.prompt = json_text(r->context, &g->ask.prompt_len);
    return 0;
}

/* A string, an array with one string, or an array of token ids. */
static int read_prompt(struct openai_request *r, const struct json *prompt, struct problem *p)
{
    struct hearth_ask *ask = &r->generation.ask;
    const struct json *first = json_at(prompt, 0);
    if (json_kind(prompt) == JSON_ARRAY && json_kind(first) == JSON_STRING) {
        if (json_len(prompt) > 1) {
            return problem_set(p, 400, "prompt", "unsupported_parameter",
                               "%zu prompts in one request; one is supported", json_len(prompt));
        }
        prompt = first;
    }
    if (json_kind(prompt) == JSON_STRING) {
        ask->kind = HEARTH_TEXT;
        ask->prompt = json_as_str(prompt, &ask->prompt_len);
        return 0;
    }
    size_t n = json_kind(prompt) == JSON_ARRAY ? json_len(prompt) : 0;
    if (n == 0 || json_kind(first) != JSON_INT) {
        return problem_set(p, 400, "prompt", "invalid_type",
                           "'prompt' is a string, or an array of token ids");
    }
    r->ids = malloc(n * sizeof *r->ids);
    for (size_t i = 0; r->ids && i < n; i++) {
        int64_t id = json_as_int(json_at(prompt, i));
        if (json_kind(json_at(prompt, i)) != JSON_INT || id < 0 || id > INT32_MAX) {
            return problem_set(p, 400, "prompt", "invalid_value", "prompt[%zu] is no token id", i);
        }
        r->ids[i] = (int32_t)id;
    }
    ask->kind = HEARTH_TOKENS;
    ask->prompt = r->ids;
    ask->prompt_len = r->ids ? n * sizeof *r->ids : 0;
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
        read_stream(r, &raw, p) < 0 || read_sampling(r, &raw, p) < 0 ||
        (chat ? read_chat(r, &raw, p) : read_prompt(r, raw.prompt, p)) < 0) {
        return -1;
    }
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
