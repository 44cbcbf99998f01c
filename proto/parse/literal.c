/* Calls written in other literals than JSON: Gemma 4's bare keys with <|"|> as quote, and Python's call
 * syntax. */
#include <stdlib.h>
#include <string.h>

#include "proto/parse/answer.h"

#define GEMMA_QUOTE "<|\"|>"

/* --- text under construction --- */

struct buffer {
    char *p;
    size_t len, cap;
    bool failed;
};

static void put(struct buffer *b, const char *p, size_t len)
{
    if (b->failed || len == 0) {
        return;
    }
    if (b->len + len > b->cap) {
        size_t cap = (b->len + len) * 2 + 64;
        char *grown = realloc(b->p, cap);
        if (!grown) {
            b->failed = true;
            return;
        }
        b->p = grown;
        b->cap = cap;
    }
    memcpy(b->p + b->len, p, len);
    b->len += len;
}

/* text as a JSON string */
static void put_quoted(struct buffer *b, struct span text)
{
    struct json *value = json_of_span(text);
    size_t len;
    const char *json = json_text(value, &len);
    put(b, json, len);
    json_destroy(&value);
}

static bool is_bare(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.' || c == '+' || c == '$' || (unsigned char)c >= 0x80;
}

/* The characters of a name or number that s begins with. */
static struct span bare_word(struct span s)
{
    size_t n = 0;
    while (n < s.len && is_bare(s.p[n])) {
        n++;
    }
    return (struct span){ .p = s.p, .len = n };
}

/* --- Gemma 4 --- */

/* {k:<|"|>text<|"|>,n:1} at s becomes JSON; returns the bytes it took, 0 when it does not end. */
static size_t gemma_object(struct span s, struct buffer *out)
{
    int depth = 0;
    for (size_t i = 0; i < s.len;) {
        struct span rest = span_from(s, i);
        if (span_starts(rest, GEMMA_QUOTE)) {
            struct span text = span_from(rest, strlen(GEMMA_QUOTE));
            const char *end = span_find(text, GEMMA_QUOTE);
            if (!end) {
                return 0;
            }
            text = span_until(text, end);
            put_quoted(out, text);
            i += text.len + 2 * strlen(GEMMA_QUOTE);
            continue;
        }
        struct span word = bare_word(rest);
        if (word.len) {
            if (word.len < rest.len && rest.p[word.len] == ':') {
                put_quoted(out, word);
            } else {
                put(out, word.p, word.len);
            }
            i += word.len;
            continue;
        }
        put(out, &s.p[i], 1);
        i++;
        depth += rest.p[0] == '{' || rest.p[0] == '[';
        depth -= rest.p[0] == '}' || rest.p[0] == ']';
        if (depth <= 0) {
            return depth == 0 ? i : 0;
        }
    }
    return 0;
}

/* "call:N{…}<tool_call|>" at *text, which moves behind it. */
static bool gemma_call(struct answer *a, struct span *text)
{
    struct span rest = *text, name;
    struct json *arguments = NULL;
    struct buffer json = { .p = NULL };
    if (!span_take(&rest, "call:")) {
        return false;
    }
    const char *brace = rest.len ? memchr(rest.p, '{', rest.len) : NULL;
    if (!brace) {
        return false;
    }
    name = span_until(rest, brace);
    rest = span_from(rest, name.len);
    size_t len = gemma_object(rest, &json);
    if (!len) {
        answer_give_up(a);
    }
    bool good = len && !json.failed &&
                json_from((struct span){ .p = json.p, .len = json.len }, &arguments) &&
                answer_call(a, span_trim(name), arguments, SPAN(""));
    free(json.p);
    if (good) {
        *text = span_from(rest, len);
        span_take(text, a->format->close);
    }
    return good;
}

void parse_gemma(struct answer *a, struct span text)
{
    struct span raw;
    while (answer_open(a, &text, &raw)) {
        if (!gemma_call(a, &text)) {
            answer_content(a, span_until(raw, text.p));
        }
    }
    answer_content(a, text);
}

/* --- Python --- */

static bool python_value(struct span *s, struct json **value, int depth);

static size_t utf8_of(unsigned long cp, char out[4])
{
    if (cp >= 0x110000 || (cp >= 0xd800 && cp < 0xe000)) {
        cp = 0xfffd;
    }
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    size_t n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (cp & 0x3f));
        cp >>= 6;
    }
    out[0] = (char)((n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | cp);
    return n;
}

/* An escape behind its backslash at s[*i]; *i moves behind it. */
static void python_escape(struct span s, size_t *i, struct buffer *out)
{
    static const char from[] = "ntr\\'\"abfv", to[] = "\n\t\r\\'\"\a\b\f\v";
    char c = s.p[(*i)++];
    const char *hit = c ? strchr(from, c) : NULL;
    size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (hit) {
        put(out, &to[hit - from], 1);
    } else if (digits && *i + digits <= s.len) {
        char hex[9] = "", bytes[4], *end;
        memcpy(hex, s.p + *i, digits);
        unsigned long cp = strtoul(hex, &end, 16);
        if (end == hex + digits) {
            put(out, bytes, utf8_of(cp, bytes));
            *i += digits;
        }
    } else if (c != '\n') {
        put(out, "\\", 1);
        put(out, &c, 1);
    }
}

