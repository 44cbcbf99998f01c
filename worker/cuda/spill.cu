/* Weights that the device has no room for (worker/spill.h). They stand as tiles in pinned host memory: upload.cu had them re-laid on the
 * device and took them back. Tables are read there over the bus, a few rows a step, by embed as if they were the device's. A
 * streamed matrix comes into a slot before its product:
 *
 *   products   ..- P0 -....-  P1  -....-  P2  -....      Pj reads slot j % 2 and gives it free
 *   copies        \- into 0: 2 -\- into 1: 3 -\          by a stream of their own, in the order in which slots come free
 *
 * Each slot goes round its own matrices, the last one of a step followed by the first one of the next, so steps name the same
 * addresses for ever. What a slot holds is known when launches are asked for, in their order; if it is not what a product needs
 * (the first step, one that failed), it is fetched then. Inside a step's list a turn is a line of it (step.cu), otherwise
 * events keep the two streams in order. Bound by the bus where the products between do not last as long. */
#include "worker/cuda/check.cuh"

#include <assert.h>
#include <stdlib.h>

struct cuda_streamed {
    struct cuda_streamed *next; /* of this slot, by turn */
    const uint8_t *host;        /* upload.cu's */
    uint64_t size;
    uint32_t turn;
    bool there; /* what the loader reads has come to host */
    struct cuda_slot *slot;
};

struct cuda_slot {
    uint8_t *device; /* owned; NULL: only counted */
    struct cuda_streamed *first; /* owned list */
    const struct cuda_streamed *holds; /* or will, when all that was asked for is done; NULL: nobody's */
    cudaEvent_t free, filled;
    bool apart; /* filled was recorded, and the stream was not joined since */
};

/* The slots of one model. */
struct ring {
    struct ring *next;
    const uint8_t *base; /* of its segment */
    uint64_t slot_bytes;
    struct cuda_slot slots[BACKEND_SLOTS];
};

struct cuda_spill {
    cudaStream_t stream; /* of copies */
    struct ring *rings;  /* owned */
};

/* ---- memory ---- */

uint8_t *cuda_spill_alloc(struct cuda_backend *c, uint64_t size_bytes, struct err *err)
{
    uint8_t *host = NULL;
    if (!c->base.dry) {
        cudaError_t rc = cudaHostAlloc((void **)&host, size_bytes, cudaHostAllocMapped);
        if (rc != cudaSuccess) {
            (void)cudaGetLastError(); /* it is told here */
            err_set(err, ERR_NO_MEMORY,
                    "cuda: %llu MiB of pinned host memory wanted, %llu MiB in use: %s",
                    (unsigned long long)size_bytes >> 20,
                    (unsigned long long)c->base.spilled_bytes >> 20, cudaGetErrorString(rc));
            return NULL;
        }
    }
    c->base.spilled_bytes += size_bytes;
    return c->base.dry ? (uint8_t *)(uintptr_t)CUDA_ALLOC_ALIGN : host;
}

void cuda_spill_free(struct cuda_backend *c, uint8_t *host, uint64_t size_bytes)
{
    if (host && host != (uint8_t *)(uintptr_t)CUDA_ALLOC_ALIGN) {
        c->base.spilled_bytes -= size_bytes;
        (void)cudaFreeHost(host);
    }
}

/* ---- rings ---- */

static void slot_clear(struct cuda_backend *c, struct cuda_slot *s)
{
    for (struct cuda_streamed *e = s->first, *next; e; e = next) {
        next = e->next;
        free(e);
    }
    if (s->free) {
        (void)cudaEventDestroy(s->free);
    }
    if (s->filled) {
        (void)cudaEventDestroy(s->filled);
    }
    cuda_free(&c->base, s->device);
}

static void ring_destroy(struct cuda_backend *c, struct ring *r)
{
    if (c->spill->stream) {
        (void)cudaStreamSynchronize(c->spill->stream); /* it reads what goes now */
    }
    for (struct cuda_slot &s : r->slots) {
        slot_clear(c, &s);
    }
    free(r);
}

static int slot_create(struct cuda_backend *c, struct cuda_slot *s, uint64_t bytes, struct err *err)
{
    uint8_t *device = (uint8_t *)cuda_alloc(&c->base, bytes, err);
    if (!device) {
        return -1;
    }
    if (c->base.dry) {
        return 0;
    }
    s->device = device;
    return cuda_check(cudaEventCreateWithFlags(&s->free, cudaEventDisableTiming), "an event",
                      err) < 0
               ? -1
               : cuda_check(cudaEventCreateWithFlags(&s->filled, cudaEventDisableTiming),
                            "an event", err);
}

static struct ring *find_ring(struct cuda_backend *c, const uint8_t *base)
{
    for (struct ring *r = c->spill->rings; r; r = r->next) {
        if (r->base == base) {
            return r;
        }
    }
    return NULL;
}

/* The model's slots, made when its first matrix comes. */
static struct ring *get_ring(struct cuda_backend *c, const struct backend_spilled *where,
                             struct err *err)
{
    if (!c->spill) {
        c->spill = (struct cuda_spill *)calloc(1, sizeof *c->spill);
    }
    if (!c->spill) {
        err_set(err, ERR_NO_MEMORY, "cuda: slots");
        return NULL;
    }
    struct ring *r = find_ring(c, where->base);
    if (r) {
        return r;
    }
    if (!c->spill->stream && !c->base.dry &&
        cuda_check(cudaStreamCreateWithFlags(&c->spill->stream, cudaStreamNonBlocking), "a stream",
                   err) < 0) {
        return NULL;
    }
    r = (struct ring *)calloc(1, sizeof *r);
    if (!r) {
        err_set(err, ERR_NO_MEMORY, "cuda: slots");
        return NULL;
    }
    r->base = where->base;
    r->slot_bytes = where->slot_bytes;
    r->next = c->spill->rings;
    c->spill->rings = r;
    for (struct cuda_slot &s : r->slots) {
        if (slot_create(c, &s, where->slot_bytes, err) < 0) {
            return NULL; /* it goes with the model */
        }
    }
    return r;
}

