/* What a vocabulary's token ids mean: their bytes, their types, which have a role and which end a generation. Read from a
 * weights segment's manifest by the worker (what a token releases) and by the text service (tokenizers, detokenising, streaming).
 * Libc only; a built one is constant: any thread.
 * Source: the GGUF keys tokenizer.ggml.model, tokens, token_type and the *_token_id keys. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/weights.h"

/* Token types by their numbers in the file. */
enum token_type {
    TOKEN_UNDEFINED,
    TOKEN_NORMAL,
    TOKEN_UNKNOWN,
    TOKEN_CONTROL,
    TOKEN_USER_DEFINED, /* verbatim, always shown */
    TOKEN_UNUSED,
    TOKEN_BYTE, /* "<0xHH>" */
    TOKEN_N_TYPES,
};

enum token_role {
    ROLE_BOS,
    ROLE_EOS,
    ROLE_EOT,
    ROLE_EOM,
    ROLE_UNK,
    ROLE_SEP,
    ROLE_PAD,
    ROLE_MASK,
    ROLE_FIM_PRE,
    ROLE_FIM_SUF,
    ROLE_FIM_MID,
    ROLE_FIM_PAD,
    ROLE_FIM_REP,
    ROLE_FIM_SEP,
    ROLE_NEWLINE, /* found by tokenizing a line's end: only the text service knows it */
    ROLE_N,
};

/* How the texts of normal tokens are written. */
enum pieces_kind {
    PIECES_RAW,     /* as they are: no vocabulary, plamo2, or a model this build does not know */
    PIECES_SPACE,   /* U+2581 stands for a space: SPM, Unigram, WordPiece, gemma4 */
    PIECES_BYTES,   /* each character of the byte alphabet stands for a byte: gpt2 */
    PIECES_ESCAPES, /* \t \n \r \xHH, in every token: rwkv */
};

/* Bits of pieces.flags. */
#define PIECES_SPECIAL                                                                             \
    0x1 /* control or unknown: its text is shown only when special pieces are wanted */
#define PIECES_END 0x2 /* ends a generation */

struct pieces {
    uint32_t n; /* ids; 0 when the file has no vocabulary */
    enum pieces_kind kind;
    uint32_t bytes_max;    /* of the longest piece that is shown without special ones */
    uint32_t all_max;      /* of the longest of all */
    uint32_t *offs;        /* owned [n + 1], into pool */
    uint8_t *pool;         /* owned */
    uint8_t *flags;        /* owned [n] */
    uint8_t *types;        /* owned [n], enum token_type after the corrections of pieces_roles.c */
    int32_t roles[ROLE_N]; /* ids, -1 where the model has none */
};

/* Builds the table. Errors: ERR_BAD_FILE (a key of the wrong type, arrays of different length), ERR_NO_MEMORY. */
int pieces_build(struct pieces *p, const struct weights *w, struct err *err);

/* A part of it: roles, ends, corrected types. `model` is the value of tokenizer.ggml.model. Errors: ERR_BAD_FILE. */
int pieces_find_roles(struct pieces *p, const struct weights *w, const char *model,
                      size_t model_len, struct err *err);

/* Accepts a zeroed one. */
void pieces_clear(struct pieces *p);

/* The bytes of an id, borrowed; none (length 0) for ids out of range and, unless special, for special tokens. */
const uint8_t *pieces_bytes(const struct pieces *p, int32_t id, bool special, uint32_t *len);

/* Whether this id ends a generation. */
bool pieces_is_end(const struct pieces *p, int32_t id);

/* A text with PIECES_ESCAPES as it is meant; out has room for len bytes. Returns its length. */
size_t pieces_unescape(const char *text, size_t len, char *out);
