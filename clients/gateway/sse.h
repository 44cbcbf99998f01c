/* Server-sent events: one JSON value a line, and comments that keep a line alive. */
#pragma once

#include "proto/json.h"

struct exchange;

#define SSE_PING ": ping\n\n"

/* "data: {...}". Takes the value. -1: nobody reads. Begins the stream if it has not begun. */
int sse_json(struct exchange *x, struct json *take_value);

/* "data: [DONE]" and the end. */
void sse_done(struct exchange *x);
