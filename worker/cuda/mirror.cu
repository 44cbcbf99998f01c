/* Pages and states to the host's mirror (worker/mirror.h) while the next step computes: a stream of its own that begins
 * behind the step. Large pieces go by the copy engine; the many small ones of a token (one for each layer, side and head)
 * by one kernel that writes over the bus. Host memory is registered piece by piece when it is first written to, as
 * registering all of it at start would take seconds; what cannot be registered is copied the slow way. */
#include "worker/cuda/check.cuh"

#include <stdlib.h>

extern "C" {
#include "proto/log.h"
}

#define THREADS     128
#define PIECE_BYTES ((size_t)64 << 20)   /* registered at once: some 10 ms */
#define ENGINE_FROM ((uint64_t)64 << 10) /* bytes that are worth a call of their own */
#define RUNS_MAX    4096                 /* of one launch */
#define TICKETS     8                    /* sends whose runs may still be read */
#define LENT_MAX    16                   /* mirrors at a time: one for each model that is bound */

/* A mirror's memory, and which pieces of it are registered. */
struct lent {
    uint8_t *base;
    size_t size;
    uint8_t *pinned; /* [pieces] */
};

struct cuda_mirror {
    cudaStream_t stream;
    cudaEvent_t computed, arrived[TICKETS];
    struct backend_run *runs; /* pinned, [TICKETS][RUNS_MAX] */
    uint64_t n_tickets;       /* given out; arrived[t % TICKETS] stands for ticket t */
    uint64_t seen;            /* this one and all before it have arrived */
    struct lent lent[LENT_MAX];
    bool refused; /* registering failed once: it is not tried again */
};

/* ---- host memory that the device may write ---- */

int cuda_lend(struct backend *b, void *memory, size_t size_bytes, struct err *err)
{
    struct cuda_mirror *m = cuda_of(b)->mirror;
    for (struct lent &l : m->lent) {
        if (!l.base && !b->dry) {
            l.pinned = (uint8_t *)calloc(size_bytes / PIECE_BYTES + 1, 1);
            if (!l.pinned) {
                return err_set(err, ERR_NO_MEMORY, "cuda: a mirror's table");
            }
            l.base = (uint8_t *)memory;
            l.size = size_bytes;
            return 0;
        }
    }
    return b->dry ? 0 : err_set(err, ERR_FULL, "cuda: %d mirrors are in use", LENT_MAX);
}

static void give_back(struct cuda_mirror *m, struct lent *l)
{
    (void)cudaStreamSynchronize(m->stream);
    for (size_t at = 0; l->base && at < l->size; at += PIECE_BYTES) {
        if (l->pinned[at / PIECE_BYTES]) {
            (void)cudaHostUnregister(l->base + at);
        }
    }
    free(l->pinned);
    struct lent none = {};
    *l = none;
}

void cuda_unlend(struct backend *b, void *memory)
{
    struct cuda_mirror *m = cuda_of(b)->mirror;
    for (struct lent &l : m->lent) {
        if (l.base == memory) {
            give_back(m, &l);
            return;
        }
    }
}

/* Whether the device may write all of these bytes. */
static bool pinned(struct cuda_mirror *m, const uint8_t *host, uint64_t bytes)
{
    for (struct lent &l : m->lent) {
        size_t off = (size_t)((uintptr_t)host - (uintptr_t)l.base);
        if (!l.base || off >= l.size || bytes > l.size - off) {
            continue;
        }
        for (size_t i = off / PIECE_BYTES; i <= (off + bytes - 1) / PIECE_BYTES; i++) {
            size_t at = i * PIECE_BYTES;
            size_t size = l.size - at < PIECE_BYTES ? l.size - at : PIECE_BYTES;
            if (l.pinned[i]) {
                continue;
            }
            cudaError_t rc = m->refused
                                 ? cudaSuccess
                                 : cudaHostRegister(l.base + at, size, cudaHostRegisterMapped);
            if (cuda_is_fatal(rc)) {
                cuda_die(rc, "register the state's mirror");
            }
            if (m->refused || rc != cudaSuccess) {
                if (!m->refused) {
                    log_warn("cuda: the state's mirror is not registered: %s; it is copied slowly",
                             cudaGetErrorString(rc));
                    (void)cudaGetLastError();
                }
                m->refused = true;
                return false;
            }
            l.pinned[i] = 1;
        }
        return true;
    }
    return false;
}

/* ---- sending ---- */

static __global__ void mirror_kernel(const struct backend_run *runs)
{
    const struct backend_run run = runs[blockIdx.x];
    uint64_t units = run.width / sizeof(struct uint4);
    for (uint64_t at = threadIdx.x; at < units * run.height; at += THREADS) {
        uint64_t off = at / units * run.pitch + at % units * sizeof(struct uint4);
        *(struct uint4 *)((uint8_t *)run.host +
                          off) = *(const struct uint4 *)((const uint8_t *)run.device + off);
    }
}

