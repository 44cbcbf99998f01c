/* Tokens that are chosen and not committed yet, because a banned string may have begun in them, and the tokens that were
 * refused at their positions. All of it is a function of the committed tokens: whoever continues the log chooses, takes
 * back and refuses the same again. Loop thread; memory of its own, for requests with banned strings alone. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "worker/banned.h"
#include "worker/sampler.h"

/* Of all held positions together; each is a step that was taken back. More mean strings that leave no way out. */
#define HELD_REFUSED_MAX 1024

struct held_token {
    struct sampler_choice choice;
    struct sampler_mark before;
};

struct held {
    struct banned banned;
    uint32_t n; /* tokens, the oldest first */
    struct held_token tokens[BANNED_HELD_MAX];
    uint32_t n_refused; /* positions never fall */
    uint32_t refused_pos[HELD_REFUSED_MAX];
    int32_t refused[HELD_REFUSED_MAX];
};

/* What was refused at a position that is the next to be chosen. */
struct sampler_refused held_refused(const struct held *h, uint32_t pos);

/* Back to position pos, whose token is not to come there again; what was refused behind it is forgotten, as it hung on that
 * token. Errors: ERR_FAILED when too much was refused. */
int held_refuse(struct held *h, uint32_t pos, int32_t token, struct err *err);

/* The oldest is committed, at position pos. */
void held_pop(struct held *h, uint32_t pos);
