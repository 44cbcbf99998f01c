#include "worker/kept.h"

#include <assert.h>
#include <inttypes.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>

#include "proto/log.h"

#define PIECE_BYTES ((size_t)256 << 20) /* unmapped in one turn: some ms of 4 KiB pages */
#define PAUSE_NS    1000000             /* between two looks when nothing else is to be done */

static struct kept_segment *of(const struct weights *w)
{
    return (struct kept_segment *)((uintptr_t)w - offsetof(struct kept_segment, weights));
}

/* All of it is there, and stays: not what is loaded by a window. */
static bool is_whole(const struct weights *w)
{
    return w->header->window == 0 && weights_watermark(w) >= w->header->data_bytes;
}

const struct weights *kept_find(struct kept *k, uint64_t segment)
{
    for (uint32_t i = 0; i < KEPT_MAX; i++) {
        struct kept_segment *s = &k->list[i];
        if (s->segment == segment && segment && !s->leaving) {
            s->used = ++k->uses;
            return &s->weights;
        }
    }
    return NULL;
}

/* Returns true when nothing of it is left. */
static bool let_go(struct kept *k, struct kept_segment *s)
{
    struct weights *w = &s->weights;
    if (k->backend->ops->unpin && !k->backend->ops->unpin(k->backend, w->base)) {
        return false;
    }
    if (w->size > PIECE_BYTES) { /* from the end, so that what is left is one mapping */
        size_t left = (w->size - 1) / PIECE_BYTES * PIECE_BYTES;
        munmap((void *)(uintptr_t)(w->base + left), w->size - left);
        w->size = left;
        return false;
    }
    log_info("weights segment %" PRIu64 ": let go", s->segment);
    weights_unmap(w);
    *s = (struct kept_segment){ 0 };
    return true;
}

static void let_go_now(struct kept *k, struct kept_segment *s)
{
    const struct timespec pause = { .tv_nsec = PAUSE_NS };
    while (!let_go(k, s)) {
        nanosleep(&pause, NULL);
    }
}

/* A free place; when there is none, that of whom nobody has used for longest. */
static struct kept_segment *take_place(struct kept *k)
{
    struct kept_segment *oldest = NULL;
    for (uint32_t i = 0; i < KEPT_MAX; i++) {
        struct kept_segment *s = &k->list[i];
        if (!s->segment) {
            return s;
        }
        if (s->n_users == 0 && (!oldest || s->used < oldest->used)) {
            oldest = s;
        }
    }
    if (oldest) {
        let_go_now(k, oldest);
    }
    return oldest;
}

const struct weights *kept_map(struct kept *k, uint64_t segment, int fd, struct err *err)
{
    struct kept_segment *s = take_place(k);
    if (!s) {
        err_set(err, ERR_FULL, "%d segments of weights are mapped already", KEPT_MAX);
        return NULL;
    }
    *s = (struct kept_segment){ .used = ++k->uses };
    if (weights_map(&s->weights, fd, err) < 0) {
        return NULL;
    }
    s->segment = segment;
    return &s->weights;
}

void kept_use(struct kept *k, const struct weights *w)
{
    (void)k;
    of(w)->n_users++;
}

void kept_leave(struct kept *k, const struct weights *w)
{
    struct kept_segment *s = of(w);
    assert(s->n_users > 0);
    if (--s->n_users > 0) {
        return;
    }
    if (!k->backend->ops->pin || !is_whole(w)) { /* what is not whole was not pinned */
        weights_unmap(&s->weights);
        *s = (struct kept_segment){ 0 };
    }
}

void kept_pin(struct kept *k, const struct weights *w)
{
    if (k->backend->ops->pin && is_whole(w)) {
        k->backend->ops->pin(k->backend, w->base, w->size);
    }
}

bool kept_forget(struct kept *k, uint64_t segment)
{
    bool here = false;
    for (uint32_t i = 0; i < KEPT_MAX; i++) {
        struct kept_segment *s = &k->list[i];
        if (s->segment == segment && segment) {
            s->leaving = here = true;
        }
    }
    return here;
}

bool kept_turn(struct kept *k, uint64_t *gone)
{
    bool more = false;
    *gone = 0;
    for (uint32_t i = 0; i < KEPT_MAX && !*gone; i++) {
        struct kept_segment *s = &k->list[i];
        uint64_t segment = s->segment;
        if (s->leaving && s->n_users == 0) {
            *gone = let_go(k, s) ? segment : 0;
            more = true;
        }
    }
    for (uint32_t i = 0; i < KEPT_MAX && *gone; i++) {
        if (k->list[i].segment == *gone) {
            *gone = 0; /* it was mapped again meanwhile: something of it is left */
        }
    }
    return more;
}

uint32_t kept_list(const struct kept *k, uint64_t segments[KEPT_MAX])
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < KEPT_MAX; i++) {
        if (k->list[i].segment) {
            segments[n++] = k->list[i].segment;
        }
    }
    return n;
}

void kept_clear(struct kept *k)
{
    for (uint32_t i = 0; i < KEPT_MAX; i++) {
        if (k->list[i].segment) {
            let_go_now(k, &k->list[i]);
        }
    }
}
