/* Faults for a program that is started with this library (LD_PRELOAD): the HEARTH_FAULT_AT-th call of what HEARTH_FAULT names fails.
 * malloc: malloc, calloc, realloc give NULL. open: ENFILE. mmap: ENOMEM. read: EIO from pread; short: half of what was asked. Counts in one process
 * only; a child inherits the variables and counts anew. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static _Atomic long calls;
static _Thread_local int inside; /* dlsym allocates */

static int strikes(const char *what)
{
    const char *named = getenv("HEARTH_FAULT"), *at = getenv("HEARTH_FAULT_AT");
    return !inside && named && at && strcmp(named, what) == 0 &&
           atomic_fetch_add(&calls, 1) + 1 == atol(at);
}

/* glibc's own allocator by its other names: looking a name up allocates. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);

static void *no_memory(void)
{
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t n)
{
    return strikes("malloc") ? no_memory() : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return strikes("malloc") ? no_memory() : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return strikes("malloc") ? no_memory() : __libc_realloc(p, n);
}

/* The next function of this name into *fn, which is a pointer of its type. */
static void find_real(const char *name, void *fn)
{
    inside++;
    void *found = dlsym(RTLD_NEXT, name);
    inside--;
    memcpy(fn, &found, sizeof found);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
    if (strikes("mmap")) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    void *(*next)(void *, size_t, int, int, int, off_t);
    find_real("mmap", &next);
    return next(at, n, prot, flags, fd, off);
}

int open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    unsigned mode = flags & O_CREAT ? va_arg(args, unsigned) : 0;
    va_end(args);
    if (strikes("open")) {
        errno = ENFILE;
        return -1;
    }
    int (*next)(const char *, int, ...);
    find_real("open", &next);
    return next(path, flags, mode);
}

ssize_t pread(int fd, void *to, size_t n, off_t off)
{
    if (strikes("read")) {
        errno = EIO;
        return -1;
    }
    ssize_t (*next)(int, void *, size_t, off_t);
    find_real("pread", &next);
    return next(fd, to, strikes("short") ? n / 2 : n, off);
}
