#include "clients/gateway/texts.h"

#include <stdlib.h>
#include <string.h>

#include "clients/gateway/fields.h"
#include "clients/gateway/openai_fields.h"
#include "clients/gateway/server.h"
#include "clients/gateway/text.h"
#include "clients/hearth.h"

struct raw {
    const char *model;
    const struct json *content, *tokens, *messages;
    bool add_special, parse_special, with_pieces, ignored;
};

#define AT(member) offsetof(struct raw, member)

static const struct field tokenize_fields[] = {
    { "model", FIELD_STRING, AT(model), 0, 0, NULL },
    { "content", FIELD_ANY, AT(content), 0, 0, NULL },
    { "add_special", FIELD_BOOL, AT(add_special), 0, 0, NULL },
    { "parse_special", FIELD_BOOL, AT(parse_special), 0, 0, NULL },
    { "with_pieces", FIELD_BOOL, AT(with_pieces), 0, 0, NULL },
    { 0 },
};

static const struct field detokenize_fields[] = {
    { "model", FIELD_STRING, AT(model), 0, 0, NULL },
    { "tokens", FIELD_ANY, AT(tokens), 0, 0, NULL },
    { 0 },
};

static const struct field template_fields[] = {
    { "model", FIELD_STRING, AT(model), 0, 0, NULL },
    { "messages", FIELD_ANY, AT(messages), 0, 0, NULL },
    { "tools", FIELD_ANY, AT(tokens), 0, 0, NULL },
    { "chat_template_kwargs", FIELD_ANY, AT(tokens), 0, 0, NULL },
    { "reasoning_effort", FIELD_ANY, AT(tokens), 0, 0, NULL },
    { "add_generation_prompt", FIELD_BOOL, AT(ignored), 0, 0, NULL },
    { 0 },
};

/* Asks and gives the answer's bytes, malloc'd; NULL with a problem. */
static char *ask_text(struct hearth *h, struct hearth_text *ask, size_t *len, struct problem *p)
{
    struct hearth_error error;
    char *answer = hearth_text(h, ask, len, &error);
    if (!answer) {
        problem_of_error(p, &error);
    }
    return answer;
}

static struct json *with_pieces(struct hearth *h, const struct raw *raw, const int32_t *ids,
                                size_t n, struct problem *p)
{
    struct hearth_text ask = {
        .model = raw->model, .op = HEARTH_PIECES, .input = ids, .input_len = n * sizeof *ids
    };
    size_t len, off = 0;
    char *pieces = ask_text(h, &ask, &len, p);
    if (!pieces) {
        return NULL;
    }
    struct json *list = json_new_array();
    for (size_t i = 0; i < n && off + sizeof(uint32_t) <= len; i++) {
        uint32_t length;
        memcpy(&length, pieces + off, sizeof length);
        off += sizeof length;
        if (length > len - off) {
            break;
        }
        struct json *one = json_new_object();
        json_set(one, "id", json_new_int(ids[i]));
        json_set(one, "piece", text_json(pieces + off, length));
        json_push(list, one);
        off += length;
    }
    free(pieces);
    return list;
}

static struct json *tokenize(struct hearth *h, const struct raw *raw, struct problem *p)
{
    struct hearth_text ask = { .model = raw->model,
                               .op = HEARTH_TOKENIZE,
                               .add_special = raw->add_special,
                               .parse_special = raw->parse_special };
    size_t len;
    if (json_kind(raw->content) != JSON_STRING) {
        problem_set(p, 400, "content", "invalid_type", "'content' must be a string");
        return NULL;
    }
    ask.input = json_as_str(raw->content, &ask.input_len);
    int32_t *ids = (int32_t *)(void *)ask_text(h, &ask, &len, p);
    size_t n = ids ? len / sizeof *ids : 0;
    struct json *list = !ids               ? NULL
                        : raw->with_pieces ? with_pieces(h, raw, ids, n, p)
                                           : json_new_array();
    for (size_t i = 0; list && !raw->with_pieces && i < n; i++) {
        json_push(list, json_new_int(ids[i]));
    }
    free(ids);
    if (!list) {
        return NULL;
    }
    struct json *o = json_new_object();
    json_set(o, "tokens", list);
    return o;
}

static struct json *detokenize(struct hearth *h, const struct raw *raw, struct problem *p)
{
    struct hearth_text ask = { .model = raw->model,
                               .op = HEARTH_DETOKENIZE,
                               .unparse_special = true };
    size_t n = json_len(raw->tokens), len;
    if (json_kind(raw->tokens) != JSON_ARRAY) {
        problem_set(p, 400, "tokens", "invalid_type", "'tokens' must be an array of ids");
        return NULL;
    }
    int32_t *ids = malloc(n * sizeof *ids + 1);
    if (!ids) {
        problem_set(p, 500, NULL, NULL, "no memory for %zu ids", n);
        return NULL;
    }
    ask.input = ids;
    ask.input_len = n * sizeof *ids;
    char *text = fields_ids(raw->tokens, "tokens", ids, p) == 0 ? ask_text(h, &ask, &len, p) : NULL;
    free(ids);
    if (!text) {
        return NULL;
    }
    struct json *o = json_new_object();
    json_set(o, "content", text_json(text, len));
    free(text);
    return o;
}

static struct json *apply_template(struct hearth *h, const struct json *body, const struct raw *raw,
                                   struct problem *p)
{
    struct hearth_text ask = { .model = raw->model, .op = HEARTH_RENDER };
    struct json *context = openai_context(body, p), *o = NULL;
    size_t len;
    if (!context) {
        return NULL;
    }
    ask.input = json_text(context, &ask.input_len);
    char *text = ask_text(h, &ask, &len, p);
    if (text) {
        o = json_new_object();
        json_set(o, "prompt", text_json(text, len));
    }
    free(text);
    json_destroy(&context);
    return o;
}

enum what { TOKENIZE, DETOKENIZE, TEMPLATE };

static void answer(struct exchange *x, struct hearth *h, enum what what, const struct field *fields)
{
    struct raw raw = { .parse_special = true };
    struct problem problem;
    struct json *body = fields_body(x, &problem), *o = NULL;
    if (body && fields_read(fields, body, &raw, x, &problem) == 0) {
        o = what == TOKENIZE     ? tokenize(h, &raw, &problem)
            : what == DETOKENIZE ? detokenize(h, &raw, &problem)
                                 : apply_template(h, body, &raw, &problem);
    }
    if (o) {
        exchange_reply_json(x, 200, o);
    } else {
        problem_reply(x, &problem);
    }
    json_destroy(&body);
}

void texts_tokenize(struct exchange *x, struct hearth *h)
{
    answer(x, h, TOKENIZE, tokenize_fields);
}

void texts_detokenize(struct exchange *x, struct hearth *h)
{
    answer(x, h, DETOKENIZE, detokenize_fields);
}

void texts_apply_template(struct exchange *x, struct hearth *h)
{
    answer(x, h, TEMPLATE, template_fields);
}
