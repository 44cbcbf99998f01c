/* A numbered list of byte strings with a hash index: token texts by id, and the pieces of merges behind them.
 * Equal texts may be appended twice; the index then knows the first. Zero it, texts_clear frees it.
 * Read-only use is safe from any thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

#define TEXTS_NONE UINT32_MAX

struct texts {
    uint8_t *pool; /* all bytes, one after another */
    size_t pool_len, pool_cap;
    uint32_t *ends; /* (n): end of text i in pool; its start is the end before it */
    size_t n, ends_cap;
    uint32_t *slots; /* hash table of number + 1; a power of two */
    size_t n_slots;
};

/* Adds a text under the next number (copied). Errors: ERR_NO_MEMORY; ERR_BAD_FILE past 4 GiB in all. */
int texts_append(struct texts *t, const void *text, size_t len, struct err *err);

/* The number of a text, or of the new one appended for it, through *number. */
int texts_intern(struct texts *t, const void *text, size_t len, uint32_t *number, struct err *err);

/* The least number with this text, or TEXTS_NONE. */
uint32_t texts_find(const struct texts *t, const void *text, size_t len);

/* Text number i (below n), borrowed until the next append. */
static inline const uint8_t *texts_get(const struct texts *t, uint32_t i, size_t *len)
{
    uint32_t start = i ? t->ends[i - 1] : 0;
    *len = t->ends[i] - start;
    return t->pool + start;
}

void texts_clear(struct texts *t);
