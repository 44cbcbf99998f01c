#include "loader/text/trie.h"

#include <stdlib.h>
#include <string.h>

static int compare_texts(const void *a, const void *b, void *context)
{
    const struct texts *texts = ((const struct trie *)context)->texts;
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    size_t left_len, right_len;
    const uint8_t *left_text = texts_get(texts, left, &left_len);
    const uint8_t *right_text = texts_get(texts, right, &right_len);
    int order = memcmp(left_text, right_text, left_len < right_len ? left_len : right_len);
    if (order == 0) {
        order = left_len != right_len ? (left_len > right_len) - (left_len < right_len)
                                      : (left > right) - (left < right);
    }
    return order;
}

int trie_init(struct trie *t, const struct texts *texts, const uint32_t *numbers, size_t n,
              struct err *err)
{
    *t = (struct trie){ .texts = texts };
    t->order = malloc((n ? n : 1) * sizeof *t->order);
    if (!t->order) {
        return err_set(err, ERR_NO_MEMORY, "a list of %zu texts", n);
    }
    for (size_t i = 0; i < n; i++) {
        size_t len;
        texts_get(texts, numbers[i], &len);
        if (len) {
            t->order[t->n++] = numbers[i];
        }
    }
    qsort_r(t->order, t->n, sizeof *t->order, compare_texts, t);
    size_t at = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        t->first[byte] = (uint32_t)at;
        size_t len;
        while (at < t->n && texts_get(texts, t->order[at], &len)[0] == byte) {
            at++;
        }
    }
    t->first[256] = (uint32_t)at;
    return 0;
}

struct trie *trie_of_vocab(const struct vocab *v, unsigned types, struct err *err)
{
    struct trie *trie = calloc(1, sizeof *trie);
    uint32_t *ids = malloc(v->n_tokens * sizeof *ids);
    size_t n = 0;
    if (!trie || !ids) {
        err_set(err, ERR_NO_MEMORY, "a vocabulary of %u tokens", v->n_tokens);
        goto fail;
    }
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        if (types & TRIE_TYPE(v->pieces.types[id])) {
            ids[n++] = id;
        }
    }
    if (trie_init(trie, &v->texts, ids, n, err) < 0) {
        goto fail;
    }
    free(ids);
    return trie;
fail:
    free(ids);
    trie_destroy(&trie);
    return NULL;
}

void trie_clear(struct trie *t)
{
    free(t->order);
    *t = (struct trie){ 0 };
}

void trie_destroy(struct trie **t)
{
    if (*t) {
        trie_clear(*t);
        free(*t);
        *t = NULL;
    }
}

struct trie_walk trie_begin(const struct trie *t)
{
    return (struct trie_walk){ .trie = t, .low = 0, .high = t->n };
}

/* The byte at depth of the i-th text, -1 where the text has ended. */
static int byte_at(const struct trie *t, size_t i, size_t depth)
{
    size_t len;
    const uint8_t *text = texts_get(t->texts, t->order[i], &len);
    return depth < len ? text[depth] : -1;
}

/* First index in [low, high) whose byte at depth is at least byte. */
static size_t lower_bound(const struct trie *t, size_t low, size_t high, size_t depth, int byte)
{
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (byte_at(t, mid, depth) < byte) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

bool trie_step(struct trie_walk *w, uint8_t byte)
{
    if (w->depth == 0) {
        w->low = w->trie->first[byte];
        w->high = w->trie->first[byte + 1];
    } else {
        w->low = lower_bound(w->trie, w->low, w->high, w->depth, byte);
        w->high = lower_bound(w->trie, w->low, w->high, w->depth, byte + 1);
    }
    w->depth++;
    return w->low < w->high;
}

uint32_t trie_here(const struct trie_walk *w)
{
    bool ends = w->low < w->high && byte_at(w->trie, w->low, w->depth) < 0;
    return ends ? w->trie->order[w->low] : TEXTS_NONE;
}

uint32_t trie_longest(const struct trie *t, const uint8_t *bytes, size_t len, size_t *match_len)
{
    uint32_t found = TEXTS_NONE;
    struct trie_walk walk = trie_begin(t);
    for (size_t i = 0; i < len && trie_step(&walk, bytes[i]); i++) {
        uint32_t here = trie_here(&walk);
        if (here != TEXTS_NONE) {
            found = here;
            *match_len = i + 1;
        }
    }
    return found;
}