static cudaError_t copy_run(struct cuda_mirror *m, const struct backend_run *run)
{
    cudaError_t rc = cudaSuccess;
    for (uint32_t i = 0; rc == cudaSuccess && i < run->height; i++) {
        rc = cudaMemcpyAsync((uint8_t *)run->host + i * run->pitch,
                             (const uint8_t *)run->device + i * run->pitch, run->width,
                             cudaMemcpyDeviceToHost, m->stream);
    }
    return rc;
}

static cudaError_t send_runs(struct cuda_mirror *m, struct backend_run *list,
                             const struct backend_run *runs, uint32_t n_runs)
{
    cudaError_t rc = cudaSuccess;
    uint32_t n = 0;
    for (uint32_t i = 0; rc == cudaSuccess && i < n_runs; i++) {
        const struct backend_run *run = &runs[i];
        bool small = run->width * run->height < ENGINE_FROM && n < RUNS_MAX;
        bool may = pinned(m, (const uint8_t *)run->host,
                          (run->height - 1) * run->pitch + run->width);
        if (small && may) {
            list[n++] = *run;
        } else {
            rc = copy_run(m, run);
        }
    }
    if (rc == cudaSuccess && n > 0) {
        LAUNCH(mirror_kernel, n, THREADS, 0, m->stream, (const struct backend_run *)list);
        rc = cudaGetLastError();
    }
    return rc;
}

static int see(struct cuda_mirror *m, uint64_t ticket, bool wait, struct err *err)
{
    if (ticket <= m->seen) {
        return 1;
    }
    cudaError_t rc = wait ? cudaEventSynchronize(m->arrived[ticket % TICKETS])
                          : cudaEventQuery(m->arrived[ticket % TICKETS]);
    if (rc == cudaErrorNotReady) {
        return 0;
    }
    if (cuda_check(rc, "the state's mirror", err) < 0) {
        return -1;
    }
    m->seen = ticket;
    return 1;
}

int cuda_mirrored(struct backend *b, uint64_t ticket, bool wait, struct err *err)
{
    return see(cuda_of(b)->mirror, ticket, wait, err);
}

int cuda_mirror_send(struct backend *b, const struct backend_run *runs, uint32_t n_runs, bool hold,
                     uint64_t *ticket, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_mirror *m = c->mirror;
    uint64_t t = m->n_tickets + 1;
    cudaEvent_t arrived = m->arrived[t % TICKETS];
    if (cuda_step_flush(c, err) < 0 || (t > TICKETS && see(m, t - TICKETS, true, err) < 0) ||
        cuda_check(cudaEventRecord(m->computed, c->stream), "mirror", err) < 0 ||
        cuda_check(cudaStreamWaitEvent(m->stream, m->computed, 0), "mirror", err) < 0 ||
        cuda_check(send_runs(m, m->runs + t % TICKETS * RUNS_MAX, runs, n_runs), "mirror", err) <
            0 ||
        cuda_check(cudaEventRecord(arrived, m->stream), "mirror", err) < 0 ||
        (hold && cuda_check(cudaStreamWaitEvent(c->stream, arrived, 0), "mirror", err) < 0)) {
        return -1;
    }
    m->n_tickets = t;
    *ticket = t;
    return 0;
}

/* ---- life ---- */

int cuda_mirror_create(struct cuda_backend *c, struct err *err)
{
    struct cuda_mirror *m = (struct cuda_mirror *)calloc(1, sizeof *m);
    if (!m) {
        return err_set(err, ERR_NO_MEMORY, "cuda: the state's mirror");
    }
    c->mirror = m;
    if (cuda_check(cudaStreamCreateWithFlags(&m->stream, cudaStreamNonBlocking), "a stream", err) <
            0 ||
        cuda_check(cudaEventCreateWithFlags(&m->computed, cudaEventDisableTiming), "an event",
                   err) < 0 ||
        cuda_check(cudaHostAlloc((void **)&m->runs, TICKETS * RUNS_MAX * sizeof *m->runs,
                                 cudaHostAllocMapped),
                   "pinned memory", err) < 0) {
        return -1;
    }
    for (cudaEvent_t &event : m->arrived) {
        if (cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event", err) <
            0) {
            return -1;
        }
    }
    return 0;
}

void cuda_mirror_destroy(struct cuda_backend *c)
{
    struct cuda_mirror *m = c->mirror;
    if (!m) {
        return;
    }
    for (struct lent &l : m->lent) {
        if (l.base) {
            give_back(m, &l);
        }
    }
    for (cudaEvent_t event : m->arrived) {
        if (event) {
            (void)cudaEventDestroy(event);
        }
    }
    if (m->computed) {
        (void)cudaEventDestroy(m->computed);
    }
    if (m->runs) {
        (void)cudaFreeHost(m->runs);
    }
    if (m->stream) {
        (void)cudaStreamDestroy(m->stream);
    }
    free(m);
    c->mirror = NULL;
}
