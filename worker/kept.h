/* Weights that this process has mapped: those of bound models, and, where the device reads the host's memory by itself (backend.h: pin), those of
 * models that were unbound and stay in RAM. The next bind of the same segment finds mapping and registration as they are. On other backends a mapping goes with its
 * model. Letting go takes a while (the registration is given back in the background, gigabytes are unmapped in pieces): kept_turn
 * says when it is done. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/weights.h"
#include "worker/backend.h"

#define KEPT_MAX BACKEND_PINS_MAX

struct kept_segment {
    uint64_t segment; /* the broker's number; 0: free */
    struct weights weights;
    uint32_t n_users; /* models that are bound to it */
    bool leaving;     /* as soon as nobody uses it */
    uint64_t used;    /* a count that grows: who was used last */
};

struct kept {
    struct backend *backend; /* borrowed */
    struct kept_segment list[KEPT_MAX];
    uint64_t uses;
};

/* The weights of a segment that is here and stays, or NULL. */
const struct weights *kept_find(struct kept *k, uint64_t segment);

/* Maps a segment that is not here; fd borrowed. Errors: weights_map's, ERR_FULL. */
const struct weights *kept_map(struct kept *k, uint64_t segment, int fd, struct err *err);

/* A model begins and ends to use them. Whoever is used last keeps weights only if they are whole and the backend reads them where they stand. */
void kept_use(struct kept *k, const struct weights *w);
void kept_leave(struct kept *k, const struct weights *w);

/* The device may read these by itself from now on; nothing where it cannot, or while they are not whole. */
void kept_pin(struct kept *k, const struct weights *w);

/* The segment leaves RAM. False: it is not here. */
bool kept_forget(struct kept *k, uint64_t segment);

/* A piece of what leaves. *gone: the segment of which nothing is left, 0: none. Returns true when there is more to do. */
bool kept_turn(struct kept *k, uint64_t *gone);

/* Fills with the segments that are here, leaving ones too; n of them. */
uint32_t kept_list(const struct kept *k, uint64_t segments[KEPT_MAX]);

/* Unmaps all; nobody uses any. Waits for the device. */
void kept_clear(struct kept *k);
