#include "proto/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A memfd has no limit of its own: asked for more than the machine has, the kernel would take all memory page by page
 * and then kill somebody. */
static int check_machine(const char *name, uint64_t bytes, struct err *err)
{
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    if (bytes > machine) {
        return err_set(err, ERR_NO_MEMORY,
                       "shared memory %s of %" PRIu64 " bytes; the machine has %" PRIu64, name,
                       bytes, machine);
    }
    return 0;
}

static int create(const char *name, uint64_t bytes, bool reserved, bool sealed, struct err *err)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return err_set_errno(err, ERR_NO_MEMORY, "create shared memory %s", name);
    }
    if (fchmod(fd, 0600) < 0) {
        err_set_errno(err, ERR_IO, "set the mode of shared memory %s", name);
        goto fail;
    }
    if (bytes > 0) {
        if (check_machine(name, bytes, err) < 0) {
            goto fail;
        }
        int status = reserved                          ? posix_fallocate(fd, 0, (off_t)bytes)
                     : ftruncate(fd, (off_t)bytes) < 0 ? errno
                                                       : 0;
        if (status) {
            errno = status;
            err_set_errno(err, ERR_NO_MEMORY, "reserve %" PRIu64 " bytes for %s", bytes, name);
            goto fail;
        }
    }
    if (sealed && shm_seal(fd, err) < 0) {
        goto fail;
    }
    return fd;
fail:
    close(fd);
    return -1;
}

int shm_create(const char *name, uint64_t bytes, bool sealed, struct err *err)
{
    return create(name, bytes, true, sealed, err);
}

int shm_create_sparse(const char *name, uint64_t bytes, struct err *err)
{
    return create(name, bytes, false, true, err);
}

int shm_populate(void *from, uint64_t bytes, struct err *err)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
    uintptr_t start = (uintptr_t)from & ~page, end = ((uintptr_t)from + bytes + page) & ~page;
    /* Faults pages in by themselves: unlike fallocate it takes no lock on the file, so threads add up. */
    while (bytes > 0 && madvise((void *)start, end - start, MADV_POPULATE_WRITE) < 0) {
        if (errno == EINVAL) {
            break; /* a kernel before 5.14: a touch will fault them in */
        }
        if (errno != EINTR && errno != EAGAIN) {
            return err_set_errno(err, ERR_NO_MEMORY, "no memory for %" PRIu64 " bytes", bytes);
        }
    }
    return 0;
}

int shm_seal(int fd, struct err *err)
{
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        return err_set_errno(err, ERR_IO, "seal shared memory");
    }
    return 0;
}

int shm_size(int fd, uint64_t *bytes, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return err_set_errno(err, ERR_IO, "size of shared memory");
    }
    *bytes = (uint64_t)st.st_size;
    return 0;
}

int shm_reopen_readonly(int fd, struct err *err)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int copy = open(path, O_RDONLY | O_CLOEXEC);
    if (copy < 0) {
        return err_set_errno(err, ERR_IO, "reopen shared memory read-only");
    }
    return copy;
}

void *shm_map(int fd, bool writable, size_t *bytes, struct err *err)
{
    uint64_t size;
    if (shm_size(fd, &size, err) < 0) {
        return NULL;
    }
    if (size == 0 || size > SIZE_MAX) {
        err_set(err, ERR_FAILED, "shared memory of %" PRIu64 " bytes cannot be mapped", size);
        return NULL;
    }
    void *base = mmap(NULL, (size_t)size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
                      fd, 0);
    if (base == MAP_FAILED) {
        err_set_errno(err, ERR_NO_MEMORY, "map %" PRIu64 " bytes of shared memory", size);
        return NULL;
    }
    *bytes = (size_t)size;
    return base;
}

void shm_unmap(const void *base, size_t bytes)
{
    if (base) {
        munmap((void *)(uintptr_t)base, bytes);
    }
}