struct cuda_streamed *cuda_spill_stream(struct cuda_backend *c, const struct backend_spilled *where,
                                        const uint8_t *host, uint64_t size_bytes,
                                        const uint8_t **device, struct err *err)
{
    struct ring *r = get_ring(c, where, err);
    struct cuda_streamed *e = r ? (struct cuda_streamed *)calloc(1, sizeof *e) : NULL;
    if (!e || size_bytes > r->slot_bytes) {
        if (r) {
            err_set(err, ERR_NO_MEMORY, "cuda: a slot of %llu bytes for %llu",
                    (unsigned long long)r->slot_bytes, (unsigned long long)size_bytes);
        }
        free(e);
        return NULL;
    }
    e->slot = &r->slots[where->turn % BACKEND_SLOTS];
    e->host = host;
    e->size = size_bytes;
    e->turn = where->turn;
    struct cuda_streamed **at = &e->slot->first;
    while (*at && (*at)->turn < e->turn) {
        at = &(*at)->next;
    }
    e->next = *at;
    *at = e;
    *device = e->slot->device ? e->slot->device : host; /* any address while dry */
    return e;
}

void cuda_spill_arrived(struct cuda_streamed *e)
{
    e->there = true;
}

void cuda_spill_release(struct cuda_backend *c, const uint8_t *base, size_t size_bytes)
{
    struct ring **at = c->spill ? &c->spill->rings : NULL;
    while (at && *at) {
        struct ring *r = *at;
        if ((uintptr_t)r->base - (uintptr_t)base < size_bytes) {
            *at = r->next;
            ring_destroy(c, r);
        } else {
            at = &r->next;
        }
    }
}

void cuda_spill_destroy(struct cuda_backend *c)
{
    if (c->spill && c->spill->stream) {
        (void)cudaStreamDestroy(c->spill->stream);
    }
    free(c->spill);
    c->spill = NULL;
}

/* ---- turns ---- */

uint8_t *cuda_spill_place(const struct cuda_slot *slot)
{
    return slot->device;
}

cudaError_t cuda_spill_turn(struct cuda_backend *c, struct cuda_slot *slot, const uint8_t *from,
                            uint64_t size_bytes)
{
    cudaStream_t copies = c->spill->stream;
    if (!from) {
        return cudaStreamWaitEvent(c->stream, slot->filled, 0);
    }
    cudaError_t rc = cudaEventRecord(slot->free, c->stream);
    rc = rc == cudaSuccess ? cudaStreamWaitEvent(copies, slot->free, 0) : rc;
    rc = rc == cudaSuccess ? cudaMemcpyAsync(slot->device, from, size_bytes, cudaMemcpyHostToDevice,
                                             copies)
                           : rc;
    rc = rc == cudaSuccess ? cudaEventRecord(slot->filled, copies) : rc;
    slot->apart = true;
    return rc;
}

cudaError_t cuda_spill_join(struct cuda_backend *c)
{
    cudaError_t rc = cudaSuccess;
    for (struct ring *r = c->spill ? c->spill->rings : NULL; r; r = r->next) {
        for (struct cuda_slot &s : r->slots) {
            if (rc == cudaSuccess && s.apart) {
                rc = cudaStreamWaitEvent(c->stream, s.filled, 0);
                s.apart = false;
            }
        }
    }
    return rc;
}

void cuda_spill_forget(struct cuda_backend *c)
{
    for (struct ring *r = c->spill ? c->spill->rings : NULL; r; r = r->next) {
        for (struct cuda_slot &s : r->slots) {
            s.holds = NULL;
        }
    }
}

/* On the list of the step, or at once. */
static int turn(struct cuda_backend *c, struct cuda_slot *slot, const struct cuda_streamed *e,
                struct err *err)
{
    const uint8_t *from = e ? e->host : NULL;
    uint64_t size = e ? e->size : 0;
    if (cuda_step_turn(c, slot, from, size)) {
        return 0;
    }
    return cuda_check(cuda_spill_turn(c, slot, from, size), "a weight on its way", err);
}

static int fetch(struct cuda_backend *c, const struct cuda_streamed *e, struct err *err)
{
    if (e->slot->holds == e) {
        return 0;
    }
    e->slot->holds = e;
    return turn(c, e->slot, e, err);
}

int cuda_spill_matmul(struct backend *b, const struct op_matmul *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_streamed *needs[OP_PRODUCTS_MAX];
    uint32_t n = 0;
    for (uint32_t i = 0; i < op->n_products && op->n_rows > 0; i++) {
        struct cuda_streamed *e = (struct cuda_streamed *)op->products[i].w->streamed;
        if (e) {
            needs[n++] = e;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        assert(i == 0 || needs[i]->slot != needs[0]->slot); /* spill.c's choice */
        if (fetch(c, needs[i], err) < 0 || turn(c, needs[i]->slot, NULL, err) < 0) {
            return -1;
        }
    }
    if ((b->exact ? cuda_matmul_exact(b, op, err) : cuda_matmul(b, op, err)) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct cuda_streamed *e = needs[i]->next ? needs[i]->next : needs[i]->slot->first;
        if (e->there && fetch(c, e, err) < 0) {
            return -1;
        }
    }
    return 0;
}
