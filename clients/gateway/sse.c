#include "clients/gateway/sse.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/ids.h"
#include "clients/gateway/server.h"

static int write_event(struct exchange *x, const char *head, struct json *value)
{
    size_t len, n_head = strlen(head);
    const char *text = json_text(value, &len);
    char *event = malloc(n_head + len + 2);
    int result = -1;
    if (event) {
        memcpy(event, head, n_head);
        memcpy(event + n_head, text, len);
        memcpy(event + n_head + len, "\n\n", 2);
        exchange_stream(x);
        result = exchange_write(x, event, n_head + len + 2);
        free(event);
    }
    json_destroy(&value);
    return result;
}

int sse_json(struct sse *s, struct json *value)
{
    char head[IDS_EVENT_BYTES + 16] = "data: ";
    s->n++;
    if (s->n <= s->skip) {
        exchange_stream(s->x);
        json_destroy(&value);
        return 0;
    }
    if (s->id[0]) {
        snprintf(head, sizeof head, "id: %s-%" PRIu64 "\ndata: ", s->id, s->n);
    }
    return write_event(s->x, head, value);
}

int sse_plain(struct exchange *x, struct json *value)
{
    return write_event(x, "data: ", value);
}

void sse_done(struct exchange *x)
{
    exchange_stream(x);
    exchange_write(x, "data: [DONE]\n\n", 14);
    exchange_close(x);
}
