#include "proto/parse/stream.h"

#include <stdlib.h>
#include <string.h>

#include "proto/parse/answer.h"

/* Reading held text again for calls that ended: bytes in all, then calls come at the answer's end. */
#define STREAM_AGAIN_MAX (64u << 20)
#define N_TEXTS          2 /* PARSE_REASONING and PARSE_CONTENT */

enum phase {
    STREAM_START,     /* reasoning may begin here */
    STREAM_REASONING, /* until its closing marker */
    STREAM_CONTENT,   /* until a call's opening marker */
    STREAM_HELD,      /* a call, or what looks like one: shown when it ended */
    STREAM_HARMONY,   /* messages with a header, */
    STREAM_RECIPIENT, /* or with a first line */
    STREAM_WAIT,      /* known when it is whole */
};

/* How a parser's text is followed; the others hold from the first opening marker on. */
static const struct {
    void (*parse)(struct answer *a, struct span text);
    enum phase phase;
    const char *first; /* an answer with tools that begins with one of these is held whole */
} rows[] = {
    { parse_harmony, STREAM_HARMONY, "" }, { parse_recipients, STREAM_RECIPIENT, "" },
    { parse_command_r, STREAM_WAIT, "" },  { parse_whole_json, STREAM_CONTENT, "{[" },
    { parse_python, STREAM_CONTENT, "[" },
};

struct buffer {
    char *p;
    size_t len, cap;
};

struct parse_stream {
    const struct parse_format *format;
    const struct json *tools; /* NULL when there is none */
    struct parse_options options;
    enum phase phase;
    const char *close; /* of the reasoning at hand */
    struct buffer in;
    size_t at;             /* of in: all before it has gone out */
    size_t checked;        /* of in: looked through for ends of calls */
    size_t again;          /* bytes read again so far */
    bool body, body_empty; /* inside a message's body; nothing of it was said */
    enum parse_event_kind body_kind;
    struct buffer out[N_TEXTS]; /* said so far, white space that waits included */
    size_t given[N_TEXTS];      /* of out: shown */
    size_t given_from[N_TEXTS]; /* of out: where showing began */
    struct json *calls;         /* found so far */
    size_t n_given_calls;
    bool ended, failed;
};

/* ---- buffers ---- */

static bool buffer_add(struct buffer *b, struct span text)
{
    if (text.len > b->cap - b->len) {
        size_t cap = (b->len + text.len) * 2;
        char *grown = realloc(b->p, cap);
        if (!grown) {
            return false;
        }
        b->p = grown;
        b->cap = cap;
    }
    if (text.len) {
        memcpy(b->p + b->len, text.p, text.len);
        b->len += text.len;
    }
    return true;
}

static struct span fed(const struct parse_stream *s)
{
    return (struct span){ .p = s->in.p + s->at, .len = s->in.len - s->at };
}

static void say(struct parse_stream *s, enum parse_event_kind kind, struct span text)
{
    s->failed |= !buffer_add(&s->out[kind], text);
}

/* ---- markers ---- */

/* Bytes at the end of text that may become the marker. */
static size_t partial(struct span text, const char *marker)
{
    size_t most = strlen(marker) - 1;
    for (size_t n = most < text.len ? most : text.len; n > 0; n--) {
        if (memcmp(text.p + text.len - n, marker, n) == 0) {
            return n;
        }
    }
    return 0;
}

struct hit {
    size_t off; /* where the first marker begins, or what may become one; else the text's length */
    size_t len; /* of the marker; 0: none is whole */
    size_t number; /* which */
};

/* The first of several markers; NULL among them counts as absent. */
static struct hit find_first(struct span text, const char *const *markers, size_t n)
{
    struct hit hit = { .off = text.len };
    size_t held = 0;
    for (size_t i = 0; i < n; i++) {
        const char *at = markers[i] ? span_find(text, markers[i]) : NULL;
        if (at && (size_t)(at - text.p) < hit.off) {
            hit = (struct hit){ (size_t)(at - text.p), strlen(markers[i]), i };
        } else if (markers[i]) {
            size_t most = partial(text, markers[i]);
            held = most > held ? most : held;
        }
    }
    if (!hit.len) {
        hit.off = text.len - held;
    }
    return hit;
}

/* ---- the front of an answer ---- */

static void begin_content(struct parse_stream *s)
{
    s->phase = STREAM_CONTENT;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (rows[i].parse == s->format->parse) {
            s->phase = rows[i].phase;
        }
    }
}

static bool begin_reasoning(struct parse_stream *s, size_t i, size_t len)
{
    s->at += len;
    s->close = s->format->reasoning[i].close;
    s->phase = STREAM_REASONING;
    return true;
}

