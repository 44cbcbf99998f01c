/* Does a device compute what the CPU computes? A small made-up model with weights of every common type runs on both: a
 * prompt, one token, a few at once. What a driver, a card or a compiler gets wrong shows here, before anybody's text does;
 * golden.h asks later whether it still computes what it did. Some ten milliseconds on a GPU, plus what the kernels take to load. */
#pragma once

#include "proto/err.h"
#include "proto/weights.h"
#include "worker/backend.h"

/* Runs it and leaves nothing behind. Errors: ERR_FAILED with the step and how far they are apart; the device's own. Loop
 * thread. */
int selftest_run(struct backend *device, struct err *err);

/* "auto" goes on without a device that ends or hangs whoever touches it, so this asks in a process of its own: whether the
 * backend of that name opens and passes; why not, in err. Before the caller has threads. */
bool selftest_passes(const char *device, const struct backend_options *options, struct err *err);

/* The model, mapped; the caller unmaps it. selftest_model.c. Errors: ERR_NO_MEMORY, ERR_IO. */
int selftest_model(struct weights *w, struct err *err);
