#include "proto/uploaded.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "proto/shm.h"

static_assert(sizeof(struct uploaded) <= UPLOADED_SEGMENT_BYTES, "the word is in its segment");

struct uploaded *uploaded_map(int fd, bool writable, struct err *err)
{
    size_t bytes;
    void *base = shm_map(fd, writable, &bytes, err);
    if (base && bytes != UPLOADED_SEGMENT_BYTES) {
        err_set(err, ERR_BAD_INPUT, "a word of %zu bytes, %u are right", bytes,
                UPLOADED_SEGMENT_BYTES);
        shm_unmap(base, bytes);
        base = NULL;
    }
    return base;
}

void uploaded_unmap(struct uploaded *u)
{
    shm_unmap(u, UPLOADED_SEGMENT_BYTES);
}

void uploaded_tell(struct uploaded *u, uint64_t bytes)
{
    assert(bytes >= atomic_load_explicit(&u->bytes, memory_order_relaxed));
    atomic_store_explicit(&u->bytes, bytes, memory_order_release);
    atomic_fetch_add_explicit(&u->bell, 1, memory_order_release);
    syscall(SYS_futex, &u->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

uint64_t uploaded_bytes(const struct uploaded *u)
{
    return atomic_load_explicit(&u->bytes, memory_order_acquire);
}

uint64_t uploaded_wait(const struct uploaded *u, uint64_t bytes, int timeout_ms)
{
    const struct timespec most = { timeout_ms / 1000, timeout_ms % 1000 * 1000000l };
    uint32_t bell = atomic_load_explicit(&u->bell, memory_order_acquire);
    if (uploaded_bytes(u) < bytes) {
        syscall(SYS_futex, &u->bell, FUTEX_WAIT, bell, &most, NULL, 0);
    }
    return uploaded_bytes(u);
}
