/* The files mapped and copied from, when asked for: their pages stay in the cache, and what is there already comes
 * at the speed of memory. The copy is a write() of mapped pages into the segment, because a system call that meets
 * a page beyond the end of a file that shrank returns an error, where a copy of our own would be a signal. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "loader/source_ops.h"
#include "proto/log.h"

#define CHUNK_BYTES (4u << 20)

struct maps {
    uint8_t *base[SOURCE_PARTS_MAX];
    size_t next;
};

static void maps_close(struct source *s)
{
    struct maps *m = s->own;
    for (uint32_t i = 0; m && i < s->n_files; i++) {
        if (m->base[i]) {
            munmap(m->base[i], (size_t)s->files[i].size);
        }
    }
    free(m);
    s->own = NULL;
}

static int maps_open(struct source *s, struct err *err)
{
    struct maps *m = calloc(1, sizeof *m);
    if (!m) {
        return err_set(err, ERR_NO_MEMORY, "no memory for the maps");
    }
    s->own = m;
    for (uint32_t i = 0; i < s->n_files; i++) {
        if (s->files[i].size == 0) {
            continue;
        }
        void *base = mmap(NULL, (size_t)s->files[i].size, PROT_READ, MAP_SHARED, s->files[i].fd, 0);
        if (base == MAP_FAILED) {
            err_set_errno(err, ERR_IO, "map a file of %" PRIu64 " bytes", s->files[i].size);
            maps_close(s);
            return -1;
        }
        madvise(base, (size_t)s->files[i].size, MADV_SEQUENTIAL);
        m->base[i] = base;
    }
    return 0;
}

static int maps_start(struct source *s, struct err *err)
{
    (void)s, (void)err;
    return 0;
}

static int maps_wait(struct source *s, struct err *err)
{
    struct maps *m = s->own;
    const struct source_chunk *chunk = &s->chunks[m->next];
    const uint8_t *from = m->base[chunk->file_idx] + chunk->file_off;
    uint64_t got = 0;
    while (got < chunk->size_bytes) {
        ssize_t n = pwrite(s->target.fd, from + got, (size_t)(chunk->size_bytes - got),
                           (off_t)(chunk->seg_off + got));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EFAULT) {
            return source_short(s, chunk, got, err);
        }
        if (n <= 0) {
            return err_set_errno(err, errno == ENOSPC ? ERR_NO_MEMORY : ERR_IO,
                                 "copy at byte %" PRIu64, chunk->file_off + got);
        }
        got += (uint64_t)n;
    }
    s->done[m->next++] = true;
    return 0;
}

const struct source_ops source_mmap_ops = {
    .name = "mmap",
    .chunk_bytes = CHUNK_BYTES,
    .open = maps_open,
    .start = maps_start,
    .wait = maps_wait,
    .close = maps_close,
};
