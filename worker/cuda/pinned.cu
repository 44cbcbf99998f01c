/* Weights that the device fetches by itself: their mapping is registered for DMA, so a swap moves bytes at the bus's speed and the host
 * copies nothing. Pinning a page costs more than reading it (0.16 s/GB), so it is done once for a mapping, in pieces, by a thread of its own, and undone by it:
 * no step waits for it, and an upload that comes too early takes the ring for what is not registered yet.
 *
 * What is registered is always one run from the mapping's beginning, `done` bytes long: it grows while the mapping is wanted and shrinks
 * when it is not. A refusal costs speed, never a model.
 *
 * Copies go on a stream of their own, so that one travels while the rows before it are re-laid; only events order the two. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "worker/cuda/upload.cuh"

extern "C" {
#include "proto/log.h"
}

#ifndef PIN_PIECE_BYTES
#define PIN_PIECE_BYTES ((size_t)64 << 20) /* registered at once: some 10 ms. Whole pages */
#endif

struct pin {
    const uint8_t *base; /* NULL: free */
    size_t size, done;
    bool wanted;  /* else it shrinks */
    bool refused; /* it does not grow any more */
    bool in_hand; /* the thread's: a piece is being registered or given back */
    double began;
};

struct cuda_pins {
    pthread_t thread;
    bool tried, started, stop;
    pthread_mutex_t lock; /* of what follows; never held while the runtime works */
    pthread_cond_t wake;
    struct pin pins[BACKEND_PINS_MAX];
    bool warned;
    int device;
    /* the loop's alone */
    cudaStream_t stream;
    cudaEvent_t ready, fetched; /* memory is there to be written; all has come */
    bool fetching;
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- the thread ---- */

/* Says it once: the next model meets the same. */
static void warn_refused(struct cuda_pins *t, const char *why)
{
    struct rlimit limit;
    char memlock[64] = "";
    if (t->warned) {
        return;
    }
    t->warned = true;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        snprintf(memlock, sizeof memlock, " (RLIMIT_MEMLOCK is %llu KiB)",
                 (unsigned long long)limit.rlim_cur >> 10);
    }
    log_warn("cuda: weights are not registered for DMA: %s%s; the host copies them", why, memlock);
}

/* The next piece, of a mapping that shrinks first. */
static struct pin *choose(struct cuda_pins *t)
{
    struct pin *grows = NULL;
    for (struct pin &p : t->pins) {
        if (p.base && !p.wanted && p.done > 0) {
            return &p;
        }
        if (p.base && p.wanted && !p.refused && p.done < p.size && !grows) {
            grows = &p;
        }
    }
    return grows;
}

/* With the lock, which is let go while the runtime works. */
static void grow(struct cuda_pins *t, struct pin *p)
{
    size_t left = p->size - p->done, n = left < PIN_PIECE_BYTES ? left : PIN_PIECE_BYTES;
    uint8_t *at = (uint8_t *)(uintptr_t)p->base + p->done;
    p->in_hand = true;
    pthread_mutex_unlock(&t->lock);
    cudaError_t rc = cudaHostRegister(at, n, cudaHostRegisterReadOnly);
    if (cuda_is_fatal(rc)) {
        cuda_die(rc, "register weights");
    }
    if (rc != cudaSuccess) {
        (void)cudaGetLastError(); /* it is told here */
    }
    pthread_mutex_lock(&t->lock);
    p->in_hand = false;
    if (rc != cudaSuccess) {
        p->refused = true;
        warn_refused(t, cudaGetErrorString(rc));
        return;
    }
    p->done += n;
    if (p->done == p->size) {
        log_info("cuda: %.2f GiB of weights are registered for DMA, in %.2f s",
                 (double)p->size / (1u << 30), now_s() - p->began);
    }
}

static void shrink(struct cuda_pins *t, struct pin *p)
{
    p->done = (p->done - 1) / PIN_PIECE_BYTES * PIN_PIECE_BYTES;
    uint8_t *at = (uint8_t *)(uintptr_t)p->base + p->done;
    p->in_hand = true;
    pthread_mutex_unlock(&t->lock);
    cudaError_t rc = cudaHostUnregister(at);
    if (cuda_is_fatal(rc)) {
        cuda_die(rc, "give weights back");
    }
    pthread_mutex_lock(&t->lock);
    p->in_hand = false;
}

