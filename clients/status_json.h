/* The broker's Status message as the JSON text of CLI.md: the one place that knows both. */
#pragma once

#include "proto/err.h"
#include "proto/message.h"

/* malloc'd, the caller's to free; NULL: ERR_NO_MEMORY. */
char *status_json(const Hearth__Status *status, struct err *err);
