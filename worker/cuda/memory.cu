/* The device's memory: allocated when a model is loaded, counted against a budget, and the blocks of host arrays (page
 * tables, positions, ids) that launches read and of tokens that they choose. Nothing here is called between the ops of a step but cuda_stage. */
#include "worker/cuda/check.cuh"

#include <stdlib.h>

#define STAGE_BYTES ((size_t)8 << 20) /* page tables of 16 sequences of 32k take 64 KiB a layer */
#define STAGE_ALIGN 256 /* so that addresses move only when a table outgrows 64 pages */
#define DRY_AT      ((uintptr_t)4096) /* an address for what is only counted */

struct cuda_memory {
    struct cuda_memory *next;
    void *device;
    size_t size;
};

/* ---- what is allocated ---- */

static int cannot(struct cuda_backend *c, size_t size, const char *why, struct err *err)
{
    size_t free_bytes = 0, total = 0;
    (void)cudaGetLastError(); /* it is told here */
    (void)cudaMemGetInfo(&free_bytes, &total);
    return err_set(err, ERR_NO_MEMORY,
                   "cuda: %zu MiB wanted, %zu of %zu MiB free, %llu MiB in use by models: %s",
                   size >> 20, free_bytes >> 20, total >> 20,
                   (unsigned long long)c->base.used_bytes >> 20, why);
}

void *cuda_alloc(struct backend *b, size_t size_bytes, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    size_t size = (size_t)round_up(size_bytes ? size_bytes : 1, CUDA_ALLOC_ALIGN);
    if (b->dry) {
        b->used_bytes += size;
        return (void *)DRY_AT;
    }
    struct cuda_memory *m = (struct cuda_memory *)calloc(1, sizeof *m);
    if (!m) {
        err_set(err, ERR_NO_MEMORY, "cuda: a list entry");
        return NULL;
    }
    if (b->budget_bytes && b->used_bytes + size > b->budget_bytes) {
        cannot(c, size, "the budget of device memory is used up", err);
        free(m);
        return NULL;
    }
    cudaError_t rc = cudaMalloc(&m->device, size);
    if (cuda_is_fatal(rc)) {
        cuda_die(rc, "allocate");
    }
    if (rc != cudaSuccess) {
        cannot(c, size, cudaGetErrorString(rc), err);
        free(m);
        return NULL;
    }
    m->size = size;
    m->next = c->memory;
    c->memory = m;
    b->used_bytes += size;
    if (cuda_clear(b, m->device, size, err) < 0) {
        cuda_free(b, m->device);
        return NULL;
    }
    return m->device;
}

void cuda_free(struct backend *b, void *memory)
{
    struct cuda_backend *c = cuda_of(b);
    for (struct cuda_memory **at = &c->memory; memory && *at; at = &(*at)->next) {
        struct cuda_memory *m = *at;
        if (m->device == memory) {
            *at = m->next;
            b->used_bytes -= m->size;
            (void)cudaFree(m->device);
            free(m);
            return;
        }
    }
}

void cuda_free_all(struct cuda_backend *c)
{
    while (c->memory) {
        cuda_free(&c->base, c->memory->device);
    }
}

int cuda_grow(struct cuda_backend *c, void **memory, size_t *have, size_t want, struct err *err)
{
    struct backend *b = &c->base;
    if (want <= *have) {
        return 0;
    }
    if (b->dry) {
        b->used_bytes += round_up(want, CUDA_ALLOC_ALIGN) - round_up(*have, CUDA_ALLOC_ALIGN);
        return 0;
    }
    void *more = cuda_alloc(b, want, err);
    if (!more || cuda_finish(b, err) < 0) {
        return -1;
    }
    cuda_step_forget(c);
    cuda_free(b, *memory);
    *memory = more;
    *have = want;
    return 0;
}

/* ---- to and fro ---- */

int cuda_upload(struct backend *b, void *device, const void *host, size_t size_bytes,
                struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    if (b->dry) {
        return 0;
    }
    if (cuda_step_flush(c, err) < 0 ||
        cuda_check(cudaMemcpyAsync(device, host, size_bytes, cudaMemcpyHostToDevice, c->stream),
                   "upload", err) < 0) {
        return -1;
    }
    /* The caller may let go of host memory. */
    return cuda_check(cudaStreamSynchronize(c->stream), "upload", err);
}

int cuda_download(struct backend *b, void *host, const void *device, size_t size_bytes,
                  struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    if (cuda_step_flush(c, err) < 0 ||
        cuda_check(cudaMemcpyAsync(host, device, size_bytes, cudaMemcpyDeviceToHost, c->stream),
                   "download", err) < 0) {
        return -1;
    }
    return cuda_check(cudaStreamSynchronize(c->stream), "download", err);
}

