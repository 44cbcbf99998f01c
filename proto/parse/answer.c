#include "proto/parse/answer.h"

#include <stdlib.h>
#include <string.h>

/* --- spans --- */

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

struct span span_from(struct span s, size_t off)
{
    off = off < s.len ? off : s.len;
    return (struct span){ .p = s.p + off, .len = s.len - off };
}

struct span span_trim(struct span s)
{
    while (s.len && is_space(s.p[0])) {
        s = span_from(s, 1);
    }
    while (s.len && is_space(s.p[s.len - 1])) {
        s.len--;
    }
    return s;
}

bool span_starts(struct span s, const char *prefix)
{
    size_t len = strlen(prefix);
    return len <= s.len && memcmp(s.p, prefix, len) == 0;
}

bool span_is(struct span s, const char *text)
{
    return strlen(text) == s.len && memcmp(s.p, text, s.len) == 0;
}

const char *span_find(struct span s, const char *needle)
{
    return s.len ? memmem(s.p, s.len, needle, strlen(needle)) : NULL;
}

struct span span_until(struct span s, const char *end)
{
    return (struct span){ .p = s.p, .len = (size_t)(end - s.p) };
}

bool span_take(struct span *s, const char *literal)
{
    struct span rest = *s;
    while (rest.len && is_space(rest.p[0])) {
        rest = span_from(rest, 1);
    }
    if (!span_starts(rest, literal)) {
        return false;
    }
    *s = span_from(rest, strlen(literal));
    return true;
}

