/* The reference device: a backend whose answers are a hash chain (proto/chain.h) instead of a model's. For trials of everything
 * around the engine: `--device reference` runs the whole worker with any model file, at the speed of its bookkeeping, and
 * whoever reads a stream can check it from its content. Never what "auto" means. */
#pragma once

#include "worker/backend.h"

/* backend.c's row. name: "reference", or "reference:RATE" for at most RATE rows a second, prompts included
 * (REFERENCE_RATE_MIN or more). Errors: ERR_USAGE, ERR_NO_MEMORY. */
struct backend *reference_open(const char *name, const struct backend_options *options,
                               struct err *err);

#define REFERENCE_RATE_MIN 1000u /* a step of 512 rows stays below what the watchdog allows */
