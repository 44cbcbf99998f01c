/* Token ids back to text: all at once, as `hearth detokenize` and the /detokenize endpoint do it, or one by one as
 * an answer streams, never ending inside a character (tokenizers.md sections 12 and 13). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/tokenizer.h"

/* Flags of detokenising all at once. */
#define DETOK_REMOVE_SPECIAL                                                                       \
    1u /* drop a BOS in front and an EOS behind that the model adds itself */
#define DETOK_UNPARSE_SPECIAL 2u /* print control tokens as their texts */

/* A text that grows; zero it, free(text). */
struct detok_text {
    uint8_t *text;
    size_t len, cap;
};

/* Appends the text of n ids to out: the model's leading space removed, spaces tidied where the model's own
 * tokenizer does so. Errors: ERR_BAD_INPUT for an id that is none, ERR_NO_MEMORY. */
int detok_all(const struct tokenizer *t, const int32_t *ids, size_t n, unsigned flags,
              struct detok_text *out, struct err *err);

/* One stream of tokens. Allocates once, in create. A stream belongs to one thread. */
struct detok;

/* special: print control tokens too. t is borrowed for the stream's life. Errors: ERR_NO_MEMORY. */
struct detok *detok_create(const struct tokenizer *t, bool special, struct err *err);
void detok_destroy(struct detok **d);

/* Takes one token; returns the bytes that may go out now, borrowed until the next call: everything but an incomplete
 * character at the end, which is held back (at most 3 bytes). */
const uint8_t *detok_push(struct detok *d, int32_t id, size_t *len);

/* At the end of generation: the bytes still held back, borrowed. The stream begins anew. */
const uint8_t *detok_finish(struct detok *d, size_t *len);
