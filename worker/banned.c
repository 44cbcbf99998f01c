#include "worker/banned.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

static uint8_t lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c - 'A' + 'a') : c;
}

int banned_add(struct banned *b, const uint8_t *bytes, uint32_t len, struct err *err)
{
    if (len == 0) {
        return 0;
    }
    if (len > LIMIT_STOP_BYTES) {
        return err_set(err, ERR_BAD_INPUT, "a banned string of %u bytes, at most %d", len,
                       LIMIT_STOP_BYTES);
    }
    if (b->n == LIMIT_BANNED_STRINGS) {
        return err_set(err, ERR_FULL, "more than %d banned strings", LIMIT_BANNED_STRINGS);
    }
    for (uint32_t i = 0; i < len; i++) {
        b->string[b->n].bytes[i] = lower(bytes[i]);
    }
    b->string[b->n++].len = len;
    return 0;
}

/* The end of the text: the last token's bytes, and before them what a string could have begun in. */
struct tail {
    uint32_t start, end; /* in bytes */
    uint32_t fresh;      /* where the last token begins */
    uint32_t n;          /* tokens, the last one first */
    uint32_t begins[BANNED_HELD_MAX + 1];
    uint8_t bytes[LIMIT_STOP_BYTES + 2 * LIMIT_PIECE_BYTES];
};

static void read_tail(struct tail *t, const struct pieces *pieces, const int32_t *tokens,
                      uint32_t n_prompt, uint32_t n_tokens)
{
    t->start = t->end = sizeof t->bytes;
    t->n = 0;
    for (uint32_t at = n_tokens; at > n_prompt && t->n < BANNED_HELD_MAX + 1; at--) {
        uint32_t len;
        const uint8_t *bytes = pieces_bytes(pieces, tokens[at - 1], false, &len);
        assert(len <= LIMIT_PIECE_BYTES && len <= t->start);
        t->start -= len;
        for (uint32_t i = 0; i < len; i++) {
            t->bytes[t->start + i] = lower(bytes[i]);
        }
        if (t->n == 0) {
            t->fresh = t->start;
        }
        t->begins[t->n++] = t->start;
        if (t->fresh - t->start >= LIMIT_STOP_BYTES - 1) {
            break;
        }
    }
}

/* The token that byte `off` of the tail is in. */
static uint32_t token_of(const struct tail *t, uint32_t n_tokens, uint32_t off)
{
    uint32_t i = 0;
    while (t->begins[i] > off) {
        i++;
    }
    return n_tokens - 1 - i;
}

enum banned_state banned_look(const struct banned *b, const struct pieces *pieces,
                              const int32_t *tokens, uint32_t n_prompt, uint32_t n_tokens,
                              uint32_t *from)
{
    struct tail t;
    assert(n_tokens > n_prompt);
    read_tail(&t, pieces, tokens, n_prompt, n_tokens);
    uint32_t first = t.end;
    for (uint32_t end = t.fresh + 1; end <= t.end; end++) {
        for (uint32_t i = 0; i < b->n; i++) {
            uint32_t len = b->string[i].len;
            if (len <= end - t.start && end - len < first &&
                memcmp(t.bytes + end - len, b->string[i].bytes, len) == 0) {
                first = end - len;
            }
        }
        if (first < t.end) {
            *from = token_of(&t, n_tokens, first);
            return BANNED_WHOLE;
        }
    }
    for (uint32_t i = 0; i < b->n; i++) {
        uint32_t most = b->string[i].len - 1;
        most = most < t.end - t.start ? most : t.end - t.start;
        for (uint32_t len = most; len > t.end - first; len--) {
            if (memcmp(t.bytes + t.end - len, b->string[i].bytes, len) == 0) {
                first = t.end - len;
            }
        }
    }
    if (first == t.end) {
        return BANNED_NONE;
    }
    *from = token_of(&t, n_tokens, first);
    return BANNED_BEGUN;
}
