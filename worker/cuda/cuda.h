/* The CUDA backend's inside: what its files share. Nothing outside worker/cuda includes this but backend.c (one row of
 * its table) and tests/cuda. One loop thread owns it; every launch goes to one stream, so ops happen in call order.
 *
 * Weights on the device: float types as in the file; a quantised matrix as tiles (tiles.cuh). struct matrix then holds the
 * device's address; row_bytes is that of a group of 16 rows, expert_bytes of an expert's groups. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/backend.h"

#ifdef __cplusplus
#define CUDA_STREAM cudaStream_t
#define CUDA_EVENT  cudaEvent_t
#define CUDA_ERROR  cudaError_t
extern "C" {
#else
#define CUDA_STREAM void *
#define CUDA_EVENT  void *
#define CUDA_ERROR  int
#endif

struct tile_tables;
struct product_chunk;
struct weights_tensor;

struct cuda_memory; /* one allocation, listed until close */
struct cuda_tensor; /* one import: where it comes from, where it goes */
struct cuda_step;
struct cuda_mirror;
struct cuda_uploads;
struct cuda_spill;
struct cuda_streamed; /* one matrix that comes when it is needed */
struct cuda_slot;
struct cuda_pins;

/* What a step and the host share in pinned memory; two, so that the next step can be made while one runs. */
struct cuda_block {
    uint8_t *stage;                         /* host arrays on their way */
    struct op_picked *picked;               /* [OP_PICK_ROWS_MAX], written by the sample kernel */
    struct op_picked *to[OP_PICK_ROWS_MAX]; /* where the caller wants them */
    uint32_t n_picked;
    bool left; /* its step may still run; `done` says when it does not */
    CUDA_EVENT done;
};

#define CUDA_ALLOC_ALIGN 512 /* of every allocation, in address and in what is counted */
#define CUDA_STEPS_KEPT  32  /* graphs: batches of 1 to 16 rows, and as many shapes again */

struct cuda_backend {
    struct backend base;
    CUDA_STREAM stream;
    int device;
    struct backend_limits limits;
    struct cuda_memory *memory;  /* owned: everything this backend allocated */
    struct cuda_tensor *tensors; /* owned */
    struct tile_tables *tables;  /* device */
    int8_t *codes;               /* device: quantised activations (quantise.cuh) */
    float *columns;              /* device: their scales and sums */
    size_t max_codes;
    struct {
        const float *x; /* what codes hold, NULL: nothing that is still true */
        uint32_t x_stride, n, k;
        uint32_t tile; /* which of codes is the first */
    } quantised;
    uint32_t *order; /* device: experts' rows, and their chunks */
    struct product_chunk *chunks;
    uint32_t max_order;
    struct {
        const int32_t *experts; /* what order and chunks are about, or NULL */
        uint32_t n, width;
    } sorted;
    float *partials; /* device: attention's spans */
    size_t n_partials;
    struct cuda_block blocks[2];
    uint32_t block;        /* of this step */
    uint8_t *stage_device; /* where a block's host arrays go, at the same places in every step */
    size_t stage_at, stage_sent;  /* filled so far; copied so far */
    struct cuda_step *step;       /* owned: the list of a step's launches, kept graphs */
    struct cuda_uploads *uploads; /* owned: buffers of weights on their way */
    struct cuda_pins *pins;       /* owned: weights that the device reads where they stand */
    struct cuda_mirror *mirror;   /* owned: pages on their way to the host */
    struct cuda_spill *spill;     /* owned: slots of streamed weights; NULL: there were none yet */
};

static inline struct cuda_backend *cuda_of(struct backend *b)
{
    return (struct cuda_backend *)(void *)b; /* base is its first member */
}

/* Every op but products says this first: memory that was quantised may be written. */
static inline void cuda_forget(struct cuda_backend *c)
{
    c->quantised.x = NULL;
}

/* backend.c's row: name is cuda or cuda:N. Errors: ERR_FAILED without such a device. */
struct backend *cuda_open(const char *name, const struct backend_options *options, struct err *err);

/* Whether there is a device to open; the reason in err when not. */
bool cuda_available(struct err *err);

