/* The segment as its writer holds it: sized once the header is known, sealed against any other size, then filled
 * behind a watermark that readers wait for. Loader's main thread. */
#pragma once

#include <stdint.h>

#include "proto/err.h"
#include "proto/weights.h"

struct publish {
    int fd;        /* borrowed */
    uint8_t *base; /* owned writable mapping of the whole segment */
    uint64_t size_bytes;
    uint64_t data_off; /* where the data section begins */
    uint64_t data_bytes;
};

/* Writes the manifest into fd, seals its size and maps it. file_data_off, data_bytes, digest and version as in
 * weights_builder_write. ERR_NO_MEMORY, ERR_BAD_FILE, ERR_IO. */
int publish_begin(struct publish *p, int fd, struct weights_builder *manifest,
                  uint64_t file_data_off, uint64_t data_bytes, uint64_t digest, uint32_t version,
                  struct err *err);

/* Tells the readers that so many bytes, in the order of reading, are in place. Grows only. */
void publish_advance(struct publish *p, uint64_t watermark);

/* Unmaps; accepts a zeroed one. */
void publish_end(struct publish *p);
