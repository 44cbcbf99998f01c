#include "loader/source.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loader/source_ops.h"
#include "proto/bytes.h"
#include "proto/log.h"
#include "proto/shm.h"
#include "proto/weights.h"

/* The ways of this build; an engine-only build has the pread pool alone. */
static const struct source_ops *const ways[SOURCE_N_KINDS] = {
#ifdef HEARTH_SOURCE_ALL
    [SOURCE_URING] = &source_uring_ops,
    [SOURCE_MMAP] = &source_mmap_ops,
#endif
    [SOURCE_PREAD] = &source_pread_ops,
};

static const char *const names[SOURCE_N_KINDS] = { "auto", "uring", "pread", "mmap" };

int source_kind_of_name(const char *name)
{
    for (int kind = 0; kind < SOURCE_N_KINDS; kind++) {
        if (strcmp(names[kind], name) == 0) {
            return kind;
        }
    }
    return -1;
}

const char *source_name(const struct source *s)
{
    return s->ops->name;
}

struct source *source_open(enum source_kind kind, const struct source_file *files, uint32_t n_files,
                           int n_threads, struct err *err)
{
    struct source *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(err, ERR_NO_MEMORY, "no memory for a source");
        return NULL;
    }
    s->files = files;
    s->n_files = n_files;
    s->n_threads = n_threads;
    enum source_kind first = kind == SOURCE_AUTO ? SOURCE_URING : kind;
    s->ops = ways[first];
    if (s->ops && s->ops->open(s, err) == 0) {
        return s;
    }
    if (!s->ops) {
        err_set(err, ERR_UNSUPPORTED, "this build does not read by %s", names[first]);
    }
    if (kind == SOURCE_AUTO) {
        if (s->ops) {
            log_info("source: %s: pread threads instead", err ? err->text : "uring refused");
        }
        s->ops = ways[SOURCE_PREAD];
        if (s->ops->open(s, err) == 0) {
            return s;
        }
    }
    s->ops = NULL;
    source_close(&s);
    return NULL;
}

/* Cuts the spans into chunks: whole pages, the first and the last ones reaching beyond the span. */
static int cut(struct source *s, const struct source_span *spans, uint32_t n_spans, struct err *err)
{
    uint64_t step = s->read_bytes_max ? s->read_bytes_max : s->ops->chunk_bytes;
    size_t n = 0;
    for (uint32_t i = 0; i < n_spans; i++) {
        n += (size_t)(spans[i].size_bytes / step) + 2;
    }
    s->chunks = calloc(n + 1, sizeof *s->chunks);
    s->done = calloc(n + 1, sizeof *s->done);
    if (!s->chunks || !s->done) {
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu reads", n);
    }
    for (uint32_t i = 0; i < n_spans; i++) {
        const struct source_span *p = &spans[i];
        uint64_t head = p->file_off % WEIGHTS_PAGE;
        assert(p->file_idx < s->n_files && p->seg_off % WEIGHTS_PAGE == head);
        assert(p->seg_off <= s->target.size_bytes &&
               p->size_bytes <= s->target.size_bytes - p->seg_off);
        uint64_t file_off = p->file_off - head, seg_off = p->seg_off - head;
        uint64_t size_left = p->size_bytes + head;
        while (size_left && p->size_bytes) {
            uint64_t size = size_left < step ? size_left : step;
            assert(s->n_chunks < n);
            s->chunks[s->n_chunks++] = (struct source_chunk){ .file_idx = p->file_idx,
                                                              .size_bytes = (uint32_t)size,
                                                              .file_off = file_off,
                                                              .seg_off = seg_off,
                                                              .head = (uint32_t)head };
            head = 0;
            file_off += size;
            seg_off += size;
            size_left -= size;
        }
    }
    return 0;
}

int source_start(struct source *s, const struct source_target *target,
                 const struct source_span *spans, uint32_t n_spans, struct err *err)
{
    assert(!s->chunks);
    s->target = *target;
    if (cut(s, spans, n_spans, err) < 0) {
        return -1;
    }
    s->n_allowed = s->held ? 0 : s->n_chunks;
    return s->n_chunks ? s->ops->start(s, err) : 0;
}

