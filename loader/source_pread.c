/* A pool of threads, each reading chunk after chunk. The threads are born when the source is opened, since a
 * confined process can have no more of them, and sleep until it is started. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loader/source_ops.h"

#define CHUNK_BYTES                                                                                \
    (2u << 20) /* large enough to hide the call, small enough to overlap with layout */
#define THREADS_MAX 16

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work, news; /* started or stopping; a chunk is done or one failed */
    pthread_t threads[THREADS_MAX];
    int n_threads;
    bool started, stopping;
    size_t next; /* chunk to be taken */
    size_t n_done;
    size_t n_told; /* of n_done as the owner saw it last */
    bool *done;    /* like source's own, under the lock */
    bool failed;
    struct err err;
};

static void *pool_thread(void *arg)
{
    struct source *s = arg;
    struct pool *p = s->own;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->stopping && (!p->started || p->next >= s->n_allowed || p->failed)) {
            pthread_cond_wait(&p->work, &p->lock);
        }
        if (p->stopping) {
            break;
        }
        size_t idx = p->next++;
        pthread_mutex_unlock(&p->lock);

        const struct source_chunk *chunk = &s->chunks[idx];
        struct err err = { 0 };
        int rc = source_read_chunk(s, chunk, false, &err); /* its copy faults the memory in */

        pthread_mutex_lock(&p->lock);
        if (rc == 0) {
            p->done[idx] = true;
            p->n_done++;
        } else if (!p->failed) {
            p->failed = true;
            p->err = err;
        }
        pthread_cond_signal(&p->news);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void pool_close(struct source *s)
{
    struct pool *p = s->own;
    if (!p) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_threads; i++) {
        pthread_join(p->threads[i], NULL);
    }
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->news);
    pthread_mutex_destroy(&p->lock);
    free(p->done);
    free(p);
    s->own = NULL;
}

static int pool_open(struct source *s, struct err *err)
{
    struct pool *p = calloc(1, sizeof *p);
    if (!p) {
        return err_set(err, ERR_NO_MEMORY, "no memory for the read threads");
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->news, NULL);
    s->own = p;
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int wanted = s->n_threads > 0 ? s->n_threads : n_cpus < 2 ? 2 : n_cpus < 8 ? (int)n_cpus : 8;
    /* Signals belong to the owner's loop. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int rc = 0;
    while (rc == 0 && p->n_threads < wanted && p->n_threads < THREADS_MAX) {
        rc = pthread_create(&p->threads[p->n_threads], NULL, pool_thread, s);
        p->n_threads += rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (p->n_threads == 0) {
        pool_close(s);
        return err_set(err, ERR_NO_MEMORY, "no thread to read with: %s", strerror(rc));
    }
    return 0;
}

static int pool_start(struct source *s, struct err *err)
{
    struct pool *p = s->own;
    p->done = calloc(s->n_chunks, sizeof *p->done);
    if (!p->done) {
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu reads", s->n_chunks);
    }
    pthread_mutex_lock(&p->lock);
    p->started = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static void pool_allow(struct source *s, size_t n)
{
    struct pool *p = s->own;
    pthread_mutex_lock(&p->lock);
    s->n_allowed = n;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
}

static int pool_wait(struct source *s, struct err *err)
{
    struct pool *p = s->own;
    int rc = 0;
    pthread_mutex_lock(&p->lock);
    while (p->n_done == p->n_told && !p->failed) {
        pthread_cond_wait(&p->news, &p->lock);
    }
    if (p->failed) {
        if (err) {
            *err = p->err;
        }
        rc = -1;
    } else {
        p->n_told = p->n_done;
        for (size_t i = s->n_leading; i < p->next; i++) {
            s->done[i] = p->done[i];
        }
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

const struct source_ops source_pread_ops = {
    .name = "pread",
    .chunk_bytes = CHUNK_BYTES,
    .open = pool_open,
    .start = pool_start,
    .allow = pool_allow,
    .wait = pool_wait,
    .close = pool_close,
};
