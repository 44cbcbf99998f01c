/* Direct reads by io_uring: 1 MiB each, 32 in flight, from the disk into the segment without the page cache.
 *
 * The ring is born disabled, its files are registered, then it is restricted to reads of those files, then it is
 * enabled: after that not even this process can make it do anything else. liburing 2.3 does not export the
 * restriction, so it is a raw system call.
 * A thread touches the segment's memory ahead of the reads: a page fault inside a submission would hold all of them. */
#include <errno.h>
#include <inttypes.h>
#include <liburing.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "loader/source_ops.h"
#include "proto/bytes.h"
#include "proto/log.h"
#include "proto/weights.h"

#define CHUNK_BYTES  (1u << 20) /* a Gen4 drive is saturated by this times the depth */
#define DEPTH        32
#define AHEAD_BYTES  (512ull << 20) /* memory touched before its read is asked for */
#define TOUCH_CHUNKS 8              /* chunks touched in one go */

struct flight {
    size_t chunk; /* index; SIZE_MAX when free */
    uint64_t got; /* bytes of it that are there */
    bool cached;  /* the rest comes through the page cache */
};

struct ring {
    struct io_uring uring;
    bool ring_open;
    struct flight flights[DEPTH];
    int n_flights;
    size_t next; /* chunk to be submitted */

    pthread_t toucher;
    bool toucher_runs;
    pthread_mutex_t lock; /* for what follows */
    pthread_cond_t news;
    bool started, stopping, failed;
    size_t n_touched; /* chunks whose memory is there */
    size_t n_wanted;  /* chunks that may be touched */
    struct err err;
};

static int restrict_ring(struct ring *r, struct err *err)
{
    struct io_uring_restriction rules[3] = { 0 };
    rules[0].opcode = IORING_RESTRICTION_SQE_OP;
    rules[0].sqe_op = IORING_OP_READ;
    rules[1].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    rules[1].sqe_flags = IOSQE_FIXED_FILE;
    rules[2].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    rules[2].sqe_flags = IOSQE_FIXED_FILE;
    int fd = r->uring.ring_fd;
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_RESTRICTIONS, rules, 3) < 0) {
        return err_set_errno(err, ERR_UNSUPPORTED, "restrict io_uring to reads");
    }
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0) {
        return err_set_errno(err, ERR_UNSUPPORTED, "enable io_uring");
    }
    return 0;
}

static void *touch_thread(void *arg)
{
    struct source *s = arg;
    struct ring *r = s->own;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (!r->stopping && (!r->started || r->failed || r->n_touched >= r->n_wanted)) {
            pthread_cond_wait(&r->news, &r->lock);
        }
        if (r->stopping) {
            break;
        }
        size_t from = r->n_touched, to = from + TOUCH_CHUNKS;
        to = to < r->n_wanted ? to : r->n_wanted;
        pthread_mutex_unlock(&r->lock);

        struct err err = { 0 };
        int rc = 0;
        for (size_t i = from; rc == 0 && i < to; i++) {
            rc = source_allocate(s, s->chunks[i].seg_off, s->chunks[i].size_bytes, &err);
        }

        pthread_mutex_lock(&r->lock);
        if (rc == 0) {
            r->n_touched = to;
        } else {
            r->failed = true;
            r->err = err;
        }
        pthread_cond_broadcast(&r->news);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static void ring_close(struct source *s)
{
    struct ring *r = s->own;
    if (!r) {
        return;
    }
    if (r->toucher_runs) {
        pthread_mutex_lock(&r->lock);
        r->stopping = true;
        pthread_cond_broadcast(&r->news);
        pthread_mutex_unlock(&r->lock);
        pthread_join(r->toucher, NULL);
    }
    /* The kernel writes into the segment until the last read has ended. */
    while (r->ring_open && r->n_flights > 0) {
        struct io_uring_cqe *cqe;
        int rc = io_uring_wait_cqe(&r->uring, &cqe);
        if (rc == -EINTR) {
            continue;
        }
        if (rc < 0) {
            break;
        }
        io_uring_cqe_seen(&r->uring, cqe);
        r->n_flights--;
    }
    if (r->ring_open) {
        io_uring_queue_exit(&r->uring);
    }
    pthread_cond_destroy(&r->news);
    pthread_mutex_destroy(&r->lock);
    free(r);
    s->own = NULL;
}

/* Files 2 i and 2 i + 1 of the ring: part i for direct and for cached reads. */
static int register_files(struct source *s, struct err *err)
{
    struct ring *r = s->own;
    int fds[2 * SOURCE_PARTS_MAX];
    for (uint32_t i = 0; i < s->n_files; i++) {
        fds[2 * i] = s->files[i].direct_fd >= 0 ? s->files[i].direct_fd : s->files[i].fd;
        fds[2 * i + 1] = s->files[i].fd;
    }
    int rc = io_uring_register_files(&r->uring, fds, 2 * s->n_files);
    if (rc < 0) {
        errno = -rc;
        return err_set_errno(err, ERR_UNSUPPORTED, "register the files with io_uring");
    }
    return 0;
}

static int ring_open(struct source *s, struct err *err)
{
    struct ring *r = calloc(1, sizeof *r);
    if (!r) {
        return err_set(err, ERR_NO_MEMORY, "no memory for io_uring");
    }
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->news, NULL);
    for (int i = 0; i < DEPTH; i++) {
        r->flights[i].chunk = SIZE_MAX;
    }
    s->own = r;
    struct io_uring_params params = { .flags = IORING_SETUP_R_DISABLED };
    int rc = io_uring_queue_init_params(DEPTH, &r->uring, &params);
    if (rc < 0) {
        errno = -rc;
        err_set_errno(err, ERR_UNSUPPORTED, "io_uring");
        goto fail;
    }
    r->ring_open = true;
    if (register_files(s, err) < 0 || restrict_ring(r, err) < 0) {
        goto fail;
    }
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    rc = pthread_create(&r->toucher, NULL, touch_thread, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc) {
        errno = rc;
        err_set_errno(err, ERR_NO_MEMORY, "a thread for io_uring");
        goto fail;
    }
    r->toucher_runs = true;
    return 0;
fail:
    ring_close(s);
    return -1;
}

