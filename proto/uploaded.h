/* How far the worker has come with weights that are loaded by a window (loader/window.h): one word in a segment of its own,
 * written by the worker that uploads, read by the loader, which waits on it, and by the broker, which judges who of the two is slow.
 * Never set back: another load, and another worker, gets another segment. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"

#define UPLOADED_SEGMENT_BYTES 4096u

struct uploaded {
    _Atomic uint64_t bytes; /* of the data, as the watermark counts: tensors up to here are on the
                            * device, nobody reads them here any more */
    _Atomic uint32_t bell;  /* changes with every word; a futex */
};

/* The word in a segment (fd borrowed). NULL: ERR_BAD_INPUT, ERR_NO_MEMORY. */
struct uploaded *uploaded_map(int fd, bool writable, struct err *err);
void uploaded_unmap(struct uploaded *u); /* accepts NULL */

/* Says so, and wakes who waits. The one writer's. */
void uploaded_tell(struct uploaded *u, uint64_t bytes);

uint64_t uploaded_bytes(const struct uploaded *u);

/* Sleeps until at least so many are said, or for timeout_ms; returns what is said then. */
uint64_t uploaded_wait(const struct uploaded *u, uint64_t bytes, int timeout_ms);
