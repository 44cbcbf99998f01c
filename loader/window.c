#include "loader/window.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/bytes.h"

/* ---- which pages go when ---- */

/* What the worker reads here and not on its device: bind_rope.c. It stays, and comes first (order.c). */
static bool stays(const struct order_tensor *t)
{
    return order_group(t->name, t->name_len) == ORDER_FIRST;
}

/* Data on pages [first, last] of a file. */
static uint64_t data_on(const struct order_file *file, uint64_t first, uint64_t last,
                        uint64_t phase)
{
    uint64_t from = file->off + phase, end = from + file->size_bytes;
    uint64_t a = first * WEIGHTS_PAGE, b = (last + 1) * WEIGHTS_PAGE;
    a = a > from ? a : from;
    b = b < end ? b : end;
    return b > a ? b - a : 0;
}

/* Adds the pages of one tensor behind those before it; a page of both goes with the later one. */
static void add(struct window *w, uint64_t first, uint64_t last, uint64_t at)
{
    struct window_span *before = w->n_spans > 0 ? &w->spans[w->n_spans - 1] : NULL;
    if (before && before->first_page + before->n_pages > first) {
        assert(before->first_page + before->n_pages == first + 1);
        if (before->n_pages > 1) {
            before->n_pages--;
            w->spans[w->n_spans++] = (struct window_span){ before->at, first, 1, 0 };
            before = &w->spans[w->n_spans - 1];
        }
        before->at = before->at > at ? before->at : at;
        first++;
    }
    if (first <= last) {
        w->spans[w->n_spans++] = (struct window_span){ at, first, last - first + 1, 0 };
    }
}

static int by_at(const void *a, const void *b)
{
    const struct window_span *x = a, *y = b;
    if (x->at != y->at) {
        return x->at < y->at ? -1 : 1;
    }
    return x->first_page < y->first_page ? -1 : x->first_page > y->first_page;
}

int window_init(struct window *w, const struct order *o, const struct order_tensor *tensors,
                size_t n_tensors, const struct order_file *files, uint32_t n_files, uint64_t phase,
                struct err *err)
{
    *w = (struct window){ .phase = phase };
    w->spans = calloc(2 * n_tensors + 1, sizeof *w->spans);
    if (!w->spans) {
        return err_set(err, ERR_NO_MEMORY, "no memory for the window over %zu tensors", n_tensors);
    }
    size_t i = 0;
    for (uint32_t f = 0; f < n_files; f++) {
        uint64_t from = files[f].off, end = from + files[f].size_bytes;
        size_t n_before = w->n_spans;
        for (; i < n_tensors && tensors[i].off < end; i++) { /* a gap goes with the one before it */
            bool more = i + 1 < n_tensors && tensors[i + 1].off < end;
            uint64_t upto = more ? tensors[i + 1].off : end;
            if (upto > from) {
                uint64_t at = stays(&tensors[i]) ? UINT64_MAX : order_ready(o, from, upto - from);
                add(w, (from + phase) / WEIGHTS_PAGE, (upto - 1 + phase) / WEIGHTS_PAGE, at);
            }
            from = upto;
        }
        for (size_t k = n_before; k < w->n_spans; k++) {
            struct window_span *s = &w->spans[k];
            s->size_bytes = data_on(&files[f], s->first_page, s->first_page + s->n_pages - 1,
                                    phase);
        }
    }
    qsort(w->spans, w->n_spans, sizeof *w->spans, by_at);
    uint64_t gone = 0;
    for (size_t k = 0; k < w->n_spans; k++) {
        uint64_t at = w->spans[k].at < o->total_bytes ? w->spans[k].at : o->total_bytes;
        bool first = k == 0 || w->spans[k - 1].at != w->spans[k].at;
        if (first && at - gone > w->most_bytes) {
            w->most_bytes = at - gone; /* all that go at this moment are there just before */
        }
        if (w->spans[k].at == UINT64_MAX) {
            w->kept_bytes += w->spans[k].size_bytes;
        } else {
            gone += w->spans[k].size_bytes;
        }
    }
    return 0;
}

void window_clear(struct window *w)
{
    free(w->spans);
    *w = (struct window){ 0 };
}

/* ---- the window ---- */

static uint64_t read_bytes(uint64_t window)
{
    uint64_t bytes = align_up(window / WINDOW_READS, WEIGHTS_PAGE);
    return bytes < WINDOW_READ_MIN ? WINDOW_READ_MIN : bytes;
}

/* One read beyond the largest need: what it reaches into has room too. */
uint64_t window_least(const struct window *w)
{
    return w->most_bytes + read_bytes(w->most_bytes);
}

void window_open(struct window *w, uint64_t bytes, const struct uploaded *uploaded)
{
    assert(bytes >= window_least(w));
    w->bytes = bytes;
    w->uploaded = uploaded;
    w->read_bytes_max = read_bytes(w->most_bytes);
    if (bytes - w->most_bytes > w->read_bytes_max) {
        uint64_t more = read_bytes(bytes - w->most_bytes);
        w->read_bytes_max = more > w->read_bytes_max ? more : w->read_bytes_max;
    }
}

static int give_back(struct window *w, const struct window_span *span, int fd,
                     const struct weights_header *header, struct err *err)
{
    uint64_t off = header->data_off - w->phase + span->first_page * WEIGHTS_PAGE,
             bytes = span->n_pages * WEIGHTS_PAGE;
    while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)bytes) <
           0) {
        if (errno != EINTR) {
            return err_set_errno(err, ERR_IO, "give %" PRIu64 " bytes of the window back", bytes);
        }
    }
    if (w->poison) {
        uint8_t page[WEIGHTS_PAGE];
        memset(page, 0xff, sizeof page);
        for (uint64_t i = 0; i < span->n_pages; i++) {
            if (pwrite(fd, page, sizeof page, (off_t)(off + i * sizeof page)) < 0) {
                return err_set_errno(err, ERR_IO, "poison what was given back");
            }
        }
    }
    w->given_bytes += span->size_bytes;
    return 0;
}

int window_move(struct window *w, struct source *s, int fd, struct weights_header *header, bool end,
                struct err *err)
{
    for (uint64_t upto = uploaded_bytes(w->uploaded);;) {
        for (; w->next < w->n_spans && w->spans[w->next].at <= upto; w->next++) {
            if (give_back(w, &w->spans[w->next], fd, header, err) < 0) {
                return -1;
            }
        }
        source_allow(s, w->given_bytes + w->bytes);
        bool over = w->next == w->n_spans || w->spans[w->next].at == UINT64_MAX;
        if (over || (!end && !source_is_held(s))) {
            break;
        }
        weights_want(header, w->spans[w->next].at);
        upto = uploaded_wait(w->uploaded, w->spans[w->next].at, WINDOW_LOOK_MS);
    }
    weights_want(header, 0);
    return 0;
}
