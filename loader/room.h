/* Is there memory for a segment? Asked after the head is read and before the data is: the kernel's own estimate of
 * what can be had without swapping, and the budget we were given. One thread. */
#pragma once

#include <stdint.h>

#include "proto/err.h"

#define ROOM_NO_BUDGET UINT64_MAX

/* Opens the kernel's estimate (/proc/meminfo), while files can still be opened. Returns a descriptor, or -1 where
 * there is none, which room_check accepts. */
int room_open(void);

/* ERR_NO_FIT with both numbers when need_bytes is more than the budget or than what is available now. */
int room_check(int fd, uint64_t need_bytes, uint64_t budget_bytes, struct err *err);
