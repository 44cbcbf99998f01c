/* A load that never holds the whole file: it reads at most a window ahead of what the worker has uploaded to a device with
 * memory of its own, and gives the memory behind back (README.md says when, and what that means for the model's life).
 *
 * A page is given back when every tensor on it has been uploaded; what the host itself reads at binding (rotary factors) stays.
 * Offsets are within the data section, counts in the order of reading (order.h). Loader's main thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/order.h"
#include "loader/source.h"
#include "proto/err.h"
#include "proto/uploaded.h"
#include "proto/weights.h"

#define WINDOW_READS    16          /* reads that make a window at least, so that they overlap */
#define WINDOW_READ_MIN (64u << 10) /* bytes of one: less costs more calls than it saves memory */
#define WINDOW_LOOK_MS  1000        /* a wait looks around after so long */

/* Whole pages that go back together. */
struct window_span {
    uint64_t at; /* when so many bytes have been uploaded; UINT64_MAX: never */
    uint64_t first_page, n_pages;
    uint64_t size_bytes; /* of data on them */
};

struct window {
    struct window_span *spans; /* owned, by at */
    size_t n_spans, next;      /* [next]: the first that has not gone back */
    uint64_t phase;            /* where data begins in its first page */
    uint64_t given_bytes;      /* of data, given back */
    uint64_t kept_bytes;       /* that never go back */
    uint64_t most_bytes;     /* that must be there at once for the largest tensor to be uploaded */
    uint64_t bytes;          /* that may be there at once; 0: no window, all stays */
    uint64_t read_bytes_max; /* of one read */
    bool poison;             /* for tests: what goes back is filled with 0xff, not with zeros */
    const struct uploaded *uploaded; /* borrowed */
};

/* tensors sorted by off, files and phase as order_init took them. ERR_NO_MEMORY. */
int window_init(struct window *w, const struct order *o, const struct order_tensor *tensors,
                size_t n_tensors, const struct order_file *files, uint32_t n_files, uint64_t phase,
                struct err *err);
void window_clear(struct window *w);

/* The least window by which this model can be loaded. */
uint64_t window_least(const struct window *w);

/* From now on a window of so many bytes, at least window_least. uploaded is borrowed. */
void window_open(struct window *w, uint64_t bytes, const struct uploaded *uploaded);

/* Gives back what has been uploaded of a segment, and lets the source read as far as the window then reaches; waits
 * for the worker while all that it allows is there and no page can go. end: all has been read, wait for all uploads.
 * header: the writable mapping's. ERR_IO. */
int window_move(struct window *w, struct source *s, int fd, struct weights_header *header, bool end,
                struct err *err);
