#include "worker/dry.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

int dry_add_breaker(struct dry *d, const uint8_t *bytes, uint32_t len, struct err *err)
{
    if (len == 0) {
        return 0;
    }
    if (len > LIMIT_DRY_BREAKER_BYTES) {
        return err_set(err, ERR_BAD_INPUT, "a sequence breaker of %u bytes, at most %d", len,
                       LIMIT_DRY_BREAKER_BYTES);
    }
    if (d->n_breakers == LIMIT_DRY_BREAKERS) {
        return err_set(err, ERR_FULL, "more than %d sequence breakers", LIMIT_DRY_BREAKERS);
    }
    memcpy(d->breaker[d->n_breakers].bytes, bytes, len);
    d->breaker[d->n_breakers++].len = len;
    return 0;
}

/* Whether the text that ends `skip` bytes before the end of token `at` has `want` as its last bytes, going back over
 * tokens as far as it takes. */
static bool ends_with(const struct pieces *pieces, const int32_t *tokens, uint64_t at,
                      uint32_t skip, const uint8_t *want, uint32_t n_want)
{
    uint32_t len;
    const uint8_t *bytes = pieces_bytes(pieces, tokens[at], false, &len);
    len -= skip;
    for (uint32_t left = n_want;;) {
        uint32_t n = len < left ? len : left;
        left -= n;
        if (n && memcmp(bytes + len - n, want + left, n) != 0) {
            return false;
        }
        if (left == 0) {
            return true;
        }
        if (at == 0 || len == 0) {
            return false; /* a token without text ends the look back, so it is short */
        }
        bytes = pieces_bytes(pieces, tokens[--at], false, &len);
    }
}

/* Whether a breaker's text ends within token `at`. */
static bool breaks(const struct dry *d, const struct pieces *pieces, const int32_t *tokens,
                   uint64_t at)
{
    uint32_t len;
    pieces_bytes(pieces, tokens[at], false, &len);
    for (uint32_t skip = 0; skip < len; skip++) {
        for (uint32_t i = 0; i < d->n_breakers; i++) {
            if (ends_with(pieces, tokens, at, skip, d->breaker[i].bytes, d->breaker[i].len)) {
                return true;
            }
        }
    }
    return false;
}

/* match[i]: how many tokens before position n - i (from there backwards) equal the last ones; the Z function of the
 * reversed window, linear in its length. */
static void match_back(const int32_t *tokens, uint32_t n, uint32_t *match)
{
    const int32_t *last = tokens + n - 1; /* reversed: last[-i] */
    uint32_t left = 0, right = 0;
    match[0] = n;
    for (uint32_t i = 1; i < n; i++) {
        uint32_t z = 0;
        if (i < right) {
            z = match[i - left] < right - i ? match[i - left] : right - i;
        }
        while (i + z < n && last[-(int64_t)z] == last[-(int64_t)(i + z)]) {
            z++;
        }
        match[i] = z;
        if (i + z > right) {
            left = i;
            right = i + z;
        }
    }
}

/* A token that would go on with a repetition of this length. */
static void lower(const struct dry *d, struct candidate *of, uint32_t len, uint32_t allowed)
{
    if (len > 0) {
        double less = (double)d->multiplier * pow((double)d->base, (double)(len - allowed));
        /* Beyond what a float holds it is only "never"; it must not become infinite minus infinite. */
        less = less < (double)FLT_MAX / 4 ? less : (double)FLT_MAX / 4;
        of->logit = (float)((double)of->logit - less);
    }
}

void dry_apply(const struct dry *d, const struct pieces *pieces, const int32_t *tokens,
               uint64_t n_tokens, struct candidates *c, uint32_t *lengths, uint32_t n_vocab,
               uint32_t *matches, uint32_t n_matches)
{
    uint64_t window = d->penalty_last_n < 0 ? n_tokens : (uint64_t)d->penalty_last_n;
    window = window < n_tokens ? window : n_tokens;
    window = window < n_matches ? window : n_matches;
    uint32_t allowed = d->allowed_length > 1 ? (uint32_t)d->allowed_length : 1;
    uint32_t n = (uint32_t)window;
    if (!(d->multiplier > 0) || n < 2) {
        return;
    }
    uint64_t first = n_tokens - n;
    uint32_t reach = 0; /* a repetition is at most this long */
    while (reach < n && !breaks(d, pieces, tokens, n_tokens - 1 - reach)) {
        reach++;
    }
    if (reach < allowed) {
        return;
    }
    match_back(tokens + first, n, matches);
    bool any = false, others = false;
    for (uint32_t i = 1; i < n; i++) {
        uint32_t len = matches[i] < reach ? matches[i] : reach;
        uint64_t follower = n_tokens - i;
        int32_t id = tokens[follower];
        if (len >= allowed && id >= 0 && (uint32_t)id < n_vocab && lengths[id] < len &&
            !breaks(d, pieces, tokens, follower)) {
            lengths[id] = len;
            any = true;
        }
    }
    for (uint32_t i = 1; any && i < n; i++) {
        int32_t id = tokens[n_tokens - i];
        struct candidate *of = id >= 0 && (uint32_t)id < n_vocab ? candidates_at(c, id) : NULL;
        if (of) {
            lower(d, of, lengths[id], allowed);
            lengths[id] = 0;
        } else {
            others = true;
        }
    }
    for (uint32_t i = 0; any && others && i < c->n; i++) {
        lower(d, &c->set[i], lengths[c->set[i].id], allowed);
    }
    for (uint32_t i = 1; any && others && i < n; i++) {
        int32_t id = tokens[n_tokens - i];
        if (id >= 0 && (uint32_t)id < n_vocab) {
            lengths[id] = 0;
        }
    }
}
