/* Text to token ids and back, with the vocabulary that a model's manifest carries: every tokenizer of GGUF files.
 * Used by the text service, by clients/direct, and for the pieces that grammars are compiled against. A tokenizer
 * is read-only once created: any number of threads may use one. Rules: the format's tokenizer page; where the common
 * reference implementation and the model's own tokenizer differ, the model's own is followed. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/ids.h"
#include "loader/text/vocab.h"
#include "proto/err.h"
#include "proto/weights.h"

#define TOKENIZER_TEXT_MAX                                                                         \
    (256u << 20) /* bytes of one text: 16 times the largest prompt; positions fit 32 bits */

/* Flags of encoding. */
#define TOKENIZER_ADD_SPECIAL 1u /* put BOS, EOS, SEP where the model wants them */
#define TOKENIZER_PARSE_SPECIAL                                                                    \
    2u /* control tokens written in the text become their ids; never for users' text */

struct tokenizer; /* opaque */

/* Reads the vocabulary from a manifest (tensors are not looked at; w may go afterwards). pre: name that replaces
 * tokenizer.ggml.pre, "reference/NAME" for the reference's way of it, or NULL.
 * Owned by the caller: tokenizer_destroy. Errors: ERR_BAD_FILE naming the key, ERR_UNSUPPORTED, ERR_NO_MEMORY. */
struct tokenizer *tokenizer_create(const struct weights *w, const char *pre, struct err *err);
void tokenizer_destroy(struct tokenizer **t);

/* Appends the ids of text (any bytes, len of them) to out. On failure out keeps what it had before.
 * Errors: ERR_NO_FIT beyond TOKENIZER_TEXT_MAX, ERR_NO_MEMORY. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                     struct ids *out, struct err *err);

/* A stretch of text whose special tokens count or do not. */
struct tokenizer_span {
    size_t off, len;
    bool parse_special; /* the template's own words: control tokens become their ids */
};

/* The same for a text of several voices: spans are in order, without overlap, and cover it. Special tokens are found inside spans
 * that allow them; everything between two of them is encoded as one piece, whoever wrote it. */
int tokenizer_encode_spans(const struct tokenizer *t, const char *text, size_t len,
                           const struct tokenizer_span *spans, size_t n_spans, bool add_special,
                           struct ids *out, struct err *err);

/* The bytes of a token, borrowed for the tokenizer's life: any bytes, possibly part of a character, possibly none.
 * Control and unknown tokens have bytes only with special. An id that is none has no bytes. */
const uint8_t *tokenizer_piece(const struct tokenizer *t, int32_t id, bool special, size_t *len);

/* Bytes of the longest piece: no token ever adds more to an answer. */
size_t tokenizer_piece_max(const struct tokenizer *t);

/* Number of tokens; ids are below it. */
uint32_t tokenizer_n_vocab(const struct tokenizer *t);

/* The id with a role, or -1. */
int32_t tokenizer_special(const struct tokenizer *t, enum token_role special);

/* Whether generation ends with this token. */
bool tokenizer_is_eog(const struct tokenizer *t, int32_t id);

/* The end-of-generation ids in increasing order, appended to out. Errors: ERR_NO_MEMORY. */
int tokenizer_eog_ids(const struct tokenizer *t, struct ids *out, struct err *err);

/* The loaded vocabulary: types, scores, switches. */
const struct vocab *tokenizer_vocab(const struct tokenizer *t);
