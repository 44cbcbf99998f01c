/* Reasoning and content told apart while they come, by the format's two markers. What may still become a marker is held
 * back, and so is white space around the reasoning; nothing said is ever taken back. No state but its own. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "clients/gateway/text.h"

enum split_part { SPLIT_CONTENT, SPLIT_REASONING };

struct split {
    char *open, *close; /* owned; NULL: this model does not mark its thoughts */
    bool began_open, said;
    enum { SPLIT_START, SPLIT_THINKS, SPLIT_AFTER, SPLIT_SAYS } state;
};

/* open: the prompt has opened the block. Markers are copied. */
void split_init(struct split *s, const char *open, const char *close, bool began_open);
void split_clear(struct split *s);

/* Whether what comes now is reasoning. */
bool split_thinks(const struct split *s);

/* The next piece that is certain: `skip` bytes of `text` are nobody's, `len` behind them are `part`'s; the caller cuts both off.
 * False: nothing is certain yet. last: no more comes, everything is. */
bool split_next(struct split *s, const struct text *text, bool last, enum split_part *part,
                size_t *skip, size_t *len);
