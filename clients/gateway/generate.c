#include "clients/gateway/generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "clients/gateway/metrics.h"
#include "clients/gateway/server.h"
#include "clients/gateway/split.h"
#include "clients/gateway/text.h"

#define PIECES_MAX 21 /* a token and 20 alternatives */

struct run {
    struct exchange *x;
    struct hearth *h;
    const struct generation *g;
    const struct generate_events *events;
    struct split split;
    bool whole; /* parsed at the end, not while it comes */
    struct text raw, clean;
    struct generate_end end;
    double asked_ms, first_ms, last_ms;
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* ---- the text service's eye for formats ---- */

/* Asks PARSE; takes the question. NULL with a problem. */
static struct json *ask_parse(struct run *r, struct json *question, struct problem *p)
{
    struct hearth_error error;
    struct err err;
    struct hearth_text ask = { .model = r->g->ask.model, .op = HEARTH_PARSE };
    size_t len;
    ask.input = json_text(question, &ask.input_len);
    char *text = hearth_text(r->h, &ask, &len, &error);
    struct json *answer = text ? json_parse(text, len, &err) : NULL;
    if (!answer) {
        text ? problem_set(p, 500, NULL, NULL, "parsing the answer: %s", err.text)
             : problem_of_error(p, &error);
    }
    free(text);
    json_destroy(&question);
    return answer;
}

/* How this model writes, and whether this prompt has it think already. */
static int learn_format(struct run *r, struct problem *p)
{
    struct err err;
    struct json *question = json_new_object();
    json_set(question, "text", json_new_str("", 0));
    struct json *context = json_parse(r->g->ask.prompt, r->g->ask.prompt_len, &err);
    if (context) {
        json_set(question, "context", context);
    }
    struct json *answer = ask_parse(r, question, p);
    if (!answer) {
        return -1;
    }
    const struct json *markers = json_find(answer, "reasoning_markers");
    const char *open = json_len(markers) == 2 ? json_as_str(json_at(markers, 0), NULL) : NULL;
    split_init(&r->split, open, open ? json_as_str(json_at(markers, 1), NULL) : NULL,
               json_as_bool(json_find(answer, "reasoning_open")));
    r->whole = r->g->tools != NULL || !json_as_bool(json_find(answer, "plain"));
    json_destroy(&answer);
    return 0;
}

static void new_call_id(char id[32])
{
    uint8_t random[12];
    int n = snprintf(id, 32, "call_");
    if (getrandom(random, sizeof random, 0) == (ssize_t)sizeof random) {
        for (size_t i = 0; i < sizeof random; i++) {
            n += snprintf(id + n, 32 - (size_t)n, "%02x", random[i]);
        }
    }
}

static int say(struct run *r, enum generate_part part, const char *text, size_t len)
{
    return len ? r->events->text(r->events->context, part, text, len) : 0;
}

static int say_calls(struct run *r, const struct json *calls)
{
    for (size_t i = 0; i < json_len(calls); i++) {
        const struct json *call = json_at(calls, i), *id = json_find(call, "id");
        char own[32];
        new_call_id(own);
        if (r->events->call(r->events->context, i,
                            json_kind(id) == JSON_STRING ? json_as_str(id, NULL) : own,
                            json_as_str(json_find(call, "name"), NULL),
                            json_text(json_find(call, "arguments"), NULL)) < 0) {
            return -1;
        }
    }
    return 0;
}

/* The whole answer, taken apart at its end. */
static int say_whole(struct run *r, struct problem *p)
{
    struct err err;
    size_t n_content, n_reasoning, len;
    struct json *question = json_new_object();
    json_set(question, "text", json_new_str(text_str(&r->clean), r->clean.len));
    json_set(question, "reasoning_open", json_new_bool(r->split.began_open));
    if (r->g->tools) {
        const char *tools = json_text(r->g->tools, &len);
        json_set(question, "tools",
                 json_parse(tools, len, &err)); /* a copy: the request keeps its own */
    }
    struct json *answer = ask_parse(r, question, p);
    if (!answer) {
        return -1;
    }
    const char *content = json_as_str(json_find(answer, "content"), &n_content);
    const char *reasoning = json_as_str(json_find(answer, "reasoning_content"), &n_reasoning);
    const struct json *calls = json_find(answer, "tool_calls");
    int result = say(r, GENERATE_REASONING, reasoning, n_reasoning);
    result = result == 0 ? say(r, GENERATE_CONTENT, content, n_content) : result;
    result = result == 0 ? say_calls(r, calls) : result;
    if (json_len(calls)) {
        r->end.finish_reason = "tool_calls";
    }
    json_destroy(&answer);
    return result;
}

/* ---- tokens ---- */

/* Texts of a token and its alternatives, for logprobs. */
static int say_token(struct run *r, const struct hearth_token *token, struct problem *p)
{
    int32_t ids[PIECES_MAX];
    const char *pieces[PIECES_MAX];
    size_t lens[PIECES_MAX] = { 0 }, n = 1, len, off = 0;
    struct hearth_error error;
    ids[0] = token->id;
    for (size_t i = 0; i < token->n_alternatives && n < PIECES_MAX; i++) {
        ids[n++] = token->alternatives[i].token;
    }
    struct hearth_text ask = {
        .model = r->g->ask.model, .op = HEARTH_PIECES, .input = ids, .input_len = n * sizeof *ids
    };
    char *answer = hearth_text(r->h, &ask, &len, &error);
    if (!answer) {
        return problem_of_error(p, &error);
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t length = 0;
        pieces[i] = "";
        if (off + sizeof length <= len) {
            memcpy(&length, answer + off, sizeof length);
            off += sizeof length;
            if (length <= len - off) {
                pieces[i] = answer + off;
                lens[i] = length;
                off += length;
            }
        }
    }
    int result = r->events->token(r->events->context, token, pieces, lens);
    free(answer);
    return result < 0 ? problem_set(p, 499, NULL, NULL, "the client left") : 0;
}

/* What is certain of the text so far goes out. */
static int say_text(struct run *r, bool last)
{
    text_settle(&r->clean, &r->raw, last);
    if (r->clean.failed || r->raw.failed) {
        return -1;
    }
    if (r->whole) {
        return 0;
    }
    if (!r->g->chat) {
        int result = say(r, GENERATE_CONTENT, text_str(&r->clean), r->clean.len);
        text_cut(&r->clean, r->clean.len);
        return result;
    }
    enum split_part part;
    size_t skip, len;
    while (split_next(&r->split, &r->clean, last, &part, &skip, &len)) {
        int result = say(r, part == SPLIT_REASONING ? GENERATE_REASONING : GENERATE_CONTENT,
                         text_str(&r->clean) + skip, len);
        text_cut(&r->clean, skip + len);
        if (result < 0) {
            return -1;
        }
    }
    return 0;
}

static void count(struct run *r, const struct hearth_token *token)
{
    double ms = (double)token->time_us / 1e3;
    r->end.n_cached = token->n_cached;
    if (!token->has_token) {
        return;
    }
    if (r->end.n_tokens++ == 0) {
        r->first_ms = ms;
        metrics_first(ms > r->asked_ms ? ms - r->asked_ms : 0, token->n_cached);
    } else {
        metrics_next(ms > r->last_ms ? ms - r->last_ms : 0);
    }
    r->last_ms = ms;
    r->end.n_reasoning += r->g->chat && split_thinks(&r->split);
}

/* Reads to the end. 0; -1 with a problem. */
static int read_tokens(struct run *r, struct hearth_request *request, struct problem *p)
{
    struct hearth_token token;
    struct hearth_error error;
    for (;;) {
        enum hearth_result got = hearth_next(request, &token, -1, &error);
        if (got == HEARTH_INTERRUPTED) {
            return problem_set(p, 503, NULL, "stopping", "hearth stops");
        }
        if (got == HEARTH_FAILED) {
            return problem_of_error(p, &error);
        }
        count(r, &token);
        if (token.has_token && r->g->ask.sampling.has_logprobs && say_token(r, &token, p) < 0) {
            return -1;
        }
        if (token.n_bytes) {
            text_add(&r->raw, token.bytes, token.n_bytes);
        }
        if (say_text(r, token.ended) < 0) {
            return problem_set(p, 499, NULL, NULL, "the client left");
        }
        if (!token.ended) {
            continue;
        }
        if (strcmp(token.finish_reason, "error") == 0) {
            return problem_of_error(p, &token.error);
        }
        if (strcmp(token.finish_reason, "cancelled") == 0) {
            return problem_set(p, 503, NULL, "cancelled", "the request was cancelled");
        }
        r->end.finish_reason = strcmp(token.finish_reason, "length") == 0 ? "length" : "stop";
        return 0;
    }
}

static int finish(struct run *r, struct problem *p)
{
    if (r->whole && say_whole(r, p) < 0) {
        return -1;
    }
    r->end.prompt_ms = r->end.n_tokens ? r->first_ms - r->asked_ms : 0;
    r->end.predicted_ms = r->last_ms - r->first_ms;
    return r->events->end(r->events->context, &r->end);
}

int generate(struct exchange *x, struct hearth *h, const struct generation *g,
             const struct generate_events *events, struct problem *p)
{
    struct run r = { .x = x, .h = h, .g = g, .events = events, .asked_ms = now_ms() };
    struct hearth_error error;
    int result = -1;
    problem_set(p, 499, NULL, NULL, "the client left");
    if (g->chat && learn_format(&r, p) < 0) {
        goto end;
    }
    struct hearth_request *request = hearth_submit(h, &g->ask, &error);
    if (!request) {
        problem_of_error(p, &error);
        goto end;
    }
    const struct hearth_info *info = hearth_info(request);
    r.end.n_prompt = info->n_prompt;
    metrics_begin(info->n_prompt);
    result = events->begun(events->context, info);
    result = result == 0 ? read_tokens(&r, request, p) : result;
    metrics_end(r.end.n_tokens > 0);
    hearth_end(&request); /* cancels, if it has not ended */
    result = result == 0 ? finish(&r, p) : result;
end:
    split_clear(&r.split);
    text_clear(&r.raw);
    text_clear(&r.clean);
    return result;
}