/* memory.cu. Whatever touches the stream beside LAUNCH calls cuda_step_flush first: launches may be waiting on a list. */
void *cuda_alloc(struct backend *b, size_t size_bytes, struct err *err);
void cuda_free(struct backend *b, void *memory);
void cuda_free_all(struct cuda_backend *c);
/* A work space that all models share grows to `want` bytes, *have before; what it held is lost. */
int cuda_grow(struct cuda_backend *c, void **memory, size_t *have, size_t want, struct err *err);
int cuda_upload(struct backend *b, void *device, const void *host, size_t size_bytes,
                struct err *err);
int cuda_download(struct backend *b, void *host, const void *device, size_t size_bytes,
                  struct err *err);
int cuda_copy(struct backend *b, void *to, const void *from, size_t size_bytes, struct err *err);
int cuda_clear(struct backend *b, void *memory, size_t size_bytes, struct err *err);
/* A copy of host memory that launches from here on may read, until the step's end. */
const void *cuda_stage(struct cuda_backend *c, const void *host, size_t size_bytes,
                       struct err *err);
int cuda_stage_create(struct cuda_backend *c, struct err *err);
void cuda_stage_destroy(struct cuda_backend *c);
int cuda_stage_send(struct cuda_backend *c, struct err *err);
int cuda_finish(struct backend *b, struct err *err);
int cuda_block_leave(struct cuda_backend *c, struct err *err);

/* step.cu: a step's launches as one graph. Steps of one key (not 0) are the same launches. */
struct cuda_step_counts {
    uint64_t n_graphs, n_launched, n_plain,
        n_nodes_set; /* made; lists sent as one, by line; changes */
};
int cuda_step_create(struct cuda_backend *c, struct err *err);
void cuda_step_destroy(struct cuda_backend *c);
int cuda_step_begin(struct backend *b, uint64_t key, struct err *err);
/* A turn of a slot of streamed weights (spill.cu) as a line of the step's list; false: launches are not listed now. */
bool cuda_step_turn(struct cuda_backend *c, struct cuda_slot *slot, const uint8_t *from,
                    uint64_t size);
int cuda_step_flush(struct cuda_backend *c, struct err *err);
int cuda_step_end(struct backend *b, struct err *err);
int cuda_step_leave(struct backend *b, struct err *err);
/* Graphs name memory that is gone: none is kept. */
void cuda_step_forget(struct cuda_backend *c);
struct cuda_step_counts cuda_step_counted(const struct backend *b);

/* mirror.cu */
int cuda_mirror_create(struct cuda_backend *c, struct err *err);
void cuda_mirror_destroy(struct cuda_backend *c);
int cuda_lend(struct backend *b, void *memory, size_t size_bytes, struct err *err);
void cuda_unlend(struct backend *b, void *memory);
int cuda_mirror_send(struct backend *b, const struct backend_run *runs, uint32_t n_runs, bool hold,
                     uint64_t *ticket, struct err *err);
int cuda_mirrored(struct backend *b, uint64_t ticket, bool wait, struct err *err);

/* upload.cu */
int cuda_import(struct backend *b, const struct weights_tensor *t, struct matrix *m,
                struct err *err);
int cuda_import_experts(struct backend *b, const struct weights_tensor *const *tensors, uint32_t n,
                        const uint8_t **places, struct matrix *m, struct err *err);
int cuda_import_spilled(struct backend *b, const struct weights_tensor *t,
                        const struct backend_spilled *where, struct matrix *m, struct err *err);
int cuda_arrived(struct backend *b, const uint8_t *base, size_t size_bytes, uint64_t data_end,
                 struct err *err);
void cuda_release(struct backend *b, const uint8_t *base, size_t size_bytes);
int cuda_tables_create(struct cuda_backend *c, struct err *err);
int cuda_uploads_create(struct cuda_backend *c, uint32_t n_threads, struct err *err);
void cuda_uploads_destroy(struct cuda_backend *c);

/* pinned.cu */
int cuda_pins_create(struct cuda_backend *c, struct err *err);
void cuda_pins_destroy(struct cuda_backend *c);
void cuda_pin(struct backend *b, const uint8_t *base, size_t size_bytes);
bool cuda_unpin(struct backend *b, const uint8_t *base);
uint64_t cuda_pinned_bytes(struct backend *b, const uint8_t *base);

