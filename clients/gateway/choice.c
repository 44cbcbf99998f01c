#include "clients/gateway/choice.h"

#include <stdlib.h>
#include <string.h>

#include "clients/gateway/ids.h"
#include "clients/gateway/metrics.h"

#define PIECES_MAX (LIMIT_ALTERNATIVES + 1) /* a token and its alternatives */

int choices_learn_format(struct choices *all, struct problem *p)
{
    const struct generation *g = all->g;
    struct hearth_error error;
    struct err err;
    struct hearth_text ask = { .model = g->ask.model, .op = HEARTH_PARSE };
    struct json *question = json_new_object();
    size_t len;
    json_set(question, "text", json_new_str("", 0));
    json_set(question, "tools", json_share(g->tools));
    json_set(question, "context", json_parse(g->prompts[0].at, g->prompts[0].len, &err));
    ask.input = json_text(question, &ask.input_len);
    char *text = hearth_text(all->h, &ask, &len, &error);
    struct json *answer = text ? json_parse(text, len, &err) : NULL;
    if (answer) {
        all->format = parse_find(json_as_str(json_find(answer, "format"), NULL));
        all->reasoning_open = json_as_bool(json_find(answer, "reasoning_open"));
    }
    int result = all->format ? 0
                 : text      ? problem_set(p, 500, NULL, NULL, "the text service names no format")
                             : problem_of_error(p, &error);
    free(text);
    json_destroy(&answer);
    json_destroy(&question);
    return result;
}

static int left(struct problem *p)
{
    return problem_set(p, 499, NULL, NULL, "the client left");
}

/* ---- logprobs ---- */

/* {uint32 length, bytes} each, as the text service writes them. */
static void cut_pieces(const char *answer, size_t len, size_t n, const char **pieces, size_t *lens)
{
    size_t off = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t length = 0;
        pieces[i] = "";
        lens[i] = 0;
        if (len - off >= sizeof length) {
            memcpy(&length, answer + off, sizeof length);
            off += sizeof length;
        }
        if (length <= len - off) {
            pieces[i] = answer + off;
            lens[i] = length;
            off += length;
        }
    }
}

/* Texts of a token and its alternatives. */
static int say_token(struct choices *all, const struct choice *c, const struct hearth_token *token,
                     struct problem *p)
{
    int32_t ids[PIECES_MAX];
    const char *pieces[PIECES_MAX];
    size_t lens[PIECES_MAX], n = 1, len;
    struct hearth_error error;
    ids[0] = token->id;
    for (size_t i = 0; i < token->n_alternatives && n < PIECES_MAX; i++) {
        ids[n++] = token->alternatives[i].token;
    }
    struct hearth_text ask = {
        .model = all->g->ask.model, .op = HEARTH_PIECES, .input = ids, .input_len = n * sizeof *ids
    };
    char *answer = hearth_text(all->h, &ask, &len, &error);
    if (!answer) {
        return problem_of_error(p, &error);
    }
    cut_pieces(answer, len, n, pieces, lens);
    int result = all->events->token(all->events->context, c->index, token, pieces, lens);
    free(answer);
    return result < 0 ? left(p) : 0;
}

/* ---- text ---- */

static int say_call(struct choices *all, struct choice *c, const struct json *call)
{
    const struct json *id = json_find(call, "id");
    char own[32];
    ids_of_call(all->id, c->index, c->n_calls, own);
    return all->events->call(all->events->context, c->index, c->n_calls++,
                             json_kind(id) == JSON_STRING ? json_as_str(id, NULL) : own,
                             json_as_str(json_find(call, "name"), NULL),
                             json_text(json_find(call, "arguments"), NULL));
}

static int say_parsed(struct choices *all, struct choice *c)
{
    struct parse_event event;
    int result = 0;
    while (result == 0 && parse_stream_next(c->parser, &event)) {
        c->thinks = event.kind == PARSE_REASONING;
        result = event.kind == PARSE_CALL
                     ? say_call(all, c, event.call)
                     : all->events->text(all->events->context, c->index,
                                         c->thinks ? GENERATE_REASONING : GENERATE_CONTENT,
                                         event.text, event.len);
    }
    return result;
}

/* The parser of a chat's answer, made when it is first needed. */
static int open_parser(struct choices *all, struct choice *c, struct problem *p)
{
    struct err err;
    const struct parse_options how = { .reasoning_open = all->reasoning_open };
    if (all->g->chat && !c->parser) {
        c->parser = parse_stream_create(all->format, all->g->tools, &how, &err);
        c->thinks = all->reasoning_open;
    }
    return all->g->chat && !c->parser ? problem_set(p, 500, NULL, NULL, "%s", err.text) : 0;
}

/* What is certain of the text so far goes out. */
static int say_text(struct choices *all, struct choice *c, const struct hearth_token *token,
                    struct problem *p)
{
    struct err err;
    int result = 0;
    text_add(&c->raw, token->bytes, token->n_bytes);
    text_settle(&c->clean, &c->raw, token->ended);
    if (c->clean.failed || c->raw.failed) {
        return problem_set(p, 500, NULL, NULL, "no memory for the answer");
    }
    if (!all->g->chat && c->clean.len) {
        result = all->events->text(all->events->context, c->index, GENERATE_CONTENT,
                                   text_str(&c->clean), c->clean.len);
    } else if (all->g->chat) {
        if (open_parser(all, c, p) < 0) {
            return -1;
        }
        if (parse_stream_feed(c->parser, text_str(&c->clean), c->clean.len, &err) < 0 ||
            say_parsed(all, c) < 0 || (token->ended && parse_stream_end(c->parser, &err) < 0) ||
            say_parsed(all, c) < 0) {
            result = -1;
        }
    }
    text_cut(&c->clean, c->clean.len);
    return result < 0 ? left(p) : 0;
}

/* ---- tokens ---- */

static void count(struct choices *all, struct choice *c, const struct hearth_token *token)
{
    double ms = (double)token->time_us / 1e3;
    if (!token->has_token) {
        return;
    }
    all->end.n_tokens++;
    if (c->n_tokens++ == 0) {
        if (all->first_ms == 0) {
            all->first_ms = ms;
            all->end.n_cached = token->n_cached;
        }
        metrics_first(ms > all->asked_ms ? ms - all->asked_ms : 0, token->n_cached);
    } else {
        metrics_next(ms > all->last_ms ? ms - all->last_ms : 0);
    }
    all->last_ms = ms;
}

int choice_take(struct choices *all, struct choice *c, const struct hearth_token *token,
                struct problem *p)
{
    count(all, c, token);
    if (token->has_token && all->g->ask.sampling.has_logprobs && say_token(all, c, token, p) < 0) {
        return -1;
    }
    if (token->ended && strcmp(token->finish_reason, "error") == 0) {
        return problem_of_error(p, &token->error);
    }
    if (token->ended && strcmp(token->finish_reason, "cancelled") == 0) {
        return problem_set(p, 503, NULL, "cancelled", "the request was cancelled");
    }
    if (say_text(all, c, token, p) < 0) {
        return -1;
    }
    all->end.n_reasoning += token->has_token && c->thinks;
    if (!token->ended) {
        return 0;
    }
    const char *why = strcmp(token->finish_reason, "length") == 0 ? "length"
                      : c->n_calls                                ? "tool_calls"
                                                                  : "stop";
    return all->events->end_choice(all->events->context, c->index, why) < 0 ? left(p) : 1;
}

void choice_clear(struct choice *c)
{
    parse_stream_destroy(&c->parser);
    text_clear(&c->raw);
    text_clear(&c->clean);
}
