/* The CUDA backend's inside: what its files share. Nothing outside worker/cuda includes this but backend.c (one row of
 * its table) and tests/cuda. One loop thread owns it; every launch goes to one stream, so ops happen in call order.
 *
 * Weights on the device: float types as in the file. A quantised row is cut in two planes, the blocks' bodies (a run of
 * whole 16 bytes, so that lanes load 16 aligned bytes) and then the rests (scales and what else is left), padded
 * to 16 bytes; dequant.cuh has the table. struct matrix then holds the device's address and strides. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/backend.h"

#ifdef __cplusplus
#define CUDA_STREAM cudaStream_t
extern "C" {
#else
#define CUDA_STREAM void *
#endif

struct dequant_tables;
struct weights_tensor;

/* Columns of a product: activations as int8, 32 to a scale. */
struct column_block {
    float d;      /* of the 32 codes */
    float sum[3]; /* d times the sum of codes 0..15, 16..31, all: what minimums multiply */
};

struct cuda_memory; /* one allocation, listed until close */
struct cuda_tensor; /* one import: where it comes from, where it goes */

struct cuda_backend {
    struct backend base;
    CUDA_STREAM stream;
    int device;
    struct backend_limits limits;
    struct cuda_memory *memory;    /* owned: everything this backend allocated */
    struct cuda_tensor *tensors;   /* owned */
    struct dequant_tables *tables; /* device */
    int8_t *codes;                 /* device: quantised activations, [max_rows][max_k] at most */
    struct column_block *columns;  /* device: [max_rows][max_k / 32] */
    size_t max_codes;
    float *partials; /* device: attention's spans */
    size_t n_partials;
    uint8_t *stage_host, *stage_device; /* host arrays on their way: a ring, pinned on this side */
    size_t stage_at;
    void *mapped; /* state memory that the device may touch */
};

static inline struct cuda_backend *cuda_of(struct backend *b)
{
    return (struct cuda_backend *)(void *)b; /* base is its first member */
}

/* backend.c's row: name is cuda or cuda:N. Errors: ERR_NOT_FOUND without such a device, ERR_UNSUPPORTED for exact. */
struct backend *cuda_open(const char *name, const struct backend_options *options, struct err *err);

/* Whether there is a device to open; the reason in err when not. */
bool cuda_available(struct err *err);

/* cuda.cu, upload.cu */
void *cuda_alloc(struct backend *b, size_t size_bytes, struct err *err);
void cuda_free(struct backend *b, void *memory);
int cuda_import(struct backend *b, const struct weights_tensor *t, struct matrix *m,
                struct err *err);
int cuda_import_experts(struct backend *b, const struct weights_tensor *const *tensors, uint32_t n,
                        const uint8_t **places, struct matrix *m, struct err *err);
int cuda_arrived(struct backend *b, uint64_t data_end, struct err *err);
void cuda_release(struct backend *b, const uint8_t *base, size_t size_bytes);
int cuda_tables_create(struct cuda_backend *c, struct err *err);
/* A copy of host memory that launches from here on may read; valid until STAGE_BYTES more were staged. */
const void *cuda_stage(struct cuda_backend *c, const void *host, size_t size_bytes,
                       struct err *err);

int cuda_embed(struct backend *b, const struct op_embed *op, struct err *err);
int cuda_norm(struct backend *b, const struct op_norm *op, struct err *err);
int cuda_matmul(struct backend *b, const struct op_matmul *op, struct err *err);
int cuda_matmul_experts(struct backend *b, const struct op_matmul_experts *op, struct err *err);
int cuda_matmul_check(struct backend *b, const struct matrix *w, struct err *err);
int cuda_rope_table(struct backend *b, const struct op_rope_table *op, struct err *err);
int cuda_rope(struct backend *b, const struct op_rope *op, struct err *err);
int cuda_kv_store(struct backend *b, const struct op_kv_store *op, struct err *err);
int cuda_attention(struct backend *b, const struct op_attention *op, struct err *err);
int cuda_attention_check(struct backend *b, enum dtype k_type, enum dtype v_type, struct err *err);
int cuda_attention_reserve(struct cuda_backend *c, struct err *err);
int cuda_act(struct backend *b, const struct op_act *op, struct err *err);
int cuda_add(struct backend *b, const struct op_add *op, struct err *err);
int cuda_gather(struct backend *b, const struct op_gather *op, struct err *err);
int cuda_moe_route(struct backend *b, const struct op_moe_route *op, struct err *err);
int cuda_moe_sum(struct backend *b, const struct op_moe_sum *op, struct err *err);
int cuda_delta_net(struct backend *b, const struct op_delta_net *op, struct err *err);

#ifdef __cplusplus
}
#endif