/* spill.cu: weights in the host's memory, and what is streamed from there. */
/* Pinned memory of that many bytes, counted; any address while dry. NULL: ERR_NO_MEMORY. */
uint8_t *cuda_spill_alloc(struct cuda_backend *c, uint64_t size_bytes, struct err *err);
void cuda_spill_free(struct cuda_backend *c, uint8_t *host, uint64_t size_bytes);
/* A matrix of size_bytes at host to be streamed; *device: where products find it. */
struct cuda_streamed *cuda_spill_stream(struct cuda_backend *c, const struct backend_spilled *where,
                                        const uint8_t *host, uint64_t size_bytes,
                                        const uint8_t **device, struct err *err);
/* What stands at host may be read from here on. */
void cuda_spill_arrived(struct cuda_streamed *e);
/* What was streamed from this segment is gone. */
void cuda_spill_release(struct cuda_backend *c, const uint8_t *base, size_t size_bytes);
void cuda_spill_destroy(struct cuda_backend *c);
/* matmul, with what it needs fetched before and the next fetched behind it. */
int cuda_spill_matmul(struct backend *b, const struct op_matmul *op, struct err *err);
/* For step.cu. Bytes from host into the slot, behind all that the stream was asked for (from NULL: none), or what the stream is asked for next
 * behind the slot's last bytes; at once, by a stream of its own. */
CUDA_ERROR cuda_spill_turn(struct cuda_backend *c, struct cuda_slot *slot, const uint8_t *from,
                           uint64_t size_bytes);
/* The stream waits for all that cuda_spill_turn began. */
CUDA_ERROR cuda_spill_join(struct cuda_backend *c);
/* Turns that were listed will not happen: no slot is believed. */
void cuda_spill_forget(struct cuda_backend *c);
uint8_t *cuda_spill_place(const struct cuda_slot *slot);

/* Bytes of 16 rows of k values as tiles; 0 for types that stand as in the file. */
uint64_t cuda_group_bytes(enum dtype dtype, uint64_t k);
/* n_rows rows of the file's layout (device memory, the first of a group of 16) to tiles at out, on the stream. */
int cuda_relay(struct cuda_backend *c, enum dtype dtype, const uint8_t *rows, uint64_t row_bytes,
               uint32_t n_rows, uint32_t k, uint8_t *out, struct err *err);

int cuda_embed(struct backend *b, const struct op_embed *op, struct err *err);
int cuda_norm(struct backend *b, const struct op_norm *op, struct err *err);
int cuda_matmul(struct backend *b, const struct op_matmul *op, struct err *err);
int cuda_matmul_experts(struct backend *b, const struct op_matmul_experts *op, struct err *err);
int cuda_matmul_exact(struct backend *b, const struct op_matmul *op, struct err *err);
int cuda_matmul_experts_exact(struct backend *b, const struct op_matmul_experts *op,
                              struct err *err);
int cuda_matmul_check(struct backend *b, const struct matrix *w, struct err *err);
int cuda_matmul_reserve(struct cuda_backend *c, struct err *err);
int cuda_rope_table(struct backend *b, const struct op_rope_table *op, struct err *err);
int cuda_rope(struct backend *b, const struct op_rope *op, struct err *err);
int cuda_kv_store(struct backend *b, const struct op_kv_store *op, struct err *err);
int cuda_attention(struct backend *b, const struct op_attention *op, struct err *err);
int cuda_attention_exact(struct backend *b, const struct op_attention *op, struct err *err);
int cuda_attention_check_exact(struct backend *b, enum dtype k_type, enum dtype v_type,
                               struct err *err);
int cuda_attention_check(struct backend *b, enum dtype k_type, enum dtype v_type, struct err *err);
int cuda_attention_reserve(struct cuda_backend *c, struct err *err);
int cuda_act(struct backend *b, const struct op_act *op, struct err *err);
int cuda_add(struct backend *b, const struct op_add *op, struct err *err);
int cuda_gather(struct backend *b, const struct op_gather *op, struct err *err);
int cuda_moe_route(struct backend *b, const struct op_moe_route *op, struct err *err);
int cuda_moe_sum(struct backend *b, const struct op_moe_sum *op, struct err *err);
int cuda_sample(struct backend *b, const struct op_sample *op, struct err *err);
int cuda_delta_net(struct backend *b, const struct op_delta_net *op, struct err *err);

#ifdef __cplusplus
}
#endif
