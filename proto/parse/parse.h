/* A model's answer -> content, reasoning and tool calls, by the format its family writes. The text
 * service says which format a template asks for, the gateway and hearth-parse take answers apart by it. The text is the model's, hence outside input: whatever does not parse
 * stays content; nothing fails but memory. No state; any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "proto/err.h"
#include "proto/json.h"

#define PARSE_TEXT_MAX  (16u << 20) /* bytes of one answer: a token log holds no more */
#define PARSE_CALLS_MAX 128         /* tool calls of one answer; the rest stays content */

struct parse_format; /* a row of the table in formats.c */

/* NULL for an unknown name. */
const struct parse_format *parse_find(const char *name);
/* Row i, or NULL past the last. */
const struct parse_format *parse_at(size_t i);
const char *parse_name(const struct parse_format *format);
/* The format that a chat template's own text gives away; "generic" when nothing does. */
const struct parse_format *parse_recognise(const char *template_text, size_t len);

/* The marker that opens the format's reasoning, way i of writing it, and the one that closes it; NULL: no such way. */
const char *parse_marker(const struct parse_format *format, size_t i, const char **close);
/* Whether content behind the reasoning, where no tools are offered, is the text as it is. */
bool parse_is_plain(const struct parse_format *format);

struct parse_options {
    bool reasoning_open; /* the prompt ended with the opening marker of the reasoning block */
    bool keep_reasoning; /* leave reasoning in the content, markers included */
};

/* Whether a prompt's last bytes (without trailing white space) open the format's reasoning block. */
bool parse_opens_reasoning(const struct parse_format *format, const char *prompt, size_t len);

/* {"content":"…","reasoning_content":"…","tool_calls":[{"name":"…","arguments":{…},"id":"…"}]}; id only where the model wrote
 * one. text: UTF-8. tools: the request's array, NULL for none: then nothing is taken for a call. A call of a tool that is
 * not among them stays content. options may be NULL. NULL: ERR_NO_MEMORY or ERR_NO_FIT. */
struct json *parse_answer(const struct parse_format *format, const char *text, size_t len,
                          const struct json *tools, const struct parse_options *options,
                          struct err *err);
