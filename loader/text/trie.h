/* Which of a set of texts start here? The set is a sorted list of numbers into a struct texts; walking one byte
 * at a time narrows the range of texts that share the bytes so far. Costs four bytes a text and no more,
 * whatever the texts. Used for longest match (WPM, RWKV, special tokens) and all matches (Unigram, PLaMo-2).
 * Read-only use is safe from any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/texts.h"
#include "loader/text/vocab.h"
#include "proto/err.h"

struct trie {
    const struct texts *texts; /* borrowed; must outlive the trie and not move while walking */
    uint32_t *order;           /* (n): numbers sorted by text, equal texts by number */
    size_t n;
    uint32_t first[257]; /* range of order by first byte */
};

struct trie_walk {
    const struct trie *trie;
    size_t low, high, depth; /* texts order[low..high) agree on depth bytes */
};

/* numbers (n of them) is copied; empty texts are left out. */
int trie_init(struct trie *t, const struct texts *texts, const uint32_t *numbers, size_t n,
              struct err *err);

/* The tokens of a vocabulary whose type is in `types`, a bit each: TRIE_TYPE(type). Created on the heap, as algorithms want their state;
 * NULL on error. */
#define TRIE_TYPE(type) (1u << (type))
#define TRIE_ALL_TYPES  (~0u)
struct trie *trie_of_vocab(const struct vocab *v, unsigned types, struct err *err);

/* Accept what is zeroed, or NULL. */
void trie_clear(struct trie *t);
void trie_destroy(struct trie **t);

struct trie_walk trie_begin(const struct trie *t);

/* Goes on by one byte; false when no text has these bytes as its start. */
bool trie_step(struct trie_walk *w, uint8_t byte);

/* The number (least of equals) of the text that ends exactly here, or TEXTS_NONE. After a successful step. */
uint32_t trie_here(const struct trie_walk *w);

/* The longest text of the set at the start of bytes, at most len: its number and *match_len, or TEXTS_NONE. */
uint32_t trie_longest(const struct trie *t, const uint8_t *bytes, size_t len, size_t *match_len);
