/* Faults for a program that is started with this library (LD_PRELOAD): the HEARTH_FAULT_AT-th call of what HEARTH_FAULT names fails.
 * malloc: malloc, calloc, realloc give NULL. open: ENFILE. mmap: ENOMEM. read: EIO from pread; short: half of what was asked. Counts in one process
 * only; a child inherits the variables and counts anew. socket, eventfd, accept, memfd: EMFILE. slow: a pread takes HEARTH_FAULT_AT ms.
 * HEARTH_FAULT_IN: in programs of this name alone; HEARTH_FAULT_ONCE: a file, whoever can remove it is struck, the others are not. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static _Atomic int started; /* main has: what a library does before is not ours to judge */
static _Atomic long calls;
static _Thread_local int inside; /* dlsym allocates */

static int strikes(const char *what)
{
    const char *named = getenv("HEARTH_FAULT"), *at = getenv("HEARTH_FAULT_AT");
    const char *in = getenv("HEARTH_FAULT_IN"), *once = getenv("HEARTH_FAULT_ONCE");
    return started && !inside && named && at && strcmp(named, what) == 0 &&
           (!in || strcmp(in, program_invocation_short_name) == 0) &&
           atomic_fetch_add(&calls, 1) + 1 == atol(at) && (!once || unlink(once) == 0);
}

/* A call that makes a descriptor: there is none left. */
static int no_descriptor(void)
{
    errno = EMFILE;
    return -1;
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

static int (*real_main)(int, char **, char **);

static int begin(int argc, char **argv, char **environment)
{
    started = 1;
    return real_main(argc, argv, environment);
}

int __libc_start_main(int (*program)(int, char **, char **), int argc, char **argv,
                      void (*init)(void), void (*fini)(void), void (*loader_fini)(void),
                      void *stack_end);

int __libc_start_main(int (*program)(int, char **, char **), int argc, char **argv,
                      void (*init)(void), void (*fini)(void), void (*loader_fini)(void),
                      void *stack_end)
{
    int (*next)(int (*)(int, char **, char **), int, char **, void (*)(void), void (*)(void),
                void (*)(void), void *);
    find_real("__libc_start_main", &next);
    real_main = program;
    return next(begin, argc, argv, init, fini, loader_fini, stack_end);
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

int socket(int domain, int type, int protocol)
{
    int (*next)(int, int, int);
    find_real("socket", &next);
    return strikes("socket") ? no_descriptor() : next(domain, type, protocol);
}

int accept4(int fd, __SOCKADDR_ARG address, socklen_t *restrict len, int flags)
{
    int (*next)(int, struct sockaddr *, socklen_t *, int);
    find_real("accept4", &next);
    return strikes("accept") ? no_descriptor() : next(fd, address.__sockaddr__, len, flags);
}

int eventfd(unsigned count, int flags)
{
    int (*next)(unsigned, int);
    find_real("eventfd", &next);
    return strikes("eventfd") ? no_descriptor() : next(count, flags);
}

int memfd_create(const char *name, unsigned flags)
{
    int (*next)(const char *, unsigned);
    find_real("memfd_create", &next);
    return strikes("memfd") ? no_descriptor() : next(name, flags);
}

/* Without a system call: a sandbox may know no sleep. */
static void take_long(void)
{
    const char *named = getenv("HEARTH_FAULT"), *ms = getenv("HEARTH_FAULT_AT");
    struct timespec begun, now;
    if (!named || !ms || strcmp(named, "slow") != 0) {
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 <
             atol(ms));
}

ssize_t pread(int fd, void *to, size_t n, off_t off)
{
    take_long();
    if (strikes("read")) {
        errno = EIO;
        return -1;
    }
    ssize_t (*next)(int, void *, size_t, off_t);
    find_real("pread", &next);
    return next(fd, to, strikes("short") ? n / 2 : n, off);
}
