#include "clients/gateway/split.h"

#include <stdlib.h>
#include <string.h>

void split_init(struct split *s, const char *open, const char *close, bool began_open)
{
    split_clear(s);
    if (open && close && *open && *close) {
        s->open = strdup(open);
        s->close = strdup(close);
    }
    if (!s->open || !s->close) {
        s->state = SPLIT_SAYS;
    } else if (began_open) {
        s->state = SPLIT_THINKS;
        s->began_open = true;
    }
}

void split_clear(struct split *s)
{
    free(s->open);
    free(s->close);
    *s = (struct split){ 0 };
}

bool split_thinks(const struct split *s)
{
    return s->state == SPLIT_THINKS;
}

static size_t spaces(const char *at, size_t len)
{
    size_t n = 0;
    while (n < len && strchr(" \t\r\n", at[n]) && at[n]) {
        n++;
    }
    return n;
}

/* How many bytes at the end may be the beginning of the marker, or white space before one. */
static size_t held_back(const char *at, size_t len, const char *marker)
{
    size_t n_marker = strlen(marker), held = 0;
    for (size_t n = n_marker - 1 < len ? n_marker - 1 : len; n > 0; n--) {
        if (memcmp(at + len - n, marker, n) == 0) {
            held = n;
            break;
        }
    }
    while (held < len && strchr(" \t\r\n", at[len - held - 1]) && at[len - held - 1]) {
        held++;
    }
    return held;
}

/* Before anything was said: does it begin with the marker? */
static bool decide(struct split *s, const char *at, size_t len, bool last, size_t *skip)
{
    size_t blank = spaces(at, len), n = strlen(s->open), left = len - blank;
    if (left >= n && memcmp(at + blank, s->open, n) == 0) {
        s->state = SPLIT_THINKS;
        *skip = blank + n;
        return true;
    }
    if (last || (left > 0 && memcmp(at + blank, s->open, left < n ? left : n) != 0)) {
        s->state = SPLIT_SAYS;
        return true;
    }
    return false;
}

bool split_next(struct split *s, const struct text *text, bool last, enum split_part *part,
                size_t *skip, size_t *len)
{
    const char *at = text_str(text);
    size_t n = text->len;
    *part = SPLIT_CONTENT;
    *skip = *len = 0;
    if (n == 0 || (s->state == SPLIT_START && !decide(s, at, n, last, skip))) {
        return false;
    }
    if (*skip) {
        return true; /* the marker itself */
    }
    if (s->state == SPLIT_AFTER) {
        *skip = spaces(at, n);
        if (*skip < n) {
            s->state = SPLIT_SAYS;
        }
        *len = n - *skip;
        return true;
    }
    if (s->state == SPLIT_SAYS) {
        *len = n;
        return true;
    }
    *part = SPLIT_REASONING;
    if (!s->said && spaces(at, n) > 0) {
        *skip = spaces(at, n);
        return true;
    }
    s->said = true;
    const char *close = memmem(at, n, s->close, strlen(s->close));
    if (close) {
        size_t whole = (size_t)(close - at), end = whole;
        while (end > 0 && strchr(" \t\r\n", at[end - 1])) {
            end--;
        }
        if (end > 0) {
            *len = end; /* the marker comes next time */
        } else {
            *skip = whole + strlen(s->close);
            s->state = SPLIT_AFTER;
        }
        return true;
    }
    *len = last ? n : n - held_back(at, n, s->close);
    return *len > 0;
}
