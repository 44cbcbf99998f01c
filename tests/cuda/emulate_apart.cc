/* See emulate_apart.h. */
#include "tests/cuda/emulate_apart.h"

#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>

#define ADDRESSES ((size_t)1 << 40)
#define PAGE      ((size_t)4096)

static struct {
    uint8_t *base;
    size_t used; /* bytes, handed out from the beginning */
    int depth;   /* of what the device does at the moment */
} apart;

long apart_level()
{
    static const char *const value = getenv("HEARTH_EMULATED_APART");
    return value ? atol(value) : 0;
}

bool apart_has(const void *p)
{
    return apart.base && (uintptr_t)p - (uintptr_t)apart.base < apart.used;
}

void *apart_alloc(size_t size)
{
    if (!apart.base) {
        void *base = mmap(NULL, ADDRESSES, apart_level() == 2 ? PROT_NONE : PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        apart.base = base == MAP_FAILED ? NULL : (uint8_t *)base;
    }
    size_t bytes = (size + PAGE - 1) / PAGE * PAGE + PAGE; /* allocations do not touch */
    if (!apart.base || bytes > ADDRESSES - apart.used) {
        return NULL;
    }
    void *p = apart.base + apart.used;
    apart.used += bytes;
    return p;
}

void apart_free(void *p, size_t size)
{
    (void)madvise(p, size, MADV_DONTNEED);
}

void apart_device_acts(bool begins)
{
    apart.depth += begins ? 1 : -1;
    if (apart_level() == 2 && apart.used && apart.depth == (begins ? 1 : 0)) {
        (void)mprotect(apart.base, apart.used, begins ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
}
