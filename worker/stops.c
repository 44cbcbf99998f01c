#include "worker/stops.h"

#include <assert.h>
#include <string.h>

#include "proto/utf8.h"

int stops_add(struct stops *s, const uint8_t *bytes, uint32_t len, struct err *err)
{
    if (len == 0) {
        return 0;
    }
    if (len > LIMIT_STOP_BYTES) {
        return err_set(err, ERR_BAD_INPUT, "a stop string of %u bytes, at most %d", len,
                       LIMIT_STOP_BYTES);
    }
    if (s->n == LIMIT_STOP_STRINGS) {
        return err_set(err, ERR_FULL, "more than %d stop strings", LIMIT_STOP_STRINGS);
    }
    memcpy(s->stop[s->n].bytes, bytes, len);
    s->stop[s->n].len = len;
    s->n++;
    return 0;
}

/* The stop string that ends first in the buffer: its start, or -1. Ends inside what was held cannot be: they would have
 * been found before. */
static int64_t find_hit(const struct stops *s, const uint8_t *buf, uint32_t n, uint32_t from)
{
    for (uint32_t end = from + 1; end <= n; end++) {
        int64_t start = -1;
        for (uint32_t i = 0; i < s->n; i++) {
            uint32_t len = s->stop[i].len;
            if (len <= end && memcmp(buf + end - len, s->stop[i].bytes, len) == 0 &&
                (start < 0 || end - len < start)) {
                start = end - len;
            }
        }
        if (start >= 0) {
            return start;
        }
    }
    return -1;
}

/* How many bytes at the end are a proper prefix of some stop string. */
static uint32_t begun(const struct stops *s, const uint8_t *buf, uint32_t n)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t len = s->stop[i].len - 1 < n ? s->stop[i].len - 1 : n;
        for (; len > longest; len--) {
            if (memcmp(buf + n - len, s->stop[i].bytes, len) == 0) {
                longest = len;
            }
        }
    }
    return longest;
}

bool stops_push(struct stops *s, const uint8_t *bytes, uint32_t len, uint8_t *out, uint32_t *n_out)
{
    assert(len <= LIMIT_PIECE_BYTES);
    uint32_t n_held = s->n_held;
    memcpy(out, s->held, n_held);
    if (len > 0) {
        memcpy(out + n_held, bytes, len);
    }
    uint32_t n = n_held + len;
    s->n_held = 0;
    int64_t hit = find_hit(s, out, n, n_held);
    if (hit >= 0) {
        *n_out = (uint32_t)hit;
        return true;
    }
    uint32_t cut = n - begun(s, out, n);
    cut = (uint32_t)utf8_complete((const char *)out, cut);
    s->n_held = n - cut;
    assert(s->n_held <= STOPS_HELD_MAX);
    memcpy(s->held, out + cut, s->n_held);
    *n_out = cut;
    return false;
}

uint32_t stops_flush(struct stops *s, uint8_t *out)
{
    uint32_t n = s->n_held;
    memcpy(out, s->held, n);
    s->n_held = 0;
    return n;
}
