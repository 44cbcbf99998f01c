/* A model's vocabulary as the manifest gives it: token texts, scores, types, special ids and the switches that
 * say how text is prepared. Reads metadata only (keys tokenizer.ggml.*, general.name, general.architecture) and
 * copies what it keeps, so the segment may go afterwards. Input is a model file: every bound is checked.
 * Used by tokenizer.c and the algorithms behind it; read-only once loaded, any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/texts.h"
#include "proto/err.h"
#include "proto/pieces.h"
#include "proto/weights.h"

struct pretoken;

#define VOCAB_TOKENS_MAX (1u << 22)  /* 16 times the largest vocabulary seen */
#define VOCAB_TEXT_MAX   (16u << 10) /* bytes of one token; the longest seen is 1024 */

enum vocab_model {
    VOCAB_SPM,    /* "llama": best score first */
    VOCAB_BPE,    /* "gpt2": byte-level merges by rank */
    VOCAB_GEMMA4, /* "gemma4": merges by rank over raw UTF-8 */
    VOCAB_WPM,    /* "bert": longest piece first */
    VOCAB_UGM,    /* "t5": best sum of scores */
    VOCAB_RWKV,   /* "rwkv": longest match */
    VOCAB_PLAMO2, /* "plamo2": best sum of scores from the end */
    VOCAB_N_MODELS,
};

/* Bits of pieces.flags that only tokenizers look at. */
#define VOCAB_LSTRIP 0x10u /* eats white space before it */
#define VOCAB_RSTRIP 0x20u /* eats white space behind it */

struct vocab {
    enum vocab_model model;
    const struct pretoken *pre; /* BPE and gemma4: how text is cut into words; static */
    bool pre_reference;         /* in the reference's way instead of the model's own */
    uint32_t n_tokens;
    struct pieces pieces; /* bytes, types, roles, ends by id */
    struct texts texts;   /* token texts by id; BPE appends the pieces of its merges behind them */
    float *scores;        /* (n_tokens), finite; zero where the file has none */
    size_t text_len_max;
    bool add_bos, add_eos, add_sep;
    bool add_space_prefix, remove_extra_whitespaces;
    bool escape_spaces; /* a space stands as U+2581 in token texts */
    bool clean_spaces;  /* detokenisation tidies spaces before punctuation */
    bool ignore_merges; /* BPE: a word that is a token is taken whole */
    bool has_scores;
    uint8_t *charsmap; /* Unigram's precompiled character map, or NULL */
    size_t charsmap_len;
};

/* Fills v (zeroed before) from the manifest w. pre: name that replaces tokenizer.ggml.pre, or NULL.
 * Errors: ERR_BAD_FILE naming the key; ERR_UNSUPPORTED for an unknown tokenizer model or pre-tokenizer;
 * ERR_NO_MEMORY. Clear v in either case. */
int vocab_load(struct vocab *v, const struct weights *w, const char *pre, struct err *err);
void vocab_clear(struct vocab *v);

/* Which tokens eat the white space beside them. Called by vocab_load once the tokens stand. */
int vocab_find_strips(struct vocab *v, const struct weights *w, struct err *err);

/* The least id with this text, or -1. */
int32_t vocab_find(const struct vocab *v, const void *text, size_t len);

/* The token for a byte: <0xHH>, else the token that is this one byte, else -1. */
int32_t vocab_find_byte(const struct vocab *v, uint8_t byte);

/* Text of a token (id below n_tokens), borrowed. */
static inline const uint8_t *vocab_text(const struct vocab *v, uint32_t id, size_t *len)
{
    return texts_get(&v->texts, id, len);
}

/* Reads a scalar key into *out; leaves it alone where the key is absent. Errors: ERR_BAD_FILE. */
int vocab_read_bool(const struct weights *w, const char *key, bool *out, struct err *err);

/* A string key into buffer (cut at size - 1, NUL-terminated), empty where absent. Errors: ERR_BAD_FILE. */
int vocab_read_str(const struct weights *w, const char *key, char *buffer, size_t size,
                   struct err *err);
