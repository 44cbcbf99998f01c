#include "clients/gateway/sse.h"

#include <stdlib.h>
#include <string.h>

#include "clients/gateway/server.h"

int sse_json(struct exchange *x, struct json *value)
{
    size_t len;
    const char *text = json_text(value, &len);
    char *line = malloc(len + 8);
    int result = -1;
    if (line) {
        memcpy(line, "data: ", 6);
        memcpy(line + 6, text, len);
        memcpy(line + 6 + len, "\n\n", 2);
        exchange_stream(x);
        result = exchange_write(x, line, len + 8);
        free(line);
    }
    json_destroy(&value);
    return result;
}

void sse_done(struct exchange *x)
{
    exchange_stream(x);
    exchange_write(x, "data: [DONE]\n\n", 14);
    exchange_close(x);
}