static void *registrar(void *arg)
{
    struct cuda_pins *t = (struct cuda_pins *)arg;
    (void)cudaSetDevice(t->device); /* a thread begins with the first one */
    pthread_mutex_lock(&t->lock);
    while (!t->stop) {
        struct pin *p = choose(t);
        if (!p) {
            pthread_cond_wait(&t->wake, &t->lock);
        } else if (p->wanted) {
            grow(t, p);
        } else {
            shrink(t, p);
        }
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* ---- its life: it begins with the first mapping ---- */

static int start(struct cuda_backend *c, struct cuda_pins *t, struct err *err)
{
    if (cuda_check(cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking), "a stream", err) <
            0 ||
        cuda_check(cudaEventCreateWithFlags(&t->ready, cudaEventDisableTiming), "an event", err) <
            0 ||
        cuda_check(cudaEventCreateWithFlags(&t->fetched, cudaEventDisableTiming), "an event", err) <
            0) {
        return -1;
    }
    for (struct buffer &b : c->uploads->buffers) {
        if (cuda_check(cudaEventCreateWithFlags(&b.fetched, cudaEventDisableTiming), "an event",
                       err) < 0) {
            return -1;
        }
    }
    int rc = pthread_create(&t->thread, NULL, registrar, t);
    if (rc != 0) {
        errno = rc;
        return err_set_errno(err, ERR_IO, "a thread");
    }
    t->started = true;
    return 0;
}

int cuda_pins_create(struct cuda_backend *c, struct err *err)
{
    struct cuda_pins *t = (struct cuda_pins *)calloc(1, sizeof *t);
    if (!t) {
        return err_set(err, ERR_NO_MEMORY, "cuda: registered weights");
    }
    t->device = c->device;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    c->pins = t;
    return 0;
}

void cuda_pins_destroy(struct cuda_backend *c)
{
    struct cuda_pins *t = c->pins;
    if (!t) {
        return;
    }
    if (t->started) {
        pthread_mutex_lock(&t->lock);
        t->stop = true;
        pthread_cond_signal(&t->wake);
        pthread_mutex_unlock(&t->lock);
        pthread_join(t->thread, NULL);
    }
    if (t->stream) {
        (void)cudaStreamSynchronize(t->stream);
        (void)cudaStreamDestroy(t->stream);
    }
    pthread_mutex_lock(&t->lock);
    for (struct pin &p : t->pins) {
        while (p.base && p.done > 0) {
            shrink(t, &p);
        }
    }
    pthread_mutex_unlock(&t->lock);
    for (cudaEvent_t event : { t->ready, t->fetched }) {
        if (event) {
            (void)cudaEventDestroy(event);
        }
    }
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    free(t);
    c->pins = NULL;
}

/* ---- mappings come and go ---- */

static struct pin *find(struct cuda_pins *t, const uint8_t *base)
{
    for (struct pin &p : t->pins) {
        if (p.base == base) {
            return &p;
        }
    }
    return NULL;
}

void cuda_pin(struct backend *b, const uint8_t *base, size_t size_bytes)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_pins *t = c->pins;
    struct err err;
    if (!t->tried && start(c, t, &err) < 0) {
        warn_refused(t, err.text);
    }
    t->tried = true;
    if (!t->started) {
        return;
    }
    pthread_mutex_lock(&t->lock);
    struct pin *p = find(t, base) ? NULL : find(t, NULL);
    if (p) {
        struct pin fresh = {};
        fresh.base = base;
        fresh.size = size_bytes;
        fresh.wanted = true;
        fresh.began = now_s();
        *p = fresh;
        pthread_cond_signal(&t->wake);
    }
    pthread_mutex_unlock(&t->lock);
}

bool cuda_unpin(struct backend *b, const uint8_t *base)
{
    struct cuda_pins *t = cuda_of(b)->pins;
    struct pin *p = find(t, base); /* who has which is the loop's to change */
    if (p && p->wanted) {
        (void)cudaStreamSynchronize(
            t->stream); /* its model is gone, but be sure that nothing reads it */
    }
    pthread_mutex_lock(&t->lock);
    if (p && p->wanted) {
        p->wanted = false;
        pthread_cond_signal(&t->wake);
    }
    bool gone = !p || (p->done == 0 && !p->in_hand);
    if (p && gone) {
        struct pin none = {};
        *p = none;
    }
    pthread_mutex_unlock(&t->lock);
    return gone;
}

uint64_t cuda_pinned_bytes(struct backend *b, const uint8_t *base)
{
    struct cuda_pins *t = cuda_of(b)->pins;
    pthread_mutex_lock(&t->lock);
    const struct pin *p = find(t, base);
    uint64_t done = p ? p->done : 0;
    pthread_mutex_unlock(&t->lock);
    return done;
}

