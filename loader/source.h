/* Where the bytes of a model come from: three ways to bring the data sections of its files into the segment.
 *
 *   uring   direct reads, large, aligned, many in flight, past the page cache (source_uring.c)
 *   pread   a pool of threads; where io_uring is not allowed, and the only one of the direct programs
 *   mmap    the files mapped and copied from; when asked for: the page cache stays warm
 *
 * A source is opened with everything that needs rights (descriptors, ring, threads), before the process gives its
 * rights up; then started with a plan; then waited for. The segment's memory is touched step by step, ahead of the
 * reads or by them: allocating 35 GB at once costs more than reading them.
 * One thread owns a source; the source's own threads touch nothing else. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/err.h"

#define SOURCE_PARTS_MAX 256 /* files of one model */

enum source_kind { SOURCE_AUTO, SOURCE_URING, SOURCE_PREAD, SOURCE_MMAP, SOURCE_N_KINDS };

/* One open file of the model. */
struct source_file {
    int fd;        /* O_RDONLY */
    int direct_fd; /* the same with O_DIRECT, or -1 where the file system has none */
    uint64_t size; /* when it was opened */
    dev_t dev;     /* what tells this file from another of its name */
    ino_t ino;
    int64_t mtime_ns;
};

/* One data section: where it stands in its file and where it goes in the segment. Both offsets are equal modulo
 * 4 KiB, and no two spans share a page of the segment, nor does anything that must stay as it is. */
struct source_span {
    uint32_t file_idx;
    uint64_t file_off, seg_off, size_bytes;
};

/* The segment being filled. */
struct source_target {
    int fd;        /* borrowed */
    uint8_t *base; /* writable mapping of the whole segment, borrowed */
    uint64_t size_bytes;
};

struct source; /* opaque */

/* kind of a name ("auto", "uring", "pread", "mmap"), or -1. */
int source_kind_of_name(const char *name);

/* Opens a source over files (borrowed while it lives). SOURCE_AUTO takes io_uring where that is allowed and pread
 * otherwise, and says so in the log; a kind asked for by name fails instead. n_threads: of the pread pool, 0 chooses.
 * ERR_UNSUPPORTED, ERR_IO, ERR_NO_MEMORY. */
struct source *source_open(enum source_kind kind, const struct source_file *files, uint32_t n_files,
                           int n_threads, struct err *err);

/* "uring", "pread" or "mmap". */
const char *source_name(const struct source *s);

/* Before source_start: of the spans only that is read which source_allow has allowed, by reads of at most so many bytes
 * (rounded to whole pages); what that comes to is returned. */
uint32_t source_hold(struct source *s, uint64_t read_bytes_max);

/* So many bytes of the spans, in their order, may be read; grows only. What lies in a read that reaches beyond waits. */
void source_allow(struct source *s, uint64_t upto);

/* All that was allowed is there, and not all: source_wait would wait for ever. */
bool source_is_held(const struct source *s);

/* Begins to read spans (in this order, copied) into the target (borrowed until closed). Once. */
int source_start(struct source *s, const struct source_target *target,
                 const struct source_span *spans, uint32_t n_spans, struct err *err);

/* Waits until more is there: *upto counts the bytes of the spans that are in place, in their order. It grows with each call
 * until it is all of them. ERR_BAD_FILE when a file became shorter, ERR_IO, ERR_NO_MEMORY. */
int source_wait(struct source *s, uint64_t *upto, struct err *err);

/* Stops what is in flight and frees; accepts NULL. */
void source_close(struct source **s);
