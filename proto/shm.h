/* Shared memory objects: create, size, seal, map. Libc only; any thread.
 * A memfd has no name and mode 0600; its size is sealed at birth (weights: by its loader). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

/* A memfd of `bytes` (0: unsized), close-on-exec. name is for /proc only. Returns the descriptor, owned, or -1.
 * With sealed, shrinking and growing are refused from now on. Memory is reserved (fallocate) so that a
 * full machine is an error here and never a SIGBUS later: ERR_NO_MEMORY with the size. */
int shm_create(const char *name, uint64_t bytes, bool sealed, struct err *err);

/* The same, sealed and without memory behind it yet: who writes there asks for it first (shm_populate). */
int shm_create_sparse(const char *name, uint64_t bytes, struct err *err);

/* Puts memory behind [from, from + bytes) of a writable mapping, which stays as it is where some was: a full machine is an
 * error here and not a SIGBUS at the first touch. Any thread. ERR_NO_MEMORY. */
int shm_populate(void *from, uint64_t bytes, struct err *err);

/* Refuses all later resizing; further seals too. */
int shm_seal(int fd, struct err *err);

/* Size of the object behind fd. */
int shm_size(int fd, uint64_t *bytes, struct err *err);

/* A new descriptor of the same object that can only be read. Owned. */
int shm_reopen_readonly(int fd, struct err *err);

/* A mapping of the whole object. NULL on error. bytes gets its length. */
void *shm_map(int fd, bool writable, size_t *bytes, struct err *err);
void shm_unmap(const void *base, size_t bytes);
