/* What a vocabulary's token ids mean as bytes, and which of them end a generation: read from a weights segment's
 * manifest by the worker (what a token releases) and by the text service (detokenising, streaming). Libc only; a
 * built one is constant: any thread.
 * Source: the GGUF keys tokenizer.ggml.model, tokens, token_type and the *_token_id keys. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/weights.h"

/* How normal tokens are written. */
enum pieces_kind {
    PIECES_RAW,   /* as they are: no vocabulary, or a model this build does not know */
    PIECES_SPACE, /* U+2581 stands for a space: SPM, Unigram, WordPiece, gemma4 */
    PIECES_BYTES, /* each character of the byte-level alphabet stands for a byte: gpt2 */
};

#define PIECES_SPECIAL                                                                             \
    0x1 /* control or unknown: its text is shown only when special pieces are wanted */
#define PIECES_END     0x2 /* ends a generation */
#define PIECES_CONTROL 0x4
#define PIECES_USER    0x8 /* user-defined: verbatim, always shown */
#define PIECES_BYTE    0x10

struct pieces {
    uint32_t n; /* ids; 0 when the file has no vocabulary */
    enum pieces_kind kind;
    uint32_t bytes_max; /* of the longest piece that is shown without special ones */
    uint32_t *offs;     /* owned [n + 1], into pool */
    uint8_t *pool;      /* owned */
    uint8_t *flags;     /* owned [n] */
};

/* Builds the table. Errors: ERR_BAD_FILE (a key of the wrong type, arrays of different length), ERR_NO_MEMORY. */
int pieces_build(struct pieces *p, const struct weights *w, struct err *err);

/* Accepts a zeroed one. */
void pieces_clear(struct pieces *p);

/* The bytes of an id, borrowed; none (length 0) for ids out of range and, unless special, for special tokens. */
const uint8_t *pieces_bytes(const struct pieces *p, int32_t id, bool special, uint32_t *len);

/* Whether this id ends a generation. */
bool pieces_is_end(const struct pieces *p, int32_t id);

/* How many bytes at the end of data begin a UTF-8 character that is not complete: 0 to 3. Bytes that can never become
 * valid are not counted. */
uint32_t pieces_incomplete(const uint8_t *data, uint32_t len);
