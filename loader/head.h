/* The leading bytes of a file, read as far as the parser asks and no further: a header of 8 MB in front of 35 GB.
 * Private memory, never a mapping of the file: a file that shrinks is an error here, not a signal.
 * Loader's main thread, before the data is read. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

#define HEAD_MAX  (256ull << 20) /* bytes of one file's metadata; real files stay below 50 MB */
#define HEAD_STEP (1u << 20)     /* bytes a read; what may be read in vain */

struct head {
    int fd;             /* borrowed; -1 when all bytes were given */
    uint64_t file_size; /* as it was when the file was opened: what offsets are judged by */
    uint8_t *base;      /* owned mapping, or borrowed bytes when fd is -1 */
    uint64_t room;      /* bytes of the mapping */
    uint64_t filled;    /* bytes read so far, from the file's start */
};

/* Over an open file of file_size bytes. ERR_NO_MEMORY. */
int head_init(struct head *h, int fd, uint64_t file_size, struct err *err);

/* Over bytes in memory that are the whole file (tests, fuzzing). data is borrowed. */
void head_init_bytes(struct head *h, uint8_t *data, uint64_t size);

/* Makes the first `upto` bytes readable at base. upto is at most file_size. ERR_BAD_FILE beyond HEAD_MAX or when
 * the file became shorter, ERR_IO. */
int head_fill(struct head *h, uint64_t upto, struct err *err);

void head_clear(struct head *h);
