/* Calls written as a name, perhaps an id, and JSON arguments, with markers between. */
#include <string.h>

#include "proto/parse/answer.h"

/* Kimi's "functions.NAME:7" is the id; the name stands inside. */
static void kimi_name(struct span *name, struct span *id)
{
    *id = *name;
    if (span_starts(*name, "functions.")) {
        *name = span_from(*name, strlen("functions."));
    }
    for (size_t i = name->len; i-- > 0;) {
        if (name->p[i] == ':') {
            name->len = i;
            break;
        }
    }
}

/* One call at *text, which begins behind the opening marker. Moves behind the call when it is one. */
static bool named_call(struct answer *a, struct span *text)
{
    const struct parse_format *format = a->format;
    struct span rest = *text, id = { .p = NULL };
    if (format->name_open && !span_take(&rest, format->name_open)) {
        return false;
    }
    const char *end = span_find(rest, format->args_open);
    if (!end) {
        answer_give_up(a);
        return false;
    }
    struct span name = span_until(rest, end);
    rest = span_trim(span_from(rest, name.len + strlen(format->args_open)));
    if (format->id_open) {
        const char *cut = span_find(name, format->id_open);
        if (cut) {
            id = span_trim(span_from(name, (size_t)(cut - name.p) + strlen(format->id_open)));
            name = span_until(name, cut);
        }
    }
    name = span_trim(name);
    if (span_starts(name, "functions.")) {
        kimi_name(&name, &id);
    }
    struct json *arguments;
    size_t len = span_json(rest);
    if (!len && rest.len && rest.p[0] == '{') {
        answer_give_up(a);
    }
    if (!len || !json_from((struct span){ .p = rest.p, .len = len }, &arguments)) {
        return false;
    }
    rest = span_from(rest, len);
    if (format->args_close) {
        span_take(&rest, format->args_close);
    }
    if (format->close) {
        span_take(&rest, format->close);
    }
    if (!answer_call(a, name, arguments, id)) {
        return false;
    }
    *text = rest;
    return true;
}

void parse_named(struct answer *a, struct span text)
{
    const struct parse_format *format = a->format;
    struct span raw;
    while (answer_open(a, &text, &raw)) {
        if (!named_call(a, &text)) {
            /* No call, or cut off: it is text, up to the next that opens one. */
            const char *next = span_find(text, format->open);
            struct span plain = next ? span_until(raw, next) : raw;
            answer_content(a, plain);
            text = span_from(raw, plain.len);
        }
    }
    answer_content(a, text);
}