static bool step_start(struct parse_stream *s)
{
    const struct parse_format *format = s->format;
    struct span text = fed(s), rest = text;
    span_take(&rest, "");
    bool unclear = false;
    for (size_t i = 0; !s->options.keep_reasoning && i < 2 && format->reasoning[i].open; i++) {
        const char *open = format->reasoning[i].open;
        if (span_starts(rest, open)) {
            return begin_reasoning(s, i, text.len - rest.len + strlen(open));
        }
        unclear |= rest.len < strlen(open) && memcmp(open, rest.p, rest.len) == 0;
        if (s->options.reasoning_open && i == 0) {
            return unclear ? false : begin_reasoning(s, 0, 0);
        }
    }
    if (unclear) {
        return false;
    }
    begin_content(s);
    return true;
}

/* Everything but what is needed to see a call end reasoning: the marker of its section is no thought. */
static bool step_reasoning(struct parse_stream *s)
{
    const struct parse_format *format = s->format;
    const char *markers[2 + FORMAT_MARKERS] = { s->close };
    size_t n = 1;
    if (format->calls_end_reasoning) {
        markers[n++] = format->open;
        for (size_t i = 0; i < FORMAT_MARKERS && format->wrapping[i]; i++) {
            markers[n++] = format->wrapping[i];
        }
    }
    struct span text = fed(s);
    struct hit hit = find_first(text, markers, n), end = find_first(text, markers, n < 2 ? n : 2);
    if (hit.len && hit.number > 1) { /* a section's marker: what stands behind it decides */
        if (!end.len) {
            say(s, PARSE_REASONING, span_until(text, text.p + hit.off));
            s->at += hit.off;
            return hit.off > 0;
        }
        struct span thought = span_until(text, text.p + end.off);
        if (end.number == 1) {
            thought = parse_without_section(format, thought);
        }
        say(s, PARSE_REASONING, thought);
    } else {
        say(s, PARSE_REASONING, span_until(text, text.p + hit.off));
        end = hit;
    }
    s->at += end.off;
    if (end.len) {
        s->at += end.number == 0 ? end.len : 0;
        begin_content(s);
    }
    return end.len > 0 || end.off > 0;
}

/* ---- content and calls ---- */

/* The first byte decides for some formats whether the whole answer is a call; white space says nothing yet. */
static enum front {
    FRONT_PLAIN,
    FRONT_UNCLEAR,
    FRONT_HELD
} front_of(const struct parse_stream *s, struct span text)
{
    for (size_t i = 0; s->tools && i < sizeof rows / sizeof rows[0]; i++) {
        if (rows[i].parse == s->format->parse) {
            span_take(&text, "");
            return !text.len                          ? FRONT_UNCLEAR
                   : strchr(rows[i].first, text.p[0]) ? FRONT_HELD
                                                      : FRONT_PLAIN;
        }
    }
    return FRONT_PLAIN;
}

static bool step_content(struct parse_stream *s)
{
    const struct parse_format *format = s->format;
    const char *markers[2 + FORMAT_MARKERS] = { NULL };
    if (s->tools) {
        markers[0] = format->open;
        markers[1] = format->parse == parse_xml ? format->name_open : NULL;
    }
    for (size_t i = 0; i < FORMAT_MARKERS && format->wrapping[i]; i++) {
        markers[2 + i] = format->wrapping[i];
    }
    struct span text = fed(s);
    enum front front = s->out[PARSE_CONTENT].len == 0 ? front_of(s, text) : FRONT_PLAIN;
    if (front != FRONT_PLAIN) {
        s->phase = front == FRONT_HELD ? STREAM_WAIT : STREAM_CONTENT;
        return false;
    }
    struct hit hit = find_first(text, markers, 2 + FORMAT_MARKERS);
    say(s, PARSE_CONTENT, span_until(text, text.p + hit.off));
    s->at += hit.off;
    if (hit.len && hit.number < 2) {
        s->phase = format->parse == parse_whole_json ? STREAM_WAIT : STREAM_HELD;
        s->checked = s->at;
    } else {
        s->at += hit.len;
    }
    return hit.len > 0 || hit.off > 0;
}

/* How far the held text reaches to where a call may have ended, beyond what was looked at; 0: nowhere. */
static size_t last_end(const struct parse_stream *s)
{
    const struct parse_format *format = s->format;
    const char *end = format->parse == parse_xml && format->args_close ? format->args_close
                                                                       : format->close;
    const char *last = NULL;
    size_t len = end ? strlen(end) : 1;
    size_t from = s->checked - s->at > len ? s->checked - len + 1 : s->at;
    struct span text = { .p = s->in.p + from, .len = s->in.len - from };
    for (size_t i = text.len; !last && i >= len; i--) {
        const char *p = text.p + i - len;
        last = (end ? memcmp(p, end, len) == 0 : *p == '}' || *p == ']') ? p : NULL;
    }
    size_t off = last ? (size_t)(last - s->in.p) + len : 0;
    return off > s->checked ? off : 0;
}

