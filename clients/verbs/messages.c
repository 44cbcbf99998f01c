#include "clients/verbs/messages.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proto/json.h"
#include "proto/utf8.h"

struct messages {
    struct json *context, *list; /* list is the context's member */
};

struct messages *messages_create(void)
{
    struct messages *m = calloc(1, sizeof *m);
    assert(m);
    m->context = json_new_object();
    m->list = json_new_array();
    json_set(m->context, "messages", m->list);
    json_set(m->context, "add_generation_prompt", json_new_bool(true));
    return m;
}

void messages_destroy(struct messages **m)
{
    if (*m) {
        json_destroy(&(*m)->context);
        free(*m);
        *m = NULL;
    }
}

/* JSON is UTF-8: each byte that belongs to no character is replaced. malloc'd. */
static char *clean(const char *text, size_t len, size_t *out_len)
{
    char *out = malloc(3 * len + 1);
    size_t n = 0;
    assert(out);
    for (size_t i = 0; i < len;) {
        size_t take = 1;
        while (take <= 4 && i + take <= len && !utf8_valid(text + i, take)) {
            take++;
        }
        if (take <= 4 && i + take <= len) {
            memcpy(out + n, text + i, take);
            n += take;
            i += take;
        } else {
            memcpy(out + n, "\xef\xbf\xbd", 3);
            n += 3;
            i++;
        }
    }
    *out_len = n;
    return out;
}

void messages_add(struct messages *m, const char *role, const char *text, size_t len)
{
    struct json *one = json_new_object();
    size_t clean_len;
    char *content = clean(text, len, &clean_len);
    json_set(one, "role", json_new_str(role, strlen(role)));
    json_set(one, "content", json_new_str(content, clean_len));
    json_push(m->list, one);
    free(content);
}

void messages_drop_last(struct messages *m)
{
    json_pop(m->list);
}

size_t messages_count(const struct messages *m)
{
    return json_len(m->list);
}

const char *messages_json(const struct messages *m, size_t *len)
{
    return json_text(m->context, len);
}