static bool python_str(struct span *s, struct json **value)
{
    struct buffer out = { .p = NULL };
    char quote = s->p[0];
    bool triple = s->len >= 3 && s->p[1] == quote && s->p[2] == quote;
    size_t i = triple ? 3 : 1;
    while (i < s->len) {
        bool ends = s->p[i] == quote &&
                    (!triple || (i + 2 < s->len && s->p[i + 1] == quote && s->p[i + 2] == quote));
        if (ends) {
            break;
        }
        if (s->p[i] == '\\' && i + 1 < s->len) {
            i++;
            python_escape(*s, &i, &out);
        } else {
            put(&out, &s->p[i++], 1);
        }
    }
    bool good = i < s->len && !out.failed;
    *value = good ? json_of_span((struct span){ .p = out.p, .len = out.len }) : NULL;
    *s = span_from(*s, i + (triple ? 3 : 1));
    free(out.p);
    return good;
}

/* True, None, 3, -1.5 */
static bool python_word(struct span *s, struct json **value)
{
    static const struct {
        const char *python, *json;
    } words[] = { { "True", "true" }, { "False", "false" }, { "None", "null" } };
    struct span word = bare_word(*s);
    *s = span_from(*s, word.len);
    if (!word.len) {
        return false;
    }
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (span_is(word, words[i].python)) {
            word = (struct span){ .p = words[i].json, .len = strlen(words[i].json) };
        }
    }
    return json_from(word, value);
}

/* [a, b] or (a, b) */
static bool python_list(struct span *s, const char *close, struct json **value, int depth)
{
    *value = json_new_array();
    *s = span_from(*s, 1);
    for (bool first = true; !span_take(s, close); first = false) {
        struct json *item;
        if (!first && !span_take(s, ",")) {
            goto fail;
        }
        if (!first && span_take(s, close)) { /* a trailing comma */
            break;
        }
        if (!python_value(s, &item, depth + 1)) {
            goto fail;
        }
        json_push(*value, item);
    }
    return true;
fail:
    json_destroy(value);
    return false;
}

/* object[key] = value, where any scalar may be a key. */
static void put_member(struct json *object, const struct json *key, struct json *value)
{
    struct span name = SPAN("null");
    if (json_kind(key) == JSON_STRING) {
        name.p = json_as_str(key, &name.len);
    } else if (key) {
        name.p = json_text(key, &name.len);
    }
    json_put(object, name, value);
}

static bool python_dict(struct span *s, struct json **value, int depth)
{
    struct json *key = NULL, *item;
    *value = json_new_object();
    *s = span_from(*s, 1);
    for (bool first = true; !span_take(s, "}"); first = false) {
        if (!first && !span_take(s, ",")) {
            goto fail;
        }
        if (!first && span_take(s, "}")) {
            break;
        }
        if (!python_value(s, &key, depth + 1) || !span_take(s, ":") ||
            !python_value(s, &item, depth + 1)) {
            goto fail;
        }
        put_member(*value, key, item);
        json_destroy(&key);
    }
    return true;
fail:
    json_destroy(&key);
    json_destroy(value);
    return false;
}

/* One literal at *s, which moves behind it. On failure *value is NULL. */
static bool python_value(struct span *s, struct json **value, int depth)
{
    *value = NULL;
    span_take(s, "");
    if (s->len == 0 || depth > JSON_DEPTH_MAX) {
        return false;
    }
    switch (s->p[0]) {
    case '"':
    case '\'':
        return python_str(s, value);
    case '[':
        return python_list(s, "]", value, depth);
    case '(':
        return python_list(s, ")", value, depth);
    case '{':
        return python_dict(s, value, depth);
    default:
        return python_word(s, value);
    }
}

/* k=v, k=v) into arguments; *s moves behind the parenthesis. */
static bool python_arguments(struct span *s, struct json *arguments)
{
    for (bool first = true; !span_take(s, ")"); first = false) {
        struct json *value;
        if (!first && !span_take(s, ",")) {
            return false;
        }
        if (!first && span_take(s, ")")) {
            break;
        }
        span_take(s, "");
        struct span key = bare_word(*s);
        *s = span_from(*s, key.len);
        if (!key.len || !span_take(s, "=") || !python_value(s, &value, 0)) {
            return false;
        }
        json_put(arguments, key, value);
    }
    return true;
}

bool python_call(struct answer *a, struct span *text, const char *method)
{
    struct span rest = *text, name = bare_word(*text);
    struct json *arguments = json_new_object();
    size_t suffix = strlen(method);
    rest = span_from(rest, name.len);
    if (suffix && name.len > suffix && memcmp(name.p + name.len - suffix, method, suffix) == 0) {
        name.len -= suffix;
    }
    if (!name.len || !span_take(&rest, "(") || !python_arguments(&rest, arguments)) {
        json_destroy(&arguments);
        return false;
    }
    *text = rest;
    return answer_call(a, name, arguments, SPAN(""));
}

/* [f(a=1), g(b="x")] at *text, which moves behind it. */
static bool python_calls(struct answer *a, struct span *text)
{
    struct span rest = *text;
    if (!span_take(&rest, "[")) {
        return false;
    }
    do {
        span_take(&rest, "");
        if (!answer_try(a) || !python_call(a, &rest, "")) {
            return false;
        }
    } while (span_take(&rest, ","));
    if (!span_take(&rest, "]")) {
        return false;
    }
    *text = rest;
    return true;
}

void parse_python(struct answer *a, struct span text)
{
    struct span whole = text;
    if (!span_find(text, a->format->open) &&
        python_calls(a, &whole)) { /* LFM 2.5 without markers */
        answer_content(a, whole);
        return;
    }
    struct span raw;
    while (answer_open(a, &text, &raw)) {
        if (python_calls(a, &text)) {
            span_take(&text, a->format->close);
        } else {
            answer_content(a, span_until(raw, text.p));
        }
    }
    answer_content(a, text);
}
