/* Follows an answer through parse_stream and compares it with what parse_answer makes of the whole. */
#pragma once

#include "tests/test.h"

#include "proto/parse/stream.h"

struct followed {
    char *texts[2]; /* by enum parse_event_kind */
    size_t len[2];
    struct json *calls;
    size_t n_events, n_early_calls; /* calls that came before the end */
};

static inline void follow_events(struct parse_stream *s, struct followed *f, bool ended)
{
    struct parse_event e;
    while (parse_stream_next(s, &e)) {
        f->n_events++;
        if (e.kind == PARSE_CALL) {
            json_push(f->calls, json_share(e.call));
            f->n_early_calls += !ended;
            continue;
        }
        assert_true(e.len > 0);
        f->texts[e.kind] = realloc(f->texts[e.kind], f->len[e.kind] + e.len + 1);
        memcpy(f->texts[e.kind] + f->len[e.kind], e.text, e.len);
        f->len[e.kind] += e.len;
    }
}

/* first bytes at once, then by `piece`. */
static inline void follow(struct followed *f, const struct parse_format *format, const char *text,
                          size_t len, const struct json *tools, const struct parse_options *options,
                          size_t first, size_t piece)
{
    struct err err;
    struct parse_stream *s = parse_stream_create(format, tools, options, &err);
    *f = (struct followed){ .calls = json_new_array() };
    assert_non_null(s);
    for (size_t at = 0, n = first; at < len || at == 0; at += n, n = piece) {
        n = n < len - at ? n : len - at;
        assert_int_equal(parse_stream_feed(s, text + at, n, &err), 0);
        follow_events(s, f, false);
        if (at + n >= len) {
            break;
        }
    }
    assert_int_equal(parse_stream_end(s, &err), 0);
    follow_events(s, f, true);
    parse_stream_destroy(&s);
}

static inline void followed_clear(struct followed *f)
{
    free(f->texts[0]);
    free(f->texts[1]);
    json_destroy(&f->calls);
}

static inline bool follow_same_text(const char *a, size_t n, const struct json *whole)
{
    size_t m;
    const char *b = json_as_str(whole, &m);
    const char *space = " \t\r\n\v\f";
    while (n && strchr(space, a[n - 1])) {
        n--;
    }
    while (m && strchr(space, b[m - 1])) {
        m--;
    }
    while (n && strchr(space, *a)) {
        a++;
        n--;
    }
    while (m && strchr(space, *b)) {
        b++;
        m--;
    }
    return n == m && (n == 0 || memcmp(a, b, n) == 0);
}

/* Whether following gives what the whole gives; says what differs. */
static inline bool follow_agrees(const struct parse_format *format, const char *text, size_t len,
                                 const struct json *tools, const struct parse_options *options,
                                 size_t first, size_t piece, const struct json *whole)
{
    struct followed f;
    follow(&f, format, text, len, tools, options, first, piece);
    bool same = follow_same_text(f.texts[PARSE_CONTENT], f.len[PARSE_CONTENT],
                                 json_find(whole, "content")) &&
                follow_same_text(f.texts[PARSE_REASONING], f.len[PARSE_REASONING],
                                 json_find(whole, "reasoning_content")) &&
                strcmp(json_text(f.calls, NULL), json_text(json_find(whole, "tool_calls"), NULL)) ==
                    0;
    if (!same) {
        print_error("%s, cut at %zu, then by %zu: content \"%.*s\", reasoning \"%.*s\", calls %s; "
                    "not %s; of \"%.*s\"\n",
                    parse_name(format), first, piece, (int)f.len[PARSE_CONTENT],
                    f.texts[PARSE_CONTENT] ? f.texts[PARSE_CONTENT] : "",
                    (int)f.len[PARSE_REASONING],
                    f.texts[PARSE_REASONING] ? f.texts[PARSE_REASONING] : "",
                    json_text(f.calls, NULL), json_text(whole, NULL), (int)len, text);
    }
    followed_clear(&f);
    return same;
}