/* ---- fetching ---- */

/* Where the registered run that holds these bytes begins; NULL: not all of them are registered. */
static const uint8_t *registered(struct cuda_pins *t, const uint8_t *from, uint64_t size)
{
    const uint8_t *base = NULL;
    pthread_mutex_lock(&t->lock);
    for (const struct pin &p : t->pins) {
        uint64_t off = (uint64_t)((uintptr_t)from - (uintptr_t)p.base);
        if (p.base && p.wanted && off < p.done && size <= p.done - off) {
            base = p.base;
        }
    }
    pthread_mutex_unlock(&t->lock);
    return base;
}

/* A copy may not cross from one registration to the next. */
static cudaError_t fetch_bytes(struct cuda_pins *t, uint8_t *to, const uint8_t *from, uint64_t size,
                               const uint8_t *base)
{
    cudaError_t rc = cudaSuccess;
    for (uint64_t at = 0, n; rc == cudaSuccess && at < size; at += n) {
        uint64_t left = PIN_PIECE_BYTES - (uint64_t)(from + at - base) % PIN_PIECE_BYTES;
        n = size - at < left ? size - at : left;
        rc = cudaMemcpyAsync(to + at, from + at, n, cudaMemcpyHostToDevice, t->stream);
    }
    return rc;
}

/* Through a buffer there, which the other stream re-lays; whole groups at a time. */
static int fetch_rows(struct cuda_backend *c, const struct cuda_tensor *own, const uint8_t *base,
                      struct err *err)
{
    struct cuda_pins *t = c->pins;
    uint64_t row_bytes = own->row_bytes, m = own->from.ne[1];
    uint64_t at_once = BUFFER_BYTES / row_bytes / GROUP_ROWS * GROUP_ROWS;
    uint8_t *to = own->device;
    for (uint64_t i = 0, n; i < m * own->from.ne[2]; i += n) {
        struct buffer *b = &c->uploads->buffers[c->uploads->turn++ % BUFFERS];
        n = m - i % m < at_once ? m - i % m : at_once;
        if (cuda_check(cudaStreamWaitEvent(t->stream, b->done, 0), "fetch weights", err) < 0 ||
            cuda_check(
                fetch_bytes(t, b->device, own->from.data + i * row_bytes, n * row_bytes, base),
                "fetch weights", err) < 0 ||
            cuda_check(cudaEventRecord(b->fetched, t->stream), "fetch weights", err) < 0 ||
            cuda_check(cudaStreamWaitEvent(c->stream, b->fetched, 0), "fetch weights", err) < 0 ||
            cuda_relay(c, own->from.dtype, b->device, row_bytes, (uint32_t)n,
                       (uint32_t)own->from.ne[0], to, err) < 0 ||
            cuda_check(cudaEventRecord(b->done, c->stream), "fetch weights", err) < 0) {
            return -1;
        }
        to += round_up(n, GROUP_ROWS) / GROUP_ROWS * own->group_bytes;
    }
    return 0;
}

int cuda_fetch(struct cuda_backend *c, const struct cuda_tensor *own, struct err *err)
{
    struct cuda_pins *t = c->pins;
    uint64_t size = own->row_bytes * own->from.ne[1] * own->from.ne[2];
    const uint8_t *base = size > 0 && own->from.layout == WEIGHTS_LAYOUT_FILE && !own->spilled_bytes
                              ? registered(t, own->from.data, size)
                              : NULL;
    if (!base) {
        return 0;
    }
    if (!t->fetching) { /* memory that was just allocated is cleared first, buffers may be in use */
        t->fetching = true;
        if (cuda_step_flush(c, err) < 0 ||
            cuda_check(cudaEventRecord(t->ready, c->stream), "fetch weights", err) < 0 ||
            cuda_check(cudaStreamWaitEvent(t->stream, t->ready, 0), "fetch weights", err) < 0) {
            return -1;
        }
    }
    int rc = own->group_bytes ? fetch_rows(c, own, base, err)
                              : cuda_check(fetch_bytes(t, own->device, own->from.data, size, base),
                                           "fetch weights", err);
    return rc < 0 ? -1 : 1;
}

int cuda_fetch_end(struct cuda_backend *c, struct err *err)
{
    struct cuda_pins *t = c->pins;
    if (!t->fetching) {
        return 0;
    }
    t->fetching = false;
    return cuda_check(cudaEventRecord(t->fetched, t->stream), "fetch weights", err) < 0
               ? -1
               : cuda_check(cudaStreamWaitEvent(c->stream, t->fetched, 0), "fetch weights", err);
}