static bool step_held(struct parse_stream *s)
{
    size_t end = last_end(s);
    s->checked = s->in.len;
    if (!end || (s->again += end - s->at) > STREAM_AGAIN_MAX) {
        return false;
    }
    struct err ignored;
    const struct parse_options how = { .keep_reasoning = true };
    struct json *answer = parse_answer(s->format, s->in.p + s->at, end - s->at, s->tools, &how,
                                       &ignored);
    const struct json *calls = json_find(answer, "tool_calls");
    bool any = false;
    for (size_t i = json_len(s->calls); i < json_len(calls); i++, any = true) {
        json_push(s->calls, json_share(json_at(calls, i)));
    }
    json_destroy(&answer);
    return any;
}

/* ---- messages ---- */

/* A whole message, by the format's own parser: a call, or content. */
static void take_message(struct parse_stream *s, struct span message)
{
    struct err ignored;
    struct json *answer = parse_answer(s->format, message.p, message.len, s->tools, NULL, &ignored);
    struct json *calls = json_find(answer, "tool_calls");
    const struct json *content = json_find(answer, "content");
    struct span text;
    text.p = json_as_str(content, &text.len);
    for (size_t i = 0; i < json_len(calls); i++) {
        json_push(s->calls, json_share(json_at(calls, i)));
    }
    if (answer && text.len) {
        if (s->out[PARSE_CONTENT].len) {
            say(s, PARSE_CONTENT, SPAN("\n"));
        }
        say(s, PARSE_CONTENT, text);
    }
    json_destroy(&answer);
}

static void begin_body(struct parse_stream *s, enum parse_event_kind kind, size_t len)
{
    s->at += len;
    s->body = s->body_empty = true;
    s->body_kind = kind;
    /* Thoughts are a line apart even where one is empty. */
    if (kind == PARSE_REASONING && s->out[kind].len) {
        say(s, kind, SPAN("\n"));
        s->body_empty = false;
    }
}

static bool step_body(struct parse_stream *s, const char *const *ends, size_t n, size_t n_own)
{
    struct span text = fed(s);
    struct hit hit = find_first(text, ends, n);
    if (hit.off && s->body_empty) {
        if (s->out[s->body_kind].len) {
            say(s, s->body_kind, SPAN("\n"));
        }
        s->body_empty = false;
    }
    say(s, s->body_kind, span_until(text, text.p + hit.off));
    s->at += hit.off;
    if (hit.len) {
        s->at += hit.number < n_own ? hit.len : 0;
        s->body = false;
    }
    return hit.len > 0 || hit.off > 0;
}

static bool step_harmony(struct parse_stream *s)
{
    static const char *const ends[] = { "<|end|>", "<|call|>", "<|return|>", "<|start|>" };
    if (s->body) {
        return step_body(s, ends, 4, 3);
    }
    struct span text = fed(s);
    const char *end = span_find(text, "<|message|>");
    if (!end) {
        return false;
    }
    struct span header = span_until(text, end);
    size_t len = header.len + strlen("<|message|>");
    enum harmony_kind kind = harmony_kind(header);
    if (kind != HARMONY_CALL) {
        begin_body(s, kind == HARMONY_THOUGHT ? PARSE_REASONING : PARSE_CONTENT, len);
        return true;
    }
    struct hit hit = find_first(span_from(text, len), ends, 4);
    if (hit.len) {
        len += hit.off + (hit.number < 3 ? hit.len : 0);
        take_message(s, (struct span){ .p = text.p, .len = len });
        s->at += len;
    }
    return hit.len > 0;
}

static bool step_recipient(struct parse_stream *s)
{
    static const char *const ends[] = { ">>>" };
    if (s->body) {
        return step_body(s, ends, 1, 1);
    }
    struct span text = fed(s);
    const char *newline = text.len ? memchr(text.p, '\n', text.len) : NULL;
    const char *next = span_find(text, ends[0]);
    if (newline && (!next || newline < next) &&
        span_is(span_trim(span_until(text, newline)), "all")) {
        begin_body(s, PARSE_CONTENT, (size_t)(newline - text.p) + 1);
        return true;
    }
    if (next) {
        take_message(s, span_until(text, next));
        s->at += (size_t)(next - text.p) + strlen(ends[0]);
    }
    return next != NULL;
}

/* ---- the whole ---- */

