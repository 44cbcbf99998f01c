/* Calls written as JSON: between markers, or as the whole answer. */
#include <string.h>

#include "proto/parse/answer.h"

static struct span str_member(const struct json *object, const char *const *keys)
{
    struct span out = { .p = NULL };
    for (; *keys && !out.p; keys++) {
        const struct json *value = json_find(object, *keys);
        if (json_kind(value) == JSON_STRING) {
            out.p = json_as_str(value, &out.len);
        }
    }
    return out;
}

/* One call object: {"name"|"tool_name", "arguments"|"parameters", "id"|"tool_call_id"}, OpenAI's
 * {"function":{…}}, or {NAME: {…}}. */
static bool call_of_object(struct answer *a, const struct json *object)
{
    static const char *const names[] = { "name", "tool_name", NULL };
    static const char *const ids[] = { "id", "tool_call_id", NULL };
    static const char *const arguments[] = { "arguments", "parameters" };
    if (json_kind(object) != JSON_OBJECT) {
        return false;
    }
    struct span id = str_member(object, ids);
    const struct json *function = json_find(object, "function");
    object = json_kind(function) == JSON_OBJECT ? function : object;
    struct span name = str_member(object, names);
    for (size_t i = 0; name.p && i < 2; i++) {
        const struct json *value = json_find(object, arguments[i]);
        if (value) {
            return answer_call(a, name, json_copy(value), id);
        }
    }
    if (name.p) {
        return answer_call(a, name, NULL, id);
    }
    const char *key;
    const struct json *value;
    struct json_walk walk = json_walk_of(object);
    if (json_len(object) == 1 && json_walk_next(&walk, &key, &value) &&
        json_kind(value) == JSON_OBJECT) {
        name = (struct span){ .p = key, .len = strlen(key) };
        return answer_call(a, name, json_copy(value), id);
    }
    return false;
}

/* A call or a list of calls; true when all of them are. */
static bool calls_of_json(struct answer *a, struct span text)
{
    struct json *value;
    if (!json_from(text, &value)) {
        return false;
    }
    bool good = true;
    if (json_kind(value) == JSON_ARRAY) {
        for (size_t i = 0; i < json_len(value); i++) {
            good &= call_of_object(a, json_at(value, i));
        }
        good &= json_len(value) > 0;
    } else {
        good = call_of_object(a, value);
    }
    json_destroy(&value);
    return good;
}

void parse_blocks(struct answer *a, struct span text)
{
    const struct parse_format *format = a->format;
    struct span raw;
    while (answer_open(a, &text, &raw)) {
        struct span rest = span_trim(text);
        size_t len = span_json(rest);
        if (!len) { /* cut off: all the rest is text */
            text = raw;
            break;
        }
        struct span json = { .p = rest.p, .len = len };
        text = span_from(rest, len);
        if (format->close) {
            span_take(&text, format->close);
        }
        if (!calls_of_json(a, json)) {
            answer_content(a, span_until(raw, text.p));
        }
    }
    answer_content(a, text);
}

/* Objects with "; " between them make up the whole of text. */
static bool only_calls(struct answer *a, struct span text)
{
    bool any = false;
    for (text = span_trim(text); text.len && answer_try(a); any = true) {
        size_t len = span_json(text);
        if (!len || !calls_of_json(a, (struct span){ .p = text.p, .len = len })) {
            return false;
        }
        text = span_trim(span_from(text, len));
        span_take(&text, ";");
        text = span_trim(text);
    }
    return any && !text.len;
}

/* {"tool_call": …}, {"tool_calls": […]}, {"response": …}: what the generic grammar lets a model write. */
static bool generic_answer(struct answer *a, struct span text)
{
    struct json *value;
    if (!json_len(a->tools) || !json_from(text, &value)) { /* without tools nobody asked for it */
        return false;
    }
    const struct json *call = json_find(value, "tool_call"),
                      *calls = json_find(value, "tool_calls");
    const struct json *response = json_find(value, "response");
    bool good = call && call_of_object(a, call);
    for (size_t i = 0; json_kind(calls) == JSON_ARRAY && i < json_len(calls); i++) {
        good |= call_of_object(a, json_at(calls, i));
    }
    if (json_kind(response) == JSON_STRING) {
        struct span said;
        said.p = json_as_str(response, &said.len);
        answer_content(a, said);
        good = true;
    }
    json_destroy(&value);
    return good;
}

/* Code behind <|python_tag|>, for the python tool that was offered. */
static bool python_code(struct answer *a, struct span code)
{
    static const char *const names[] = { "python", "ipython", "code_interpreter" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct span name = { .p = names[i], .len = strlen(names[i]) };
        if (answer_knows(a, name)) {
            struct json *arguments = json_new_object();
            json_set(arguments, "code", json_of_span(span_trim(code)));
            return answer_call(a, name, arguments, SPAN(""));
        }
    }
    return false;
}

void parse_whole_json(struct answer *a, struct span text)
{
    const char *tag = a->format->open ? span_find(text, a->format->open) : NULL;
    struct span body = text;
    if (tag) {
        body = span_from(text, (size_t)(tag - text.p) + strlen(a->format->open));
    }
    struct span trimmed = span_trim(body);
    struct span builtin = trimmed;
    size_t n_calls = json_len(a->calls);
    bool good = only_calls(a, trimmed) || generic_answer(a, trimmed) ||
                (tag && python_call(a, &builtin, ".call")) || (tag && python_code(a, body));
    if (tag && (good || json_len(a->calls) > n_calls)) {
        answer_content(a, span_until(text, tag));
    }
    if (!good && json_len(a->calls) == n_calls) {
        answer_content(a, text);
    }
}

/* Command R (2024): "Plan: …" and "Reflection: …" are thoughts, "Action: ```json […] ```" calls;
 * directly_answer is no call. */
void parse_command_r(struct answer *a, struct span text)
{
    while (text.len) {
        const char *newline = memchr(text.p, '\n', text.len);
        struct span line = newline ? span_until(text, newline + 1) : text;
        struct span rest = text;
        if (span_take(&rest, "Plan:") || span_take(&rest, "Reflection:")) {
            answer_reasoning(a, line);
            text = span_from(text, line.len);
            continue;
        }
        if (span_take(&rest, "Action:") && span_take(&rest, "```json") && answer_try(a)) {
            rest = span_trim(rest);
            size_t len = span_json(rest);
            struct span json = { .p = rest.p, .len = len };
            struct span behind = span_from(rest, len);
            bool direct = len && span_find(json, "\"directly_answer\"");
            span_take(&behind, "```");
            if (len && (direct || calls_of_json(a, json))) {
                text = behind;
                continue;
            }
        }
        answer_content(a, line);
        text = span_from(text, line.len);
    }
}
