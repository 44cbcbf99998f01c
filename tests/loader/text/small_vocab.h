/* Vocabularies of a few tokens, built in memory as a manifest. Tests and the fuzz target. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/weights.h"

struct small_token {
    const char *text;
    float score;
    int32_t type; /* enum vocab_type */
};

struct small_vocab {
    const char *model, *pre, *name; /* NULL: key left out */
    const struct small_token *tokens;
    size_t n_tokens;
    const char *const *merges; /* NULL: key left out */
    size_t n_merges;
    bool
        bytes; /* add the 256 byte tokens: <0xHH> (SPM) or alphabet characters (gpt2), after tokens */
    int64_t bos, eos;    /* -1: key left out */
    int space_prefix;    /* -1: key left out */
    size_t scores_short; /* leave out that many scores */
};

/* Maps the manifest of v; weights_unmap afterwards. Aborts on failure: it is a test's own data. */
void small_vocab_map(struct weights *w, const struct small_vocab *v);

/* A builder with the same keys, to add wrong ones to; ends with small_vocab_finish. */
struct weights_builder *small_vocab_begin(const struct small_vocab *v);
void small_vocab_finish(struct weights_builder **b, struct weights *w);

/* One key each. */
void small_vocab_str(struct weights_builder *b, const char *key, const char *text);
void small_vocab_strs(struct weights_builder *b, const char *key, const char *const *texts,
                      size_t n);
void small_vocab_number(struct weights_builder *b, const char *key, enum weights_type type,
                        uint64_t value);