static int ring_start(struct source *s, struct err *err)
{
    (void)err;
    struct ring *r = s->own;
    pthread_mutex_lock(&r->lock);
    r->started = true;
    r->n_wanted = AHEAD_BYTES / CHUNK_BYTES < s->n_allowed ? AHEAD_BYTES / CHUNK_BYTES
                                                           : s->n_allowed;
    pthread_cond_broadcast(&r->news);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

/* Puts the rest of a chunk into the submission queue, which has room for every flight. */
static void submit(struct source *s, int slot)
{
    struct ring *r = s->own;
    const struct flight *f = &r->flights[slot];
    const struct source_chunk *chunk = &s->chunks[f->chunk];
    uint64_t want = chunk->size_bytes - f->got;
    if (!f->cached) {
        want = align_up(want, WEIGHTS_PAGE);
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);
    io_uring_prep_read(sqe, (int)(2 * chunk->file_idx + f->cached),
                       s->target.base + chunk->seg_off + f->got, (unsigned)want,
                       chunk->file_off + f->got);
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, (uint64_t)slot);
}

/* Fills free flights with chunks whose memory is there; waits for memory only when nothing flies. */
static int submit_all(struct source *s, struct err *err)
{
    struct ring *r = s->own;
    pthread_mutex_lock(&r->lock);
    size_t wanted = r->next + AHEAD_BYTES / CHUNK_BYTES;
    r->n_wanted = wanted < s->n_allowed ? wanted : s->n_allowed;
    pthread_cond_broadcast(&r->news);
    while (r->n_flights == 0 && r->next < s->n_allowed && r->n_touched <= r->next && !r->failed) {
        pthread_cond_wait(&r->news, &r->lock);
    }
    size_t ready = r->n_touched;
    bool failed = r->failed;
    if (failed && err) {
        *err = r->err;
    }
    pthread_mutex_unlock(&r->lock);
    if (failed) {
        return -1;
    }
    for (int slot = 0; slot < DEPTH && r->next < ready; slot++) {
        if (r->flights[slot].chunk == SIZE_MAX) {
            r->flights[slot] = (struct flight){ .chunk = r->next++ };
            r->n_flights++;
            submit(s, slot);
        }
    }
    return 0;
}

/* What one completion means: the chunk is done, goes on, goes on by the page cache, or the load fails. */
static int land(struct source *s, int slot, int result, struct err *err)
{
    struct ring *r = s->own;
    struct flight *f = &r->flights[slot];
    const struct source_chunk *chunk = &s->chunks[f->chunk];
    if (result == -EINVAL && !f->cached) {
        f->cached = true; /* the file system has other ideas of alignment */
    } else if (result < 0 && result != -EINTR && result != -EAGAIN) {
        errno = -result;
        err_set_errno(err, ERR_IO, "read at byte %" PRIu64, chunk->file_off + f->got);
        goto fail;
    } else if (result == 0) {
        source_short(s, chunk, f->got, err);
        goto fail;
    } else if (result > 0) {
        f->got += (uint64_t)result;
        f->cached = f->cached || f->got % WEIGHTS_PAGE != 0;
    }
    if (f->got < chunk->size_bytes) {
        submit(s, slot);
        return 0;
    }
    s->done[f->chunk] = true;
    f->chunk = SIZE_MAX;
    r->n_flights--;
    return 0;
fail:
    f->chunk = SIZE_MAX;
    r->n_flights--;
    return -1;
}

static int ring_wait(struct source *s, struct err *err)
{
    struct ring *r = s->own;
    if (submit_all(s, err) < 0) {
        return -1;
    }
    int rc = io_uring_submit_and_wait(&r->uring, 1);
    if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY) {
        errno = -rc;
        return err_set_errno(err, ERR_IO, "io_uring");
    }
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&r->uring, &cqe) == 0) {
        int slot = (int)io_uring_cqe_get_data64(cqe), result = cqe->res;
        io_uring_cqe_seen(&r->uring, cqe);
        if (land(s, slot, result, err) < 0) {
            return -1;
        }
    }
    /* The disk goes on while the caller works on what has come. */
    if (submit_all(s, err) < 0) {
        return -1;
    }
    io_uring_submit(&r->uring);
    return 0;
}

const struct source_ops source_uring_ops = {
    .name = "uring",
    .chunk_bytes = CHUNK_BYTES,
    .open = ring_open,
    .start = ring_start,
    .wait = ring_wait,
    .close = ring_close,
};
