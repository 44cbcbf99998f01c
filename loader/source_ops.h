/* Between source.c and the three ways to read: the table of their functions, and the list of chunks they share. */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "loader/source.h"

/* One read: a whole number of pages but at a file's end. */
struct source_chunk {
    uint32_t file_idx;
    uint32_t size_bytes; /* what the span needs, from the chunk's start */
    uint64_t file_off, seg_off;
    uint32_t head; /* bytes before its span, for the sake of whole pages */
};

struct source_ops {
    const char *name;
    uint32_t chunk_bytes; /* of the largest chunk; a multiple of 4 KiB */
    int (*open)(struct source *s, struct err *err);
    int (*start)(struct source *s, struct err *err);
    /* More chunks may be begun: the first n (n_allowed becomes that). NULL: nobody but the owner looks. */
    void (*allow)(struct source *s, size_t n);
    /* Blocks until at least one more chunk is done (sets its flag), or fails. */
    int (*wait)(struct source *s, struct err *err);
    void (*close)(struct source *s);
};

struct source {
    const struct source_ops *ops;
    const struct source_file *files;
    uint32_t n_files;
    int n_threads;
    struct source_target target;
    struct source_chunk *chunks; /* owned, in the order of reading */
    bool *done;                  /* owned, one per chunk; the way's own thread writes it */
    size_t n_chunks;
    size_t n_leading;        /* chunks done from the first on */
    uint64_t upto;           /* bytes of their spans */
    bool held;               /* chunks are begun as they are allowed ... */
    size_t n_allowed;        /* ... and these are; the owner writes it, as `allow` says */
    uint64_t allowed;        /* bytes of their spans */
    uint32_t read_bytes_max; /* of the largest chunk; 0: the way's own */
    void *own;               /* the way's own state */
};

extern const struct source_ops source_pread_ops;
extern const struct source_ops source_mmap_ops;
extern const struct source_ops source_uring_ops;

/* Gives the segment's bytes [off, off + size) memory. Any thread. */
int source_allocate(const struct source *s, uint64_t off, uint64_t size_bytes, struct err *err);

/* Reads a chunk with pread. direct: by the O_DIRECT descriptor where there is one. Any thread. */
int source_read_chunk(const struct source *s, const struct source_chunk *chunk, bool direct,
                      struct err *err);

/* The error of a file that ended inside a chunk. */
int source_short(const struct source *s, const struct source_chunk *chunk, uint64_t got,
                 struct err *err);
