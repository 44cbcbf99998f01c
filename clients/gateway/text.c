#include "clients/gateway/text.h"

#include <stdlib.h>
#include <string.h>

#include "proto/utf8.h"

void text_add(struct text *t, const char *bytes, size_t n)
{
    if (t->len + n + 1 > t->room) {
        size_t room = 2 * t->room + n + 64;
        char *larger = realloc(t->at, room);
        if (!larger) {
            t->failed = true;
            return;
        }
        t->at = larger;
        t->room = room;
    }
    if (n) {
        memcpy(t->at + t->len, bytes, n);
    }
    t->len += n;
    t->at[t->len] = 0;
}

void text_cut(struct text *t, size_t n)
{
    if (n) {
        memmove(t->at, t->at + n, t->len - n + 1);
        t->len -= n;
    }
}

void text_clear(struct text *t)
{
    free(t->at);
    *t = (struct text){ 0 };
}

const char *text_str(const struct text *t)
{
    return t->at ? t->at : "";
}

void text_add_clean(struct text *t, const char *bytes, size_t n)
{
    if (utf8_valid(bytes, n)) {
        text_add(t, bytes, n);
        return;
    }
    for (size_t i = 0; i < n;) {
        size_t take = 1;
        while (take <= 4 && i + take <= n && !utf8_valid(bytes + i, take)) {
            take++;
        }
        if (take <= 4 && i + take <= n) {
            text_add(t, bytes + i, take);
            i += take;
        } else {
            text_add(t, "\xef\xbf\xbd", 3);
            i++;
        }
    }
}

void text_settle(struct text *to, struct text *from, bool last)
{
    size_t whole = last ? from->len : utf8_complete(text_str(from), from->len);
    text_add_clean(to, text_str(from), whole);
    text_cut(from, whole);
}

struct json *text_json(const char *bytes, size_t n)
{
    struct text clean = { 0 };
    text_add_clean(&clean, bytes, n);
    struct json *value = json_new_str(text_str(&clean), clean.len);
    text_clear(&clean);
    return value;
}
