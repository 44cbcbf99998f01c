/* What a request says about choosing tokens: every sampler by its name, stops, biases, what is banned, log-probabilities. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/openai_raw.h"

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

/* An array of strings, or one string, into list; -1 with a problem. */
static int read_strings(const struct json *from, const char *name, size_t n_max, size_t len_max,
                        const char **list, size_t *n, struct problem *p)
{
    bool many = json_kind(from) == JSON_ARRAY;
    *n = !from ? 0 : many ? json_len(from) : 1;
    if (*n > n_max) {
        return problem_set(p, 400, name, "invalid_value", "'%s' has %zu strings, at most %zu", name,
                           *n, n_max);
    }
    for (size_t i = 0; i < *n; i++) {
        const struct json *one = many ? json_at(from, i) : from;
        size_t len = 0;
        list[i] = json_kind(one) == JSON_STRING ? json_as_str(one, &len) : NULL;
        if (!list[i] || len == 0 || len > len_max || strlen(list[i]) != len) {
            return problem_set(p, 400, name, "invalid_value",
                               "'%s' is an array of strings of 1 to %zu bytes without NUL", name,
                               len_max);
        }
    }
    return 0;
}

static int read_banned_tokens(struct openai_request *r, const struct json *list, struct problem *p)
{
    size_t n = json_len(list);
    if (list && (json_kind(list) != JSON_ARRAY || n > LIMIT_LOGIT_BIASES)) {
        return problem_set(p, 400, "banned_tokens", "invalid_type",
                           "'banned_tokens' is an array of at most %d token ids",
                           LIMIT_LOGIT_BIASES);
    }
    r->generation.ask.sampling.banned_tokens = r->banned_tokens;
    r->generation.ask.sampling.n_banned_tokens = n;
    return fields_ids(list, "banned_tokens", r->banned_tokens, p);
}

/* The samplers' order: "a;b;c", or an array of names. */
static int read_order(struct openai_request *r, const struct json *order, struct problem *p)
{
    const char *names[16];
    size_t n, at = 0;
    if (json_kind(order) == JSON_STRING) {
        r->generation.ask.sampling.samplers = json_as_str(order, NULL);
        return 0;
    }
    if (read_strings(order, "samplers", 16, 20, names, &n, p) < 0) {
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        at += (size_t)snprintf(r->samplers + at, sizeof r->samplers - at, "%s%s", i ? ";" : "",
                               names[i]);
    }
    r->generation.ask.sampling.samplers = order ? r->samplers : NULL;
    return 0;
}

static int read_lists(struct openai_request *r, const struct raw *raw, struct problem *p)
{
    struct hearth_sampling *s = &r->generation.ask.sampling;
    s->dry_sequence_breakers = r->breakers;
    s->banned_strings = r->banned_strings;
    if (read_strings(raw->dry_sequence_breakers, "dry_sequence_breakers", LIMIT_DRY_BREAKERS,
                     LIMIT_DRY_BREAKER_BYTES, r->breakers, &s->n_dry_sequence_breakers, p) < 0 ||
        read_strings(raw->banned_strings, "banned_strings", LIMIT_BANNED_STRINGS, LIMIT_STOP_BYTES,
                     r->banned_strings, &s->n_banned_strings, p) < 0 ||
        read_banned_tokens(r, raw->banned_tokens, p) < 0) {
        return -1;
    }
    if (json_kind(raw->dry_sequence_breakers) == JSON_ARRAY && s->n_dry_sequence_breakers == 0) {
        r->breakers[s->n_dry_sequence_breakers++] =
            ""; /* an empty list: none, not the usual ones */
    }
    return read_order(r, raw->samplers, p);
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

int openai_read_sampling(struct openai_request *r, const struct raw *raw, struct problem *p)
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
    NUMBER(adaptive_target, adaptive_target);
    NUMBER(adaptive_decay, adaptive_decay);
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
    r->generation.n = raw->n.given ? (size_t)raw->n.value : 1;
    if (read_stops(r, raw->stop, p) < 0 || read_biases(r, raw->logit_bias, p) < 0 ||
        read_lists(r, raw, p) < 0) {
        return -1;
    }
    return read_logprobs(r, raw, p);
}