int cuda_copy(struct backend *b, void *to, const void *from, size_t size_bytes, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    return cuda_step_flush(c, err) < 0
               ? -1
               : cuda_check(
                     cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToDevice, c->stream),
                     "copy", err);
}

int cuda_clear(struct backend *b, void *memory, size_t size_bytes, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    return cuda_step_flush(c, err) < 0
               ? -1
               : cuda_check(cudaMemsetAsync(memory, 0, size_bytes, c->stream), "clear memory", err);
}

/* ---- host arrays on their way ---- */

int cuda_stage_create(struct cuda_backend *c, struct err *err)
{
    for (struct cuda_block &block : c->blocks) {
        if (cuda_check(cudaHostAlloc((void **)&block.stage, STAGE_BYTES, cudaHostAllocDefault),
                       "pinned memory", err) < 0 ||
            cuda_check(cudaHostAlloc((void **)&block.picked,
                                     OP_PICK_ROWS_MAX * sizeof *block.picked, cudaHostAllocMapped),
                       "pinned memory", err) < 0 ||
            cuda_check(cudaEventCreateWithFlags(&block.done, cudaEventDisableTiming), "an event",
                       err) < 0) {
            return -1;
        }
    }
    c->stage_device = (uint8_t *)cuda_alloc(&c->base, STAGE_BYTES, err);
    return c->stage_device ? 0 : -1;
}

void cuda_stage_destroy(struct cuda_backend *c)
{
    for (struct cuda_block &block : c->blocks) {
        if (block.stage) {
            (void)cudaFreeHost(block.stage);
        }
        if (block.picked) {
            (void)cudaFreeHost(block.picked);
        }
        if (block.done) {
            (void)cudaEventDestroy(block.done);
        }
    }
}

int cuda_stage_send(struct cuda_backend *c, struct err *err)
{
    size_t from = c->stage_sent, size = c->stage_at - from;
    if (size == 0) {
        return 0;
    }
    c->stage_sent = c->stage_at;
    return cuda_check(cudaMemcpyAsync(c->stage_device + from,
                                      c->blocks[c->block].stage + from, size,
                                      cudaMemcpyHostToDevice, c->stream),
                      "stage", err);
}

const void *cuda_stage(struct cuda_backend *c, const void *host, size_t size_bytes, struct err *err)
{
    if (size_bytes > STAGE_BYTES) {
        err_set(err, ERR_NO_FIT, "cuda: %zu bytes for one launch", size_bytes);
        return NULL;
    }
    if (c->stage_at + size_bytes > STAGE_BYTES && cuda_finish(&c->base, err) < 0) {
        return NULL;
    }
    size_t at = c->stage_at;
#if defined(HEARTH_EMULATED)
    emulate_told(host, size_bytes);
#endif
    memcpy(c->blocks[c->block].stage + at, host, size_bytes);
    c->stage_at = (size_t)round_up(at + size_bytes, STAGE_ALIGN);
    if (!cuda_step_collecting(c->stream) && cuda_stage_send(c, err) < 0) {
        return NULL;
    }
    return c->stage_device + at;
}

/* The step of this block has ended: its tokens go to those who asked for them. */
static void deliver(struct cuda_block *block)
{
    for (uint32_t i = 0; i < block->n_picked; i++) {
        *block->to[i] = block->picked[i];
    }
    block->n_picked = 0;
    block->left = false;
}

int cuda_finish(struct backend *b, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    if (cuda_step_flush(c, err) < 0 ||
        cuda_check(cudaStreamSynchronize(c->stream), "step", err) < 0) {
        return -1;
    }
    c->stage_at = c->stage_sent = 0; /* nobody reads it any more */
    deliver(&c->blocks[c->block ^ 1]);
    deliver(&c->blocks[c->block]);
    return 0;
}

int cuda_block_leave(struct cuda_backend *c, struct err *err)
{
    struct cuda_block *block = &c->blocks[c->block], *before = &c->blocks[c->block ^ 1];
    if (cuda_check(cudaEventRecord(block->done, c->stream), "step", err) < 0) {
        return -1;
    }
    block->left = true;
    if (before->left && cuda_check(cudaEventSynchronize(before->done), "step", err) < 0) {
        return -1;
    }
    deliver(before);
    c->block ^= 1;
    c->stage_at = c->stage_sent = 0; /* the next copy waits in the stream for this step */
    return 0;
}
