/* The sandbox of the processes that read untrusted bytes or own a device: a seccomp filter over all threads, for life.
 * What is not on a profile's list fails with EPERM. Applied after files, ring and threads are open, before the first
 * byte is parsed. Source: Linux seccomp(2), classic BPF. */
#pragma once

#include "proto/err.h"

enum confine_profile {
    CONFINE_LOADER, /* reads by descriptors and by its ring, writes its segment; no files, sockets, processes */
    CONFINE_TEXT, /* AF_UNIX sockets and threads for its line to the broker; no files, devices, io_uring */
    CONFINE_WORKER, /* AF_UNIX sockets, threads, the memory it takes from the keeper; no files by name, no births */
    CONFINE_N_PROFILES,
};

/* No new privileges, then the filter on every thread. ERR_UNSUPPORTED where the kernel has none: the caller decides
 * whether to go on. A build with a sanitizer goes unconfined and says so in the log: its leak check is a debugger. */
int confine(enum confine_profile profile, struct err *err);
