#include "worker/cpu/team.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Turns of a waiting loop before it sleeps. About ten microseconds are the price of a futex wake-up; about 150 cover what the
 * loop thread does alone between two jobs of a step. Each thread starts with the most, halves it when it waited in vain
 * (somebody else has the other's core) and doubles it when it did not. */
#define SPIN_TURNS_MIN 256
#define SPIN_TURNS_MAX 4096

struct team {
    unsigned n_threads;  /* with the owner */
    unsigned spin_max;   /* 1 where threads are more than cores */
    unsigned owner_spin; /* turns of the owner's next wait */
    team_job *job;
    void *arg;
    size_t n_items, grain;
    _Alignas(64) _Atomic size_t next;         /* first item not yet handed out */
    _Alignas(64) _Atomic uint32_t generation; /* counts jobs; futex of the members */
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic uint32_t pending; /* members still in this job; futex of the owner */
    _Atomic bool stop;
    struct member {
        struct team *team;
        unsigned index;
        pthread_t thread;
    } members[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void work(struct team *team, unsigned member)
{
    size_t n = team->n_items, grain = team->grain;
    for (;;) {
        size_t begin = atomic_fetch_add_explicit(&team->next, grain, memory_order_relaxed);
        if (begin >= n) {
            return;
        }
        team->job(team->arg, begin, begin + grain < n ? begin + grain : n, member);
    }
}

/* The turns of the next wait. */
static unsigned next_spin(const struct team *team, unsigned turns, bool in_vain)
{
    unsigned most = team->spin_max, least = most < SPIN_TURNS_MIN ? most : SPIN_TURNS_MIN;
    turns = in_vain ? turns / 2 : turns * 2;
    return turns < least ? least : turns > most ? most : turns;
}

/* Sleeps until generation is not `seen`. The owner raises generation before it looks at sleepers, a member raises
 * sleepers before it looks at generation: one of the two sees the other. */
static void wait_job(struct team *team, uint32_t seen, unsigned *turns)
{
    for (unsigned i = 0; i < *turns; i++) {
        if (atomic_load_explicit(&team->generation, memory_order_acquire) != seen) {
            *turns = next_spin(team, *turns, false);
            return;
        }
        relax();
    }
    *turns = next_spin(team, *turns, true);
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->generation) == seen) {
        futex_wait(&team->generation, seen);
    }
    atomic_fetch_sub(&team->sleepers, 1);
}

static void *member_main(void *arg)
{
    struct member *me = arg;
    struct team *team = me->team;
    unsigned turns = team->spin_max;
    for (uint32_t seen = 0;; seen++) {
        wait_job(team, seen, &turns);
        if (atomic_load(&team->stop)) {
            return NULL;
        }
        work(team, me->index);
        if (atomic_fetch_sub(&team->pending, 1) == 1) {
            futex_wake(&team->pending, 1);
        }
    }
}

static unsigned cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) {
        return (unsigned)CPU_COUNT(&set);
    }
    return 1;
}

struct team *team_create(unsigned n_threads, struct err *err)
{
    unsigned n_cores = cores();
    n_threads = n_threads ? n_threads : n_cores;
    n_threads = n_threads < TEAM_THREADS_MAX ? n_threads : TEAM_THREADS_MAX;
    struct team *team = NULL;
    size_t size = sizeof *team + n_threads * sizeof team->members[0];
    if (posix_memalign((void **)&team, 64, (size + 63) & ~(size_t)63) != 0) {
        err_set(err, ERR_NO_MEMORY, "%u compute threads: no memory", n_threads);
        return NULL;
    }
    *team = (struct team){ .n_threads = 1, .spin_max = n_threads <= n_cores ? SPIN_TURNS_MAX : 1 };
    team->owner_spin = team->spin_max;
    /* Signals are read in the loop; these threads take none. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (unsigned i = 1; i < n_threads; i++) {
        struct member *m = &team->members[i];
        *m = (struct member){ .team = team, .index = i };
        int error = pthread_create(&m->thread, NULL, member_main, m);
        if (error) {
            errno = error;
            err_set_errno(err, ERR_IO, "start compute thread %u of %u", i, n_threads);
            pthread_sigmask(SIG_SETMASK, &before, NULL);
            team_destroy(&team);
            return NULL;
        }
        team->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return team;
}

void team_destroy(struct team **team)
{
    struct team *t = *team;
    if (!t) {
        return;
    }
    atomic_store(&t->stop, true);
    atomic_fetch_add(&t->generation, 1);
    futex_wake(&t->generation, INT32_MAX);
    for (unsigned i = 1; i < t->n_threads; i++) {
        pthread_join(t->members[i].thread, NULL);
    }
    free(t);
    *team = NULL;
}

unsigned team_size(const struct team *team)
{
    return team->n_threads;
}

void team_run(struct team *team, team_job *job, void *arg, size_t n_items, size_t grain)
{
    assert(grain > 0);
    if (n_items == 0) {
        return;
    }
    if (team->n_threads == 1 || n_items <= grain) {
        job(arg, 0, n_items, 0);
        return;
    }
    team->job = job;
    team->arg = arg;
    team->n_items = n_items;
    team->grain = grain;
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    atomic_store_explicit(&team->pending, team->n_threads - 1, memory_order_relaxed);
    atomic_fetch_add(&team->generation, 1);
    if (atomic_load(&team->sleepers) > 0) {
        futex_wake(&team->generation, INT32_MAX);
    }
    work(team, 0);
    for (unsigned i = 0; i < team->owner_spin; i++) {
        if (atomic_load_explicit(&team->pending, memory_order_acquire) == 0) {
            team->owner_spin = next_spin(team, team->owner_spin, false);
            return;
        }
        relax();
    }
    team->owner_spin = next_spin(team, team->owner_spin, true);
    uint32_t left;
    while ((left = atomic_load(&team->pending)) != 0) {
        futex_wait(&team->pending, left);
    }
}

size_t team_grain(const struct team *team, size_t n_items, size_t runs)
{
    size_t parts = team->n_threads * runs;
    size_t grain = (n_items + parts - 1) / parts;
    return grain ? grain : 1;
}
