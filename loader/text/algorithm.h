/* What each tokenizer algorithm offers tokenizer.c: tables made once from the vocabulary, then raw text to ids. The
 * rows stand in spm.c, bpe.c, wpm.c, ugm.c, rwkv.c and plamo2.c. encode is read-only on state and vocabulary, so
 * any number of threads may run it. Its text comes from users: any bytes, any length up to TOKENIZER_TEXT_MAX, and
 * no input may cost more than O(n log n). */
#pragma once

#include "loader/text/ids.h"
#include "loader/text/vocab.h"
#include "proto/err.h"
#include "proto/weights.h"

/* Raw text between special tokens. */
struct fragment {
    const uint8_t *text; /* borrowed */
    size_t len;          /* at least 1 */
    bool after_special;  /* the text's start or a special token stands before it */
};

struct algorithm {
    /* Tables into *state (may stay NULL). May append texts to the vocabulary. NULL: needs none. */
    int (*create)(void **state, struct vocab *v, const struct weights *w, struct err *err);
    void (*destroy)(void *state);
    /* Appends the fragment's ids to out. Errors: ERR_NO_MEMORY. */
    int (*encode)(const void *state, const struct vocab *v, const struct fragment *f,
                  struct ids *out, struct err *err);
};

extern const struct algorithm algorithm_spm, algorithm_bpe, algorithm_wpm, algorithm_ugm,
    algorithm_rwkv, algorithm_plamo2;
