/* Fuzz target: a model's answer, whole and followed while it is written: both must come to the same. The first byte chooses
 * the format and whether the prompt opened the reasoning; the rest is the text (it reaches the parser as UTF-8 only by luck,
 * and must not matter). */
#include <stdlib.h>
#include <string.h>

#include "proto/parse/stream.h"
#include "tests/fuzz/fuzz.h"

struct gathered {
    char *p;
    size_t len;
};

static void trim(const char **p, size_t *n)
{
    static const char space[] = { ' ', '\t', '\n', '\v', '\f', '\r' };
    while (*n && memchr(space, (*p)[*n - 1], sizeof space)) {
        --*n;
    }
    while (*n && memchr(space, **p, sizeof space)) {
        ++*p;
        --*n;
    }
}

static void must_be(const struct gathered *got, const struct json *wanted)
{
    size_t n = got->len, m;
    const char *a = got->p ? got->p : "", *b = json_as_str(wanted, &m);
    trim(&a, &n);
    trim(&b, &m);
    if (n != m || memcmp(a, b, n) != 0) {
        abort();
    }
}

static void gather(struct parse_stream *s, struct gathered got[2], size_t *n_calls,
                   const struct json *calls)
{
    struct parse_event e;
    while (parse_stream_next(s, &e)) {
        if (e.kind == PARSE_CALL) {
            if (strcmp(json_text(e.call, NULL), json_text(json_at(calls, *n_calls), NULL)) != 0) {
                abort();
            }
            ++*n_calls;
            continue;
        }
        struct gathered *g = &got[e.kind];
        char *grown = realloc(g->p, g->len + e.len);
        if (!grown) {
            abort();
        }
        g->p = grown;
        memcpy(g->p + g->len, e.text, e.len);
        g->len += e.len;
    }
}

static void follow(const struct parse_format *format, const char *text, size_t len,
                   const struct json *tools, const struct parse_options *options,
                   const struct json *whole)
{
    struct err err;
    struct gathered got[2] = { { NULL, 0 }, { NULL, 0 } };
    const struct json *calls = json_find(whole, "tool_calls");
    struct parse_stream *s = parse_stream_create(format, tools, options, &err);
    size_t n_calls = 0, piece = 1 + len % 7 * (1 + len / 64);
    for (size_t at = 0; s && at < len; at += piece) {
        size_t n = piece < len - at ? piece : len - at;
        if (parse_stream_feed(s, text + at, n, &err) < 0) {
            abort();
        }
        gather(s, got, &n_calls, calls);
    }
    if (!s || parse_stream_end(s, &err) < 0) {
        abort();
    }
    gather(s, got, &n_calls, calls);
    must_be(&got[PARSE_CONTENT], json_find(whole, "content"));
    must_be(&got[PARSE_REASONING], json_find(whole, "reasoning_content"));
    if (n_calls != json_len(calls)) {
        abort();
    }
    parse_stream_destroy(&s);
    free(got[0].p);
    free(got[1].p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char tools_text[] = "[{\"function\":{\"name\":\"f\",\"parameters\":{"
                                     "\"properties\":{\"s\":{\"type\":\"string\"},"
                                     "\"b\":{\"type\":\"boolean\"},\"n\":{\"type\":\"integer\"}}}}}"
                                     ",{\"function\":{\"name\":\"python\"}}]";
    struct err err;
    size_t n_formats = 0;
    if (size == 0) {
        return 0;
    }
    while (parse_at(n_formats)) {
        n_formats++;
    }
    struct json *tools = json_parse(tools_text, sizeof tools_text - 1, &err);
    const struct parse_options options = { .reasoning_open = data[0] & 0x80 };
    const struct parse_format *format = parse_at((data[0] & 0x7f) % n_formats);
    const char *text = (const char *)data + 1;
    struct json *answer = parse_answer(format, text, size - 1, tools, &options, &err);
    if (!answer) {
        abort();
    }
    follow(format, text, size - 1, tools, &options, answer);
    json_destroy(&answer);
    json_destroy(&tools);
    return 0;
}
