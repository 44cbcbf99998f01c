/* A file or standard input, whole. */
#pragma once

#include <stddef.h>

#include "proto/err.h"

/* Every byte of the file at `path` ("-": standard input), with a 0 behind; *len counts without it. Blocks. The caller frees.
 * NULL with err: ERR_IO, ERR_NO_FIT (longer than max bytes), ERR_NO_MEMORY. */
char *whole_read(const char *path, size_t max, size_t *len, struct err *err);
