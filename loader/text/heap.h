/* A queue of (key, value) pairs, least key first, least value first among equals. The tokenizers' merge loops live on
 * it: O(log n) a step whatever the text. Header only; zero it, heap_clear frees it.
 *
 * Pairs that come in order need no heap: beyond a few, those that follow one of HEAP_RUNS sorted runs are appended to it
 * and taken from its front. One letter sixteen million times is noted from left to right, rank after rank, so every step
 * of it is O(1) in memory that is walked once. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/grow.h"

#define HEAP_RUNS  8
#define HEAP_SMALL 512 /* pairs that are a heap without runs: common words */

struct heap_item {
    uint64_t key, value;
};

struct heap_run {
    struct heap_item *items;
    size_t at, n, cap; /* taken up to at */
};

struct heap {
    struct heap_item *items;
    size_t n_items, cap;
    struct heap_run runs[HEAP_RUNS];
    unsigned n_runs; /* that hold anything, or did; runs behind them are empty */
    size_t n;        /* pairs in all */
};

static inline bool heap_less(struct heap_item a, struct heap_item b)
{
    return a.key != b.key ? a.key < b.key : a.value < b.value;
}

static inline void heap_reset(struct heap *h)
{
    for (unsigned i = 0; i < h->n_runs; i++) {
        h->runs[i].at = h->runs[i].n = 0;
    }
    h->n = h->n_items = h->n_runs = 0;
}

/* The run that the item may follow: the one with the greatest last item, else an empty one. NULL: none. */
static inline struct heap_run *heap_run_for(struct heap *h, struct heap_item item)
{
    struct heap_run *best = NULL;
    for (unsigned i = 0; i < h->n_runs; i++) {
        struct heap_run *run = &h->runs[i];
        if (run->at == run->n) {
            run->at = run->n = 0;
            best = best ? best : run;
        } else if (!heap_less(item, run->items[run->n - 1]) &&
                   (!best || best->n == 0 ||
                    heap_less(best->items[best->n - 1], run->items[run->n - 1]))) {
            best = run;
        }
    }
    return best || h->n_runs == HEAP_RUNS ? best : &h->runs[h->n_runs++];
}

static inline int heap_push(struct heap *h, uint64_t key, uint64_t value, struct err *err)
{
    struct heap_item item = { key, value };
    if (h->n_items >= HEAP_SMALL) {
        struct heap_run *run = heap_run_for(h, item);
        if (run) {
            if (GROW(&run->items, &run->cap, run->n + 1, err) < 0) {
                return -1;
            }
            run->items[run->n++] = item;
            h->n++;
            return 0;
        }
    }
    if (GROW(&h->items, &h->cap, h->n_items + 1, err) < 0) {
        return -1;
    }
    size_t i = h->n_items++;
    while (i > 0 && heap_less(item, h->items[(i - 1) / 2])) {
        h->items[i] = h->items[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->items[i] = item;
    h->n++;
    return 0;
}

static inline struct heap_item heap_pop_item(struct heap *h)
{
    struct heap_item top = h->items[0];
    struct heap_item last = h->items[--h->n_items];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= h->n_items) {
            break;
        }
        if (child + 1 < h->n_items && heap_less(h->items[child + 1], h->items[child])) {
            child++;
        }
        if (!heap_less(h->items[child], last)) {
            break;
        }
        h->items[i] = h->items[child];
        i = child;
    }
    if (h->n_items) {
        h->items[i] = last;
    }
    return top;
}

/* The least item leaves; the queue must not be empty. */
static inline struct heap_item heap_pop(struct heap *h)
{
    struct heap_run *from = NULL;
    for (unsigned i = 0; i < h->n_runs; i++) {
        struct heap_run *run = &h->runs[i];
        if (run->at < run->n && (!from || heap_less(run->items[run->at], from->items[from->at]))) {
            from = run;
        }
    }
    h->n--;
    if (from && (h->n_items == 0 || heap_less(from->items[from->at], h->items[0]))) {
        return from->items[from->at++];
    }
    return heap_pop_item(h);
}

static inline void heap_clear(struct heap *h)
{
    free(h->items);
    for (unsigned i = 0; i < HEAP_RUNS; i++) {
        free(h->runs[i].items);
    }
    *h = (struct heap){ 0 };
}
