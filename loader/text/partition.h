/* Cuts a text at special tokens, before any algorithm sees it (tokenizers.md section 4). Longer tokens win over
 * shorter ones anywhere in the text, equal ones by id, then leftmost first. Used by tokenizer.c. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/trie.h"
#include "loader/text/vocab.h"

struct partition {
    struct trie always, all; /* user-defined tokens; these and control and unknown ones */
    uint32_t *rank_of;       /* (n_tokens): place of a candidate, longest first */
    uint32_t n_ranks;
};

/* vocab->texts must not move any more. Errors: ERR_NO_MEMORY. */
int partition_init(struct partition *p, const struct vocab *v, struct err *err);
void partition_clear(struct partition *p);

/* A token found in a text; start and end include white space that it eats. */
struct cut {
    size_t start, end;
    int32_t id;
};

struct cuts {
    struct cut *cuts; /* (n), in order of start, owned: free() */
    size_t n, cap;
};

/* Finds the special tokens of text; with parse_special false only those that are always parsed.
 * O(len log len). Errors: ERR_NO_MEMORY. */
int partition_run(const struct partition *p, const struct vocab *v, const uint8_t *text, size_t len,
                  bool parse_special, struct cuts *out, struct err *err);