uint32_t source_hold(struct source *s, uint64_t read_bytes_max)
{
    uint64_t most = read_bytes_max & ~(uint64_t)(WEIGHTS_PAGE - 1);
    assert(!s->chunks);
    most = most < WEIGHTS_PAGE ? WEIGHTS_PAGE : most;
    s->held = true;
    s->read_bytes_max = most < s->ops->chunk_bytes ? (uint32_t)most : s->ops->chunk_bytes;
    return s->read_bytes_max;
}

void source_allow(struct source *s, uint64_t upto)
{
    size_t n = s->n_allowed;
    while (s->held && n < s->n_chunks &&
           s->allowed + s->chunks[n].size_bytes - s->chunks[n].head <= upto) {
        s->allowed += s->chunks[n].size_bytes - s->chunks[n].head;
        n++;
    }
    if (n == s->n_allowed) {
        return;
    }
    if (s->ops->allow) {
        s->ops->allow(s, n);
    } else {
        s->n_allowed = n;
    }
}

bool source_is_held(const struct source *s)
{
    return s->n_leading == s->n_allowed && s->n_leading < s->n_chunks;
}

int source_wait(struct source *s, uint64_t *upto, struct err *err)
{
    size_t before = s->n_leading;
    while (s->n_leading == before && s->n_leading < s->n_chunks) {
        if (s->ops->wait(s, err) < 0) {
            return -1;
        }
        while (s->n_leading < s->n_chunks && s->done[s->n_leading]) {
            s->upto += s->chunks[s->n_leading].size_bytes - s->chunks[s->n_leading].head;
            s->n_leading++;
        }
    }
    *upto = s->upto;
    return 0;
}

void source_close(struct source **s)
{
    if (!*s) {
        return;
    }
    if ((*s)->ops) {
        (*s)->ops->close(*s);
    }
    free((*s)->chunks);
    free((*s)->done);
    free(*s);
    *s = NULL;
}

int source_allocate(const struct source *s, uint64_t off, uint64_t size_bytes, struct err *err)
{
    uint64_t start = off & ~(uint64_t)(WEIGHTS_PAGE - 1);
    uint64_t end = align_up(off + size_bytes, WEIGHTS_PAGE);
    end = end < s->target.size_bytes ? end : s->target.size_bytes;
    if (shm_populate(s->target.base + start, end - start, err) < 0) {
        return err_wrap(err, "segment from byte %" PRIu64, start);
    }
    return 0;
}

int source_short(const struct source *s, const struct source_chunk *chunk, uint64_t got,
                 struct err *err)
{
    return err_set(err, ERR_BAD_FILE,
                   "byte %" PRIu64 ": the file ends here, it had %" PRIu64
                   " bytes when it was opened",
                   chunk->file_off + got, s->files[chunk->file_idx].size);
}

int source_read_chunk(const struct source *s, const struct source_chunk *chunk, bool direct,
                      struct err *err)
{
    const struct source_file *file = &s->files[chunk->file_idx];
    direct = direct && file->direct_fd >= 0;
    uint8_t *to = s->target.base + chunk->seg_off;
    uint64_t got = 0;
    while (got < chunk->size_bytes) {
        /* Direct reads are whole pages; what they bring beyond the span falls into its last page. */
        uint64_t want = chunk->size_bytes - got;
        ssize_t n = pread(direct ? file->direct_fd : file->fd, to + got,
                          (size_t)(direct ? align_up(want, WEIGHTS_PAGE) : want),
                          (off_t)(chunk->file_off + got));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && direct && errno == EINVAL) {
            direct = false; /* the file system accepted O_DIRECT and has other ideas of alignment */
            continue;
        }
        if (n < 0 && errno == EFAULT) {
            /* The kernel could not fault the segment's page in. */
            return err_set(err, ERR_NO_MEMORY, "no memory for the segment's byte %" PRIu64,
                           chunk->seg_off + got);
        }
        if (n < 0) {
            return err_set_errno(err, ERR_IO, "read at byte %" PRIu64, chunk->file_off + got);
        }
        if (n == 0) {
            return source_short(s, chunk, got, err);
        }
        got += (uint64_t)n;
        if (got % WEIGHTS_PAGE) {
            direct = false; /* a short read off the page grid goes on through the page cache */
        }
    }
    return 0;
}
