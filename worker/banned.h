/* Strings that must not come. A token after which the text could still become one is held: it is not committed, so it can
 * be taken back when it does. A pure function of the tokens; ASCII letters count as equal in either case. Loop thread. */
#pragma once

#include <stdint.h>

#include "proto/err.h"
#include "proto/limits.h"
#include "proto/pieces.h"

struct banned {
    uint32_t n;
    struct {
        uint32_t len;
        uint8_t bytes[LIMIT_STOP_BYTES]; /* in lower case */
    } string[LIMIT_BANNED_STRINGS];
};

/* Tokens that a string in the making can span, held or looked back over; one that spans more (of tokens without text) is
 * only caught from there on. */
#define BANNED_HELD_MAX LIMIT_STOP_BYTES

/* Adds a string of 1 to LIMIT_STOP_BYTES bytes; empty ones are ignored. Errors: ERR_BAD_INPUT, ERR_FULL. */
int banned_add(struct banned *b, const uint8_t *bytes, uint32_t len, struct err *err);

enum banned_state {
    BANNED_NONE,  /* the text's end is no beginning of any */
    BANNED_BEGUN, /* it is: of one that began in token *from */
    BANNED_WHOLE, /* the last token completed one that began in token *from */
};

/* Looks at the end of tokens[n_prompt .. n_tokens), the generated ones; the text of prompts is not looked at. Whole
 * strings are looked for in the last token: of several the one that is complete first, of two that end together the
 * longer. */
enum banned_state banned_look(const struct banned *b, const struct pieces *pieces,
                              const int32_t *tokens, uint32_t n_prompt, uint32_t n_tokens,
                              uint32_t *from);