size_t span_json(struct span s)
{
    int depth = 0;
    bool in_string = false;
    if (s.len == 0 || (s.p[0] != '{' && s.p[0] != '[')) {
        return 0;
    }
    for (size_t i = 0; i < s.len; i++) {
        char c = s.p[i];
        if (in_string) {
            i += c == '\\';
            in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if ((c == '}' || c == ']') && --depth == 0) {
            return i + 1;
        }
    }
    return 0;
}

/* --- gathering --- */

static void add(char *buffer, size_t *len, struct span text)
{
    if (text.len) {
        memcpy(buffer + *len, text.p, text.len);
        *len += text.len;
    }
}

/* Length of the wrapping marker that s begins with, or 0. */
static size_t wrapping_at(const struct parse_format *format, struct span s)
{
    for (size_t i = 0; i < FORMAT_MARKERS && format->wrapping[i]; i++) {
        if (span_starts(s, format->wrapping[i])) {
            return strlen(format->wrapping[i]);
        }
    }
    return 0;
}

void answer_content(struct answer *a, struct span text)
{
    size_t plain = 0; /* where text without markers began */
    for (size_t i = 0; i < text.len;) {
        size_t marker = wrapping_at(a->format, span_from(text, i));
        if (marker) {
            add(a->content, &a->content_len,
                (struct span){ .p = text.p + plain, .len = i - plain });
            plain = i + marker;
        }
        i += marker ? marker : 1;
    }
    add(a->content, &a->content_len, span_from(text, plain));
}

bool answer_try(struct answer *a)
{
    return a->n_tries++ < ANSWER_TRIES_MAX;
}

bool answer_open(struct answer *a, struct span *text, struct span *raw)
{
    const char *hit = span_find(*text, a->format->open);
    if (!hit || !answer_try(a)) {
        return false;
    }
    answer_content(a, span_until(*text, hit));
    *raw = span_from(*text, (size_t)(hit - text->p));
    *text = span_from(*raw, strlen(a->format->open));
    return true;
}

void answer_give_up(struct answer *a)
{
    a->n_tries = ANSWER_TRIES_MAX;
}

void answer_reasoning(struct answer *a, struct span text)
{
    add(a->reasoning, &a->reasoning_len, text);
}

/* The schema of a tool's parameters, or NULL; *known says whether there is such a tool. */
static const struct json *tool_find(const struct answer *a, struct span name, bool *known)
{
    *known = false;
    for (size_t i = 0; i < json_len(a->tools); i++) {
        const struct json *tool = json_at(a->tools, i);
        const struct json *function = json_find(tool, "function");
        function = function ? function : tool;
        size_t len;
        const struct json *value = json_find(function, "name");
        if (json_kind(value) != JSON_STRING) {
            continue;
        }
        const char *text = json_as_str(value, &len);
        if (len == name.len && memcmp(text, name.p, len) == 0) {
            *known = true;
            return json_find(function, "parameters");
        }
    }
    return NULL;
}

bool answer_knows(const struct answer *a, struct span name)
{
    bool known;
    tool_find(a, name, &known);
    return known;
}

struct json *json_of_span(struct span text)
{
    return json_new_str(text.len ? text.p : "", text.len);
}

bool json_from(struct span text, struct json **value)
{
    struct err err;
    text = span_trim(text);
    *value = NULL;
    if (span_is(text, "null")) {
        return true;
    }
    *value = text.len ? json_parse(text.p, text.len, &err) : NULL;
    return *value != NULL;
}

struct json *json_copy(const struct json *value)
{
    struct json *copy = NULL;
    if (value) {
        size_t len;
        const char *text = json_text(value, &len);
        json_from((struct span){ .p = text, .len = len }, &copy);
    }
    return copy;
}

void json_put(struct json *object, struct span key, struct json *take_value)
{
    char small[256];
    char *name = key.len < sizeof small ? small : malloc(key.len + 1);
    if (!name) {
        json_destroy(&take_value);
        return;
    }
    memcpy(name, key.p, key.len);
    name[key.len] = '\0';
    json_set(object, name, take_value);
    if (name != small) {
        free(name);
    }
}

bool answer_call(struct answer *a, struct span name, struct json *arguments, struct span id)
{
    if (!answer_knows(a, name) || json_len(a->calls) >= PARSE_CALLS_MAX) {
        json_destroy(&arguments);
        return false;
    }
    if (json_kind(arguments) == JSON_STRING) {
        struct span text;
        struct json *inner;
        text.p = json_as_str(arguments, &text.len);
        if (json_from(text, &inner) && json_kind(inner) == JSON_OBJECT) {
            json_destroy(&arguments);
            arguments = inner;
        } else {
            json_destroy(&inner);
        }
    }
    struct json *call = json_new_object();
    json_set(call, "name", json_of_span(name));
    json_set(call, "arguments", arguments ? arguments : json_new_object());
    if (id.len) {
        json_set(call, "id", json_of_span(id));
    }
    json_push(a->calls, call);
    return true;
}

/* Whether a schema's type is (or may be) this one. */
static bool has_type(const struct json *schema, const char *name)
{
    const struct json *type = json_find(schema, "type");
    if (json_kind(type) == JSON_STRING) {
        return strcmp(json_as_str(type, NULL), name) == 0;
    }
    for (size_t i = 0; json_kind(type) == JSON_ARRAY && i < json_len(type); i++) {
        const struct json *one = json_at(type, i);
        if (json_kind(one) == JSON_STRING && strcmp(json_as_str(one, NULL), name) == 0) {
            return true;
        }
    }
    return false;
}

struct json *answer_typed(const struct answer *a, struct span tool, const char *key,
                          struct span text)
{
    bool known;
    const struct json *parameters = tool_find(a, tool, &known);
    const struct json *schema = json_find(json_find(parameters, "properties"), key);
    struct json *value;
    if (has_type(schema, "string")) {
        return json_of_span(text);
    }
    if (has_type(schema, "boolean") && (span_is(text, "True") || span_is(text, "False"))) {
        return json_new_bool(text.p[0] == 'T');
    }
    if (!json_from(text, &value)) {
        return json_of_span(text);
    }
    if (!schema && json_kind(value) == JSON_STRING) {
        json_destroy(&value);
        return json_of_span(text);
    }
    return value;
}
