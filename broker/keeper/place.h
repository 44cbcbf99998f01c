/* The runtime directory: made, locked, its two listeners opened. Libc only. */
#pragma once

#include "proto/err.h"
#include "proto/heritage.h"

#define PLACE_PATH_MAX 108 /* sun_path */

struct place {
    char run[HERITAGE_RUN_MAX];
    int lock_fd, router_fd, attach_fd;
};

/* The directory of heritage_find_run. Made with mode 0700 when it is
 * not there, refused when it is another user's. Locks $RUN/lock (F_OFD_SETLK): ERR_BUSY when a keeper or one of its orphans lives. */
int place_open(struct place *p, const char *run, struct err *err);

/* Removes the sockets; the lock goes with the last descriptor. */
void place_close(struct place *p);
