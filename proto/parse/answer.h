/* What the parsers of the several formats share: a cursor over the text, the answer being gathered, and
 * the formats' descriptions. */
#pragma once

#include "proto/parse/parse.h"

struct span {
    const char *p;
    size_t len;
};

#define SPAN(literal)                                                                              \
    (struct span)                                                                                  \
    {                                                                                              \
        .p = "" literal, .len = sizeof(literal) - 1                                                \
    }

/* Places of one answer where a call is looked for: each may read all the rest. */
#define ANSWER_TRIES_MAX (PARSE_CALLS_MAX + 64)

struct answer {
    const struct parse_format *format;
    const struct json *tools;
    char *content, *reasoning; /* as large as the text */
    size_t content_len, reasoning_len;
    struct json *calls;
    int n_tries;
};

/* --- spans (answer.c) --- */

/* s without its first off bytes. */
struct span span_from(struct span s, size_t off);
/* Without white space at both ends. */
struct span span_trim(struct span s);
bool span_starts(struct span s, const char *prefix);
bool span_is(struct span s, const char *text);
const char *span_find(struct span s, const char *needle); /* NULL when there is none */
struct span span_until(struct span s, const char *end);   /* bytes before end, a pointer into s */
/* If s, after white space, starts with literal: moves behind it. */
bool span_take(struct span *s, const char *literal);
/* Length of the JSON object or array that s begins with; 0 when it does not end. */
size_t span_json(struct span s);

/* --- gathering (answer.c) --- */
void answer_content(struct answer *a,
                    struct span text); /* the format's wrapping markers left out */
void answer_reasoning(struct answer *a, struct span text);
bool answer_knows(const struct answer *a, struct span name); /* a tool of this name was offered */
/* Adds a call; takes arguments (NULL: {}; a string holding an object is unwrapped). False, with arguments
 * destroyed, when the tool is not known or there are too many. id may be empty. */
bool answer_call(struct answer *a, struct span name, struct json *take_arguments, struct span id);
/* Counts one more place to look for a call; false when it is one too many. */
bool answer_try(struct answer *a);
/* Goes to the next place where the format's `open` stands: what is before it is content, *raw begins with the marker, *text behind
 * it. False when there is none, or it is one too many: *text is then the rest, content. */
bool answer_open(struct answer *a, struct span *text, struct span *raw);
/* No more: something was opened that does not end, so that every further place would read to the end. */
void answer_give_up(struct answer *a);
/* A JSON value from text; false when it is none. A bare null gives NULL. */
bool json_from(struct span text, struct json **value);
/* A copy of a value that belongs to another. */
struct json *json_copy(const struct json *value);
struct json *json_of_span(struct span text);
/* Text of an XML-like parameter as a value of the type that the tool's schema gives it. */
struct json *answer_typed(const struct answer *a, struct span tool, const char *key,
                          struct span text);
/* object[key] = value with a key that is a span. */
void json_put(struct json *object, struct span key, struct json *take_value);

/* --- formats (formats.c) --- */
#define FORMAT_MARKERS 8

struct marker_pair {
    const char *open, *close;
};

struct parse_format {
    const char *name;
    struct marker_pair reasoning[2];
    const char
        *wrapping[FORMAT_MARKERS]; /* markers around content and calls that nobody should see */
    void (*parse)(struct answer *a, struct span text); /* the text behind the reasoning */
    /* how calls look, for the parsers that are driven by it */
    const char *open, *close; /* around a call or a list of calls */
    const char *name_open;    /* before the name */
    const char *name_close;   /* behind it */
    const char *id_open;      /* between name and id */
    const char *args_open;    /* before the arguments, */
    const char *args_close;   /* and behind them */
    const char *key_open, *key_close, *value_open, *value_close; /* of XML-like parameters */
    bool
        framed; /* content stands between markers of its own, or is moved: it is known when it is whole */
    bool calls_end_reasoning; /* a call may begin inside unclosed reasoning */
};

/* A thought that a call cut short, without the marker of the calls' section at its end (parse.c). */
struct span parse_without_section(const struct parse_format *format, struct span thought);

/* What a harmony message is by its header (messages.c). */
enum harmony_kind { HARMONY_TEXT, HARMONY_THOUGHT, HARMONY_CALL };
enum harmony_kind harmony_kind(struct span header);

/* --- the parsers --- */
void parse_blocks(struct answer *a, struct span text);     /* blocks.c: JSON between markers */
void parse_whole_json(struct answer *a, struct span text); /* blocks.c: llama-3, generic */
void parse_command_r(struct answer *a, struct span text);  /* blocks.c */
void parse_named(struct answer *a, struct span text);      /* named.c: name, then JSON arguments */
void parse_xml(struct answer *a, struct span text);        /* xml.c: name, then typed parameters */
void parse_mcp(struct answer *a, struct span text);        /* xml.c */
void parse_harmony(struct answer *a, struct span text);    /* messages.c: gpt-oss */
void parse_recipients(struct answer *a, struct span text); /* messages.c: functionary 3.2 */
void parse_gemma(struct answer *a, struct span text);      /* literal.c */
void parse_python(struct answer *a, struct span text);     /* literal.c: lfm2 */
/* literal.c: N(k=v, ...) at the cursor, which moves behind it. method: an optional ".call" behind N. */
bool python_call(struct answer *a, struct span *text, const char *method);
