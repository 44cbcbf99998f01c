#include "proto/parse/parse.h"

#include <stdlib.h>
#include <string.h>

#include "proto/parse/answer.h"

static bool ends_with(struct span s, const char *suffix)
{
    size_t n = strlen(suffix);
    return s.len >= n && memcmp(s.p + s.len - n, suffix, n) == 0;
}

/* Thoughts that a call cut short: the marker of the calls' section stands before the call's own. */
struct span parse_without_section(const struct parse_format *format, struct span thought)
{
    for (size_t i = 0; i < FORMAT_MARKERS && format->wrapping[i]; i++) {
        struct span trimmed = span_trim(thought);
        if (ends_with(trimmed, format->wrapping[i])) {
            thought.p = trimmed.p;
            thought.len = trimmed.len - strlen(format->wrapping[i]);
        }
    }
    return thought;
}

/* Cuts the reasoning off the front of *text. */
static void take_reasoning(struct answer *a, struct span *text, bool open)
{
    const struct parse_format *format = a->format;
    for (size_t i = 0; i < 2 && format->reasoning[i].open; i++) {
        const struct marker_pair *marks = &format->reasoning[i];
        struct span rest = *text;
        if (!span_take(&rest, marks->open) && !(open && i == 0)) {
            continue;
        }
        const char *close = span_find(rest, marks->close);
        const char *call = format->calls_end_reasoning ? span_find(rest, format->open) : NULL;
        struct span thought = close ? span_until(rest, close) : rest;
        if (call && (!close || call < close)) {
            thought = span_until(rest, call);
            rest = span_from(rest, thought.len);
            thought = parse_without_section(format, thought);
        } else {
            rest = span_from(rest, thought.len + (close ? strlen(marks->close) : 0));
        }
        answer_reasoning(a, thought);
        *text = rest;
        return;
    }
}

bool parse_opens_reasoning(const struct parse_format *format, const char *prompt, size_t len)
{
    struct span text = span_trim((struct span){ .p = prompt, .len = len });
    for (size_t i = 0; i < 2 && format->reasoning[i].open; i++) {
        if (ends_with(text, format->reasoning[i].open)) {
            return true;
        }
    }
    return false;
}

const char *parse_marker(const struct parse_format *format, size_t i, const char **close)
{
    const char *open = i < 2 ? format->reasoning[i].open : NULL;
    if (open && close) {
        *close = format->reasoning[i].close;
    }
    return open;
}

bool parse_is_plain(const struct parse_format *format)
{
    return !format->framed;
}

/* The answer as JSON; takes the calls. */
static struct json *answer_json(struct answer *a)
{
    struct span content = { .p = a->content, .len = a->content_len };
    struct span reasoning = span_trim((struct span){ .p = a->reasoning, .len = a->reasoning_len });
    if (json_len(a->calls) || reasoning.len) {
        content = span_trim(content);
    }
    struct json *out = json_new_object();
    json_set(out, "content", json_of_span(content));
    json_set(out, "reasoning_content", json_of_span(reasoning));
    json_set(out, "tool_calls", a->calls);
    a->calls = NULL;
    return out;
}

struct json *parse_answer(const struct parse_format *format, const char *text, size_t len,
                          const struct json *tools, const struct parse_options *options,
                          struct err *err)
{
    static const struct parse_options plain;
    options = options ? options : &plain;
    if (len > PARSE_TEXT_MAX) {
        err_set(err, ERR_NO_FIT, "an answer of %zu bytes is longer than %u", len, PARSE_TEXT_MAX);
        return NULL;
    }
    struct answer a = { .format = format, .tools = tools, .calls = json_new_array() };
    struct json *out = NULL;
    /* Every byte goes to one place once, and a message, which has a marker of 11 bytes, adds a line break. */
    a.content = malloc(2 * len + 1);
    a.reasoning = malloc(2 * len + 1);
    if (!a.content || !a.reasoning) {
        err_set(err, ERR_NO_MEMORY, "no memory for an answer of %zu bytes", len);
        goto done;
    }
    struct span rest = { .p = text, .len = len };
    if (!options->keep_reasoning) {
        take_reasoning(&a, &rest, options->reasoning_open);
    }
    format->parse(&a, rest);
    out = answer_json(&a);
done:
    json_destroy(&a.calls);
    free(a.content);
    free(a.reasoning);
    return out;
}
