/* Cuts text into the words that BPE merges within: one row per name of tokenizer.ggml.pre. Each row names a list
 * of passes; a pass scans every piece that the passes before it left, for the leftmost match of its alternatives
 * in order; matches and the gaps between them become pieces (tokenizers.md section 7). The alternatives are the
 * regexes of the models, hand-written; each row follows the model's own. Where the common reference
 * implementation cuts otherwise, a second list follows that, for comparison; users name it "reference/NAME". Used by bpe.c; any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

struct pretoken_pass;

struct pretoken {
    const char *name;
    const struct pretoken_pass *const *passes;    /* ends with NULL */
    const struct pretoken_pass *const *reference; /* the same, or NULL where it is no different */
    bool ignore_merges, add_bos, clean_spaces;    /* defaults that go with the name */
    bool add_sep;                                 /* pairs for ranking get a separator */
    bool no_bos;                                  /* no default id for BOS */
};

#define PRETOKEN_REFERENCE "reference/" /* before a name: the reference's way of cutting */

/* The row of a name (without that prefix), static, or NULL. */
const struct pretoken *pretoken_find(const char *name);

/* Row i in a fixed order, NULL past the last: for lists and tests. */
const struct pretoken *pretoken_at(size_t i);

/* Text as code points with their categories, and where its pieces start. Zero it, splitter_clear frees it; one may
 * serve many texts, one after another. */
struct splitter {
    uint32_t *codes; /* (n) */
    uint8_t *cats;   /* (n), enum unicode_category */
    uint8_t *cuts;   /* (n): 1 where a piece starts */
    size_t n;
    size_t codes_cap, cats_cap, cuts_cap;
    /* what the alternatives see: one piece, and the run they last looked at */
    size_t start, end;
    size_t space_start, space_end,
        newline_end; /* newline_end: behind the run's last newline, or 0 */
    size_t number_start, number_end;
};

/* Decodes text (bytes that are no UTF-8 become U+FFFD, one each) and marks where pieces start, in the model's own way or in the
 * reference's. O(len). Errors: ERR_NO_MEMORY. */
int splitter_run(struct splitter *s, const struct pretoken *pre, bool reference,
                 const uint8_t *text, size_t len, struct err *err);
void splitter_clear(struct splitter *s);

/* End of the piece that starts at code point start. */
size_t splitter_piece_end(const struct splitter *s, size_t start);
