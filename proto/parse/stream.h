/* The parser of answers while they are being written: bytes in, deltas of content and reasoning and whole tool calls out.
 * Together they are what parse_answer gives for the whole text (white space at the ends of content and reasoning
 * apart, which is never shown where it is not known to stay). Used where answers are streamed.
 *
 * What may turn out to be a marker, or a call, is held back until it is known. One stream per answer; any one thread. */
#pragma once

#include "proto/parse/parse.h"

enum parse_event_kind { PARSE_REASONING, PARSE_CONTENT, PARSE_CALL };

struct parse_event {
    enum parse_event_kind kind;
    const char
        *text; /* of content and reasoning: len bytes, never empty; borrowed until the next call */
    size_t len;
    const struct json
        *call; /* {"name", "arguments", perhaps "id"}; borrowed for the stream's life */
};

struct parse_stream;

/* tools: as parse_answer's, borrowed for the stream's life. NULL: ERR_NO_MEMORY. Owned: parse_stream_destroy. */
struct parse_stream *parse_stream_create(const struct parse_format *format,
                                         const struct json *tools,
                                         const struct parse_options *options, struct err *err);
void parse_stream_destroy(struct parse_stream **s);

/* More of the answer, cut anywhere; then all that parse_stream_next gives. ERR_NO_FIT beyond PARSE_TEXT_MAX,
 * ERR_NO_MEMORY. */
int parse_stream_feed(struct parse_stream *s, const char *text, size_t len, struct err *err);
/* There is no more: what was held back comes out of parse_stream_next. */
int parse_stream_end(struct parse_stream *s, struct err *err);

/* The next event of what was fed; false: none before more is fed. */
bool parse_stream_next(struct parse_stream *s, struct parse_event *event);
