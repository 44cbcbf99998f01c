/* A binary heap of (key, value) pairs, least key first, least value first among equals. The tokenizers' merge
 * loops live on it: O(log n) a step whatever the text. Header only; zero it, heap_clear frees it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/grow.h"

struct heap_item {
    uint64_t key, value;
};

struct heap {
    struct heap_item *items;
    size_t n, cap;
};

static inline bool heap_less(struct heap_item a, struct heap_item b)
{
    return a.key != b.key ? a.key < b.key : a.value < b.value;
}

static inline int heap_push(struct heap *h, uint64_t key, uint64_t value, struct err *err)
{
    if (GROW(&h->items, &h->cap, h->n + 1, err) < 0) {
        return -1;
    }
    struct heap_item item = { key, value };
    size_t i = h->n++;
    while (i > 0 && heap_less(item, h->items[(i - 1) / 2])) {
        h->items[i] = h->items[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->items[i] = item;
    return 0;
}

/* The least item leaves; the heap must not be empty. */
static inline struct heap_item heap_pop(struct heap *h)
{
    struct heap_item top = h->items[0];
    struct heap_item last = h->items[--h->n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= h->n) {
            break;
        }
        if (child + 1 < h->n && heap_less(h->items[child + 1], h->items[child])) {
            child++;
        }
        if (!heap_less(h->items[child], last)) {
            break;
        }
        h->items[i] = h->items[child];
        i = child;
    }
    if (h->n) {
        h->items[i] = last;
    }
    return top;
}

static inline void heap_clear(struct heap *h)
{
    free(h->items);
    *h = (struct heap){ 0 };
}
