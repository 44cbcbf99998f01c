#include "worker/shards.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/log.h"
#include "proto/shm.h"

static void close_fds(const int fds[2])
{
    for (int i = 0; i < 2; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

/* ---- journal shards ---- */

struct journal *shards_get(struct shards *s, uint64_t segment,
                           bool (*in_use)(void *arg, uint64_t segment), void *arg, struct err *err)
{
    struct shard *place = NULL;
    for (uint32_t i = 0; i < SHARDS_MAX; i++) {
        struct shard *shard = &s->shard[i];
        if (segment != 0 && shard->segment == segment) {
            shard->used = ++s->clock;
            return &shard->journal;
        }
        bool may_go = shard->segment == 0 || !in_use(arg, shard->segment);
        if (may_go && (!place || shard->used < place->used)) {
            place = shard;
        }
    }
    if (segment == 0 || !place) {
        err_set(err, segment == 0 ? ERR_BAD_INPUT : ERR_FULL, "journal shard %" PRIu64 "%s",
                segment, segment == 0 ? " is no segment" : ": too many are in use");
        return NULL;
    }
    if (place->segment != 0) {
        journal_unmap(&place->journal);
        *place = (struct shard){ 0 };
    }
    int fds[2] = { -1, -1 };
    if (s->from->take(s->from->arg, segment, fds, err) < 0) {
        err_wrap(err, "journal shard %" PRIu64, segment);
        return NULL;
    }
    int mapped = journal_map(&place->journal, fds[0], true, err);
    close_fds(fds);
    if (mapped < 0) {
        return NULL;
    }
    place->segment = segment;
    place->used = ++s->clock;
    return &place->journal;
}

void shards_clear(struct shards *s)
{
    for (uint32_t i = 0; i < SHARDS_MAX; i++) {
        if (s->shard[i].segment != 0) {
            journal_unmap(&s->shard[i].journal);
        }
        s->shard[i] = (struct shard){ 0 };
    }
}

/* ---- reader pages ---- */

static struct reader *find(struct readers *r, uint64_t segment)
{
    for (uint32_t i = 0; i < r->n; i++) {
        if (r->reader[i].segment == segment) {
            return &r->reader[i];
        }
    }
    return NULL;
}

static void drop(struct reader *reader)
{
    if (reader->event_fd >= 0) {
        close(reader->event_fd);
    }
    shm_unmap(reader->page, reader->page_bytes);
    *reader = (struct reader){ .event_fd = -1 };
}

/* The client made both objects. A page is mapped only when it can no longer shrink, else a touch could be a SIGBUS. An eventfd is
 * an anonymous inode, which has no file type: a pipe, a terminal or a file in its place is not written to. */
static int take(struct readers *r, struct reader *reader, struct err *err)
{
    int fds[2] = { -1, -1 };
    if (r->from->take(r->from->arg, reader->segment, fds, err) < 0) {
        return -1;
    }
    struct stat st;
    if (fds[0] < 0 || fds[1] < 0 || fstat(fds[1], &st) < 0 || (st.st_mode & S_IFMT) != 0) {
        close_fds(fds);
        return err_set(err, ERR_BAD_INPUT, "not a page and an eventfd");
    }
    int seals = fcntl(fds[0], F_GET_SEALS);
    if (seals >= 0 && !(seals & F_SEAL_SHRINK)) {
        seals = fcntl(fds[0], F_ADD_SEALS, F_SEAL_SHRINK) == 0 ? F_SEAL_SHRINK : -1;
    }
    uint64_t bytes;
    struct err ignored;
    if (seals >= 0 && shm_size(fds[0], &bytes, &ignored) == 0 && bytes >= sizeof *reader->page &&
        bytes <= 1u << 20) {
        reader->page = shm_map(fds[0], true, &reader->page_bytes, &ignored);
    }
    close(fds[0]);
    reader->event_fd = fds[1];
    return 0;
}

void readers_know(struct readers *r, uint64_t segment)
{
    readers_forget(r, segment);
    if (segment == 0) {
        return;
    }
    struct reader *reader = find(r, 0);
    if (!reader && r->n < READERS_MAX) {
        reader = &r->reader[r->n++];
    }
    if (!reader) {
        log_warn("no place for reader %" PRIu64 ": it is not woken", segment);
        return;
    }
    *reader = (struct reader){ .segment = segment, .event_fd = -1 };
    struct err err;
    if (take(r, reader, &err) < 0) {
        /* Normal when its client has just left. */
        log_debug("reader %" PRIu64 ": %s: it is not woken", segment, err.text);
    }
}

void readers_forget(struct readers *r, uint64_t segment)
{
    struct reader *reader = segment != 0 ? find(r, segment) : NULL;
    if (reader) {
        drop(reader);
    }
}

void readers_wake(struct readers *r, uint64_t segment)
{
    if (segment == 0) {
        return;
    }
    struct reader *reader = find(r, segment);
    if (!reader) {
        readers_know(r, segment);
        reader = find(r, segment);
    }
    if (!reader || reader->event_fd < 0) {
        return;
    }
    if (reader->page &&
        atomic_exchange_explicit(&reader->page->waiting, 0, memory_order_seq_cst) == 0) {
        return;
    }
    /* The flag belongs to the open file, which the client shares: set again each time, so that a full counter cannot hold us. */
    fcntl(reader->event_fd, F_SETFL, O_RDWR | O_NONBLOCK);
    uint64_t one = 1;
    ssize_t n = write(reader->event_fd, &one, sizeof one);
    (void)n; /* full: it is awake */
}

void readers_clear(struct readers *r)
{
    for (uint32_t i = 0; i < r->n; i++) {
        drop(&r->reader[i]);
    }
    r->n = 0;
}