static bool step(struct parse_stream *s)
{
    if (s->ended || s->failed || s->in.len == s->at) {
        return false;
    }
    switch (s->phase) {
    case STREAM_START:
        return step_start(s);
    case STREAM_REASONING:
        return step_reasoning(s);
    case STREAM_CONTENT:
        return step_content(s);
    case STREAM_HELD:
        return step_held(s);
    case STREAM_HARMONY:
        return step_harmony(s);
    case STREAM_RECIPIENT:
        return step_recipient(s);
    case STREAM_WAIT:
        break;
    }
    return false;
}

struct parse_stream *parse_stream_create(const struct parse_format *format,
                                         const struct json *tools,
                                         const struct parse_options *options, struct err *err)
{
    struct parse_stream *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(err, ERR_NO_MEMORY, "no memory to follow an answer");
        return NULL;
    }
    s->format = format;
    s->tools = json_len(tools) ? tools : NULL;
    s->options = options ? *options : (struct parse_options){ .keep_reasoning = false };
    s->calls = json_new_array();
    return s;
}

void parse_stream_destroy(struct parse_stream **s)
{
    if (*s) {
        json_destroy(&(*s)->calls);
        free((*s)->in.p);
        for (int i = 0; i < N_TEXTS; i++) {
            free((*s)->out[i].p);
        }
        free(*s);
        *s = NULL;
    }
}

int parse_stream_feed(struct parse_stream *s, const char *text, size_t len, struct err *err)
{
    if (len > PARSE_TEXT_MAX - s->in.len) {
        return err_set(err, ERR_NO_FIT, "an answer is longer than %u bytes", PARSE_TEXT_MAX);
    }
    if (s->failed || !buffer_add(&s->in, (struct span){ .p = text, .len = len })) {
        return err_set(err, ERR_NO_MEMORY, "no memory for an answer of %zu bytes", s->in.len + len);
    }
    return 0;
}

/* What is not shown yet of the whole's text becomes what is said. */
static void rest_of(struct parse_stream *s, enum parse_event_kind kind, const struct json *whole)
{
    struct buffer *out = &s->out[kind];
    struct span text,
        shown = { .p = out->p + s->given_from[kind], .len = s->given[kind] - s->given_from[kind] };
    text.p = json_as_str(whole, &text.len);
    if (shown.len && (shown.len > text.len || memcmp(text.p, shown.p, shown.len) != 0)) {
        span_take(&shown, ""); /* the whole was trimmed in front */
    }
    bool good = !shown.len || (shown.len <= text.len && memcmp(text.p, shown.p, shown.len) == 0);
    struct span rest = good ? span_from(text, shown.len) : SPAN("");
    out->len = s->given[kind] = s->given_from[kind] = 0;
    say(s, kind, rest);
}

int parse_stream_end(struct parse_stream *s, struct err *err)
{
    struct json *whole = parse_answer(s->format, s->in.len ? s->in.p : "", s->in.len, s->tools,
                                      &s->options, err);
    if (!whole) {
        return -1;
    }
    s->ended = true;
    rest_of(s, PARSE_REASONING, json_find(whole, "reasoning_content"));
    rest_of(s, PARSE_CONTENT, json_find(whole, "content"));
    const struct json *calls = json_find(whole, "tool_calls");
    for (size_t i = json_len(s->calls); i < json_len(calls); i++) {
        json_push(s->calls, json_share(json_at(calls, i)));
    }
    json_destroy(&whole);
    return s->failed ? err_set(err, ERR_NO_MEMORY, "no memory for an answer") : 0;
}

/* What may be shown of a text: not white space that may be its end, nor that of its beginning where it is cut. */
static bool take_text(struct parse_stream *s, enum parse_event_kind kind, struct parse_event *event)
{
    struct buffer *out = &s->out[kind];
    struct span text = { .p = out->p + s->given[kind], .len = out->len - s->given[kind] };
    if (!text.len) {
        return false;
    }
    struct span front = text;
    span_take(&front, "");
    if (!s->ended) {
        if (!front.len) {
            return false;
        }
        size_t behind = text.len - front.len + span_trim(text).len;
        text.len = behind;
        if (s->given[kind] == 0 && (kind == PARSE_REASONING || s->out[PARSE_REASONING].len)) {
            s->given[kind] = s->given_from[kind] = (size_t)(front.p - text.p);
            text = span_trim(text);
        }
    }
    s->given[kind] += text.len;
    *event = (struct parse_event){ .kind = kind, .text = text.p, .len = text.len };
    return true;
}

bool parse_stream_next(struct parse_stream *s, struct parse_event *event)
{
    do {
        if (take_text(s, PARSE_REASONING, event) || take_text(s, PARSE_CONTENT, event)) {
            return true;
        }
        if (s->n_given_calls < json_len(s->calls)) {
            *event = (struct parse_event){ .kind = PARSE_CALL,
                                           .call = json_at(s->calls, s->n_given_calls++) };
            return true;
        }
    } while (step(s));
    return false;
}
