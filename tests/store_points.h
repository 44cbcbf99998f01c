/* Every store into a piece of memory, one by one: the memory is made read-only, each store faults, the test is told, the
 * store is let through as a single step. So a test can ask at every point "what if the process died here?" on a copy, without a mark in the code
 * that is tested, and no store can be forgotten. Loops inside the kernel (read into the memory) would fail: there are none here.
 *
 *   store_points_begin(memory, bytes, hook, arg);     from here on hook(arg, k) before store k = 0, 1, ...
 *   ... the code that writes ...
 *   n = store_points_end(memory);                     stores in all
 *
 * Regions nest: a hook may watch another piece of memory while the first store waits; that is how a second crash, in the recovery,
 * is enumerated. A block store (memset, memcpy) counts as its single instructions, 32 or 64 bytes each. x86-64 only: elsewhere
 * STORE_POINTS is 0 and the tests skip. One thread. */
#pragma once

#if defined __x86_64__ && defined __linux__ && !defined __SANITIZE_THREAD__
#define STORE_POINTS 1
#else
#define STORE_POINTS 0
#endif

#if STORE_POINTS
#include <assert.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

typedef void store_hook(void *arg, uint64_t k);

#define STORE_REGIONS_MAX 4

static struct store_region {
    uint8_t *base;
    size_t bytes;
    store_hook *hook;
    void *arg;
    uint64_t n;
} store_regions[STORE_REGIONS_MAX];
static int store_n_regions;
static int store_stepping = -1; /* the region whose store is let through */
static struct sigaction store_old_segv, store_old_trap;

#define STORE_TRAP_FLAG 0x100 /* of the flags register: a trap after the next instruction */

static void store_on_trap(int number, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    (void)number, (void)info;
    if (store_stepping >= 0) {
        struct store_region *r = &store_regions[store_stepping];
        mprotect(r->base, r->bytes, PROT_READ);
        store_stepping = -1;
    }
    u->uc_mcontext.gregs[REG_EFL] &= ~STORE_TRAP_FLAG;
}

static void store_on_fault(int number, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    uint8_t *at = info->si_addr;
    (void)number;
    for (int i = store_n_regions; i-- > 0;) {
        struct store_region *r = &store_regions[i];
        if (at < r->base || at >= r->base + r->bytes) {
            continue;
        }
        if (r->hook) {
            r->hook(r->arg, r->n);
        }
        r->n++;
        mprotect(r->base, r->bytes, PROT_READ | PROT_WRITE);
        store_stepping = i;
        u->uc_mcontext.gregs[REG_EFL] |= STORE_TRAP_FLAG;
        return;
    }
    signal(SIGSEGV, SIG_DFL); /* a fault like any other */
}

/* base: page aligned, as bytes are. */
static inline void store_points_begin(void *base, size_t bytes, store_hook *hook, void *arg)
{
    assert(store_n_regions < STORE_REGIONS_MAX && (uintptr_t)base % 4096 == 0 && bytes % 4096 == 0);
    if (store_n_regions == 0) {
        struct sigaction fault = { .sa_sigaction = store_on_fault,
                                   .sa_flags = SA_SIGINFO | SA_NODEFER };
        struct sigaction trap = { .sa_sigaction = store_on_trap,
                                  .sa_flags = SA_SIGINFO | SA_NODEFER };
        sigaction(SIGSEGV, &fault, &store_old_segv);
        sigaction(SIGTRAP, &trap, &store_old_trap);
    }
    store_regions[store_n_regions++] = (struct store_region){ base, bytes, hook, arg, 0 };
    assert(mprotect(base, bytes, PROT_READ) == 0);
}

static inline uint64_t store_points_end(void *base)
{
    struct store_region *r = &store_regions[--store_n_regions];
    assert(r->base == base);
    assert(mprotect(base, r->bytes, PROT_READ | PROT_WRITE) == 0);
    if (store_n_regions == 0) {
        sigaction(SIGSEGV, &store_old_segv, NULL);
        sigaction(SIGTRAP, &store_old_trap, NULL);
    }
    return r->n;
}

/* glibc fills and copies large blocks by one instruction that would trap at every byte: told not to, which takes effect at a
 * program's start. Call first in main. */
static inline void store_points_init(char **argv)
{
    if (!getenv("GLIBC_TUNABLES")) {
        setenv("GLIBC_TUNABLES",
               "glibc.cpu.x86_rep_stosb_threshold=1000000000:glibc.cpu.x86_rep_movsb_threshold="
               "1000000000",
               1);
        execv("/proc/self/exe", argv);
    }
}
#endif
