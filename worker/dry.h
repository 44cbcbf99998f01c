/* DRY ("don't repeat yourself", P. E. Weidmann 2024): a token that would lengthen a repetition of what the text ends with
 * is made less likely, the more the longer the repetition already is. A function of the tokens alone. Loop thread.
 *
 * Over the last penalty_last_n tokens (-1: all, 0: off): a token t that once followed n tokens equal to the last n
 * ones loses multiplier * base^(n - allowed_length), for the longest such n, where n >= allowed_length. A repetition does
 * not reach back over a sequence breaker: a token in which a breaker's text ends. Breakers themselves are not penalised.
 * Where breakers end is looked up in bytes, so it does not matter how the vocabulary cuts them. */
#pragma once

#include <stdint.h>

#include "proto/err.h"
#include "proto/limits.h"
#include "proto/pieces.h"
#include "worker/candidates.h"

struct dry {
    float multiplier, base;
    int32_t allowed_length, penalty_last_n;
    uint32_t n_breakers;
    struct {
        uint32_t len;
        uint8_t bytes[LIMIT_DRY_BREAKER_BYTES];
    } breaker[LIMIT_DRY_BREAKERS];
};

/* Adds a breaker; an empty one is ignored. Errors: ERR_BAD_INPUT (too long), ERR_FULL (too many). */
int dry_add_breaker(struct dry *d, const uint8_t *bytes, uint32_t len, struct err *err);

/* Lowers the logits of c's candidates. lengths: [n_vocab], zero, and zero again afterwards. matches: scratch of n_matches
 * entries; a longer window is cut to it. */
void dry_apply(const struct dry *d, const struct pieces *pieces, const int32_t *tokens,
               uint64_t n_tokens, struct candidates *c, uint32_t *lengths, uint32_t n_vocab,
               uint32_t *matches, uint32_t n_matches);
