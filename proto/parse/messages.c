/* Answers that are several messages, each to a recipient: gpt-oss (harmony) and Functionary 3.2. */
#include <string.h>

#include "proto/parse/answer.h"

/* Content of several messages, a line apart. */
static void add_message(struct answer *a, struct span text)
{
    if (a->content_len && text.len) {
        answer_content(a, SPAN("\n"));
    }
    answer_content(a, text);
}

/* --- harmony --- */

/* The word behind a label of a header: "to=functions.f" -> functions.f */
static struct span header_word(struct span header, const char *label)
{
    const char *hit = span_find(header, label);
    if (!hit) {
        return SPAN("");
    }
    struct span word = span_from(header, (size_t)(hit - header.p) + strlen(label));
    size_t n = 0;
    while (n < word.len && word.p[n] != ' ' && word.p[n] != '<' && word.p[n] != '\n') {
        n++;
    }
    return (struct span){ .p = word.p, .len = n };
}

/* Where a message's body ends, and the length of the marker there that is not the next message's. */
static const char *body_end(struct span text, size_t *marker)
{
    static const char *const ends[] = { "<|end|>", "<|call|>", "<|return|>", "<|start|>" };
    for (size_t i = 0; i < text.len; i++) {
        for (size_t k = 0; text.p[i] == '<' && k < sizeof ends / sizeof ends[0]; k++) {
            if (span_starts(span_from(text, i), ends[k])) {
                *marker = k < 3 ? strlen(ends[k]) : 0;
                return text.p + i;
            }
        }
    }
    *marker = 0;
    return text.p + text.len;
}

enum harmony_kind harmony_kind(struct span header)
{
    if (span_starts(header_word(header, "to="), "functions.")) {
        return HARMONY_CALL;
    }
    return span_is(header_word(header, "<|channel|>"), "analysis") ? HARMONY_THOUGHT : HARMONY_TEXT;
}

static void harmony_message(struct answer *a, struct span header, struct span body, struct span raw)
{
    enum harmony_kind kind = harmony_kind(header);
    if (kind == HARMONY_CALL) {
        struct span to = header_word(header, "to=");
        struct json *arguments;
        if (!json_from(body, &arguments) ||
            !answer_call(a, span_from(to, strlen("functions.")), arguments, SPAN(""))) {
            add_message(a, raw);
        }
    } else if (kind == HARMONY_THOUGHT) {
        if (a->reasoning_len) {
            answer_reasoning(a, SPAN("\n"));
        }
        answer_reasoning(a, body);
    } else {
        add_message(a, body);
    }
}

void parse_harmony(struct answer *a, struct span text)
{
    while (text.len) {
        struct span raw = text;
        if (span_take(&text, "<|start|>")) {
            struct span role = text;
            text = span_take(&role, "assistant") ? role : text;
        }
        const char *end = span_find(text, "<|message|>");
        if (!end) { /* no header: plain text, or cut off inside one */
            if (!span_find(text, "<|channel|>")) {
                add_message(a, text);
            }
            return;
        }
        struct span header = span_until(text, end);
        text = span_from(text, header.len + strlen("<|message|>"));
        size_t marker;
        end = body_end(text, &marker);
        struct span body = span_until(text, end);
        text = span_from(text, body.len + marker);
        harmony_message(a, header, body, span_until(raw, text.p));
    }
}

/* --- Functionary 3.2 --- */

/* "N\n{…}": a call, or content when it is none. */
static void recipient_message(struct answer *a, struct span message)
{
    const char *newline = message.len ? memchr(message.p, '\n', message.len) : NULL;
    if (!newline) {
        add_message(a, message);
        return;
    }
    struct span to = span_trim(span_until(message, newline));
    struct span body = span_from(message, (size_t)(newline - message.p) + 1);
    struct json *arguments = NULL;
    if (span_is(to, "all")) {
        add_message(a, body);
        return;
    }
    if (!json_from(body, &arguments) || json_kind(arguments) != JSON_OBJECT) {
        json_destroy(&arguments);
        if (span_is(to, "python")) { /* its body may be the bare code */
            arguments = json_new_object();
            json_set(arguments, "code", json_of_span(body));
        }
    }
    if (!arguments || !answer_call(a, to, arguments, SPAN(""))) {
        add_message(a, message);
    }
}

void parse_recipients(struct answer *a, struct span text)
{
    while (text.len) {
        const char *next = span_find(text, ">>>");
        struct span message = next ? span_until(text, next) : text;
        text = span_from(text, message.len + (next ? strlen(">>>") : 0));
        recipient_message(a, message);
    }
}
