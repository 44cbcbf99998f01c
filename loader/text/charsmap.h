/* SentencePiece's precompiled character map (tokenizers.md section 9): a double array that finds the longest
 * character sequence with a replacement. From a model file, so every index is checked at each step. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

struct charsmap {
    const uint8_t *nodes; /* u32 little-endian each, borrowed */
    size_t n_nodes;
    const uint8_t *texts; /* replacements, each with a NUL; the last byte is one */
    size_t texts_len;
};

/* Reads the map's head; data is borrowed. Errors: ERR_BAD_FILE. */
int charsmap_init(struct charsmap *m, const uint8_t *data, size_t len, struct err *err);

/* The longest match at the start of text: bytes matched, and its replacement; 0 for none. */
size_t charsmap_match(const struct charsmap *m, const uint8_t *text, size_t len,
                      const uint8_t **replacement, size_t *replacement_len);
