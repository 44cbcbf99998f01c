/* Does this device still compute what it computed when the model first ran on it? A fixed prompt and two tokens, through
 * the prefill's and the decode's kernels; the logits' bits are hashed. The broker keeps the first answer and gives it to
 * every successor, which compares before it commits a token: a device that came back wrong from a fault is not believed.
 * Only for devices with memory of their own. Loop thread. */
#pragma once

#include "proto/err.h"
#include "worker/forward.h"
#include "worker/state.h"

#define GOLDEN_BYTES 40 /* "engine and model in hex-answer in hex", with its NUL */

/* Computes it, in a sequence that is forgotten again. engine: what of the build decides the bits.
 * Errors: ERR_FULL when the cache has no room, the device's. */
int golden_compute(struct forward *f, const struct model *m, struct state *s, uint64_t engine,
                   char out[GOLDEN_BYTES], struct err *err);

/* Whether two answers to the same question differ; answers to different questions do not. */
bool golden_differs(const char *was, const char *is);
