/* What hearth plan's files share. */
#pragma once

#include <stddef.h>

#include "proto/err.h"

/* The file of a model that the running service knows by this name. run: its runtime directory or NULL. Errors: ERR_NOT_FOUND,
 * ERR_UNREACHABLE where nothing runs. plan_service.c; plan_alone.c for a build without the client library. */
int plan_find_file(const char *run, const char *name, char *path, size_t size, struct err *err);
