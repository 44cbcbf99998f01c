/* What upload.cu (through the host's ring) and pinned.cu (the device reads the segment itself) share. Loop thread. */
#pragma once

#include "worker/cuda/tiles.cuh"

extern "C" {
#include "proto/weights.h"
}

#define BUFFER_BYTES ((size_t)8 << 20) /* long enough for the bus, short beside a model */
#define BUFFERS      2

/* One of the ring: pinned here, its copy there, and when the device is done with both. */
struct buffer {
    uint8_t *host, *device;
    cudaEvent_t fetched, done; /* fetched: the copy there is filled, when pinned.cu fills it */
};

struct cuda_uploads {
    struct buffer buffers[BUFFERS];
    uint32_t turn;
    struct team *team; /* owned */
};

struct cuda_tensor {
    struct cuda_tensor *next;
    struct weights_tensor from;      /* data in the mapping: read when it has arrived */
    uint8_t *device;                 /* owned; by the first one of a stack of experts */
    uint64_t spilled_bytes;          /* device is pinned host memory of that many; 0: it is not */
    struct cuda_streamed *streamed;  /* and it goes on from there; or NULL */
    uint64_t row_bytes, group_bytes; /* of a row there; of 16 rows here, 0: as there */
    bool there;
};

/* pinned.cu. Brings a tensor to the device without the host: 1, or 0 where that cannot be done: not all of it is registered,
 * its rows stand as a CPU wants them, or it goes to the host's memory. Not waited for: cuda_fetch_end makes what is launched from then
 * on wait, and stands between this and everything else that uses the buffers. */
int cuda_fetch(struct cuda_backend *c, const struct cuda_tensor *own, struct err *err);
int cuda_fetch_end(struct cuda_backend *c, struct err *err);
