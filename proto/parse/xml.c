/* Calls written as tags: a name, then parameters with their text. */
#include <string.h>

#include "proto/parse/answer.h"

/* One newline at each end, where the format puts the value on lines of its own. */
static struct span unwrap_lines(struct span s)
{
    if (s.len && s.p[0] == '\n') {
        s = span_from(s, 1);
    }
    if (s.len && s.p[s.len - 1] == '\n') {
        s.len--;
    }
    return s;
}

/* Takes text up to a closing marker; false when there is none. */
static bool take_until(struct span *s, const char *close, struct span *out)
{
    const char *end = span_find(*s, close);
    if (!end) {
        return false;
    }
    *out = span_until(*s, end);
    *s = span_from(*s, out->len + strlen(close));
    return true;
}

/* The key as it stands in its tag, and whether attributes say that the value is (1) or is not (0) a string. */
static struct span split_key(struct span key, int *is_string)
{
    *is_string = -1;
    key = span_trim(key);
    const char *quote = key.len ? memchr(key.p, '"', key.len) : NULL;
    if (quote) {
        struct span attributes = span_from(key, (size_t)(quote - key.p) + 1);
        key = span_until(key, quote);
        *is_string = span_find(attributes, "string=\"true\"")    ? 1
                     : span_find(attributes, "string=\"false\"") ? 0
                                                                 : -1;
    }
    return key;
}

static struct json *value_of(const struct answer *a, struct span tool, struct span key,
                             int is_string, struct span text)
{
    char name[128];
    struct json *value;
    if (is_string == 1) {
        return json_of_span(text);
    }
    if (is_string == 0 && json_from(text, &value)) {
        return value;
    }
    if (key.len >= sizeof name) {
        return json_of_span(text);
    }
    memcpy(name, key.p, key.len);
    name[key.len] = '\0';
    return answer_typed(a, tool, name, text);
}

/* <parameter=K>V</parameter>… until something else stands there. */
static struct json *take_parameters(const struct answer *a, struct span *text, struct span tool)
{
    const struct parse_format *format = a->format;
    struct json *arguments = json_new_object();
    struct span rest = *text, key, value;
    while (span_take(&rest, format->key_open)) {
        int is_string;
        if (!take_until(&rest, format->key_close, &key) ||
            (format->value_open && !span_take(&rest, format->value_open)) ||
            !take_until(&rest, format->value_close, &value)) {
            break;
        }
        key = split_key(key, &is_string);
        value = unwrap_lines(value);
        json_put(arguments, key, value_of(a, tool, key, is_string, value));
        *text = rest;
    }
    return arguments;
}

/* One <function=N>…</function> at *text, which moves behind it. */
static bool xml_call(struct answer *a, struct span *text)
{
    const struct parse_format *format = a->format;
    struct span rest = *text, name;
    if (format->name_open && !span_take(&rest, format->name_open)) {
        return false;
    }
    if (format->name_close) {
        if (!take_until(&rest, format->name_close, &name)) {
            return false;
        }
    } else { /* GLM: the name runs up to the first key or the end of the call */
        const char *key = span_find(rest, format->key_open), *end = span_find(rest, format->close);
        const char *stop = key && (!end || key < end) ? key : end;
        if (!stop) {
            return false;
        }
        name = span_until(rest, stop);
        rest = span_from(rest, name.len);
    }
    name = span_trim(name);
    if (name.len && name.p[name.len - 1] == '"') {
        name.len--;
    }
    struct json *arguments = take_parameters(a, &rest, name);
    const char *end = format->args_close ? format->args_close : format->close;
    if (!span_take(&rest, end) || !answer_knows(a, name)) {
        json_destroy(&arguments);
        return false;
    }
    *text = rest;
    return answer_call(a, name, arguments, SPAN(""));
}

/* All calls of one block; false when there is none. */
static bool xml_block(struct answer *a, struct span *text)
{
    struct span rest = *text;
    size_t n = 0;
    while (xml_call(a, &rest)) {
        n++;
        if (!a->format->args_close) { /* the call's end was the block's */
            *text = rest;
            return true;
        }
    }
    span_take(&rest, a->format->close);
    if (n) {
        *text = rest;
    }
    return n > 0;
}

void parse_xml(struct answer *a, struct span text)
{
    const struct parse_format *format = a->format;
    for (;;) {
        const char *hit = span_find(text, format->open);
        const char *name = format->name_open ? span_find(text, format->name_open) : NULL;
        if (name && (!hit || name < hit)) { /* some leave the outer tag out */
            hit = name;
        }
        if (!hit || !answer_try(a)) {
            break;
        }
        answer_content(a, span_until(text, hit));
        text = span_from(text, (size_t)(hit - text.p));
        struct span rest = text;
        span_take(&rest, format->open);
        if (xml_block(a, &rest)) {
            text = rest;
        } else {
            answer_content(a, (struct span){ .p = text.p, .len = 1 });
            text = span_from(text, 1);
        }
    }
    answer_content(a, text);
}

/* <use_mcp_tool><server_name>S</server_name><tool_name>N</tool_name><arguments>{…}</arguments></use_mcp_tool> */
static bool mcp_call(struct answer *a, struct span *text)
{
    struct span body, server, name, json;
    struct json *arguments;
    struct span rest = *text;
    if (!take_until(&rest, "</use_mcp_tool>", &body)) {
        return false;
    }
    if (span_take(&body, "<server_name>") && !take_until(&body, "</server_name>", &server)) {
        return false;
    }
    if (!span_take(&body, "<tool_name>") || !take_until(&body, "</tool_name>", &name) ||
        !span_take(&body, "<arguments>") || !take_until(&body, "</arguments>", &json) ||
        !json_from(json, &arguments)) {
        return false;
    }
    *text = rest;
    return answer_call(a, span_trim(name), arguments, SPAN(""));
}

void parse_mcp(struct answer *a, struct span text)
{
    struct span raw;
    while (answer_open(a, &text, &raw)) {
        if (!mcp_call(a, &text)) {
            if (text.p == raw.p + strlen(a->format->open)) {
                text = raw;
                break;
            }
            answer_content(a, span_until(raw, text.p));
        }
    }
    answer_content(a, text);
}
