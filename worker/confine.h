/* The worker after set-up: it keeps its descriptors, takes more from the keeper, speaks AF_UNIX, and runs its threads. No
 * files by name, no other sockets, no births, no new executable memory. Linux seccomp-bpf; libc only.
 * What is not allowed fails with EPERM (a library's optional probe is no reason to die). */
#pragma once

#include "proto/err.h"

/* For this thread and all that it starts; also no new privileges. Call it before threads are started that must be confined,
 * or all at once: the filter is laid on every thread. Errors: ERR_UNSUPPORTED where the kernel has no seccomp. */
int confine_worker(struct err *err);
